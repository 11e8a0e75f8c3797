//! One picture of a picture appearing.

use super::request::Strip;
use crate::image_file::{self, Picture};
use conjure_core::{Error, Result, Tensor};

/// A state to show: latents `(1, channels, h, w)` after so many steps, or of a run of so many steps.
pub(super) struct Captured {
    pub steps: usize,
    pub latents: Tensor,
}

/// Decodes and labels the states, side by side.
///
/// # Errors
/// Nothing was captured; the decoder's own.
pub(super) fn assemble(
    kind: Strip,
    captured: &[Captured],
    decode: impl Fn(&Tensor) -> Result<Picture>,
) -> Result<Picture> {
    if captured.is_empty() {
        return Err(Error::failure("the run had no step that a strip shows"));
    }
    let (caption, label): (_, fn(usize) -> String) = match kind {
        Strip::Steps => ("one run: the picture that the model predicts at each step", |n| format!("step {n}")),
        Strip::Runs => {
            ("separate runs, each of so many steps", |n| format!("{n} step{}", if n == 1 { "" } else { "s" }))
        }
    };
    let panels =
        captured.iter().map(|state| Ok((label(state.steps), decode(&state.latents)?))).collect::<Result<Vec<_>>>()?;
    image_file::strip::strip(&panels, caption)
}
