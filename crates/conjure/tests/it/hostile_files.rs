//! Damaged copies of valid files: every reader answers with a value or an error, never with a panic.

use crate::{fuzz_bodies, fuzz_training};
use conjure::image_file::{Picture, png_recipe};
use conjure::tokens::ClipTokenizer;
use conjure_core::rng::{Generator, keyed};
use conjure_core::{DType, Device, Tensor, weights};
use std::path::Path;

/// `count` damaged copies of `bytes`: a few bytes changed, a stretch cut out or doubled, the end missing.
fn damaged(bytes: &[u8], name: &str, count: usize) -> Vec<Vec<u8>> {
    let mut random = keyed(7, name);
    let mut below = move |n: usize| (random.uniform(1)[0] * n as f32) as usize % n.max(1);
    let copies = (0..count).map(|_| {
        let mut copy = bytes.to_vec();
        let from = below(bytes.len());
        let stretch = from..(from + 1 + below(64)).min(bytes.len());
        match below(4) {
            0 => copy.truncate(from),
            1 => drop(copy.drain(stretch)),
            2 => drop(copy.splice(from..from, bytes[stretch].iter().copied())),
            _ => (0..1 + below(8)).for_each(|_| copy[below(bytes.len())] = below(256) as u8),
        }
        copy
    });
    copies.collect()
}

#[test]
fn damage_is_of_every_kind() {
    let bytes: Vec<u8> = (0..200).collect();
    let copies = damaged(&bytes, "kinds", 100);
    let count = |is: &dyn Fn(&Vec<u8>) -> bool| copies.iter().filter(|copy| is(copy)).count();
    assert!(count(&|c| c.len() > 200) > 10, "a stretch doubled");
    assert!(count(&|c| c.len() < 200 && c.last() == Some(&199)) > 10, "a stretch cut out");
    assert!(count(&|c| bytes.starts_with(c)) > 10, "the end missing");
    assert!(count(&|c| c.len() == 200 && *c != bytes) > 10, "bytes changed");
}

#[test]
fn tokenizer_files() {
    let saved = tempfile::tempdir().unwrap();
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/clip_tokenizer");
    ClipTokenizer::load(&fixture).unwrap().save(saved.path()).unwrap();
    let (mut opened, mut refused) = (0, 0);
    // The combined file is read first, so it goes before the separate ones are damaged.
    for name in fuzz_bodies::TOKENIZER_FILES {
        let path = saved.path().join(name);
        let valid = std::fs::read(&path).unwrap();
        for copy in damaged(&valid, name, 60) {
            std::fs::write(&path, copy).unwrap();
            match fuzz_bodies::tokenizer_folder(saved.path()) {
                true => opened += 1,
                false => refused += 1,
            }
        }
        if name == "tokenizer.json" {
            std::fs::remove_file(&path).unwrap();
        } else {
            std::fs::write(&path, valid).unwrap();
        }
    }
    assert!(opened > 0 && refused > 100, "{opened} opened, {refused} refused");
}

#[test]
fn tokenizer_files_joined_as_the_fuzzer_sees_them() {
    let saved = tempfile::tempdir().unwrap();
    ClipTokenizer::tiny().save(saved.path()).unwrap();
    let files = fuzz_bodies::TOKENIZER_FILES.map(|name| std::fs::read(saved.path().join(name)).unwrap());
    for data in damaged(&files.join(&0xff), "joined", 20) {
        fuzz_bodies::tokenizer(&data);
    }
}

#[test]
fn png_files() {
    let texts = [("parameters", "a cat\nSteps: 20".to_owned()), ("conjure", "{\"prompt\":\"夜\"}".to_owned())];
    let mut png = Vec::new();
    png_recipe::encode(&mut png, &Picture::filled(9, 7, [1, 2, 3]), &texts).unwrap();
    assert_eq!(png_recipe::texts_from_bytes(&png).unwrap().len(), 2);
    let refused = damaged(&png, "png", 300).iter().filter(|copy| !fuzz_bodies::png(copy)).count();
    assert!(refused > 100, "{refused} refused");
    for text in [&b"\0conjure\0{\"format\":1}"[..], b"\x01conjure\0\0x\x9c", b"\x02conjure\0\0\0de\0Rezept\0{}"] {
        damaged(text, "text", 100).iter().for_each(|copy| fuzz_bodies::png_text(copy));
    }
}

#[test]
fn prompts() {
    let prompt = r"a (red:1.3) [cat], ((x) y:0.5) BREAK \(literal\) 夜 :) (a [b) <|endoftext|>";
    let tokenizer = ClipTokenizer::tiny();
    let copies = damaged(prompt.as_bytes(), "prompt", 500);
    let encoded = copies.iter().filter(|copy| fuzz_bodies::prompt(&tokenizer, copy)).count();
    assert!(encoded > 400, "{encoded} of 500 encoded");
}

#[test]
fn data_archives() {
    let folder = tempfile::tempdir().unwrap();
    let archive = std::fs::read(crate::train_networks::data_set(folder.path())).unwrap();
    assert!(fuzz_training::data_archive(&archive));
    let copies = damaged(&archive, "archive", 300);
    let opened = copies.iter().filter(|copy| fuzz_training::data_archive(copy)).count();
    // A damaged picture is found when it is looked at.
    assert!((10..290).contains(&opened), "{opened} of 300 opened");
    let line = r#"{"file_name":"a.png","text":"ein Herz","concept":"heart","style":"x","labels":{"de":"Herz","en":"heart"},"split":"train"}"#;
    let table = format!("{line}\n{line}\n");
    assert!(fuzz_training::data_table(table.as_bytes()));
    let opened = damaged(table.as_bytes(), "table", 300).iter().filter(|copy| fuzz_training::data_table(copy)).count();
    assert!((10..290).contains(&opened), "{opened} of 300 opened");
}

#[test]
fn parallel_texts() {
    let entry = r#"{"concept":"1f431","split":"train","texts":{"de":["Katze","Kater","Tier"],"en":["cat","animal"]},"alternatives":{"de":1}}"#;
    let sentences = "{\"en\": \"a cat\", \"de\": \"eine Katze\"}\n{\"en\": \"a dog\", \"de\": \"ein Hund\"}\n";
    let table = "en\tde\tfr\na cat\teine Katze\tun chat\na dog\t\tun chien\n";
    for (name, sound) in
        [("entries", format!("{entry}\n{entry}\n")), ("sentences", sentences.into()), ("table", table.into())]
    {
        assert_eq!(fuzz_training::translations(sound.as_bytes()), 1, "{name}");
        let copies = damaged(sound.as_bytes(), name, 200);
        let opened = copies.iter().filter(|copy| fuzz_training::translations(copy) > 0).count();
        assert!((5..195).contains(&opened), "{name}: {opened} of 200 opened");
    }
}

#[test]
fn learned_token_files() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/adapters");
    let rows = Tensor::new(&[[1f32, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]], &Device::Cpu).unwrap();
    let saved = file_of(&[("<x>", &rows)]);
    assert!(fuzz_training::learned_tokens(&saved));
    let fit = damaged(&saved, "learned", 400).iter().filter(|copy| fuzz_training::learned_tokens(copy)).count();
    assert!((1..390).contains(&fit), "{fit} of 400 fit");
    let wide = Tensor::ones((2, 6), DType::F32, &Device::Cpu).unwrap();
    let both = file_of(&[("clip_l", &rows), ("clip_g", &wide)]);
    assert!(fuzz_training::learned_tokens(&both));
    let fit = damaged(&both, "both", 200).iter().filter(|copy| fuzz_training::learned_tokens(copy)).count();
    assert!(fit < 200, "{fit} of 200 fit");
    // A pickle, of vectors of another width.
    let pickle = std::fs::read(fixtures.join("spiky.pt")).unwrap();
    let fit = damaged(&pickle, "pickle", 200).iter().filter(|copy| fuzz_training::learned_tokens(copy)).count();
    assert!(fit < 200, "{fit} of 200 fit");
}

/// The bytes of a safetensors file.
fn file_of(tensors: &[(&str, &Tensor)]) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    let tensors = tensors.iter().map(|(name, tensor)| ((*name).to_owned(), (*tensor).clone())).collect();
    weights::save(&path, &tensors, &Default::default()).unwrap();
    std::fs::read(path).unwrap()
}

#[test]
fn recipes() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recipes");
    let (mut all, mut read) = (0, 0);
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read(&path).unwrap();
        assert!(fuzz_training::recipe(&text), "{}", path.display());
        let copies = damaged(&text, &path.file_name().unwrap().to_string_lossy(), 100);
        read += copies.iter().filter(|copy| fuzz_training::recipe(copy)).count();
        all += copies.len();
    }
    assert!(read > all / 20 && read < all, "{read} of {all} read");
    for text in ["objective = \"data\"\nsteps = 1\nbatch = 1", "optimizer.learning_rate=[", "a.b.c=1", "=", "steps.x=3"]
    {
        fuzz_training::recipe(text.as_bytes());
    }
}
