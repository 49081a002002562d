//! Asks the conditions of a filter: each of them at most once of each value.

use std::cell::Cell;
use std::cmp::Ordering;

use serde_json::{Number, Value};

use super::{Comparison, Conditions, Each, Joined, Whole};

/// The comparisons that are left.
#[derive(Debug)]
pub(super) struct Steps(Cell<Option<usize>>);

impl Steps {
    pub(super) fn new(most: usize) -> Self {
        Self(Cell::new(Some(most)))
    }

    /// As many as it takes: for what is known to take few.
    pub(super) fn unbounded() -> Self {
        Self::new(usize::MAX)
    }

    /// Whether so many more may be taken. Once they may not, all holds, so that it ends soon.
    fn take(&self, steps: usize) -> bool {
        self.0.set(self.0.get().and_then(|left| left.checked_sub(steps)));
        !self.are_spent()
    }

    pub(super) fn are_spent(&self) -> bool {
        self.0.get().is_none()
    }
}

impl Conditions {
    /// Whether they hold of a value, or of there being none: of an array as it is, or of one of its
    /// elements.
    pub(super) fn hold(&self, value: Option<&Value>, steps: &Steps) -> bool {
        if let Some(Value::Array(elements)) = value {
            let mut findings = Findings::of(self, value, steps);
            return elements.iter().any(|element| findings.look_at(self, element, steps))
                || findings.suffice_for(self);
        }
        self.whole_hold(value, steps)
            && self.each_hold(value, steps)
            && self.joined.iter().all(|joined| joined.holds(value, steps))
    }

    fn whole_hold(&self, value: Option<&Value>, steps: &Steps) -> bool {
        self.whole.iter().all(|condition| condition.holds(value, steps))
    }

    fn each_hold(&self, value: Option<&Value>, steps: &Steps) -> bool {
        self.each.iter().all(|condition| condition.holds(value, steps))
    }
}

/// What is known of an array while its elements are looked at one by one, in whose own elements nothing
/// is looked for.
#[derive(Debug, Default)]
struct Findings {
    /// The array as a whole is as it is to be; without that nothing else matters.
    whole: bool,
    /// The array is itself what otherwise one of its elements is to be, but for what is joined to that.
    itself: bool,
    /// One of its elements is, with what is joined to that.
    element: bool,
    /// The same for the branches of each that is joined to them.
    joined: Vec<Vec<Self>>,
}

impl Findings {
    /// What an array as a whole says.
    fn of(conditions: &Conditions, array: Option<&Value>, steps: &Steps) -> Self {
        if !conditions.whole_hold(array, steps) {
            return Self::default();
        }
        let of_branches = |joined: &Joined| {
            joined.branches().iter().map(|branch| Self::of(branch, array, steps)).collect()
        };
        Self {
            whole: true,
            itself: conditions.each_hold(array, steps),
            element: false,
            joined: conditions.joined.iter().map(of_branches).collect(),
        }
    }

    /// Notes what an element says; answers whether the conditions hold of it.
    fn look_at(&mut self, conditions: &Conditions, element: &Value, steps: &Steps) -> bool {
        // Where there is nothing to ask of each, there may be many elements all the same.
        if !steps.take(1) {
            return true;
        }
        if !self.whole {
            return false;
        }
        let mut holds = conditions.each_hold(Some(element), steps);
        if !holds && !self.itself {
            return false;
        }
        for (joined, findings) in conditions.joined.iter().zip(&mut self.joined) {
            // All of them, whatever one says: another element may say the rest.
            let branches = joined.branches().iter().zip(findings);
            let (mut all, mut any) = (true, false);
            for (branch, findings) in branches {
                let holds = findings.look_at(branch, element, steps);
                all &= holds;
                any |= holds;
            }
            holds &= match joined {
                Joined::And(_) => all,
                Joined::Or(_) => any,
            };
        }
        self.element |= holds;
        holds
    }

    /// Whether the conditions hold of the array, once all of its elements were looked at. Each branch may
    /// hold by another element.
    fn suffice_for(&self, conditions: &Conditions) -> bool {
        let joined_hold = || {
            conditions.joined.iter().zip(&self.joined).all(|(joined, findings)| {
                let mut branches = joined.branches().iter().zip(findings);
                match joined {
                    Joined::And(_) => {
                        branches.all(|(branch, findings)| findings.suffice_for(branch))
                    }
                    Joined::Or(_) => {
                        branches.any(|(branch, findings)| findings.suffice_for(branch))
                    }
                }
            })
        };
        self.whole && (self.element || self.itself && joined_hold())
    }
}

impl Joined {
    fn branches(&self) -> &[Conditions] {
        match self {
            Self::And(branches) | Self::Or(branches) => branches,
        }
    }

    pub(super) fn holds(&self, value: Option<&Value>, steps: &Steps) -> bool {
        match self {
            Self::And(all) => all.iter().all(|branch| branch.hold(value, steps)),
            Self::Or(any) => any.iter().any(|branch| branch.hold(value, steps)),
        }
    }
}

impl Whole {
    pub(super) fn holds(&self, value: Option<&Value>, steps: &Steps) -> bool {
        let compared = match self {
            Self::Neq(_) => 1,
            Self::Nin(others) => others.len(),
            Self::Not(_) | Self::Exist(_) => 0,
        };
        let values = value.and_then(Value::as_array).map_or(1, |elements| elements.len() + 1);
        if !steps.take(compared.saturating_mul(values)) {
            return true;
        }
        match self {
            Self::Neq(other) => !is_or_has(value, other),
            Self::Nin(others) => !others.iter().any(|other| is_or_has(value, other)),
            Self::Not(conditions) => !conditions.hold(value, steps),
            Self::Exist(expected) => value.is_some() == *expected,
        }
    }
}

impl Each {
    pub(super) fn holds(&self, value: Option<&Value>, steps: &Steps) -> bool {
        #[cfg(test)]
        super::tests::count_step();
        let compared =
            if let (Self::In(others), Some(_)) = (self, value) { others.len() } else { 1 };
        if !steps.take(compared) {
            return true;
        }
        match self {
            Self::Eq(other) => value.is_some_and(|value| same(value, other)),
            Self::In(others) => {
                value.is_some_and(|value| others.iter().any(|other| same(value, other)))
            }
            Self::Compare(comparison, other) => value
                .and_then(|value| order(value, other))
                .is_some_and(|order| comparison.holds(order)),
            Self::StartsWith(start) => {
                value.and_then(Value::as_str).is_some_and(|text| text.starts_with(start))
            }
            Self::EndsWith(end) => {
                value.and_then(Value::as_str).is_some_and(|text| text.ends_with(end))
            }
            Self::Field(name, conditions) => conditions
                .hold(value.and_then(Value::as_object).and_then(|fields| fields.get(name)), steps),
        }
    }
}

impl Comparison {
    fn holds(self, order: Ordering) -> bool {
        match self {
            Self::Gt => order.is_gt(),
            Self::Gte => order.is_ge(),
            Self::Lt => order.is_lt(),
            Self::Lte => order.is_le(),
        }
    }
}

fn is_or_has(value: Option<&Value>, other: &Value) -> bool {
    let Some(value) = value else { return false };
    let has = |elements: &Vec<Value>| elements.iter().any(|element| same(element, other));
    same(value, other) || value.as_array().is_some_and(has)
}

/// Whether two values are worth the same: 1 and 1.0 are.
fn same(one: &Value, other: &Value) -> bool {
    if let (Value::Number(one), Value::Number(other)) = (one, other) {
        return order_of_numbers(one, other).is_some_and(Ordering::is_eq);
    }
    if let (Value::Array(one), Value::Array(other)) = (one, other) {
        let pairs_are_same = || one.iter().zip(other).all(|(one, other)| same(one, other));
        return one.len() == other.len() && pairs_are_same();
    }
    if let (Value::Object(one), Value::Object(other)) = (one, other) {
        let is_in_other =
            |(name, one): (&String, &Value)| other.get(name).is_some_and(|other| same(one, other));
        return one.len() == other.len() && one.iter().all(is_in_other);
    }
    one == other
}

fn order(one: &Value, other: &Value) -> Option<Ordering> {
    if let (Value::Number(one), Value::Number(other)) = (one, other) {
        return order_of_numbers(one, other);
    }
    Some(one.as_str()?.cmp(other.as_str()?))
}

fn order_of_numbers(one: &Number, other: &Number) -> Option<Ordering> {
    match (one.as_i128(), other.as_i128()) {
        (Some(one), Some(other)) => Some(one.cmp(&other)),
        _ => one.as_f64()?.partial_cmp(&other.as_f64()?),
    }
}
