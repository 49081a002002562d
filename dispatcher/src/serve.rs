//! Serves what a message asks for: an event or a page, for whoever wants it, or deliveries that go on. What is for
//! more than a page is split, and what is too much of one tenant moved aside.

use std::collections::HashMap;
use std::sync::Arc;

use doorbell_common::event::Event;
use doorbell_common::fan_out::{self, PAGE, SlotRange};
use doorbell_common::ids::{Addressee, SubscriptionId};
use doorbell_common::sideline::{self, Lane};
use doorbell_common::work::{Bundle, DeliveryState, DueEvent, Page, Work};
use doorbell_platform::store::notes::Note;
use doorbell_platform::store::snapshots::{Known, Matching};
use futures_util::future::{join_all, try_join_all};

use crate::dispatch::{Dispatcher, Done, Left, to_done};
use crate::fan_out::Target;
use crate::filtering::{Found, any_has_filter, takes_long};
use crate::hand::Hand;
use crate::ledger::LedgerPage;
use crate::served::Served;
use crate::understand::{Destination, Load};

/// Pages of one event that wait for their confirm at once.
const PAGES_HANDED_ON_AT_ONCE: usize = 8;

/// How a message came to us.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Came<'a> {
    pub(crate) lane: Lane,
    /// It may have been begun before.
    pub(crate) redelivered: bool,
    /// As which it is in hand.
    pub(crate) hand: &'a Hand<'a>,
    /// Where it is noted how far it has come. Not only what RabbitMQ gives to us again may have been done: what was moved
    /// aside may be one of two copies.
    pub(crate) notes: &'a [Note],
}

/// What is to be done about an event, for the subscriptions in a range of slots.
enum Share {
    /// Those who want it are more than a page: each of these ranges has a part of them.
    Split(Vec<SlotRange>),
    /// These are to be served.
    Serve(Found),
}

impl Dispatcher {
    /// Serves an event, or moves it aside.
    pub(crate) async fn serve_event(&self, due: DueEvent, came: Came<'_>) -> Done {
        let served = Served::new(Arc::clone(&due.event));
        let find = || self.snapshots.matching(&served.event, SlotRange::ALL);
        let matching = match self.find_out(came.lane, find).await {
            Ok(matching) => matching,
            Err(unknown) => return self.leave(unknown, Work::Event(due)).await,
        };
        let is_main = came.lane == Lane::Main;
        if is_main && self.filters_go_aside(&served, &matching, came.redelivered) {
            return self.move_aside(due, came).await;
        }
        let share = match self.share(&served, matching).await {
            Ok(share) => share,
            Err(done) => return done,
        };
        if is_main && self.goes_aside(&served.event.tenant, &share, came.redelivered) {
            return self.move_aside(due, came).await;
        }
        // It may have been begun before it was moved aside.
        let came = Came { redelivered: came.redelivered || due.sequence > 0, ..came };
        let done = self.serve_share(&served, SlotRange::ALL, share, came).await;
        if matches!(done, Done::Finished(_)) {
            self.metrics.events.inc();
        }
        done
    }

    /// Moves an event aside, unless it was done before: under its next name nobody could tell.
    async fn move_aside(&self, due: DueEvent, came: Came<'_>) -> Done {
        let notes = if came.redelivered { came.notes } else { &[] };
        match came.hand.aside(self.ledger.was_done(notes, &self.shutdown)).await {
            Some(true) => Done::Finished(None),
            Some(false) => {
                to_done(self.outbox.hand_on(Work::Event(due), Destination::Sideline).await)
            }
            None => Done::NotBegun,
        }
    }

    /// Whether an event goes aside before its filters are asked.
    fn filters_go_aside(&self, served: &Served, matching: &Matching, redelivered: bool) -> bool {
        let (Matching::Few { found, .. }, Addressee::Tenant(tenant)) =
            (matching, &served.event.tenant)
        else {
            return false;
        };
        // Looking at all of them takes time: only if so many wait.
        sideline::is_too_much(self.filters.waiting(tenant), redelivered)
            && any_has_filter(found)
            && takes_long(found, served.elements())
    }

    fn goes_aside(&self, tenant: &Addressee, share: &Share, redelivered: bool) -> bool {
        let deliveries = match share {
            Share::Serve(targets) => targets.len(),
            Share::Split(parts) => parts.len().saturating_mul(PAGE),
        };
        let waiting = self.posts.waiting(tenant).max(self.pages.waiting(tenant));
        sideline::goes_aside(deliveries, waiting, redelivered)
    }

    /// What is to be done about an event, whose filters may leave so few that it need not be split.
    async fn share(&self, served: &Served, matching: Matching) -> Result<Share, Done> {
        let (found, parts) = match matching {
            Matching::Many(parts) => return Ok(Share::Split(parts)),
            Matching::Few { found, parts } => (found, parts),
        };
        if !parts.is_empty() && !any_has_filter(&found) {
            return Ok(Share::Split(parts));
        }
        let wanted = self.filter(served, found).await.ok_or(Done::NotBegun)?;
        Ok(if !parts.is_empty() && wanted.len() > PAGE {
            Share::Split(parts)
        } else {
            Share::Serve(wanted)
        })
    }

    /// Serves the subscriptions in a range of slots, or splits them among pages.
    async fn serve_share(
        &self,
        served: &Served,
        range: SlotRange,
        share: Share,
        came: Came<'_>,
    ) -> Done {
        let event = &served.event;
        match share {
            Share::Serve(targets) => {
                let name = format!("{}/{}-{}", event.name(), range.first, range.end);
                let begin = |(id, known)| (Target::Begin(id), known);
                let targets: Vec<_> = targets.into_iter().map(begin).collect();
                // The acknowledgement says enough about a single one.
                let ledger = (targets.len() > 1).then(|| self.ledger.page(&name));
                self.serve_all(served, targets, ledger, came).await
            }
            Share::Split(parts) => to_done(self.split(event, parts, came.lane).await),
        }
    }

    /// Hands each part of an event's subscriptions on as a page. The pages have the same names
    /// whenever this event is split.
    async fn split(
        &self,
        event: &Arc<Event>,
        parts: Vec<SlotRange>,
        lane: Lane,
    ) -> anyhow::Result<()> {
        // What comes from the sideline stays there, and those of a few pages do not wait behind
        // those of thousands.
        let to = if lane == Lane::Sideline || fan_out::is_large(&parts) {
            Destination::SidelinePages
        } else {
            Destination::Pages
        };
        for parts in parts.chunks(PAGES_HANDED_ON_AT_ONCE) {
            let pages = parts.iter().map(|range| {
                Work::Page(Page { event: Arc::clone(event), slots: *range, sequence: 0 })
            });
            try_join_all(pages.map(|page| self.outbox.hand_on(page, to))).await?;
        }
        Ok(())
    }

    pub(crate) async fn serve_page(&self, page: Page, came: Came<'_>) -> Done {
        let (served, slots) = (Served::new(Arc::clone(&page.event)), page.slots);
        // While it waits for Redis, the turn is another's.
        let in_turn = || async {
            let turn = self.pages.acquire(&page.event.tenant).await;
            Ok((turn, self.snapshots.matching(&page.event, slots).await?))
        };
        let (turn, matching) = match self.find_out(came.lane, in_turn).await {
            Ok(found) => found,
            Err(unknown) => return self.leave(unknown, Work::Page(page)).await,
        };
        match turn {
            Ok(turn) => came.hand.keep(turn),
            Err(error) => return to_done(Err(error)),
        }
        if self.shutdown.is_stopping() {
            return Done::NotBegun;
        }
        let done = match self.share(&served, matching).await {
            Ok(share) => self.serve_share(&served, slots, share, came).await,
            Err(done) => done,
        };
        came.hand.let_go();
        done
    }

    /// Serves these subscriptions, but for those that this page of the ledger says were served before a crash.
    async fn serve_all(
        &self,
        served: &Served,
        mut targets: Vec<(Target, Known)>,
        ledger: Option<LedgerPage>,
        came: Came<'_>,
    ) -> Done {
        if let Some(page) = &ledger
            && came.redelivered
        {
            let reading = async {
                let done_with = page.served(&self.shutdown).await?;
                // A ledger ends with its message, whose acknowledgement may have been lost; and while Redis was away,
                // nobody could ask whether that was done.
                let was_done = done_with.is_empty()
                    && self.ledger.was_done(came.notes, &self.shutdown).await?;
                Some((done_with, was_done))
            };
            let Some((done_with, was_done)) = came.hand.aside(reading).await else {
                return Done::NotBegun;
            };
            let before = targets.len();
            targets.retain(|(target, _)| !was_done && !done_with.contains(target.id()));
            self.metrics.ledger_hits.inc_by(u64::try_from(before - targets.len()).unwrap_or(0));
        }
        match self.fan_out(served, targets, ledger.as_ref(), came.hand).await {
            Ok(_) if came.hand.is_left() => Done::NotBegun,
            Ok(permit) => {
                let left = Left { pages: ledger.into_iter().collect(), permit };
                Done::Finished(Some(left))
            }
            Err(error) => to_done(Err(error)),
        }
    }

    pub(crate) async fn serve_loads(&self, loads: Vec<Load>, came: Came<'_>) -> Done {
        let states = || loads.iter().flat_map(|load| &load.parcel.states);
        let ids = || states().map(|state| state.subscription.clone()).collect();
        let known = match self.find_out(came.lane, || self.snapshots.get_all(ids())).await {
            Ok(known) => known,
            Err(unknown) => {
                let left = Bundle::of(loads.into_iter().map(|load| load.parcel));
                return match left {
                    Some(work) => self.leave(unknown, work).await,
                    None => Done::Finished(None),
                };
            }
        };
        let known: HashMap<SubscriptionId, Known> = known.into_iter().collect();
        let is_alone = states().count() == 1;
        let serving = loads.into_iter().map(|load| self.serve_load(load, &known, is_alone, came));
        join_all(serving).await.into_iter().collect()
    }

    async fn serve_load(
        &self,
        Load { parcel, name, places }: Load,
        known: &HashMap<SubscriptionId, Known>,
        is_alone: bool,
        came: Came<'_>,
    ) -> Done {
        let served = Served::new(Arc::clone(&parcel.event));
        let go_on = |state: DeliveryState| {
            let known = known.get(&state.subscription).cloned().unwrap_or(Known::Missing);
            (self.target(state, &known), known)
        };
        let targets = parcel.states.into_iter().map(go_on).collect();
        let ledger = (!is_alone).then(|| self.ledger.page(&name));
        let came = Came { notes: came.notes.get(places).unwrap_or_default(), ..came };
        self.serve_all(&served, targets, ledger, came).await
    }

    /// A delivery that goes on.
    fn target(&self, state: DeliveryState, known: &Known) -> Target {
        let has_limit =
            matches!(known, Known::Live(subscription) if subscription.rate_limit.is_some());
        let waits = has_limit || state.holds > 0 || self.gates.are_closed(&state.subscription);
        Target::GoOn { state: Box::new(state), waits }
    }
}
