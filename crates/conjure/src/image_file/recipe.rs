//! What a picture must remember so that it can be made again.

use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// The version of this structure. A reader refuses recipes of a later one.
pub const FORMAT: u32 = 1;

/// Everything that determined a picture, as it is written into the PNG's `conjure` text.
///
/// Unknown entries are an error: a setting that is not understood could change the picture.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// [`FORMAT`] of the writer.
    pub format: u32,
    /// Version of Conjure that made the picture.
    pub version: String,
    /// The command, `image`.
    pub command: String,
    /// The model.
    pub model: Model,
    /// Prompt as typed.
    pub prompt: String,
    /// Negative prompt as typed.
    #[serde(default)]
    pub negative: String,
    /// Denoising steps.
    pub steps: usize,
    /// Sampler, by its name on the command line.
    pub sampler: String,
    /// Schedule, by its name on the command line.
    pub schedule: String,
    /// Scale of classifier-free guidance.
    pub guidance: f64,
    /// Rescale of guidance, 0 for none.
    #[serde(default)]
    pub guidance_rescale: f64,
    /// Seed of the batch.
    pub seed: u64,
    /// Random numbers: `philox`, `torch` or `comfy`.
    pub rng: String,
    /// Pixels in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// Pictures made at once.
    pub batch: usize,
    /// Which of them this is, from 0.
    pub index: usize,
    /// Picture that the work began from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init: Option<Input>,
    /// How much of `init` is made anew, in `0..=1`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub strength: Option<f64>,
    /// Mask of what is made anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mask: Option<Input>,
    /// File of initial noise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub noise: Option<Input>,
    /// LoRAs that were merged into the model.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub loras: Vec<WeightedInput>,
    /// Files of learned tokens.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub embeddings: Vec<Input>,
    /// What a strip shows, `predictions` or `runs`, if the picture is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub strip: Option<String>,
    /// Further settings that later commands may need, by their names on the command line.
    #[serde(default, skip_serializing_if = "serde_json::Map::is_empty")]
    pub settings: serde_json::Map<String, serde_json::Value>,
    /// SHA-256 of the pixels ([`super::Picture::sha256`]); filled in when the picture is written.
    #[serde(default)]
    pub picture: String,
}

/// The model that made a picture.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// File or folder as given, or the name of a built-in model.
    pub path: String,
    /// [`crate::digest::model_digest`], or what identifies a built-in model.
    pub digest: String,
    /// Folder of the tokenizer, if it was given apart from the model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<String>,
}

/// A file that the picture depends on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Input {
    /// File as given.
    pub path: String,
    /// SHA-256 of its bytes.
    pub sha256: String,
}

/// A file that the picture depends on, and how much.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WeightedInput {
    /// File as given.
    pub path: String,
    /// SHA-256 of its bytes.
    pub sha256: String,
    /// What its effect was multiplied by.
    pub weight: f64,
}

impl Recipe {
    /// Reads a recipe from its JSON text.
    ///
    /// # Errors
    /// Text that is no recipe, or a recipe of a later format.
    pub fn from_json(text: &str) -> Result<Self> {
        #[derive(Deserialize)]
        struct Head {
            format: u32,
            #[serde(default)]
            version: String,
        }
        let broken = |e: serde_json::Error| Error::request(format!("the recipe is damaged: {e}"));
        let head: Head = serde_json::from_str(text).map_err(broken)?;
        if head.format > FORMAT {
            let message = format!("the recipe has format {}, this version reads up to {FORMAT}", head.format);
            return Err(Error::request(message).with_help(format!("use Conjure {} or later", head.version)));
        }
        serde_json::from_str(text).map_err(broken)
    }

    /// The recipe as JSON in one line.
    pub fn to_json(&self) -> String {
        serde_json::json!(self).to_string()
    }

    /// The recipe in the text form that most tools for generated pictures read, from AUTOMATIC1111's web interface: the
    /// prompt, a line with the negative prompt, a line of settings. Values with commas, colons or line breaks are quoted.
    pub fn parameters(&self) -> String {
        let mut text = self.prompt.clone();
        if !self.negative.is_empty() {
            text.push_str("\nNegative prompt: ");
            text.push_str(&self.negative);
        }
        let mut settings: Vec<(&str, String)> = vec![
            ("Steps", self.steps.to_string()),
            ("Sampler", sampler_label(&self.sampler).to_owned()),
            ("Schedule type", schedule_label(&self.schedule).to_owned()),
            ("CFG scale", self.guidance.to_string()),
            ("Seed", self.seed.to_string()),
            ("Size", format!("{}x{}", self.width, self.height)),
            ("Model hash", crate::digest::short(&self.model.digest).to_owned()),
            ("Model", model_name(&self.model.path).to_owned()),
        ];
        if let Some(strength) = self.strength {
            settings.push(("Denoising strength", strength.to_string()));
        }
        if self.guidance_rescale != 0.0 {
            settings.push(("CFG rescale", self.guidance_rescale.to_string()));
        }
        let hashes = |files: &mut dyn Iterator<Item = (&str, &str)>| {
            let hashes = files.map(|(path, sha256)| format!("{}: {}", model_name(path), crate::digest::short(sha256)));
            hashes.collect::<Vec<_>>().join(", ")
        };
        if !self.loras.is_empty() {
            let files = &mut self.loras.iter().map(|lora| (lora.path.as_str(), lora.sha256.as_str()));
            settings.push(("Lora hashes", hashes(files)));
        }
        if !self.embeddings.is_empty() {
            let files = &mut self.embeddings.iter().map(|file| (file.path.as_str(), file.sha256.as_str()));
            settings.push(("TI hashes", hashes(files)));
        }
        settings.push(("RNG", self.rng.clone()));
        settings.push(("Version", format!("conjure {}", self.version)));
        let settings: Vec<_> =
            settings.into_iter().map(|(name, value)| format!("{name}: {}", quoted(&value))).collect();
        text.push('\n');
        text.push_str(&settings.join(", "));
        text
    }
}

fn quoted(value: &str) -> String {
    if value.contains([',', ':', '\n']) { serde_json::Value::from(value).to_string() } else { value.to_owned() }
}

/// The last part of a path, without the ending of a weight file.
fn model_name(path: &str) -> &str {
    let name = path.trim_end_matches(['/', '\\']).rsplit(['/', '\\']).next().unwrap_or(path);
    let stems = [".safetensors", ".ckpt", ".pt", ".bin"].iter().filter_map(|ending| name.strip_suffix(ending));
    stems.into_iter().next().unwrap_or(name)
}

/// The name that other tools know a sampler by.
fn sampler_label(name: &str) -> &str {
    match name {
        "ddpm" => "DDPM",
        "ddim" => "DDIM",
        "pndm" => "PLMS",
        "euler" => "Euler",
        "euler-a" => "Euler a",
        "heun" => "Heun",
        "dpm2" => "DPM2",
        "dpm2-a" => "DPM2 a",
        "lms" => "LMS",
        "dpmpp-2m" => "DPM++ 2M",
        "dpmpp-2m-sde" => "DPM++ 2M SDE",
        "dpmpp-3m-sde" => "DPM++ 3M SDE",
        "dpmpp-2s-a" => "DPM++ 2S a",
        "dpmpp-sde" => "DPM++ SDE",
        "unipc" => "UniPC",
        "lcm" => "LCM",
        other => other,
    }
}

fn schedule_label(name: &str) -> &str {
    match name {
        "default" => "Automatic",
        "karras" => "Karras",
        "exponential" => "Exponential",
        "beta" => "Beta",
        other => other,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn example() -> Recipe {
        Recipe {
            format: FORMAT,
            version: "0.1.0".into(),
            command: "image".into(),
            model: Model {
                path: "models/sd,15.safetensors".into(),
                digest: "cc6cb27103417325".into(),
                tokenizer: None,
            },
            prompt: "a lighthouse, (storm:1.2)\nsecond line".into(),
            negative: "blurry".into(),
            steps: 20,
            sampler: "dpmpp-2m".into(),
            schedule: "karras".into(),
            guidance: 7.5,
            guidance_rescale: 0.0,
            seed: 18_446_744_073_709_551_615,
            rng: "torch".into(),
            width: 512,
            height: 768,
            batch: 1,
            index: 0,
            init: None,
            strength: None,
            mask: None,
            noise: None,
            loras: Vec::new(),
            embeddings: Vec::new(),
            strip: None,
            settings: serde_json::Map::new(),
            picture: String::new(),
        }
    }

    #[test]
    fn parameters_are_what_other_tools_read() {
        assert_eq!(
            example().parameters(),
            "a lighthouse, (storm:1.2)\nsecond line\nNegative prompt: blurry\nSteps: 20, Sampler: DPM++ 2M, Schedule type: \
             Karras, CFG scale: 7.5, Seed: 18446744073709551615, Size: 512x768, Model hash: cc6cb27103, Model: \"sd,15\", \
             RNG: torch, Version: conjure 0.1.0"
        );
    }

    #[test]
    fn json_round_trips_and_says_what_is_wrong() -> Result<()> {
        let mut recipe = example();
        recipe.init = Some(Input { path: "a.png".into(), sha256: "00".into() });
        let lora = WeightedInput { path: "b.safetensors".into(), sha256: "0123456789abcdef".into(), weight: -0.8 };
        recipe.loras = vec![lora];
        assert!(recipe.parameters().contains("Lora hashes: \"b: 0123456789\", RNG"), "{}", recipe.parameters());
        recipe.guidance = 0.1 + 0.2;
        assert_eq!(Recipe::from_json(&recipe.to_json())?, recipe);
        let later = recipe.to_json().replace("\"format\":1", "\"format\":2");
        assert!(Recipe::from_json(&later).expect_err("refused").to_string().contains("format 2"));
        let unknown = recipe.to_json().replace("\"steps\"", "\"stepz\"");
        assert!(Recipe::from_json(&unknown).expect_err("refused").to_string().contains("stepz"));
        Ok(())
    }
}
