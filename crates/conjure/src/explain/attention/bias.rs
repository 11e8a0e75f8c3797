//! What is added to the scores, in as few numbers as it has: masks and position biases depend on the distance alone, or on the
//! key alone, and rarely on more.

use super::Array;
use crate::Result;
use conjure_core::Tensor;
use conjure_core::ops::AttentionSpec;
use serde::Serialize;

/// What is added to the scaled score of query `i` and key `j` of `t` and `s`: the sum of its parts.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Bias {
    /// Negative infinity where `j > i + s - t`.
    pub causal: bool,
    /// How many of the keys up to `i + s - t` are seen, from the last back; all unless given.
    pub window: Option<usize>,
    /// `(1 or heads, t + s - 1)`, entry `j - i + t - 1`.
    pub by_distance: Option<Array>,
    /// `(1 or heads, s)`, entry `j`.
    pub by_key: Option<Array>,
    /// `(1 or heads, t, s)`.
    pub by_pair: Option<Array>,
    /// Keys that were hidden in order to see what changes: negative infinity.
    pub hidden: Vec<usize>,
    /// Whether a hidden position still sees itself, which is where `j = i + s - t`.
    pub own_position_stays: bool,
}

impl Bias {
    /// Of the first text in the batch. `hidden` are the keys whose entries in the mask come from [`Bias::hidden`].
    ///
    /// # Errors
    /// A tensor operation fails.
    pub fn new(
        spec: &AttentionSpec<'_>,
        (t, s): (usize, usize),
        hidden: &[usize],
        own_position_stays: bool,
    ) -> Result<Self> {
        let AttentionSpec { causal, window, .. } = *spec;
        let none = Self { causal, window, hidden: hidden.to_vec(), own_position_stays, ..Self::default() };
        let Some(mask) = spec.mask else { return Ok(none) };
        let (heads, rows) = first_text(mask, t, s)?;
        // A mask of every pair is made in order to hide keys even where there was none before.
        let known = |j: usize| hidden.contains(&j);
        let zero = |h: usize| (0..t).all(|i| (0..s).all(|j| known(j) || rows(h, i, j) == 0.0));
        if (0..heads).all(zero) {
            return Ok(none);
        }
        if let Some(by_distance) = distances(heads, (t, s), &rows, &known) {
            return Ok(Self { by_distance: Some(by_distance), ..none });
        }
        let first_row = |h: usize| (0..s).map(move |j| (h, j));
        let same_rows = (0..heads)
            .flat_map(first_row)
            .all(|(h, j)| known(j) || (1..t).all(|i| rows(h, i, j) == rows(h, 0, j)));
        if same_rows {
            let data = (0..heads).flat_map(first_row).map(|(h, j)| if known(j) { 0.0 } else { rows(h, 0, j) }).collect();
            return Ok(Self { by_key: Some(Array { shape: vec![heads, s], data }), ..none });
        }
        let data = (0..heads)
            .flat_map(|h| (0..t).flat_map(move |i| (0..s).map(move |j| (h, i, j))))
            .map(|(h, i, j)| rows(h, i, j))
            .collect();
        Ok(Self { by_pair: Some(Array { shape: vec![heads, t, s], data }), ..none })
    }

    /// The bias of one pair. `(t, s)` are the layer's numbers of positions.
    pub fn at(&self, head: usize, i: usize, j: usize, (t, s): (usize, usize)) -> f32 {
        let part = |array: &Option<Array>, n: usize, len: usize| {
            array.as_ref().map_or(0.0, |a| a.data[if a.shape[0] > 1 { head } else { 0 } * len + n])
        };
        let after = self.causal && j + t > i + s;
        let before = self.window.is_some_and(|window| (j + t).saturating_add(window) <= i + s);
        let hidden = self.hidden.contains(&j) && !(self.own_position_stays && j + t == i + s);
        if after || before || hidden {
            return f32::NEG_INFINITY;
        }
        part(&self.by_distance, j + t - 1 - i, t + s - 1) + part(&self.by_key, j, s) + part(&self.by_pair, i * s + j, t * s)
    }

    /// Whether no query sees a key after its own position, and some query is held back by that.
    pub fn is_causal(&self, (t, s): (usize, usize)) -> bool {
        if self.causal {
            return true;
        }
        // Some models write the least finite number for negative infinity.
        let open = |i: usize, j: usize| self.at(0, i, j, (t, s)) > f32::MIN / 2.0;
        t > 1 && self.by_distance.is_some() && (0..t).all(|i| (0..s).all(|j| j + t <= i + s || !open(i, j)))
    }
}

/// How many heads have a mask of their own, and the entry of head, query and key.
fn first_text(mask: &Tensor, t: usize, s: usize) -> Result<(usize, impl Fn(usize, usize, usize) -> f32)> {
    let mut dims = vec![1; 4usize.saturating_sub(mask.rank())];
    dims.extend(mask.dims());
    let mask = mask.detach().reshape(dims)?.narrow(0, 0, 1)?; // (1, 1 or heads, 1 or t, 1 or s)
    let heads = mask.dim(1)?;
    let (own_t, own_s) = (mask.dim(2)?, mask.dim(3)?);
    let data = mask.flatten_all()?.to_dtype(conjure_core::DType::F32)?.to_vec1::<f32>()?;
    debug_assert!((own_t == t || own_t == 1) && (own_s == s || own_s == 1));
    Ok((heads, move |h: usize, i: usize, j: usize| {
        data[(h * own_t + if own_t > 1 { i } else { 0 }) * own_s + if own_s > 1 { j } else { 0 }]
    }))
}

/// The mask by distance, if it depends on that alone. The least finite number of a type stands for negative infinity in some
/// models; it stays as it is.
fn distances(
    heads: usize,
    (t, s): (usize, usize),
    rows: &impl Fn(usize, usize, usize) -> f32,
    known: &impl Fn(usize) -> bool,
) -> Option<Array> {
    let len = t + s - 1;
    let mut data = vec![f32::NAN; heads * len];
    for h in 0..heads {
        for i in 0..t {
            for j in (0..s).filter(|j| !known(*j)) {
                let (value, entry) = (rows(h, i, j), &mut data[h * len + j + t - 1 - i]);
                if entry.is_nan() {
                    *entry = value;
                } else if *entry != value {
                    return None;
                }
            }
        }
    }
    // Distances of which every pair is hidden are never asked for.
    data.iter_mut().filter(|x| x.is_nan()).for_each(|x| *x = 0.0);
    Some(Array { shape: vec![heads, len], data })
}

#[cfg(test)]
mod tests {
    use super::*;
    use conjure_core::Device;

    fn of(mask: &[f32], dims: (usize, usize, usize, usize), hidden: &[usize]) -> Bias {
        let mask = Tensor::from_vec(mask.to_vec(), dims, &Device::Cpu).unwrap();
        let spec = AttentionSpec { mask: Some(&mask), ..AttentionSpec::new(4) };
        Bias::new(&spec, (3, 3), hidden, true).unwrap()
    }

    #[test]
    fn masks_become_as_few_numbers_as_they_have() {
        let no = f32::NEG_INFINITY;
        let causal = [0.0, no, no, 0.0, 0.0, no, 0.0, 0.0, 0.0];
        let slopes: Vec<f32> =
            [0.5, 0.25].iter().flat_map(|a| (0..9).map(move |n| a * (n as f32 % 3.0 - (n / 3) as f32))).collect();
        let padding = [0.0, 0.0, no];
        let any = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0];
        let hidden = [0.0, no, 0.0, 0.0, 0.0, 0.0, 0.0, no, 0.0];
        for (mask, dims, hide, parts) in [
            (&causal[..], (1, 1, 3, 3), &[][..], (true, false, false)),
            (&slopes[..], (1, 2, 3, 3), &[], (true, false, false)),
            (&padding[..], (1, 1, 1, 3), &[], (false, true, false)),
            (&any[..], (1, 1, 3, 3), &[], (false, false, true)),
            (&hidden[..], (1, 1, 3, 3), &[1], (false, false, false)),
        ] {
            let bias = of(mask, dims, hide);
            assert_eq!((bias.by_distance.is_some(), bias.by_key.is_some(), bias.by_pair.is_some()), parts);
            assert_eq!(bias.is_causal((3, 3)), mask == causal);
            for h in 0..dims.1 {
                for (i, j) in (0..3).flat_map(|i| (0..3).map(move |j| (i, j))) {
                    let row = if dims.2 == 1 { 0 } else { i };
                    assert_eq!(bias.at(h, i, j, (3, 3)), mask[(h * dims.2 + row) * 3 + j], "{h} {i} {j}");
                }
            }
        }
    }
}
