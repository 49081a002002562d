//! The names of things: tenants, events and subscriptions. Each is checked once, here, and
//! trusted everywhere after.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::text::serde_as_text;

/// Why a text is not an id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidId {
    /// Nothing was given.
    #[error("is empty")]
    Empty,
    /// More characters than an id of this kind may have.
    #[error("is longer than {max} characters")]
    TooLong {
        /// How many it may have.
        max: usize,
    },
    /// A character other than `A-Z a-z 0-9 _ -`.
    #[error("may only have letters, digits, '_' and '-'")]
    Character,
    /// Not of the form that subscription ids have.
    #[error("is not a subscription id (sub_ and 24 hexadecimal digits)")]
    NotASubscription,
}

fn check(text: &str, max: usize) -> Result<(), InvalidId> {
    if text.is_empty() {
        return Err(InvalidId::Empty);
    }
    if text.len() > max {
        return Err(InvalidId::TooLong { max });
    }
    if !text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-') {
        return Err(InvalidId::Character);
    }
    Ok(())
}

/// Gives an id type its reading, writing and (de)serialisation as text.
macro_rules! text_id {
    ($name:ident) => {
        impl $name {
            /// The id as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        serde_as_text!($name);
    };
}

/// One customer of the platform that runs Doorbell: 1–64 of `[A-Za-z0-9_-]`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TenantId(Arc<str>);
text_id!(TenantId);

impl FromStr for TenantId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        check(text, 64)?;
        Ok(Self(text.into()))
    }
}

/// To whom an event goes: one tenant, or everyone (`*`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Addressee {
    /// The subscriptions of one tenant.
    Tenant(TenantId),
    /// A broadcast: the subscriptions of all tenants.
    Everyone,
}

impl Addressee {
    /// The addressee as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Tenant(tenant) => tenant.as_str(),
            Self::Everyone => "*",
        }
    }
}

impl fmt::Display for Addressee {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Addressee {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "*" { Ok(Self::Everyone) } else { text.parse().map(Self::Tenant) }
    }
}

serde_as_text!(Addressee);

/// An event's id, unique within its tenant: 1–128 of `[A-Za-z0-9_-]`. Receivers see it as
/// `webhook-id`, their idempotency key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventId(Arc<str>);
text_id!(EventId);

impl FromStr for EventId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        check(text, 128)?;
        Ok(Self(text.into()))
    }
}

/// The number of a slot: subscriptions are stored 256 to a slot, in the order of their creation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotNumber(pub u32);

impl SlotNumber {
    /// How many subscriptions a slot takes.
    pub const CAPACITY: u64 = 256;
    /// One past the largest slot number that an id has room for.
    pub const END: u32 = 1 << 24;

    /// The slot of the `n`th subscription ever created (from 0); `None` when ids are used up
    /// (after 2^32 of them).
    #[must_use]
    pub fn of_nth(n: u64) -> Option<Self> {
        u32::try_from(n / Self::CAPACITY).ok().filter(|slot| *slot < Self::END).map(Self)
    }
}

/// A subscription's id: `sub_`, its slot as 6 hexadecimal digits, and 18 random ones. Kept as the
/// numbers that it stands for, because a dispatcher may know a million of them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SubscriptionId {
    /// First, so that ids are in the order of their slots, as their texts are.
    slot: SlotNumber,
    random: [u8; 9],
}
serde_as_text!(SubscriptionId);

impl SubscriptionId {
    /// The id for a subscription in `slot` (below [`SlotNumber::END`]), told apart from the slot's
    /// others by `random` (of which 72 bits are used).
    #[must_use]
    pub fn new(slot: SlotNumber, random: u128) -> Self {
        let mut bytes = [0; 9];
        bytes.copy_from_slice(random.to_be_bytes().split_at(16 - 9).1);
        Self { slot, random: bytes }
    }

    /// The slot that holds the subscription.
    #[must_use]
    pub fn slot(&self) -> SlotNumber {
        self.slot
    }
}

impl fmt::Display for SubscriptionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let [_, slot @ ..] = self.slot.0.to_be_bytes();
        let mut text = *b"sub_000000000000000000000000";
        let digits = text.iter_mut().skip(4);
        // Not by the formatter of numbers: each delivery writes its subscription's id three times.
        let nibbles = slot.iter().chain(&self.random).flat_map(|byte| [byte >> 4, byte & 0xf]);
        for (digit, nibble) in digits.zip(nibbles) {
            *digit = DIGITS[usize::from(nibble)];
        }
        f.write_str(str::from_utf8(&text).map_err(|_| fmt::Error)?)
    }
}

impl FromStr for SubscriptionId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.strip_prefix("sub_").ok_or(InvalidId::NotASubscription)?;
        let is_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if digits.len() != 24 || !digits.bytes().all(is_hex) {
            return Err(InvalidId::NotASubscription);
        }
        let number = u128::from_str_radix(digits, 16).map_err(|_| InvalidId::NotASubscription)?;
        let slot = u32::try_from(number >> 72).map_err(|_| InvalidId::NotASubscription)?;
        Ok(Self::new(SlotNumber(slot), number))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ids_have_letters_digits_underscores_and_hyphens() {
        for good in ["a", "evt_1-Z", &"x".repeat(128)] {
            assert!(good.parse::<EventId>().is_ok(), "{good}");
        }
        for (wrong, why) in [
            ("", InvalidId::Empty),
            ("a.b", InvalidId::Character),
            ("ä", InvalidId::Character),
            ("a b", InvalidId::Character),
            (&"x".repeat(129), InvalidId::TooLong { max: 128 }),
        ] {
            assert_eq!(wrong.parse::<EventId>(), Err(why));
        }
        assert_eq!("x".repeat(65).parse::<TenantId>(), Err(InvalidId::TooLong { max: 64 }));
        assert_eq!("*".parse::<TenantId>(), Err(InvalidId::Character));
    }

    #[test]
    fn a_subscription_id_is_written_in_one_way_only() {
        let id = "sub_00000a0123456789abcdef01";
        assert_eq!(id.parse::<SubscriptionId>().unwrap().to_string(), id);
        for wrong in [
            "",
            "sub_",
            "sub_00000a0123456789abcdef0",
            "sub_00000a0123456789abcdef011",
            "sub_00000A0123456789abcdef01",
            "sub_+0000a0123456789abcdef01",
            "00000a0123456789abcdef01",
        ] {
            assert_eq!(wrong.parse::<SubscriptionId>(), Err(InvalidId::NotASubscription));
        }
    }

    #[test]
    fn slots_fill_in_order_and_end() {
        assert_eq!(SlotNumber::of_nth(0), Some(SlotNumber(0)));
        assert_eq!(SlotNumber::of_nth(255), Some(SlotNumber(0)));
        assert_eq!(SlotNumber::of_nth(256), Some(SlotNumber(1)));
        assert_eq!(SlotNumber::of_nth((1 << 32) - 1), Some(SlotNumber(SlotNumber::END - 1)));
        assert_eq!(SlotNumber::of_nth(1 << 32), None);
    }

    proptest! {
        #[test]
        fn a_subscription_id_tells_its_slot(slot in 0..SlotNumber::END, random: u128) {
            let id = SubscriptionId::new(SlotNumber(slot), random);
            prop_assert_eq!(id.slot(), SlotNumber(slot));
            prop_assert_eq!(id.to_string().len(), 28);
            prop_assert_eq!(id.to_string().parse::<SubscriptionId>(), Ok(id));
        }

        #[test]
        fn ids_are_in_the_order_of_their_texts(
            slots in (0..SlotNumber::END, 0..SlotNumber::END), random: (u128, u128),
        ) {
            let one = SubscriptionId::new(SlotNumber(slots.0), random.0);
            let other = SubscriptionId::new(SlotNumber(slots.1), random.1);
            prop_assert_eq!(one.cmp(&other), one.to_string().cmp(&other.to_string()));
        }
    }
}
