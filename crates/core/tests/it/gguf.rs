//! Reading GGUF files, against the `gguf` package of llama.cpp's authors and against lies.

use crate::fuzz_bodies;
use conjure_core::blocks::{Embedding, Linear};
use conjure_core::weights::gguf::{Gguf, Metadata, MetadataArray, MetadataValue};
use conjure_core::weights::{self, Format, Init, MemorySource, Params, Quantized, Renamed, TensorSource, View};
use conjure_core::weights::{TensorInfo, Transform};
use conjure_core::{DType, Device, Result, Tensor};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;

const CPU: Device = Device::Cpu;

fn fixture(name: &str) -> String {
    format!("{}/tests/fixtures/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// A text as GGUF stores it.
fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

/// A key with the number of its value's type and the value's bytes.
fn key(name: &str, kind: u32, value: &[u8]) -> Vec<u8> {
    [text(name), kind.to_le_bytes().to_vec(), value.to_vec()].concat()
}

/// An entry in the table of tensors; `shape` is as stored, the fastest dimension first.
fn tensor(name: &str, shape: &[u64], kind: u32, offset: u64) -> Vec<u8> {
    let shape_bytes: Vec<u8> = shape.iter().flat_map(|n| n.to_le_bytes()).collect();
    let rank = (shape.len() as u32).to_le_bytes().to_vec();
    [text(name), rank, shape_bytes, kind.to_le_bytes().to_vec(), offset.to_le_bytes().to_vec()].concat()
}

/// A whole file: the header that claims these counts, the entries, padding to 32 bytes, the data.
fn file_of(version: u32, counts: (u64, u64), keys: &[Vec<u8>], tensors: &[Vec<u8>], data: &[u8]) -> Vec<u8> {
    let mut bytes = b"GGUF".to_vec();
    bytes.extend(version.to_le_bytes());
    bytes.extend(counts.0.to_le_bytes());
    bytes.extend(counts.1.to_le_bytes());
    bytes.extend([keys.concat(), tensors.concat()].concat());
    bytes.resize(bytes.len().next_multiple_of(32), 0);
    bytes.extend(data);
    bytes
}

fn file(keys: &[Vec<u8>], tensors: &[Vec<u8>], data: &[u8]) -> Vec<u8> {
    file_of(3, (tensors.len() as u64, keys.len() as u64), keys, tensors, data)
}

fn read(bytes: Vec<u8>) -> Result<Gguf> {
    Gguf::from_bytes(bytes, "m.gguf")
}

fn refusal(bytes: Vec<u8>) -> String {
    let error = read(bytes).err().expect("a lie was believed");
    assert_eq!(error.exit_code(), 2);
    assert!(error.help().is_some(), "{error}");
    error.to_string()
}

/// A sound file with a key of every kind and three tensors, the second quantised.
fn sample() -> Vec<u8> {
    let strings = [8_u32.to_le_bytes().to_vec(), 2_u64.to_le_bytes().to_vec(), text("a"), text("猫")].concat();
    let inner = [4_u32.to_le_bytes().to_vec(), 1_u64.to_le_bytes().to_vec(), 7_u32.to_le_bytes().to_vec()].concat();
    let nested = [9_u32.to_le_bytes().to_vec(), 2_u64.to_le_bytes().to_vec(), inner.clone(), inner].concat();
    let keys = [
        key("general.architecture", 8, &text("llama")),
        key("general.alignment", 4, &32_u32.to_le_bytes()),
        key("llama.context_length", 10, &2048_u64.to_le_bytes()),
        key("yes", 7, &[1]),
        key("half", 6, &0.5_f32.to_le_bytes()),
        key("tokenizer.ggml.tokens", 9, &strings),
        key("nested", 9, &nested),
    ];
    let tensors = [
        tensor("a", &[2, 3], 0, 0),      // (3, 2) f32: 24 bytes
        tensor("b", &[32, 2], 8, 32),    // (2, 32) Q8_0: 68 bytes
        tensor("c", &[1, 2, 1], 1, 128), // (1, 2, 1) f16: 4 bytes
    ];
    let mut data: Vec<u8> = (0..6).flat_map(|i| (i as f32).to_le_bytes()).collect();
    data.resize(32, 0);
    for (scale, sign) in [(0x3c00_u16, 1), (0x4000, -1)] {
        data.extend(scale.to_le_bytes()); // 1 and 2
        data.extend((0..32_i8).map(|i| (i * sign) as u8));
    }
    data.resize(128, 0);
    data.extend([0x00, 0x3c, 0x00, 0xc0]); // 1 and -2
    file(&keys, &tensors, &data)
}

#[test]
fn a_file_made_by_hand() {
    let source = read(sample()).unwrap();
    assert_eq!(source.version(), 3);
    let metadata = source.metadata();
    assert_eq!(metadata.architecture().unwrap(), "llama");
    assert_eq!(metadata.usize("llama.context_length").unwrap(), Some(2048));
    assert_eq!(metadata.bool("yes").unwrap(), Some(true));
    assert_eq!(metadata.f32("half").unwrap(), Some(0.5));
    assert_eq!(metadata.strings("tokenizer.ggml.tokens").unwrap().unwrap(), ["a", "猫"]);
    let inner = || MetadataArray::U32(vec![7]);
    let nested = MetadataValue::Array(MetadataArray::Array(vec![inner(), inner()]));
    assert_eq!(metadata.get("nested"), Some(&nested));
    assert_eq!(metadata.iter().count(), 7);

    let load = |name: &str| source.load(name, DType::F32, &CPU).unwrap();
    assert_eq!(load("a").to_vec2::<f32>().unwrap(), [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]);
    let b = load("b").to_vec2::<f32>().unwrap();
    assert_eq!((b[0][31], b[1][31]), (31.0, -62.0));
    assert_eq!(load("c").flatten_all().unwrap().to_vec1::<f32>().unwrap(), [1.0, -2.0]);
    assert_eq!(source.infos()["b"].format, Some(Format::Q8_0));
    assert_eq!(source.infos()["b"].bytes(), 68);
    assert_eq!(source.infos()["c"].shape.dims(), [1, 2, 1]);
    let error = source.load("absent", DType::F32, &CPU).unwrap_err();
    assert_eq!(error.to_string(), "m.gguf: the file has no tensor absent");

    // Only matrices in few bits are offered as they are.
    assert!(source.quantized("a").is_none() && source.quantized("c").is_none());
    let b = source.quantized("b").unwrap();
    assert_eq!((b.rows(), b.columns(), b.format()), (2, 32, Format::Q8_0));
    assert_eq!(b.row(1)[..3], [0x00, 0x40, 0]);

    let mut second = sample();
    second[4] = 2;
    assert_eq!(read(second).unwrap().version(), 2);
    assert!(read(file(&[], &[], &[])).unwrap().infos().is_empty());
}

#[test]
fn every_type_is_read_as_the_reference_reads_it() {
    let source = weights::open(fixture("types.gguf")).unwrap();
    let expected = weights::open(fixture("types_expected.safetensors")).unwrap();
    assert!(source.infos().keys().eq(expected.infos().keys()));
    for name in source.infos().keys() {
        let values = |source: &dyn TensorSource| {
            let tensor = source.load(name, DType::F32, &CPU).unwrap();
            (tensor.dims().to_vec(), tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap())
        };
        let ((shape, read), (expected_shape, wanted)) = (values(source.as_ref()), values(expected.as_ref()));
        assert_eq!(shape, expected_shape, "{name}");
        for (read, wanted) in read.iter().zip(&wanted) {
            assert!((read - wanted).abs() <= 1e-6 * wanted.abs(), "{name}: {read} is not {wanted}");
        }
    }
    let metadata = source.gguf().unwrap();
    assert_eq!(metadata.strings("tokenizer.ggml.tokens").unwrap().unwrap(), ["<s>", "a", "é", "猫", ""]);
    assert_eq!(metadata.f32s("tokenizer.ggml.scores").unwrap().unwrap(), [0.0, -1.5, 2.25, 0.5, 1.0]);
    assert_eq!(metadata.i32s("tokenizer.ggml.token_type").unwrap().unwrap(), [3, 1, 1, 1, 1]);
    assert_eq!(metadata.usize("test.u64").unwrap(), Some(1 << 40));
    assert_eq!(metadata.get("test.i8"), Some(&MetadataValue::I8(-5)));
    assert_eq!(metadata.get("test.f64"), Some(&MetadataValue::F64(0.1)));
    assert!(metadata.usize("test.i8").unwrap_err().to_string().contains("types.gguf: the GGUF header's test.i8 is -5"));
}

#[test]
fn descriptions() {
    let source = weights::open(fixture("types.gguf")).unwrap();
    let description = weights::describe(source.as_ref());
    assert_eq!(description.family.as_deref(), Some("GGUF language model of architecture llama"));
    assert_eq!((description.tensors, description.parameters), (18, 15 * 768 + 3 * 6));
    let details: BTreeMap<_, _> = description.details.iter().cloned().collect();
    assert_eq!(details["name"], "every type");
    assert_eq!(details["architecture"], "llama");
    assert_eq!(details["context"], "128 tokens");
    assert_eq!(details["tokenizer"], "gpt2, 5 tokens");
    assert!(details["tensors"].contains("1 Q4_K") && details["tensors"].contains("1 bf16"), "{}", details["tensors"]);
    assert!(description.precisions.contains(&("IQ4_XS", 768)));
    // The tensors' own bytes, without padding: by the sizes of blocks in GGML.
    let blocks = [4 * 256, 512, 512, 144, 160, 176, 192, 272, 84, 110, 144, 176, 210, 144, 136];
    assert_eq!(description.stored_bytes, 3 * blocks.iter().sum::<usize>() + 6 * (4 + 8 + 8));
}

#[test]
fn other_versions_orders_and_parts() {
    let with = |version: u32| refusal(file_of(version, (0, 0), &[], &[], &[]));
    assert_eq!(with(1), "m.gguf: is a GGUF file of version 1");
    assert_eq!(with(4), "m.gguf: is a GGUF file of version 4");
    assert_eq!(with(3_u32.swap_bytes()), "m.gguf: is a GGUF file of version 3 in big-endian order");
    assert_eq!(refusal(b"GGML\0\0\0\0".to_vec()), "m.gguf: is not a GGUF file");
    let part = [key("split.count", 2, &[3, 0]), key("split.no", 2, &[1, 0])];
    assert_eq!(refusal(file(&part, &[], &[])), "m.gguf: is part 2 of a model in 3 files");
}

#[test]
fn folders() {
    let folder = tempfile::tempdir().unwrap();
    let opened = || weights::open(folder.path());
    std::fs::write(folder.path().join("m-Q4_1.gguf"), sample()).unwrap();
    assert!(opened().unwrap().gguf().is_some());
    std::fs::write(folder.path().join("m-Q8_0.gguf"), sample()).unwrap();
    assert!(opened().err().unwrap().to_string().ends_with("the folder holds 2 GGUF files"));
    let floats = BTreeMap::from([("w".to_owned(), Tensor::zeros(1, DType::F32, &CPU).unwrap())]);
    weights::save(folder.path().join("model.safetensors"), &floats, &BTreeMap::new()).unwrap();
    assert!(opened().unwrap().gguf().is_none());
    // The name alone does not make one, nor anything else.
    let path = folder.path().join("m-Q8_0.gguf");
    std::fs::write(&path, [0; 100]).unwrap();
    let error = weights::open(&path).err().unwrap();
    assert!(error.to_string().ends_with("m-Q8_0.gguf: is no GGUF file: it does not begin with GGUF"), "{error}");
}

#[test]
fn truncated_files() {
    let whole = sample();
    // Cut anywhere, the file is refused: its last tensor ends at its last byte.
    for length in 0..whole.len() {
        refusal(whole[..length].to_vec());
    }
    let cut = |length: usize| refusal(whole[..length].to_vec());
    assert_eq!(cut(6), "m.gguf: the file ends inside the version");
    assert_eq!(cut(10), "m.gguf: the file ends inside the table of tensors");
    assert_eq!(cut(whole.len() - 1), "m.gguf: tensor c ends 1 bytes after the end of the file");
}

#[test]
fn lying_keys() {
    let one = |kind: u32, value: &[u8]| refusal(file(&[key("k", kind, value)], &[], &[0; 64]));
    let array = |kind: u32, count: u64| [kind.to_le_bytes().to_vec(), count.to_le_bytes().to_vec()].concat();
    for (kind, value, expected) in [
        (13, vec![], "m.gguf: k has the unknown value type 13; types 0 to 12 are known"),
        (7, vec![2], "m.gguf: k is neither true nor false but the byte 2"),
        (8, u64::MAX.to_le_bytes().to_vec(), "the value of k claims 18446744073709551615 bytes, "),
        (8, [1_u64.to_le_bytes().to_vec(), vec![0xff]].concat(), "the value of k is not UTF-8: byte 0 is out of place"),
        (9, array(4, u64::MAX), "the array k claims 18446744073709551615 entries, more than the "),
        (9, array(0, 1 << 32), "the array k claims 4294967296 entries, more than the "),
        (9, array(8, 1 << 40), "the array k claims 1099511627776 entries, more than the "),
        (9, array(9, 1 << 20), "the array k claims 1048576 entries, more than the "),
        (9, array(99, 1), "k has the unknown value type 99"),
        (9, [array(7, 2), vec![1, 9]].concat(), "k is neither true nor false but the byte 9"),
        (9, [array(8, 2), text("a"), text("\u{7f}")[..8].to_vec(), vec![0xc0]].concat(), "element 1 of k is not UTF-8"),
        (
            9,
            [array(8, 1), u64::MAX.to_le_bytes().to_vec()].concat(),
            "element 0 of k claims 18446744073709551615 bytes",
        ),
        (9, array(9, 1).repeat(9), "k is an array inside 4 others, more than is read"),
    ] {
        let message = one(kind, &value);
        assert!(message.contains(expected), "{message}");
    }
    let twice = [key("k", 7, &[1]), key("k", 7, &[0])];
    assert_eq!(refusal(file(&twice, &[], &[])), "m.gguf: the key k is there twice");
    let long = [[65_536_u64.to_le_bytes().to_vec(), vec![b'k'; 65_536]].concat()];
    assert!(refusal(file(&long, &[], &[0; 64])).contains("key 0 claims 65536 bytes, more than the 65535 allowed"));
    let strange = [[1_u64.to_le_bytes().to_vec(), vec![0xfe], 7_u32.to_le_bytes().to_vec(), vec![1]].concat()];
    assert!(refusal(file(&strange, &[], &[])).contains("key 0 is not UTF-8"));
    for (counts, expected) in [
        ((u64::MAX, 0), "the table of tensors claims 18446744073709551615 entries, more than the "),
        ((0, u64::MAX), "the table of keys claims 18446744073709551615 entries, more than the "),
        ((0, 100), "the table of keys claims 100 entries, more than the "),
    ] {
        let message = refusal(file_of(3, counts, &[], &[], &[0; 64]));
        assert!(message.contains(expected), "{message}");
    }
    for alignment in [0_u32, 24, 1 << 25] {
        let keys = [key("general.alignment", 4, &alignment.to_le_bytes())];
        assert!(refusal(file(&keys, &[], &[])).contains(&format!("general.alignment is {alignment}, which is not")));
    }
    let keys = [key("general.alignment", 8, &text("32"))];
    assert!(refusal(file(&keys, &[], &[])).contains("general.alignment is \"32\", expected a whole number"));
}

#[test]
fn lying_tensors() {
    let one = |entry: Vec<u8>| refusal(file(&[], &[entry], &[0; 256]));
    let rank = |rank: u32| [text("t"), rank.to_le_bytes().to_vec(), vec![1; 64]].concat();
    for (entry, expected) in [
        (tensor("t", &[4], 4, 0), "m.gguf: tensor t has the type Q4_2, which is not read"),
        (tensor("t", &[256], 16, 0), "m.gguf: tensor t has the type IQ2_XXS, which is not read"),
        (tensor("t", &[4], 999, 0), "m.gguf: tensor t has the unknown type 999"),
        (rank(5), "m.gguf: tensor t claims 5 dimensions, more than the 4 allowed"),
        (rank(u32::MAX), "m.gguf: tensor t claims 4294967295 dimensions, more than the 4 allowed"),
        (tensor("t", &[33], 8, 0), "m.gguf: tensor t has rows of 33 numbers, but Q8_0 has blocks of 32"),
        (tensor("t", &[], 8, 0), "m.gguf: tensor t has rows of 1 numbers, but Q8_0 has blocks of 32"),
        (tensor("t", &[1 << 32, 1 << 32], 0, 0), "m.gguf: tensor t has the impossible shape [4294967296, 4294967296]"),
        (tensor("t", &[0, u64::MAX, 9], 0, 0), "tensor t has the impossible shape [9, 18446744073709551615, 0]"),
        (tensor("t", &[256, 1 << 55], 10, 0), "m.gguf: tensor t has the impossible shape [36028797018963968, 256]"),
        (tensor("t", &[4], 0, 31), "m.gguf: tensor t begins at 31, not a multiple of 32"),
        (tensor("t", &[4], 0, 256), "m.gguf: tensor t ends 16 bytes after the end of the file"),
        (tensor("t", &[4], 0, u64::MAX - 31), "tensor t ends 18446744073709551"),
        (tensor("t", &[65], 0, 0), "m.gguf: tensor t ends 4 bytes after the end of the file"),
    ] {
        let message = one(entry);
        assert!(message.contains(expected), "{message}");
    }
    let known = read(file(&[], &[tensor("t", &[4], 39, 0)], &[0; 64])).err().unwrap();
    assert!(known.help().unwrap().contains("Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K"), "{:?}", known.help());
    let two = |a, b| refusal(file(&[], &[a, b], &[0; 256]));
    assert_eq!(two(tensor("t", &[4], 0, 0), tensor("t", &[4], 0, 32)), "m.gguf: tensor t is listed twice");
    let overlap = two(tensor("a", &[16], 0, 0), tensor("b", &[4], 0, 32));
    assert_eq!(overlap, "m.gguf: tensor b overlaps the tensor a");
    // A name that is not there to be cut: the table ends where the tensor's shape should be.
    let name = [vec![0xff; 8], vec![0; 40]].concat();
    assert!(one(name).contains("the name of tensor 0 claims 18446744073709551615 bytes, more than the 65535 allowed"));
    // Other alignments hold.
    let eight = [key("general.alignment", 4, &8_u32.to_le_bytes())];
    assert!(read(file(&eight, &[tensor("t", &[4], 0, 8)], &[0; 256])).is_ok());
}

/// Two matrices `(48, 64)` in these formats with blocks as good as random, and the same as floats.
fn twins(format: Format) -> (Arc<dyn TensorSource>, Arc<dyn TensorSource>) {
    let kind = format.number();
    let size = (48 * 64 / format.block() * format.bytes()) as u64;
    let noise = |i: u64| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as u8;
    let mut data: Vec<u8> = (0..size).map(noise).collect();
    // The scale, an f16 at the beginning of each block, and the offset of Q4_1 after it: 0.0125 or so.
    for block in data.chunks_mut(format.bytes()) {
        block[1] = 0x22;
        if format == Format::Q4_1 {
            block[3] = 0xac; // -0.07 or so
        }
    }
    data.resize(data.len().next_multiple_of(32), 0);
    let bias = data.len() as u64;
    data.extend((0..48).flat_map(|i| (i as f32 / 48.0).to_le_bytes()));
    let entries = [tensor("l.weight", &[64, 48], kind, 0), tensor("l.bias", &[48], 0, bias)];
    let source: Arc<dyn TensorSource> = Arc::new(read(file(&[], &entries, &data)).unwrap());
    let load = |name: &str| (name.to_owned(), source.load(name, DType::F32, &CPU).unwrap());
    let floats = Arc::new(MemorySource::new([load("l.weight"), load("l.bias")]));
    (source, floats)
}

fn input() -> Tensor {
    Params::seeded(5, DType::F32, &CPU).get("x", (2, 7, 64), Init::Normal { std: 1.0 }).unwrap()
}

/// The largest difference, in units of the root mean square of `b`.
fn difference(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.dims(), b.dims());
    let values = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let (a, b) = (values(a), values(b));
    let scale = (b.iter().map(|v| v * v).sum::<f32>() / b.len() as f32).sqrt();
    a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) / scale
}

#[test]
fn layers_compute_from_blocks_what_they_compute_from_floats() {
    for format in [Format::Q8_0, Format::Q4_1, Format::F16, Format::BF16] {
        let (blocks, floats) = twins(format);
        // In units of the root mean square. With codes, inputs are rounded to 8 bits in blocks of 32, as llama.cpp does:
        // by half a percent of their own root mean square or so, and this is the worst of 672 sums.
        let tolerance = if format.is_float() { 1e-5 } else { 0.03 };
        let params = |source: &Arc<dyn TensorSource>| Params::load(source.clone(), DType::F32, &CPU).sub("l");
        let x = input();
        let linear = |source, bias| Linear::new(&params(source), 64, 48, bias).unwrap();
        for bias in [false, true] {
            for x in [&x, &x.narrow(1, 2, 1).unwrap(), &x.narrow(1, 0, 0).unwrap()] {
                let (a, b) = (linear(&blocks, bias).forward(x).unwrap(), linear(&floats, bias).forward(x).unwrap());
                if x.elem_count() > 0 {
                    assert!(difference(&a, &b) < tolerance, "{format}: {}", difference(&a, &b));
                } else {
                    assert_eq!(a.dims(), b.dims());
                }
            }
        }
        let table = |source| Embedding::new(&params(source), 48, 64).unwrap();
        let ids = Tensor::new(&[[3_u32, 47], [0, 3]], &CPU).unwrap();
        let (a, b) = (table(&blocks).forward(&ids).unwrap(), table(&floats).forward(&ids).unwrap());
        assert_eq!(difference(&a, &b), 0.0, "{format}");
        let (a, b) = (table(&blocks).logits(&x).unwrap(), table(&floats).logits(&x).unwrap());
        assert!(difference(&a, &b) < tolerance, "{format}: {}", difference(&a, &b));
        let beyond = table(&blocks).forward(&Tensor::new(&[48_u32], &CPU).unwrap()).unwrap_err();
        assert_eq!(beyond.to_string(), "embedding: id 48 is beyond the table of 48 rows");
        assert_eq!(difference(linear(&blocks, true).weight(), linear(&floats, true).weight()), 0.0);
        let narrow = linear(&blocks, true).forward(&x.narrow(2, 0, 32).unwrap()).unwrap_err();
        assert!(narrow.to_string().contains("do not fit weight [48, 64]"), "{narrow}");
    }
}

#[test]
fn where_blocks_are_used_and_where_not() {
    let (source, _) = twins(Format::Q8_0);
    let params = Params::load(source.clone(), DType::F32, &CPU).sub("l");
    assert!(params.quantized("weight", 48, 64).unwrap().is_some());
    assert_eq!(params.asked().len(), 1);
    assert!(params.quantized("bias", 48, 1).unwrap().is_none());
    let error = params.quantized("weight", 64, 48).unwrap_err().to_string();
    assert_eq!(error, "tensor l.weight has shape [48, 64], the model's config asks for [64, 48]");
    let trained = params.clone().trainable();
    assert!(trained.quantized("weight", 48, 64).unwrap().is_none());
    assert!(Params::load(source.clone(), DType::BF16, &CPU).sub("l").quantized("weight", 48, 64).unwrap().is_none());
    assert!(Params::outline().quantized("weight", 48, 64).unwrap().is_none());

    // A trained model computes with floats and has gradients; one in blocks says that it has none.
    let x = conjure_core::Var::from_tensor(&input()).unwrap();
    let loss =
        |params: &Params| Linear::new(params, 64, 48, true).unwrap().forward(x.as_tensor()).unwrap().sum_all().unwrap();
    assert!(loss(&trained).backward().unwrap().get(&x).is_some());
    assert_eq!(trained.variables().len(), 2);
    let error = loss(&params).backward().unwrap_err().to_string();
    assert!(error.contains("gradients do not pass through weights in Q8_0 blocks; train a model"), "{error}");
}

#[test]
fn renaming_and_taking_rows_keep_blocks() {
    let (source, _) = twins(Format::Q8_0);
    let view = |transform| View { source_name: "l.weight".to_owned(), transform };
    let views = [
        ("same".to_owned(), View::as_is("l.weight")),
        ("rows".to_owned(), view(Transform::Rows(16..32))),
        ("turned".to_owned(), view(Transform::Transpose)),
    ];
    let renamed = Renamed::new(source.clone(), views).unwrap();
    let bytes = |matrix: Option<Quantized>| matrix.unwrap().bytes().as_ptr();
    assert_eq!(bytes(renamed.quantized("same")), bytes(source.quantized("l.weight")));
    let rows = renamed.quantized("rows").unwrap();
    assert_eq!(rows.bytes().as_ptr(), source.quantized("l.weight").unwrap().row(16).as_ptr());
    let loaded = renamed.load("rows", DType::F32, &CPU).unwrap();
    assert_eq!(difference(&rows.dequantize().unwrap(), &loaded), 0.0);
    assert!(renamed.quantized("turned").is_none());
    assert_eq!(renamed.infos()["rows"].bytes(), 16 * 2 * 34);
    assert_eq!(renamed.load("turned", DType::F32, &CPU).unwrap().dims(), [64, 48]);
    assert_eq!(renamed.gguf(), Some(&Metadata::new("m.gguf")));
    assert_eq!(TensorInfo::new(DType::F16, (2, 3)).bytes(), 12);
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        fuzz_bodies::gguf(&[b"GGUF\x03\0\0\0", &bytes[..]].concat());
        fuzz_bodies::gguf(&bytes);
    }

    #[test]
    fn damaged_files_never_panic(flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4), cut in any::<prop::sample::Index>(), whole in any::<bool>()) {
        let mut bytes = sample();
        for (at, value) in flips {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if !whole {
            bytes.truncate(cut.index(bytes.len()));
        }
        fuzz_bodies::gguf(&bytes);
    }
}
