//! What a weight file is, told from names, types and shapes alone, before memory is taken for it.

use super::gguf::Metadata;
use super::{TensorInfo, TensorSource};
use crate::{DType, Device, Error, Result};
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::fmt::{self, Display};

/// What a source holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// What the key names say it is, such as `U-Net of Stable Diffusion 1`.
    pub family: Option<String>,
    /// Number of tensors.
    pub tensors: usize,
    /// Number of elements in all of them.
    pub parameters: usize,
    /// Bytes that the tensors take in the file.
    pub stored_bytes: usize,
    /// Bytes that they take when loaded as f32.
    pub f32_bytes: usize,
    /// How elements are stored (`f16`, `Q4_K`) and how many parameters are so, the most frequent first.
    pub precisions: Vec<(&'static str, usize)>,
    /// What else the file says about its model, in words: empty but for GGUF.
    pub details: Vec<(&'static str, String)>,
}

/// Describes a source; nothing is read from it.
pub fn describe(source: &dyn TensorSource) -> Description {
    let infos = source.infos();
    let parameters = infos.values().map(|info| info.shape.elem_count()).sum();
    let mut precisions: Vec<(&str, usize)> = Vec::new();
    for info in infos.values() {
        match precisions.iter_mut().find(|(precision, _)| *precision == info.precision()) {
            Some((_, count)) => *count += info.shape.elem_count(),
            None => precisions.push((info.precision(), info.shape.elem_count())),
        }
    }
    precisions.sort_by_key(|&(precision, count)| (std::cmp::Reverse(count), precision));
    Description {
        family: match source.gguf() {
            Some(metadata) => Some(gguf_family(metadata)),
            None => recognise(infos),
        },
        tensors: infos.len(),
        parameters,
        stored_bytes: infos.values().map(TensorInfo::bytes).sum(),
        f32_bytes: parameters * size_of::<f32>(),
        precisions,
        details: source.gguf().map(|metadata| gguf_details(metadata, infos)).unwrap_or_default(),
    }
}

/// The kind of model in a GGUF file, by the file's own word for it.
fn gguf_family(metadata: &Metadata) -> String {
    match metadata.architecture() {
        Ok(architecture) => format!("GGUF language model of architecture {architecture}"),
        Err(_) => "GGUF file without an architecture".to_owned(),
    }
}

/// What a GGUF header says that a user wants to know. A value of a strange type is left out: models refuse it, not this.
fn gguf_details(metadata: &Metadata, infos: &BTreeMap<String, TensorInfo>) -> Vec<(&'static str, String)> {
    let text = |key: &str| metadata.string(key).ok().flatten().map(str::to_owned);
    let size = |key: &str| metadata.usize(key).ok().flatten();
    let mut details = Vec::new();
    details.extend(text("general.name").map(|name| ("name", name)));
    if let Ok(architecture) = metadata.architecture() {
        details.push(("architecture", architecture.to_owned()));
        let context = size(&format!("{architecture}.context_length"));
        details.extend(context.map(|tokens| ("context", format!("{tokens} tokens"))));
    }
    if let Some(model) = text("tokenizer.ggml.model") {
        let tokens = metadata.strings("tokenizer.ggml.tokens").ok().flatten().map_or(0, <[String]>::len);
        details.push(("tokenizer", format!("{model}, {tokens} tokens")));
    }
    let mut formats: BTreeMap<&str, usize> = BTreeMap::new();
    for info in infos.values() {
        *formats.entry(info.precision()).or_default() += 1;
    }
    let mut formats: Vec<_> = formats.into_iter().collect();
    formats.sort_by_key(|&(_, tensors)| std::cmp::Reverse(tensors));
    let formats: Vec<String> = formats.iter().map(|(format, tensors)| format!("{tensors} {format}")).collect();
    details.push(("tensors", formats.join(", ")));
    details
}

impl Display for Description {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = self.family.as_deref().unwrap_or("unknown weights");
        write!(f, "{family}: {} tensors, {} parameters", self.tensors, Scaled(self.parameters))?;
        let total = self.parameters.max(1);
        for (i, (precision, count)) in self.precisions.iter().enumerate() {
            write!(f, "{}{}", if i == 0 { " in " } else { " and " }, precision)?;
            if self.precisions.len() > 1 {
                write!(f, " ({:.1}%)", 100.0 * *count as f64 / total as f64)?;
            }
        }
        let (stored, loaded) = (Scaled(self.stored_bytes), Scaled(self.f32_bytes));
        write!(f, "; {stored}B in the file, {loaded}B of memory as f32")
    }
}

/// A count in three digits: `860 M`.
struct Scaled(usize);

impl Display for Scaled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mut value, mut units) = (self.0 as f64, [" ", " k", " M", " G", " T"].into_iter());
        let mut unit = units.next().unwrap_or_default();
        while value >= 999.5 {
            let Some(next) = units.next() else { break };
            (value, unit) = (value / 1000.0, next);
        }
        let digits = if value >= 99.95 || unit == " " {
            0
        } else if value >= 9.995 {
            1
        } else {
            2
        };
        write!(f, "{value:.digits$}{unit}")
    }
}

/// Key names that only one kind of file has, most telling first. A name that ends in `.` is a prefix.
const SIGNS: [(&str, &str); 18] = [
    ("lora_unet_", LORA),
    ("lora_te", LORA),
    ("base_model.model.", LORA),
    ("model.diffusion_model.input_blocks.", SINGLE_FILE),
    ("model_ema.", "EMA weights of a training checkpoint"),
    ("controlnet_cond_embedding.", "ControlNet"),
    ("concept_embeds", "safety checker"),
    ("string_to_param.", "textual inversion embedding"),
    ("emb_params", "textual inversion embedding"),
    ("double_blocks.", "Flux transformer"),
    ("joint_blocks.", "Stable Diffusion 3 transformer"),
    ("vision_model.", "CLIP image encoder"),
    ("text_model.embeddings.", "CLIP text encoder"),
    ("encoder.block.", "T5 text encoder"),
    ("time_embedding.", UNET),
    ("decoder.up_blocks.", "autoencoder"),
    ("model.layers.", "Llama-like language model"),
    ("transformer.h.", "GPT-2-like language model"),
];
/// A change to a model, not a model.
pub(super) const LORA: &str = "LoRA";
/// All components in one file, under their authors' names.
pub(super) const SINGLE_FILE: &str = "single-file checkpoint";
const UNET: &str = "U-Net";

/// The kind of file that has these key names.
pub(super) fn kind<'a>(names: impl Iterator<Item = &'a str> + Clone) -> Option<&'static str> {
    // Keys of an adapter in the newer layouts end, not begin, in a telling way.
    if names.clone().any(|name| [".lora_A.", ".lora_B.", ".lora.down.", ".lora.up."].iter().any(|s| name.contains(s))) {
        return Some(LORA);
    }
    SIGNS.iter().find(|(sign, _)| names.clone().any(|name| name.starts_with(sign))).map(|&(_, kind)| kind)
}

/// The kind, and for what belongs to Stable Diffusion, the version: it follows from the width of the text embedding that
/// cross-attention reads.
fn recognise(infos: &BTreeMap<String, TensorInfo>) -> Option<String> {
    let kind = kind(infos.keys().map(String::as_str))?;
    if kind != UNET && kind != SINGLE_FILE {
        return Some(kind.to_owned());
    }
    let width = infos.iter().find(|(name, _)| name.ends_with("attn2.to_k.weight")).map(|(_, info)| info.shape.dims());
    let family = match width {
        Some([_, 768]) => format!("{kind} of Stable Diffusion 1"),
        Some([_, 1024]) => format!("{kind} of Stable Diffusion 2"),
        Some([_, 2048]) => format!("{kind} of Stable Diffusion XL"),
        Some([_, width]) => format!("{kind} with text embeddings of width {width}"),
        _ => kind.to_owned(),
    };
    let inputs = ["conv_in.weight", "model.diffusion_model.input_blocks.0.0.weight"];
    match inputs.iter().find_map(|name| infos.get(*name)).map(|info| info.shape.dims()) {
        Some([_, 9, ..]) => Some(format!("{family}, for inpainting")),
        _ => Some(family),
    }
}

/// Reads every floating-point tensor once and looks for values that are not numbers.
///
/// # Errors
/// Names the first tensor with a NaN or an infinity, how many it has and where; or the file is unreadable.
pub fn scan_finite(source: &dyn TensorSource) -> Result<()> {
    for (name, info) in source.infos().iter().filter(|(_, info)| info.dtype.is_float()) {
        // Through f32, a large f64 would seem infinite.
        let dtype = if info.dtype == DType::F64 { DType::F64 } else { DType::F32 };
        let values = source.load(name, dtype, &Device::Cpu)?.flatten_all()?;
        let found = match dtype {
            DType::F64 => non_finite(&values.to_vec1::<f64>()?, |v| v.is_finite()),
            _ => non_finite(&values.to_vec1::<f32>()?, |v| v.is_finite()),
        };
        if let Some((count, first)) = found {
            let mut rest = first;
            let mut index: Vec<usize> = info.shape.dims().iter().rev().map(|n| (rest % n, rest /= n).0).collect();
            index.reverse();
            return Err(Error::failure(format!(
                "tensor {name} holds {count} values that are NaN or infinite, the first at {index:?}"
            ))
            .with_help(
                "the weights are damaged or were trained to divergence; get another copy or an earlier checkpoint",
            ));
        }
    }
    Ok(())
}

/// How many values are not finite, and where the first is.
fn non_finite<T: Sync>(values: &[T], is_finite: impl Fn(&T) -> bool + Sync) -> Option<(usize, usize)> {
    let first = values.par_iter().position_first(|v| !is_finite(v))?;
    Some((values[first..].par_iter().filter(|v| !is_finite(v)).count(), first))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Tensor;
    use crate::weights::MemorySource;

    fn source(tensors: &[(&str, &[usize], DType)]) -> MemorySource {
        MemorySource::new(
            tensors
                .iter()
                .map(|&(name, shape, dtype)| (name.to_owned(), Tensor::zeros(shape, dtype, &Device::Cpu).unwrap())),
        )
    }

    #[test]
    fn families_are_told_from_keys() {
        let attention = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight";
        for (tensors, expected) in [
            (
                vec![("time_embedding.linear_1.weight", vec![4, 4]), (attention, vec![4, 768])],
                "U-Net of Stable Diffusion 1",
            ),
            (
                vec![("time_embedding.a", vec![1]), (attention, vec![4, 2048]), ("conv_in.weight", vec![8, 9, 3, 3])],
                "U-Net of Stable Diffusion XL, for inpainting",
            ),
            (vec![("time_embedding.a", vec![1]), (attention, vec![4, 32])], "U-Net with text embeddings of width 32"),
            (vec![("text_model.embeddings.token_embedding.weight", vec![9, 4])], "CLIP text encoder"),
            (vec![("decoder.up_blocks.0.resnets.0.conv1.weight", vec![1])], "autoencoder"),
            (vec![("unet.down_blocks.0.attn1.to_q.lora_A.weight", vec![4, 4])], "LoRA"),
            (
                vec![
                    ("model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight", vec![4, 1024]),
                    ("first_stage_model.decoder.conv_in.weight", vec![1]),
                ],
                "single-file checkpoint of Stable Diffusion 2",
            ),
        ] {
            let tensors: Vec<_> = tensors.iter().map(|(name, shape)| (*name, shape.as_slice(), DType::F32)).collect();
            assert_eq!(describe(&source(&tensors)).family.as_deref(), Some(expected));
        }
        assert_eq!(describe(&source(&[("w", &[1], DType::F32)])).family, None);
    }

    #[test]
    fn sizes_are_counted_and_told() {
        let description = describe(&source(&[("a", &[500, 3], DType::F16), ("b", &[500], DType::I64)]));
        assert_eq!((description.tensors, description.parameters), (2, 2000));
        assert_eq!((description.stored_bytes, description.f32_bytes), (7000, 8000));
        assert_eq!(description.precisions, [("f16", 1500), ("i64", 500)]);
        assert_eq!(
            description.to_string(),
            "unknown weights: 2 tensors, 2.00 k parameters in f16 (75.0%) and i64 (25.0%); 7.00 kB in the file, 8.00 kB \
             of memory as f32"
        );
        let counts = [0, 999, 1000, 859_520_964, 999_600_000, 3_438_083_856];
        assert_eq!(counts.map(|n| Scaled(n).to_string()), ["0 ", "999 ", "1.00 k", "860 M", "1.00 G", "3.44 G"]);
    }

    #[test]
    fn values_that_are_not_numbers_are_found() {
        let tensor = |values: Vec<f32>| Tensor::from_vec(values, (2, 3), &Device::Cpu).unwrap();
        let sound = ("a".to_owned(), tensor(vec![1.0, -2.0, f32::MAX, 0.0, 1e-40, 3.0]));
        let large = ("c".to_owned(), Tensor::new(&[1e300_f64], &Device::Cpu).unwrap());
        assert!(scan_finite(&MemorySource::new([sound.clone(), large])).is_ok());
        let bad = tensor(vec![0.0, 0.0, 0.0, 0.0, f32::NAN, f32::INFINITY]);
        for dtype in [DType::F32, DType::F16, DType::BF16, DType::F64] {
            let source = MemorySource::new([sound.clone(), ("b".to_owned(), bad.to_dtype(dtype).unwrap())]);
            let error = scan_finite(&source).unwrap_err();
            assert_eq!(
                error.to_string(),
                "tensor b holds 2 values that are NaN or infinite, the first at [1, 1]",
                "{dtype:?}"
            );
            assert!(error.help().is_some());
        }
    }
}
