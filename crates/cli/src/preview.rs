//! Pictures in the terminal.

use crate::report;
use conjure::image_file::Picture;
use image::{DynamicImage, RgbImage};
use std::io::IsTerminal as _;

/// Columns that a preview takes at most; half blocks show two pixels in each.
const COLUMNS: u32 = 48;

/// Whether there is a terminal to show pictures in. They go to stdout, which must then carry nothing else.
pub fn possible() -> bool {
    let possible = std::io::stdout().is_terminal();
    if !possible {
        report::note("no preview: stdout is not a terminal");
    }
    possible
}

/// Shows a picture at the cursor.
pub fn show(picture: &Picture) {
    let (width, height) = (picture.width as u32, picture.height as u32);
    let Some(image) = RgbImage::from_raw(width, height, picture.rgb.clone()) else { return };
    let config = viuer::Config {
        absolute_offset: false,
        width: Some(COLUMNS.min(width.max(16))),
        use_kitty: speaks_kitty(),
        ..viuer::Config::default()
    };
    if let Err(error) = viuer::print(&DynamicImage::ImageRgb8(image), &config) {
        report::note(&format!("no preview: {error}"));
    }
}

/// Whether the terminal says in the environment that it knows kitty's picture protocol. Asking the terminal itself waits for
/// an answer that other terminals never give.
fn speaks_kitty() -> bool {
    let says = |name: &str, words: &[&str]| {
        std::env::var(name).is_ok_and(|value| words.iter().any(|word| value.to_lowercase().contains(word)))
    };
    says("TERM", &["kitty", "ghostty"]) || says("TERM_PROGRAM", &["ghostty", "wezterm"])
}
