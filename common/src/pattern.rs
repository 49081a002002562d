//! Which event types a subscription wants, said in AMQP's topic patterns: words between dots,
//! `*` for exactly one word, `#` for any number of them, none included.
//!
//! Source: AMQP 0-9-1 §3.1.3.3. The law that ours match what RabbitMQ's topic exchange matches
//! is checked against a real one in `tests/`.

mod tree;

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::event::EventType;
use crate::text::serde_as_text;

pub use tree::PatternTree;

/// A pattern over event types.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pattern(Arc<str>);

/// Why a text is not a pattern.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPattern {
    /// Nothing was given.
    #[error("is empty")]
    Empty,
    /// More than 128 bytes.
    #[error("is longer than {} bytes", EventType::MAX_BYTES)]
    TooLong,
    /// Two dots in a row, or one at an end.
    #[error("has an empty word: words are separated by single dots")]
    EmptyWord,
    /// `*` or `#` mixed with other characters in one word.
    #[error("has '*' or '#' inside a word: each stands alone between dots, as in payment.*")]
    PartialWildcard,
    /// A character that no event type has.
    #[error(
        "may only have letters, digits, '_', '-', and the wildcards '*' and '#', in words separated by dots"
    )]
    Character,
}

impl Pattern {
    /// The pattern as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether an event of this type is wanted. Costs at most the product of the words of both.
    #[must_use]
    pub fn matches(&self, event_type: &EventType) -> bool {
        let words: Vec<&str> = event_type.as_str().split('.').collect();
        // reached[i]: the pattern's words so far can match the first i words of the type.
        let mut reached = vec![false; words.len() + 1];
        reached[0] = true;
        for part in self.0.split('.') {
            if part == "#" {
                let mut any = false;
                for place in &mut reached {
                    any |= *place;
                    *place = any;
                }
            } else {
                for i in (0..words.len()).rev() {
                    reached[i + 1] = reached[i] && (part == "*" || part == words[i]);
                }
                reached[0] = false;
            }
        }
        reached[words.len()]
    }
}

impl FromStr for Pattern {
    type Err = InvalidPattern;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty() {
            return Err(InvalidPattern::Empty);
        }
        if text.len() > EventType::MAX_BYTES {
            return Err(InvalidPattern::TooLong);
        }
        for word in text.split('.') {
            if word.is_empty() {
                return Err(InvalidPattern::EmptyWord);
            }
            if word == "*" || word == "#" {
                continue;
            }
            if word.contains(['*', '#']) {
                return Err(InvalidPattern::PartialWildcard);
            }
            if !word.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-') {
                return Err(InvalidPattern::Character);
            }
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

serde_as_text!(Pattern);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn matches(pattern: &str, event_type: &str) -> bool {
        pattern.parse::<Pattern>().unwrap().matches(&event_type.parse().unwrap())
    }

    #[test]
    fn a_star_is_one_word_and_a_hash_any_number() {
        for (pattern, event_type, expected) in [
            ("payment.succeeded", "payment.succeeded", true),
            ("payment.succeeded", "payment.failed", false),
            ("payment.succeeded", "payment.succeeded.now", false),
            ("payment.*", "payment.failed", true),
            ("payment.*", "payment", false),
            ("payment.*", "payment.a.b", false),
            ("*.failed", "payment.failed", true),
            ("#", "a", true),
            ("#", "a.b.c", true),
            ("payment.#", "payment", true),
            ("payment.#", "payment.a.b", true),
            ("payment.#", "refund", false),
            ("#.failed", "failed", true),
            ("#.failed", "a.b.failed", true),
            ("#.a.#", "b.a.c", true),
            ("#.a.#.a", "a", false),
            ("#.a.#.a", "a.a", true),
            ("*.#", "a", true),
            ("#.#", "a.b", true),
            ("*.*", "a", false),
        ] {
            assert_eq!(matches(pattern, event_type), expected, "{pattern} on {event_type}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for (wrong, why) in [
            ("", InvalidPattern::Empty),
            ("a..b", InvalidPattern::EmptyWord),
            ("a.b*", InvalidPattern::PartialWildcard),
            ("##", InvalidPattern::PartialWildcard),
            ("a.ß", InvalidPattern::Character),
            (&"x".repeat(129), InvalidPattern::TooLong),
        ] {
            assert_eq!(wrong.parse::<Pattern>(), Err(why), "{wrong}");
        }
    }

    /// The definition, word by word, slow and plain.
    fn by_definition(pattern: &[&str], words: &[&str]) -> bool {
        match (pattern, words) {
            ([], _) => words.is_empty(),
            (["#", rest @ ..], _) => {
                by_definition(rest, words)
                    || words.split_first().is_some_and(|(_, later)| by_definition(pattern, later))
            }
            ([first, rest @ ..], [word, later @ ..]) => {
                (*first == "*" || first == word) && by_definition(rest, later)
            }
            ([_, ..], []) => false,
        }
    }

    proptest! {
        #[test]
        fn agrees_with_the_definition(
            pattern in prop::collection::vec(prop::sample::select(vec!["a", "b", "*", "#"]), 1..7),
            words in prop::collection::vec(prop::sample::select(vec!["a", "b"]), 1..7),
        ) {
            prop_assert_eq!(matches(&pattern.join("."), &words.join(".")), by_definition(&pattern, &words));
        }
    }
}
