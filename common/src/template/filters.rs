//! The filters and tests that templates have. Each makes no more than a body may have.

use minijinja::value::{Kwargs, Value};
use minijinja::{Environment, Error, ErrorKind, filters, tests};

use super::MAX_OUTPUT;

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
    environment.add_filter("list", filters::list);
    environment.add_filter("sort", filters::sort);
    environment.add_filter("reverse", filters::reverse);
    environment.add_filter("unique", filters::unique);
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
    environment.add_filter("trim", filters::trim);
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

fn too_large() -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("a text of more than {MAX_OUTPUT} bytes"))
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

fn tojson(value: &Value, indent: Option<Value>, options: Kwargs) -> Result<Value, Error> {
    let json = filters::tojson(value, indent, options)?;
    if json.as_str().is_some_and(|text| text.len() > MAX_OUTPUT) {
        return Err(too_large());
    }
    Ok(json)
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
