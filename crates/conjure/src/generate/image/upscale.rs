//! Making a finished picture bigger, with a network that was trained for that.

use super::pixels::{to_pictures, to_tensor};
use super::shipped::{named_folder, shipped};
use crate::digest::model_digest;
use crate::image_file::Picture;
use crate::model_folder;
use crate::{Error, Result};
use conjure_core::Device;
use conjure_core::probe::NoProbe;
use conjure_models::super_resolution::{SuperResolution, SuperResolutionConfig};
use std::path::Path;

/// The network that comes with Conjure.
pub const UPSCALER: &str = "super_resolution";
/// How many times larger pictures can be asked for.
pub const FACTORS: [usize; 2] = [2, 4];

/// A super-resolution network.
pub struct Upscaler {
    model: SuperResolution,
    digest: String,
    device: Device,
}

impl Upscaler {
    /// Opens a folder with `config.json` and weights, as the objective `super_resolution` exports it, for `device`.
    ///
    /// # Errors
    /// A folder that holds no such network.
    pub fn open(folder: &Path, device: &Device) -> Result<Self> {
        let (config, params) = model_folder::open(folder, SuperResolutionConfig::from_json, device)?;
        let model = SuperResolution::new(&params, &config)?;
        Ok(Self { model, digest: model_digest(folder)?, device: device.clone() })
    }

    /// The network that comes with Conjure, for `device`.
    ///
    /// # Errors
    /// It is not there, or `CONJURE_MODELS` names no folder. A folder with picture models only will do.
    pub fn shipped(device: &Device) -> Result<Self> {
        named_folder()?;
        let folder = shipped(UPSCALER).ok_or_else(|| {
            Error::request("the network that makes pictures bigger is not there")
                .with_help("keep the folder models/ beside the program, or set CONJURE_MODELS to where it is")
        })?;
        Self::open(&folder, device)
    }

    /// What identifies the network.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// The picture `factor` times as wide and high: the network is applied until it is large enough.
    ///
    /// # Errors
    /// A factor that is no power of the network's own.
    pub fn enlarge(&self, picture: &Picture, factor: usize) -> Result<Picture> {
        let step = self.model.config().scale;
        let (mut larger, mut done) = (picture.clone(), 1);
        while done < factor {
            let pixels = self.model.forward(&to_tensor(&larger, &self.device)?, &mut NoProbe)?;
            larger = to_pictures(&pixels)?.pop().ok_or_else(|| Error::failure("super-resolution gave no picture"))?;
            done *= step;
        }
        if done != factor {
            return Err(Error::request(format!("the network makes pictures {step} times larger, not {factor} times")));
        }
        Ok(larger)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use conjure_core::DType;
    use conjure_core::weights::Params;

    /// Whose last layer is drawn at random, so that pictures come out changed but of the right size.
    fn untrained(scale: usize) -> Upscaler {
        let config =
            SuperResolutionConfig { num_feat: 8, num_grow_ch: 4, num_block: 1, ..SuperResolutionConfig::small(scale) };
        let model = SuperResolution::new(&Params::seeded(1, DType::F32, &Device::Cpu), &config).unwrap();
        Upscaler { model, digest: String::new(), device: Device::Cpu }
    }

    #[test]
    fn pictures_grow_by_the_factor() {
        let picture = Picture::filled(6, 5, [200, 100, 50]);
        for (scale, factor) in [(2, 2), (2, 4), (4, 4)] {
            let larger = untrained(scale).enlarge(&picture, factor).unwrap();
            assert_eq!((larger.width, larger.height), (6 * factor, 5 * factor));
        }
        let error = untrained(4).enlarge(&picture, 2).unwrap_err();
        assert_eq!(error.to_string(), "the network makes pictures 4 times larger, not 2 times");
    }

    #[test]
    fn a_folder_without_the_network_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Upscaler::open(folder.path(), &Device::Cpu).is_err());
        std::fs::write(folder.path().join("config.json"), r#"{ "model_type": "clip" }"#).unwrap();
        assert!(Upscaler::open(folder.path(), &Device::Cpu).err().unwrap().to_string().contains("config.json"));
    }
}
