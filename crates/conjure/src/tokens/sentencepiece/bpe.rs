//! Merging by score, best first and of equals the leftmost: `src/bpe_model.cc` of SentencePiece, after Sennrich et al. 2016,
//! <https://arxiv.org/abs/1508.07909>. llama.cpp reads SentencePiece vocabularies in the same way.
//!
//! The `tokenizers` crate merges by a list of pairs. Made from scores, such a list orders two ways to the same piece by their
//! halves and not by their place in the text, so it gives other ids for repeated letters; hence this implementation.

use super::prefixes::Prefixes;
use super::{Piece, PieceKind, Segment};
use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};
use std::ops::Range;

/// A run of characters that is one piece so far. Empty once it has gone into its left neighbour.
struct Symbol {
    range: Range<usize>,
    previous: Option<usize>,
    next: Option<usize>,
    frozen: bool,
}

/// Two neighbours that would make a piece.
struct Pair {
    score: f32,
    left: usize,
    right: usize,
    length: usize,
}

impl Ord for Pair {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for Pair {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Pair {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Pair {}

/// Segments of `text`, in order. `mergeable` holds the pieces that characters may grow into, `id` any piece's id; texts in
/// `keep` are neither split nor merged.
pub(super) fn segments(
    text: &str,
    pieces: &[Piece],
    mergeable: &HashMap<String, u32>,
    keep: &Prefixes,
    id: impl Fn(&str) -> u32,
) -> Vec<Segment> {
    let mut symbols: Vec<Symbol> = Vec::with_capacity(text.len());
    let mut at = 0;
    while let Some(c) = text[at..].chars().next() {
        let kept = keep.longest(&text[at..]);
        let end = at + kept.map_or(c.len_utf8(), |(length, _)| length);
        let n = symbols.len();
        let next = (end < text.len()).then_some(n + 1);
        symbols.push(Symbol { range: at..end, previous: n.checked_sub(1), next, frozen: kept.is_some() });
        at = end;
    }

    let mut queue = BinaryHeap::new();
    // How pieces that may not be used came about, so that they can be taken apart again.
    let mut unused: HashMap<&str, (Range<usize>, Range<usize>)> = HashMap::new();
    let mut consider = |symbols: &[Symbol], queue: &mut BinaryHeap<Pair>, left: Option<usize>, right: Option<usize>| {
        let (Some(left), Some(right)) = (left, right) else { return };
        let (a, b) = (&symbols[left], &symbols[right]);
        if a.frozen || b.frozen {
            return;
        }
        let joined = &text[a.range.start..b.range.end];
        let Some(found) = mergeable.get(joined) else { return };
        let piece = &pieces[*found as usize];
        queue.push(Pair { score: piece.score, left, right, length: joined.len() });
        if piece.kind == PieceKind::Unused {
            unused.insert(joined, (a.range.clone(), b.range.clone()));
        }
    };
    for right in 1..symbols.len() {
        consider(&symbols, &mut queue, Some(right - 1), Some(right));
    }
    while let Some(pair) = queue.pop() {
        let (a, b) = (symbols[pair.left].range.clone(), symbols[pair.right].range.clone());
        if a.is_empty() || b.is_empty() || a.len() + b.len() != pair.length {
            continue;
        }
        symbols[pair.left].range.end = b.end;
        symbols[pair.right].range = b.end..b.end;
        let next = symbols[pair.right].next;
        symbols[pair.left].next = next;
        if let Some(next) = next {
            symbols[next].previous = Some(pair.left);
        }
        consider(&symbols, &mut queue, symbols[pair.left].previous, Some(pair.left));
        consider(&symbols, &mut queue, Some(pair.left), next);
    }

    let mut segments = Vec::new();
    let mut at = (!symbols.is_empty()).then_some(0);
    while let Some(n) = at {
        let mut waiting = vec![symbols[n].range.clone()];
        while let Some(range) = waiting.pop() {
            let found = id(&text[range.clone()]);
            match unused.get(&text[range.clone()]) {
                Some((left, right)) if pieces[found as usize].kind == PieceKind::Unused && left.len() < range.len() => {
                    waiting.push(right.clone());
                    waiting.push(left.clone());
                }
                _ => segments.push((range, found)),
            }
        }
        at = symbols[n].next;
    }
    segments
}
