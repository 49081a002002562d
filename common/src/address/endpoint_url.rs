//! The URL of an endpoint, as its holder wrote it and as it is called: parsed once, not at each attempt.

use std::fmt;

use serde::{Deserialize, Serialize};
use url::Url;

use super::{Refused, check_text};

/// Where a subscription's POSTs go. Any text is one: whether it may be called is for an
/// [`AddressPolicy`](super::AddressPolicy) to say.
#[derive(Clone, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub struct EndpointUrl {
    text: String,
    parsed: Result<Url, Refused>,
}

impl EndpointUrl {
    /// As it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// As it is called.
    ///
    /// # Errors
    /// The text is no URL that anyone may use; says which rule it breaks.
    pub fn parsed(&self) -> Result<&Url, Refused> {
        self.parsed.as_ref().map_err(Clone::clone)
    }
}

impl From<String> for EndpointUrl {
    fn from(text: String) -> Self {
        let parsed = check_text(&text)
            .and_then(|()| Url::parse(&text).map_err(|error| Refused::Syntax(error.to_string())));
        Self { text, parsed }
    }
}

impl From<EndpointUrl> for String {
    fn from(url: EndpointUrl) -> Self {
        url.text
    }
}

impl Default for EndpointUrl {
    fn default() -> Self {
        String::new().into()
    }
}

impl PartialEq for EndpointUrl {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for EndpointUrl {}

impl fmt::Debug for EndpointUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.text.fmt(f)
    }
}
