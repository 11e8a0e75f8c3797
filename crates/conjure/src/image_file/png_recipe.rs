//! PNG files that carry their recipe in text chunks: `parameters` for other tools, `conjure` with everything, as JSON.
//!
//! PNG specification, third edition, section 11.3.3, <https://www.w3.org/TR/png-3/>. `tEXt` holds Latin-1, so text with
//! other characters goes into `iTXt`, as Pillow does. When reading, files of strangers are expected: the chunks are walked without
//! decoding pixels, each text and all of them together are bounded, and compressed ones are unpacked up to that bound only.

use super::write::write_atomically;
use super::{Picture, Recipe};
use crate::{Error, Result};
use std::io::{BufReader, Read, Write};
use std::path::Path;

/// Keyword of the text that other tools read.
pub const PARAMETERS: &str = "parameters";
/// Keyword of the JSON recipe.
pub const CONJURE: &str = "conjure";

const SIGNATURE: [u8; 8] = [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n'];
/// Bytes of one text, and of all texts of a file together, before and after unpacking.
const MAX_TEXT_BYTES: usize = 4 << 20;

/// Writes a picture with its recipe, atomically; the digest of the pixels is filled into the recipe that is stored.
///
/// # Errors
/// A place that cannot be written, a full disk.
pub fn write_png(path: &Path, picture: &Picture, recipe: Option<&Recipe>) -> Result<()> {
    let texts = recipe.map_or_else(Vec::new, |recipe| {
        let recipe = Recipe { picture: picture.sha256(), ..recipe.clone() };
        vec![(PARAMETERS, recipe.parameters()), (CONJURE, recipe.to_json())]
    });
    write_atomically(path, |file| encode(file, picture, &texts))
}

/// Encodes a picture as PNG with these texts, `(keyword, text)`.
///
/// # Errors
/// What the writer says, and a size that PNG cannot hold.
pub fn encode(file: &mut dyn Write, picture: &Picture, texts: &[(&str, String)]) -> std::io::Result<()> {
    let explain = |e: png::EncodingError| match e {
        png::EncodingError::IoError(e) => e,
        e => std::io::Error::other(e),
    };
    let side = |n: usize| u32::try_from(n).map_err(std::io::Error::other);
    let mut encoder = png::Encoder::new(file, side(picture.width)?, side(picture.height)?);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    for (keyword, text) in texts {
        // A zero byte ends nothing in these chunks, but many readers stop there.
        let text = text.replace('\0', "\u{fffd}");
        let latin = text.chars().all(|c| u32::from(c) < 256);
        let added = match latin {
            true => encoder.add_text_chunk((*keyword).to_owned(), text),
            false => encoder.add_itxt_chunk((*keyword).to_owned(), text),
        };
        added.map_err(explain)?;
    }
    let mut writer = encoder.write_header().map_err(explain)?;
    writer.write_image_data(&picture.rgb).map_err(explain)?;
    writer.finish().map_err(explain)
}

/// Reads the recipe of a picture made by Conjure.
///
/// # Errors
/// A file that is no PNG, is damaged, carries no recipe or one that cannot be used.
pub fn read_recipe(path: &Path) -> Result<Recipe> {
    let texts = read_texts(path)?;
    let Some((_, json)) = texts.iter().find(|(keyword, _)| keyword == CONJURE) else {
        let (message, help) = if texts.iter().any(|(keyword, _)| keyword == PARAMETERS) {
            (
                "the picture carries the settings of another program, not a recipe of Conjure",
                "its \"parameters\" text can be read, but other programs draw other random numbers",
            )
        } else {
            (
                "the picture carries no recipe",
                "only PNG pictures as Conjure wrote them have one; uploading or editing removes it",
            )
        };
        return Err(Error::file(path, message).with_help(help));
    };
    Recipe::from_json(json).map_err(|e| {
        let file = Error::file(path, e.to_string());
        match e.help() {
            Some(help) => file.with_help(help),
            None => file,
        }
    })
}

/// Reads all texts of a PNG file, `(keyword, text)`, in the order of the file.
///
/// # Errors
/// A file that is no PNG or is damaged; texts of more than 4 MiB.
pub fn read_texts(path: &Path) -> Result<Vec<(String, String)>> {
    let file = std::fs::File::open(path).map_err(|e| Error::io(path, e))?;
    texts_of(&mut BufReader::new(file)).map_err(|e| match e {
        Refused::Io(e) if e.kind() != std::io::ErrorKind::UnexpectedEof => Error::io(path, e),
        Refused::Io(_) => Error::file(path, "the PNG file is cut off"),
        Refused::Because(message) => Error::file(path, message),
    })
}

/// Reads all texts of a PNG in memory; for tests and fuzzing.
///
/// # Errors
/// What is wrong with it.
pub fn texts_from_bytes(mut bytes: &[u8]) -> std::result::Result<Vec<(String, String)>, String> {
    texts_of(&mut bytes).map_err(|e| match e {
        Refused::Io(e) => e.to_string(),
        Refused::Because(message) => message,
    })
}

enum Refused {
    Io(std::io::Error),
    Because(String),
}

impl From<std::io::Error> for Refused {
    fn from(e: std::io::Error) -> Self {
        Self::Io(e)
    }
}

fn because(message: impl Into<String>) -> Refused {
    Refused::Because(message.into())
}

fn texts_of(file: &mut impl Read) -> std::result::Result<Vec<(String, String)>, Refused> {
    let mut signature = [0; 8];
    match file.read_exact(&mut signature) {
        Err(e) if e.kind() != std::io::ErrorKind::UnexpectedEof => return Err(e.into()),
        result if result.is_err() || signature != SIGNATURE => return Err(because("not a PNG file")),
        _ => {}
    }
    let mut texts = Vec::new();
    // What is left of the bound over all texts: many small bombs are no better than a large one.
    let mut budget = MAX_TEXT_BYTES;
    loop {
        let (length, kind) = (read_u32(file)?, read_u32(file)?.to_be_bytes());
        let name = String::from_utf8_lossy(&kind).into_owned();
        if length > i32::MAX as u32 || !kind.iter().all(u8::is_ascii_alphabetic) {
            return Err(because(format!("damaged PNG: a chunk {name:?} of {length} bytes")));
        }
        if !matches!(&kind, b"tEXt" | b"zTXt" | b"iTXt") {
            let skipped = std::io::copy(&mut file.by_ref().take(u64::from(length) + 4), &mut std::io::sink())?;
            if skipped < u64::from(length) + 4 {
                return Err(Refused::Io(std::io::ErrorKind::UnexpectedEof.into()));
            }
            if &kind == b"IEND" {
                return Ok(texts);
            }
            continue;
        }
        let length = length as usize;
        if length > budget {
            return Err(because(format!("the texts of the PNG take more than {} MiB", MAX_TEXT_BYTES >> 20)));
        }
        // Grows with what is really there, not with what the header claims.
        let mut data = Vec::new();
        file.by_ref().take(length as u64).read_to_end(&mut data)?;
        let stored = read_u32(file)?;
        let mut crc = flate2::Crc::new();
        crc.update(&kind);
        crc.update(&data);
        if data.len() < length || crc.sum() != stored {
            return Err(because(format!("damaged PNG: the checksum of a {name} chunk does not match")));
        }
        budget -= length;
        let (keyword, text, unpacked) =
            parse_text(&kind, &data, budget).map_err(|m| because(format!("a {name} chunk {m}")))?;
        budget = budget.saturating_sub(unpacked);
        texts.push((keyword, text));
    }
}

fn read_u32(file: &mut impl Read) -> std::io::Result<u32> {
    let mut bytes = [0; 4];
    file.read_exact(&mut bytes)?;
    Ok(u32::from_be_bytes(bytes))
}

/// Keyword, text, and how many bytes unpacking took.
fn parse_text(kind: &[u8; 4], data: &[u8], budget: usize) -> std::result::Result<(String, String, usize), String> {
    let latin = |bytes: &[u8]| bytes.iter().copied().map(char::from).collect::<String>();
    let utf8 = |bytes: Vec<u8>| String::from_utf8(bytes).map_err(|_| "is not UTF-8".to_owned());
    let (keyword, rest) = cut(data).ok_or("has no keyword")?;
    if keyword.is_empty() || keyword.len() > 79 {
        return Err(format!("has a keyword of {} bytes", keyword.len()));
    }
    let keyword = latin(keyword);
    match kind {
        b"tEXt" => Ok((keyword, latin(rest), 0)),
        b"zTXt" => {
            let (method, packed) = rest.split_first().ok_or("is cut off")?;
            let bytes = unpack(*method, packed, budget)?;
            Ok((keyword, latin(&bytes), bytes.len()))
        }
        _ => {
            let [flag, method, rest @ ..] = rest else { return Err("is cut off".into()) };
            let (_language, rest) = cut(rest).ok_or("is cut off")?;
            let (_translated, text) = cut(rest).ok_or("is cut off")?;
            match flag {
                0 => Ok((keyword, utf8(text.to_vec())?, 0)),
                1 => {
                    let bytes = unpack(*method, text, budget)?;
                    let unpacked = bytes.len();
                    Ok((keyword, utf8(bytes)?, unpacked))
                }
                flag => Err(format!("has the compression flag {flag}")),
            }
        }
    }
}

/// What stands before and after the first zero byte.
fn cut(data: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = data.iter().position(|byte| *byte == 0)?;
    Some((&data[..at], &data[at + 1..]))
}

fn unpack(method: u8, packed: &[u8], budget: usize) -> std::result::Result<Vec<u8>, String> {
    if method != 0 {
        return Err(format!("has the compression method {method}"));
    }
    let mut bytes = Vec::new();
    let mut decoder = flate2::read::ZlibDecoder::new(packed).take(budget as u64 + 1);
    decoder.read_to_end(&mut bytes).map_err(|e| format!("cannot be unpacked: {e}"))?;
    if bytes.len() > budget {
        return Err(format!("unpacks to more than {} MiB", MAX_TEXT_BYTES >> 20));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::super::recipe::tests::example;
    use super::*;
    use proptest::prelude::*;

    fn picture() -> Picture {
        Picture::new(3, 2, (0..18).map(|v| v * 14).collect()).expect("3x2")
    }

    /// A PNG of one pixel with these chunks after its header.
    fn png_with(chunks: &[(&[u8; 4], Vec<u8>)]) -> Vec<u8> {
        let mut png = Vec::new();
        encode(&mut png, &Picture::filled(1, 1, [0; 3]), &[]).expect("encoded");
        let mut extra = Vec::new();
        for (kind, data) in chunks {
            extra.extend_from_slice(&(data.len() as u32).to_be_bytes());
            extra.extend_from_slice(*kind);
            extra.extend_from_slice(data);
            let mut crc = flate2::Crc::new();
            crc.update(*kind);
            crc.update(data);
            extra.extend_from_slice(&crc.sum().to_be_bytes());
        }
        png.splice(33..33, extra);
        png
    }

    fn zlib(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(bytes).expect("packed");
        encoder.finish().expect("packed")
    }

    #[test]
    fn recipes_round_trip_with_their_pixels() -> Result<()> {
        let folder = tempfile::tempdir().map_err(|e| Error::io("temporary folder", e))?;
        let path = folder.path().join("x.png");
        for prompt in ["a cat", "Käse", "夜の灯台 🗼", "zero \0 byte"] {
            let mut recipe = example();
            recipe.prompt = prompt.into();
            write_png(&path, &picture(), Some(&recipe))?;
            recipe.picture = picture().sha256();
            assert_eq!(read_recipe(&path)?, recipe);
            assert_eq!(Picture::read(&path)?, picture());
            let parameters = (PARAMETERS.to_owned(), recipe.parameters().replace('\0', "\u{fffd}"));
            assert!(read_texts(&path)?.contains(&parameters));
        }
        Ok(())
    }

    #[test]
    fn pictures_without_recipe_are_named_as_such() -> Result<()> {
        let folder = tempfile::tempdir().map_err(|e| Error::io("temporary folder", e))?;
        let path = folder.path().join("x.png");
        let refused = |bytes: &[u8]| {
            std::fs::write(&path, bytes).expect("written");
            let error = read_recipe(&path).expect_err("refused");
            assert_eq!(error.exit_code(), 2);
            error.to_string()
        };
        assert!(refused(&png_with(&[])).contains("carries no recipe"));
        assert!(refused(&png_with(&[(b"tEXt", b"parameters\0a cat".to_vec())])).contains("another program"));
        assert!(refused(&png_with(&[(b"tEXt", b"conjure\0{}".to_vec())])).contains("recipe is damaged"));
        assert!(refused(b"GIF89a").contains("not a PNG"));
        let whole = png_with(&[]);
        assert!(refused(&whole[..whole.len() - 6]).contains("cut off"));
        Ok(())
    }

    #[test]
    fn compressed_texts_are_read_and_bombs_are_not() {
        let mut packed = b"conjure\0\0".to_vec();
        packed.extend(zlib("Käse".as_bytes()));
        let texts = texts_from_bytes(&png_with(&[(b"zTXt", packed.clone())])).expect("read");
        assert_eq!(texts[0].1, "KÃ¤se", "zTXt is Latin-1");
        let mut international = b"conjure\0\x01\0de\0Rezept\0".to_vec();
        international.extend(zlib("Käse".as_bytes()));
        assert_eq!(texts_from_bytes(&png_with(&[(b"iTXt", international)])).expect("read")[0].1, "Käse");

        let mut bomb = b"conjure\0\0".to_vec();
        bomb.extend(zlib(&vec![b'a'; 64 << 20]));
        let error = texts_from_bytes(&png_with(&[(b"zTXt", bomb)])).expect_err("refused");
        assert!(error.contains("unpacks to more than 4 MiB"), "{error}");
        let mut small = b"conjure\0\0".to_vec();
        small.extend(zlib(&vec![b'a'; 3 << 20]));
        assert!(texts_from_bytes(&png_with(&[(b"zTXt", small.clone()), (b"zTXt", small)])).is_err(), "two of 3 MiB");
    }

    #[test]
    fn lying_chunks_are_refused() {
        let message = |chunks: &[(&[u8; 4], Vec<u8>)]| texts_from_bytes(&png_with(chunks)).expect_err("refused");
        assert!(message(&[(b"tEXt", b"no zero byte".to_vec())]).contains("no keyword"));
        assert!(message(&[(b"tEXt", b"\0text".to_vec())]).contains("keyword of 0 bytes"));
        assert!(message(&[(b"iTXt", b"conjure\0\x05\0\0\0x".to_vec())]).contains("flag 5"));
        assert!(message(&[(b"iTXt", b"conjure\0\0\0\0\0\xff".to_vec())]).contains("not UTF-8"));
        assert!(message(&[(b"zTXt", b"conjure\0\x07xx".to_vec())]).contains("method 7"));
        assert!(message(&[(b"zTXt", b"conjure\0\0not zlib".to_vec())]).contains("cannot be unpacked"));
        // A length of 2 GiB in a short file, and a flipped bit.
        let mut lying = png_with(&[(b"tEXt", b"conjure\0x".to_vec())]);
        lying[33..37].copy_from_slice(&0x7fff_ffff_u32.to_be_bytes());
        assert!(texts_from_bytes(&lying).expect_err("refused").contains("more than 4 MiB"));
        let mut flipped = png_with(&[(b"tEXt", b"conjure\0x".to_vec())]);
        flipped[42] ^= 1;
        assert!(texts_from_bytes(&flipped).expect_err("refused").contains("checksum"));
    }

    #[test]
    fn a_full_disk_is_reported_by_the_encoder() {
        /// Takes so many bytes, then is full.
        struct Tiny(usize);
        impl Write for Tiny {
            fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
                let n = bytes.len().min(self.0);
                self.0 -= n;
                if n == 0 { Err(std::io::ErrorKind::StorageFull.into()) } else { Ok(n) }
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let mut whole = Vec::new();
        let texts = [(CONJURE, "text".to_owned())];
        encode(&mut whole, &picture(), &texts).expect("encoded");
        for room in 0..whole.len() {
            let error = encode(&mut Tiny(room), &picture(), &texts).expect_err("the disk is full");
            assert_eq!(error.kind(), std::io::ErrorKind::StorageFull, "room for {room} bytes");
        }
    }

    proptest! {
        #[test]
        fn damaged_files_never_panic(at in 0usize..400, value: u8, cut in 0usize..400) {
            let recipe = example();
            let mut png = Vec::new();
            let texts = [(PARAMETERS, recipe.parameters()), (CONJURE, format!("{}ü🗼", recipe.to_json()))];
            encode(&mut png, &picture(), &texts).expect("encoded");
            let n = png.len();
            png[at % n] = value;
            let _ = texts_from_bytes(&png[..n - cut % n]);
        }
    }
}
