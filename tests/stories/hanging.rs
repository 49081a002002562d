//! Many endpoints that hang at once: whatever a dispatcher has only so much of, they do not take it from others.

use doorbell_tests::api::subscription;
use doorbell_tests::wait::seconds;
use doorbell_tests::{Behaviour, Setup, World, within};
use serde_json::json;

use crate::gate::{HANGS, beside, neighbours_are_served};

/// POSTs that may be in flight, and messages of one queue that may be in hand: fewer than hang.
const BOUNDS: [(&str, usize); 2] = [("DOORBELL_MAX_IN_FLIGHT", 32), ("DOORBELL_PREFETCH", 8)];
/// Tenants whose only endpoint hangs.
const TENANTS: usize = 64;
/// Endpoints of one tenant that hang, each for events of its own, all of which come through one queue.
const OF_ONE: usize = 40;
/// Endpoints of one event: more pages than are begun at once, and one in a hundred hangs.
const MANY: usize = 5120;

pub(crate) async fn many_endpoints_that_hang_hold_nobody_up() -> anyhow::Result<()> {
    let mut setup = Setup { dispatchers: 1, ..Setup::default() };
    let bounds = BOUNDS.map(|(name, bound)| (name.to_owned(), bound.to_string()));
    setup.dispatcher_extra.extend(bounds);
    let world = World::with("hangs", setup).await?;
    let alone = |n: usize| format!("alone-{n}");
    let of_one = |n: usize| format!("one-{n}");
    for n in 0..TENANTS {
        hangs(&world, &alone(n), &alone(n), "#").await?;
    }
    for n in 0..OF_ONE {
        hangs(&world, "one", &of_one(n), &format!("type.{n}")).await?;
    }
    world.subscribe_many("acme", ("many", MANY), &["many"]).await?;
    let of_many = |n: usize| format!("many-{n}");
    let behave = |name: &str, behaviour| world.receiver.behave(name, behaviour);
    // Their POSTs time out before they would be answered, and what is answered then has come twice: so not with a 200.
    (0..MANY).step_by(100).for_each(|n| behave(&of_many(n), Behaviour::Hang(HANGS)));
    beside(&world).await?;

    for n in 0..TENANTS {
        world.publish(&alone(n), "a", json!(n)).await?;
    }
    neighbours_are_served(&world).await?;

    for n in 0..OF_ONE {
        world.publish("one", &format!("type.{n}"), json!(n)).await?;
    }
    neighbours_are_served(&world).await?;

    world.publish("acme", "many", json!(1)).await?;
    within(HANGS * 4 / 5, "all that do not hang are served", || async {
        (0..MANY).all(|n| n % 100 == 0 || world.receiver.accepted(&of_many(n)) == 1)
    })
    .await?;
    let slow = world.metric("doorbell_slow_posts_in_flight").await?;
    eprintln!("{slow} POSTs hang while everyone else is served");
    assert!(slow > 100.0, "{slow} POSTs hang: it proves nothing");

    let hanging = (0..TENANTS).map(alone).chain((0..OF_ONE).map(of_one));
    for name in hanging.chain((0..MANY).step_by(100).map(of_many)) {
        behave(&name, Behaviour::Status(200));
    }
    world.settle(seconds(120)).await?;
    assert_eq!(world.duplicates().await?, 0);
    world.finish().await
}

/// A subscription whose endpoint hangs.
async fn hangs(world: &World, tenant: &str, name: &str, pattern: &str) -> anyhow::Result<()> {
    world.receiver.behave(name, Behaviour::Slow(HANGS));
    let mut body = subscription(&world.receiver.url(name), &[pattern]);
    body["timeout"] = "30s".into();
    world.subscribe_as(tenant, name, body).await?;
    Ok(())
}
