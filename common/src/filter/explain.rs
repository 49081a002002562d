//! Says why a filter does not match, for people: the first condition that does not hold, and of what.

use serde_json::Value;

use super::evaluate::Steps;
use super::{Conditions, Each, Joined, Whole};
use crate::json::pointer;

/// A condition that does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// A JSON pointer (RFC 6901) to the condition, in the filter.
    pub condition: String,
    /// One to the value of which it does not hold, in the event. It may not be there.
    pub value: String,
    /// In words.
    pub detail: String,
}

/// The most that is shown of a value.
const SHOWN: usize = 80;

/// Why an event is not wanted that was found not to be, in few steps.
pub(super) fn explain(conditions: &Conditions, event: &Value) -> Result<(), Mismatch> {
    conditions.explain(Some(event), &At::default())
}

/// Where a condition stands, and the value that it is about.
#[derive(Clone, Debug, Default)]
struct At {
    condition: String,
    value: String,
}

impl At {
    fn operator(&self, name: &str) -> Self {
        Self { condition: format!("{}/{name}", self.condition), ..self.clone() }
    }

    fn field(&self, name: &str) -> Self {
        let name = pointer(name);
        Self {
            condition: format!("{}{name}", self.condition),
            value: format!("{}{name}", self.value),
        }
    }

    fn mismatch(self, detail: String) -> Mismatch {
        Mismatch { condition: self.condition, value: self.value, detail }
    }
}

impl Conditions {
    fn explain(&self, value: Option<&Value>, at: &At) -> Result<(), Mismatch> {
        for condition in &self.whole {
            condition.explain(value, at)?;
        }
        if self.hold(value, &Steps::unbounded()) {
            return Ok(());
        }
        match value {
            Some(Value::Array(elements)) => {
                let detail = format!(
                    "none of the {} elements fulfils the conditions, and neither does the list as a whole",
                    elements.len()
                );
                Err(at.clone().mismatch(detail))
            }
            _ => {
                self.each.iter().try_for_each(|condition| condition.explain(value, at))?;
                self.joined.iter().try_for_each(|joined| joined.explain(value, at))
            }
        }
    }
}

impl Whole {
    fn explain(&self, value: Option<&Value>, at: &At) -> Result<(), Mismatch> {
        if self.holds(value, &Steps::unbounded()) {
            return Ok(());
        }
        let (name, detail) = match self {
            Self::Neq(other) => {
                ("$neq", format!("{} is or has {}", show(value), show(Some(other))))
            }
            Self::Nin(_) => ("$nin", format!("{} is or has one of the list", show(value))),
            Self::Not(_) => ("$not", format!("{} does match", show(value))),
            Self::Exist(true) => ("$exist", "there is none".to_owned()),
            Self::Exist(false) => ("$exist", "there is one".to_owned()),
        };
        Err(at.operator(name).mismatch(detail))
    }
}

impl Each {
    fn explain(&self, value: Option<&Value>, at: &At) -> Result<(), Mismatch> {
        if self.holds(value, &Steps::unbounded()) {
            return Ok(());
        }
        let found = show(value);
        match self {
            Self::Field(name, conditions) => {
                let inner = value.and_then(Value::as_object).and_then(|fields| fields.get(name));
                conditions.explain(inner, &at.field(name))
            }
            Self::Eq(other) => {
                Err(at.clone().mismatch(format!("{found} is not {}", show(Some(other)))))
            }
            Self::In(_) => {
                Err(at.operator("$in").mismatch(format!("{found} is not one of the list")))
            }
            Self::Compare(comparison, other) => Err(at.operator(comparison.operator()).mismatch(
                format!("{found} is not {} {}", comparison.in_words(), show(Some(other))),
            )),
            Self::StartsWith(start) => Err(at
                .operator("$startsWith")
                .mismatch(format!("{found} does not start with {start:?}"))),
            Self::EndsWith(end) => {
                Err(at.operator("$endsWith").mismatch(format!("{found} does not end with {end:?}")))
            }
        }
    }
}

impl Joined {
    fn explain(&self, value: Option<&Value>, at: &At) -> Result<(), Mismatch> {
        match self {
            Self::And(all) => all.iter().enumerate().try_for_each(|(n, branch)| {
                branch.explain(value, &at.operator("$and").operator(&n.to_string()))
            }),
            Self::Or(_) if self.holds(value, &Steps::unbounded()) => Ok(()),
            Self::Or(any) => Err(at.operator("$or").mismatch(format!(
                "none of these {} holds of {}",
                any.len(),
                show(value)
            ))),
        }
    }
}

impl super::Comparison {
    fn operator(self) -> &'static str {
        match self {
            Self::Gt => "$gt",
            Self::Gte => "$gte",
            Self::Lt => "$lt",
            Self::Lte => "$lte",
        }
    }

    fn in_words(self) -> &'static str {
        match self {
            Self::Gt => "greater than",
            Self::Gte => "at least",
            Self::Lt => "less than",
            Self::Lte => "at most",
        }
    }
}

fn show(value: Option<&Value>) -> String {
    let Some(value) = value else { return "nothing".to_owned() };
    let text = value.to_string();
    if text.chars().count() <= SHOWN {
        return text;
    }
    format!("{}…", text.chars().take(SHOWN).collect::<String>())
}
