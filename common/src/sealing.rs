//! Secrets at rest: sealed with a key that the store does not have, and bound to their place, so that
//! whoever can write to the store cannot move one somewhere else.
//!
//! XChaCha20-Poly1305 (<https://datatracker.ietf.org/doc/html/draft-irtf-cfrg-xchacha-03>): its nonces
//! are long enough to be drawn by chance, however many there are.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use chacha20poly1305::aead::{Aead as _, Payload};
use chacha20poly1305::{KeyInit as _, XChaCha20Poly1305, XNonce};

/// How many bytes of chance each sealing takes.
pub const NONCE: usize = 24;
const FORM: &str = "v1";

/// Keys to seal with: the first seals, and all of them open. None: nothing is sealed, and nothing can
/// be opened.
#[derive(Clone, Default)]
pub struct SealingKeys(Vec<SealingKey>);

#[derive(Clone)]
struct SealingKey {
    id: String,
    cipher: XChaCha20Poly1305,
}

/// What is wrong with a list of keys. Never says anything of a key itself.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSealingKeys {
    /// A line that is not understood.
    #[error(
        "line {0} is not an id (1 to 32 letters, digits, '_' or '-'), a colon, and 32 bytes in base64, as `openssl rand -base64 32` gives them"
    )]
    Line(usize),
    /// An id twice.
    #[error("the id {0} is there twice")]
    Twice(String),
    /// Nothing but comments.
    #[error("there is no key in it")]
    Empty,
}

/// Why something that was sealed was not opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotOpened {
    /// It is not of the form that sealing gives.
    #[error("it is not of the form that sealing gives")]
    Form,
    /// The key that sealed it is not there.
    #[error("it is sealed with the key {0:?}, which is not among those given")]
    NoSuchKey(String),
    /// It was changed, moved from another place, or sealed with another key of that id.
    #[error("it was changed or moved, or sealed with another key that is called {0:?}, too")]
    Forged(String),
}

impl SealingKeys {
    /// Reads a list: a line for each key, `id:base64`; empty lines and those that begin with `#` are
    /// for people.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn parse(text: &str) -> Result<Self, InvalidSealingKeys> {
        let mut keys: Vec<SealingKey> = Vec::new();
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let key = read_line(line).ok_or(InvalidSealingKeys::Line(number))?;
            if keys.iter().any(|known| known.id == key.id) {
                return Err(InvalidSealingKeys::Twice(key.id));
            }
            keys.push(key);
        }
        if keys.is_empty() { Err(InvalidSealingKeys::Empty) } else { Ok(Self(keys)) }
    }

    /// The id of the key that seals.
    #[must_use]
    pub fn active(&self) -> Option<&str> {
        self.0.first().map(|key| key.id.as_str())
    }

    /// Whether a key of this id is there.
    #[must_use]
    pub fn has(&self, id: &str) -> bool {
        self.0.iter().any(|key| key.id == id)
    }

    /// Seals something for a place; `None` if there is no key. The nonce must be drawn by chance.
    #[must_use]
    pub fn seal(&self, place: &str, nonce: [u8; NONCE], clear: &[u8]) -> Option<String> {
        let SealingKey { id, cipher } = self.0.first()?;
        let payload = Payload { msg: clear, aad: place.as_bytes() };
        let sealed = cipher.encrypt(&XNonce::from(nonce), payload).ok()?;
        Some(format!("{FORM}.{id}.{}", STANDARD.encode([nonce.as_slice(), &sealed].concat())))
    }

    /// Opens what was sealed for a place.
    ///
    /// # Errors
    /// It can't be, and why.
    pub fn open(&self, place: &str, sealed: &str) -> Result<Vec<u8>, NotOpened> {
        let id = sealed_with(sealed).ok_or(NotOpened::Form)?;
        let key = self.0.iter().find(|key| key.id == id);
        let key = key.ok_or_else(|| NotOpened::NoSuchKey(id.to_owned()))?;
        let encoded = sealed.rsplit('.').next().unwrap_or_default();
        let bytes = STANDARD.decode(encoded).map_err(|_| NotOpened::Form)?;
        let (nonce, sealed) = bytes.split_first_chunk::<NONCE>().ok_or(NotOpened::Form)?;
        let payload = Payload { msg: sealed, aad: place.as_bytes() };
        let opened = key.cipher.decrypt(&XNonce::from(*nonce), payload);
        opened.map_err(|_| NotOpened::Forged(id.to_owned()))
    }
}

/// The id of the key that something was sealed with.
#[must_use]
pub fn sealed_with(sealed: &str) -> Option<&str> {
    let (id, _) = sealed.strip_prefix(FORM)?.strip_prefix('.')?.split_once('.')?;
    Some(id)
}

fn read_line(line: &str) -> Option<SealingKey> {
    let (id, encoded) = line.split_once(':')?;
    let (id, encoded) = (id.trim(), encoded.trim());
    let is_id = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
    if !(1..=32).contains(&id.len()) || !id.bytes().all(is_id) {
        return None;
    }
    let cipher = XChaCha20Poly1305::new_from_slice(&STANDARD.decode(encoded).ok()?).ok()?;
    Some(SealingKey { id: id.to_owned(), cipher })
}

impl fmt::Debug for SealingKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ids: Vec<&str> = self.0.iter().map(|key| key.id.as_str()).collect();
        f.debug_tuple("SealingKeys").field(&ids).finish()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn line(id: &str, byte: u8) -> String {
        format!("{id}:{}\n", STANDARD.encode([byte; 32]))
    }

    fn keys(text: &str) -> SealingKeys {
        SealingKeys::parse(text).unwrap()
    }

    #[test]
    fn the_first_seals_and_all_open() {
        let old = keys(&line("old", 1));
        let both = keys(&format!("# now\n{}\n # before\n{}", line("new", 2), line("old", 1)));
        assert_eq!((both.active(), both.has("old"), both.has("other")), (Some("new"), true, false));
        let sealed = old.seal("here", [7; NONCE], b"secret").unwrap();
        assert_eq!(both.open("here", &sealed).unwrap(), b"secret");
        let again = both.seal("here", [8; NONCE], b"secret").unwrap();
        assert_eq!((sealed_with(&sealed), sealed_with(&again)), (Some("old"), Some("new")));
        assert_eq!(old.open("here", &again), Err(NotOpened::NoSuchKey("new".to_owned())));
        assert_eq!(SealingKeys::default().seal("here", [0; NONCE], b"x"), None);
        let printed = format!("{both:?}");
        assert_eq!(printed, r#"SealingKeys(["new", "old"])"#);
    }

    #[test]
    fn nothing_opens_elsewhere_or_changed() {
        let ours = keys(&line("a", 1));
        let sealed = ours.seal("here", [7; NONCE], b"secret").unwrap();
        let forged = Err(NotOpened::Forged("a".to_owned()));
        assert_eq!(ours.open("there", &sealed), forged);
        assert_eq!(keys(&line("a", 2)).open("here", &sealed), forged);
        for wrong in ["", "v1", "v1.a", "v1.a.", "v1.a.AAAA", "v1.a.ä", &sealed.replace("v1", "v2")]
        {
            assert_eq!(ours.open("here", wrong), Err(NotOpened::Form), "{wrong}");
        }
    }

    #[test]
    fn a_list_is_understood_whole_or_not_at_all() {
        let short = format!("a:{}", STANDARD.encode([1; 31]));
        for (text, wrong) in [
            (String::new(), InvalidSealingKeys::Empty),
            ("# nothing\n\n".to_owned(), InvalidSealingKeys::Empty),
            (format!("{}x", line("a", 1)), InvalidSealingKeys::Line(2)),
            (line("", 1), InvalidSealingKeys::Line(1)),
            (line("a.b", 1), InvalidSealingKeys::Line(1)),
            (short, InvalidSealingKeys::Line(1)),
            (line("a", 1) + &line("a", 2), InvalidSealingKeys::Twice("a".to_owned())),
        ] {
            assert_eq!(SealingKeys::parse(&text).unwrap_err(), wrong, "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_sealed_opens_and_a_changed_letter_is_seen(
            clear: Vec<u8>, nonce: [u8; NONCE], at: prop::sample::Index,
        ) {
            let ours = keys(&line("a", 1));
            let sealed = ours.seal("here", nonce, &clear).unwrap();
            prop_assert_eq!(ours.open("here", &sealed).unwrap(), clear);
            let mut bytes = sealed.into_bytes();
            let at = at.index(bytes.len());
            bytes[at] = if bytes[at] == b'B' { b'C' } else { b'B' };
            prop_assert!(ours.open("here", &String::from_utf8(bytes).unwrap()).is_err());
        }
    }
}
