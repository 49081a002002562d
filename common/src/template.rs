//! A body of a subscription's own making: a `MiniJinja` template over the event.
//!
//! Whoever writes one may be anybody, so what it takes is bounded: its steps by fuel, its output by
//! length, and its memory by what it may not say ([`allowed`]). In JSON every value that is put in is
//! written as JSON, quotes included, and what comes out must be JSON.

mod allowed;
mod filters;

use std::io;
use std::sync::OnceLock;

use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment, Error, ErrorKind, UndefinedBehavior, Value};
use serde::{Deserialize, Serialize};

/// The longest template, in bytes.
pub const MAX_SOURCE: usize = 8 * 1024;
/// The longest body that one may make, in bytes.
pub const MAX_OUTPUT: usize = 512 * 1024;
/// How many steps it may take, with events of up to so many bytes: a step may go over all that an event
/// has, so all of them together take up to half a second.
const FUEL: [(usize, u64); 4] =
    [(4 * 1024, 40_000), (16 * 1024, 12_000), (64 * 1024, 3_000), (usize::MAX, 800)];

/// A template and what its output is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Template {
    /// The template.
    pub body: String,
    /// The `content-type` of what it makes.
    pub content_type: ContentType,
    /// Data of an event that it was tried with, as it was written.
    #[serde(default)]
    pub sample: serde_json::Value,
}

/// A media type, with its parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContentType(String);

/// A text that is not a media type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be a media type, such as application/json or \"text/plain; charset=utf-8\"")]
pub struct InvalidContentType;

/// Why a template makes no body.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// It can't be read, or says something that it may not.
    #[error("the template {0}")]
    Invalid(String),
    /// It failed with this event.
    #[error("the template failed: {0}")]
    Failed(String),
    /// It took too many steps.
    #[error("the template takes more than {0} steps, which is the most for an event of this size")]
    TooManySteps(u64),
    /// It makes too much.
    #[error("the template makes more than {MAX_OUTPUT} bytes")]
    TooLarge,
    /// What it makes is not what it says.
    #[error("the template does not make JSON: {0}")]
    NotJson(String),
    /// The event has what no program can hold.
    #[error("the event's data can't be looked into: it has a number beyond all bounds")]
    Event,
}

/// An event as templates see it.
#[derive(Clone, Debug)]
pub struct Context {
    value: Value,
    /// How large the event is, by its place in [`FUEL`].
    class: usize,
}

impl Context {
    /// The context of an event's [parts](crate::event::Event::parts), of which the data is so many
    /// bytes.
    #[must_use]
    pub fn of(parts: &serde_json::Value, bytes: usize) -> Self {
        let class = FUEL.iter().position(|(most, _)| bytes <= *most).unwrap_or_default();
        Self { value: Value::from(Serde(parts)), class }
    }
}

impl Template {
    /// Checks that it can be read and says nothing that it may not. Whether it works is another
    /// question, which [`render`](Self::render) answers.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn check(&self) -> Result<(), TemplateError> {
        if self.body.len() > MAX_SOURCE {
            return Err(TemplateError::Invalid(format!("has more than {MAX_SOURCE} bytes")));
        }
        allowed::check(&self.body).map_err(TemplateError::Invalid)
    }

    /// The body that it makes of an event.
    ///
    /// # Errors
    /// It makes none, and why.
    pub fn render(&self, context: &Context) -> Result<Vec<u8>, TemplateError> {
        let escaping = self.content_type.escaping();
        let (environment, fuel) = environment(context.class);
        let template = environment
            .template_from_named_str(escaping.name(), &self.body)
            .map_err(|error| TemplateError::Invalid(error.to_string()))?;
        let mut output = Bounded::default();
        let rendered = template.render_captured_to(context.value.clone(), &mut output).map(drop);
        rendered.map_err(|error| failure(&error, fuel))?;
        let Bounded(body) = output;
        if escaping == Escaping::Json {
            serde_json::from_slice::<serde::de::IgnoredAny>(&body)
                .map_err(|error| TemplateError::NotJson(error.to_string()))?;
        }
        Ok(body)
    }
}

fn failure(error: &Error, fuel: u64) -> TemplateError {
    let kind = error.kind();
    if kind == ErrorKind::OutOfFuel {
        TemplateError::TooManySteps(fuel)
    } else if kind == ErrorKind::WriteFailure {
        TemplateError::TooLarge
    } else {
        TemplateError::Failed(error.to_string())
    }
}

/// How values are written into the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Escaping {
    Json,
    Markup,
    None,
}

impl Escaping {
    /// What templates of this kind are called.
    fn name(self) -> &'static str {
        match self {
            Self::Json => "template.json",
            Self::Markup => "template.html",
            Self::None => "template.txt",
        }
    }
}

impl ContentType {
    /// It as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn escaping(&self) -> Escaping {
        let essence = self.0.split(';').next().unwrap_or_default().trim();
        let (_, subtype) = essence.split_once('/').unwrap_or_default();
        match subtype {
            "json" => Escaping::Json,
            "html" | "xml" => Escaping::Markup,
            other if other.ends_with("+json") => Escaping::Json,
            other if other.ends_with("+xml") => Escaping::Markup,
            _ => Escaping::None,
        }
    }
}

impl Default for ContentType {
    fn default() -> Self {
        Self("application/json".to_owned())
    }
}

impl std::str::FromStr for ContentType {
    type Err = InvalidContentType;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let essence = text.split(';').next().unwrap_or_default().trim_end();
        let is_token = |part: &str| {
            let is_letter =
                |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"+-._".contains(&b);
            !part.is_empty() && part.bytes().all(is_letter)
        };
        let fits = text.len() <= 100 && text.bytes().all(|b| (b' '..=b'~').contains(&b));
        match essence.split_once('/') {
            Some((kind, subtype)) if fits && is_token(kind) && is_token(subtype) => {
                Ok(Self(text.to_owned()))
            }
            Some(_) | None => Err(InvalidContentType),
        }
    }
}

impl std::fmt::Display for ContentType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

crate::text::serde_as_text!(ContentType);

/// An output that takes so much and no more.
#[derive(Default)]
struct Bounded(Vec<u8>);

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_OUTPUT {
            return Err(io::Error::from(io::ErrorKind::WriteZero));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What all templates share with events of one class, and how many steps they may take.
fn environment(class: usize) -> (&'static Environment<'static>, u64) {
    static ENVIRONMENTS: [OnceLock<Environment<'static>>; FUEL.len()] =
        [const { OnceLock::new() }; FUEL.len()];
    let (_, fuel) = FUEL[class];
    let environment = ENVIRONMENTS[class].get_or_init(|| {
        let mut environment = Environment::empty();
        environment.set_fuel(Some(fuel));
        environment.set_undefined_behavior(UndefinedBehavior::Chainable);
        environment.set_auto_escape_callback(|name| match name {
            "template.json" => AutoEscape::Json,
            "template.html" => AutoEscape::Html,
            _ => AutoEscape::None,
        });
        filters::add(&mut environment);
        environment
    });
    (environment, fuel)
}

#[cfg(test)]
mod tests;
