//! A drawing becomes pixels.

use crate::image_file::Picture;
use crate::{Error, Result};
use resvg::tiny_skia::{Pixmap, Transform};
use resvg::usvg::{ImageHrefResolver, Options, Tree};

/// Longer drawings are refused; the longest of the icon sets has about 400 kB.
const MAX_SVG_BYTES: usize = 4 << 20;

/// Draws an SVG document as large as fits into `size` x `size` pixels, in the middle, on white. Nothing outside the
/// document is read: references to other files and to fonts are left out.
///
/// # Errors
/// Not an SVG document, too long, or nothing is to be seen.
pub(super) fn render(svg: &str, size: u32) -> Result<Picture> {
    if svg.len() > MAX_SVG_BYTES {
        return Err(Error::request(format!("a drawing of {} bytes; the limit is {MAX_SVG_BYTES}", svg.len())));
    }
    let options = Options {
        image_href_resolver: ImageHrefResolver {
            resolve_data: Box::new(|_, _, _| None),
            resolve_string: Box::new(|_, _| None),
        },
        ..Options::default()
    };
    let tree = Tree::from_str(svg, &options).map_err(|e| Error::request(format!("not a drawing: {e}")))?;
    let mut pixels = Pixmap::new(size, size).ok_or_else(|| Error::request(format!("a picture of {size} pixels")))?;
    let (width, height) = (tree.size().width(), tree.size().height());
    let scale = size as f32 / width.max(height);
    let (x, y) = ((size as f32 - width * scale) / 2.0, (size as f32 - height * scale) / 2.0);
    resvg::render(&tree, Transform::from_row(scale, 0.0, 0.0, scale, x, y), &mut pixels.as_mut());
    if pixels.data().chunks_exact(4).all(|pixel| pixel[3] == 0) {
        return Err(Error::request("the drawing shows nothing"));
    }
    // Colours are premultiplied: what is lacking to opacity is white.
    let rgb = pixels.data().chunks_exact(4).flat_map(|p| [p[0], p[1], p[2]].map(|c| c.saturating_add(255 - p[3])));
    Picture::new(size as usize, size as usize, rgb.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn svg(size: &str, body: &str) -> String {
        format!("<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {size}\">{body}</svg>")
    }

    #[test]
    fn drawings_fill_the_picture_on_white() -> Result<()> {
        let wide = render(&svg("8 4", "<path fill=\"#0a0\" d=\"M0 0h8v4H0z\"/>"), 8)?;
        let rows: Vec<[u8; 3]> = wide.rgb.chunks_exact(24).map(|row| [row[0], row[1], row[2]]).collect();
        let (green, white) = ([0, 170, 0], [255; 3]);
        assert_eq!(rows, [white, white, green, green, green, green, white, white]);
        let faint = render(&svg("4 4", "<path opacity=\".5\" d=\"M0 0h4v4H0z\"/>"), 4)?;
        assert!(faint.rgb.iter().all(|v| v.abs_diff(127) <= 1), "{:?}", &faint.rgb[..3]);
        Ok(())
    }

    #[test]
    fn what_shows_nothing_or_reaches_outside_is_refused() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let outside = folder.path().join("outside.svg");
        std::fs::write(&outside, svg("4 4", "<path d=\"M0 0h4v4H0z\"/>")).expect("written");
        let refused = |svg: &str| render(svg, 8).expect_err("refused").to_string();
        let image = format!("<image href=\"{}\" width=\"4\" height=\"4\"/>", outside.display());
        assert!(refused(&svg("4 4", &image)).contains("shows nothing"));
        assert!(refused(&svg("4 4", "<path")).contains("not a drawing"));
        assert!(refused(&svg("4 4", "")).contains("shows nothing"));
        assert!(refused(&" ".repeat(MAX_SVG_BYTES + 1)).contains("the limit is"));
    }
}
