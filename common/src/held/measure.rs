//! How large a stream is, from some place on. RabbitMQ does not tell, so whoever reads it counts.

use std::collections::VecDeque;
use std::fmt;
use std::str::FromStr;

/// How many bytes of a stream stand from an offset on, known to within a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Measure {
    /// Offsets, and how many bytes were counted before each.
    marks: VecDeque<(u64, u64)>,
    total: u64,
    step: u64,
}

/// A text that is no measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is not a number of bytes, and then marks as offset:bytes")]
pub struct InvalidMeasure;

impl Measure {
    /// Of nothing yet; a step has so many bytes.
    #[must_use]
    pub fn new(step: u64) -> Self {
        Self { marks: VecDeque::new(), total: 0, step }
    }

    /// The same as it was saved, with this step from now on.
    #[must_use]
    pub fn with_step(self, step: u64) -> Self {
        Self { step, ..self }
    }

    /// A message of so many bytes stands at this offset, after all others.
    pub fn add(&mut self, offset: u64, bytes: u64) {
        if self.marks.back().is_none_or(|(_, before)| self.total - before >= self.step) {
            self.marks.push_back((offset, self.total));
        }
        self.total = self.total.saturating_add(bytes);
    }

    /// How many bytes were counted of what is not forgotten.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.marks.front().map_or(0, |(_, before)| self.total - before)
    }

    /// Nobody asks any more for what stands before this offset.
    pub fn forget_before(&mut self, offset: u64) {
        while self.marks.get(1).is_some_and(|(second, _)| *second <= offset) {
            self.marks.pop_front();
        }
    }

    /// The last offset before which so much stands that at most so many bytes stand after it; `None` if there are no
    /// more bytes than that.
    #[must_use]
    pub fn last_before(&self, bytes: u64) -> Option<u64> {
        if self.bytes() <= bytes {
            return None;
        }
        let later = self.marks.iter().skip(1).find(|(_, before)| self.total - before <= bytes);
        // What was counted since the last mark is known as a whole only.
        Some(later.map_or(u64::MAX, |(offset, _)| offset.saturating_sub(1)))
    }
}

impl fmt::Display for Measure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.total)?;
        self.marks.iter().try_for_each(|(offset, before)| write!(f, " {offset}:{before}"))
    }
}

impl FromStr for Measure {
    type Err = InvalidMeasure;

    fn from_str(text: &str) -> Result<Self, InvalidMeasure> {
        let read = || {
            let mut parts = text.split(' ');
            let total = parts.next()?.parse().ok()?;
            let mark = |part: &str| {
                let (offset, before) = part.split_once(':')?;
                Some((offset.parse().ok()?, before.parse().ok().filter(|before| *before <= total)?))
            };
            Some(Self { total, marks: parts.map(mark).collect::<Option<_>>()?, step: 0 })
        };
        read().ok_or(InvalidMeasure)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_stands_from_a_place_on_is_known() {
        let mut measure = Measure::new(100);
        assert_eq!((measure.bytes(), measure.last_before(0)), (0, None));
        for offset in 0..10 {
            measure.add(offset, 50);
        }
        assert_eq!(measure.bytes(), 500);
        // Marks stand at each second one.
        for (bytes, last) in
            [(500, None), (499, Some(1)), (300, Some(3)), (100, Some(7)), (99, Some(u64::MAX))]
        {
            assert_eq!(measure.last_before(bytes), last, "{bytes}");
        }
        let read: Measure = measure.to_string().parse().unwrap();
        assert_eq!(read.with_step(100), measure);
        measure.forget_before(5);
        assert_eq!(measure.bytes(), 300);
        measure.forget_before(1000);
        assert_eq!((measure.bytes(), measure.last_before(99)), (100, Some(u64::MAX)));
        for wrong in ["", "x", "5 1", "5 1:6", "5 1:2:3", "5  1:2"] {
            assert!(wrong.parse::<Measure>().is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn it_is_right_to_within_a_step(
            messages in prop::collection::vec((1_u64..5, 0_u64..50), 1..200), step in 1_u64..200,
            forgotten in 0_u64..500, most in 0_u64..5000,
        ) {
            let (mut measure, mut places, mut offset) = (Measure::new(step), Vec::new(), 0);
            for (gap, bytes) in messages {
                offset += gap;
                measure.add(offset, bytes);
                places.push((offset, bytes));
            }
            measure.forget_before(forgotten);
            let from = |first: u64| {
                places.iter().filter(|(at, _)| *at >= first).map(|(_, bytes)| bytes).sum::<u64>()
            };
            // A step may be exceeded by one message.
            let slack = step + 50;
            let exactly = from(forgotten);
            prop_assert!((exactly.min(measure.bytes())..=exactly + slack).contains(&measure.bytes()));
            match measure.last_before(most) {
                None => prop_assert!(measure.bytes() <= most),
                Some(u64::MAX) => prop_assert!(most < slack),
                Some(last) => {
                    prop_assert!(from(last + 1) <= most);
                    prop_assert!(from(last + 1) + slack > most);
                }
            }
        }
    }
}
