//! Parcels of several events that travel together.

use std::sync::Arc;

use super::parcel::digest;
use super::{Delivery, DeliveryState, MOST, Parcel, Work};
use crate::event::Event;

/// Those with more bytes than this travel by themselves. What is in hand is bounded in bytes, so larger messages
/// would leave room for fewer, of all queues.
const BYTES: usize = 32 * 1024;
/// What an event takes of a message beside its data, about, and what a delivery does.
const BESIDE: usize = 256;

/// Parcels of one tenant's events, two at least, that travel in one message. Nothing else binds them.
#[derive(Clone, Debug, PartialEq)]
pub struct Bundle {
    first: Parcel,
    others: Vec<Parcel>,
}

impl Bundle {
    /// These deliveries of one tenant's events in as few messages as they fit in: those of one event as parcels, and
    /// small ones of several events as bundles.
    #[must_use]
    pub fn pack(deliveries: impl IntoIterator<Item = Delivery>) -> Vec<Work> {
        let (mut works, mut together, mut weight) = (Vec::new(), Vec::new(), Weight::default());
        for parcel in Parcel::pack_all(deliveries) {
            let more = Weight::of(&parcel);
            if !weight.has_room_for(more) {
                works.extend(Self::of(std::mem::take(&mut together)));
                weight = Weight::default();
            }
            weight = weight.and(more);
            together.push(parcel);
        }
        works.extend(Self::of(together));
        works
    }

    /// These parcels of one tenant's events in one message; one alone is no bundle, and of none there is nothing.
    pub fn of(parcels: impl IntoIterator<Item = Parcel>) -> Option<Work> {
        let mut parcels = parcels.into_iter();
        let first = parcels.next()?;
        let others: Vec<_> = parcels.collect();
        Some(if others.is_empty() {
            Work::Parcel(first)
        } else {
            Work::Bundle(Self { first, others })
        })
    }

    /// The parcels in it.
    pub fn parcels(&self) -> impl Iterator<Item = &Parcel> {
        std::iter::once(&self.first).chain(&self.others)
    }

    /// The same, to keep.
    pub fn into_parcels(self) -> impl Iterator<Item = Parcel> {
        std::iter::once(self.first).chain(self.others)
    }

    /// The event of the first parcel.
    #[must_use]
    pub fn first_event(&self) -> &Arc<Event> {
        &self.first.event
    }

    /// What is left of the parcels without the deliveries for which this does not hold, by their places in the bundle.
    pub fn keep(self, is_kept: impl Fn(usize) -> bool) -> impl Iterator<Item = Parcel> {
        let mut first = 0;
        self.into_parcels().filter_map(move |parcel| {
            let begins_at = first;
            first += parcel.states.len();
            parcel.keep(|place| is_kept(begins_at + place))
        })
    }

    /// As for [`Parcel::name`].
    pub(super) fn name(&self) -> String {
        let hand_offs = self.parcels().flat_map(Parcel::hand_offs);
        format!("{}/bundle-{}", self.first.event.tenant, digest(hand_offs))
    }

    /// The same under the names of the next hand-offs.
    pub(super) fn raise(&mut self) {
        self.first.raise();
        self.others.iter_mut().for_each(Parcel::raise);
    }
}

/// How much of a message something takes.
#[derive(Clone, Copy, Default)]
struct Weight {
    deliveries: usize,
    bytes: usize,
}

impl Weight {
    fn of(Parcel { event, states }: &Parcel) -> Self {
        let beside = |state: &DeliveryState| {
            BESIDE + state.last_failure.as_ref().map_or(0, |failure| BESIDE + failure.detail.len())
        };
        let bytes = BESIDE + event.data.len() + states.iter().map(beside).sum::<usize>();
        Self { deliveries: states.len(), bytes }
    }

    fn and(self, other: Self) -> Self {
        Self { deliveries: self.deliveries + other.deliveries, bytes: self.bytes + other.bytes }
    }

    fn has_room_for(self, other: Self) -> bool {
        let Self { deliveries, bytes } = self.and(other);
        deliveries <= MOST && bytes <= BYTES
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::ids::{SlotNumber, SubscriptionId};
    use crate::time::Timestamp;
    use crate::work::tests::event;

    fn deliveries(event: &Arc<Event>, count: u128) -> impl Iterator<Item = Delivery> {
        let ids = (0..count).map(|n| SubscriptionId::new(SlotNumber(0), n));
        ids.map(|id| Delivery::begin(Arc::clone(event), id, Timestamp::from_seconds(1)))
    }

    fn with_data(id: &str, bytes: usize) -> Arc<Event> {
        Arc::new(Event { data: vec![b'1'; bytes].into(), ..(*event("t", id)).clone() })
    }

    /// Of each message how many deliveries of each event.
    fn counts(works: &[Work]) -> Vec<Vec<usize>> {
        let count = |work: &Work| match work {
            Work::Parcel(parcel) => vec![parcel.states.len()],
            Work::Bundle(bundle) => bundle.parcels().map(|parcel| parcel.states.len()).collect(),
            Work::Event(_) | Work::Page(_) => panic!("{work:?}"),
        };
        works.iter().map(count).collect()
    }

    #[test]
    fn what_fits_travels_together() {
        let events = |count: usize, bytes| {
            (0..count).map(move |n| with_data(&format!("e{n}"), bytes)).collect::<Vec<_>>()
        };
        let one_each = |events: &[Arc<Event>]| {
            let all: Vec<_> = events.iter().flat_map(|event| deliveries(event, 1)).collect();
            counts(&Bundle::pack(all))
        };
        assert_eq!(one_each(&[]), Vec::<Vec<usize>>::new());
        assert_eq!(one_each(&events(1, 1)), [[1]]);
        assert_eq!(one_each(&events(3, 1)), [[1, 1, 1]]);
        // By number, and by bytes.
        assert_eq!(one_each(&events(65, 0)), [vec![1; 64], vec![1]]);
        assert_eq!(one_each(&events(3, 12_000)), [vec![1, 1], vec![1]]);
        assert_eq!(one_each(&events(2, BYTES)), [[1], [1]]);
        // Those of one event stay together, in whichever order they come.
        let [first, second] = [event("t", "a"), event("t", "b")];
        let mixed: Vec<_> = deliveries(&first, 3)
            .zip(deliveries(&second, 3))
            .flat_map(|(one, other)| [one, other])
            .collect();
        assert_eq!(counts(&Bundle::pack(mixed)), [[3, 3]]);
        let many = deliveries(&first, 100).chain(deliveries(&second, 3));
        assert_eq!(counts(&Bundle::pack(many)), [vec![64], vec![36, 3]]);
    }

    #[test]
    fn a_bundle_is_named_by_all_that_is_in_it() {
        let events = [event("t", "a"), event("t", "b"), event("t", "c")];
        let of = |places: &[usize]| {
            let all: Vec<_> =
                places.iter().flat_map(|place| deliveries(&events[*place], 2)).collect();
            Bundle::pack(all).remove(0)
        };
        let names = [of(&[0, 1]), of(&[1, 0]), of(&[0, 1, 2]), of(&[0]), of(&[0, 1]).next()]
            .map(|work| work.name());
        let distinct: HashSet<&String> = names.iter().collect();
        assert_eq!(distinct.len(), names.len(), "{names:?}");
        assert_eq!(of(&[0, 1]).name(), names[0]);
        // Who travels in a bundle has the names that he has without.
        let alone = of(&[1]).hand_offs();
        assert_eq!(of(&[0, 1]).hand_offs()[2..], alone);
        assert_eq!((of(&[0, 1]).events(), of(&[0]).events()), (2, 1));
        for work in [of(&[0]), of(&[0, 1]), of(&[0, 1, 2])] {
            assert_eq!(work.hand_off_count(), work.hand_offs().len());
        }
    }

    #[test]
    fn what_is_kept_of_a_bundle_is_told_by_its_place() {
        let events = [event("t", "a"), event("t", "b")];
        let all = || Bundle::pack(events.iter().flat_map(|event| deliveries(event, 2))).remove(0);
        for places in [[0, 1, 2, 3].as_slice(), &[1, 2], &[3], &[0], &[]] {
            let Work::Bundle(bundle) = all() else { panic!("not a bundle") };
            let kept: Vec<_> = bundle.keep(|place| places.contains(&place)).collect();
            let kept: Vec<_> = kept.iter().flat_map(Parcel::hand_offs).collect();
            let expected: Vec<_> =
                places.iter().map(|place| all().hand_offs()[*place].clone()).collect();
            assert_eq!(kept, expected);
        }
    }
}
