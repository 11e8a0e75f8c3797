//! A small network that says what a picture shows: a residual network of "Identity Mappings in Deep Residual Networks", He
//! et al. 2016, <https://arxiv.org/abs/1603.05027>, with the norms of "Group Normalization", Wu & He 2018,
//! <https://arxiv.org/abs/1803.08494>.
//!
//! | in the paper | here |
//! |---|---|
//! | `x_{l+1} = x_l + F(x_l)`, He et al. equation 6; full pre-activation, figure 4 (e) | [`ResnetBlock`] |
//! | `mu`, `sigma` over a group, Wu & He equation 2 | [`GroupNorm`] |
//! | smoothed labels, Szegedy et al. 2016, section 7 | argument of [`loss`] |
//! | `d(x, x_0)`, Zhang et al. 2018 (LPIPS), equation 1 | [`perceptual_distance`] |
//!
//! What differs: groups instead of the batch are normed, so that a picture's result does not depend on its neighbours;
//! SiLU instead of ReLU; a strided convolution between levels instead of strided blocks; several heads on one trunk. The
//! perceptual distance weighs all channels alike where Zhang et al. learn weights from people's judgements.

use conjure_core::blocks::{Conv2d, Downsample, GroupNorm, Linear, ResnetBlock, ResnetBlockConfig};
use conjure_core::config::{self, MAX_FEATURES, MAX_LAYERS};
use conjure_core::ops::{self, Conv2dSpec};
use conjure_core::probe::{Probe, Quantity, offer};
use conjure_core::weights::Params;
use conjure_core::{Error, Result, Tensor};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The network's `config.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageClassifierConfig {
    /// `image_classifier`.
    pub model_type: String,
    /// Height and width of the pictures that it is made for, in pixels. It takes others, too.
    pub image_size: usize,
    /// Channels of a picture.
    pub in_channels: usize,
    /// Stride of the first convolution.
    pub stem_stride: usize,
    /// Channels of each level; each halves the picture's sides.
    pub block_out_channels: Vec<usize>,
    /// Residual blocks of each level.
    pub layers_per_block: usize,
    /// Groups of every norm; divides the channels of every level.
    pub norm_num_groups: usize,
    /// What is told apart: a head for each entry, with the names of its classes in the order of its logits.
    pub heads: BTreeMap<String, Vec<String>>,
}

impl ImageClassifierConfig {
    /// For 64x64 pictures: 3.5 million parameters and 0.34 GFLOP per picture, heads aside.
    pub fn small_64(heads: BTreeMap<String, Vec<String>>) -> Self {
        Self {
            model_type: "image_classifier".to_owned(),
            image_size: 64,
            in_channels: 3,
            stem_stride: 2,
            block_out_channels: vec![32, 64, 128, 256],
            layers_per_block: 2,
            norm_num_groups: 8,
            heads,
        }
    }

    /// Reads a `config.json`.
    ///
    /// # Errors
    /// Not JSON, unknown or missing entries, a value of the wrong type, or a network that cannot be built.
    pub fn from_json(text: &str) -> Result<Self> {
        let config: Self =
            serde_json::from_str(text).map_err(|e| Error::request(format!("not an image classifier config: {e}")))?;
        config.check()?;
        Ok(config)
    }

    /// Whether a network can be built.
    ///
    /// # Errors
    /// Says which entries do not fit.
    pub fn check(&self) -> Result<()> {
        if self.model_type != "image_classifier" {
            return Err(Error::request(format!("model_type is \"{}\", not \"image_classifier\"", self.model_type)));
        }
        for (name, value, most) in [
            ("image_size", self.image_size, MAX_FEATURES),
            ("in_channels", self.in_channels, MAX_FEATURES),
            ("stem_stride", self.stem_stride, 2),
            ("layers_per_block", self.layers_per_block, MAX_LAYERS),
            ("norm_num_groups", self.norm_num_groups, MAX_FEATURES),
            ("number of block_out_channels", self.block_out_channels.len(), MAX_LAYERS),
            ("number of heads", self.heads.len(), MAX_LAYERS),
        ] {
            config::check_size(name, value, most)?;
        }
        for &channels in &self.block_out_channels {
            config::check_size("block_out_channels", channels, MAX_FEATURES)?;
            if !channels.is_multiple_of(self.norm_num_groups) {
                return Err(Error::request(format!(
                    "block_out_channels has {channels}, which is not a multiple of norm_num_groups {}",
                    self.norm_num_groups
                )));
            }
        }
        for (name, classes) in &self.heads {
            config::check_size(&format!("number of classes of head {name}"), classes.len(), MAX_FEATURES)?;
            // The name is part of the head's checkpoint key.
            if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
                return Err(Error::request(format!("head name {name:?} is not made of letters, digits and _")));
            }
        }
        Ok(())
    }
}

#[derive(Clone, Debug)]
struct Level {
    resnets: Vec<ResnetBlock>,
    downsample: Option<Downsample>,
    path: String,
}

impl Level {
    fn new(params: &Params, channels: usize, next: Option<usize>, config: &ImageClassifierConfig) -> Result<Self> {
        let block = ResnetBlockConfig::new(channels, channels, config.norm_num_groups);
        Ok(Self {
            resnets: (0..config.layers_per_block)
                .map(|n| ResnetBlock::new(&params.sub("resnets").sub(n), block))
                .collect::<Result<_>>()?,
            downsample: next.map(|next| Downsample::new(&params.sub("downsample"), channels, next, 1)).transpose()?,
            path: params.path().to_owned(),
        })
    }
}

/// What the network says of a batch of pictures.
#[derive(Clone, Debug)]
pub struct ImageClassifierOutput {
    /// The last level, normed and averaged over its places: `(batch, channels)`.
    pub features: Tensor,
    /// For each head `(batch, classes)`, before the softmax.
    pub logits: BTreeMap<String, Tensor>,
}

/// The residual network with its heads.
#[derive(Clone, Debug)]
pub struct ImageClassifier {
    conv_in: Conv2d,
    down_blocks: Vec<Level>,
    norm_out: GroupNorm,
    heads: BTreeMap<String, Linear>,
    config: ImageClassifierConfig,
}

impl ImageClassifier {
    /// The network below `params`.
    ///
    /// # Errors
    /// A config that cannot be built, a missing or misshapen parameter.
    pub fn new(params: &Params, config: &ImageClassifierConfig) -> Result<Self> {
        config.check()?;
        let channels = &config.block_out_channels;
        let (first, last) = (channels[0], channels[channels.len() - 1]);
        let stem = Conv2dSpec::new(config.stem_stride, 1);
        Ok(Self {
            conv_in: Conv2d::new(&params.sub("conv_in"), config.in_channels, first, 3, stem)?,
            down_blocks: (0..channels.len())
                .map(|n| {
                    let params = params.sub("down_blocks").sub(n);
                    Level::new(&params, channels[n], channels.get(n + 1).copied(), config)
                })
                .collect::<Result<_>>()?,
            norm_out: GroupNorm::new(&params.sub("norm_out"), config.norm_num_groups, last, 1e-6)?,
            heads: config
                .heads
                .iter()
                .map(|(name, classes)| {
                    let head = Linear::new(&params.sub("heads").sub(name), last, classes.len(), true)?;
                    Ok((name.clone(), head))
                })
                .collect::<Result<_>>()?,
            config: config.clone(),
        })
    }

    /// The config that the network was built from.
    pub fn config(&self) -> &ImageClassifierConfig {
        &self.config
    }

    /// The output of each level for `pixels (batch, in_channels, h, w)` in `[-1, 1]`: tensors
    /// `(batch, block_out_channels[n], h_n, w_n)`, each half as high and wide as the one before. The probe sees them at
    /// `down_blocks.N`.
    ///
    /// # Errors
    /// Another number of channels.
    pub fn pyramid(&self, pixels: &Tensor, probe: &mut dyn Probe) -> Result<Vec<Tensor>> {
        let mut x = self.conv_in.forward(pixels)?; // (batch, block_out_channels[0], h_0, w_0)
        let mut levels = Vec::with_capacity(self.down_blocks.len());
        for level in &self.down_blocks {
            for resnet in &level.resnets {
                x = resnet.forward(&x, None)?;
            }
            offer(probe, &level.path, Quantity::Activation, &x)?;
            levels.push(x.clone());
            if let Some(downsample) = &level.downsample {
                x = downsample.forward(&x)?; // (batch, block_out_channels[n + 1], ceil(h_n / 2), ceil(w_n / 2))
            }
        }
        Ok(levels)
    }

    /// A vector for each of `pixels (batch, in_channels, h, w)` in `[-1, 1]`: `(batch, channels of the last level)`. Pictures
    /// that look alike to the network are near each other.
    ///
    /// # Errors
    /// As [`ImageClassifier::pyramid`].
    pub fn features(&self, pixels: &Tensor, probe: &mut dyn Probe) -> Result<Tensor> {
        // 1. The levels, of which the last one counts.
        let levels = self.pyramid(pixels, probe)?;
        let last = levels.last().ok_or_else(|| Error::failure("a classifier without levels"))?;
        // 2. Every place says the same much.
        let x = self.norm_out.forward_silu(last)?; // (batch, channels, h_n, w_n)
        Ok(x.flatten_from(2)?.mean(2)?) // (batch, channels)
    }

    /// Features and logits of `pixels (batch, in_channels, h, w)` in `[-1, 1]`.
    ///
    /// # Errors
    /// As [`ImageClassifier::pyramid`].
    pub fn forward(&self, pixels: &Tensor, probe: &mut dyn Probe) -> Result<ImageClassifierOutput> {
        // 1. What there is to see.
        let features = self.features(pixels, probe)?; // (batch, channels)
        // 2. What each head makes of it.
        let logits = self
            .heads
            .iter()
            .map(|(name, head)| Ok((name.clone(), head.forward(&features)?))) // (batch, classes)
            .collect::<Result<_>>()?;
        Ok(ImageClassifierOutput { features, logits })
    }
}

/// Cross-entropy with smoothed labels, summed over the heads that `targets (batch)` of type u32 names. Returns a scalar.
///
/// # Errors
/// A head that the network lacks, no head at all, targets that do not fit.
pub fn loss(
    logits: &BTreeMap<String, Tensor>,
    targets: &BTreeMap<String, Tensor>,
    label_smoothing: f64,
) -> Result<Tensor> {
    let mut sum: Option<Tensor> = None;
    for (name, targets) in targets {
        let logits = logits.get(name).ok_or_else(|| {
            let known: Vec<_> = logits.keys().map(String::as_str).collect();
            Error::request(format!("the classifier has no head {name}"))
                .with_help(format!("it has {}", known.join(", ")))
        })?;
        let one = ops::cross_entropy(logits, targets, label_smoothing)?;
        sum = Some(match sum {
            Some(sum) => (sum + one)?,
            None => one,
        });
    }
    sum.ok_or_else(|| Error::request("there is no head to train"))
}

/// How different two pictures look to a network, from what [`ImageClassifier::pyramid`] gave for each: at each place the
/// squared distance between the vectors of channels, each of length 1, averaged over places, pictures and levels (Zhang et
/// al. 2018, equation 1, with all weights 1). A scalar from 0 to 4.
///
/// # Errors
/// The levels differ in number or shape, or there are none.
pub fn perceptual_distance(a: &[Tensor], b: &[Tensor]) -> Result<Tensor> {
    if a.len() != b.len() || a.is_empty() {
        return Err(Error::request(format!("perceptual distance: {} levels and {}", a.len(), b.len())));
    }
    // Under the root, so that vanishing features have a gradient.
    let unit = |x: &Tensor| -> Result<Tensor> { Ok(x.broadcast_div(&(x.sqr()?.sum_keepdim(1)? + 1e-8)?.sqrt()?)?) };
    let mut sum: Option<Tensor> = None;
    for (a, b) in a.iter().zip(b) {
        let level = (unit(a)? - unit(b)?)?.sqr()?.sum(1)?.mean_all()?;
        sum = Some(match sum {
            Some(sum) => (sum + level)?,
            None => level,
        });
    }
    let sum = sum.ok_or_else(|| Error::failure("perceptual distance of no levels"))?;
    Ok((sum / a.len() as f64)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heads() -> BTreeMap<String, Vec<String>> {
        BTreeMap::from([("style".to_owned(), vec!["flat".to_owned(), "round".to_owned()])])
    }

    #[test]
    fn configs_are_written_and_read() {
        let config = ImageClassifierConfig::small_64(heads());
        let text = serde_json::to_string(&config).unwrap();
        assert_eq!(ImageClassifierConfig::from_json(&text).unwrap(), config);
        let error = ImageClassifierConfig::from_json(&text.replace("stem_stride", "stride")).unwrap_err().to_string();
        assert!(error.starts_with("not an image classifier config: unknown field `stride`"), "{error}");
    }

    #[test]
    fn what_cannot_be_built_is_refused() {
        type Spoil = fn(&mut ImageClassifierConfig);
        let cases: [(Spoil, &str); 6] = [
            (|c| c.block_out_channels = vec![], "number of block_out_channels is 0"),
            (|c| c.block_out_channels = vec![32, 60], "block_out_channels has 60, which is not a multiple of norm_num"),
            (|c| c.layers_per_block = 1 << 40, "layers_per_block is 1099511627776; at most 128"),
            (|c| c.stem_stride = 3, "stem_stride is 3; at most 2"),
            (|c| drop(c.heads.insert("style".to_owned(), vec![])), "number of classes of head style is 0"),
            (|c| drop(c.heads.insert("a.b".to_owned(), vec!["x".to_owned()])), "head name \"a.b\" is not made of"),
        ];
        for (spoil, said) in cases {
            let mut config = ImageClassifierConfig::small_64(heads());
            spoil(&mut config);
            let error = config.check().unwrap_err().to_string();
            assert!(error.starts_with(said), "{error}");
        }
    }

    #[test]
    fn parameters_of_the_preset_are_counted() {
        let params = Params::outline();
        ImageClassifier::new(&params, &ImageClassifierConfig::small_64(heads())).unwrap();
        let trunk: usize =
            params.asked().iter().filter(|p| !p.name.starts_with("heads.")).map(|p| p.shape.elem_count()).sum();
        assert_eq!(trunk, 3_528_128);
    }
}
