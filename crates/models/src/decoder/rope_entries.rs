//! Reading how queries and keys are rotated, in the words of transformers 4 (`rope_theta`, `rope_scaling`) and 5
//! (`rope_parameters`).

use super::entries::Entries;
use conjure_core::blocks::{RopeConfig, RopeScaling};
use conjure_core::{Error, Result};

/// What reading the rotation needs to know.
pub(super) struct Rope {
    pub head_dim: usize,
    /// The family's own base.
    pub theta: f64,
    /// The family's own share of a head that is rotated.
    pub share: f64,
    pub max_position_embeddings: usize,
    /// The family's own number of positions in training, if it has one.
    pub original: Option<usize>,
}

impl Rope {
    /// From `rope_parameters` (transformers 5), or `rope_theta` and `rope_scaling`.
    pub(super) fn read(&self, entries: &mut Entries) -> Result<RopeConfig> {
        let theta = match entries.number("rope_theta")? {
            Some(theta) => Some(theta),
            None => entries.number("rotary_emb_base")?,
        };
        let share = match entries.number("partial_rotary_factor")? {
            Some(share) => Some(share),
            None => entries.number("rotary_pct")?,
        };
        let original = entries.size("original_max_position_embeddings")?;
        let key = if entries.has("rope_parameters") { "rope_parameters" } else { "rope_scaling" };
        let below = entries.below(key)?;
        self.build(below, theta, share, original)
    }

    /// Gemma 3's two rotations: of the layers that see everything, and of those with a window.
    pub(super) fn read_two(&self, entries: &mut Entries) -> Result<Vec<RopeConfig>> {
        let local = Self { theta: 10000.0, ..*self };
        if let Some(mut both) = entries.below("rope_parameters")? {
            let ropes = vec![
                self.build(both.below("full_attention")?, None, None, None)?,
                local.build(both.below("sliding_attention")?, None, None, None)?,
            ];
            both.finish(&[])?;
            return Ok(ropes);
        }
        let local_theta = entries.number("rope_local_base_freq")?;
        Ok(vec![self.read(entries)?, local.build(None, local_theta, None, None)?])
    }

    fn build(
        &self,
        scaling: Option<Entries>,
        theta: Option<f64>,
        share: Option<f64>,
        original: Option<usize>,
    ) -> Result<RopeConfig> {
        let Some(mut e) = scaling else {
            return self.rope(theta, share, RopeScaling::None);
        };
        let theta = e.number("rope_theta")?.or(theta);
        let share = e.number("partial_rotary_factor")?.or(share);
        let inner = e.size("original_max_position_embeddings")?;
        let most = self.max_position_embeddings;
        let original = original.or(inner).or(self.original).unwrap_or(most);
        let old = e.text("type")?;
        let kind = e.text("rope_type")?.or(old).unwrap_or_else(|| "default".to_owned());
        let scaling = match kind.as_str() {
            "default" => RopeScaling::None,
            "linear" => RopeScaling::Linear { factor: factor(&mut e)? },
            "dynamic" => RopeScaling::Dynamic { factor: factor(&mut e)?, original: most },
            "llama3" => RopeScaling::Llama3 {
                factor: factor(&mut e)?,
                low_freq_factor: number(&mut e, "low_freq_factor")?,
                high_freq_factor: number(&mut e, "high_freq_factor")?,
                original,
            },
            // Phi-3's first configs call theirs so.
            "yarn" if !e.has("long_factor") => yarn(&mut e, original, most)?,
            "longrope" | "su" | "yarn" => long_rope(&mut e, original, most)?,
            other => {
                return Err(Error::request(format!("rope_type is \"{other}\", which is not supported"))
                    .with_help("supported: default, linear, dynamic, llama3, yarn, longrope"));
            }
        };
        e.finish(&["finetuned"])?;
        self.rope(theta, share, scaling)
    }

    fn rope(&self, theta: Option<f64>, share: Option<f64>, scaling: RopeScaling) -> Result<RopeConfig> {
        let share = share.unwrap_or(self.share);
        if !(share > 0.0 && share <= 1.0) {
            return Err(Error::request(format!("partial_rotary_factor is {share}; it must be above 0 and at most 1")));
        }
        let dim = (self.head_dim as f64 * share) as usize;
        Ok(RopeConfig { scaling, ..RopeConfig::new(dim, theta.unwrap_or(self.theta)) })
    }
}

fn number(e: &mut Entries, key: &str) -> Result<f64> {
    e.number(key)?.ok_or_else(|| e.lacks(key))
}

fn factor(e: &mut Entries) -> Result<f64> {
    number(e, "factor")
}

/// Peng et al. 2023, equation 22, with the names of transformers.
fn yarn(e: &mut Entries, original: usize, most: usize) -> Result<RopeScaling> {
    let factor = e.number("factor")?.unwrap_or(most as f64 / original.max(1) as f64);
    let by = |mscale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 };
    let (mscale, all_dim) = (e.number("mscale")?, e.number("mscale_all_dim")?);
    let attention_factor = match (e.number("attention_factor")?, mscale, all_dim) {
        (Some(given), _, _) => given,
        (None, Some(mscale), Some(all_dim)) if mscale != 0.0 && all_dim != 0.0 => by(mscale) / by(all_dim),
        _ => by(1.0),
    };
    Ok(RopeScaling::Yarn {
        factor,
        original,
        beta_fast: e.number("beta_fast")?.unwrap_or(32.0),
        beta_slow: e.number("beta_slow")?.unwrap_or(1.0),
        attention_factor,
        truncate: e.flag("truncate")?.unwrap_or(true),
    })
}

/// Ding et al. 2024; the factor on cosines and sines is that of Phi-3.
fn long_rope(e: &mut Entries, original: usize, most: usize) -> Result<RopeScaling> {
    let stretch = match e.number("factor")? {
        Some(factor) => factor,
        None => most as f64 / original.max(1) as f64,
    };
    let given = e.number("attention_factor")?;
    let attention_factor = given.unwrap_or(match stretch {
        stretch if stretch <= 1.0 => 1.0,
        stretch => (1.0 + stretch.ln() / (original.max(2) as f64).ln()).sqrt(),
    });
    let list = |e: &mut Entries, key: &str| e.numbers(key)?.ok_or_else(|| e.lacks(key));
    Ok(RopeScaling::LongRope {
        short_factor: list(e, "short_factor")?,
        long_factor: list(e, "long_factor")?,
        original,
        attention_factor,
    })
}
