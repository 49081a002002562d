//! Understands what is written, and names everything that is wrong with it at once.

use serde_json::{Map, Value};

use super::{
    Comparison, Conditions, Each, InvalidFilter, Joined, MAX_CONDITIONS, MAX_DEPTH, PARTS, Whole,
};

/// Understands a whole filter; answers its conditions, and how many there are.
pub(super) fn filter(source: &Value) -> Result<(Conditions, usize), Vec<InvalidFilter>> {
    let mut reading = Reading::default();
    let conditions = reading.object_of(source, &Place::root());
    if let Value::Object(fields) = source {
        for name in fields.keys().filter(|name| !is_operator(name)) {
            if !PARTS.contains(&name.as_str()) {
                let parts = PARTS.join(", ");
                let place = Place::root().at(name);
                reading.wrong(&place, format!("is no part of an event, which has {parts}"));
            }
        }
    }
    if reading.count > MAX_CONDITIONS {
        reading.wrong(&Place::root(), format!("may have at most {MAX_CONDITIONS} conditions"));
    }
    if reading.errors.is_empty() { Ok((conditions, reading.count)) } else { Err(reading.errors) }
}

/// A place in a filter.
struct Place {
    pointer: String,
    depth: usize,
}

impl Place {
    fn root() -> Self {
        Self { pointer: String::new(), depth: 0 }
    }

    fn at(&self, name: &str) -> Self {
        Self {
            pointer: format!("{}{}", self.pointer, crate::json::pointer(name)),
            depth: self.depth + 1,
        }
    }
}

#[derive(Default)]
struct Reading {
    count: usize,
    errors: Vec<InvalidFilter>,
}

impl Reading {
    fn wrong(&mut self, place: &Place, detail: impl Into<String>) {
        self.errors.push(InvalidFilter { pointer: place.pointer.clone(), detail: detail.into() });
    }

    /// What is to hold of a value: an object of conditions, or a value to be the same as.
    fn value(&mut self, source: &Value, place: &Place) -> Conditions {
        if source.is_object() {
            return self.object_of(source, place);
        }
        self.count += 1;
        Conditions { each: vec![Each::Eq(source.clone())], ..Conditions::default() }
    }

    fn object_of(&mut self, source: &Value, place: &Place) -> Conditions {
        let mut conditions = Conditions::default();
        let Value::Object(fields) = source else {
            self.wrong(place, "must be an object of conditions");
            return conditions;
        };
        if place.depth > MAX_DEPTH {
            self.wrong(place, format!("is nested deeper than {MAX_DEPTH} levels"));
            return conditions;
        }
        if fields.is_empty() {
            self.wrong(place, "has no condition");
        }
        self.fields(fields, place, &mut conditions);
        conditions
    }

    fn fields(&mut self, fields: &Map<String, Value>, place: &Place, into: &mut Conditions) {
        for (name, source) in fields {
            let place = place.at(name);
            self.count += 1;
            match name.as_str() {
                "$neq" => into.whole.push(Whole::Neq(source.clone())),
                "$nin" => into.whole.push(Whole::Nin(self.list(source, &place))),
                "$not" => into.whole.push(Whole::Not(self.value(source, &place))),
                "$exist" => match source.as_bool() {
                    Some(expected) => into.whole.push(Whole::Exist(expected)),
                    None => self.wrong(&place, "must be true or false"),
                },
                "$eq" => into.each.push(Each::Eq(source.clone())),
                "$in" => into.each.push(Each::In(self.list(source, &place))),
                "$gt" => self.compare(Comparison::Gt, source, &place, into),
                "$gte" => self.compare(Comparison::Gte, source, &place, into),
                "$lt" => self.compare(Comparison::Lt, source, &place, into),
                "$lte" => self.compare(Comparison::Lte, source, &place, into),
                "$startsWith" => into.each.push(Each::StartsWith(self.text(source, &place))),
                "$endsWith" => into.each.push(Each::EndsWith(self.text(source, &place))),
                "$and" => into.joined.push(Joined::And(self.branches(source, &place))),
                "$or" => into.joined.push(Joined::Or(self.branches(source, &place))),
                name if is_operator(name) => self.wrong(
                    &place,
                    "is no operator: there are $eq, $neq, $gt, $gte, $lt, $lte, $in, $nin, $startsWith, $endsWith, $exist, $or, $and and $not",
                ),
                name => into.each.push(Each::Field(name.to_owned(), self.value(source, &place))),
            }
        }
    }

    fn list(&mut self, source: &Value, place: &Place) -> Vec<Value> {
        let Value::Array(values) = source else {
            self.wrong(place, "must be a list of values");
            return vec![];
        };
        // Each is looked for.
        self.count += values.len();
        values.clone()
    }

    fn compare(
        &mut self,
        comparison: Comparison,
        source: &Value,
        place: &Place,
        into: &mut Conditions,
    ) {
        if source.is_number() || source.is_string() {
            into.each.push(Each::Compare(comparison, source.clone()));
        } else {
            self.wrong(place, "must be a number or a string");
        }
    }

    fn text(&mut self, source: &Value, place: &Place) -> String {
        let Value::String(text) = source else {
            self.wrong(place, "must be a string");
            return String::new();
        };
        text.clone()
    }

    fn branches(&mut self, source: &Value, place: &Place) -> Vec<Conditions> {
        let branches = source.as_array().map(Vec::as_slice).unwrap_or_default();
        if branches.is_empty() {
            self.wrong(place, "must be a list of conditions, with at least one");
        }
        let numbered = branches.iter().enumerate();
        numbered.map(|(n, branch)| self.value(branch, &place.at(&n.to_string()))).collect()
    }
}

fn is_operator(name: &str) -> bool {
    name.starts_with('$')
}
