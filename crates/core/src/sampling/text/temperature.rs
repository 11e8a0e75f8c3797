//! Temperature: how bold the choice is.

use super::{History, LogitFilter};
use crate::{Error, Result};

/// Divides every logit by the temperature `T` (Ackley, Hinton, Sejnowski 1985, "A learning algorithm for Boltzmann
/// machines"): `p_i = exp(l_i / T) / sum_j exp(l_j / T)`. Below 1 the likely tokens become likelier; over 1 the choice
/// becomes more even. Temperature 0, the limit, is [`super::argmax`] and no filter.
#[derive(Clone, Copy, Debug)]
pub struct Temperature(f32);

impl Temperature {
    /// # Errors
    /// A temperature that is not a number over 0.
    pub fn new(temperature: f32) -> Result<Self> {
        if temperature > 0.0 && temperature.is_finite() {
            return Ok(Self(temperature));
        }
        Err(Error::request(format!("temperature {temperature} is no positive number"))
            .with_help("0.2 is careful, 0.8 usual, 1 the model's own; 0 always takes the likeliest token"))
    }
}

impl LogitFilter for Temperature {
    fn apply(&self, logits: &mut [f32], _: History<'_>) {
        // A tiny temperature would overflow the logits to infinities of equal size; relative to the largest it cannot.
        let largest = super::largest(logits);
        if largest.is_finite() && !(largest / self.0).is_finite() {
            logits.iter_mut().for_each(|l| *l -= largest);
        }
        logits.iter_mut().for_each(|l| *l /= self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logits_are_divided() {
        let mut logits = [1.0, -2.0, f32::NEG_INFINITY];
        Temperature::new(0.5).unwrap().apply(&mut logits, History::default());
        assert_eq!(logits, [2.0, -4.0, f32::NEG_INFINITY]);
    }

    #[test]
    fn the_smallest_temperature_still_prefers_the_likeliest() {
        let mut logits = [30.0, 29.0];
        Temperature::new(1e-38).unwrap().apply(&mut logits, History::default());
        assert_eq!(logits[0], 0.0);
        assert!(logits[1] < -1e37);
    }
}
