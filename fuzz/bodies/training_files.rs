//! Bodies of the fuzz targets for data sets, learned tokens and recipes, shared with `crates/conjure/tests`: what strangers
//! wrote is refused with an error or can be used. A panic, an endless loop or unbounded memory is a bug.

use conjure::data::Dataset;
use conjure::data::translation::Translations;
use conjure::evaluate::dictionary::Dictionary;
use conjure::tokens::LearnedToken;
use conjure::train::{self, Recipe};
use conjure::{Error, Result};
use std::io::{Cursor, Write};
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

/// Pictures that are looked at of one data set.
const LOOKED_AT: usize = 4;

/// A data set in one file; whether it could be opened.
pub fn data_archive(data: &[u8]) -> bool {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("data.zip");
    std::fs::write(&path, data).expect("written");
    let Some(dataset) = used(Dataset::open(&path)) else { return false };
    assert!(!dataset.is_empty() && !dataset.digest().is_empty());
    for i in 0..dataset.len().min(LOOKED_AT) {
        let _ = dataset.record(i);
        if let Some(picture) = used(dataset.rgb(i, 8)) {
            assert_eq!((picture.width, picture.height), (8, 8));
        }
    }
    true
}

/// The caption table inside a sound archive with the picture `a.png`: mutations are not lost on the archive's checksums.
pub fn data_table(data: &[u8]) -> bool {
    let mut picture = Vec::new();
    conjure::image_file::png_recipe::encode(&mut picture, &conjure::image_file::Picture::filled(2, 2, [9; 3]), &[])
        .expect("encoded into memory");
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in [("metadata.jsonl", data), ("a.png", &picture)] {
        writer.start_file(name, SimpleFileOptions::default()).expect("a new entry in memory");
        writer.write_all(bytes).expect("writing to memory");
    }
    data_archive(&writer.finish().expect("finishing in memory").into_inner())
}

/// Parallel texts: the same bytes as a table, as lines of JSON, as an archive, and as the table inside a sound archive; how
/// many of the four could be opened.
pub fn translations(data: &[u8]) -> usize {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    writer.start_file("translation.jsonl", SimpleFileOptions::default()).expect("a new entry in memory");
    writer.write_all(data).expect("writing to memory");
    let archive = writer.finish().expect("finishing in memory").into_inner();
    let mut opened = 0;
    for (name, bytes) in [("a.tsv", data), ("a.jsonl", data), ("a.zip", data), ("b.zip", &archive)] {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).expect("written");
        let Some(set) = used(Translations::open(&path)) else { continue };
        opened += 1;
        let mut generator = conjure_core::rng::Torch::new(1);
        for entry in 0..set.entries().len().min(LOOKED_AT) {
            let copy = set.draw(entry, 1.0, &mut generator);
            assert!(copy.from != copy.to || copy.source == copy.target);
            let pair = set.draw(entry, 0.0, &mut generator);
            assert!(pair.from != pair.to && !pair.source.is_empty() && !pair.target.is_empty());
            if let Some(dictionary) = used(Dictionary::learn(&set, &pair.from, &pair.to)) {
                assert!(!dictionary.translate(&pair.source).is_empty());
            }
        }
    }
    opened
}

/// A file of learned tokens, for models with one and with two text encoders; whether it fits one of them.
pub fn learned_tokens(data: &[u8]) -> bool {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("learned.safetensors");
    std::fs::write(&path, data).expect("written");
    let mut fits = false;
    for widths in [&[4][..], &[4, 6]] {
        for token in used(LearnedToken::read(&path, widths)).into_iter().flatten() {
            fits = true;
            assert_eq!(token.vectors.len(), widths.len());
            for (rows, width) in token.vectors.iter().zip(widths) {
                assert_eq!(rows.dims(), [token.len(), *width]);
            }
        }
    }
    fits
}

/// A recipe, and a change to one; whether it could be read.
pub fn recipe(data: &[u8]) -> bool {
    let text = String::from_utf8_lossy(data);
    let sound = "objective = \"clip\"\nsteps = 1\nbatch = 2\n";
    let _ = used(Recipe::parse(sound, &[text.clone().into_owned()]));
    let Some(recipe) = used(Recipe::parse(&text, &[])) else { return false };
    let written = recipe.to_toml();
    let again = Recipe::parse(&written, &[]).expect("what was written can be read");
    assert_eq!(again.to_toml(), written);
    assert!(recipe.differences(&again).is_empty());
    let _ = used(recipe.own::<train::autoencoder_kl::Settings>());
    let _ = used(recipe.own::<train::clip::Settings>());
    let _ = used(recipe.own::<train::image_classifier::Settings>());
    let _ = used(recipe.own::<train::latent_diffusion::Settings>());
    let _ = used(recipe.own::<train::lora::Settings>());
    let _ = used(recipe.own::<train::super_resolution::Settings>());
    let _ = used(recipe.own::<train::textual_inversion::Settings>());
    let _ = used(recipe.own::<train::translation::Settings>());
    true
}

/// What could be read, or nothing after an error that says something and is the file's fault.
fn used<T>(read: Result<T>) -> Option<T> {
    read.map_err(|error: Error| assert!(!error.to_string().is_empty() && error.exit_code() == 2, "{error}")).ok()
}
