//! Whether a picture fits into memory: told before the work, where the system would otherwise end the program in it.

use super::request::ImageRequest;
use conjure_core::{Error, Result};
use conjure_models::stable_diffusion::StableDiffusionConfig;

/// Refuses a size whose features alone are more than the memory that is free. What it lets through may still be too much:
/// this counts only what certainly exists at once.
///
/// # Errors
/// Names the size, both amounts and the remedy.
pub(super) fn check(
    config: &StableDiffusionConfig,
    request: &ImageRequest,
    (width, height): (usize, usize),
    guided: bool,
    free: Option<u64>,
) -> Result<()> {
    let Some(free) = free else { return Ok(()) };
    let unet = unet(config, request.batch, (width, height), guided);
    let needed = unet.max(decoder(config, request, (width, height)));
    if needed <= free as f64 {
        return Ok(());
    }
    let pictures = if request.batch == 1 { String::new() } else { format!("{} pictures of ", request.batch) };
    let message = format!(
        "{pictures}{width}x{height} pixels need over {:.1} GB of memory, and {:.1} GB are free",
        needed / 1e9,
        free as f64 / 1e9
    );
    let help = if unet > free as f64 {
        "choose a smaller size or batch"
    } else {
        "choose a smaller size or batch, or try --tiled"
    };
    Err(Error::request(message).with_help(help))
}

/// Features that exist at once at the U-Net's finest resolution, even with one layer a block: two kept for the skip
/// connections, a resnet's input and its output.
const KEPT: usize = 4;

/// Bytes of what the U-Net's first block keeps for the skip connections, and of a resnet's input and output.
fn unet(config: &StableDiffusionConfig, batch: usize, (width, height): (usize, usize), guided: bool) -> f64 {
    let factor = config.vae.downscale();
    let samples = batch * if guided { 2 } else { 1 };
    let channels = config.unet.block_out_channels.first().copied().unwrap_or(0);
    bytes(&[samples, channels, KEPT, width / factor, height / factor])
}

/// Bytes of a resnet's input and output at full resolution in the decoder; tiles need little.
fn decoder(config: &StableDiffusionConfig, request: &ImageRequest, (width, height): (usize, usize)) -> f64 {
    let channels = config.vae.block_out_channels.first().copied().unwrap_or(0);
    if request.tiled { 0.0 } else { bytes(&[2, channels, width, height]) }
}

/// Bytes of so many f32; as a float, for it may be beyond every integer.
fn bytes(sizes: &[usize]) -> f64 {
    sizes.iter().map(|size| *size as f64).product::<f64>() * size_of::<f32>() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_certainly_does_not_fit_is_refused_with_both_amounts() {
        let config = crate::generate::image::Pipeline::tiny(0).unwrap().model.config().clone();
        let channels = config.vae.block_out_channels[0];
        let request = ImageRequest::default();
        let needed = (2 * channels * 4096 * 4096 * 4) as u64;
        check(&config, &request, (4096, 4096), false, Some(needed)).unwrap();
        check(&config, &request, (4096, 4096), false, None).unwrap();
        let error = check(&config, &request, (4096, 4096), false, Some(needed - 1)).unwrap_err();
        assert!(error.to_string().starts_with("4096x4096 pixels need over "), "{error}");
        assert_eq!(error.exit_code(), 2);
        let tiled = ImageRequest { tiled: true, ..request };
        check(&config, &tiled, (4096, 4096), false, Some(needed - 1)).unwrap();
        let many = ImageRequest { batch: 64, ..tiled };
        let error = check(&config, &many, (4096, 4096), true, Some(needed)).unwrap_err();
        assert!(error.to_string().starts_with("64 pictures of 4096x4096 pixels"), "{error}");
    }
}
