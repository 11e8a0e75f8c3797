//! Which words of a list does a text begin with?

use std::ops::Range;

/// Words in the order of their bytes. A prefix is followed byte by byte through the range of words that share it, so a search
/// takes no recursion and no memory of its own, whatever the words are.
#[derive(Clone, Debug, Default)]
pub(in crate::tokens) struct Prefixes {
    words: Vec<(Box<str>, u32)>,
    /// Where the words with each first byte are.
    first: Vec<Range<usize>>,
}

impl Prefixes {
    /// Of two entries for one word, the first counts. Empty words are left out.
    pub(in crate::tokens) fn new<'a>(words: impl IntoIterator<Item = (&'a str, u32)>) -> Self {
        let mut words: Vec<(Box<str>, u32)> =
            words.into_iter().filter(|(word, _)| !word.is_empty()).map(|(word, id)| (word.into(), id)).collect();
        words.sort_by(|a, b| a.0.as_bytes().cmp(b.0.as_bytes()));
        words.dedup_by(|later, kept| later.0 == kept.0);
        let first = |byte: u8| {
            let start = words.partition_point(|(word, _)| word.as_bytes()[0] < byte);
            start..words.partition_point(|(word, _)| word.as_bytes()[0] <= byte)
        };
        let first = if words.is_empty() { Vec::new() } else { (0..=255).map(first).collect() };
        Self { words, first }
    }

    pub(in crate::tokens) fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// Calls `found` with the length in bytes and the id of every word that `text` begins with, shortest first.
    pub(in crate::tokens) fn each(&self, text: &[u8], mut found: impl FnMut(usize, u32)) {
        let Some(mut range) = text.first().and_then(|byte| self.first.get(usize::from(*byte))).cloned() else { return };
        let mut depth = 1;
        while let Some((word, id)) = self.words.get(range.clone()).and_then(<[_]>::first) {
            if word.len() == depth {
                found(depth, *id);
                range.start += 1;
            }
            let Some(next) = text.get(depth) else { return };
            let words = &self.words[range.clone()];
            let start = range.start + words.partition_point(|(word, _)| word.as_bytes()[depth] < *next);
            let end = range.start + words.partition_point(|(word, _)| word.as_bytes()[depth] <= *next);
            range = start..end;
            depth += 1;
        }
    }

    /// The longest word that `text` begins with: its length in bytes and its id.
    pub(in crate::tokens) fn longest(&self, text: &str) -> Option<(usize, u32)> {
        let mut longest = None;
        self.each(text.as_bytes(), |length, id| longest = Some((length, id)));
        longest
    }

    /// Splits `text` at every word, the leftmost first and of those the longest: (piece of text, the word's id or `None`).
    pub(in crate::tokens) fn split<'t>(&self, text: &'t str) -> Vec<(&'t str, Option<u32>)> {
        let mut parts = Vec::new();
        let (mut start, mut at) = (0, 0);
        while !self.is_empty() && at < text.len() {
            if let Some((length, id)) = self.longest(&text[at..]) {
                if start < at {
                    parts.push((&text[start..at], None));
                }
                parts.push((&text[at..at + length], Some(id)));
                at += length;
                start = at;
            } else {
                at += text[at..].chars().next().map_or(1, char::len_utf8);
            }
        }
        if start < text.len() {
            parts.push((&text[start..], None));
        }
        parts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_prefix_is_found_and_a_text_is_split_at_the_longest() {
        let prefixes = Prefixes::new([("a", 1), ("abc", 3), ("ab", 2), ("äb", 4), ("b", 5), ("a", 9), ("", 7)]);
        let mut found = Vec::new();
        prefixes.each("abcd".as_bytes(), |length, id| found.push((length, id)));
        assert_eq!(found, [(1, 1), (2, 2), (3, 3)]);
        assert_eq!(prefixes.longest("äbc"), Some((3, 4)));
        assert_eq!(prefixes.longest("c"), None);
        assert_eq!(prefixes.split("xabcäyb"), [("x", None), ("abc", Some(3)), ("äy", None), ("b", Some(5))]);
        assert_eq!(Prefixes::default().split("ab"), [("ab", None)]);
        assert_eq!(prefixes.longest(""), None);
    }
}
