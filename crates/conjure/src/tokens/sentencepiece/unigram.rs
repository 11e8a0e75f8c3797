//! The most probable segmentation: Kudo 2018, "Subword Regularization", <https://arxiv.org/abs/1804.10959>, section 3.2.

use super::{Piece, PieceKind, Segment};
use crate::tokens::sentencepiece::prefixes::Prefixes;

/// What a character that no piece covers costs beside the rarest piece.
const UNKNOWN_PENALTY: f32 = 10.0;

#[derive(Clone, Debug)]
pub(super) struct Unigram {
    trie: Prefixes,
    unknown_score: f32,
    best_score: f32,
}

/// The best way to reach a position: the piece that ends there and where it starts.
#[derive(Clone, Copy)]
struct Best {
    score: f32,
    start: usize,
    id: u32,
}

impl Unigram {
    pub(super) fn new(pieces: &[Piece]) -> Self {
        let found =
            |piece: &Piece| matches!(piece.kind, PieceKind::Normal | PieceKind::UserDefined | PieceKind::Unused);
        let words =
            pieces.iter().zip(0..).filter(|(piece, _)| found(piece)).map(|(piece, id)| (piece.text.as_str(), id));
        let scores = || pieces.iter().filter(|piece| piece.kind == PieceKind::Normal).map(|piece| piece.score);
        Self {
            trie: Prefixes::new(words),
            unknown_score: scores().fold(f32::MAX, f32::min) - UNKNOWN_PENALTY,
            // The reference starts at C's FLT_MIN, the smallest positive number.
            best_score: scores().fold(f32::MIN_POSITIVE, f32::max),
        }
    }

    /// Segments of `text`, in order. The sums are rounded as in the reference, which decides between ways that are equally
    /// good: in f32, but for a user's own pieces in f64.
    pub(super) fn segments(&self, text: &str, pieces: &[Piece], unknown: u32) -> Vec<Segment> {
        let mut best: Vec<Option<Best>> = vec![None; text.len() + 1];
        for (start, c) in text.char_indices() {
            let here = best[start].map_or(0.0, |best| best.score);
            let mut single = false;
            let mut offer = |end: usize, score: f64, id: u32| {
                if best[end].is_none_or(|best| score > f64::from(best.score)) {
                    best[end] = Some(Best { score: score as f32, start, id });
                }
            };
            self.trie.each(&text.as_bytes()[start..], |length, id| {
                let piece = &pieces[id as usize];
                let sum = match piece.kind {
                    PieceKind::Unused => return,
                    PieceKind::UserDefined => f64::from(length as f32 * self.best_score) - 0.1 + f64::from(here),
                    _ => f64::from(piece.score + here),
                };
                offer(start + length, sum, id);
                single |= length == c.len_utf8();
            });
            if !single {
                offer(start + c.len_utf8(), f64::from(self.unknown_score + here), unknown);
            }
        }
        let mut segments = Vec::new();
        let mut end = text.len();
        while let Some(node) = best[end].filter(|_| end > 0) {
            segments.push((node.start..end, node.id));
            end = node.start;
        }
        segments.reverse();
        segments
    }
}
