//! Larger and smaller pictures, in plain tensor operations and matrix products.

use crate::{DType, Device, Error, Result, Tensor};

/// Sub-pixel convolution's rearrangement (Shi et al. 2016, equation 4): `x (batch, channels * r * r, h, w)` to
/// `(batch, channels, h * r, w * r)`; output `(c, y, x)` is input `(c r r + (y mod r) r + x mod r, y / r, x / r)`.
///
/// # Errors
/// The channels cannot be shared out to `r * r` pixels.
pub fn pixel_shuffle(x: &Tensor, r: usize) -> Result<Tensor> {
    let (batch, channels, h, w) = x.dims4()?;
    if r == 0 || !channels.is_multiple_of(r * r) {
        return Err(Error::request(format!("pixel_shuffle: {channels} channels are not shared out to {r}x{r} pixels")));
    }
    let channels = channels / (r * r);
    Ok(x.reshape((batch * channels, r, r, h, w))?
        .permute((0, 3, 1, 4, 2))? // (batch * channels, h, r, w, r)
        .reshape((batch, channels, h * r, w * r))?)
}

/// Bicubic resizing of `x (batch, channels, h, w)` to `(batch, channels, height, width)`: Keys' kernel (1981) with
/// `a = -0.5`, widened where a side shrinks, cut off and normalised at the edges. This is Pillow's `BICUBIC` (in floating
/// point, not rounded) and PyTorch's `bicubic` with `antialias`. Values may overshoot their range.
///
/// # Errors
/// A side of 0 pixels.
pub fn resize_bicubic(x: &Tensor, height: usize, width: usize) -> Result<Tensor> {
    let (_, _, h, w) = x.dims4()?;
    if [h, w, height, width].contains(&0) {
        return Err(Error::request(format!("resize_bicubic: {h}x{w} pixels cannot become {height}x{width}")));
    }
    let across = along_rows(x, width)?; // (batch, channels, h, width)
    let down = along_rows(&across.transpose(2, 3)?, height)?; // (batch, channels, width, height)
    Ok(down.transpose(2, 3)?.contiguous()?)
}

/// `x (batch, channels, lines, w)` to `(batch, channels, lines, width)`. The tensor library's product, because ours may be
/// told to round its factors, which networks forgive and pictures show.
fn along_rows(x: &Tensor, width: usize) -> Result<Tensor> {
    let (batch, channels, lines, w) = x.dims4()?;
    let weights = weights(w, width, x.dtype(), x.device())?.t()?;
    Ok(x.reshape((batch * channels * lines, w))?.matmul(&weights)?.reshape((batch, channels, lines, width))?)
}

/// How much each of `from` pixels counts in each of `to`: `(to, from)`, rows sum to 1.
fn weights(from: usize, to: usize, dtype: DType, device: &Device) -> Result<Tensor> {
    let scale = from as f64 / to as f64;
    let width = scale.max(1.0);
    let mut matrix = vec![0f32; to * from];
    for (i, row) in matrix.chunks_exact_mut(from).enumerate() {
        let centre = (i as f64 + 0.5) * scale;
        // Pillow rounds the reach of the kernel to whole pixels.
        let first = (centre - 2.0 * width + 0.5).max(0.0) as usize;
        let last = ((centre + 2.0 * width + 0.5) as usize).min(from);
        let row = &mut row[first..last];
        let values: Vec<f64> = (first..last).map(|j| cubic((j as f64 + 0.5 - centre) / width)).collect();
        let sum: f64 = values.iter().sum();
        for (weight, value) in row.iter_mut().zip(values) {
            *weight = (value / sum) as f32;
        }
    }
    Ok(Tensor::from_vec(matrix, (to, from), device)?.to_dtype(dtype)?)
}

/// Keys' cubic convolution kernel.
fn cubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A
    } else {
        0.0
    }
}
