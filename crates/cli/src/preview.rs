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
    let config =
        viuer::Config { absolute_offset: false, width: Some(COLUMNS.min(width.max(16))), ..viuer::Config::default() };
    if let Err(error) = viuer::print(&DynamicImage::ImageRgb8(image), &config) {
        report::note(&format!("no preview: {error}"));
    }
}
