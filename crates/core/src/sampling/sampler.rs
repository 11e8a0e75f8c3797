//! The names of the samplers and of the sigma schedules.

use crate::{Error, Result};
use std::fmt;
use std::str::FromStr;

/// A way from noise to a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Sampler {
    /// Ho et al. 2020.
    Ddpm,
    /// Song et al. 2021, with `eta`.
    Ddim,
    /// Liu et al. 2022, the linear multistep part (PLMS), as Stable Diffusion uses it.
    Pndm,
    /// Karras et al. 2022, algorithm 2 without its second-order correction and without churn.
    Euler,
    /// Euler steps with fresh noise (Song et al. 2021 with eta 1, in sigma).
    EulerAncestral,
    /// Karras et al. 2022, algorithm 2 without churn.
    Heun,
    /// Lu et al. 2022, DPM-Solver-2: the midpoint in log sigma.
    Dpm2,
    /// DPM-Solver-2 steps with fresh noise.
    Dpm2Ancestral,
    /// Linear multistep (Adams-Bashforth with variable steps), order 4.
    Lms,
    /// Lu et al. 2022, DPM-Solver++(2M).
    Dpmpp2m,
    /// Lu et al. 2022, SDE-DPM-Solver++(2M).
    Dpmpp2mSde,
    /// DPM-Solver++(3M) for the SDE.
    Dpmpp3mSde,
    /// Lu et al. 2022, DPM-Solver++(2S) with fresh noise.
    Dpmpp2sAncestral,
    /// Lu et al. 2022, the single-step DPM-Solver++ for the SDE.
    DpmppSde,
    /// Zhao et al. 2023.
    UniPc,
    /// Luo et al. 2023, latent consistency models.
    Lcm,
}

impl Sampler {
    /// Every sampler, in the order of the documentation.
    pub const ALL: [Self; 16] = [
        Self::Ddpm,
        Self::Ddim,
        Self::Pndm,
        Self::Euler,
        Self::EulerAncestral,
        Self::Heun,
        Self::Dpm2,
        Self::Dpm2Ancestral,
        Self::Lms,
        Self::Dpmpp2m,
        Self::Dpmpp2mSde,
        Self::Dpmpp3mSde,
        Self::Dpmpp2sAncestral,
        Self::DpmppSde,
        Self::UniPc,
        Self::Lcm,
    ];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ddpm => "ddpm",
            Self::Ddim => "ddim",
            Self::Pndm => "pndm",
            Self::Euler => "euler",
            Self::EulerAncestral => "euler-a",
            Self::Heun => "heun",
            Self::Dpm2 => "dpm2",
            Self::Dpm2Ancestral => "dpm2-a",
            Self::Lms => "lms",
            Self::Dpmpp2m => "dpmpp-2m",
            Self::Dpmpp2mSde => "dpmpp-2m-sde",
            Self::Dpmpp3mSde => "dpmpp-3m-sde",
            Self::Dpmpp2sAncestral => "dpmpp-2s-a",
            Self::DpmppSde => "dpmpp-sde",
            Self::UniPc => "unipc",
            Self::Lcm => "lcm",
        }
    }

    /// Whether the reference keeps its latents variance-preserving, `x / sqrt(1 + sigma^2)`, between the steps; such a
    /// sampler also starts from unit noise, and what it returns at a last sigma above 0 is scaled back.
    pub fn is_variance_preserving(self) -> bool {
        matches!(
            self,
            Self::Ddpm
                | Self::Ddim
                | Self::Pndm
                | Self::Dpmpp2m
                | Self::Dpmpp2mSde
                | Self::Dpmpp3mSde
                | Self::UniPc
                | Self::Lcm
        )
    }

    /// Whether it walks over whole training timesteps, so that a schedule of its own cannot be chosen.
    pub(super) fn walks_training_timesteps(self) -> bool {
        matches!(self, Self::Ddpm | Self::Ddim | Self::Pndm | Self::Lcm)
    }

    /// Whether it places its noise levels as diffusers' multistep DPM-Solver does.
    pub(super) fn is_multistep_solver(self) -> bool {
        matches!(self, Self::Dpmpp2m | Self::Dpmpp2mSde | Self::Dpmpp3mSde | Self::UniPc)
    }
}

impl fmt::Display for Sampler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Sampler {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|s| s.name() == name).ok_or_else(|| {
            Error::request(format!("unknown sampler {name:?}"))
                .with_help(format!("choose one of {}", Self::ALL.map(Self::name).join(", ")))
        })
    }
}

/// How the noise levels of a run are placed between the highest and the lowest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Schedule {
    /// At the training timesteps that the spacing picks.
    Default,
    /// Karras et al. 2022, equation 5, with rho 7.
    Karras,
    /// Evenly in log sigma.
    Exponential,
    /// At the quantiles of Beta(0.6, 0.6) (Lee et al. 2024, Beta Sampling is All You Need).
    Beta,
}

impl Schedule {
    /// Every schedule.
    pub const ALL: [Self; 4] = [Self::Default, Self::Karras, Self::Exponential, Self::Beta];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Karras => "karras",
            Self::Exponential => "exponential",
            Self::Beta => "beta",
        }
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Schedule {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|s| s.name() == name).ok_or_else(|| {
            Error::request(format!("unknown schedule {name:?}"))
                .with_help(format!("choose one of {}", Self::ALL.map(Self::name).join(", ")))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{Sampler, Schedule};

    #[test]
    fn names_round_trip_and_unknown_names_list_the_known() {
        for sampler in Sampler::ALL {
            assert_eq!(sampler.to_string().parse::<Sampler>().unwrap(), sampler);
        }
        for schedule in Schedule::ALL {
            assert_eq!(schedule.to_string().parse::<Schedule>().unwrap(), schedule);
        }
        let error = "euler_a".parse::<Sampler>().unwrap_err();
        assert_eq!(error.to_string(), "unknown sampler \"euler_a\"");
        assert!(error.help().unwrap().contains("euler-a, heun"));
        assert!("kerras".parse::<Schedule>().unwrap_err().help().unwrap().contains("karras"));
    }
}
