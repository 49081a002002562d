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
//! stand side by side; those in `$and` and `$or` may do so by different elements. `$neq`, `$nin`, `$not`
//! and `$exist` are about the array as a whole: none of its elements does. Arrays in arrays are not
//! looked into. Numbers are compared by what they are worth, texts by their code points. Nothing is
//! converted: `"1"` is not `1`.
//!
//! Compiled once. An evaluation is linear in the event: it asks each condition at most once of each value.
//! A hundred conditions on a list of a hundred thousand would still be much, and whoever writes the filter may
//! write the event, too: so an evaluation has a number of steps. An event that takes more is wanted: rather
//! one too many than one that nobody hears of.

mod compile;
mod evaluate;
mod explain;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;
use serde_json::value::RawValue;

use evaluate::Steps;
pub use explain::Mismatch;

/// What is looked at: the parts of an event.
pub const PARTS: [&str; 5] = ["id", "type", "timestamp", "tenant", "data"];
/// The most conditions of a filter.
pub const MAX_CONDITIONS: usize = 100;
/// How deep a filter may nest.
pub const MAX_DEPTH: usize = 32;
/// How often an event's values may be compared with what a filter says; some nanoseconds each.
pub const MAX_STEPS: usize = 100_000;

/// A filter, as it was written and compiled.
#[derive(Clone, Debug)]
pub struct Filter {
    /// As text: a dispatcher keeps many, and needs it for nothing.
    source: Box<str>,
    conditions: Conditions,
    /// How many conditions there are, the values of lists among them.
    count: usize,
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
        let (conditions, count) = compile::filter(source)?;
        Ok(Self { source: source.to_string().into(), conditions, count })
    }

    /// The most steps that it takes to ask it of an event whose lists have so many elements in all.
    #[must_use]
    pub fn most_steps(&self, elements: usize) -> usize {
        self.count.saturating_mul(elements.saturating_add(1)).min(MAX_STEPS)
    }

    /// Whether an event, as [`Event::parts`](crate::event::Event::parts) gives it, is wanted.
    #[must_use]
    pub fn matches(&self, event: &Value) -> bool {
        let steps = Steps::new(MAX_STEPS);
        self.conditions.hold(Some(event), &steps) || steps.are_spent()
    }

    /// Why an event is not wanted.
    ///
    /// # Errors
    /// The first condition that does not hold.
    pub fn explain(&self, event: &Value) -> Result<(), Mismatch> {
        if self.matches(event) { Ok(()) } else { explain::explain(&self.conditions, event) }
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

#[cfg(test)]
mod tests;
