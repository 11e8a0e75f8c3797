//! Reading PyTorch checkpoints: against tensors that `tools/reference/checkpoints.py` stored beside them, and against
//! malice. The pickles here are written by hand, opcode by opcode.

use crate::fuzz_bodies;
use conjure_core::weights::{self, Checkpoint, Safetensors, TensorSource};
use conjure_core::{DType, Device, Result};
use proptest::prelude::*;
use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

const FIXTURES: [&str; 5] = [
    "checkpoint_flat.pt",
    "checkpoint_nested.pt",
    "checkpoint_protocol4.pt",
    "checkpoint_legacy.pt",
    "checkpoint_deflated.pt",
];

#[test]
fn every_layout_holds_the_tensors_that_were_saved() {
    let expected = Safetensors::open(fixture("checkpoint_expected.safetensors")).unwrap();
    for name in FIXTURES {
        let source = weights::open(fixture(name)).unwrap();
        assert_eq!(source.infos(), expected.infos(), "{name}");
        for tensor in expected.infos().keys() {
            let values = |source: &dyn TensorSource| {
                let loaded = source.load(tensor, DType::F64, &Device::Cpu).unwrap();
                loaded.flatten_all().unwrap().to_vec1::<f64>().unwrap()
            };
            assert_eq!(values(&*source), values(&expected), "{name}: {tensor}");
        }
    }
}

/// A zip archive of these entries.
fn archive(entries: &[(&str, &[u8])], method: CompressionMethod) -> Vec<u8> {
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in entries {
        writer.start_file(*name, SimpleFileOptions::default().compression_method(method)).unwrap();
        writer.write_all(bytes).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

fn read(bytes: Vec<u8>) -> Result<Checkpoint> {
    Checkpoint::from_bytes(bytes, "m.pt")
}

fn refusal(bytes: Vec<u8>) -> String {
    let error = read(bytes).err().expect("a bad checkpoint was read");
    assert_eq!(error.exit_code(), 2);
    assert!(error.help().is_some(), "{error}");
    error.to_string()
}

/// What the pickle is refused for.
fn pickled(pickle: &[u8]) -> String {
    let storage = [0; 16];
    refusal(archive(&[("m/data.pkl", pickle), ("m/data/0", &storage)], CompressionMethod::Stored))
}

fn text(text: &str) -> Vec<u8> {
    [b"X".as_slice(), &(text.len() as u32).to_le_bytes(), text.as_bytes()].concat()
}

fn int(value: i64) -> Vec<u8> {
    [b"\x8a\x08".as_slice(), &value.to_le_bytes()].concat()
}

fn ints(values: &[i64]) -> Vec<u8> {
    [b"(".to_vec(), values.iter().flat_map(|&v| int(v)).collect(), b"t".to_vec()].concat()
}

/// `{"w": tensor}` over a float storage `key` of `len` elements.
fn tensor(key: &str, len: i64, offset: i64, shape: &[i64], strides: &[i64]) -> Vec<u8> {
    [
        b"\x80\x02}".to_vec(),
        text("w"),
        b"ctorch._utils\n_rebuild_tensor_v2\n((".to_vec(),
        text("storage"),
        b"ctorch\nFloatStorage\n".to_vec(),
        text(key),
        text("cpu"),
        int(len),
        b"tQ".to_vec(),
        int(offset),
        ints(shape),
        ints(strides),
        b"\x89}tRs.".to_vec(),
    ]
    .concat()
}

#[test]
fn tensors_that_lie() {
    let good = tensor("0", 4, 0, &[2, 2], &[2, 1]);
    let source = read(archive(&[("m/data.pkl", &good), ("m/data/0", &[0; 16])], CompressionMethod::Stored)).unwrap();
    assert_eq!(source.infos()["w"].shape.dims(), [2, 2]);
    for (pickle, expected) in [
        (tensor("0", 4, 1, &[2, 2], &[2, 1]), "reaches past the 4 elements of storage 0"),
        (tensor("0", 4, 0, &[2, 2], &[i64::MAX, 1]), "reaches past the 4 elements"),
        (tensor("0", 4, 0, &[1 << 40], &[0]), "reaches past the 4 elements"),
        (tensor("0", 4, 0, &[1 << 40, 1 << 40], &[0, 0]), "impossible shape"),
        (tensor("0", 4, 0, &[0, 1 << 62, 1 << 62], &[0, 0, 0]), "impossible shape"),
        (tensor("0", 4, -1, &[2], &[1]), "a tensor's offset in the pickle is -1, less than 0"),
        (tensor("0", 4, 0, &[2], &[1, 1]), "has shape [2] but strides [1, 1]"),
        (tensor("0", 4, 0, &[1; 17], &[1; 17]), "has 17 dimensions"),
        (tensor("0", 5, 0, &[5], &[1]), "lies in storage 0 of 5 elements, which has only 16 bytes"),
        (tensor("0", i64::MAX, 0, &[5], &[1]), "which has only 16 bytes"),
        (tensor("1", 4, 0, &[4], &[1]), "tensor w lies in storage 1, which the file lacks"),
        (tensor(&"k".repeat(600), 4, 0, &[4], &[1]), "what is no short text"),
    ] {
        let message = pickled(&pickle);
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn pickles_that_ask_to_run_something() {
    for (global, expected) in [
        ("cos\nsystem\n", "os.system"),
        ("cposix\nsystem\n", "posix.system"),
        ("csubprocess\nPopen\n", "subprocess.Popen"),
        ("cbuiltins\neval\n", "builtins.eval"),
        ("c__builtin__\ngetattr\n", "__builtin__.getattr"),
        ("cimportlib.util\nfind_spec\n", "importlib.util.find_spec"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let victim = folder.path().join("ran");
        let command = format!("touch {}", victim.display());
        let pickle = [b"\x80\x02".to_vec(), global.into(), b"(".to_vec(), text(&command), b"tR.".to_vec()].concat();
        assert_eq!(pickled(&pickle), format!("m.pt: the pickle asks to run {expected}; nothing was run"));
        assert!(!victim.exists());
    }
    let by_stack = [b"\x80\x04".to_vec(), text("os"), text("system"), b"\x93(".to_vec(), text("id"), b"tR.".to_vec()];
    assert!(pickled(&by_stack.concat()).contains("asks to run os.system"));
    // What is only unknown is data, and the tensors beside it are read.
    let beside = tensor("0", 4, 0, &[4], &[1]);
    let unknown = [b"\x80\x02}".to_vec(), text("callback"), b"clightning\nModelCheckpoint\n)R}bs".to_vec()].concat();
    let both = [unknown, beside[3..].to_vec()].concat();
    assert!(read(archive(&[("m/data.pkl", &both), ("m/data/0", &[0; 16])], CompressionMethod::Stored)).is_ok());
}

#[test]
fn pickles_that_are_bombs() {
    let huge = |opcode: &[u8], length: &[u8]| pickled(&[b"\x80\x02", opcode, length, b"x."].concat());
    assert!(huge(b"X", &u32::MAX.to_le_bytes()).contains("the pickle wants 4294967295 bytes"));
    assert!(huge(b"\x8b", &u32::MAX.to_le_bytes()).contains("the pickle wants 4294967295 bytes"));
    assert!(huge(b"\x8d", &u64::MAX.to_le_bytes()).contains("the pickle wants 18446744073709551615 bytes"));
    assert!(huge(b"\x96", &u64::MAX.to_le_bytes()).contains("the pickle wants 18446744073709551615 bytes"));

    // A million lists, each inside the next; then more values than any checkpoint has.
    let deep = [b"\x80\x02".to_vec(), b"]".repeat(900_000), b"a".repeat(899_999), b".".to_vec()].concat();
    assert!(pickled(&deep).contains("not a dictionary of tensors"));
    assert!(
        pickled(&[b"\x80\x02".to_vec(), b"N".repeat(1_000_001), b".".to_vec()].concat())
            .contains("more than 1000000 values")
    );

    // Each list holds the one before it ten times: 10^40 elements, if it were unfolded.
    let memo: Vec<u8> =
        (1..40_u8).flat_map(|i| [b"](".to_vec(), [b'h', i - 1].repeat(10), vec![b'e', b'q', i]].concat()).collect();
    assert!(pickled(&[b"\x80\x02]q\0".to_vec(), memo, b".".to_vec()].concat()).contains("not a dictionary"));
    // A dictionary inside itself.
    let cycle = [b"\x80\x02}q\0".to_vec(), text("state_dict"), b"h\0s.".to_vec()].concat();
    assert!(pickled(&cycle).contains("no state dictionary with tensors"));
}

#[test]
fn pickles_that_are_malformed() {
    for (pickle, expected) in [
        (b"".as_slice(), "the pickle wants 1 bytes at byte 0, 0 are left"),
        (b"\x80\x02", "the pickle wants 1 bytes at byte 2, 0 are left"),
        (b".", "the pickle's stack is empty"),
        (b"(0", "the pickle's stack is empty"),
        (b"t", "lacks a mark"),
        (b"h\x07", "recalls value 7, which it never kept"),
        (b"NNa", "appends to what is no list"),
        (b"N(NNu", "sets items of what is no dictionary"),
        (b"NQ", "a storage's parts in the pickle are no tuple"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n)R", "a tensor in the pickle has no storage"),
        (b"ctorch", "has no end"),
        (b"I1\n.", "opcode 0x49 at byte 0 is not supported"),
        (b"].", "not a dictionary of tensors"),
        (b"}.", "no state dictionary with tensors"),
    ] {
        let message = pickled(pickle);
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn archives_that_lie() {
    let stored = CompressionMethod::Stored;
    assert!(refusal(b"PK\x03\x04 and no more".to_vec()).contains("not a whole zip archive"));
    assert!(refusal(archive(&[("m/readme", b"hello")], stored)).contains("has no data.pkl"));
    assert!(refusal(archive(&[("a/data.pkl", b"}."), ("b/data.pkl", b"}.")], stored)).contains("several data.pkl"));
    let script = archive(&[("m/data.pkl", b"}."), ("m/constants.pkl", b").")], stored);
    assert!(refusal(script).contains("TorchScript program"));
    let big = archive(&[("m/data.pkl", b"}."), ("m/byteorder", b"big")], stored);
    assert!(refusal(big).contains("big-endian"));

    // A pickle of 40 MB of zeros deflates to 40 kB.
    let bomb = archive(&[("m/data.pkl", &vec![0; 40 << 20])], CompressionMethod::Deflated);
    assert!(bomb.len() < 100_000);
    assert!(refusal(bomb).contains("data.pkl has 41943040 bytes, more than the limit"));

    // The central directory claims another size than the stream has.
    let pickle = tensor("0", 4, 0, &[2, 2], &[2, 1]);
    let packed = archive(&[("m/data.pkl", &pickle), ("m/data/0", &[0; 16])], CompressionMethod::Deflated);
    let directory = packed.windows(4).rposition(|w| w == b"PK\x01\x02").unwrap();
    let claim = |size: u32| {
        let mut lying = packed.clone();
        lying[directory + 24..][..4].copy_from_slice(&size.to_le_bytes());
        lying
    };
    assert!(refusal(claim(u32::MAX - 1)).contains("claims 4294967294 bytes in"));
    let short = read(claim(17)).unwrap().load("w", DType::F32, &Device::Cpu).unwrap_err();
    assert!(short.to_string().contains("m.pt: entry"), "{short}");
    assert!(read(packed).unwrap().load("w", DType::F32, &Device::Cpu).is_ok());
}

proptest! {
    #[test]
    fn random_pickles_never_panic(pickle in proptest::collection::vec(any::<u8>(), 0..200)) {
        fuzz_bodies::pickle(&pickle);
        fuzz_bodies::checkpoint(&pickle);
    }

    #[test]
    fn damaged_checkpoints_never_panic(
        which in 0..FIXTURES.len(),
        flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in proptest::option::of(any::<prop::sample::Index>()),
    ) {
        let mut bytes = std::fs::read(fixture(FIXTURES[which])).unwrap();
        for (at, value) in flips {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        fuzz_bodies::checkpoint(&bytes);
    }

    #[test]
    fn damaged_pickles_never_panic(flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let mut pickle = tensor("0", 4, 0, &[2, 2], &[2, 1]);
        for (at, value) in flips {
            let at = at.index(pickle.len());
            pickle[at] = value;
        }
        fuzz_bodies::pickle(&pickle);
    }
}
