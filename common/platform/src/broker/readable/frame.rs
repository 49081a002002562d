//! Frames of AMQP 0-9-1, as far as publishers have a say in what is in them. What is mended keeps its length.
//!
//! <https://www.rabbitmq.com/resources/specs/amqp0-9-1.pdf>, 4.2; the types of fields are RabbitMQ's
//! (<https://www.rabbitmq.com/amqp-0-9-1-errata>, 3).

/// Kind, channel and size of a frame.
const HEAD: usize = 7;
/// What may be a frame is no larger.
const LARGEST: usize = 64 * 1024 * 1024;
/// Headers that nest deeper are bytes from there on.
const DEEPEST: usize = 32;

/// The class that messages are in, and the methods that bring one.
const BASIC: usize = 60;
const RETURN: usize = 50;
const DELIVER: usize = 60;
const GET_OK: usize = 71;

/// What a property is.
#[derive(Clone, Copy)]
enum Property {
    Short,
    Table,
    Bytes(usize),
}

/// The properties of a message, in their order: content type and encoding, headers, delivery mode, priority,
/// correlation id, reply to, expiration, message id, timestamp, type, user id, app id, cluster id.
const PROPERTIES: [Property; 14] = {
    use Property::{Bytes, Short, Table};
    [
        Short,
        Short,
        Table,
        Bytes(1),
        Bytes(1),
        Short,
        Short,
        Short,
        Short,
        Bytes(8),
        Short,
        Short,
        Short,
        Short,
    ]
};

/// Makes the frames that are whole readable; answers how many bytes these are. What does not look like frames
/// is left to whoever reads it.
pub(super) fn mend(bytes: &mut [u8]) -> usize {
    let (all, mut mended) = (bytes.len(), 0);
    while let Some(&mut [kind, _, _, ref size @ ..]) = bytes.get_mut(mended..mended + HEAD) {
        let size = number(size);
        if !matches!(kind, 1..=3 | 8) || size > LARGEST {
            return all;
        }
        let end = mended + HEAD + size;
        // One more byte marks the end.
        if end >= all {
            break;
        }
        let mut payload = Fields(&mut bytes[mended + HEAD..end]);
        // What is not as it should be is left as it is.
        let _as_it_should_be = match kind {
            1 => payload.method(),
            2 => payload.header(),
            _ => Some(()),
        };
        mended = end + 1;
    }
    mended
}

fn number(bytes: &[u8]) -> usize {
    bytes.iter().fold(0, |number, byte| number << 8 | usize::from(*byte))
}

/// Puts a question mark in the place of each byte that makes a text anything but UTF-8.
fn mend_text(mut text: &mut [u8]) {
    while let Err(error) = str::from_utf8(text) {
        let from = error.valid_up_to();
        let to = error.error_len().map_or(text.len(), |length| from + length);
        text[from..to].fill(b'?');
        text = &mut text[to..];
    }
}

/// What is still to be looked at.
struct Fields<'a>(&'a mut [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, count: usize) -> Option<&'a mut [u8]> {
        let (taken, rest) = std::mem::take(&mut self.0).split_at_mut_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn number(&mut self, bytes: usize) -> Option<usize> {
        self.take(bytes).map(|bytes| number(bytes))
    }

    fn method(&mut self) -> Option<()> {
        let (class, method) = (self.number(2)?, self.number(2)?);
        match (class, method) {
            // Consumer, delivery tag, whether it is redelivered; exchange, routing key.
            (BASIC, DELIVER) => {
                self.short()?;
                self.take(9)?;
            }
            (BASIC, GET_OK) => {
                self.take(9)?;
            }
            // Code and text of a reply.
            (BASIC, RETURN) => {
                self.take(2)?;
                self.short()?;
            }
            _ => return Some(()),
        }
        self.short()?;
        self.short()
    }

    fn header(&mut self) -> Option<()> {
        // Class, weight, and how many bytes the body has.
        self.take(12)?;
        let flags = self.number(2)?;
        let is_there = |place: &usize| flags & (1 << (15 - *place)) != 0;
        for (_, property) in (0..).zip(PROPERTIES).filter(|(place, _)| is_there(place)) {
            match property {
                Property::Short => self.short()?,
                Property::Table => self.table(DEEPEST)?,
                Property::Bytes(count) => {
                    self.take(count)?;
                }
            }
        }
        Some(())
    }

    fn short(&mut self) -> Option<()> {
        let length = self.number(1)?;
        mend_text(self.take(length)?);
        Some(())
    }

    fn long(&mut self) -> Option<Self> {
        let length = self.number(4)?;
        self.take(length).map(Self)
    }

    fn table(&mut self, deeper: usize) -> Option<()> {
        let mut entries = self.long()?;
        while !entries.0.is_empty() {
            entries.short()?;
            entries.value(deeper)?;
        }
        Some(())
    }

    /// A value that may nest so much deeper.
    fn value(&mut self, deeper: usize) -> Option<()> {
        let [kind] = self.take(1)? else { return None };
        let size = match *kind {
            b'F' | b'A' if deeper == 0 => {
                *kind = b'x';
                return self.long().map(drop);
            }
            b'F' => return self.table(deeper - 1),
            b'A' => {
                let mut values = self.long()?;
                while !values.0.is_empty() {
                    values.value(deeper - 1)?;
                }
                return Some(());
            }
            b'S' | b'x' => return self.long().map(drop),
            b'V' => 0,
            b't' | b'b' | b'B' => 1,
            b's' | b'U' | b'u' => 2,
            b'I' | b'i' | b'f' => 4,
            b'D' => 5,
            b'l' | b'L' | b'd' | b'T' => 8,
            _ => return None,
        };
        self.take(size).map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(kind: u8, payload: &[&[u8]]) -> Vec<u8> {
        let payload = payload.concat();
        let size = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&[kind, 0, 1][..], &size, &payload, &[0xce]].concat()
    }

    fn short(text: &[u8]) -> Vec<u8> {
        [&[u8::try_from(text.len()).unwrap()], text].concat()
    }

    fn long(bytes: &[u8]) -> Vec<u8> {
        [&u32::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat()
    }

    fn mended(frame: &[u8]) -> Vec<u8> {
        let mut bytes = frame.to_vec();
        assert_eq!(mend(&mut bytes), frame.len());
        bytes
    }

    #[test]
    fn texts_are_mended_wherever_publishers_write_them() {
        for (is, becomes) in [
            (&b"payment.paid"[..], &b"payment.paid"[..]),
            (b"caf\xe9", b"caf?"),
            ("caf\u{e9}".as_bytes(), "caf\u{e9}".as_bytes()),
            (b"\xff\xfe.a", b"??.a"),
            (b"a\xe2\x82", b"a??"),
            (b"", b""),
        ] {
            let deliver = |key: &[u8]| {
                let head = [&[0, 60, 0, 60][..], &short(b"tag"), &[0; 9], &short(b"events")];
                frame(1, &[&head.concat(), &short(key)])
            };
            assert_eq!(mended(&deliver(is)), deliver(becomes), "{is:?}");
            let get_ok = |key: &[u8]| {
                frame(1, &[&[0, 60, 0, 71], &[0; 9], &short(b"x"), &short(key), &[0; 4]])
            };
            assert_eq!(mended(&get_ok(is)), get_ok(becomes), "{is:?}");
            let header = |text: &[u8]| {
                let values = [
                    &short(text)[..],
                    b"S",
                    &long(b"\xff as it is"),
                    &short(b"list"),
                    b"A",
                    &long(&[&b"F"[..], &long(&[&short(text)[..], b"t", &[1]].concat())].concat()),
                    &short(b"others"),
                    b"F",
                    &long(
                        &[
                            &short(b"l")[..],
                            b"l",
                            &[0; 8],
                            &short(b"D"),
                            b"D",
                            &[0; 5],
                            &short(b"V"),
                            b"V",
                            &short(b"I"),
                            b"I",
                            &[0; 4],
                        ]
                        .concat(),
                    ),
                ];
                let properties = [
                    &short(text)[..],
                    &short(text),
                    &long(&values.concat()),
                    &[2],
                    &[0],
                    &short(text),
                    &short(text),
                    &short(text),
                    &short(text),
                    &[0; 8],
                    &short(text),
                    &short(text),
                    &short(text),
                    &short(text),
                ];
                frame(2, &[&[0, 60, 0, 0], &[0; 8], &[0xff, 0xfc], &properties.concat()])
            };
            assert_eq!(mended(&header(is)), header(becomes), "{is:?}");
            let few = |text: &[u8]| {
                frame(2, &[&[0, 60, 0, 0], &[0; 8], &[0x10, 0x80], &[2], &short(text)])
            };
            assert_eq!(mended(&few(is)), few(becomes), "{is:?}");
            // Bodies are the publisher's, and other methods RabbitMQ's own.
            for frame in [frame(3, &[is]), frame(1, &[&[0, 20, 0, 40], &short(is)])] {
                assert_eq!(mended(&frame), frame);
            }
        }
    }

    #[test]
    fn what_nests_too_deep_is_bytes() {
        let mut table = long(&[]);
        for _ in 0..20_000 {
            table = long(&[&short(b"")[..], b"F", &table].concat());
        }
        let header = frame(2, &[&[0, 60, 0, 0], &[0; 8], &[0x20, 0], &table]);
        let mended = mended(&header);
        assert_eq!(mended.len(), header.len());
        let changed: Vec<(u8, u8)> = header
            .iter()
            .zip(&mended)
            .filter(|(is, was)| is != was)
            .map(|(is, was)| (*is, *was))
            .collect();
        assert_eq!(changed, [(b'F', b'x')], "all that is deeper is in there");
    }

    #[test]
    fn a_frame_is_mended_once_it_is_whole() {
        let whole = frame(1, &[&[0, 60, 0, 71], &[0; 9], &short(b"x"), &short(b"\xff"), &[0; 4]]);
        let two = [whole.clone(), whole.clone()].concat();
        for length in 0..=two.len() {
            let mut bytes = two[..length].to_vec();
            assert_eq!(mend(&mut bytes), length / whole.len() * whole.len(), "{length}");
        }
        let mut refusal = *b"AMQP\0\0\x09\x01";
        assert_eq!(mend(&mut refusal), 8);
    }

    proptest! {
        #[test]
        fn no_bytes_panic_and_none_is_added(kind in 0_u8..10, mut bytes: Vec<u8>) {
            let length = bytes.len();
            prop_assert!(mend(&mut bytes) <= length);
            let mut frame = frame(kind, &[&bytes]);
            let length = frame.len();
            prop_assert_eq!(mend(&mut frame), length);
            prop_assert_eq!(frame.len(), length);
        }
    }
}
