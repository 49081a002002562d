//! A look at JSON bytes that must stay as they are: is it one value, and how deep does it go?

use std::collections::HashSet;
use std::fmt;

use serde::Deserialize as _;
use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

/// Why bytes are not the one JSON value that an event's data must be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidJson {
    /// No bytes, or nothing but whitespace.
    #[error("is empty")]
    Empty,
    /// More bytes than are allowed.
    #[error("is {size} bytes, more than the {max} allowed")]
    TooLarge {
        /// How many there are.
        size: usize,
        /// How many there may be.
        max: usize,
    },
    /// Arrays and objects nested deeper than allowed.
    #[error("is nested deeper than {max} levels")]
    TooDeep {
        /// How deep it may be.
        max: usize,
    },
    /// Not valid UTF-8.
    #[error("is not UTF-8")]
    NotUtf8,
    /// Not one JSON value.
    #[error("is not one JSON value: {0}")]
    Syntax(String),
}

/// Checks that `bytes` are one JSON value in UTF-8, at most `max_size` bytes and `max_depth`
/// levels deep.
///
/// # Errors
/// Says which of these it is not.
pub fn check(bytes: &[u8], max_size: usize, max_depth: usize) -> Result<(), InvalidJson> {
    if bytes.len() > max_size {
        return Err(InvalidJson::TooLarge { size: bytes.len(), max: max_size });
    }
    let text = std::str::from_utf8(bytes).map_err(|_| InvalidJson::NotUtf8)?;
    if text.trim_ascii().is_empty() {
        return Err(InvalidJson::Empty);
    }
    // Depth comes first: the parser that skips values has no limit of its own.
    if depth(bytes) > max_depth {
        return Err(InvalidJson::TooDeep { max: max_depth });
    }
    serde_json::from_str::<serde::de::IgnoredAny>(text)
        .map(drop)
        .map_err(|error| InvalidJson::Syntax(error.to_string()))
}

/// The value that checked bytes are; none if they have a number beyond all bounds, such as `1e999`.
#[must_use]
pub fn read(bytes: &[u8]) -> Option<Value> {
    // How deep it goes was checked.
    let mut parser = serde_json::Deserializer::from_slice(bytes);
    parser.disable_recursion_limit();
    Value::deserialize(&mut parser).ok()
}

/// How deep arrays and objects nest: 0 for a scalar, 1 for `[]`. Right for valid JSON; for other
/// bytes some number that is no less than what a parser would reach before it gives up.
#[must_use]
pub fn depth(bytes: &[u8]) -> usize {
    let (mut depth, mut deepest) = (0_usize, 0_usize);
    let mut rest = bytes.iter();
    while let Some(byte) = rest.next() {
        match byte {
            b'"' => skip_string(&mut rest),
            b'[' | b'{' => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

/// A JSON pointer to a member of the top level (RFC 6901).
#[must_use]
pub fn pointer(name: &str) -> String {
    format!("/{}", name.replace('~', "~0").replace('/', "~1"))
}

/// A JSON pointer to the first name in checked bytes that its object has twice: what it is worth would
/// depend on who reads it.
#[must_use]
pub fn twice(bytes: &[u8]) -> Option<String> {
    let mut parser = serde_json::Deserializer::from_slice(bytes);
    parser.disable_recursion_limit();
    let (mut place, mut found) = (Vec::new(), None);
    // What can't be read is said by whoever reads it.
    let _is_unreadable = Names { place: &mut place, found: &mut found }.deserialize(&mut parser);
    found
}

/// Goes through a value, and looks at the names of its objects.
struct Names<'a> {
    /// The way to the value.
    place: &'a mut Vec<Step>,
    found: &'a mut Option<String>,
}

/// From a value to a part of it.
enum Step {
    Name(String),
    Element(usize),
}

impl Step {
    fn pointer(&self) -> String {
        match self {
            Self::Name(name) => pointer(name),
            Self::Element(n) => format!("/{n}"),
        }
    }
}

impl Names<'_> {
    /// The same for a part of the value.
    fn part(&mut self, step: Step) -> Names<'_> {
        self.place.push(step);
        Names { place: self.place, found: self.found }
    }
}

impl<'de> DeserializeSeed<'de> for Names<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Names<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        let mut names = HashSet::new();
        while let Some(name) = map.next_key::<String>()? {
            if self.found.is_none() && names.contains(&name) {
                let steps: String = self.place.iter().map(Step::pointer).collect();
                *self.found = Some(steps + &pointer(&name));
            }
            map.next_value_seed(self.part(Step::Name(name)))?;
            if let Some(Step::Name(name)) = self.place.pop() {
                names.insert(name);
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut elements: A) -> Result<(), A::Error> {
        for n in 0.. {
            let element = elements.next_element_seed(self.part(Step::Element(n)))?;
            self.place.pop();
            if element.is_none() {
                break;
            }
        }
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
}

fn skip_string(rest: &mut std::slice::Iter<'_, u8>) {
    while let Some(byte) = rest.next() {
        match byte {
            b'"' => return,
            b'\\' => {
                rest.next();
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_value_within_bounds_is_accepted() {
        for good in [
            "1",
            " {\"a\": [1, {\"b\": \"]]\\\"}{\"}]} ",
            "null",
            "\"x\"",
            "1e999",
            "{\"a\":1,\"a\":2}",
        ] {
            assert_eq!(check(good.as_bytes(), 100, 3), Ok(()), "{good}");
        }
    }

    #[test]
    fn a_pointer_escapes_what_it_must() {
        assert_eq!(pointer("b/~"), "/b~1~0");
    }

    #[test]
    fn a_name_is_there_once_in_each_object() {
        for (text, place) in [
            (
                r#"{"a":{"a":[{"a":1},{"a":2}]},"b":[-1,1.5,true,null,"a",18446744073709551615]}"#,
                None,
            ),
            (r#"{"a":1,"a":2}"#, Some("/a")),
            (r#"{"a":[0,{"b/c":1,"x":{},"b\u002fc":2}]}"#, Some("/a/1/b~1c")),
            (r#"{"a":{"b":1,"b":1},"a":1}"#, Some("/a/b")),
            ("1", None),
            (r#"{"a":1,"a":"#, Some("/a")),
        ] {
            assert_eq!(twice(text.as_bytes()).as_deref(), place, "{text}");
        }
        let deep = format!("{}1{}", r#"{"a":"#.repeat(500), "}".repeat(500));
        assert_eq!(twice(deep.as_bytes()), None);
    }

    #[test]
    fn everything_else_is_named() {
        let syntax = |bytes: &[u8]| matches!(check(bytes, 100, 3), Err(InvalidJson::Syntax(_)));
        assert!(
            syntax(b"{\"a\":}")
                && syntax(b"1 2")
                && syntax(b"[1,]")
                && syntax(b"nan")
                && syntax(b"\"\0\"")
        );
        assert_eq!(check(b" \n", 100, 3), Err(InvalidJson::Empty));
        assert_eq!(check(b"\xff\"\"", 100, 3), Err(InvalidJson::NotUtf8));
        assert_eq!(check(b"[[[[1]]]]", 100, 3), Err(InvalidJson::TooDeep { max: 3 }));
        assert_eq!(check(b"[1, 2]", 5, 3), Err(InvalidJson::TooLarge { size: 6, max: 5 }));
        let bomb = "[".repeat(5_000_000);
        assert_eq!(check(bomb.as_bytes(), usize::MAX, 128), Err(InvalidJson::TooDeep { max: 128 }));
    }
}
