//! A language model of one line, for tests: a table of which letter follows which two in a text.

use super::generation::TextStream;
use super::next_token::NextToken;
use conjure_core::{Error, Result};

/// Trigrams of a text, with those of fewer letters added at a tenth and a hundredth. Token ids are places in the sorted
/// alphabet of the text.
#[derive(Clone)]
pub struct Toy {
    pub alphabet: Vec<char>,
    text: Vec<u32>,
    read: Vec<u32>,
    context: usize,
    /// How many ids it was given in all.
    pub work: usize,
}

impl Toy {
    pub fn new(text: &str, context: usize) -> Self {
        let mut alphabet: Vec<char> = text.chars().collect();
        alphabet.sort_unstable();
        alphabet.dedup();
        let text = text.chars().map(|c| alphabet.binary_search(&c).unwrap() as u32).collect();
        Self { alphabet, text, read: Vec::new(), context, work: 0 }
    }

    /// Ids of letters that the text has.
    pub fn ids(&self, text: &str) -> Vec<u32> {
        text.chars().map(|c| self.alphabet.binary_search(&c).unwrap() as u32).collect()
    }

    pub fn stream(&self) -> Box<dyn TextStream> {
        Box::new(Letters(self.alphabet.clone()))
    }

    /// Probabilities after these ids.
    pub fn odds(&self, read: &[u32]) -> Vec<f32> {
        let mut counts = vec![0.001_f32; self.alphabet.len()];
        for (order, weight) in [(0, 0.01), (1, 0.1), (2, 1.0)] {
            let Some(suffix) = read.len().checked_sub(order).map(|at| &read[at..]) else { continue };
            for window in self.text.windows(order + 1).filter(|window| &window[..order] == suffix) {
                counts[window[order] as usize] += weight;
            }
        }
        let total: f32 = counts.iter().sum();
        counts.iter().map(|c| c / total).collect()
    }
}

impl NextToken for Toy {
    fn next(&mut self, ids: &[u32]) -> Result<Vec<f32>> {
        self.work += ids.len();
        self.read.extend_from_slice(ids);
        if self.read.len() > self.context {
            return Err(Error::failure("the context is full"));
        }
        Ok(self.odds(&self.read).iter().map(|p| p.ln()).collect())
    }

    fn rewind(&mut self, len: usize) -> Result<()> {
        self.read.truncate(len);
        Ok(())
    }

    fn len(&self) -> usize {
        self.read.len()
    }

    fn context(&self) -> usize {
        self.context
    }

    fn vocabulary(&self) -> usize {
        self.alphabet.len()
    }

    fn fork(&self) -> Result<Option<Self>> {
        Ok(Some(self.clone()))
    }
}

struct Letters(Vec<char>);

impl TextStream for Letters {
    fn push(&mut self, id: u32) -> Result<String> {
        Ok(self.0[id as usize].to_string())
    }

    fn finish(&mut self) -> Result<String> {
        Ok(String::new())
    }
}
