//! The learning rate over a run.

use serde::{Deserialize, Serialize};

/// How the learning rate goes after the warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Shape {
    /// It stays.
    #[default]
    Constant,
    /// Half a wave of the cosine down to the floor ("SGDR", Loshchilov & Hutter 2016, equation 5, one period).
    Cosine,
    /// A straight line down to the floor.
    Linear,
}

/// A learning-rate schedule, as a factor on the recipe's learning rate.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Schedule {
    /// How it goes after the warm-up.
    pub shape: Shape,
    /// Updates over which it rises linearly from zero.
    pub warmup: u64,
    /// What it falls to at the end, as a share of the learning rate.
    pub floor: f64,
    /// Update at which the fall begins; the rate is constant between warm-up and then.
    pub hold: u64,
}

impl Default for Schedule {
    fn default() -> Self {
        Self { shape: Shape::Constant, warmup: 0, floor: 0.0, hold: 0 }
    }
}

impl Schedule {
    /// The factor for update `step` of `steps`, counted from 0.
    pub fn factor(&self, step: u64, steps: u64) -> f64 {
        if step < self.warmup {
            return (step + 1) as f64 / self.warmup as f64;
        }
        let begin = self.warmup.max(self.hold);
        let done = if steps <= begin { 0.0 } else { step.saturating_sub(begin) as f64 / (steps - begin) as f64 };
        let high = match self.shape {
            Shape::Constant => 1.0,
            Shape::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * done.min(1.0)).cos()),
            Shape::Linear => 1.0 - done.min(1.0),
        };
        self.floor + (1.0 - self.floor) * high
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cosine_falls_from_one_to_the_floor_after_the_warm_up() {
        let schedule = Schedule { shape: Shape::Cosine, warmup: 10, floor: 0.1, hold: 0 };
        let at = |step| schedule.factor(step, 110);
        assert_eq!([at(0), at(4), at(9), at(10)], [0.1, 0.5, 1.0, 1.0]);
        assert!((at(60) - 0.55).abs() < 1e-12);
        assert!((at(110) - 0.1).abs() < 1e-12);
    }

    #[test]
    fn the_rate_can_be_held_before_it_falls() {
        let schedule = Schedule { shape: Shape::Linear, warmup: 0, floor: 0.0, hold: 80 };
        assert_eq!([0, 79, 80, 90, 100].map(|step| schedule.factor(step, 100)), [1.0, 1.0, 1.0, 0.5, 0.0]);
        let constant = Schedule::default();
        assert_eq!([0, 50, 1000].map(|step| constant.factor(step, 100)), [1.0; 3]);
    }
}
