//! Points in time: milliseconds since the Unix epoch in memory and on the wire between services,
//! RFC 3339 UTC in JSON that people read.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::text::serde_as_text;

/// A point in time, in whole milliseconds since the Unix epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

/// A text that is not an RFC 3339 date and time with an offset.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an RFC 3339 date and time with an offset, such as 2026-11-20T10:00:00Z")]
pub struct InvalidTimestamp;

/// The first millisecond that RFC 3339's four-digit years can say, and the last that the library can,
/// which keeps a margin of 26 hours for offsets.
const YEAR_0: i64 = -62_167_219_200_000;
const YEAR_9999: i64 = 253_402_207_200_000;

impl Timestamp {
    /// The time so many milliseconds after the Unix epoch, brought inside the years 0 to 9999.
    #[must_use]
    pub fn from_millis(millis: i64) -> Self {
        Self(millis.clamp(YEAR_0, YEAR_9999))
    }

    /// The time so many seconds after the Unix epoch.
    #[must_use]
    pub fn from_seconds(seconds: u64) -> Self {
        Self::from_millis(i64::try_from(seconds).unwrap_or(i64::MAX).saturating_mul(1000))
    }

    /// Milliseconds since the Unix epoch.
    #[must_use]
    pub fn as_millis(self) -> i64 {
        self.0
    }

    /// Microseconds since the Unix epoch; 0 before it.
    #[must_use]
    pub fn as_micros(self) -> u64 {
        u64::try_from(self.0).unwrap_or(0).saturating_mul(1000)
    }

    /// Whole seconds since the Unix epoch, rounded down.
    #[must_use]
    pub fn as_seconds(self) -> i64 {
        self.0.div_euclid(1000)
    }

    /// This time moved later, never past the year 9999.
    #[must_use]
    pub fn plus(self, by: Duration) -> Self {
        Self::from_millis(self.0.saturating_add(millis(by)))
    }

    /// This time moved earlier.
    #[must_use]
    pub fn minus(self, by: Duration) -> Self {
        Self::from_millis(self.0.saturating_sub(millis(by)))
    }

    /// How long after `earlier` this is; zero when it is not after.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = jiff::Timestamp::from_millisecond(self.0).map_err(|_| fmt::Error)?;
        if self.0.rem_euclid(1000) == 0 { write!(f, "{time:.0}") } else { write!(f, "{time:.3}") }
    }
}

impl FromStr for Timestamp {
    type Err = InvalidTimestamp;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // The library also takes bracketed zone names and other extensions of RFC 9557.
        if text.len() > 40 || text.contains('[') {
            return Err(InvalidTimestamp);
        }
        let time: jiff::Timestamp = text.parse().map_err(|_| InvalidTimestamp)?;
        Ok(Self::from_millis(time.as_millisecond()))
    }
}

serde_as_text!(Timestamp);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn is_written_in_utc_with_milliseconds_only_where_there_are_some() {
        for (text, written) in [
            ("2026-11-20T10:00:00Z", "2026-11-20T10:00:00Z"),
            ("2026-11-20T11:00:00.5+01:00", "2026-11-20T10:00:00.500Z"),
            ("1969-12-31T23:59:59.999Z", "1969-12-31T23:59:59.999Z"),
        ] {
            assert_eq!(text.parse::<Timestamp>().unwrap().to_string(), written);
        }
        for wrong in [
            "",
            "2026-11-20",
            "2026-11-20T10:00:00",
            "1700000000",
            "2026-13-01T00:00:00Z",
            "2026-11-20T10:00:00+01:00[Europe/Paris]",
        ] {
            assert_eq!(wrong.parse::<Timestamp>(), Err(InvalidTimestamp), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(millis in YEAR_0..=YEAR_9999) {
            let time = Timestamp::from_millis(millis);
            prop_assert_eq!(time.to_string().parse::<Timestamp>(), Ok(time));
        }
    }
}
