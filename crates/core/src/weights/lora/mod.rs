//! LoRA files: low-rank changes of a model's weights.
//!
//! Hu et al.: *LoRA: Low-Rank Adaptation of Large Language Models*, 2021, <https://arxiv.org/abs/2106.09685>. A layer's
//! weight `W (out, in)` becomes `W + weight * (alpha / r) * B A`.
//!
//! | paper | diffusers, PEFT | kohya's scripts | here |
//! |---|---|---|---|
//! | `A (r, in)` | `lora_A`, `lora.down` | `lora_down` | down |
//! | `B (out, r)` | `lora_B`, `lora.up` | `lora_up` | up |
//! | `alpha` | metadata `lora_alpha` | `alpha` | `alpha` |
//!
//! A convolution's factors are a convolution to `r` channels and one of size 1 from them (LoCon).

mod keys;
mod made_for;
mod merged;
mod save;
mod scale;

pub use merged::Merged;
pub use save::LoraLayout;

use super::{Safetensors, TensorInfo, TensorSource};
use crate::{DType, Device, Error, Result, Shape, Tensor};
use keys::{Key, Role};
use scale::Scales;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A weight that a LoRA can change, and how files may spell its layer.
#[derive(Clone, Debug)]
pub struct LoraTarget {
    /// The part of the model: `unet`, `text_encoder`, `text_encoder_2`.
    pub component: &'static str,
    /// The weight's name in that part, `down_blocks.0.….to_q.weight`.
    pub parameter: String,
    /// The weight's shape: `(out, in)`, or `(out, in, k, k)` of a convolution.
    pub shape: Shape,
    /// Whole names of the layer in files, such as `unet.down_blocks.0.….to_q`; dots and underscores count as the same.
    pub spellings: Vec<String>,
}

/// The two factors of one weight's change, by their names in the file.
#[derive(Clone, Debug, PartialEq)]
struct Change {
    down: String,
    up: String,
    mid: Option<String>,
    rank: usize,
    /// `alpha / r`, or what the file says in its place.
    scale: f64,
    shape: Shape,
}

/// A LoRA file that fits a model. The factors stay in the file until they are asked for.
pub struct Lora {
    path: PathBuf,
    source: Arc<dyn TensorSource>,
    changes: BTreeMap<(&'static str, String), Change>,
    two_text_encoders: bool,
}

/// Names shown of a longer list.
const SHOWN: usize = 3;

impl Lora {
    /// Opens a LoRA file in any layout that diffusers, PEFT or kohya's scripts write, for the model that has these targets.
    ///
    /// # Errors
    /// Unreadable, no LoRA, another kind of adapter; a layer that the model lacks or has in another size: half a LoRA would
    /// make another picture than its author's, and nobody would know why.
    pub fn open(path: impl AsRef<Path>, targets: &[LoraTarget]) -> Result<Self> {
        let path = path.as_ref();
        let source = super::open(path)?;
        // Only safetensors files carry text beside the tensors.
        let metadata = Safetensors::open(path).map(|file| file.metadata().clone()).unwrap_or_default();
        Self::new(source, &metadata, path, targets)
    }

    /// The same from any tensors under such names; `metadata` as in the header of a safetensors file, `path` is what errors
    /// name.
    ///
    /// # Errors
    /// As for [`Lora::open`].
    pub fn new(
        source: Arc<dyn TensorSource>,
        metadata: &BTreeMap<String, String>,
        path: impl AsRef<Path>,
        targets: &[LoraTarget],
    ) -> Result<Self> {
        let path = path.as_ref();
        let infos = source.infos();
        let layers = layers(infos, path)?;
        let found = by_spelling(targets);
        let mut unmatched: Vec<&str> = Vec::new();
        let mut changes = BTreeMap::new();
        let scales = Scales::new(metadata, path)?;
        for (layer, parts) in &layers {
            match found.get(layer.as_str()) {
                Some(target) => {
                    let change = parts.change(target, &scales, source.as_ref()).map_err(|message| {
                        let made_for =
                            made_for::told(infos, metadata).map(|family| format!("it seems to be made for {family}"));
                        Error::file(path, message).with_help(
                            made_for.unwrap_or_else(|| "it is damaged or was made for another model".to_owned()),
                        )
                    })?;
                    if changes.insert((target.component, target.parameter.clone()), change).is_some() {
                        return Err(Error::file(
                            path,
                            format!("changes {} of the {} twice", target.parameter, target.component),
                        ));
                    }
                }
                None => unmatched.extend(parts.names()),
            }
        }
        if !unmatched.is_empty() {
            return Err(refused(path, &unmatched, infos, metadata));
        }
        let two_text_encoders = targets.iter().any(|target| target.component == "text_encoder_2");
        Ok(Self { path: path.to_owned(), source, changes, two_text_encoders })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The weights that it changes: part of the model, and name there.
    pub fn parameters(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.changes.keys().map(|(component, parameter)| (*component, parameter.as_str()))
    }

    /// The change of a weight at full strength, `(alpha / r) B A`, in the weight's shape; `None` for a weight that stays.
    ///
    /// # Errors
    /// The file cannot be read any more.
    pub fn delta(
        &self,
        component: &'static str,
        parameter: &str,
        dtype: DType,
        device: &Device,
    ) -> Result<Option<Tensor>> {
        let Some(change) = self.changes.get(&(component, parameter.to_owned())) else { return Ok(None) };
        let (down, up) = self.factors(change, dtype, device)?;
        let (rank, inputs) = (change.rank, down.elem_count() / change.rank);
        let product = up.reshape(((), rank))?.matmul(&down.reshape((rank, inputs))?)?; // (out, in * k * k)
        Ok(Some((product.reshape(change.shape.clone())? * change.scale)?))
    }

    /// The two factors of a weight's change: `(r, in)`, and `(out, r)` times `alpha / r`; `None` for a weight that stays.
    ///
    /// # Errors
    /// The file cannot be read any more.
    pub fn low_rank(
        &self,
        component: &'static str,
        parameter: &str,
        dtype: DType,
        device: &Device,
    ) -> Result<Option<(Tensor, Tensor)>> {
        let Some(change) = self.changes.get(&(component, parameter.to_owned())) else { return Ok(None) };
        let (down, up) = self.factors(change, dtype, device)?;
        Ok(Some((down, (up * change.scale)?)))
    }

    /// The factors in the form of the target's layers: `(r, in)` and `(out, r)`, or `(r, in, k, k)` and `(out, r, 1, 1)`.
    fn factors(&self, change: &Change, dtype: DType, device: &Device) -> Result<(Tensor, Tensor)> {
        let load = |name: &str| self.source.load(name, dtype, device);
        let (out, rank) = (change.shape.dims()[0], change.rank);
        let kernel = change.shape.dims().get(2..).unwrap_or_default();
        let up_shape = [&[out, rank], vec![1; kernel.len()].as_slice()].concat();
        let down_shape = [&[rank], &change.shape.dims()[1..]].concat();
        let up = load(&change.up)?.reshape(up_shape)?;
        let down = load(&change.down)?;
        let Some(mid) = &change.mid else { return Ok((down.reshape(down_shape)?, up)) };
        // Tucker: from the input to the rank at each place, then a convolution among the ranks.
        let inputs = change.shape.dims()[1];
        let places: usize = kernel.iter().product();
        let mid = load(mid)?.reshape((rank, rank, places))?.transpose(1, 2)?; // (r, k * k, r)
        let product = mid.reshape((rank * places, rank))?.matmul(&down.reshape((rank, inputs))?)?; // (r * k * k, in)
        let down = product.reshape((rank, places, inputs))?.transpose(1, 2)?; // (r, in, k * k)
        Ok((down.reshape(down_shape)?, up))
    }
}

/// The names of one layer's parts.
#[derive(Default)]
struct Parts {
    down: Option<String>,
    up: Option<String>,
    mid: Option<String>,
    alpha: Option<String>,
}

impl Parts {
    fn names(&self) -> impl Iterator<Item = &str> {
        [&self.down, &self.up, &self.mid, &self.alpha].into_iter().flatten().map(String::as_str)
    }

    /// The change of `target`, if the parts are whole and of its shape.
    fn change(
        &self,
        target: &LoraTarget,
        scales: &Scales,
        source: &dyn TensorSource,
    ) -> std::result::Result<Change, String> {
        let (Some(down), Some(up)) = (&self.down, &self.up) else {
            let name = self.names().next().unwrap_or_default();
            return Err(format!("has {name} without its other factor"));
        };
        let dims = |name: &String| source.infos()[name].shape.dims().to_vec();
        let (down_dims, up_dims, wanted) = (dims(down), dims(up), target.shape.dims());
        let rank = down_dims.first().copied().unwrap_or(0);
        // Factors of a linear layer may be stored as convolutions of size 1, and the other way round.
        let same = |a: &[usize], b: &[usize]| {
            let n = a.len().max(b.len());
            n <= 4 && (0..n).all(|i| a.get(i).unwrap_or(&1) == b.get(i).unwrap_or(&1))
        };
        let (down_wanted, mid_fits) = match &self.mid {
            None => ([&[rank], &wanted[1..]].concat(), true),
            Some(mid) => {
                let mid_wanted = [&[rank, rank], wanted.get(2..).unwrap_or_default()].concat();
                (vec![rank, wanted[1]], same(&dims(mid), &mid_wanted))
            }
        };
        if rank == 0 || !mid_fits || !same(&down_dims, &down_wanted) || !same(&up_dims, &[wanted[0], rank]) {
            return Err(format!(
                "{down} {down_dims:?} and {up} {up_dims:?} do not make the model's {} {wanted:?}",
                target.parameter
            ));
        }
        let layer = target.parameter.trim_end_matches(".weight");
        let scale = match &self.alpha {
            Some(name) => {
                let value =
                    source.load(name, DType::F64, &Device::Cpu).and_then(|t| Ok(t.flatten_all()?.to_vec1::<f64>()?));
                match value.map_err(|e| e.to_string())?[..] {
                    [alpha] if alpha.is_finite() => alpha / rank as f64,
                    _ => return Err(format!("{name} is not one finite number")),
                }
            }
            None => scales.of(target.component, layer, rank),
        };
        Ok(Change {
            down: down.clone(),
            up: up.clone(),
            mid: self.mid.clone(),
            rank,
            scale,
            shape: target.shape.clone(),
        })
    }
}

/// The parts by layer.
fn layers(infos: &BTreeMap<String, TensorInfo>, path: &Path) -> Result<BTreeMap<String, Parts>> {
    let mut layers: BTreeMap<String, Parts> = BTreeMap::new();
    let mut unknown = Vec::new();
    for name in infos.keys() {
        match keys::parse(name) {
            Key::Factor { layer, role } => {
                let parts = layers.entry(layer).or_default();
                let part = match role {
                    Role::Down => &mut parts.down,
                    Role::Up => &mut parts.up,
                    Role::Mid => &mut parts.mid,
                    Role::Alpha => &mut parts.alpha,
                };
                if let Some(other) = part.replace(name.clone()) {
                    return Err(Error::file(path, format!("{other} and {name} are the same factor"))
                        .with_help("the file holds several adapters; save each to a file of its own"));
                }
            }
            Key::Other(kind) => {
                return Err(Error::file(path, format!("{name} is a part of a {kind} adapter, which is not read"))
                    .with_help(
                        "plain LoRA and LoCon files are read; merge this adapter into a model with its own tools",
                    ));
            }
            Key::Unknown => unknown.push(name.as_str()),
        }
    }
    if layers.is_empty() || !unknown.is_empty() {
        let name = unknown.first().copied().unwrap_or("nothing");
        return Err(Error::file(path, format!("is not a LoRA: it holds {name}, which is no factor of a layer"))
            .with_help("a LoRA holds lora_down and lora_up, or lora_A and lora_B, for each layer that it changes"));
    }
    Ok(layers)
}

/// The targets by each of their spellings. One that two targets share names neither.
fn by_spelling(targets: &[LoraTarget]) -> BTreeMap<String, &LoraTarget> {
    let mut found: BTreeMap<String, Option<&LoraTarget>> = BTreeMap::new();
    for target in targets {
        for spelling in &target.spellings {
            let same =
                |other: &&LoraTarget| (other.component, &other.parameter) == (target.component, &target.parameter);
            let entry = found.entry(keys::flat(spelling)).or_insert(Some(target));
            *entry = entry.filter(same);
        }
    }
    found.into_iter().filter_map(|(spelling, target)| Some((spelling, target?))).collect()
}

/// The error about layers that the model lacks.
fn refused(
    path: &Path,
    unmatched: &[&str],
    infos: &BTreeMap<String, TensorInfo>,
    metadata: &BTreeMap<String, String>,
) -> Error {
    let shown = unmatched.iter().take(SHOWN).copied().collect::<Vec<_>>().join(", ");
    let more = unmatched.len().saturating_sub(SHOWN);
    let more = if more == 0 { String::new() } else { format!(" and {more} more") };
    Error::file(path, format!("changes layers that the model lacks: {shown}{more}")).with_help(
        match made_for::told(infos, metadata) {
            Some(family) => format!("it seems to be made for {family}"),
            None => "it was made for another model".to_owned(),
        },
    )
}

#[cfg(test)]
mod tests;
