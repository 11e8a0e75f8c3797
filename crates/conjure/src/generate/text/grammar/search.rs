//! An end of a text, searched token by token: where [`super::ending`] knows no way.

use super::TokenBytes;
use llguidance::Matcher;
use llguidance::toktrie::SimpleVob;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// How many tokens an end may take, tried one after the other, and how many beginnings are looked at for each.
const LENGTHS: [usize; 2] = [32, 1024];
const MAX_SEARCH: usize = 600;
/// Most items of `llguidance`'s parser for them; ambiguous grammars have many at each place.
const MAX_ITEMS: usize = 50_000;
/// Ways to go on that are tried at each of them.
const BRANCHES: usize = 8;
/// What usually closes something, best first; then what usually is the least that can stand somewhere.
const CLOSERS: &[u8] = b"\"}])>;.\n0a1, -:x";

/// How a search ended that found no end.
#[derive(Debug, PartialEq, Eq)]
pub enum NoEnd {
    /// Every text was tried.
    Exhausted,
    /// There are more and longer ones.
    TooFar,
}

/// A beginning that the search came to.
struct Beginning {
    matcher: Matcher,
    length: usize,
    /// The beginning that it continues, and by which token.
    from: Option<(usize, u32)>,
}

/// Tokens that bring a text to an end, few if not the fewest.
///
/// # Errors
/// None was found.
pub fn search(start: &Matcher, tokens: &TokenBytes) -> Result<Vec<u32>, NoEnd> {
    for length in LENGTHS {
        match within(start.clone(), length, tokens) {
            Err(NoEnd::TooFar) => {}
            known => return known,
        }
    }
    Err(NoEnd::TooFar)
}

/// An end of at most `most` tokens. The way that is likeliest to lead to one is followed first, as far as it goes; then
/// those that leave it at one place, the last place first, and so on.
fn within(start: Matcher, most: usize, tokens: &TokenBytes) -> Result<Vec<u32>, NoEnd> {
    let mut beginnings: Vec<Beginning> = Vec::new();
    // The least unlikely first, of those the longest, of those the one found first.
    let mut queue = BinaryHeap::new();
    let mut cut = false;
    let mut items = 0;
    let mut next = Some((0, Beginning { matcher: start, length: 0, from: None }));
    while let Some((unlikely, mut beginning)) = next.take() {
        let at = beginnings.len();
        if beginning.length < most {
            let (ways, all) = ways_on(&mut beginning.matcher, tokens);
            cut |= !all;
            items += beginning.matcher.last_step_stats().map_or(0, |stats| stats.all_items);
            for (place, id) in ways.into_iter().enumerate() {
                queue.push(Reverse((unlikely + place, most - beginning.length, at, id)));
            }
        } else {
            cut = true;
        }
        beginnings.push(beginning);
        while let Some(Reverse((unlikely, _, at, id))) = queue.pop() {
            let mut matcher = beginnings[at].matcher.clone();
            if matcher.consume_token(id).is_err() {
                continue;
            }
            if ends(&mut matcher) {
                let mut ids = vec![id];
                let mut at = at;
                while let Some((before, id)) = beginnings[at].from {
                    ids.push(id);
                    at = before;
                }
                ids.reverse();
                return Ok(ids);
            }
            if beginnings.len() >= MAX_SEARCH || items > MAX_ITEMS {
                return Err(NoEnd::TooFar);
            }
            let length = beginnings[at].length + 1;
            next = Some((unlikely, Beginning { matcher, length, from: Some((at, id)) }));
            break;
        }
    }
    Err(if cut { NoEnd::TooFar } else { NoEnd::Exhausted })
}

/// Some of the tokens that may come next, those that are likely to lead to an end first, and whether these are all.
fn ways_on(matcher: &mut Matcher, tokens: &TokenBytes) -> (Vec<u32>, bool) {
    let mask = match matcher.compute_mask() {
        Ok(mask) => mask,
        Err(reason) => return (Vec::new(), is_dead_end(&reason)),
    };
    let trie = tokens.trie();
    let closers = CLOSERS.iter().filter_map(|&byte| tokens.single(byte));
    let mut ways: Vec<u32> = closers.filter(|&id| allowed(&mask, id as usize)).take(BRANCHES).collect();
    let mut others: Vec<u32> = Vec::new();
    mask.iter_set_entries(|id| others.push(id as u32));
    others.retain(|id| !ways.contains(id) && !trie.eos_tokens().contains(id));
    // Special tokens, which may be named by their ids, have no bytes.
    others.sort_by_key(|&id| (trie.token(id).len(), id));
    let all = ways.len() + others.len() <= BRANCHES;
    ways.extend(others.into_iter().take(BRANCHES - ways.len()));
    (ways, all)
}

/// Whether no token may come, rather than that the work was too much.
pub fn is_dead_end(reason: &impl std::fmt::Display) -> bool {
    reason.to_string().starts_with("NoExtension")
}

/// Whether the text may end here.
pub fn ends(matcher: &mut Matcher) -> bool {
    !matcher.is_error() && (matcher.is_stopped() || matcher.is_accepting().unwrap_or(false))
}

/// Whether a token may come next.
pub fn allowed(mask: &SimpleVob, id: usize) -> bool {
    id < mask.len() && mask.get(id)
}
