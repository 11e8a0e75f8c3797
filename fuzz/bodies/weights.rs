//! Bodies of the fuzz targets for weight files, shared with `crates/core/tests`: bytes from strangers are refused with an
//! error or give tensors that load. A panic, an endless loop or unbounded memory is a bug.

use conjure_core::weights::gguf::Gguf;
use conjure_core::weights::{Checkpoint, Safetensors, TensorSource, check, describe};
use conjure_core::{DType, Device, Result};
use std::io::{Cursor, Write};
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
