//! Attention before a probe's eyes.

use conjure_core::blocks::{Attention, AttentionConfig};
use conjure_core::probe::{NoProbe, Probe, Quantity, SeenAttention, WhatIf};
use conjure_core::weights::Params;
use conjure_core::{DType, Device, Result, Tensor};

const CONFIG: AttentionConfig = AttentionConfig { query_dim: 6, context_dim: 6, heads: 3, head_dim: 4, bias: true };

/// Wants everything, and what it is told to change.
#[derive(Default)]
struct Curious {
    change: Option<WhatIf>,
    weights: Vec<Vec<Vec<f32>>>,
    sums: Vec<Vec<f32>>,
}

impl Probe for Curious {
    fn wants(&self, _: &str, _: Quantity) -> bool {
        true
    }

    fn observe(&mut self, _: &str, _: Quantity, _: &Tensor) -> Result<()> {
        Ok(())
    }

    fn observe_attention(&mut self, path: &str, seen: &SeenAttention<'_>) -> Result<()> {
        assert_eq!(path, "attn");
        assert_eq!((seen.q.dims(), seen.k.dims(), seen.v.dims()), (&[1, 3, 5, 4][..], &[1, 3, 5, 4][..], &[1, 3, 5, 4][..]));
        self.weights = seen.probabilities()?.squeeze(0)?.to_vec3()?;
        let merged = seen.y.transpose(1, 2)?.reshape((1, 5, 12))?;
        self.sums = (seen.to_out)(&merged)?.squeeze(0)?.to_vec2()?;
        Ok(())
    }

    fn what_if(&self, _: &str) -> Option<WhatIf> {
        self.change.clone()
    }
}

/// Numbers without a pattern that could hide a mistake.
fn numbers(shape: (usize, usize, usize)) -> Tensor {
    let count = shape.0 * shape.1 * shape.2;
    let data: Vec<f32> = (0..count).map(|n| ((n * 37 % 101) as f32 - 50.0) / 25.0).collect();
    Tensor::from_vec(data, shape, &Device::Cpu).unwrap()
}

fn layer() -> (Attention, Tensor) {
    let params = Params::seeded(3, DType::F32, &Device::Cpu);
    (Attention::new(&params.sub("attn"), CONFIG).unwrap().causal(), numbers((1, 5, 6)))
}

fn rows(x: &Tensor) -> Vec<Vec<f32>> {
    x.squeeze(0).unwrap().to_vec2().unwrap()
}

#[test]
fn a_probe_that_only_looks_changes_no_bit() {
    let (layer, x) = layer();
    let unseen = rows(&layer.forward(&x, None, None, &mut NoProbe).unwrap());
    let mut probe = Curious::default();
    let seen = rows(&layer.forward(&x, None, None, &mut probe).unwrap());
    assert_eq!(unseen, seen);
    assert_eq!(probe.sums, seen);
    for row in probe.weights.iter().flatten() {
        assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-6, "{row:?}");
    }
    let mut nothing = Curious { change: Some(WhatIf::default()), ..Curious::default() };
    assert_eq!(rows(&layer.forward(&x, None, None, &mut nothing).unwrap()), unseen);
}

#[test]
fn hidden_keys_are_seen_by_nobody_but_themselves() {
    let (layer, x) = layer();
    let change = WhatIf { hidden_keys: vec![0, 2], own_position_stays: true, silent_heads: vec![] };
    let mut probe = Curious { change: Some(change.clone()), ..Curious::default() };
    layer.forward(&x, None, None, &mut probe).unwrap();
    for head in &probe.weights {
        for (i, row) in head.iter().enumerate() {
            for (j, weight) in row.iter().enumerate() {
                assert_eq!(*weight > 0.0, j <= i && (i == j || ![0, 2].contains(&j)), "{i} {j} {weight}");
            }
        }
    }
    // The first token has only itself to look at, hidden or not.
    let plain = rows(&layer.forward(&x, None, None, &mut NoProbe).unwrap());
    assert_eq!(probe.sums[0], plain[0]);
    let far = WhatIf { hidden_keys: vec![5], ..change };
    let error = layer.forward(&x, None, None, &mut Curious { change: Some(far), ..Curious::default() }).unwrap_err();
    assert_eq!(error.to_string(), "position 5 cannot be hidden: there are 5");
}

#[test]
fn a_silent_head_adds_nothing() {
    let (layer, x) = layer();
    let all = |silent: &[usize]| {
        let change = WhatIf { silent_heads: silent.to_vec(), ..WhatIf::default() };
        rows(&layer.forward(&x, None, None, &mut Curious { change: Some(change), ..Curious::default() }).unwrap())
    };
    let (none, bias) = (all(&[]), all(&[0, 1, 2]));
    assert!(bias.iter().all(|row| *row == bias[0]), "only the bias is left");
    // What the heads add one by one is what they add together.
    let parts = [all(&[1, 2]), all(&[0, 2]), all(&[0, 1])];
    for i in 0..5 {
        for n in 0..6 {
            let sum: f32 = parts.iter().map(|part| part[i][n] - bias[i][n]).sum();
            assert!((sum - (none[i][n] - bias[i][n])).abs() < 1e-5);
        }
    }
    let change = WhatIf { silent_heads: vec![3], ..WhatIf::default() };
    let error = layer.forward(&x, None, None, &mut Curious { change: Some(change), ..Curious::default() }).unwrap_err();
    assert!(error.to_string().starts_with("head 3 cannot be switched off: there are 3"));
}
