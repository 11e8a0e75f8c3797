//! A picture in memory, and how it is read from PNG, JPEG and WebP files of strangers.

use crate::{Error, Result};
use image::imageops::FilterType;
use image::{DynamicImage, ImageDecoder, ImageError, ImageReader, Limits};
use sha2::{Digest, Sha256};
use std::io::{BufReader, Cursor, Read};
use std::path::Path;

/// Wider or higher pictures are refused.
const MAX_SIDE: u32 = 16_384;
/// Pictures of more pixels are refused before they are decoded: 64 million, 8000 x 8000.
const MAX_PIXELS: u64 = 64_000_000;
/// Memory that a decoder may take.
const MAX_DECODER_BYTES: u64 = 1 << 30;
/// Larger files are refused before they are read.
const MAX_FILE_BYTES: u64 = 256 << 20;

/// Pixels, 8 bits each of red, green and blue, in rows from the top.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    /// Pixels in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// `height * width * 3` values.
    pub rgb: Vec<u8>,
}

/// One value per pixel: 0 keeps the picture, 255 makes it anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mask {
    /// Pixels in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// `height * width` values.
    pub values: Vec<u8>,
}

impl Picture {
    /// A picture of these pixels.
    ///
    /// # Errors
    /// A side of zero, or a number of values that is not `width * height * 3`.
    pub fn new(width: usize, height: usize, rgb: Vec<u8>) -> Result<Self> {
        let expected = width.checked_mul(height).and_then(|n| n.checked_mul(3));
        if width == 0 || height == 0 || expected != Some(rgb.len()) {
            return Err(Error::request(format!("{} values are not a picture of {width}x{height} pixels", rgb.len())));
        }
        Ok(Self { width, height, rgb })
    }

    /// A picture of one colour.
    pub fn filled(width: usize, height: usize, colour: [u8; 3]) -> Self {
        Self { width, height, rgb: colour.repeat(width * height) }
    }

    /// Reads a PNG, JPEG or WebP file, turned upright as its EXIF data says. Transparency is dropped, as Pillow's
    /// `convert("RGB")` does.
    ///
    /// # Errors
    /// A file that is missing, damaged, of another format, or larger than 16384 pixels a side or 64 million pixels.
    pub fn read(path: &Path) -> Result<Self> {
        Ok(Self::from_image(&decode(path)?))
    }

    fn from_image(image: &DynamicImage) -> Self {
        let rgb = image.to_rgb8();
        Self { width: rgb.width() as usize, height: rgb.height() as usize, rgb: rgb.into_raw() }
    }

    /// The picture at another size, by Lanczos' filter of three lobes.
    ///
    /// # Errors
    /// A size of zero or beyond the limits of [`Self::read`].
    pub fn resized(&self, width: usize, height: usize) -> Result<Self> {
        check_size(width as u64, height as u64).map_err(Error::request)?;
        if (width, height) == (self.width, self.height) {
            return Ok(self.clone());
        }
        let source = image::RgbImage::from_raw(self.width as u32, self.height as u32, self.rgb.clone())
            .ok_or_else(|| Error::request(format!("not a picture of {}x{} pixels", self.width, self.height)))?;
        let resized = image::imageops::resize(&source, width as u32, height as u32, FilterType::Lanczos3);
        Ok(Self { width, height, rgb: resized.into_raw() })
    }

    /// SHA-256 of the pixels (`rgb`, without the size), in hexadecimal.
    pub fn sha256(&self) -> String {
        crate::digest::hex(&Sha256::digest(&self.rgb))
    }

    /// Copies `other` into this picture with its top left corner at `(x, y)`; what lies outside is cut off.
    pub fn paste(&mut self, other: &Self, x: usize, y: usize) {
        let columns = other.width.min(self.width.saturating_sub(x));
        for row in 0..other.height.min(self.height.saturating_sub(y)) {
            let from = row * other.width * 3;
            let to = ((y + row) * self.width + x) * 3;
            self.rgb[to..to + columns * 3].copy_from_slice(&other.rgb[from..from + columns * 3]);
        }
    }
}

impl Mask {
    /// Reads a mask: the lightness of the picture's colours, as Pillow's `convert("L")` weighs them. Of a picture in one
    /// flat colour whose transparency varies, the opacity is the mask.
    ///
    /// # Errors
    /// As [`Picture::read`].
    pub fn read(path: &Path) -> Result<Self> {
        let image = decode(path)?;
        let rgba = image.to_rgba8();
        let (width, height) = (rgba.width() as usize, rgba.height() as usize);
        let luma: Vec<u8> = rgba.pixels().map(|p| luma([p[0], p[1], p[2]])).collect();
        let alpha: Vec<u8> = rgba.pixels().map(|p| p[3]).collect();
        let flat = |values: &[u8]| values.windows(2).all(|pair| pair[0] == pair[1]);
        let values = if flat(&luma) && !flat(&alpha) { alpha } else { luma };
        Ok(Self { width, height, values })
    }

    /// The mask at another size, by Lanczos' filter of three lobes.
    ///
    /// # Errors
    /// As [`Picture::resized`].
    pub fn resized(&self, width: usize, height: usize) -> Result<Self> {
        check_size(width as u64, height as u64).map_err(Error::request)?;
        if (width, height) == (self.width, self.height) {
            return Ok(self.clone());
        }
        let source = image::GrayImage::from_raw(self.width as u32, self.height as u32, self.values.clone())
            .ok_or_else(|| Error::request(format!("not a mask of {}x{} pixels", self.width, self.height)))?;
        let resized = image::imageops::resize(&source, width as u32, height as u32, FilterType::Lanczos3);
        Ok(Self { width, height, values: resized.into_raw() })
    }
}

/// ITU-R 601 luma in 16-bit fixed point, as Pillow computes it.
fn luma([r, g, b]: [u8; 3]) -> u8 {
    ((u32::from(r) * 19_595 + u32::from(g) * 38_470 + u32::from(b) * 7_471 + 0x8000) >> 16) as u8
}

fn check_size(width: u64, height: u64) -> std::result::Result<(), String> {
    if width == 0 || height == 0 {
        return Err(format!("a picture of {width}x{height} pixels has no content"));
    }
    if width > u64::from(MAX_SIDE) || height > u64::from(MAX_SIDE) || width * height > MAX_PIXELS {
        return Err(format!("{width}x{height} pixels are too many: {}", limit()));
    }
    Ok(())
}

fn limit() -> String {
    format!("the limit is {MAX_SIDE} pixels a side and {} million in all", MAX_PIXELS / 1_000_000)
}

fn decode(path: &Path) -> Result<DynamicImage> {
    let file = std::fs::File::open(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => Error::file(path, "there is no such file"),
        _ => Error::io(path, e),
    })?;
    let mut bytes = Vec::new();
    let mut bounded = BufReader::new(file).take(MAX_FILE_BYTES + 1);
    bounded.read_to_end(&mut bytes).map_err(|e| Error::io(path, e))?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(Error::file(path, format!("larger than {} MiB", MAX_FILE_BYTES >> 20)));
    }
    decode_bytes(&bytes).map_err(|message| {
        Error::file(path, message).with_help("give a PNG, JPEG or WebP picture that other programs can open")
    })
}

/// Decodes a picture from memory, upright; sizes are checked before memory is taken.
pub(crate) fn decode_bytes(bytes: &[u8]) -> std::result::Result<DynamicImage, String> {
    let mut reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format().map_err(|e| e.to_string())?;
    let format = reader.format().ok_or("not a picture: the file begins like no known format")?;
    let mut limits = Limits::default();
    limits.max_alloc = Some(MAX_DECODER_BYTES);
    reader.limits(limits);
    let format = format.to_mime_type();
    let explain = |e: ImageError| match e {
        ImageError::Limits(_) => format!("larger than a picture may be: {}", limit()),
        ImageError::Unsupported(_) => format!("pictures of type {format} cannot be read"),
        e => format!("damaged picture of type {format}: {e}"),
    };
    let mut decoder = reader.into_decoder().map_err(explain)?;
    let (width, height) = decoder.dimensions();
    check_size(u64::from(width), u64::from(height))?;
    let orientation = decoder.orientation().map_err(explain)?;
    let mut image = DynamicImage::from_decoder(decoder).map_err(explain)?;
    image.apply_orientation(orientation);
    Ok(image)
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::ImageFormat;

    fn saved(image: &DynamicImage, format: ImageFormat) -> (tempfile::TempDir, std::path::PathBuf) {
        let folder = tempfile::tempdir().expect("a temporary folder");
        // The content decides, not the name.
        let path = folder.path().join("picture.dat");
        image.save_with_format(&path, format).expect("saved");
        (folder, path)
    }

    #[test]
    fn reads_png_webp_and_jpeg() -> Result<()> {
        let pixels = vec![10, 20, 30, 250, 240, 230, 1, 2, 3, 90, 80, 70];
        let image = image::RgbImage::from_raw(2, 2, pixels.clone()).expect("2x2");
        for format in [ImageFormat::Png, ImageFormat::WebP] {
            let (_folder, path) = saved(&DynamicImage::ImageRgb8(image.clone()), format);
            assert_eq!(Picture::read(&path)?, Picture::new(2, 2, pixels.clone())?);
        }
        let grey = DynamicImage::ImageRgb8(image::RgbImage::from_pixel(16, 8, image::Rgb([128, 128, 128])));
        let (_folder, path) = saved(&grey, ImageFormat::Jpeg);
        let picture = Picture::read(&path)?;
        assert_eq!((picture.width, picture.height), (16, 8));
        assert!(picture.rgb.iter().all(|v| v.abs_diff(128) <= 2));
        Ok(())
    }

    #[test]
    fn exif_orientation_turns_the_picture_upright() {
        // A JPEG of 16x8 pixels with an EXIF segment that says "rotated by 90 degrees" (orientation 6).
        let image = DynamicImage::ImageRgb8(image::RgbImage::from_pixel(16, 8, image::Rgb([200, 10, 10])));
        let mut jpeg = Vec::new();
        image.write_to(&mut Cursor::new(&mut jpeg), ImageFormat::Jpeg).expect("encoded");
        let tiff = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0";
        let mut segment = vec![0xff, 0xe1, 0, (2 + 6 + tiff.len()) as u8];
        segment.extend_from_slice(b"Exif\0\0");
        segment.extend_from_slice(tiff);
        jpeg.splice(2..2, segment);
        let upright = decode_bytes(&jpeg).expect("decoded");
        assert_eq!((upright.width(), upright.height()), (8, 16));
    }

    #[test]
    fn masks_are_lightness_or_opacity() -> Result<()> {
        let colours = image::RgbaImage::from_raw(2, 1, vec![255, 0, 0, 255, 255, 255, 255, 255]).expect("2x1");
        let (_folder, path) = saved(&DynamicImage::ImageRgba8(colours), ImageFormat::Png);
        assert_eq!(Mask::read(&path)?.values, [76, 255]);
        let flat = image::RgbaImage::from_raw(2, 1, vec![0, 0, 0, 0, 0, 0, 0, 255]).expect("2x1");
        let (_folder, path) = saved(&DynamicImage::ImageRgba8(flat), ImageFormat::Png);
        assert_eq!(Mask::read(&path)?.values, [0, 255]);
        Ok(())
    }

    #[test]
    fn unreadable_pictures_are_refused() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("x.png");
        let refused = |bytes: &[u8]| {
            std::fs::write(&path, bytes).expect("written");
            let error = Picture::read(&path).expect_err("refused");
            assert_eq!(error.exit_code(), 2);
            error.to_string()
        };
        assert!(refused(b"").contains("no known format"));
        assert!(refused(b"hello, I am a picture").contains("no known format"));
        let mut png = Vec::new();
        let image = DynamicImage::ImageRgb8(image::RgbImage::from_pixel(64, 64, image::Rgb([1, 2, 3])));
        image.write_to(&mut Cursor::new(&mut png), ImageFormat::Png).expect("encoded");
        assert!(refused(&png[..png.len() / 2]).contains("damaged picture of type image/png"));
        // A header that claims 2^31 - 1 pixels a side, with the right checksum.
        let mut huge = png.clone();
        huge[16..20].copy_from_slice(&0x7fff_ffff_u32.to_be_bytes());
        huge[20..24].copy_from_slice(&0x7fff_ffff_u32.to_be_bytes());
        let mut crc = flate2::Crc::new();
        crc.update(&huge[12..29]);
        huge[29..33].copy_from_slice(&crc.sum().to_be_bytes());
        assert!(refused(&huge).contains("the limit is 16384 pixels a side"), "{}", refused(&huge));
        assert!(
            Picture::read(&folder.path().join("none.png")).expect_err("refused").to_string().contains("no such file")
        );
    }

    #[test]
    fn resizing_keeps_flat_colours_and_checks_sizes() -> Result<()> {
        let picture = Picture::filled(10, 6, [40, 50, 60]);
        assert_eq!(picture.resized(7, 9)?, Picture::filled(7, 9, [40, 50, 60]));
        assert_eq!(picture.resized(10, 6)?, picture);
        assert!(picture.resized(0, 6).is_err());
        assert!(picture.resized(20_000, 6).is_err());
        assert!(Picture::new(2, 2, vec![0; 11]).is_err());
        Ok(())
    }
}
