//! Texts: types that are text in JSON (written by `Display`, read by `FromStr`), and sentences that must not be long.

/// A sentence of at most so many bytes, and an ellipsis if there were more. What others say may be in it: names in a
/// certificate, or in an event.
#[must_use]
pub fn shortened(mut sentence: String, most: usize) -> String {
    if sentence.len() > most {
        sentence.truncate(sentence.floor_char_boundary(most));
        sentence.push('…');
    }
    sentence
}

/// Gives a type its `Serialize` (by `Display`) and `Deserialize` (by `FromStr`).
macro_rules! serde_as_text {
    ($name:ty) => {
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

pub(crate) use serde_as_text;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_long_is_shortened() {
        for (text, shown) in
            [("", ""), ("abc", "abc"), ("abcd", "abc…"), ("abä", "ab…"), ("äb", "äb")]
        {
            assert_eq!(shortened(text.to_owned(), 3), shown);
        }
        assert_eq!(shortened("x".repeat(100_000), 500).len(), 500 + '…'.len_utf8());
    }
}
