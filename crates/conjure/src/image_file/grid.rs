//! Several pictures as one.

use super::Picture;
use crate::{Error, Result};

/// Pictures of one size in rows of `columns`, `gap` white pixels between them.
///
/// # Errors
/// No picture, no column, or pictures of different sizes.
pub fn grid(pictures: &[Picture], columns: usize, gap: usize) -> Result<Picture> {
    let Some(first) = pictures.first().filter(|_| columns > 0) else {
        return Err(Error::request("a grid needs a picture and a column"));
    };
    let (width, height) = (first.width, first.height);
    if let Some(other) = pictures.iter().find(|p| (p.width, p.height) != (width, height)) {
        let message = format!("a grid's pictures are {width}x{height}, but one is {}x{}", other.width, other.height);
        return Err(Error::request(message));
    }
    let columns = columns.min(pictures.len());
    let rows = pictures.len().div_ceil(columns);
    let side = |count: usize, length: usize| count * (length + gap) - gap;
    let mut sheet = Picture::filled(side(columns, width), side(rows, height), [255; 3]);
    for (i, picture) in pictures.iter().enumerate() {
        sheet.paste(picture, (i % columns) * (width + gap), (i / columns) * (height + gap));
    }
    Ok(sheet)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_lie_in_rows() {
        let tiles: Vec<Picture> = (0..3).map(|i| Picture::filled(2, 1, [i; 3])).collect();
        let sheet = grid(&tiles, 2, 1).unwrap();
        assert_eq!((sheet.width, sheet.height), (5, 3));
        let row = |y: usize| sheet.rgb[y * 15..][..15].iter().step_by(3).copied().collect::<Vec<u8>>();
        assert_eq!([row(0), row(1), row(2)], [[0, 0, 255, 1, 1], [255; 5], [2, 2, 255, 255, 255]]);
    }

    #[test]
    fn what_is_no_grid_is_refused() {
        assert!(grid(&[], 2, 0).is_err());
        let tiles = [Picture::filled(2, 1, [0; 3]), Picture::filled(1, 2, [0; 3])];
        assert!(grid(&tiles, 2, 0).unwrap_err().to_string().contains("one is 1x2"));
    }
}
