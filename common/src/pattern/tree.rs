//! Many patterns at once: which of them match costs what the words of a type and the patterns that
//! agree with them so far cost, not what all patterns do.

use std::collections::{HashMap, HashSet};

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

/// Nodes, each once.
#[derive(Default)]
struct Reached {
    nodes: Vec<usize>,
    /// The same, once they are many: whoever writes patterns may see to that.
    known: HashSet<usize>,
}

/// So few are looked through faster than looked up.
const FEW: usize = 32;

impl Reached {
    /// Adds one; answers whether it is new.
    fn insert(&mut self, at: usize) -> bool {
        if self.nodes.len() == FEW {
            self.known.extend(&self.nodes);
        }
        let is_new =
            if self.nodes.len() < FEW { !self.nodes.contains(&at) } else { self.known.insert(at) };
        if is_new {
            self.nodes.push(at);
        }
        is_new
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
        let mut reached = Reached::default();
        self.reach(0, &mut reached);
        for word in event_type.as_str().split('.') {
            let before = std::mem::take(&mut reached);
            for at in before.nodes {
                let node = &self.nodes[at];
                if node.is_hash {
                    self.reach(at, &mut reached);
                }
                for next in node.words.get(word).into_iter().chain(&node.star) {
                    self.reach(*next, &mut reached);
                }
            }
        }
        reached.nodes.into_iter().filter_map(|at| self.nodes[at].value.as_ref()).collect()
    }

    /// Adds a node, and those that follow from it without a word.
    fn reach(&self, at: usize, reached: &mut Reached) {
        let mut next = Some(at);
        while let Some(at) = next.filter(|at| reached.insert(*at)) {
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
            patterns in prop::collection::btree_set(words(&["a", "b", "*", "#"]), 0..120),
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

    /// Each word reaches most nodes; whether one is new must not cost a look at all of them.
    #[test]
    fn nor_are_many_patterns_of_nothing_but_wildcards() {
        let mut tree = PatternTree::default();
        let patterns: Vec<Pattern> = (0..4096_u32)
            .map(|n| {
                let words = (0..12).map(|bit| if n >> bit & 1 == 0 { "*" } else { "#" });
                words.collect::<Vec<_>>().join(".").parse().unwrap()
            })
            .collect();
        for pattern in &patterns {
            tree.insert(pattern, ());
        }
        for words in [4, 12, 60] {
            let event_type: EventType = vec!["a"; words].join(".").parse().unwrap();
            let expected = patterns.iter().filter(|pattern| pattern.matches(&event_type)).count();
            assert_eq!(tree.matching(&event_type).len(), expected, "{words} words");
        }
    }
}
