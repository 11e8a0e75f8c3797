//! From words to tokens.

use std::ops::Range;

/// The positions of the tokens that spell each place where `word` stands. `pieces` are what the tokens spell, with the spaces
/// before or after them; case does not matter, and a word is found only as a whole.
pub fn find(pieces: &[String], word: &str) -> Vec<Range<usize>> {
    let word: Vec<char> = word.trim().to_lowercase().chars().collect();
    let mut text = Vec::new();
    let mut owners = Vec::new();
    for (n, piece) in pieces.iter().enumerate() {
        for c in piece.to_lowercase().chars() {
            text.push(c);
            owners.push(n);
        }
    }
    if word.is_empty() || word.len() > text.len() {
        return Vec::new();
    }
    let is_letter = |n: Option<usize>| n.and_then(|n| text.get(n)).is_some_and(|c| c.is_alphanumeric());
    (0..=text.len() - word.len())
        .filter(|&start| {
            let end = start + word.len();
            let inside_before = is_letter(start.checked_sub(1)) && word[0].is_alphanumeric();
            let inside_after = is_letter(Some(end)) && word[word.len() - 1].is_alphanumeric();
            text[start..end] == word[..] && !inside_before && !inside_after
        })
        .map(|start| owners[start]..owners[start + word.len() - 1] + 1)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::find;

    #[test]
    fn words_are_found_whole_and_over_several_tokens() {
        let pieces = ["", "It ", "fits: ", "a suit", "case ", "or it", "em. "].map(str::to_owned);
        assert_eq!(find(&pieces, "it"), vec![1..2]);
        assert_eq!(find(&pieces, "Suitcase"), vec![3..5]);
        assert_eq!(find(&pieces, "item."), vec![5..7]);
        assert!(find(&pieces, "case").is_empty());
        assert!(find(&pieces, " ").is_empty());
    }
}
