//! RabbitMQ in trouble: what was accepted stays, work resumes by itself, readiness tells the truth.

use std::sync::Arc;
use std::time::Duration;

use doorbell_platform::broker::topology::{self, ATTEMPTS};
use doorbell_platform::broker::{Broker, Declares, Message, PublishError, Publisher, connection};
use doorbell_platform::health::{Dependency, Health};
use doorbell_platform::shutdown::Shutdown;
use doorbell_platform::tls::Trust;
use doorbell_tests::api::subscription;
use doorbell_tests::engines::{self, Engines, PLUGINS};
use doorbell_tests::load::Load;
use doorbell_tests::wait::seconds;
use doorbell_tests::{Behaviour, Setup, World, amqp, eventually, within};
use futures_util::StreamExt as _;
use futures_util::future::join_all;
use lapin::options::{ExchangeDeleteOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use nix::sys::signal::Signal;
use prometheus::Registry;
use reqwest::Method;
use serde_json::json;

pub(crate) async fn connections_closed_and_queues_deleted_lose_nothing_accepted_afterwards()
-> anyhow::Result<()> {
    let world = Arc::new(World::with("operator", Setup::default().without_breaker()).await?);
    world.receiver.behave("flaky", Behaviour::FailFirst(1, 500));
    world.subscribe("acme", "steady", &["#"]).await?;
    world.subscribe("acme", "flaky", &["#"]).await?;
    world.in_force().await;
    let load = Load::over_http(&world, "acme", Duration::from_millis(10));
    for _ in 0..3 {
        let before = world.receiver.accepted("steady");
        eventually("load flows", seconds(60), || async {
            world.receiver.accepted("steady") > before + 30
        })
        .await?;
        world.engines.close_connections(&world.vhost).await?;
    }
    let accepted = load.end().await?;
    world.settle(seconds(120)).await?;
    let duplicates = world.duplicates().await?;
    eprintln!(
        "connections closed three times amid {accepted} events: 0 lost, {duplicates} duplicates"
    );
    world.check_history().await?;
    // Every queue that is ours, deleted while idle; what comes right afterwards must arrive.
    let outsider = world.outsider().await?;
    let mut queues = topology::ingress_queues();
    queues.extend(topology::sideline_queues());
    queues.extend(
        ["doorbell.retries", "doorbell.deliveries", "doorbell.delay.1s", "doorbell.delay.2s"]
            .map(str::to_owned),
    );
    for queue in &queues {
        outsider
            .channel
            .queue_delete(queue.as_str().into(), lapin::options::QueueDeleteOptions::default())
            .await?;
    }
    for n in 0..50 {
        world.publish("acme", "after.deletion", json!(n)).await?;
    }
    // And what others publish to leads nowhere, until someone finds that out.
    for exchange in ["doorbell.ingress.sharded", "doorbell.sideline.sharded"] {
        let options = ExchangeDeleteOptions::default();
        outsider.channel.exchange_delete(exchange.into(), options).await?;
    }
    for n in 0..20 {
        world.publish("acme", "after.deletion", json!(n)).await?;
        let id = format!("nowhere-{n}");
        world.ledger.accepted("acme", "after.deletion", &id, "1");
        outsider.publish("after.deletion", amqp::event("acme", Some(&id), &[]), b"1").await?;
    }
    world.settle(seconds(120)).await?;
    let returned = world.metric("doorbell_messages_unrouted_total").await?;
    eprintln!(
        "{} queues and two exchanges deleted: all of 90 events arrived, {returned} of our messages were brought back",
        queues.len()
    );
    world.until_all_ready().await?;
    Arc::into_inner(world).unwrap().finish().await
}

pub(crate) async fn a_memory_alarm_refuses_and_then_resumes() -> anyhow::Result<()> {
    let world = World::with("alarm", Setup::private()).await?;
    world.subscribe("acme", "all", &["#"]).await?;
    world.in_force().await;
    world.publish("acme", "before", json!(1)).await?;
    world.engines.rabbitmq.lock().await.ctl(&["set_vm_memory_high_watermark", "0.00001"]).await?;
    world.until_readiness("producer", false).await.or_else(|_| {
        // RabbitMQ tells a connection of its alarm only when that publishes.
        anyhow::Ok(())
    })?;
    let refused = || async {
        let event = json!({"tenant": "acme", "type": "during", "id": "during", "data": 1});
        let answer = world.producer.call(Method::POST, "/v1/events", event).await;
        answer
            .is_ok_and(|answer| answer.status == 503 && answer.headers.contains_key("retry-after"))
    };
    eventually("the producer refuses with 503 and Retry-After", seconds(60), refused).await?;
    world.until_readiness("producer", false).await?;
    world.engines.rabbitmq.lock().await.ctl(&["set_vm_memory_high_watermark", "0.4"]).await?;
    world.until_all_ready().await?;
    // The refused event was of unknown fate; sent again with its id it arrives, once accepted.
    world.ledger.attempted("acme", "during", "during", "1");
    let again = json!({"tenant": "acme", "type": "during", "id": "during", "data": 1});
    let answer = world.producer.call(Method::POST, "/v1/events", again).await?;
    assert_eq!(answer.status, 202, "{}", answer.body);
    world.ledger.accepted("acme", "during", "during", "1");
    world.settle(seconds(60)).await?;
    assert_eq!(world.duplicates().await?, 0);
    world.finish().await
}

/// A success is acknowledged only once it stands in the history, however long RabbitMQ takes for that.
pub(crate) async fn attempts_wait_for_their_records_while_rabbitmq_hangs() -> anyhow::Result<()> {
    const EVENTS: usize = 100;
    let unconfirmed = "doorbell_attempt_records_unconfirmed_total";
    let world = World::with("hanging", Setup::private()).await?;
    world.receiver.behave("slow", Behaviour::Slow(seconds(1)));
    world.subscribe("acme", "slow", &["#"]).await?;
    world.in_force().await;
    let outsider = world.outsider().await?;
    for n in 0..EVENTS {
        let id = format!("h-{n}");
        world.ledger.accepted("acme", "a", &id, "1");
        outsider.publish("a", amqp::event("acme", Some(&id), &[]), b"1").await?;
    }
    eventually("some are on their way", seconds(60), || async { world.receiver.count("slow") > 0 })
        .await?;
    world.engines.rabbitmq.lock().await.process().signal(Signal::SIGSTOP)?;
    let answered = || async {
        world.metric("doorbell_attempts_total{outcome=\"delivered\"}").await.unwrap_or(0.0) > 0.5
    };
    eventually("some are answered", seconds(60), answered).await?;
    let gone_on = || async { world.metric(unconfirmed).await.is_ok_and(|count| count > 0.5) };
    let gone_on = within(seconds(2), "a delivery goes on without its record", gone_on).await;
    world.engines.rabbitmq.lock().await.process().signal(Signal::SIGCONT)?;
    assert!(gone_on.is_err());
    world.settle(seconds(60)).await?;
    assert!(world.metric(unconfirmed).await? < 0.5);
    world.check_history().await?;
    world.finish().await
}

/// The stream of attempts alone may be out of order, as in a cluster where it has lost its majority:
/// deliveries go on, and what has no record yet gets it later.
pub(crate) async fn deliveries_go_on_while_the_stream_of_attempts_is_stuck() -> anyhow::Result<()> {
    const EVENTS: usize = 100;
    let unconfirmed = "doorbell_attempt_records_unconfirmed_total";
    let world = World::with("stuck", Setup::private()).await?;
    world.subscribe("acme", "all", &["#"]).await?;
    world.in_force().await;
    let writer = "{ok, Queue} = rabbit_amqqueue:lookup(Name), Found = amqqueue:get_pid(Queue)";
    suspend(&world.engines, &world.vhost, ATTEMPTS, writer).await?;
    for n in 0..EVENTS {
        world.publish("acme", "during", json!(n)).await?;
    }
    world.settle(seconds(60)).await?;
    eventually("every message is done with", seconds(60), || async {
        world.metric("doorbell_messages_in_hand").await.is_ok_and(|count| count < 0.5)
    })
    .await?;
    let without = world.metric(unconfirmed).await?;
    eprintln!("{without} of {EVENTS} went on without their records");
    assert!(without > 0.5);
    assert_eq!(world.duplicates().await?, 0);
    let_go_on(&world.engines).await?;
    let written = || async { world.check_history().await.is_ok() };
    eventually("those that were not waited for are written", seconds(60), written).await?;
    world.publish("acme", "after", json!(1)).await?;
    world.settle(seconds(60)).await?;
    world.check_history().await?;
    assert!((world.metric(unconfirmed).await? - without).abs() < 0.5, "waited for once again");
    world.finish().await
}

/// RabbitMQ's worker that empties a delay queue may be blocked for as long as a node is dead. It would take
/// another way.
pub(crate) async fn retries_go_round_where_the_way_back_is_blocked() -> anyhow::Result<()> {
    let world = World::with("round", Setup::private().without_breaker()).await?;
    world.receiver.behave("flaky", Behaviour::FailFirst(1, 503));
    world.subscribe("acme", "flaky", &["#"]).await?;
    world.in_force().await;
    let worker = "Workers = [Pid || {_, Pid, _, _} <- supervisor:which_children(rabbit_fifo_dlx_sup)], \
                  [Found] = [Pid || Pid <- Workers, element(2, sys:get_state(Pid)) =:= Name]";
    suspend(&world.engines, &world.vhost, "doorbell.delay.8s", worker).await?;
    let detour =
        || async { world.metric("doorbell_retries_detour").await.is_ok_and(|detour| detour > 0.5) };
    eventually("a detour begins", seconds(120), detour).await?;
    let_go_on(&world.engines).await?;
    let listing =
        ["list_bindings", "--silent", "--vhost", &world.vhost, "source_name", "routing_key"];
    let bound = world.engines.rabbitmq.lock().await.ctl(&listing).await?;
    assert!(bound.contains("doorbell.internal\tdoorbell.deliveries"), "{bound}");
    assert!(!bound.contains("doorbell.internal\tdoorbell.retries"), "{bound}");
    for n in 0..20 {
        world.publish("acme", "a", json!(n)).await?;
    }
    world.settle(seconds(60)).await?;
    assert_eq!(world.duplicates().await?, 0);
    assert_eq!(world.receiver.count("flaky"), 40);
    world.finish().await
}

/// Suspends a process inside RabbitMQ: `found` is Erlang that finds it for the queue `Name`. A process is
/// suspended for as long as the one that asked for it lives.
async fn suspend(engines: &Engines, vhost: &str, queue: &str, found: &str) -> anyhow::Result<()> {
    let suspend = format!(
        "Name = rabbit_misc:r(<<\"{vhost}\">>, queue, <<\"{queue}\">>), {found}, Asked = self(), \
         spawn(fun() -> register(holder, self()), true = erlang:suspend_process(Found), \
         Asked ! suspended, receive go_on -> ok end end), \
         receive suspended -> ok end."
    );
    engines.rabbitmq.lock().await.ctl(&["eval", &suspend]).await?;
    Ok(())
}

async fn let_go_on(engines: &Engines) -> anyhow::Result<()> {
    engines.rabbitmq.lock().await.ctl(&["eval", "holder ! go_on."]).await?;
    Ok(())
}

/// Two threads that publish at once must not get each other's confirms: should RabbitMQ be killed just
/// then, a message would count as published that never was.
pub(crate) async fn nobody_gets_the_confirm_of_another_message() -> anyhow::Result<()> {
    const MESSAGES: usize = 20_000;
    const AT_ONCE: usize = 500;
    let beside = BesideBadQueues::start("confirms").await?;
    let wrong = futures_util::stream::iter(0..MESSAGES)
        .map(|n| {
            let is_refused = n % 2 == 0;
            let publishing = beside.publish(if is_refused { "full" } else { "nowhere" });
            async move {
                publishing.await != if is_refused { Err(PublishError::Refused) } else { Ok(()) }
            }
        })
        .buffer_unordered(AT_ONCE)
        .filter(|is_wrong| std::future::ready(*is_wrong))
        .count()
        .await;
    beside.end().await?;
    assert_eq!(wrong, 0, "of {MESSAGES}");
    Ok(())
}

/// A channel of RabbitMQ's may refuse what another one takes: it remembers a leader that is dead.
pub(crate) async fn a_refusal_is_answered_with_another_channel() -> anyhow::Result<()> {
    let beside = BesideBadQueues::start("refusals").await?;
    let before = beside.channels().await?;
    assert_eq!(before.len(), 1);
    let replaced = || async {
        let refused = beside.publish("full").await == Err(PublishError::Refused);
        let others = beside.publish("nowhere").await == Ok(());
        let channels = beside.channels().await.unwrap_or_default();
        // The old one is closed, too.
        refused && others && channels.len() == 1 && channels != before
    };
    eventually("another channel took its place", seconds(30), replaced).await?;
    beside.end().await
}

/// RabbitMQ reads no more from a connection over which too much is under way to a queue that is stuck:
/// whoever publishes over it says so, and goes on when the queue does.
pub(crate) async fn a_connection_that_a_stuck_queue_stops_is_not_ready() -> anyhow::Result<()> {
    const MESSAGES: usize = 1500;
    let beside = BesideBadQueues::start("stopped").await?;
    let leader = "{ok, Queue} = rabbit_amqqueue:lookup(Name), {Leader, _} = amqqueue:get_pid(Queue), \
                  Found = whereis(Leader)";
    assert_eq!(beside.publish("stuck").await, Ok(()));
    suspend(&beside.engines, beside.vhost, "stuck", leader).await?;
    // One message that is not confirmed stops nobody.
    assert_eq!(beside.publish("stuck").await, Err(PublishError::Unknown));
    let stopped = within(seconds(8), "it is said", || async { !beside.health.is_ready() });
    assert!(stopped.await.is_err(), "{:?}", beside.health.snapshot());
    assert_eq!(beside.publish("nowhere").await, Ok(()));
    let many = (0..MESSAGES).map(|_| beside.publish("stuck"));
    let said = eventually("it is said", seconds(30), || async { !beside.health.is_ready() });
    let (answers, said) = tokio::join!(join_all(many), said);
    said?;
    assert!(answers.iter().all(Result::is_err));
    let beside_it = beside.publish("nowhere").await;
    assert!(matches!(beside_it, Err(PublishError::Blocked(_))), "{beside_it:?}");
    let_go_on(&beside.engines).await?;
    eventually("it is ready again", seconds(30), || async { beside.health.is_ready() }).await?;
    assert_eq!(beside.publish("stuck").await, Ok(()));
    assert_eq!(beside.publish("nowhere").await, Ok(()));
    beside.end().await
}

/// A publisher, a queue that takes nothing, and one that can be stuck. What goes to another queue is dropped, for there is none,
/// and confirmed.
struct BesideBadQueues {
    engines: Arc<Engines>,
    vhost: &'static str,
    publisher: Publisher,
    health: Health,
    shutdown: Shutdown,
}

impl BesideBadQueues {
    async fn start(vhost: &'static str) -> anyhow::Result<Self> {
        let engines = engines::shared().await?;
        engines.make_vhost(vhost).await?;
        let broker =
            Broker::new(&[engines.amqp_url(vhost)], Trust::default(), "stories", Declares::Always)?;
        let connection = broker.connect("declare").await?;
        let channel = connection.create_channel().await?;
        let mut arguments = FieldTable::default();
        arguments.insert("x-max-length".into(), AMQPValue::LongInt(0));
        arguments.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        channel.queue_declare("full".into(), options, arguments).await?;
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
        channel.queue_declare("stuck".into(), options, arguments).await?;
        connection::close(connection).await;
        let (registry, shutdown) = (Registry::new(), Shutdown::default());
        let health = Health::new(&registry, &[(Dependency::RabbitmqPublish, true)])?;
        let publisher = Publisher::start(broker, health.clone(), &registry, &shutdown)?;
        eventually("the publisher is connected", seconds(30), || async { health.is_ready() })
            .await?;
        Ok(Self { engines, vhost, publisher, health, shutdown })
    }

    async fn publish(&self, queue: &str) -> Result<(), PublishError> {
        let (exchange, routing_key) = (String::new(), queue.to_owned());
        let message = Message { exchange, routing_key, ..Message::internal("", vec![]) };
        self.publisher.publish(message).await
    }

    /// The channels that are open.
    async fn channels(&self) -> anyhow::Result<Vec<String>> {
        let rabbitmq = self.engines.rabbitmq.lock().await;
        let listed = rabbitmq.ctl(&["list_channels", "--silent", "pid", "vhost"]).await?;
        let ours = listed
            .lines()
            .filter_map(|line| line.split_once('\t').filter(|(_, vhost)| *vhost == self.vhost));
        Ok(ours.map(|(pid, _)| pid.to_owned()).collect())
    }

    async fn end(self) -> anyhow::Result<()> {
        self.shutdown.stop();
        self.shutdown.finish();
        assert!(self.shutdown.wait(seconds(30)).await);
        self.engines.manage(Method::DELETE, &format!("vhosts/{}", self.vhost)).await?;
        Ok(())
    }
}

/// Once it is told that a connection is to be closed, the client no longer minds that nothing comes: it
/// would wait for ever.
pub(crate) async fn a_connection_that_rabbitmq_does_not_let_go_is_left() -> anyhow::Result<()> {
    let engines = Engines::start("goodbye", &PLUGINS).await?;
    let broker =
        Broker::new(&[engines.amqp_url("%2f")], Trust::default(), "stories", Declares::Always)?;
    let connection = broker.connect("to be closed").await?;
    let mut rabbitmq = engines.rabbitmq.lock().await;
    rabbitmq.process().signal(Signal::SIGSTOP)?;
    let closed = tokio::time::timeout(seconds(60), connection::close(connection)).await;
    rabbitmq.process().signal(Signal::SIGCONT)?;
    assert!(closed.is_ok());
    rabbitmq.end().await;
    engines.redis.lock().await.kill().await;
    Ok(())
}

pub(crate) async fn a_broker_killed_with_retries_waiting_loses_none() -> anyhow::Result<()> {
    const EVENTS: usize = 500;
    let world = Arc::new(World::with("broker", Setup::private().without_breaker()).await?);
    world.receiver.behave("flaky", Behaviour::FailFirst(1, 500));
    let mut body = subscription(&world.receiver.url("flaky"), &["#"]);
    body["retry"] = json!({"schedule": ["15s", "2s", "2s", "2s"]});
    world.subscribe_as("acme", "flaky", body).await?;
    world.in_force().await;
    let outsider = world.outsider().await?;
    for n in 0..EVENTS {
        let id = format!("w-{n}");
        world.ledger.accepted("acme", "a", &id, "1");
        outsider.publish("a", amqp::event("acme", Some(&id), &[]), b"1").await?;
    }
    eventually("all have failed once", seconds(60), || async {
        world.receiver.count("flaky") >= EVENTS
    })
    .await?;
    world.engines.rabbitmq.lock().await.kill().await;
    for name in ["producer", "dispatcher-1", "retry-scheduler-1"] {
        world.until_readiness(name, false).await?;
    }
    let down = world.readiness("dispatcher-1").await?;
    assert_eq!(down["dependencies"]["rabbitmq_consume"]["up"], false);
    let event = json!({"tenant": "acme", "type": "a", "data": 1});
    assert_eq!(world.producer.call(Method::POST, "/v1/events", event).await?.status, 503);
    world.engines.rabbitmq.lock().await.start_again().await?;
    world.until_all_ready().await?;
    world.publish("acme", "a", json!(2)).await?;
    world.settle(seconds(120)).await?;
    let duplicates = world.duplicates().await?;
    eprintln!("kill -9 of RabbitMQ with {EVENTS} waiting: 0 lost, {duplicates} duplicates");
    world.check_history().await?;
    Arc::into_inner(world).unwrap().finish().await
}

/// RabbitMQ warns of each connection that breaks off, and a rolling update breaks none.
pub(crate) async fn services_that_stop_say_goodbye_to_rabbitmq() -> anyhow::Result<()> {
    let world = World::with("stopping", Setup::private()).await?;
    world.subscribe("acme", "steady", &["#"]).await?;
    let paused = world.subscribe("acme", "paused", &["#"]).await?;
    world.set_status("acme", &paused, "paused").await?;
    world.in_force().await;
    world.publish("acme", "order.made", json!(1)).await?;
    // By then the scheduler reads the stream of held deliveries, and counts what waits.
    eventually("a delivery is held", seconds(30), || async {
        world.metric("doorbell_deliveries_held_total{reason=\"suspended\"}").await.unwrap_or(0.0)
            > 0.5
    })
    .await?;
    world.set_status("acme", &paused, "active").await?;
    world.settle(seconds(60)).await?;
    world.finish().await?;
    let log = std::fs::read_to_string(engines::folder().join("stopping/rabbitmq/rabbitmq.log"))?;
    let broken: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("closing AMQP connection") && line.contains("- doorbell-"))
        .collect();
    assert!(broken.is_empty(), "{broken:#?}");
    Ok(())
}
