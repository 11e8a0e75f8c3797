//! Bodies of the fuzz targets for weight files, shared with `crates/core/tests`: bytes from strangers are refused with an
//! error or give tensors that load. A panic, an endless loop or unbounded memory is a bug.

use conjure_core::weights::gguf::Gguf;
use conjure_core::weights::{Checkpoint, Lora, LoraTarget, Safetensors, TensorSource, check, describe};
use conjure_core::{DType, Device, Result, Shape};
use std::io::{Cursor, Write};
use std::sync::Arc;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

/// A safetensors file.
pub fn safetensors(data: &[u8]) {
    use_all(Safetensors::from_bytes(data.to_vec(), "fuzzed.safetensors"));
}

/// A GGUF file.
pub fn gguf(data: &[u8]) {
    use_all(Gguf::from_bytes(data.to_vec(), "fuzzed.gguf"));
}

/// A whole PyTorch checkpoint: a zip archive or the legacy format.
pub fn checkpoint(data: &[u8]) {
    use_all(Checkpoint::from_bytes(data.to_vec(), "fuzzed.pt"));
}

/// The pickle inside a sound archive, with one storage of 64 bytes: mutations are not lost on the archive's directory.
pub fn pickle(data: &[u8]) {
    use_all(Checkpoint::from_bytes(archive(&[("m/data.pkl", data), ("m/data/0", &[0; 64])]), "fuzzed.pt"));
}

/// The layers of a little model that LoRA files may change: a linear one in each part, and a convolution.
pub fn lora_targets() -> Vec<LoraTarget> {
    let target = |component: &'static str, layer: &str, shape: &[usize]| LoraTarget {
        component,
        parameter: format!("{layer}.weight"),
        shape: Shape::from(shape),
        spellings: vec![format!("{component}.{layer}")],
    };
    vec![
        target("unet", "mid.to_q", &[2, 3]),
        target("unet", "conv", &[2, 1, 3, 3]),
        target("text_encoder", "layers.0.q_proj", &[2, 2]),
    ]
}

/// A LoRA file; whether it fits [`lora_targets`].
pub fn lora(data: &[u8]) -> bool {
    let Ok(file) = Safetensors::from_bytes(data.to_vec(), "fuzzed.safetensors") else { return false };
    let metadata = file.metadata().clone();
    let targets = lora_targets();
    match Lora::new(Arc::new(file), &metadata, "fuzzed.safetensors", &targets) {
        Ok(lora) => {
            for (component, parameter) in lora.parameters() {
                let target = targets.iter().find(|t| t.component == component && t.parameter == parameter);
                let delta = lora.delta(component, parameter, DType::F32, &Device::Cpu).expect("the factors fit");
                assert_eq!(delta.as_ref().map(|delta| delta.shape()), target.map(|target| &target.shape));
            }
            true
        }
        Err(error) => {
            assert!(!error.to_string().is_empty() && error.exit_code() == 2);
            false
        }
    }
}

/// A zip archive of these entries, not compressed.
pub fn archive(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in entries {
        let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
        writer.start_file(*name, options).expect("a new entry in memory");
        writer.write_all(bytes).expect("writing to memory");
    }
    writer.finish().expect("finishing in memory").into_inner()
}

fn use_all<S: TensorSource>(read: Result<S>) {
    match read {
        Ok(source) => {
            let _ = (describe(&source).to_string(), check(&[], &source).to_string());
            for (name, info) in source.infos() {
                if let Ok(tensor) = source.load(name, DType::F32, &Device::Cpu) {
                    assert_eq!(tensor.shape(), &info.shape);
                }
                if let Some(matrix) = source.quantized(name) {
                    assert_eq!([matrix.rows(), matrix.columns()], info.shape.dims());
                    assert_eq!(matrix.bytes().len(), info.bytes());
                }
            }
        }
        Err(error) => assert!(!error.to_string().is_empty() && error.help().is_some()),
    }
}
