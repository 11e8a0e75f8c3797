//! Reading and writing safetensors, against the reference implementation (crate `safetensors`) and against lies.

use crate::fuzz_bodies;
use conjure_core::weights::{self, Safetensors};
use conjure_core::{DType, Device, Error, Result, Tensor};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::path::Path;

/// A file with this header and this many bytes of data.
pub fn file(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

fn read(bytes: Vec<u8>) -> Result<Safetensors> {
    Safetensors::from_bytes(bytes, "m.safetensors")
}

fn refusal(bytes: Vec<u8>) -> String {
    let error = read(bytes).err().expect("a lie was believed");
    assert_eq!(error.exit_code(), 2);
    assert!(error.help().is_some(), "{error}");
    error.to_string()
}

fn sample() -> BTreeMap<String, Tensor> {
    let numbers = Tensor::arange(-3f32, 21.0, &Device::Cpu).unwrap().reshape((2, 3, 4)).unwrap();
    let types = [DType::F32, DType::F16, DType::BF16, DType::F64, DType::I64, DType::U8, DType::U32];
    let tensors = types.map(|t| (format!("t.{}", t.as_str()), numbers.abs().unwrap().to_dtype(t).unwrap()));
    tensors
        .into_iter()
        .chain([("empty".to_owned(), Tensor::zeros((0, 5), DType::F32, &Device::Cpu).unwrap())])
        .collect()
}

#[test]
fn what_is_saved_is_read_here_and_by_the_reference() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.safetensors");
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    weights::save(&path, &sample(), &metadata).unwrap();

    let bytes = std::fs::read(&path).unwrap();
    let (_, reference_header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!(reference_header.metadata().as_ref().unwrap()["format"], "pt");
    let reference = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(reference.len(), sample().len());
    let f32s: Vec<u8> = (-3..21).flat_map(|i: i32| (i.abs() as f32).to_le_bytes()).collect();
    assert_eq!(reference.tensor("t.f32").unwrap().data(), f32s);

    let source = weights::open(&path).unwrap();
    for (name, tensor) in sample() {
        assert_eq!(source.infos()[&name].dtype, tensor.dtype(), "{name}");
        assert_eq!(source.infos()[&name].shape, *tensor.shape(), "{name}");
        let loaded = source.load(&name, DType::F64, &Device::Cpu).unwrap().flatten_all().unwrap();
        let expected = tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap();
        assert_eq!(loaded.to_vec1::<f64>().unwrap(), expected.to_vec1::<f64>().unwrap(), "{name}");
        let same = source.load(&name, tensor.dtype(), &Device::Cpu).unwrap();
        assert_eq!(same.dtype(), tensor.dtype());
    }
    assert_eq!(Safetensors::open(&path).unwrap().metadata(), &metadata);
    let error = source.load("absent", DType::F32, &Device::Cpu).unwrap_err();
    assert!(error.to_string().ends_with("the file has no tensor absent"), "{error}");
}

#[test]
fn truncated_files() {
    assert_eq!(refusal(vec![1, 2, 3]), "m.safetensors: the file has 3 bytes, too few for a safetensors header");
    let mut whole = file(r#"{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}"#, 16);
    assert!(read(whole.clone()).is_ok());
    whole.pop();
    assert_eq!(refusal(whole.clone()), "m.safetensors: tensor a ends 1 bytes after the end of the file");
    whole.truncate(20);
    assert_eq!(refusal(whole), "m.safetensors: the header claims 55 bytes, the file has 12 after it");
}

#[test]
fn lying_headers() {
    let huge = [u64::MAX.to_le_bytes().to_vec(), vec![b'{'; 100]].concat();
    assert!(refusal(huge).contains("the header claims 18446744073709551615 bytes"));
    let one = |entry: &str, data: usize| refusal(file(&format!(r#"{{"a":{entry}}}"#), data));
    for (entry, data, expected) in [
        (r#"{"dtype":"F32","shape":[4],"data_offsets":[0,12]}"#, 12, "needs 16 bytes, its offsets are 0..12"),
        (r#"{"dtype":"F32","shape":[4],"data_offsets":[16,0]}"#, 16, "its offsets are 16..0"),
        (r#"{"dtype":"F32","shape":[4],"data_offsets":[1000,1016]}"#, 16, "1000 bytes after the end of the file"),
        (r#"{"dtype":"F32","shape":[4],"data_offsets":[0,16]}"#, 24, "8 bytes follow the last tensor"),
        (r#"{"dtype":"F32","shape":[4],"data_offsets":[8,24]}"#, 24, "8 unused bytes lie before tensor a"),
        (r#"{"dtype":"F32","shape":[4294967296,4294967296,4],"data_offsets":[0,0]}"#, 0, "impossible shape"),
        (r#"{"dtype":"F32","shape":[0,9223372036854775807,9],"data_offsets":[0,0]}"#, 0, "impossible shape"),
        (r#"{"dtype":"F32","shape":[-1],"data_offsets":[0,0]}"#, 0, "the header is not readable"),
        (r#"{"dtype":"C64","shape":[1],"data_offsets":[0,8]}"#, 8, "unsupported element type C64"),
    ] {
        let message = one(entry, data);
        assert!(message.contains(expected), "{entry}: {message}");
    }
    let twice =
        r#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"a":{"dtype":"U8","shape":[2],"data_offsets":[2,4]}}"#;
    assert_eq!(refusal(file(twice, 4)), "m.safetensors: tensor a is listed twice");
    let overlap =
        r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}}"#;
    assert_eq!(refusal(file(overlap, 6)), "m.safetensors: tensor b overlaps the tensor before it");
    let deep = "[".repeat(100_000);
    assert!(refusal(file(&deep, 0)).contains("the header is not readable"));
    let rank = format!(r#"{{"a":{{"dtype":"U8","shape":[{}1],"data_offsets":[0,1]}}}}"#, "1,".repeat(50_000));
    assert!(refusal(file(&rank, 1)).contains("impossible shape"));
}

fn write(path: &Path, bytes: impl AsRef<[u8]>) {
    std::fs::write(path, bytes).unwrap();
}

fn error(path: &Path) -> Error {
    weights::open(path).err().expect("opened")
}

#[test]
fn folders() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    assert!(error(folder.path()).to_string().ends_with("the folder holds no weights"));
    assert!(matches!(error(&at("absent")), Error::Io { .. }));

    let one = |name: &str| file(&format!(r#"{{"{name}":{{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}}}"#), 1);
    let opened = || weights::open(folder.path()).unwrap().infos().keys().next().unwrap().clone();
    write(&at("other.safetensors"), one("other"));
    assert_eq!(opened(), "other");
    write(&at("another.safetensors"), one("another"));
    assert!(error(folder.path()).to_string().contains("holds 2 safetensors files"));
    for (name, tensor) in [("model.fp16.safetensors", "half"), ("model.safetensors", "model")] {
        write(&at(name), one(tensor));
        assert_eq!(opened(), tensor);
    }
    write(&at("diffusion_pytorch_model.safetensors"), one("diffusion"));
    assert_eq!(opened(), "diffusion");

    let pipeline = tempfile::tempdir().unwrap();
    write(&pipeline.path().join("model_index.json"), "{}");
    assert!(error(pipeline.path()).to_string().contains("is a whole pipeline"));
}

#[test]
fn sharded_indexes() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let index = at("model.safetensors.index.json");
    let shard = |name: &str, value: f32| {
        BTreeMap::from([(name.to_owned(), Tensor::full(value, (1, 2), &Device::Cpu).unwrap())])
    };
    write(&index, r#"{"metadata":{"total_size":16},"weight_map":{"a":"m-1.safetensors","b":"m-2.safetensors"}}"#);
    weights::save(at("m-1.safetensors"), &shard("a", 1.0), &BTreeMap::new()).unwrap();
    assert!(error(folder.path()).to_string().ends_with("the shard m-2.safetensors is missing"));
    weights::save(at("m-2.safetensors"), &shard("c", 2.0), &BTreeMap::new()).unwrap();
    assert!(error(folder.path()).to_string().ends_with("the shard m-2.safetensors lacks the tensor b"));
    weights::save(at("m-2.safetensors"), &shard("b", 2.0), &BTreeMap::new()).unwrap();
    let source = weights::open(folder.path()).unwrap();
    let b = source.load("b", DType::F32, &Device::Cpu).unwrap();
    assert_eq!(b.to_vec2::<f32>().unwrap(), [[2.0, 2.0]]);
    assert_eq!(source.infos().len(), 2);

    for (map, expected) in [
        (r#"{"a":"../m-1.safetensors"}"#, "not a file beside the index"),
        (r#"{"a":"/etc/passwd"}"#, "not a file beside the index"),
        (r#"{"a":"model.safetensors.index.json"}"#, "is an index itself"),
    ] {
        write(&index, format!(r#"{{"weight_map":{map}}}"#));
        assert!(error(&index).to_string().ends_with(expected), "{}", error(&index));
    }
    write(&index, "{");
    assert!(error(&index).to_string().contains("is not an index of shards"));
    std::fs::File::create(&index).unwrap().set_len((32 << 20) + 1).unwrap();
    assert!(error(&index).to_string().ends_with("is larger than 32 MiB, which no index of shards is"));
}

#[test]
fn files_that_are_something_else() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    for (content, expected) in [
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0", "is a Git LFS pointer"),
        ("\n<!DOCTYPE html><html>", "is a web page"),
        ("GGUF\u{1}\0\0\0", "is a GGUF file of version 1"),
        ("", "the file is empty"),
    ] {
        write(&path, content);
        assert!(error(&path).to_string().contains(expected), "{}", error(&path));
        assert_eq!(error(&path).exit_code(), 2);
        assert!(error(&path).help().is_some());
    }
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), header in any::<bool>()) {
        let bytes = if header { file(&String::from_utf8_lossy(&bytes), 8) } else { bytes };
        fuzz_bodies::safetensors(&bytes);
    }

    #[test]
    fn damaged_files_never_panic(flips in proptest::collection::vec((0..200_usize, any::<u8>()), 1..4), cut in 0..200_usize) {
        let mut bytes = file(
            r#"{"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},"b":{"dtype":"F16","shape":[3],"data_offsets":[16,22]}}"#,
            22,
        );
        for (at, value) in flips {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
        }
        if cut % 3 == 0 {
            bytes.truncate(cut);
        }
        fuzz_bodies::safetensors(&bytes);
    }
}

/// A LoRA of two layers, whose bytes are then changed: it is refused, or its products have the layers' shapes.
#[test]
fn damaged_loras_never_panic() {
    let tensor = |shape: &[usize]| Tensor::ones(shape, DType::F32, &Device::Cpu).unwrap();
    let tensors = [
        ("unet.mid.to_q.lora_A.weight", tensor(&[1, 3])),
        ("unet.mid.to_q.lora_B.weight", tensor(&[2, 1])),
        ("text_encoder.layers.0.q_proj.lora_A.weight", tensor(&[1, 2])),
        ("text_encoder.layers.0.q_proj.lora_B.weight", tensor(&[2, 1])),
    ];
    let tensors: BTreeMap<String, Tensor> = tensors.into_iter().map(|(name, t)| (name.to_owned(), t)).collect();
    let text = r#"{"unet.r": 1, "unet.lora_alpha": 2.0}"#;
    let metadata = BTreeMap::from([("lora_adapter_metadata".to_owned(), text.to_owned())]);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lora.safetensors");
    weights::save(&path, &tensors, &metadata).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    assert!(fuzz_bodies::lora(&bytes));
    let mut fit = 0;
    for at in 8..bytes.len() {
        for value in [b'"', b'9', b' ', bytes[at] ^ 1] {
            let mut copy = bytes.clone();
            copy[at] = value;
            fit += usize::from(fuzz_bodies::lora(&copy));
        }
    }
    assert!(fit > 100 && fit < 3 * bytes.len(), "{fit}");
}
