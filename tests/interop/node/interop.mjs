// Publishes with an ordinary AMQP client and verifies what arrives with the official library.
//
// Arguments: the AMQP URL. Prints its port as JSON, reads the secret from standard input, publishes
// five events, and prints how many came back verified.
import { createServer } from "node:http";
import { createInterface } from "node:readline";
import amqp from "amqplib";
import { Webhook } from "standardwebhooks";

const EVENTS = 5;
const verified = new Set();
let secret;

const server = createServer((request, response) => {
  const chunks = [];
  request.on("data", (chunk) => chunks.push(chunk));
  request.on("end", () => {
    const payload = new Webhook(secret).verify(Buffer.concat(chunks).toString(), request.headers);
    if (payload.type === "node.made") verified.add(request.headers["webhook-id"]);
    response.writeHead(204).end();
    if (verified.size === EVENTS) finish();
  });
});

function finish() {
  console.log(JSON.stringify({ verified: verified.size }));
  process.exit(verified.size === EVENTS ? 0 : 1);
}

server.listen(0, "127.0.0.1", () => console.log(JSON.stringify({ port: server.address().port })));
secret = await new Promise((resolve) => createInterface({ input: process.stdin }).once("line", resolve));

const connection = await amqp.connect(process.argv[2]);
const channel = await connection.createConfirmChannel();
await channel.assertExchange("doorbell.events", "topic", { durable: true });
for (let n = 0; n < EVENTS; n++) {
  channel.publish("doorbell.events", "node.made", Buffer.from(JSON.stringify({ n, text: "ünïcode ✓" })), {
    messageId: `node-${n}`,
    persistent: true,
    contentType: "application/json",
    headers: { "doorbell-tenant": "node" },
  });
}
await channel.waitForConfirms();
await connection.close();
setTimeout(finish, 60_000);
