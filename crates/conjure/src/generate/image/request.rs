//! What can be asked of the pipeline, and what is refused before work begins.

use super::best_of::Choice;
use super::upscale::FACTORS;
use conjure_core::rng::Mode;
use conjure_core::sampling::{Guidance, Sampler, Schedule};
use conjure_core::{Error, Result};
use std::path::{Path, PathBuf};

/// Longest prompt in characters: over a hundred times what the text encoder reads at once. Longer text is a mistake, such
/// as a whole file passed in, and would take minutes to encode.
pub const MAX_PROMPT: usize = 10_000;
/// Most denoising steps: as many as models have training timesteps.
pub const MAX_STEPS: usize = 1_000;
/// Largest width and height in pixels.
pub const MAX_SIDE: usize = 8_192;
/// Most pictures at once.
pub const MAX_BATCH: usize = 64;
/// Steps that a strip shows, as far as the run has them.
pub const STRIP_STEPS: [usize; 10] = [1, 2, 3, 5, 8, 10, 15, 20, 30, 40];

/// A request for pictures. The default is what diffusers' pipelines do when nothing is said: 50 steps, guidance 7.5, the
/// model's own sampler and size.
#[derive(Clone, Debug)]
pub struct ImageRequest {
    /// What the picture shows. `(word:1.3)` weighs a word more, `[word]` less.
    pub prompt: String,
    /// What it should not show.
    pub negative: String,
    /// Number of denoising steps; with a start picture only the last `strength` of them are run.
    pub steps: usize,
    /// How the noise is removed; `None` is the model's own way.
    pub sampler: Option<Sampler>,
    /// How the noise levels are spaced; `None` is the model's own way.
    pub schedule: Option<Schedule>,
    /// Classifier-free guidance as diffusers counts it: up to 1 the U-Net runs once.
    pub guidance: f64,
    /// Guidance rescale, 0 to 1.
    pub guidance_rescale: f64,
    /// Share of DDPM's noise that DDIM adds, 0 to 1.
    pub eta: f64,
    /// Layers of the text encoder left out at its end, beside those that the model itself leaves out.
    pub clip_skip: usize,
    /// `None` is a random seed; the outputs tell which.
    pub seed: Option<u64>,
    /// Whose random numbers.
    pub rng: Mode,
    /// Pixels, a multiple of 8; `None` is the model's own width.
    pub width: Option<usize>,
    /// Pixels, a multiple of 8; `None` is the model's own height.
    pub height: Option<usize>,
    /// How many pictures.
    pub batch: usize,
    /// Start from this picture.
    pub init: Option<PathBuf>,
    /// How much of the start picture is replaced, over 0 to 1; `None` is 0.8, and 1 with a mask, as in diffusers.
    pub strength: Option<f64>,
    /// Repaint only where this picture is white.
    pub mask: Option<PathBuf>,
    /// Start from this noise, `(batch, channels, height / factor, width / factor)` in a safetensors file.
    pub noise: Option<PathBuf>,
    /// Also show the picture appearing.
    pub strip: Option<Strip>,
    /// Send a rough picture with each step.
    pub preview: bool,
    /// Encode and decode pictures in overlapping tiles.
    pub tiled: bool,
    /// Make the finished pictures so many times wider and higher, one of [`super::FACTORS`].
    pub upscale: Option<usize>,
    /// Digest that the network for that must have; `None` takes the one there is.
    pub upscaler: Option<String>,
    /// How the seed was chosen, for the recipe.
    pub chosen: Option<Choice>,
}

/// Which pictures a strip is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strip {
    /// What the model predicts at some steps of the one run.
    Steps,
    /// The results of separate runs with that many steps.
    Runs,
}

impl Default for ImageRequest {
    fn default() -> Self {
        Self {
            prompt: String::new(),
            negative: String::new(),
            steps: 50,
            sampler: None,
            schedule: None,
            guidance: 7.5,
            guidance_rescale: 0.0,
            eta: 0.0,
            clip_skip: 0,
            seed: None,
            rng: Mode::default(),
            width: None,
            height: None,
            batch: 1,
            init: None,
            strength: None,
            mask: None,
            noise: None,
            strip: None,
            preview: false,
            tiled: false,
            upscale: None,
            upscaler: None,
            chosen: None,
        }
    }
}

impl ImageRequest {
    /// Refuses what no model could do. What a particular model cannot do, [`super::Pipeline::generate`] refuses.
    ///
    /// # Errors
    /// Names the value and the remedy.
    pub fn validate(&self) -> Result<()> {
        check_text("prompt", &self.prompt)?;
        check_text("negative prompt", &self.negative)?;
        within("steps", self.steps, 1, MAX_STEPS, "20 to 50 are usual")?;
        within("batch", self.batch, 1, MAX_BATCH, "make more pictures with further seeds")?;
        check_side("width", self.width)?;
        check_side("height", self.height)?;
        Guidance::new(self.guidance, self.guidance_rescale)?;
        if let Some(factor) = self.upscale.filter(|factor| !FACTORS.contains(factor)) {
            return Err(Error::request(format!("pictures cannot be made {factor} times larger"))
                .with_help("--upscale takes 2 or 4"));
        }
        if let Some(strength) = self.strength {
            if self.init.is_none() {
                return Err(Error::request("a strength needs a start picture").with_help("add --init IMAGE"));
            }
            if !(strength > 0.0 && strength <= 1.0) {
                return Err(Error::request(format!("strength {strength} is not over 0 and up to 1"))
                    .with_help("0.3 changes little, 0.8 much, 1 everything"));
            }
        }
        if self.mask.is_some() && self.init.is_none() {
            return Err(Error::request("a mask needs the picture that it masks").with_help("add --init IMAGE"));
        }
        if self.init.is_some() && self.noise.is_some() {
            return Err(Error::request("initial noise and a start picture exclude each other")
                .with_help("leave out --noise or --init"));
        }
        if !(0.0..=1.0).contains(&self.eta) {
            return Err(Error::request(format!("eta {} is outside 0 to 1", self.eta))
                .with_help("0 adds no noise; 1 as much as ddpm"));
        }
        // Opening a model may take long: a mistyped name is told before.
        [&self.init, &self.mask, &self.noise].into_iter().flatten().try_for_each(|path| check_readable(path))
    }

    /// Whether the start picture leaves anything to do in a run of so many steps.
    pub(super) fn leaves_steps(&self, steps: usize) -> bool {
        self.init.is_none() || steps as f64 * self.strength() >= 1.0
    }

    /// The strength that counts: diffusers' defaults where none is given.
    pub(super) fn strength(&self) -> f64 {
        self.strength.unwrap_or(if self.mask.is_some() { 1.0 } else { 0.8 })
    }
}

fn check_text(what: &str, text: &str) -> Result<()> {
    let characters = text.chars().count();
    if characters > MAX_PROMPT {
        return Err(Error::request(format!("the {what} has {characters} characters, more than {MAX_PROMPT}"))
            .with_help("the model reads some 300 characters at once; say it in fewer words"));
    }
    Ok(())
}

fn check_readable(path: &Path) -> Result<()> {
    if path.is_dir() {
        return Err(Error::file(path, "is a folder").with_help("name a file"));
    }
    match std::fs::File::open(path) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Err(Error::file(path, "there is no such file").with_help("check the name"))
        }
        Err(error) => Err(Error::file(path, format!("cannot be read: {error}")).with_help("check who may read it")),
    }
}

fn within(what: &str, value: usize, least: usize, most: usize, help: &str) -> Result<()> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(Error::request(format!("{what} {value} is outside {least} to {most}")).with_help(help))
}

fn check_side(what: &str, pixels: Option<usize>) -> Result<()> {
    let Some(pixels) = pixels else { return Ok(()) };
    if !pixels.is_multiple_of(8) {
        let nearest = ((pixels + 4) / 8 * 8).clamp(8, MAX_SIDE);
        return Err(Error::request(format!("{what} {pixels} is not a multiple of 8"))
            .with_help(format!("the nearest is {nearest}")));
    }
    within(what, pixels, 8, MAX_SIDE, "512 is usual")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(change: impl FnOnce(&mut ImageRequest)) -> String {
        let mut request = ImageRequest { prompt: "a cat".into(), ..ImageRequest::default() };
        request.validate().unwrap();
        change(&mut request);
        let error = request.validate().unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.help().is_some(), "{error}");
        error.to_string()
    }

    #[test]
    fn what_no_model_can_do_is_refused_by_name_and_value() {
        assert_eq!(refusal(|r| r.steps = 0), "steps 0 is outside 1 to 1000");
        assert_eq!(refusal(|r| r.width = Some(100)), "width 100 is not a multiple of 8");
        assert_eq!(refusal(|r| r.height = Some(0)), "height 0 is outside 8 to 8192");
        assert_eq!(refusal(|r| r.batch = 65), "batch 65 is outside 1 to 64");
        assert_eq!(refusal(|r| r.mask = Some("m.png".into())), "a mask needs the picture that it masks");
        assert_eq!(refusal(|r| r.strength = Some(0.5)), "a strength needs a start picture");
        assert_eq!(
            refusal(|r| {
                r.init = Some("i.png".into());
                r.strength = Some(f64::NAN);
            }),
            "strength NaN is not over 0 and up to 1"
        );
        assert_eq!(refusal(|r| r.prompt = "ä".repeat(10_001)), "the prompt has 10001 characters, more than 10000");
        assert!(refusal(|r| r.guidance = f64::NAN).starts_with("guidance NaN"));
        assert_eq!(refusal(|r| r.eta = -1.0), "eta -1 is outside 0 to 1");
    }

    #[test]
    fn files_that_cannot_be_read_are_refused_before_a_model_is_opened() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("missing.png");
        assert!(refusal(|r| r.init = Some(missing.clone())).ends_with("missing.png: there is no such file"));
        assert!(refusal(|r| r.noise = Some(missing.clone())).ends_with("missing.png: there is no such file"));
        assert!(refusal(|r| r.init = Some(folder.path().to_owned())).ends_with("is a folder"));
    }
}
