//! The filters and tests that templates have. Each makes no text longer than a body may be, and no list
//! longer than the event's.

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State, filters, tests};
use serde::Serialize as _;
use serde_json::Serializer;
use serde_json::ser::PrettyFormatter;

use super::{Bounded, MAX_OUTPUT};

/// The most that one level of indented JSON is indented by.
const MAX_INDENT: usize = 8;
/// The longest path of what a list is sorted by, in bytes.
const MAX_ATTRIBUTE: usize = 256;
/// The most paths in one.
const MAX_KEYS: usize = 4;
/// The most that may be said of which characters are trimmed, in bytes.
const MAX_TRIMMED: usize = 64;

/// Those that hand a list or an object on, as long as it was: a loop may go over what they make.
pub(super) const OF_LISTS: [&str; 6] = ["items", "dictsort", "list", "sort", "reverse", "unique"];
/// All others.
pub(super) const OF_VALUES: [&str; 21] = [
    "abs",
    "capitalize",
    "count",
    "d",
    "default",
    "first",
    "float",
    "int",
    "join",
    "last",
    "length",
    "lower",
    "max",
    "min",
    "replace",
    "round",
    "title",
    "tojson",
    "trim",
    "truncate",
    "upper",
];

pub(super) fn add(environment: &mut Environment<'_>) {
    environment.add_filter("items", filters::items);
    environment.add_filter("dictsort", filters::dictsort);
    environment.add_filter("list", list);
    environment.add_filter("sort", sort);
    environment.add_filter("reverse", filters::reverse);
    environment.add_filter("unique", unique);
    environment.add_filter("abs", filters::abs);
    environment.add_filter("capitalize", filters::capitalize);
    environment.add_filter("count", filters::length);
    environment.add_filter("d", filters::default);
    environment.add_filter("default", filters::default);
    environment.add_filter("first", filters::first);
    environment.add_filter("float", filters::float);
    environment.add_filter("int", filters::int);
    environment.add_filter("join", join);
    environment.add_filter("last", filters::last);
    environment.add_filter("length", filters::length);
    environment.add_filter("lower", filters::lower);
    environment.add_filter("max", filters::max);
    environment.add_filter("min", filters::min);
    environment.add_filter("replace", replace);
    environment.add_filter("round", filters::round);
    environment.add_filter("title", filters::title);
    environment.add_filter("tojson", tojson);
    environment.add_filter("trim", trim);
    environment.add_filter("truncate", truncate);
    environment.add_filter("upper", filters::upper);
    environment.add_test("defined", tests::is_defined);
    environment.add_test("undefined", tests::is_undefined);
    environment.add_test("none", tests::is_none);
    environment.add_test("number", tests::is_number);
    environment.add_test("string", tests::is_string);
    environment.add_test("sequence", tests::is_sequence);
    environment.add_test("mapping", tests::is_mapping);
    environment.add_test("true", tests::is_true);
    environment.add_test("false", tests::is_false);
}

fn failed(detail: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, detail.into())
}

fn too_large() -> Error {
    failed(format!("a text of more than {MAX_OUTPUT} bytes"))
}

fn list(state: &State<'_, '_>, value: Value) -> Result<Value, Error> {
    filters::list(state, no_text(value)?)
}

fn sort(state: &State<'_, '_>, value: Value, options: Kwargs) -> Result<Value, Error> {
    check_attribute(&options)?;
    filters::sort(state, no_text(value)?, options)
}

fn unique(state: &State<'_, '_>, value: Value, options: Kwargs) -> Result<Value, Error> {
    check_attribute(&options)?;
    filters::unique(state, no_text(value)?, options)
}

/// The list of a text's characters takes 24 times as much as the text.
fn no_text(value: Value) -> Result<Value, Error> {
    if value.kind() == ValueKind::String {
        return Err(failed("a text where a list or an object is needed"));
    }
    Ok(value)
}

/// Looks for each character of the text's ends among those that go.
fn trim(text: &str, characters: Option<&str>) -> Result<String, Error> {
    let Some(characters) = characters else { return Ok(text.trim().to_owned()) };
    if characters.len() > MAX_TRIMMED {
        return Err(failed(format!("more than {MAX_TRIMMED} bytes of characters to trim")));
    }
    Ok(text.trim_matches(|character| characters.contains(character)).to_owned())
}

/// Each element is kept with all that it is sorted by.
fn check_attribute(options: &Kwargs) -> Result<(), Error> {
    let attribute = options.peek::<Option<&str>>("attribute")?.unwrap_or_default();
    if attribute.len() > MAX_ATTRIBUTE || attribute.split(',').count() > MAX_KEYS {
        return Err(failed(format!(
            "an attribute of more than {MAX_ATTRIBUTE} bytes, or of more than {MAX_KEYS} keys"
        )));
    }
    Ok(())
}

fn join(list: &Value, separator: Option<&str>) -> Result<String, Error> {
    let (separator, mut joined) = (separator.unwrap_or_default(), String::new());
    for (n, value) in list.try_iter()?.enumerate() {
        if n > 0 {
            joined.push_str(separator);
        }
        match value.as_str() {
            Some(text) => joined.push_str(text),
            None => joined.push_str(&value.to_string()),
        }
        if joined.len() > MAX_OUTPUT {
            return Err(too_large());
        }
    }
    Ok(joined)
}

fn replace(text: &str, from: &str, to: &str) -> Result<String, Error> {
    let count = text.matches(from).count();
    if text.len() + count * to.len() - count * from.len() > MAX_OUTPUT {
        return Err(too_large());
    }
    Ok(text.replace(from, to))
}

/// JSON as it may stand in a page, too: a text in it ends no element and no attribute.
#[expect(clippy::needless_pass_by_value, reason = "filters are given their options")]
fn tojson(value: &Value, indent: Option<Value>, options: Kwargs) -> Result<Value, Error> {
    let indent = indent.map_or_else(|| options.get("indent"), |indent| Ok(Some(indent)))?;
    options.assert_all_used()?;
    let width = match indent {
        Some(indent) => match bool::try_from(indent.clone()) {
            Ok(is_indented) => is_indented.then_some(2),
            Err(_) => Some(usize::try_from(indent)?),
        },
        None => None,
    };
    if width.is_some_and(|width| width > MAX_INDENT) {
        return Err(failed(format!("an indent of more than {MAX_INDENT}")));
    }
    let mut json = Bounded::default();
    let written = match width {
        Some(width) => {
            let indent = " ".repeat(width);
            let formatter = PrettyFormatter::with_indent(indent.as_bytes());
            value.serialize(&mut Serializer::with_formatter(&mut json, formatter))
        }
        None => value.serialize(&mut Serializer::new(&mut json)),
    };
    written.map_err(|error| if error.is_io() { too_large() } else { failed(error.to_string()) })?;
    let json = String::from_utf8(json.0).map_err(|error| failed(error.to_string()))?;
    let mut safe = String::with_capacity(json.len());
    for character in json.chars() {
        match character {
            '<' => safe.push_str("\\u003c"),
            '>' => safe.push_str("\\u003e"),
            '&' => safe.push_str("\\u0026"),
            '\'' => safe.push_str("\\u0027"),
            other => safe.push(other),
        }
    }
    if safe.len() > MAX_OUTPUT {
        return Err(too_large());
    }
    Ok(Value::from_safe_string(safe))
}

/// The first so many characters, and an ellipsis if there are more.
fn truncate(text: &str, length: Option<usize>) -> String {
    let length = length.unwrap_or(255);
    if text.chars().count() <= length {
        return text.to_owned();
    }
    let kept: String = text.chars().take(length.saturating_sub(1)).collect();
    format!("{kept}…")
}
