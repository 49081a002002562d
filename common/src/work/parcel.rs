//! Deliveries of one event that travel together.

use std::collections::HashMap;
use std::sync::Arc;

use super::{Delivery, DeliveryState, HandOff, MOST};
use crate::event::Event;

/// Those of an event with more bytes than this travel alone.
const LARGE: usize = 512 * 1024;

/// Deliveries of one event that travel in one message. Nothing else binds them: each has its own name,
/// time and end.
#[derive(Clone, Debug, PartialEq)]
pub struct Parcel {
    /// The event.
    pub event: Arc<Event>,
    /// What travels beside it of each delivery: one at least, and at most [`Parcel::most`] in what we write.
    pub states: Vec<DeliveryState>,
}

impl Parcel {
    /// How many deliveries of an event travel together at most. RabbitMQ takes no message of more than a
    /// mebibyte where we configure it, and a delivery may have a few thousand bytes beside its event.
    #[must_use]
    pub fn most(event: &Event) -> usize {
        if event.data.len() <= LARGE { MOST } else { 1 }
    }

    /// These deliveries of an event, in as few parcels as they fit in.
    pub fn pack(event: &Arc<Event>, states: Vec<DeliveryState>) -> impl Iterator<Item = Self> {
        let (most, mut states) = (Self::most(event), states.into_iter());
        std::iter::from_fn(move || {
            let states: Vec<_> = states.by_ref().take(most).collect();
            (!states.is_empty()).then(|| Self { event: Arc::clone(event), states })
        })
    }

    /// These deliveries in as few parcels as they fit in, in the order in which their events come. Those of one event
    /// share it in memory.
    #[must_use]
    pub fn pack_all(deliveries: impl IntoIterator<Item = Delivery>) -> Vec<Self> {
        let mut places: HashMap<*const Event, usize> = HashMap::new();
        let mut of_each: Vec<(Arc<Event>, Vec<DeliveryState>)> = Vec::new();
        for Delivery { event, state } in deliveries {
            let place = *places.entry(Arc::as_ptr(&event)).or_insert(of_each.len());
            match of_each.get_mut(place) {
                Some((_, states)) => states.push(state),
                None => of_each.push((event, vec![state])),
            }
        }
        let pack = |(event, states)| Self::pack(&event, states).collect::<Vec<_>>();
        of_each.into_iter().flat_map(pack).collect()
    }

    /// What is left of it without those for which this does not hold, by their places; `None` if nothing is.
    #[must_use]
    pub fn keep(mut self, is_kept: impl Fn(usize) -> bool) -> Option<Self> {
        let mut place = 0..;
        self.states.retain(|_| place.next().is_some_and(&is_kept));
        (!self.states.is_empty()).then_some(self)
    }

    /// The deliveries in it.
    pub fn deliveries(self) -> impl Iterator<Item = Delivery> {
        let Self { event, states } = self;
        states.into_iter().map(move |state| Delivery { event: Arc::clone(&event), state })
    }

    /// The name of a delivery that travels alone; of several a digest of all their names.
    #[must_use]
    pub fn name(&self) -> String {
        if let [alone] = self.states.as_slice() {
            return alone.hand_off(&self.event).to_string();
        }
        format!("{}/parcel-{}", self.event.name(), digest(self.hand_offs()))
    }

    /// The hand-off of each delivery in it.
    pub fn hand_offs(&self) -> impl Iterator<Item = HandOff> {
        self.states.iter().map(|state| state.hand_off(&self.event))
    }

    /// As for [`super::Work::sequence`].
    pub(super) fn sequence(&self) -> u32 {
        self.states.iter().map(|state| state.sequence).max().unwrap_or(0)
    }

    /// The same under the names of the next hand-offs.
    pub(super) fn raise(&mut self) {
        for state in &mut self.states {
            state.sequence = state.sequence.wrapping_add(1);
        }
    }
}

/// What these hand-offs, in this order, have as their common name.
pub(super) fn digest(hand_offs: impl IntoIterator<Item = HandOff>) -> String {
    use sha2::Digest as _;
    let mut digest = sha2::Sha256::new();
    for hand_off in hand_offs {
        digest.update(hand_off.to_string());
        digest.update("\n");
    }
    digest.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

impl From<Delivery> for Parcel {
    fn from(Delivery { event, state }: Delivery) -> Self {
        Self { event, states: vec![state] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{SlotNumber, SubscriptionId};
    use crate::time::Timestamp;
    use crate::work::Work;
    use crate::work::tests::event;

    #[test]
    fn a_parcel_is_named_by_all_that_is_in_it() {
        let event = event("t", "e");
        let states: Vec<DeliveryState> = (0..150)
            .map(|n| SubscriptionId::new(SlotNumber(0), n))
            .map(|id| Delivery::begin(Arc::clone(&event), id, Timestamp::from_seconds(1)).state)
            .collect();
        let parcels: Vec<Parcel> = Parcel::pack(&event, states.clone()).collect();
        assert_eq!(
            parcels.iter().map(|parcel| parcel.states.len()).collect::<Vec<_>>(),
            [64, 64, 22]
        );
        assert_eq!(
            parcels
                .iter()
                .cloned()
                .flat_map(Parcel::deliveries)
                .map(|d| d.state)
                .collect::<Vec<_>>(),
            states
        );
        assert_eq!(Parcel::pack(&event, vec![]).count(), 0);
        let large = Arc::new(Event { data: vec![b'1'; LARGE + 1].into(), ..(*event).clone() });
        assert_eq!(Parcel::pack(&large, states.clone()).count(), 150);
        let kept = parcels[2].clone().keep(|place| place % 21 == 0).unwrap();
        assert_eq!(kept.states, [states[128].clone(), states[149].clone()]);
        assert_eq!(kept.keep(|_| false), None);
        let name = |states: &[DeliveryState]| {
            Work::Parcel(Parcel { event: Arc::clone(&event), states: states.to_vec() }).name()
        };
        let mut later = states[..3].to_vec();
        later[2].sequence += 1;
        let names = [name(&states[..3]), name(&states[..2]), name(&states[1..4]), name(&later)];
        let distinct: std::collections::HashSet<&String> = names.iter().collect();
        assert_eq!(distinct.len(), names.len(), "{names:?}");
        assert_eq!(name(&states[..3]), names[0]);
        // Who travels alone has the name that he has in company.
        let work = Work::Parcel(Parcel { event: Arc::clone(&event), states: states[..2].to_vec() });
        assert_eq!(work.hand_offs()[0].to_string(), name(&states[..1]));
        let next: Vec<u32> =
            work.next().hand_offs().iter().map(|hand_off| hand_off.sequence).collect();
        assert_eq!(next, [1, 1]);
    }
}
