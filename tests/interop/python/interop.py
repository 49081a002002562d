"""Publishes with an ordinary AMQP client and verifies what arrives with the official library.

Arguments: the AMQP URL. Prints its port as JSON, reads the secret from standard input, publishes
five events, and prints how many came back verified.
"""

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pika
from standardwebhooks.webhooks import Webhook

EVENTS = 5
secret = None
verified = set()
all_verified = threading.Event()


class Hook(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        payload = Webhook(secret).verify(body, dict(self.headers))
        assert payload["type"] == "python.made", payload
        verified.add((self.headers["webhook-id"], payload["data"]["n"]))
        self.send_response(204)
        self.end_headers()
        if len(verified) == EVENTS:
            all_verified.set()

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Hook)
threading.Thread(target=server.serve_forever, daemon=True).start()
print(json.dumps({"port": server.server_port}), flush=True)
secret = sys.stdin.readline().strip()

connection = pika.BlockingConnection(pika.URLParameters(sys.argv[1]))
channel = connection.channel()
channel.exchange_declare("doorbell.events", exchange_type="topic", durable=True)
channel.confirm_delivery()
for n in range(EVENTS):
    properties = pika.BasicProperties(
        message_id=f"python-{n}", delivery_mode=2, content_type="application/json", headers={"doorbell-tenant": "python"}
    )
    channel.basic_publish("doorbell.events", "python.made", json.dumps({"n": n, "text": "ünïcode ✓"}), properties)
connection.close()

all_verified.wait(60)
print(json.dumps({"verified": len(verified)}), flush=True)
sys.exit(0 if len(verified) == EVENTS else 1)
