//! Many patterns at once: which of them match costs what the words of a type and the patterns that
//! agree with them so far cost, not what all patterns do.

use std::collections::HashMap;

use super::Pattern;
use crate::event::EventType;

/// Values by pattern.
#[derive(Clone, Debug)]
pub struct PatternTree<T> {
    /// The first is the root.
    nodes: Vec<Node<T>>,
}

/// What the words so far have led to.
#[derive(Clone, Debug)]
struct Node<T> {
    words: HashMap<Box<str>, usize>,
    star: Option<usize>,
    hash: Option<usize>,
    /// Whether it was reached by `#`, which goes on matching words.
    is_hash: bool,
    value: Option<T>,
}

impl<T> Node<T> {
    fn new(is_hash: bool) -> Self {
        Self { words: HashMap::new(), star: None, hash: None, is_hash, value: None }
    }
}

impl<T> Default for PatternTree<T> {
    fn default() -> Self {
        Self { nodes: vec![Node::new(false)] }
    }
}

impl<T> PatternTree<T> {
    /// Gives a pattern its value; one that it had is replaced.
    pub fn insert(&mut self, pattern: &Pattern, value: T) {
        let mut at = 0;
        for word in pattern.as_str().split('.') {
            let fresh = self.nodes.len();
            let node = &mut self.nodes[at];
            at = match word {
                "*" => *node.star.get_or_insert(fresh),
                "#" => *node.hash.get_or_insert(fresh),
                _ => *node.words.entry(word.into()).or_insert(fresh),
            };
            if at == fresh {
                self.nodes.push(Node::new(word == "#"));
            }
        }
        self.nodes[at].value = Some(value);
    }

    /// All values.
    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.nodes.iter().filter_map(|node| node.value.as_ref())
    }

    /// The values of the patterns that match.
    #[must_use]
    pub fn matching(&self, event_type: &EventType) -> Vec<&T> {
        let mut reached = Vec::new();
        self.reach(0, &mut reached);
        for word in event_type.as_str().split('.') {
            let before = std::mem::take(&mut reached);
            for at in before {
                let node = &self.nodes[at];
                if node.is_hash {
                    self.reach(at, &mut reached);
                }
                for next in node.words.get(word).into_iter().chain(&node.star) {
                    self.reach(*next, &mut reached);
                }
            }
        }
        reached.into_iter().filter_map(|at| self.nodes[at].value.as_ref()).collect()
    }

    /// Adds a node, and those that follow from it without a word.
    fn reach(&self, at: usize, reached: &mut Vec<usize>) {
        let mut next = Some(at);
        while let Some(at) = next.filter(|at| !reached.contains(at)) {
            reached.push(at);
            next = self.nodes[at].hash;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn words(alphabet: &'static [&'static str]) -> impl Strategy<Value = String> {
        prop::collection::vec(prop::sample::select(alphabet), 1..6)
            .prop_map(|words| words.join("."))
    }

    proptest! {
        #[test]
        fn a_tree_finds_what_each_pattern_matches_by_itself(
            patterns in prop::collection::btree_set(words(&["a", "b", "*", "#"]), 0..40),
            event_type in words(&["a", "b", "c"]),
        ) {
            let patterns: Vec<Pattern> =
                patterns.iter().map(|pattern| pattern.parse().unwrap()).collect();
            let event_type: EventType = event_type.parse().unwrap();
            let mut tree = PatternTree::default();
            for pattern in &patterns {
                tree.insert(pattern, pattern.clone());
            }
            let mut found: Vec<Pattern> = tree.matching(&event_type).into_iter().cloned().collect();
            found.sort();
            let expected: Vec<Pattern> =
                patterns.into_iter().filter(|pattern| pattern.matches(&event_type)).collect();
            prop_assert_eq!(found, expected);
        }
    }

    #[test]
    fn many_hashes_are_no_trap() {
        let mut tree = PatternTree::default();
        let pattern = "#.a.".repeat(31) + "#";
        tree.insert(&pattern.parse().unwrap(), 1);
        let event_type = vec!["a"; 60].join(".");
        assert_eq!(tree.matching(&event_type.parse().unwrap()), [&1]);
    }
}
