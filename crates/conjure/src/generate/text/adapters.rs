//! Low-rank adapters on a language model, in PEFT's layout: `adapter_config.json` beside `adapter_model.safetensors`.
//!
//! Where a weight is stored as floats an adapter is merged into it, and costs nothing from then on. A quantised weight stays
//! as it is, and the factors work beside it: the sum would have to be quantised anew, or would take the memory of floats.

use crate::generate::image::LoraFile;
use crate::model_folder;
use conjure_core::weights::{self, Lora, LowRankConfig, MemorySource, Params, Quantized, TensorInfo, TensorSource};
use conjure_core::{DType, Device, Error, Result, Tensor};
use conjure_models::decoder::{self, DecoderConfig, Factors};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// The factors of all adapters for each layer, by our names; the ups hold scales and weights.
fn factors(config: &DecoderConfig, adapters: &[LoraFile]) -> Result<BTreeMap<String, Vec<Factors>>> {
    let targets = decoder::adapter_targets(config)?;
    let mut all: BTreeMap<String, Vec<Factors>> = BTreeMap::new();
    for LoraFile { path, weight } in adapters {
        if !weight.is_finite() {
            return Err(Error::request(format!("the weight {weight} of {} is no number", path.display())));
        }
        let folder = if path.is_dir() { path.as_path() } else { path.parent().unwrap_or(Path::new(".")) };
        let file = if path.is_dir() { folder.join("adapter_model.safetensors") } else { path.clone() };
        if !file.is_file() {
            return Err(Error::file(&file, "not found").with_help(
                "a LoRA is a folder with adapter_config.json and adapter_model.safetensors, as PEFT writes it",
            ));
        }
        let place = folder.join("adapter_config.json");
        let settings = model_folder::read_text(&place)?.ok_or_else(|| {
            Error::file(&place, "not found").with_help("it tells the adapter's scale, and lies beside its weights")
        })?;
        check(&place, &settings)?;
        let header = BTreeMap::from([("lora_adapter_metadata".to_owned(), settings)]);
        let lora = Lora::new(weights::open(&file)?, &header, &file, &targets)?;
        let read = |component: &'static str, parameter: &str| {
            let found = lora.low_rank(component, parameter, DType::F32, &Device::Cpu)?;
            found.map(|(down, up)| Ok(Factors { down, up: (up * *weight)? })).transpose()
        };
        for (layer, factors) in decoder::from_adapter(config, &read)? {
            all.entry(layer).or_default().push(factors);
        }
    }
    Ok(all)
}

/// Refuses adapters that are more than a product of two factors.
fn check(place: &Path, settings: &str) -> Result<()> {
    let value: serde_json::Value =
        serde_json::from_str(settings).map_err(|e| Error::file(place, format!("not readable as JSON: {e}")))?;
    let wrong = |what: String| {
        Err(Error::file(place, what).with_help("plain LoRA is read; merge this adapter into its model with PEFT"))
    };
    match value.get("peft_type").and_then(serde_json::Value::as_str) {
        Some("LORA") => {}
        Some(other) => return wrong(format!("is an adapter of the kind {other}")),
        None => return wrong("names no peft_type".to_owned()),
    }
    if value.get("use_dora").and_then(serde_json::Value::as_bool) == Some(true) {
        return wrong("is a DoRA".to_owned());
    }
    match value.get("bias").and_then(serde_json::Value::as_str) {
        None | Some("none") => Ok(()),
        Some(bias) => wrong(format!("trains biases: bias is \"{bias}\"")),
    }
}

/// The weights of a decoder with adapters.
struct Adapted {
    inner: Arc<dyn TensorSource>,
    /// By weight; none of a weight that stays quantised.
    merged: BTreeMap<String, Vec<Factors>>,
}

impl TensorSource for Adapted {
    fn infos(&self) -> &BTreeMap<String, TensorInfo> {
        self.inner.infos()
    }

    fn load(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        let Some(factors) = self.merged.get(name) else { return self.inner.load(name, dtype, device) };
        let mut sum = self.inner.load(name, DType::F32, device)?;
        for Factors { down, up } in factors {
            sum = (sum + up.matmul(down)?.to_device(device)?)?;
        }
        Ok(sum.to_dtype(dtype)?)
    }

    fn quantized(&self, name: &str) -> Option<Quantized> {
        if self.merged.contains_key(name) { None } else { self.inner.quantized(name) }
    }
}

/// The parameters of `source`, which has our names, in f32 on the CPU, with these adapters.
///
/// # Errors
/// Adapters that cannot be read or are of another model.
pub(super) fn adapted(source: Arc<dyn TensorSource>, config: &DecoderConfig, adapters: &[LoraFile]) -> Result<Params> {
    let (mut merged, mut beside) = (BTreeMap::new(), BTreeMap::new());
    for (layer, factors) in factors(config, adapters)? {
        let weight = format!("{layer}.weight");
        if source.quantized(&weight).is_some() {
            beside.insert(layer, factors);
        } else {
            merged.insert(weight, factors);
        }
    }
    let params = |merged| Params::load(Arc::new(Adapted { inner: source, merged }), DType::F32, &Device::Cpu);
    let params = params(merged);
    if beside.is_empty() {
        return Ok(params);
    }
    // Several adapters are one whose rank is the sum; zeros fill up to the largest.
    let rank_of = |factors: &Vec<Factors>| factors.iter().map(|factors| factors.down.dims()[0]).sum::<usize>();
    let rank = beside.values().map(rank_of).max().unwrap_or(0);
    let mut tensors = BTreeMap::new();
    for (layer, factors) in &beside {
        let missing = rank - rank_of(factors);
        let down = Tensor::cat(&factors.iter().map(|factors| &factors.down).collect::<Vec<_>>(), 0)?;
        let up = Tensor::cat(&factors.iter().map(|factors| &factors.up).collect::<Vec<_>>(), 1)?;
        tensors.insert(format!("{layer}.lora_A.weight"), down.pad_with_zeros(0, 0, missing)?);
        tensors.insert(format!("{layer}.lora_B.weight"), up.pad_with_zeros(1, 0, missing)?.contiguous()?);
    }
    let own = Params::load(Arc::new(MemorySource::new(tensors)), DType::F32, &Device::Cpu);
    let config = LowRankConfig { rank, alpha: rank as f64 };
    Ok(params.with_low_rank(&own, config, move |path| beside.contains_key(path)))
}
