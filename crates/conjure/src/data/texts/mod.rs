//! The user's texts: what language models are trained on.
//!
//! | module | question it answers |
//! |---|---|
//! | [`documents`] | which documents lie in these folders and files, read one at a time? |
//! | [`json_lines`] | how is a .jsonl file read line by line? |
//! | [`packed`] | where are the tokens of documents longer than memory kept? |

pub mod documents;
pub mod json_lines;
pub mod packed;

pub use documents::{Document, Documents};
pub use json_lines::JsonLines;
pub use packed::Packed;

use sha2::{Digest as _, Sha256};

/// Whether what `identity` names is held out of training, for a `share` of all: by its hash alone, so that more texts beside
/// it change nothing.
pub fn is_held_out(identity: &str, share: f64) -> bool {
    let digest = Sha256::digest(format!("conjure text split 1\0{identity}"));
    let number = digest.iter().take(4).fold(0u32, |number, byte| number << 8 | u32::from(*byte));
    f64::from(number) < share * 4_294_967_296.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_held_out_and_more_of_it_with_a_larger_share() {
        let held_out = |share| (0..2000).filter(|i| is_held_out(&format!("document {i}"), share)).collect::<Vec<_>>();
        let tenth = held_out(0.1);
        // 200 expected, deviation 13.
        assert!((150..250).contains(&tenth.len()), "{}", tenth.len());
        let third = held_out(0.3);
        assert!(tenth.iter().all(|i| third.contains(i)));
        assert!(held_out(0.0).is_empty());
        assert_eq!(held_out(1.0).len(), 2000);
    }
}
