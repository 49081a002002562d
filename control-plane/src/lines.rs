//! Lines out of a body that comes in pieces, each of bounded length.

/// A line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Line {
    /// Its bytes, without the newline.
    Text(Vec<u8>),
    /// It was longer than a line may be.
    TooLong,
}

/// What has come of a line whose end has not.
#[derive(Debug)]
pub(crate) struct Lines {
    begun: Vec<u8>,
    is_too_long: bool,
    most: usize,
}

impl Lines {
    /// Lines of at most so many bytes.
    pub(crate) fn new(most: usize) -> Self {
        Self { begun: Vec::new(), is_too_long: false, most }
    }

    /// The lines that end in this piece.
    pub(crate) fn push(&mut self, piece: &[u8]) -> Vec<Line> {
        let mut parts = piece.split(|byte| *byte == b'\n');
        // What follows the last newline has not ended.
        let rest = parts.next_back().unwrap_or_default();
        let mut lines = Vec::new();
        for part in parts {
            self.add(part);
            lines.push(self.take());
        }
        self.add(rest);
        lines
    }

    /// The last line, if it has no newline.
    pub(crate) fn end(&mut self) -> Option<Line> {
        (self.is_too_long || !self.begun.is_empty()).then(|| self.take())
    }

    fn add(&mut self, part: &[u8]) {
        if self.is_too_long || self.begun.len() + part.len() > self.most {
            self.is_too_long = true;
            self.begun = Vec::new();
        } else {
            self.begun.extend_from_slice(part);
        }
    }

    fn take(&mut self) -> Line {
        let text = std::mem::take(&mut self.begun);
        if std::mem::take(&mut self.is_too_long) { Line::TooLong } else { Line::Text(text) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_the_same_however_they_come() {
        let text = b"one\n\ntwo two\n0123456789ab\nlast";
        let expected = [
            Line::Text(b"one".to_vec()),
            Line::Text(vec![]),
            Line::Text(b"two two".to_vec()),
            Line::TooLong,
            Line::Text(b"last".to_vec()),
        ];
        for size in 1..=text.len() {
            let mut lines = Lines::new(10);
            let mut found: Vec<Line> =
                text.chunks(size).flat_map(|piece| lines.push(piece)).collect();
            found.extend(lines.end());
            assert_eq!(found, expected, "in pieces of {size}");
            assert_eq!(lines.end(), None);
        }
    }

    #[test]
    fn a_line_without_end_takes_no_memory() {
        let mut lines = Lines::new(10);
        for _ in 0..1000 {
            assert_eq!(lines.push(&[b'x'; 100]), []);
        }
        assert!(lines.begun.capacity() <= 100);
        assert_eq!(lines.push(b"\nnext\n"), [Line::TooLong, Line::Text(b"next".to_vec())]);
    }
}
