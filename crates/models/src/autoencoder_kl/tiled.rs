//! Encoding and decoding of pictures of any size in the memory of one tile.
//!
//! Tiles overlap by a quarter of their side; over the overlap each tile is faded in, linearly, over the tiles above and to
//! the left. Statistics of the norms are those of a tile, so the result is close to that of the whole picture, not equal.

use super::{AutoencoderKl, DiagonalGaussian};
use conjure_core::probe::NoProbe;
use conjure_core::{Error, Result, Tensor};

/// Size of the tiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tiling {
    latent_side: usize,
}

impl Tiling {
    /// Square tiles of `latent_side` latent pixels.
    ///
    /// # Errors
    /// `latent_side` is 0 or no multiple of 4, so that a quarter of it is no whole number of latent pixels.
    pub fn new(latent_side: usize) -> Result<Self> {
        if latent_side == 0 || !latent_side.is_multiple_of(4) {
            return Err(Error::request(format!("tiles of {latent_side} latent pixels cannot overlap by a quarter"))
                .with_help("give a multiple of 4"));
        }
        Ok(Self { latent_side })
    }

    /// Side of a tile in latent pixels.
    pub fn latent_side(self) -> usize {
        self.latent_side
    }
}

/// Geometry of one direction: tiles of side `tile` are read every `step`, and each gives `keep` rows and columns that
/// follow on `blend` faded ones.
struct Grid {
    tile: usize,
    step: usize,
    blend: usize,
    keep: usize,
}

impl AutoencoderKl {
    /// The tiles that diffusers takes: pictures of the size of the training pictures, `sample_size`.
    pub fn tiling(&self) -> Tiling {
        let side = self.config.sample_size / self.config.downscale();
        Tiling { latent_side: (side / 4 * 4).max(4) }
    }

    /// [`AutoencoderKl::decode`], tile by tile where `z (batch, latent_channels, h, w)` is larger than a tile:
    /// `(batch, out_channels, h * downscale, w * downscale)`.
    pub fn decode_tiled(&self, z: &Tensor, tiling: Tiling) -> Result<Tensor> {
        let (_, _, height, width) = z.dims4()?;
        let (latent, sample) = (tiling.latent_side, tiling.latent_side * self.config.downscale());
        if height.max(width) <= latent {
            return self.decode(z, &mut NoProbe);
        }
        let grid = Grid { tile: latent, step: latent - latent / 4, blend: sample / 4, keep: sample - sample / 4 };
        by_tiles(z, &grid, |tile| self.decode(tile, &mut NoProbe))
    }

    /// [`AutoencoderKl::encode`], tile by tile where `x (batch, in_channels, h, w)` is larger than a tile.
    ///
    /// # Errors
    /// A side that is larger than a tile's and no multiple of [`super::AutoencoderKlConfig::downscale`].
    pub fn encode_tiled(&self, x: &Tensor, tiling: Tiling) -> Result<DiagonalGaussian> {
        let (_, _, height, width) = x.dims4()?;
        let factor = self.config.downscale();
        let (latent, sample) = (tiling.latent_side, tiling.latent_side * factor);
        if height.max(width) <= sample {
            return self.encode(x, &mut NoProbe);
        }
        if !height.is_multiple_of(factor) || !width.is_multiple_of(factor) {
            return Err(Error::request(format!("cannot encode {width}x{height} in tiles"))
                .with_help(format!("width and height must be multiples of {factor}")));
        }
        let grid = Grid { tile: sample, step: sample - sample / 4, blend: latent / 4, keep: latent - latent / 4 };
        DiagonalGaussian::new(&by_tiles(x, &grid, |tile| self.moments(tile, &mut NoProbe))?)
    }
}

/// Puts `f` of the tiles of `x` together. Of earlier tiles only the finished part and the overlap are held.
fn by_tiles(x: &Tensor, grid: &Grid, f: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
    let (_, _, height, width) = x.dims4()?;
    let mut rows = Vec::new();
    let mut above: Vec<Tensor> = Vec::new(); // the lowest `blend` rows of each tile of the row above
    for top in (0..height).step_by(grid.step) {
        let band = x.narrow(2, top, grid.tile.min(height - top))?;
        let mut row = Vec::new();
        let mut below = Vec::new();
        let mut left: Option<Tensor> = None; // the rightmost `blend` columns of the tile to the left
        for (j, start) in (0..width).step_by(grid.step).enumerate() {
            let mut tile = f(&band.narrow(3, start, grid.tile.min(width - start))?.contiguous()?)?;
            if let Some(above) = above.get(j) {
                tile = fade_in(above, &tile, 2)?;
            }
            if let Some(left) = &left {
                tile = fade_in(left, &tile, 3)?;
            }
            below.push(end(&tile, 2, grid.blend)?);
            left = Some(end(&tile, 3, grid.blend)?);
            let (_, _, h, w) = tile.dims4()?;
            row.push(tile.narrow(2, 0, h.min(grid.keep))?.narrow(3, 0, w.min(grid.keep))?.contiguous()?);
        }
        above = below;
        rows.push(Tensor::cat(&row, 3)?);
    }
    Ok(Tensor::cat(&rows, 2)?)
}

/// The last `n` of dimension `dim`, or as many as there are, in memory of their own.
fn end(x: &Tensor, dim: usize, n: usize) -> Result<Tensor> {
    let size = x.dim(dim)?;
    let n = n.min(size);
    Ok(x.narrow(dim, size - n, n)?.force_contiguous()?)
}

/// `b`, whose beginning in dimension `dim` is faded in over `a`: element `i` of `n` weighs `i / n`, where `n` is the
/// smaller of both sizes.
fn fade_in(a: &Tensor, b: &Tensor, dim: usize) -> Result<Tensor> {
    let size = b.dim(dim)?;
    let a = end(a, dim, size)?;
    let n = a.dim(dim)?;
    let weights: Vec<f32> = (0..n).map(|i| i as f32 / n as f32).collect();
    let mut shape = [1; 4];
    shape[dim] = n;
    let weights = Tensor::from_vec(weights, &shape, b.device())?.to_dtype(b.dtype())?;
    let begin = b.narrow(dim, 0, n)?;
    let mixed = (a.broadcast_mul(&weights.affine(-1.0, 1.0)?)? + begin.broadcast_mul(&weights)?)?;
    Ok(Tensor::cat(&[mixed, b.narrow(dim, n, size - n)?], dim)?)
}
