//! How the model knows where a token stands: waves added to the embeddings, or an offset on the scores of each distance.

use conjure_core::blocks::Embedding;
use conjure_core::weights::Params;
use conjure_core::{Device, Error, Result, Tensor};
use std::ops::Range;

/// Section 3.5: `PE(pos, 2i) = sin(pos / 10000^(2i / d_model))` and `PE(pos, 2i + 1)` the cosine, for the positions `range`:
/// `(range, d_model)`. As in Marian all sines stand before all cosines; the paper's order differs from it by a permutation of
/// features, which training cannot tell apart.
pub(super) fn sinusoidal(range: Range<usize>, d_model: usize, device: &Device) -> Result<Tensor> {
    let angle = |position: usize, i: usize| position as f64 / 10000f64.powf(2.0 * i as f64 / d_model as f64);
    let sines = d_model.div_ceil(2);
    let count = range.len();
    let values: Vec<f32> = range
        .flat_map(|position| {
            (0..d_model).map(move |feature| match feature.checked_sub(sines) {
                None => angle(position, feature).sin() as f32,
                Some(i) => angle(position, i).cos() as f32,
            })
        })
        .collect();
    Ok(Tensor::from_vec(values, (count, d_model), device)?)
}

/// Distances between tokens, the farther the coarser: "Exploring the Limits of Transfer Learning with a Unified Text-to-Text
/// Transformer", Raffel et al. 2020, <https://arxiv.org/abs/1910.10683>, section 2.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Buckets {
    count: usize,
    max_distance: usize,
}

impl Buckets {
    /// `count` buckets; the last of them holds everything from `max_distance` on.
    pub fn new(count: usize, max_distance: usize) -> Result<Self> {
        // Half the buckets look back in the encoder, and half of these hold one distance each.
        if count < 4 || max_distance <= count / 2 {
            return Err(Error::request(format!(
                "relative_attention_num_buckets {count} and relative_attention_max_distance {max_distance} do not fit"
            ))
            .with_help("there must be 4 buckets or more, and the distance must exceed half their number"));
        }
        Ok(Self { count, max_distance })
    }

    /// The bucket of a key that stands at `key` for a query at `query`. Where `both_ways`, half the buckets are for later keys;
    /// else later keys share the bucket of the query itself.
    fn of(self, query: usize, key: usize, both_ways: bool) -> u32 {
        let (count, first, distance) = match both_ways {
            true if key > query => (self.count / 2, self.count / 2, key - query),
            true => (self.count / 2, 0, query - key),
            false => (self.count, 0, query.saturating_sub(key)),
        };
        let exact = count / 2;
        if distance < exact {
            return (first + distance) as u32;
        }
        // In f32, as the reference computes it: at the borders the rounding decides.
        let share = (distance as f32 / exact as f32).ln() / (self.max_distance as f64 / exact as f64).ln() as f32;
        let far = exact + (share * (count - exact) as f32) as usize;
        (first + far.min(count - 1)) as u32
    }
}

/// A learned offset on the scores for every bucket and head.
#[derive(Clone, Debug)]
pub(super) struct RelativePositionBias {
    relative_attention_bias: Embedding,
    buckets: Buckets,
    both_ways: bool,
}

impl RelativePositionBias {
    /// `relative_attention_bias.weight (buckets, heads)` below `params`.
    pub fn new(params: &Params, buckets: Buckets, heads: usize, both_ways: bool) -> Result<Self> {
        let relative_attention_bias = Embedding::new(&params.sub("relative_attention_bias"), buckets.count, heads)?;
        Ok(Self { relative_attention_bias, buckets, both_ways })
    }

    /// Of the queries at the positions `queries` and all keys up to the last of them: `(1, heads, queries, keys)`.
    pub fn forward(&self, queries: Range<usize>, device: &Device) -> Result<Tensor> {
        let (time, source) = (queries.len(), queries.end);
        let of = |query| (0..source).map(move |key| self.buckets.of(query, key, self.both_ways));
        let ids = Tensor::from_vec(queries.flat_map(of).collect::<Vec<u32>>(), (time, source), device)?;
        let bias = self.relative_attention_bias.forward(&ids)?; // (time, source, heads)
        Ok(bias.permute((2, 0, 1))?.contiguous()?.unsqueeze(0)?) // (1, heads, time, source)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waves_are_those_of_the_paper() {
        let table = sinusoidal(3..5, 4, &Device::Cpu).unwrap().to_vec2::<f32>().unwrap();
        for (row, position) in table.iter().zip([3f64, 4.0]) {
            let expected = [position.sin(), (position / 100.0).sin(), position.cos(), (position / 100.0).cos()];
            assert!(row.iter().zip(expected).all(|(got, want)| (f64::from(*got) - want).abs() < 1e-7), "{row:?}");
        }
    }

    /// Values of transformers' T5Attention._relative_position_bucket with 32 buckets and distance 128.
    #[test]
    fn buckets_are_those_of_the_reference() {
        let buckets = Buckets::new(32, 128).unwrap();
        let both: Vec<u32> =
            [0, 1, 7, 8, 11, 12, 16, 45, 46, 91, 127, 128, 500].map(|d| buckets.of(d, 0, true)).to_vec();
        assert_eq!(both, [0, 1, 7, 8, 8, 9, 10, 12, 13, 15, 15, 15, 15]);
        assert_eq!([1, 8, 200].map(|d| buckets.of(0, d, true)), [17, 24, 31]);
        let back: Vec<u32> = [0, 1, 15, 16, 18, 19, 64, 127, 500].map(|d| buckets.of(d, 0, false)).to_vec();
        assert_eq!(back, [0, 1, 15, 16, 16, 17, 26, 31, 31]);
        assert_eq!(buckets.of(3, 9, false), 0);
        assert!(Buckets::new(2, 128).is_err() && Buckets::new(32, 16).is_err());
    }
}
