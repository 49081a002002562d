//! Durations as people write them in configuration: `500ms`, `5s`, `10m`, `2h`, `1d`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::text::serde_as_text;

/// A duration written as one whole number and one unit, and the unit (in milliseconds), so that
/// `24h` reads back as it was written and not as `1d`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DurationText(pub Duration, u64);

/// A text that is not a duration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a duration: write a whole number and a unit (ms, s, m, h or d), such as 500ms, 5s or 2h"
)]
pub struct InvalidDuration;

/// Units, largest first, in milliseconds.
const UNITS: [(&str, u64); 5] =
    [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];

impl FromStr for DurationText {
    type Err = InvalidDuration;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.find(|c: char| !c.is_ascii_digit()).ok_or(InvalidDuration)?;
        let (number, unit) = text.split_at(digits);
        let number: u64 = number.parse().map_err(|_| InvalidDuration)?;
        let (_, unit) = UNITS.iter().find(|(name, _)| *name == unit).ok_or(InvalidDuration)?;
        let millis = number.checked_mul(*unit).ok_or(InvalidDuration)?;
        Ok(Self(Duration::from_millis(millis), *unit))
    }
}

impl From<Duration> for DurationText {
    /// The duration, cut to milliseconds, in the largest unit that says it exactly.
    fn from(duration: Duration) -> Self {
        let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let unit = UNITS
            .iter()
            .map(|(_, unit)| *unit)
            .find(|unit| millis.is_multiple_of(*unit))
            .unwrap_or(1);
        Self(Duration::from_millis(millis), unit)
    }
}

impl fmt::Display for DurationText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX);
        let name = UNITS.iter().find(|(_, unit)| *unit == self.1).map_or("ms", |(name, _)| name);
        write!(f, "{}{name}", millis / self.1.max(1))
    }
}

serde_as_text!(DurationText);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_one_number_and_one_unit_and_writes_them_back() {
        for (text, millis) in [
            ("500ms", 500),
            ("5s", 5000),
            ("10m", 600_000),
            ("2h", 7_200_000),
            ("24h", 86_400_000),
            ("1d", 86_400_000),
            ("0s", 0),
        ] {
            let duration: DurationText = text.parse().unwrap();
            assert_eq!(
                (duration.0, duration.to_string().as_str()),
                (Duration::from_millis(millis), text)
            );
        }
        for wrong in
            ["", "5", "s", "-5s", "1.5s", "5 s", "5S", "1h30m", "99999999999999999d", "５s"]
        {
            assert_eq!(wrong.parse::<DurationText>(), Err(InvalidDuration), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(millis in 0..=u64::MAX / 2) {
            let duration = DurationText::from(Duration::from_millis(millis));
            prop_assert_eq!(duration.0, Duration::from_millis(millis));
            prop_assert_eq!(duration.to_string().parse(), Ok(duration));
        }
    }
}
