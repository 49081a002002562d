//! What a message asks for. Decides only; nothing here awaits.

use std::ops::Range;
use std::sync::Arc;

use doorbell_common::event::Event;
use doorbell_common::intake::{Arrival, admit};
use doorbell_common::rung::{DelayQueue, Rung};
use doorbell_common::sideline::Lane;
use doorbell_common::time::Timestamp;
use doorbell_common::wire;
use doorbell_common::work::{DueEvent, HandOff, Page, Parcel, Work};
use doorbell_platform::broker::topology::{
    DELIVERIES, PAGES, RETRIES, SIDELINE_PAGES, SIDELINE_RETRIES, lane_of,
};
use doorbell_platform::broker::{Message, Received};
use doorbell_platform::ids;
use doorbell_platform::store::notes::Taken;

/// What a message asks for.
#[derive(Debug, PartialEq)]
pub(crate) enum Task {
    /// Match this event and deliver it.
    FanOut(DueEvent),
    /// Deliver this event to some of those who want it.
    Page(Page),
    /// Make these deliveries, of one event or of several.
    Deliver(Vec<Load>),
    /// Publish this, then forget the message: it waits for its time, or has just been given an
    /// id or a time that must last before anything is delivered.
    HandOn(Work, Destination),
}

impl Task {
    /// What is left of it without the hand-offs of a message that are copies; `None` if nothing is.
    pub(crate) fn without_copies(self, taken: &[Taken]) -> Option<Self> {
        let is_ours = |place: usize| taken.get(place) != Some(&Taken::Copy);
        match self {
            Self::Deliver(loads) => {
                let loads: Vec<_> =
                    loads.into_iter().filter_map(|load| load.keep(is_ours)).collect();
                (!loads.is_empty()).then_some(Self::Deliver(loads))
            }
            Self::FanOut(..) | Self::Page(_) | Self::HandOn(..) => is_ours(0).then_some(self),
        }
    }
}

/// Deliveries of one event, and where they are among those of their message.
#[derive(Debug, PartialEq)]
pub(crate) struct Load {
    pub(crate) parcel: Parcel,
    /// That of the parcel as it came: what is left of it without copies may be something else when it comes again, and
    /// has the same ledger.
    pub(crate) name: String,
    /// The places of its hand-offs among those of the message, as they came.
    pub(crate) places: Range<usize>,
}

impl Load {
    /// Those of a message with these parcels.
    fn all(parcels: impl IntoIterator<Item = Parcel>) -> Vec<Self> {
        let mut first = 0;
        let load = |parcel: Parcel| {
            let places = first..first + parcel.states.len();
            first = places.end;
            Self { name: parcel.name(), parcel, places }
        };
        parcels.into_iter().map(load).collect()
    }

    /// What is left of it without the hand-offs for which this does not hold, by their places in the message.
    fn keep(self, is_kept: impl Fn(usize) -> bool) -> Option<Self> {
        let Self { parcel, name, places } = self;
        let parcel = parcel.keep(|place| is_kept(places.start + place))?;
        Some(Self { parcel, name, places })
    }
}

/// Where work is handed on to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Destination {
    Retries,
    Deliveries,
    Pages,
    Sideline,
    SidelinePages,
    /// A delay queue, from which it goes to the retry-scheduler.
    Delay(Rung),
}

impl Destination {
    /// Every label, for metrics that show each one from the start.
    pub(crate) const LABELS: [&'static str; 8] = [
        "retries",
        "sideline_retries",
        "deliveries",
        "pages",
        "sideline",
        "sideline_pages",
        "delays",
        "sideline_delays",
    ];

    /// Whether what goes there goes to the sideline where it is more than its tenant's share. Events and pages that
    /// were begun have their own reasons for where they go.
    pub(crate) fn goes_by_share(self) -> bool {
        match self {
            Self::Retries | Self::Deliveries | Self::Delay(_) => true,
            Self::Pages | Self::Sideline | Self::SidelinePages => false,
        }
    }

    /// The message that brings this work there, in this lane if it has several, and the destination as it stands
    /// in metrics.
    pub(crate) fn message(
        self,
        lane: Lane,
        work: &Work,
    ) -> anyhow::Result<(Message, &'static str)> {
        let (message, label) = match (self, lane) {
            (Self::Retries, Lane::Main) => (Message::work(RETRIES, work), "retries"),
            (Self::Retries, Lane::Sideline) => {
                (Message::work(SIDELINE_RETRIES, work), "sideline_retries")
            }
            (Self::Deliveries, Lane::Main) => (Message::work(DELIVERIES, work), "deliveries"),
            (Self::Deliveries, Lane::Sideline) | (Self::Sideline, _) => {
                (Message::aside(work), "sideline")
            }
            (Self::Pages, _) => (Message::work(PAGES, work), "pages"),
            (Self::SidelinePages, _) => (Message::work(SIDELINE_PAGES, work), "sideline_pages"),
            (Self::Delay(rung), lane) => {
                let label = match lane {
                    Lane::Main => "delays",
                    Lane::Sideline => "sideline_delays",
                };
                (Message::work(&DelayQueue { rung, lane }.name(), work), label)
            }
        };
        Ok((message?, label))
    }
}

/// By which copies of a message are told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Identity {
    /// By the id that its publisher gave it.
    Event(Arc<Event>),
    /// By the names of our own hand-offs: one, or that of each delivery of a parcel.
    Work(Vec<HandOff>),
    /// Its id was made for it alone: there are none.
    Unique,
}

/// What a message of this queue asks for; or why nobody can do anything with it.
pub(crate) fn understand(
    queue: &str,
    received: &Received,
    max_bytes: usize,
    now: Timestamp,
) -> Result<(Task, Identity), String> {
    let is_ours = [PAGES, SIDELINE_PAGES, DELIVERIES].contains(&queue);
    // The sideline has both: what the producer published there, and what was moved there.
    if is_ours || (lane_of(queue) == Lane::Sideline && received.is_work()) {
        understand_work(received)
    } else {
        understand_event(received, max_bytes, now)
    }
}

/// What a published message asks for.
fn understand_event(
    received: &Received,
    max_bytes: usize,
    now: Timestamp,
) -> Result<(Task, Identity), String> {
    match admit(&received.publication(), max_bytes, now) {
        Ok(arrival) => Ok(understand_arrival(arrival, received, now)),
        Err(refusal) => Err(refusal.to_string()),
    }
}

/// What one of our own messages asks for. It came because its time had come for whoever sent it, whose clock
/// need not be ours.
fn understand_work(received: &Received) -> Result<(Task, Identity), String> {
    let work = wire::decode(&received.body).map_err(|error| error.to_string())?;
    let identity = Identity::Work(work.hand_offs());
    let task = match work {
        Work::Event(due) => Task::FanOut(due),
        Work::Page(page) => Task::Page(page),
        Work::Parcel(parcel) => Task::Deliver(Load::all([parcel])),
        Work::Bundle(bundle) => Task::Deliver(Load::all(bundle.into_parcels())),
    };
    Ok((task, identity))
}

fn understand_arrival(arrival: Arrival, received: &Received, now: Timestamp) -> (Task, Identity) {
    let (given, minted) = (arrival.id.clone(), arrival.minted);
    let (timestamp, deliver_at) = (arrival.timestamp, arrival.deliver_at);
    let lasting = given.is_some() && timestamp.is_some();
    let id = given.clone().unwrap_or_else(ids::event_id);
    let event = Arc::new(arrival.into_event(id, timestamp.unwrap_or(now), &received.body));
    let identity = match given {
        Some(_) if !minted => Identity::Event(Arc::clone(&event)),
        _ => Identity::Unique,
    };
    let later = deliver_at.filter(|at| now < *at);
    let due = later.unwrap_or(now);
    let due = DueEvent { event, due, dated_by_us: timestamp.is_none(), sequence: 0 };
    let task = match later {
        Some(_) => Task::HandOn(Work::Event(due), Destination::Retries),
        None if lasting => Task::FanOut(due),
        None => Task::HandOn(Work::Event(due), Destination::Deliveries),
    };
    (task, identity)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use doorbell_common::event::Trace;
    use doorbell_common::ids::{SlotNumber, SubscriptionId};
    use doorbell_common::work::{Bundle, Delivery};
    use doorbell_platform::broker::topology::SIDELINE;
    use lapin::BasicProperties;
    use lapin::types::{AMQPValue, FieldTable};

    use super::*;

    fn now() -> Timestamp {
        Timestamp::from_seconds(1000)
    }

    fn published(properties: BasicProperties, headers: &[(&str, &str)]) -> Received {
        let mut table = FieldTable::default();
        for (name, value) in headers {
            table.insert((*name).into(), AMQPValue::LongString((*value).into()));
        }
        Received {
            exchange: "doorbell.events".to_owned(),
            routing_key: "a.b".to_owned(),
            redelivered: false,
            properties: properties.with_headers(table),
            body: b"{}".to_vec(),
        }
    }

    fn brief(received: &Received) -> (&'static str, &'static str) {
        let Ok((task, identity)) = understand_event(received, 100, now()) else {
            return ("reject", "");
        };
        let task = match task {
            Task::FanOut(..) => "fan out",
            Task::HandOn(Work::Event(_), Destination::Retries) => "later",
            Task::HandOn(Work::Event(_), Destination::Deliveries) => "lasting",
            Task::HandOn(..) | Task::Page(_) | Task::Deliver(_) => "other",
        };
        (task, kind(&identity))
    }

    fn kind(identity: &Identity) -> &'static str {
        match identity {
            Identity::Event(_) => "by id",
            Identity::Work(_) => "by name",
            Identity::Unique => "unique",
        }
    }

    #[test]
    fn each_publication_has_its_task() {
        let with_id = || BasicProperties::default().with_message_id("evt".into());
        let full = || with_id().with_timestamp(5);
        let tenant = ("doorbell-tenant", "acme");
        let later = ("doorbell-deliver-at", "1970-01-01T01:00:00Z");
        let past = ("doorbell-deliver-at", "1970-01-01T00:00:00Z");
        for (received, expected) in [
            (published(full(), &[tenant]), ("fan out", "by id")),
            (published(full(), &[tenant, ("doorbell-id-minted", "1")]), ("fan out", "unique")),
            (published(with_id(), &[tenant]), ("lasting", "by id")),
            (
                published(BasicProperties::default().with_timestamp(5), &[tenant]),
                ("lasting", "unique"),
            ),
            (published(full(), &[tenant, later]), ("later", "by id")),
            (published(BasicProperties::default(), &[tenant, later]), ("later", "unique")),
            (published(full(), &[tenant, past]), ("fan out", "by id")),
            (published(full(), &[]), ("reject", "")),
        ] {
            assert_eq!(brief(&received), expected);
        }
    }

    #[test]
    fn what_was_due_for_others_is_due() {
        let (task, _) = understand_event(
            &published(BasicProperties::default(), &[("doorbell-tenant", "acme")]),
            100,
            now(),
        )
        .unwrap();
        let Task::HandOn(work, Destination::Deliveries) = task else { panic!("{task:?}") };
        let message = Message::work(DELIVERIES, &work.next()).unwrap();
        let received = Received {
            properties: message.properties,
            body: message.body.into(),
            ..published(BasicProperties::default(), &[])
        };
        let slower = Timestamp::from_millis(now().as_millis() - 5);
        let (task, _) = understand(DELIVERIES, &received, 100, slower).unwrap();
        assert!(matches!(task, Task::FanOut(_)), "{task:?}");
    }

    #[test]
    fn what_is_for_later_has_two_lanes() {
        let full = published(
            BasicProperties::default().with_message_id("evt".into()).with_timestamp(5),
            &[("doorbell-tenant", "acme")],
        );
        let Ok((Task::FanOut(due), _)) = understand_event(&full, 100, now()) else {
            panic!("not an event")
        };
        let work = Work::Event(due);
        for (to, lane, by_share, routing_key) in [
            (Destination::Retries, Lane::Main, true, "doorbell.retries"),
            (Destination::Retries, Lane::Sideline, true, "doorbell.sideline.retries"),
            (
                Destination::Delay(Rung::for_wait(Duration::ZERO)),
                Lane::Main,
                true,
                "doorbell.delay.1s",
            ),
            (
                Destination::Delay(Rung::for_wait(Duration::ZERO)),
                Lane::Sideline,
                true,
                "doorbell.sideline.delay.1s",
            ),
            (Destination::Deliveries, Lane::Main, true, "doorbell.deliveries"),
            // By an exchange that spreads tenants, with the event's own key.
            (Destination::Deliveries, Lane::Sideline, true, "a.b"),
            (Destination::Sideline, Lane::Main, false, "a.b"),
            (Destination::Pages, Lane::Main, false, "doorbell.pages"),
            (Destination::SidelinePages, Lane::Main, false, "doorbell.sideline.pages"),
        ] {
            let (message, label) = to.message(lane, &work).unwrap();
            assert_eq!((to.goes_by_share(), message.routing_key.as_str()), (by_share, routing_key));
            assert!(Destination::LABELS.contains(&label), "{label}");
        }
    }

    #[test]
    fn the_sideline_has_publications_and_work() {
        let properties = || BasicProperties::default().with_message_id("evt".into());
        let publication =
            || published(properties().with_timestamp(5), &[("doorbell-tenant", "acme")]);
        let Ok((Task::FanOut(due), _)) = understand_event(&publication(), 100, now()) else {
            panic!("not an event")
        };
        let moved = Message::aside(&Work::Event(due).next()).unwrap();
        assert_eq!((moved.exchange.as_str(), moved.routing_key.as_str()), (SIDELINE, "a.b"));
        let work = || Received {
            properties: moved.properties.clone(),
            body: moved.body.to_vec(),
            ..publication()
        };
        assert_eq!(work().header("doorbell-tenant"), Some("acme"));
        for (queue, received, expected) in [
            ("doorbell.sideline.3", publication(), (0, Lane::Sideline, "by id")),
            ("doorbell.sideline.3", work(), (1, Lane::Sideline, "by name")),
            ("doorbell.events.3", publication(), (0, Lane::Main, "by id")),
            ("doorbell.deliveries", work(), (1, Lane::Main, "by name")),
        ] {
            let (task, identity) = understand(queue, &received, 100, now()).unwrap();
            let Task::FanOut(DueEvent { sequence, .. }) = task else { panic!("{queue}: {task:?}") };
            assert_eq!((sequence, lane_of(queue), kind(&identity)), expected, "{queue}");
        }
        // Nobody publishes our own work as an event.
        let understood = understand("doorbell.events.3", &work(), 100_000, now());
        assert!(understood.is_err(), "{understood:?}");
    }

    #[test]
    fn what_comes_together_is_told_by_its_place() {
        let delivery = |id: &str, n| {
            let event = Event {
                id: id.parse().unwrap(),
                tenant: "acme".parse().unwrap(),
                event_type: "a.b".parse().unwrap(),
                timestamp: now(),
                trace: Trace::default(),
                data: b"1".as_slice().into(),
            };
            Delivery::begin(Arc::new(event), SubscriptionId::new(SlotNumber(0), n), now())
        };
        let parcels = |ids: &[&str]| {
            let parcel = |id: &&str| {
                let mut parcel = Parcel::from(delivery(id, 1));
                parcel.states.push(delivery(id, 2).state);
                parcel
            };
            ids.iter().map(parcel).collect::<Vec<_>>()
        };
        let work = Bundle::of(parcels(&["a", "b", "c"])).unwrap();
        let message = Message::work(DELIVERIES, &work).unwrap();
        let received = Received {
            properties: message.properties,
            body: message.body.into(),
            ..published(BasicProperties::default(), &[])
        };
        let (task, identity) = understand(DELIVERIES, &received, 100, now()).unwrap();
        assert_eq!(identity, Identity::Work(work.hand_offs()));
        let taken = |copies: &[usize]| {
            let taken = |place| if copies.contains(&place) { Taken::Copy } else { Taken::Go };
            (0..6).map(taken).collect::<Vec<_>>()
        };
        let Some(Task::Deliver(loads)) = task.without_copies(&taken(&[0, 2, 3])) else {
            panic!("nothing is left")
        };
        // Half of the first, nothing of the second: the names and places are those of before.
        let (a, c) = (parcels(&["a"])[0].name(), parcels(&["c"])[0].name());
        let left: Vec<_> = loads
            .iter()
            .map(|load| (load.parcel.states.len(), &*load.name, load.places.clone()))
            .collect();
        assert_eq!(left, [(1, &*a, 0..2), (2, &*c, 4..6)]);
        let (task, _) = understand(DELIVERIES, &received, 100, now()).unwrap();
        assert_eq!(task.without_copies(&taken(&[0, 1, 2, 3, 4, 5])), None);
    }
}
