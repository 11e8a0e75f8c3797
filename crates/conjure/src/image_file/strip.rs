//! One picture from several: in rows, each with a label below, and a caption above all.

use super::Picture;
use crate::{Error, Result};
use font8x8::{BASIC_FONTS, LATIN_FONTS, UnicodeFonts};

const PAPER: [u8; 3] = [250, 249, 246];
const INK: [u8; 3] = [38, 38, 42];
const FAINT: [u8; 3] = [110, 110, 116];
/// Pictures in a row, at most.
const COLUMNS: usize = 5;
/// Smaller pictures are enlarged by a whole factor up to about this width, each pixel staying a square.
const LEGIBLE_WIDTH: usize = 128;
/// Sides of the result beyond this are refused.
const MAX_SIDE: usize = 65_535;
/// Pixels of one character at scale 1.
const GLYPH: usize = 8;

/// Lays out pictures of one size, `(label, picture)`, in rows of at most five: dark text on light paper, the label centred
/// below each picture, the caption above. The caption says what is seen, for example that the pictures are predictions of
/// one run and not separate runs.
///
/// # Errors
/// No pictures, pictures of different sizes, or a result of more than 65535 pixels a side.
pub fn strip(panels: &[(String, Picture)], caption: &str) -> Result<Picture> {
    let Some((_, first)) = panels.first() else { return Err(Error::request("a strip of no pictures")) };
    if let Some((label, odd)) = panels.iter().find(|(_, p)| (p.width, p.height) != (first.width, first.height)) {
        let sizes = format!("{}x{} and {}x{}", first.width, first.height, odd.width, odd.height);
        return Err(Error::request(format!("pictures of a strip differ in size: {sizes} ({label})")));
    }
    let enlarge = (LEGIBLE_WIDTH / first.width).max(1);
    let (width, height) = (first.width * enlarge, first.height * enlarge);
    let rows = panels.len().div_ceil(COLUMNS);
    let columns = panels.len().div_ceil(rows);

    // Text and gaps grow with the pictures, so that the whole looks the same at every size.
    let scale = (width / 128).clamp(1, 6);
    let gap = (width / 16).max(8);
    let longest = panels.iter().map(|(label, _)| text_width(label, scale)).max().unwrap_or(0);
    let cell = width.max(longest);
    let label_height = scale * GLYPH + gap;
    let sheet_width = columns * cell + (columns + 1) * gap;
    let lines = wrap(caption, (sheet_width - 2 * gap) / (scale * GLYPH));
    let line_height = scale * GLYPH * 3 / 2;
    let top = if lines.is_empty() { gap } else { 2 * gap + lines.len() * line_height };
    let sheet_height = top + rows * (height + label_height + gap / 2) + gap / 2;
    if sheet_width > MAX_SIDE || sheet_height > MAX_SIDE {
        return Err(Error::request(format!("a strip of {sheet_width}x{sheet_height} pixels is too large"))
            .with_help("make smaller pictures"));
    }

    let mut sheet = Picture::filled(sheet_width, sheet_height, PAPER);
    for (n, line) in lines.iter().enumerate() {
        draw(&mut sheet, line, gap, gap + n * line_height, scale, FAINT);
    }
    for (n, (label, picture)) in panels.iter().enumerate() {
        let x = gap + n % columns * (cell + gap);
        let y = top + n / columns * (height + label_height + gap / 2);
        sheet.paste(&enlarged(picture, enlarge), x + (cell - width) / 2, y);
        let label_x = x + (cell - text_width(label, scale)) / 2;
        draw(&mut sheet, label, label_x, y + height + gap / 2, scale, INK);
    }
    Ok(sheet)
}

fn text_width(text: &str, scale: usize) -> usize {
    text.chars().count() * GLYPH * scale
}

/// Words in lines of at most `columns` characters; a longer word has a line of its own, and is cut when it is drawn.
fn wrap(text: &str, columns: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= columns => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

/// Draws text with its top left corner at `(x, y)`; what lies outside is cut off.
fn draw(sheet: &mut Picture, text: &str, x: usize, y: usize, scale: usize, colour: [u8; 3]) {
    let dot = Picture::filled(scale, scale, colour);
    for (n, c) in text.chars().enumerate() {
        let glyph = BASIC_FONTS.get(c).or_else(|| LATIN_FONTS.get(c)).or_else(|| BASIC_FONTS.get('?'));
        for (row, bits) in glyph.unwrap_or_default().into_iter().enumerate() {
            for column in (0..GLYPH).filter(|column| bits >> column & 1 == 1) {
                sheet.paste(&dot, x + (n * GLYPH + column) * scale, y + row * scale);
            }
        }
    }
}

fn enlarged(picture: &Picture, factor: usize) -> Picture {
    let (width, height) = (picture.width * factor, picture.height * factor);
    let mut rgb = Vec::with_capacity(width * height * 3);
    for y in 0..height {
        for x in 0..width {
            let from = ((y / factor) * picture.width + x / factor) * 3;
            rgb.extend_from_slice(&picture.rgb[from..from + 3]);
        }
    }
    Picture { width, height, rgb }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn panels(count: usize, width: usize, height: usize) -> Vec<(String, Picture)> {
        (0..count).map(|n| (format!("step {n}"), Picture::filled(width, height, [n as u8 * 20, 80, 160]))).collect()
    }

    fn pixel(picture: &Picture, x: usize, y: usize) -> [u8; 3] {
        let at = (y * picture.width + x) * 3;
        [picture.rgb[at], picture.rgb[at + 1], picture.rgb[at + 2]]
    }

    #[test]
    fn ten_pictures_take_two_rows_of_five() -> Result<()> {
        let sheet = strip(&panels(10, 128, 128), "")?;
        // Five of 128 pixels with six gaps of 8; rows of picture, 8 pixels of text and gaps.
        assert_eq!((sheet.width, sheet.height), (5 * 128 + 6 * 8, 8 + 2 * (128 + 16 + 4) + 4));
        assert_eq!(pixel(&sheet, 0, 0), PAPER);
        assert_eq!(pixel(&sheet, 8, 8), [0, 80, 160]);
        assert_eq!(pixel(&sheet, 8 + 136, 8), [20, 80, 160]);
        assert_eq!(pixel(&sheet, 8, 8 + 148), [100, 80, 160], "the sixth begins the second row");
        assert!(sheet.rgb.chunks(3).any(|p| p == INK), "labels are drawn");
        assert!(!sheet.rgb.chunks(3).any(|p| p == FAINT), "no caption was asked for");
        Ok(())
    }

    #[test]
    fn small_pictures_are_enlarged_and_captions_wrapped() -> Result<()> {
        let sheet = strip(&panels(1, 8, 4), "a caption of many words, longer than the only picture is wide")?;
        assert_eq!(sheet.width, 128 + 16);
        assert!(sheet.rgb.chunks(3).filter(|p| *p == [0, 80, 160]).count() == 128 * 64);
        assert!(sheet.rgb.chunks(3).any(|p| p == FAINT));
        assert_eq!(wrap("one two three", 7), ["one two", "three"]);
        Ok(())
    }

    #[test]
    fn what_cannot_be_laid_out_is_refused() {
        assert!(strip(&[], "x").is_err());
        let mut mixed = panels(2, 8, 8);
        mixed[1].1 = Picture::filled(8, 9, [0; 3]);
        assert!(strip(&mixed, "x").expect_err("refused").to_string().contains("8x8 and 8x9"));
    }
}
