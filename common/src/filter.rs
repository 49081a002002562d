//! Which events of the types that it asks for a subscription really wants, by what is in them.
//!
//! A filter is JSON in the shape of the event, `{id, type, timestamp, tenant, data}`, with
//! conditions where the event has values:
//!
//! ```json
//! {"data": {"amount": {"$gte": 100}, "currency": "EUR", "$or": [{"tags": "vip"}, {"score": {"$gt": 9}}]}}
//! ```
//!
//! What stands side by side must all hold. A value alone means that the event has the same. An array
//! matches if it is the same as a whole, or if one of its elements does, with all the conditions that
//! stand side by side; those in `$and` and `$or` may do so by different elements. `$neq`, `$nin`, `$not` and `$exist` are about the array as a whole: none of
//! its elements does. Arrays in arrays are not looked into. Numbers are compared by what they are worth, texts by their code points. Nothing is
//! converted: `"1"` is not `1`.
//!
//! Compiled once. An evaluation is linear in the event: it looks at each value once for each condition, or
//! twice.

mod compile;
mod explain;

use std::cmp::Ordering;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;
use serde_json::{Number, Value};

pub use explain::Mismatch;

/// What is looked at: the parts of an event.
pub const PARTS: [&str; 5] = ["id", "type", "timestamp", "tenant", "data"];
/// The most conditions of a filter.
pub const MAX_CONDITIONS: usize = 100;
/// How deep a filter may nest.
pub const MAX_DEPTH: usize = 32;

/// A filter, as it was written and compiled.
#[derive(Clone, Debug)]
pub struct Filter {
    /// As text: a dispatcher keeps many, and needs it for nothing.
    source: Box<str>,
    conditions: Conditions,
}

/// What is wrong at one place of a filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidFilter {
    /// A JSON pointer (RFC 6901) to the place.
    pub pointer: String,
    /// What is wrong, as the end of a sentence that begins with the place.
    pub detail: String,
}

/// What must hold of one value.
#[derive(Clone, Debug, Default)]
struct Conditions {
    /// Of an array as a whole.
    whole: Vec<Whole>,
    /// Of an array, or of one and the same of its elements.
    each: Vec<Each>,
    /// Of a value beside those.
    joined: Vec<Joined>,
}

#[derive(Clone, Debug)]
enum Whole {
    Neq(Value),
    Nin(Vec<Value>),
    Not(Conditions),
    Exist(bool),
}

#[derive(Clone, Debug)]
enum Each {
    /// One written without an operator is this, too.
    Eq(Value),
    In(Vec<Value>),
    Compare(Comparison, Value),
    StartsWith(String),
    EndsWith(String),
    Field(String, Conditions),
}

/// Conditions on the same value.
#[derive(Clone, Debug)]
enum Joined {
    And(Vec<Conditions>),
    Or(Vec<Conditions>),
}

#[derive(Clone, Copy, Debug)]
enum Comparison {
    Gt,
    Gte,
    Lt,
    Lte,
}

impl Filter {
    /// Understands a filter.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn compile(source: &Value) -> Result<Self, Vec<InvalidFilter>> {
        let conditions = compile::filter(source)?;
        Ok(Self { source: source.to_string().into(), conditions })
    }

    /// Whether an event, as [`Event::parts`](crate::event::Event::parts) gives it, is wanted.
    #[must_use]
    pub fn matches(&self, event: &Value) -> bool {
        self.conditions.hold(Some(event))
    }

    /// Why an event is not wanted.
    ///
    /// # Errors
    /// The first condition that does not hold.
    pub fn explain(&self, event: &Value) -> Result<(), Mismatch> {
        explain::explain(&self.conditions, event)
    }
}

impl PartialEq for Filter {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source
    }
}

impl Serialize for Filter {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let source: &RawValue =
            serde_json::from_str(&self.source).map_err(serde::ser::Error::custom)?;
        source.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Filter {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::compile(&Value::deserialize(deserializer)?).map_err(|wrong| {
            let wrong: Vec<String> =
                wrong.iter().map(|wrong| format!("{} {}", wrong.pointer, wrong.detail)).collect();
            serde::de::Error::custom(wrong.join(", "))
        })
    }
}

impl Conditions {
    /// Whether they hold of a value, or of there being none: of an array as it is, or of one of its
    /// elements.
    fn hold(&self, value: Option<&Value>) -> bool {
        if !self.whole_holds(value) {
            return false;
        }
        let of_it = self.each.iter().all(|condition| condition.holds(value))
            && self.joined.iter().all(|joined| joined.holds(value));
        if of_it {
            return true;
        }
        match value {
            // Without one of these an element can do no more: what is joined has seen it.
            Some(Value::Array(elements)) if !self.each.is_empty() => {
                let settled = self.settle(value);
                elements.iter().any(|element| self.hold_of_element(element, &settled))
            }
            _ => false,
        }
    }

    fn whole_holds(&self, value: Option<&Value>) -> bool {
        self.whole.iter().all(|condition| condition.holds(value))
    }

    /// Whether an array as a whole is as it is to be, for each of the branches: asked once for all of
    /// its elements.
    fn settle(&self, array: Option<&Value>) -> Vec<Settled> {
        let settle = |branch: &Self| Settled {
            whole_holds: branch.whole_holds(array),
            branches: branch.settle(array),
        };
        self.joined.iter().flat_map(Joined::branches).map(settle).collect()
    }

    /// Whether they hold of an element, in whose own elements nothing is looked for. That the array
    /// is as it is to be is known.
    fn hold_of_element(&self, element: &Value, mut settled: &[Settled]) -> bool {
        self.each.iter().all(|condition| condition.holds(Some(element)))
            && self.joined.iter().all(|joined| {
                let (own, others) = settled.split_at(joined.branches().len());
                settled = others;
                joined.holds_of_element(element, own)
            })
    }
}

/// What is known of a branch before it is asked about the elements of an array.
struct Settled {
    whole_holds: bool,
    branches: Vec<Self>,
}

impl Whole {
    fn holds(&self, value: Option<&Value>) -> bool {
        match self {
            Self::Neq(other) => !is_or_has(value, other),
            Self::Nin(others) => !others.iter().any(|other| is_or_has(value, other)),
            Self::Not(conditions) => !conditions.hold(value),
            Self::Exist(expected) => value.is_some() == *expected,
        }
    }
}

impl Each {
    fn holds(&self, value: Option<&Value>) -> bool {
        #[cfg(test)]
        tests::count_step();
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
                .hold(value.and_then(Value::as_object).and_then(|fields| fields.get(name))),
        }
    }
}

impl Joined {
    fn branches(&self) -> &[Conditions] {
        match self {
            Self::And(branches) | Self::Or(branches) => branches,
        }
    }

    /// Of an array each branch may hold by another element.
    fn holds(&self, value: Option<&Value>) -> bool {
        match self {
            Self::And(all) => all.iter().all(|branch| branch.hold(value)),
            Self::Or(any) => any.iter().any(|branch| branch.hold(value)),
        }
    }

    fn holds_of_element(&self, element: &Value, settled: &[Settled]) -> bool {
        let mut holds = self.branches().iter().zip(settled).map(|(branch, settled)| {
            settled.whole_holds && branch.hold_of_element(element, &settled.branches)
        });
        match self {
            Self::And(_) => holds.all(|holds| holds),
            Self::Or(_) => holds.any(|holds| holds),
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

#[cfg(test)]
mod tests;
