//! The names of hand-offs, and what is added up along the way.

use super::*;
use crate::event::Trace;
use crate::ids::SlotNumber;

pub(super) fn event(tenant: &str, id: &str) -> Arc<Event> {
    Arc::new(Event {
        id: id.parse().unwrap(),
        tenant: tenant.parse().unwrap(),
        event_type: "a".parse().unwrap(),
        timestamp: Timestamp::from_seconds(1),
        trace: Trace::default(),
        data: b"1".as_slice().into(),
    })
}

#[test]
fn a_name_fits_a_message_id_and_changes_with_each_hand_off() {
    let last = Timestamp::from_millis(i64::MAX);
    let event = event(&"t".repeat(64), &"e".repeat(128));
    let event = Arc::new(Event { timestamp: last, ..(*event).clone() });
    let subscription = SubscriptionId::new(SlotNumber(1), 7);
    let mut state =
        Delivery::begin(Arc::clone(&event), subscription, Timestamp::from_seconds(1)).state;
    state.generation = 99_999_999;
    state.sequence = 99_999_999;
    let parcel = |count| Parcel { event: Arc::clone(&event), states: vec![state.clone(); count] };
    let works = [
        Work::Parcel(parcel(1)),
        Work::Parcel(parcel(Parcel::most(&event))),
        Bundle::of([parcel(1), parcel(1)]).unwrap(),
        Work::Page(Page { event: Arc::clone(&event), slots: SlotRange::ALL, sequence: 99_999_999 }),
        Work::Event(DueEvent { event, due: last, dated_by_us: false, sequence: 99_999_999 }),
    ];
    for work in works {
        let name = work.name();
        assert!(name.len() <= 255, "{name}");
        assert_ne!(work.clone().next().name(), name);
        assert_eq!(work.name(), name);
    }
}

#[test]
fn another_event_with_the_same_id_has_other_names() {
    let first = event("t", "e");
    let second = Arc::new(Event { timestamp: Timestamp::from_seconds(2), ..(*first).clone() });
    let hand_offs = |event: &Arc<Event>, dated_by_us| {
        let (event, due) = (Arc::clone(event), Timestamp::from_seconds(3));
        let delivery =
            Delivery::begin(Arc::clone(&event), SubscriptionId::new(SlotNumber(1), 7), due);
        let works = [
            Work::Parcel(delivery.into()),
            Work::Page(Page { event: Arc::clone(&event), slots: SlotRange::ALL, sequence: 1 }),
            Work::Event(DueEvent { event, due, dated_by_us, sequence: 1 }),
        ];
        works.map(|work| work.hand_offs().remove(0))
    };
    for (one, other) in hand_offs(&first, false).iter().zip(hand_offs(&second, false)) {
        assert_ne!(one.chain, other.chain);
        assert_eq!(one.remembered, REMEMBERED);
    }
    // What we date anew each time it comes has one name, and that not for long.
    let [.., one] = hand_offs(&first, true);
    let [.., other] = hand_offs(&second, true);
    assert_eq!((&one, one.remembered), (&other, REMEMBERED_BRIEFLY));
}

#[test]
fn held_time_adds_up() {
    let at = Timestamp::from_seconds;
    let delivery = Delivery::begin(event("t", "e"), SubscriptionId::new(SlotNumber(0), 1), at(0));
    let delivery = delivery
        .hold(at(10))
        .hold(at(15))
        .resume(at(20))
        .resume(at(25))
        .hold(at(30))
        .resume(at(31));
    assert_eq!((delivery.state.held_ms, delivery.state.held_since), (11_000, None));
}

#[test]
fn chance_depends_on_the_name_alone() {
    assert!((chance("a") - chance("a")).abs() < f64::EPSILON);
    let names: Vec<f64> = (0..1000).map(|n| chance(&format!("t/e{n}/s/0/1"))).collect();
    assert!(names.iter().all(|c| (0.0..1.0).contains(c)));
    let mean = names.iter().sum::<f64>() / 1000.0;
    assert!((0.45..0.55).contains(&mean), "{mean}");
}
