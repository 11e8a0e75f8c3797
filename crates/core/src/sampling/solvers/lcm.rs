//! Latent consistency models.

use super::{Hooks, clipped, weighted_sum};
use crate::sampling::Denoise;
use crate::{Result, Tensor};

/// Multistep consistency sampling: Luo et al. 2023, Latent Consistency Models, algorithm 3. Each step jumps to x0 and adds
/// fresh noise. The jump is the consistency function `c_skip x + c_out x0` of Song et al. 2023 (equation 5) with
/// `sigma_data` 0.5, whose boundary condition is met at timestep 0.
pub fn lcm(
    model: &mut dyn Denoise,
    mut x: Tensor,
    clip: Option<f64>,
    timestep_scaling: f64,
    hooks: &mut Hooks<'_>,
) -> Result<Tensor> {
    const SIGMA_DATA: f64 = 0.5;
    for (i, step) in hooks.steps.iter().enumerate() {
        let x0 = clipped(model.denoise(&x, step.sigma)?, clip)?;
        let t = step.timestep * timestep_scaling;
        let c_skip = SIGMA_DATA.powi(2) / (t * t + SIGMA_DATA.powi(2));
        let c_out = t / (t * t + SIGMA_DATA.powi(2)).sqrt();
        let unit = (1.0 + step.sigma * step.sigma).sqrt();
        let jump = weighted_sum(&[(c_skip / unit, &x), (c_out, &x0)])?;
        x = hooks.add_noise(jump, step.next)?;
        x = hooks.finish(i, x, &x0)?;
    }
    Ok(x)
}
