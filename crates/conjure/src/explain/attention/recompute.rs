//! The six steps once more, from q, k and v: the same arithmetic as in the page's `math.js`, in f64.

use super::{Explanation, Layer, Whole};

/// One query's way through steps 2 to 6.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// `q . k` for every key.
    pub scores: Vec<f64>,
    /// The same after scale, soft cap and bias.
    pub scaled: Vec<f64>,
    /// After the softmax; zeros where no key is seen.
    pub weights: Vec<f64>,
    /// The values, weighted and summed.
    pub sum: Vec<f64>,
}

/// Query `i` of a head.
pub fn row(layer: &Layer, whole: &Whole, head: usize, i: usize) -> Row {
    let Layer { heads, kv_heads, head_dim, value_dim, time, source, .. } = *layer;
    let kv = head / (heads / kv_heads);
    let q = &whole.q.data[(head * time + i) * head_dim..][..head_dim];
    let mut row = Row {
        scores: Vec::with_capacity(source),
        scaled: Vec::with_capacity(source),
        weights: Vec::with_capacity(source),
        sum: vec![0.0; value_dim],
    };
    for j in 0..source {
        let k = &whole.k.data[(kv * source + j) * head_dim..][..head_dim];
        let score: f64 = q.iter().zip(k).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum();
        let scaled = score * layer.scale;
        let capped = layer.soft_cap.map_or(scaled, |cap| cap * (scaled / cap).tanh());
        row.scores.push(score);
        row.scaled.push(capped + f64::from(layer.bias.at(head, i, j, (time, source))));
    }
    let max = row.scaled.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let exp = |x: &f64| if max == f64::NEG_INFINITY { 0.0 } else { (x - max).exp() };
    let total: f64 = row.scaled.iter().map(exp).sum();
    row.weights = row.scaled.iter().map(|x| if total > 0.0 { exp(x) / total } else { 0.0 }).collect();
    for (j, weight) in row.weights.iter().enumerate() {
        let v = &whole.v.data[(kv * source + j) * value_dim..][..value_dim];
        row.sum.iter_mut().zip(v).for_each(|(sum, v)| *sum += weight * f64::from(*v));
    }
    row
}

/// A head's probabilities, `(time, source)`.
pub fn weights(layer: &Layer, whole: &Whole, head: usize) -> Vec<Vec<f64>> {
    (0..layer.time).map(|i| row(layer, whole, head, i).weights).collect()
}

/// The largest differences between what is computed again and what the model recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Agreement {
    /// Rows that were compared.
    pub rows: usize,
    /// Of the probabilities.
    pub weights: f64,
    /// Of the weighted sums, in units of the values.
    pub sums: f64,
}

/// Unlike `f64::max`, does not hide what is no number.
fn larger(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() { f64::NAN } else { a.max(b) }
}

/// Compares every recorded row of every run.
pub fn agreement(explanation: &Explanation) -> Agreement {
    let mut worst = Agreement::default();
    let layers = explanation.runs.iter().flat_map(|run| &run.attentions).flat_map(|attention| &attention.layers);
    for (layer, whole) in layers.filter_map(|layer| Some((layer, layer.whole.as_ref()?))) {
        let recorded = &whole.recorded;
        for head in 0..layer.heads {
            for (n, i) in recorded.rows.iter().enumerate() {
                let row = row(layer, whole, head, *i);
                let place = head * recorded.rows.len() + n;
                let farthest = |own: &[f64], theirs: &[f32]| {
                    own.iter().zip(theirs).map(|(a, b)| (a - f64::from(*b)).abs()).fold(0.0, larger)
                };
                let weights = &recorded.weights.data[place * layer.source..][..layer.source];
                let sums = &recorded.sums.data[place * layer.value_dim..][..layer.value_dim];
                worst.weights = larger(worst.weights, farthest(&row.weights, weights));
                worst.sums = larger(worst.sums, farthest(&row.sum, sums));
                worst.rows += 1;
            }
        }
    }
    worst
}
