//! The tokens of a vocabulary as bytes.

use llguidance::toktrie::{ApproximateTokEnv, INVALID_TOKEN, TokEnv, TokRxInfo, TokTrie};
use std::sync::Arc;

/// Longest token in bytes that takes part; longer ones, which some vocabularies have for runs of spaces, are not
/// allowed in constrained text.
const MAX_TOKEN: usize = 128;
/// The price of a byte that only longer tokens have: they may not fit where a token of its own would.
const PART: u64 = 4;

/// What the tokens of a vocabulary look like in bytes, prepared for matching. Made once for a model.
#[derive(Clone)]
pub struct TokenBytes {
    env: TokEnv,
    /// The token of each single byte, if there is one.
    single: Arc<[Option<u32>]>,
}

impl TokenBytes {
    /// From the bytes of each token in the order of ids, empty for special tokens, which never stand in constrained
    /// text; `ends` are the ids that end a text.
    pub fn new(tokens: &[Vec<u8>], ends: &[u32]) -> Self {
        let words: Vec<Vec<u8>> =
            tokens.iter().map(|bytes| if bytes.len() > MAX_TOKEN { Vec::new() } else { bytes.clone() }).collect();
        let mut single = vec![None; 256];
        for (id, word) in words.iter().enumerate().rev() {
            if let [byte] = word[..] {
                single[usize::from(byte)] = Some(id as u32);
            }
        }
        let ends: Vec<u32> = ends.iter().copied().filter(|&id| (id as usize) < words.len()).collect();
        let first = ends.first().copied().unwrap_or(INVALID_TOKEN);
        let trie = TokTrie::from(&TokRxInfo::new(words.len() as u32, first), &words);
        let trie = if ends.is_empty() { trie } else { trie.with_eos_tokens(&ends) };
        Self { env: Arc::new(ApproximateTokEnv::new(trie)), single: single.into() }
    }

    /// What the matcher wants.
    pub(super) fn env(&self) -> &TokEnv {
        &self.env
    }

    pub(super) fn trie(&self) -> &TokTrie {
        self.env.tok_trie()
    }

    /// The token of this byte alone.
    pub(super) fn single(&self, byte: u8) -> Option<u32> {
        self.single[usize::from(byte)]
    }

    /// The bytes that tokens have, with a price for each.
    pub(super) fn prices(&self) -> Vec<(u8, u64)> {
        let trie = self.trie();
        let mut known = [false; 256];
        for id in 0..trie.vocab_size() as u32 {
            trie.token(id).iter().for_each(|&byte| known[usize::from(byte)] = true);
        }
        let price = |byte: u8| if self.single(byte).is_some() { 1 } else { PART };
        (0..=255).filter(|&byte| known[usize::from(byte)]).map(|byte| (byte, price(byte))).collect()
    }

    /// The fewest tokens that have these bytes, if any have.
    pub(super) fn spell(&self, bytes: &[u8]) -> Option<Vec<u32>> {
        let trie = self.trie();
        // The fewest tokens up to each place, and the last of them.
        let mut fewest: Vec<Option<(usize, u32)>> = vec![None; bytes.len() + 1];
        fewest[0] = Some((0, 0));
        for at in 0..bytes.len() {
            let Some((count, _)) = fewest[at] else { continue };
            for id in trie.all_prefixes(&bytes[at..]) {
                let to = &mut fewest[at + trie.token(id).len()];
                if !trie.eos_tokens().contains(&id) && to.is_none_or(|to| count + 1 < to.0) {
                    *to = Some((count + 1, id));
                }
            }
        }
        let mut ids = Vec::new();
        let mut at = bytes.len();
        while at > 0 {
            let (_, id) = fewest[at]?;
            ids.push(id);
            at -= trie.token(id).len();
        }
        ids.reverse();
        Some(ids)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_spelled_by_the_fewest_tokens() {
        let words = ["a", "b", "ab", "abab", "\u{e4}", "", "z"].map(|word| word.as_bytes().to_vec());
        let tokens = TokenBytes::new(&words, &[5, 6]);
        assert!(tokens.spell(b"").unwrap().is_empty());
        assert_eq!(tokens.spell(b"babab").unwrap(), [1, 3]);
        assert_eq!(tokens.spell("a\u{e4}".as_bytes()).unwrap(), [0, 4]);
        // Half a character, and a token that would end the text.
        assert_eq!(tokens.spell("\u{e4}".as_bytes().split_at(1).0), None);
        assert_eq!(tokens.spell(b"az"), None);
        assert_eq!(tokens.prices(), [(b'a', 1), (b'b', 1), (b'z', 1), (0xa4, 4), (0xc3, 4)]);
    }
}
