//! The probe that keeps what an explanation needs of each attention.

use super::write::not_kept;
use super::{Array, Bias, Layer, Recorded, Selection, Thumbnails, Whole};
use crate::{Error, Result};
use conjure_core::probe::{Probe, Quantity, SeenAttention, WhatIf};
use conjure_core::{DType, Tensor};

/// Of a model's own probabilities, at most about this many are kept to compare with.
const MAX_RECORDED: usize = 500_000;
/// Heads with more pairs than this get a small picture of their own.
const MAX_DRAWN: usize = 64 * 64;
/// Longest side of a small picture.
const THUMBNAIL: usize = 48;

/// How much is kept.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Layers of the model, each kind of attention counted by itself.
    pub layers: usize,
    /// The layer that is kept first.
    pub first: usize,
    /// Bytes that the numbers of all layers may have in the page.
    pub budget: usize,
    /// What is to be written as a table, of which every layer has to be kept.
    pub table: Option<Selection>,
    /// Positions that no other position sees.
    pub hidden: Vec<usize>,
    /// Layer and head of the heads that are switched off.
    pub silent: Vec<(usize, usize)>,
    /// Whether hidden positions are those of `group`, in the output of [`place`].
    pub hides: fn(group: &str) -> bool,
}

/// Attentions with the same path but for the layer's number.
#[derive(Debug)]
pub struct Group {
    /// The path with `*` for the number.
    pub name: String,
    /// Layers, in the order of the model.
    pub layers: Vec<Layer>,
}

/// Keeps every attention.
#[derive(Debug)]
pub struct Recording {
    plan: Plan,
    /// What was seen.
    pub groups: Vec<Group>,
    /// The last layer's output, `(batch, time, hidden)`.
    pub last: Option<Tensor>,
}

/// A path's layer, which is its first number, and the path with `*` for it.
pub fn place(path: &str) -> (String, usize) {
    let mut layer = None;
    let parts: Vec<&str> = path
        .split('.')
        .map(|part| match part.parse::<usize>() {
            Ok(number) if layer.is_none() => {
                layer = Some(number);
                "*"
            }
            _ => part,
        })
        .collect();
    (parts.join("."), layer.unwrap_or(0))
}

/// Whether the attention at this path looks at another sequence, by the names that models give it.
pub fn is_cross(path: &str) -> bool {
    ["EncDecAttention", "encoder_attn", "crossattention", "cross_attn", "cross_attention", "attn2"]
        .iter()
        .any(|name| path.contains(name))
}

impl Recording {
    /// Nothing seen yet.
    pub fn new(plan: Plan) -> Self {
        Self { plan, groups: Vec::new(), last: None }
    }

    /// Whether a layer's numbers are kept: all if they fit, else the first and others at even distances.
    fn keeps(&self, layer: usize, bytes: usize) -> bool {
        let fit = (self.plan.budget / bytes.max(1)).clamp(1, self.plan.layers.max(1));
        fit >= self.plan.layers
            || layer == self.plan.first
            || (fit > 1 && (0..fit - 1).any(|n| n * self.plan.layers / (fit - 1) == layer))
    }

    fn layer(&self, path: &str, seen: &SeenAttention<'_>) -> Result<Layer> {
        let (group, number) = place(path);
        let (batch, heads, time, head_dim) = seen.q.dims4()?;
        let (_, kv_heads, source, value_dim) = seen.v.dims4()?;
        if batch == 0 || time == 0 || source == 0 || kv_heads == 0 {
            return Err(Error::failure(format!("the attention at {path} saw no token")));
        }
        let hidden: &[usize] = if (self.plan.hides)(&group) { &self.plan.hidden } else { &[] };
        // Of the model's own rows a few are enough to compare with.
        let count = (MAX_RECORDED / (self.plan.layers * heads * source).max(1)).clamp(1, time);
        let recorded = heads * count * (source + value_dim);
        let floats = heads * time * head_dim + kv_heads * source * (head_dim + value_dim) + recorded;
        let small = heads * time * source <= MAX_DRAWN * heads;
        // In base64, which is how they stand in the page.
        let keep = self.keeps(number, (floats * 4).div_ceil(3) * 4);
        if !keep && self.plan.table.is_some_and(|table| table.layer.is_none_or(|layer| layer == number)) {
            return Err(not_kept(number));
        }
        let probabilities = if keep || !small { Some(first(&seen.probabilities()?)?) } else { None };
        let whole = match &probabilities {
            Some(probabilities) if keep => {
                let rows: Vec<usize> = (1..=count).map(|n| n * time / count - 1).collect();
                let sums = first(seen.y)?;
                Some(Whole {
                    q: first(seen.q)?,
                    k: first(seen.k)?,
                    v: first(seen.v)?,
                    recorded: Recorded { weights: pick(probabilities, &rows), sums: pick(&sums, &rows), rows },
                })
            }
            _ => None,
        };
        Ok(Layer {
            path: path.to_owned(),
            heads,
            kv_heads,
            head_dim,
            value_dim,
            time,
            source,
            scale: seen.spec.scale,
            soft_cap: seen.spec.soft_cap,
            bias: Bias::new(&seen.spec, (time, source), hidden, !is_cross(path))?,
            norms: norms(seen)?,
            whole,
            thumbnails: probabilities.filter(|_| !small).map(|p| thumbnails(&p)),
        })
    }
}

impl Probe for Recording {
    fn wants(&self, _: &str, quantity: Quantity) -> bool {
        matches!(quantity, Quantity::Attention | Quantity::Activation)
    }

    fn observe(&mut self, _: &str, _: Quantity, value: &Tensor) -> Result<()> {
        self.last = Some(value.detach());
        Ok(())
    }

    fn observe_attention(&mut self, path: &str, seen: &SeenAttention<'_>) -> Result<()> {
        let layer = self.layer(path, seen)?;
        let name = place(path).0;
        match self.groups.iter_mut().find(|group| group.name == name) {
            Some(group) => group.layers.push(layer),
            None => self.groups.push(Group { name, layers: vec![layer] }),
        }
        Ok(())
    }

    fn what_if(&self, path: &str) -> Option<WhatIf> {
        let (group, layer) = place(path);
        let silent_heads: Vec<usize> =
            self.plan.silent.iter().filter(|(l, _)| *l == layer).map(|(_, head)| *head).collect();
        let hidden_keys = if (self.plan.hides)(&group) { self.plan.hidden.clone() } else { Vec::new() };
        (!silent_heads.is_empty() || !hidden_keys.is_empty()).then(|| WhatIf {
            hidden_keys,
            own_position_stays: !is_cross(path),
            silent_heads,
        })
    }
}

/// The first text of a batch.
fn first(x: &Tensor) -> Result<Array> {
    let x = x.detach().narrow(0, 0, 1)?.squeeze(0)?.to_dtype(DType::F32)?.contiguous()?;
    Ok(Array { shape: x.dims().to_vec(), data: x.flatten_all()?.to_vec1()? })
}

/// `x (heads, time, n)`: `(heads, rows, n)`.
fn pick(x: &Array, rows: &[usize]) -> Array {
    let &[heads, time, n] = x.shape.as_slice() else { return Array::default() };
    let data = (0..heads)
        .flat_map(|h| rows.iter().flat_map(move |i| x.data[(h * time + i) * n..][..n].iter().copied()))
        .collect();
    Array { shape: vec![heads, rows.len(), n], data }
}

/// Norms of the values after the output projection, `(heads, source)`: the projection is given one head's values at a time,
/// and its bias is taken away, so that it may be of any kind.
fn norms(seen: &SeenAttention<'_>) -> Result<Array> {
    let heads = seen.q.dim(1)?;
    let v = seen.v.detach().narrow(0, 0, 1)?;
    let (_, kv_heads, source, value_dim) = v.dims4()?;
    let bias = (seen.to_out)(&Tensor::zeros((1, 1, heads * value_dim), v.dtype(), v.device())?)?; // (1, 1, features)
    let mut data = Vec::with_capacity(heads * source);
    for h in 0..heads {
        let own = v.narrow(1, h / (heads / kv_heads), 1)?.squeeze(1)?; // (1, source, value_dim)
        let zeros = |count: usize| Tensor::zeros((1, source, count * value_dim), v.dtype(), v.device());
        let mut parts = vec![own];
        if h > 0 {
            parts.insert(0, zeros(h)?);
        }
        if h + 1 < heads {
            parts.push(zeros(heads - 1 - h)?);
        }
        let out = (seen.to_out)(&Tensor::cat(&parts, 2)?)?.broadcast_sub(&bias)?; // (1, source, features)
        let norms = out.to_dtype(DType::F32)?.sqr()?.sum(2)?.sqrt()?; // (1, source)
        data.extend(norms.flatten_all()?.to_vec1::<f32>()?);
    }
    Ok(Array { shape: vec![heads, source], data })
}

fn thumbnails(probabilities: &Array) -> Thumbnails {
    let &[heads, time, source] = probabilities.shape.as_slice() else {
        return Thumbnails { height: 0, width: 0, u8: Vec::new() };
    };
    let (height, width) = (time.min(THUMBNAIL), source.min(THUMBNAIL));
    let mut largest = vec![0f32; heads * height * width];
    for (n, weight) in probabilities.data.iter().enumerate() {
        let (h, i, j) = (n / (time * source), n / source % time, n % source);
        let pixel = &mut largest[(h * height + i * height / time) * width + j * width / source];
        *pixel = pixel.max(*weight);
    }
    Thumbnails { height, width, u8: largest.iter().map(|x| (x * 255.0).round() as u8).collect() }
}
