//! Which word says in one language what a word says in another, learned from texts that say the same as wholes.
//!
//! IBM model 1: Brown, Della Pietra, Della Pietra, Mercer, "The Mathematics of Statistical Machine Translation: Parameter
//! Estimation", 1993, section 4.1. Every word of one side is explained by one word of the other or by none, all links being
//! alike likely beforehand; expectation maximisation finds the probabilities `t(b | a)`. Its likelihood has one maximum, so
//! nothing hangs on a random start.

use std::ops::Range;

/// The word that explains what no other does.
const NONE: u32 = u32::MAX;
/// Rounds of expectation maximisation; later ones change little.
const ROUNDS: usize = 10;
/// Links between words that are weighed; texts past them are not learned from (12 bytes each).
const MAX_LINKS: usize = 1 << 26;

/// Texts that say the same: word numbers of either side.
pub(crate) type Parallel = (Vec<u32>, Vec<u32>);

/// Probabilities of words `b` given words `a`.
pub(crate) struct Lexicon {
    /// `a` and `b`, sorted.
    cells: Vec<(u32, u32)>,
    /// `t(b | a)` of each cell.
    probability: Vec<f64>,
    /// Texts in which each cell's words meet.
    count: Vec<u32>,
}

impl Lexicon {
    /// Learns from texts; a word that stands twice in one counts once.
    pub fn new(texts: &[Parallel]) -> Self {
        let mut links = 0;
        let size = |(a, b): &Parallel| (a.len() + 1).saturating_mul(b.len());
        let read = texts.iter().take_while(|text| {
            links += size(text);
            links <= MAX_LINKS
        });
        let distinct = |words: &[u32]| {
            let mut words = words.to_vec();
            words.sort_unstable();
            words.dedup();
            words
        };
        let read: Vec<Parallel> = read.map(|(a, b)| (distinct(a), distinct(b))).collect();
        let pairs = |(a, b): &Parallel| {
            let a: Vec<u32> = a.iter().copied().chain([NONE]).collect();
            b.iter().flat_map(|&b| a.iter().map(move |&a| (a, b)).collect::<Vec<_>>()).collect::<Vec<_>>()
        };
        let mut met: Vec<(u32, u32)> = read.iter().flat_map(pairs).collect();
        met.sort_unstable();
        let (mut cells, mut count): (Vec<(u32, u32)>, Vec<u32>) = (Vec::new(), Vec::new());
        for cell in met {
            match count.last_mut() {
                Some(last) if cells.last() == Some(&cell) => *last += 1,
                _ => {
                    cells.push(cell);
                    count.push(1);
                }
            }
        }
        let mut lexicon = Self { probability: vec![1.0; cells.len()], cells, count };
        // For each word `b` of each text the cells of those that may explain it.
        let rows: Vec<(usize, Vec<u32>)> = read
            .iter()
            .map(|text| {
                let cells = pairs(text).into_iter().filter_map(|cell| lexicon.find(cell)).map(|cell| cell as u32);
                (text.0.len() + 1, cells.collect())
            })
            .collect();
        let sources = lexicon.sources();
        for _ in 0..ROUNDS {
            lexicon.improve(&rows, &sources);
        }
        lexicon
    }

    /// One round: how often is each cell expected to be a link, and how likely does that make it?
    fn improve(&mut self, rows: &[(usize, Vec<u32>)], sources: &[Range<usize>]) {
        let mut expected = vec![0.0; self.cells.len()];
        for row in rows.iter().flat_map(|(length, cells)| cells.chunks_exact(*length)) {
            let sum: f64 = row.iter().map(|&cell| self.probability[cell as usize]).sum();
            for &cell in row {
                expected[cell as usize] += self.probability[cell as usize] / sum;
            }
        }
        for source in sources {
            let sum: f64 = expected[source.clone()].iter().sum();
            for cell in source.clone() {
                self.probability[cell] = expected[cell] / sum;
            }
        }
    }

    /// The cells of each `a`.
    fn sources(&self) -> Vec<Range<usize>> {
        let mut start = 0;
        self.cells
            .chunk_by(|one, next| one.0 == next.0)
            .map(|cells| {
                start += cells.len();
                start - cells.len()..start
            })
            .collect()
    }

    fn find(&self, cell: (u32, u32)) -> Option<usize> {
        self.cells.binary_search(&cell).ok()
    }

    /// `t(b | a)`, 0 where the words never met.
    pub fn probability(&self, a: u32, b: u32) -> f64 {
        self.find((a, b)).map_or(0.0, |cell| self.probability[cell])
    }

    /// The likeliest word for each word `a`, with its probability: `(a, b, t(b | a))` in the order of `a`; of words that are
    /// alike likely the first.
    pub fn best(&self) -> Vec<(u32, u32, f64)> {
        let best = |source: &Range<usize>| {
            let (a, _) = self.cells[source.start];
            let best = source.clone().rev().max_by(|&x, &y| self.probability[x].total_cmp(&self.probability[y]))?;
            (a != NONE).then(|| (a, self.cells[best].1, self.probability[best]))
        };
        self.sources().iter().filter_map(best).collect()
    }
}

/// Pairs of words that surely say the same: each is the best for the other, by the geometric mean of both directions'
/// probabilities; that mean is at least `least`; they meet in `times` texts or more. In the order of the first word.
pub(crate) fn sure_pairs(texts: &[Parallel], least: f64, times: u32) -> Vec<(u32, u32)> {
    let turned: Vec<Parallel> = texts.iter().map(|(a, b)| (b.clone(), a.clone())).collect();
    let (forward, backward) = (Lexicon::new(texts), Lexicon::new(&turned));
    let mut scored = Vec::new();
    for (cell, &(a, b)) in forward.cells.iter().enumerate().filter(|(_, cell)| cell.0 != NONE) {
        let score = (forward.probability[cell] * backward.probability(b, a)).sqrt();
        scored.push((a, b, score, forward.count[cell]));
    }
    // The best of either side; the first of those that are alike.
    let mut best = (std::collections::HashMap::new(), std::collections::HashMap::new());
    for (n, &(a, b, score, _)) in scored.iter().enumerate() {
        let better = |found: &mut usize| {
            if score > scored[*found].2 {
                *found = n;
            }
        };
        best.0.entry(a).and_modify(better).or_insert(n);
        best.1.entry(b).and_modify(better).or_insert(n);
    }
    let sure = |&(n, &(a, b, score, count)): &(usize, &(u32, u32, f64, u32))| {
        score >= least && count >= times && best.0.get(&a) == Some(&n) && best.1.get(&b) == Some(&n)
    };
    scored.iter().enumerate().filter(sure).map(|(_, &(a, b, ..))| (a, b)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The textbook's example (Koehn, "Statistical Machine Translation", figure 4.5): das Haus / the house, das Buch / the
    /// book, ein Buch / a book. das 0, Haus 1, Buch 2, ein 3; the 0, house 1, book 2, a 3.
    fn books() -> Vec<Parallel> {
        vec![(vec![0, 1], vec![0, 1]), (vec![0, 2], vec![0, 2]), (vec![3, 2], vec![3, 2])]
    }

    #[test]
    fn words_that_meet_again_explain_each_other() {
        let lexicon = Lexicon::new(&books());
        let best: Vec<(u32, u32)> = lexicon.best().into_iter().map(|(a, b, _)| (a, b)).collect();
        assert_eq!(best, [(0, 0), (1, 1), (2, 2), (3, 3)]);
        let sum: f64 = (0..4).map(|b| lexicon.probability(0, b)).sum();
        assert!((sum - 1.0).abs() < 1e-12, "{sum}");
        assert_eq!(lexicon.probability(0, 3), 0.0, "das never met a");
    }

    /// By hand, without the word for none: after one round `t(the | das)` is 1/2 and `t(house | das)` 1/4, as the textbook's
    /// table has it. With it every link of the first round weighs 1/3: the expected counts of das are 2/3 for the, 1/3 for
    /// house and for book, and so its probabilities are 1/2, 1/4, 1/4 as well.
    #[test]
    fn the_first_round_is_as_by_hand() {
        let texts = books();
        let mut lexicon = Lexicon::new(&texts);
        let rows: Vec<(usize, Vec<u32>)> = texts
            .iter()
            .map(|(a, b)| {
                let a: Vec<u32> = a.iter().copied().chain([NONE]).collect();
                let cells = b.iter().flat_map(|&b| a.iter().map(move |&a| (a, b)).collect::<Vec<_>>());
                (a.len(), cells.map(|cell| lexicon.find(cell).expect("met") as u32).collect())
            })
            .collect();
        lexicon.probability.fill(1.0);
        let sources = lexicon.sources();
        lexicon.improve(&rows, &sources);
        let das: Vec<f64> = [0, 1, 2].map(|b| lexicon.probability(0, b)).to_vec();
        assert_eq!(das, [0.5, 0.25, 0.25]);
        assert_eq!([0, 1].map(|b| lexicon.probability(1, b)), [0.5, 0.5]);
    }

    #[test]
    fn pairs_are_sure_when_both_sides_agree_and_they_meet_often() {
        assert_eq!(sure_pairs(&books(), 0.3, 2), [(0, 0), (2, 2)]);
        assert_eq!(sure_pairs(&books(), 0.3, 1), [(0, 0), (1, 1), (2, 2), (3, 3)]);
        assert_eq!(sure_pairs(&books(), 0.999, 1), []);
        assert_eq!(sure_pairs(&[], 0.1, 1), []);
        assert_eq!(sure_pairs(&[(vec![], vec![1]), (vec![2], vec![])], 0.1, 1), []);
        // Two words that always stand together cannot be told apart: the first of each is taken, no more.
        let together = vec![(vec![5, 6], vec![7, 8]); 3];
        assert_eq!(sure_pairs(&together, 0.1, 2), [(5, 7)]);
    }
}
