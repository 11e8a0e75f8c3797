//! Activation recomputation: the same gradients, bit for bit.

use conjure_core::blocks::{BasicTransformerBlock, ResnetBlock, ResnetBlockConfig, Transformer2dConfig};
use conjure_core::probe::NoProbe;
use conjure_core::weights::Params;
use conjure_core::{DType, Device, Result, Tensor, recompute, rng};
use std::collections::BTreeMap;

fn random(name: &str, shape: &[usize]) -> Tensor {
    rng::randn(&mut rng::keyed(7, name), shape, &Device::Cpu).unwrap()
}

/// A little U-Net's worth of blocks: time for each, a prompt with a mask, an input that one block and a shortcut share, and
/// one block used twice.
struct Model {
    params: Params,
    blocks: Vec<ResnetBlock>,
    attention: BasicTransformerBlock,
    time: Tensor,
}

impl Model {
    fn new() -> Self {
        let params = Params::seeded(1, DType::F32, &Device::Cpu).trainable();
        let config = ResnetBlockConfig { temb_channels: Some(6), ..ResnetBlockConfig::new(8, 8, 2) };
        let wide = ResnetBlockConfig { in_channels: 16, ..config };
        let blocks = [("a", config), ("b", config), ("c", wide)];
        let attention = Transformer2dConfig {
            channels: 8,
            heads: 2,
            head_dim: 4,
            layers: 1,
            cross_attention_dim: 5,
            norm_groups: 2,
            use_linear_projection: true,
            only_cross_attention: false,
        };
        Self {
            blocks: blocks.map(|(name, config)| ResnetBlock::new(&params.sub(name), config).unwrap()).into(),
            attention: BasicTransformerBlock::new(&params.sub("attention"), attention).unwrap(),
            time: params.get("time", (2, 6), conjure_core::weights::Init::Normal { std: 1.0 }).unwrap(),
            params,
        }
    }

    fn loss(&self) -> Result<Tensor> {
        let (x, prompt) = (random("x", &[2, 8, 6, 6]), random("prompt", &[2, 3, 5]));
        let mask = random("mask", &[2, 1, 1, 3]);
        let temb = (&self.time * 2.0)?;
        let first = self.blocks[0].forward(&x, Some(&temb))?;
        let second = self.blocks[1].forward(&first, Some(&temb))?;
        let second = self.blocks[1].forward(&second, Some(&temb))?;
        let rows = second.flatten_from(2)?.transpose(1, 2)?.contiguous()?;
        let rows = self.attention.forward(&rows, &prompt, Some(&mask), &mut NoProbe)?;
        let back = rows.transpose(1, 2)?.reshape((2, 8, 6, 6))?;
        let y = self.blocks[2].forward(&Tensor::cat(&[&back, &first], 1)?, Some(&temb))?;
        Ok((y - random("target", &[2, 8, 6, 6]))?.sqr()?.mean_all()?)
    }

    fn gradients(&self, again: bool) -> (f32, BTreeMap<String, Vec<f32>>) {
        recompute::with(again, || {
            let loss = self.loss().unwrap();
            let mut store = recompute::backward(&loss).unwrap();
            let gradient = |(name, variable): (String, conjure_core::Var)| {
                let gradient = store.remove(variable.as_tensor()).unwrap_or_else(|| panic!("{name} has no gradient"));
                (name, gradient.flatten_all().unwrap().to_vec1().unwrap())
            };
            (loss.to_scalar().unwrap(), self.params.variables().into_iter().map(gradient).collect())
        })
    }
}

#[test]
fn gradients_are_the_same_to_the_bit() {
    let model = Model::new();
    let (loss, plain) = model.gradients(false);
    let (again, recomputed) = model.gradients(true);
    assert_eq!(loss, again);
    assert!(plain.len() > 40 && plain.keys().eq(recomputed.keys()));
    for (name, gradient) in &plain {
        assert!(gradient.iter().any(|g| *g != 0.0), "{name}");
        assert_eq!(gradient, &recomputed[name], "{name}");
    }
}

/// Neither the second forward pass nor the backward pass leaves the mode switched.
#[test]
fn the_mode_ends_with_its_work() {
    assert!(!recompute::active());
    recompute::with(true, || {
        let model = Model::new();
        recompute::backward(&model.loss().unwrap()).unwrap();
        assert!(recompute::active());
    });
    assert!(!recompute::active());
}

/// Gradients of parameters inside segments would be lost in silence.
#[test]
fn the_tensor_librarys_own_backward_pass_is_refused() {
    let error = recompute::with(true, || Model::new().loss().unwrap().backward().err().unwrap());
    assert!(error.to_string().contains("recompute::backward"), "{error}");
}
