//! A change of a subscription is several commands to Redis. Whichever is the last one that Redis gets, the
//! change is made, or it is not.

use std::sync::Mutex;

use doorbell_tests::api::{Answer, subscription};
use doorbell_tests::proxy::Proxy;
use doorbell_tests::wait::seconds;
use doorbell_tests::{Setup, World, eventually};
use reqwest::Method;
use serde_json::{Value, json};

const LIST: &str = "/v1/tenants/acme/subscriptions";

pub(crate) async fn redis_killed_between_any_two_steps_of_a_change_leaves_nothing_half_done()
-> anyhow::Result<()> {
    let world = World::with("steps", Setup { dispatchers: 1, ..Setup::private() }).await?;
    let port = world.engines.redis_url.trim_end_matches("/0").rsplit(':').next();
    let proxy = Proxy::start(port.unwrap_or_default().parse()?).await?;
    let through = format!("redis://{}/0", proxy.address);
    world.restart_with("control-plane", &[("DOORBELL_REDIS_URL", &through)]).await?;
    let (mut wanted, mut unwanted) = (Vec::new(), Vec::new());
    // What is made, changed and deleted in each round, and how often it was done in spite of the cut.
    let mut done = [0_u32; 3];
    for round in 1..=14 {
        let tried = Round::begin(&world, round).await?;
        proxy.cut_before(round * 2 - round % 2);
        let changing = tried.change(&world);
        let killing = async {
            let cut = tokio::time::timeout(seconds(5), proxy.until_cut()).await;
            world.engines.redis.lock().await.kill().await;
            world.engines.redis.lock().await.start_again().await?;
            proxy.mend();
            world.until_all_ready().await?;
            anyhow::Ok(cut.is_ok())
        };
        let ((), killed) = tokio::join!(changing, killing);
        assert!(killed?, "round {round}: nothing was cut off");
        let found = tried.look(&world).await?;
        for (count, found) in done.iter_mut().zip(found) {
            *count += u32::from(found);
        }
        world.in_force().await;
        let [made, changed, deleted] = found;
        for (endpoint, event_type, comes) in [
            ("made", "made", made),
            ("changed", "before", !changed),
            ("changed", "after", changed),
            ("deleted", "kept", !deleted),
        ] {
            let (endpoint, id) = (format!("{endpoint}-{round}"), format!("{event_type}-{round}"));
            let event = json!({"tenant": "acme", "type": format!("{event_type}.{round}"), "id": id, "data": 1});
            let answer = world.producer.call(Method::POST, "/v1/events", event).await?;
            assert_eq!(answer.status, 202, "{answer:?}");
            if comes { &mut wanted } else { &mut unwanted }.push((endpoint, id));
        }
        eventually("what is wanted comes", seconds(30), || async {
            wanted.iter().all(|one| came(&world, one))
        })
        .await?;
    }
    // Whatever became of it, what is sent again with its key is there once, with the secret that is answered.
    for round in 1..=14 {
        let answer = Round::made_again(&world, round).await?;
        let path = format!("{LIST}?name=made-{round}");
        let listed = world.control.call(Method::GET, &path, Value::Null).await?.body;
        assert_eq!(listed["data"].as_array().map(Vec::len), Some(1), "{listed}");
        let path = format!("{LIST}/{}/secret", answer["id"].as_str().unwrap_or_default());
        let shown = world.control.call(Method::GET, &path, Value::Null).await?.body;
        assert_eq!(shown["secret"], answer["secret"]);
    }
    world.in_force().await;
    for round in 1..=14 {
        let (endpoint, id) = (format!("made-{round}"), format!("made-again-{round}"));
        let event = json!({"tenant": "acme", "type": format!("made.{round}"), "id": id, "data": 1});
        let answer = world.producer.call(Method::POST, "/v1/events", event).await?;
        assert_eq!(answer.status, 202, "{answer:?}");
        wanted.push((endpoint, id));
    }
    eventually("all that was made gets what it wants", seconds(30), || async {
        wanted.iter().all(|one| came(&world, one))
    })
    .await?;
    let foreign: Vec<_> = unwanted.iter().filter(|one| came(&world, one)).collect();
    assert!(foreign.is_empty(), "{foreign:?}");
    // The cuts were early and late enough.
    assert!(done.iter().all(|count| (1..14).contains(count)), "made, changed, deleted: {done:?}");
    world.finish().await
}

/// One that is to be made, one to be changed, and one to be deleted.
struct Round {
    number: u32,
    changed: (String, Value),
    after: Value,
    deleted: (String, Value),
}

impl Round {
    async fn begin(world: &World, number: u32) -> anyhow::Result<Self> {
        let create = |endpoint: &str, event_type: &str| {
            let url = world.receiver.url(&format!("{endpoint}-{number}"));
            let body = subscription(&url, &[&format!("{event_type}.{number}")]);
            async move {
                let answer = world.control.call(Method::POST, LIST, body).await?;
                anyhow::ensure!(answer.status == 201, "{answer:?}");
                let id = answer.body["id"].as_str().unwrap_or_default().to_owned();
                let path = format!("{LIST}/{id}");
                let shown = world.control.call(Method::GET, &path, Value::Null).await?;
                anyhow::Ok((id, shown.body))
            }
        };
        let changed = create("changed", "before").await?;
        let deleted = create("deleted", "kept").await?;
        let mut after = changed.1.clone();
        after["events"] = json!([format!("after.{number}")]);
        after["description"] = "changed".into();
        after["headers"] = json!({"x-changed": "yes"});
        Ok(Self { number, changed, after, deleted })
    }

    /// Makes, changes and deletes, all at once; what is answered does not count.
    async fn change(&self, world: &World) {
        let mut patch = json!({});
        for name in ["events", "description", "headers"] {
            patch[name] = self.after[name].clone();
        }
        let (changed, deleted) =
            (format!("{LIST}/{}", self.changed.0), format!("{LIST}/{}", self.deleted.0));
        let _answers = tokio::join!(
            Self::make(world, self.number),
            world.control.call(Method::PATCH, &changed, patch),
            world.control.call(Method::DELETE, &deleted, Value::Null),
        );
    }

    async fn make(world: &World, number: u32) -> anyhow::Result<Answer> {
        let name = format!("made-{number}");
        let mut made = subscription(&world.receiver.url(&name), &[&format!("made.{number}")]);
        made["name"] = name.clone().into();
        let headers = [("content-type", "application/json"), ("idempotency-key", name.as_str())];
        world.control.raw(Method::POST, LIST, &headers, made.to_string()).await
    }

    /// Sends the same once more, until nobody thinks any more that it is being worked on.
    async fn made_again(world: &World, number: u32) -> anyhow::Result<Value> {
        let made = Mutex::default();
        eventually("it is made, once more or at last", seconds(90), || async {
            let answer = Self::make(world, number).await;
            let is_made = answer.as_ref().is_ok_and(|answer| answer.status == 201);
            *made.lock().unwrap() = answer.map(|answer| answer.body).unwrap_or_default();
            is_made
        })
        .await?;
        Ok(made.into_inner()?)
    }

    /// Whether one was made, changed, deleted: each of it wholly, or not at all.
    async fn look(&self, world: &World) -> anyhow::Result<[bool; 3]> {
        let get =
            |path: String| async move { world.control.call(Method::GET, &path, Value::Null).await };
        let listed = get(format!("{LIST}?limit=1000")).await?.body;
        let listed = listed["data"].as_array().cloned().unwrap_or_default();
        let name = format!("made-{}", self.number);
        let made: Vec<&Value> = listed.iter().filter(|one| one["name"] == json!(name)).collect();
        assert!(made.len() <= 1, "{made:?}");
        for one in &made {
            let path = format!("{LIST}/{}", one["id"].as_str().unwrap_or_default());
            assert_eq!(get(path.clone()).await?.body, **one);
            assert_eq!(get(format!("{path}/secret")).await?.status, 200);
        }
        let (id, before) = &self.changed;
        let mut now = get(format!("{LIST}/{id}")).await?.body;
        now["updated_at"] = before["updated_at"].clone();
        assert!(now == *before || now == self.after, "neither before nor after: {now}");
        let (id, before) = &self.deleted;
        let kept = get(format!("{LIST}/{id}")).await?;
        assert!(kept.status == 404 || kept.body == *before, "{kept:?}");
        assert_eq!(listed.iter().any(|one| one["id"] == json!(id)), kept.status == 200);
        Ok([!made.is_empty(), now == self.after, kept.status == 404])
    }
}

fn came(world: &World, (endpoint, id): &(String, String)) -> bool {
    world.receiver.posts_to(endpoint).iter().any(|post| post.id == *id)
}
