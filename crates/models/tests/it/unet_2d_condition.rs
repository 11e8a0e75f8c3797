//! The U-Net against diffusers.

use crate::fixture::{self, Fixture};
use conjure_core::probe::{NoProbe, Quantity, Recorder};
use conjure_core::weights::Params;
use conjure_core::{DType, Device, Tensor};
use conjure_models::unet_2d_condition::{AddedConditions, UNet2DConditionConfig, UNet2DConditionModel};

const CASES: [&str; 7] = ["sd1", "sd2", "sdxl", "odd", "inpaint_lcm", "no_middle", "class_timestep"];

fn open(name: &str) -> (UNet2DConditionConfig, Fixture) {
    let text = std::fs::read_to_string(fixture::path(&format!("unet_2d_condition/{name}.json"))).unwrap();
    let config = UNet2DConditionConfig::from_json(&text).unwrap();
    (config, Fixture::open(&format!("unet_2d_condition/{name}.safetensors")))
}

struct Inputs {
    sample: Tensor,
    timesteps: Tensor,
    prompt: Tensor,
    added: AddedConditions,
}

fn inputs(fixture: &Fixture) -> Inputs {
    let get = |name: &str| fixture.get(&format!("inputs.{name}"));
    Inputs {
        sample: get("sample").unwrap(),
        timesteps: get("timesteps").unwrap(),
        prompt: get("encoder_hidden_states").unwrap(),
        added: AddedConditions {
            text_embeds: get("text_embeds"),
            time_ids: get("time_ids"),
            timestep_cond: get("timestep_cond"),
            class_labels: get("class_labels"),
            encoder_attention_mask: get("encoder_attention_mask"),
        },
    }
}

fn load(config: &UNet2DConditionConfig, fixture: &Fixture) -> UNet2DConditionModel {
    let params = Params::load(fixture.source("weights"), DType::F32, &Device::Cpu);
    UNet2DConditionModel::new(&params, config).unwrap()
}

#[test]
fn outputs_equal_those_of_diffusers() {
    for name in CASES {
        let (config, fixture) = open(name);
        let x = inputs(&fixture);
        let model = load(&config, &fixture);
        let y = model.forward(&x.sample, &x.timesteps, &x.prompt, &x.added, &mut NoProbe).unwrap();
        let error = fixture::relative_error(&y, &fixture.get("output").unwrap());
        assert!(error < 1e-5, "{name}: relative error {error:e}");
    }
}

#[test]
fn tiny_models_ask_for_exactly_the_reference_s_parameters() {
    for name in CASES {
        let (config, fixture) = open(name);
        let params = Params::outline();
        UNet2DConditionModel::new(&params, &config).unwrap();
        let want = fixture.below("weights").into_iter().map(|(k, v)| (k, v.dims().to_vec())).collect();
        assert_eq!(fixture::asked(&params.asked()), want, "{name}");
    }
}

#[test]
fn full_size_presets_ask_for_exactly_the_reference_s_parameters() {
    for (name, config) in [
        ("sd15", UNet2DConditionConfig::sd15()),
        ("sd21", UNet2DConditionConfig::sd21()),
        ("sdxl_base", UNet2DConditionConfig::sdxl_base()),
    ] {
        let params = Params::outline();
        UNet2DConditionModel::new(&params, &config).unwrap();
        let want = fixture::keys(&format!("unet_2d_condition/{name}.keys.gz"));
        assert!(want.len() > 600);
        assert_eq!(fixture::asked(&params.asked()), want, "{name}");
    }
}

#[test]
fn a_probe_changes_no_bit_and_sees_every_attention() {
    let (config, fixture) = open("sdxl");
    let x = inputs(&fixture);
    let model = load(&config, &fixture);
    let forward = |probe: &mut dyn conjure_core::probe::Probe| {
        let y = model.forward(&x.sample, &x.timesteps, &x.prompt, &x.added, probe).unwrap();
        y.flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    let mut recorder = Recorder::new(|_, _| true);
    let observed = forward(&mut recorder);
    assert_eq!(forward(&mut NoProbe), observed);

    let of = |path: &str, quantity| {
        let found = recorder.records.iter().find(|(p, q, _)| p == path && *q == quantity);
        found.unwrap_or_else(|| panic!("nothing observed at {path}")).2.clone()
    };
    let attention = of("up_blocks.0.attentions.1.transformer_blocks.1.attn2", Quantity::AttentionProbabilities);
    assert_eq!(attention.dims(), [2, 4, 4, 7]); // 2x2 pixels at the coarsest resolution, 7 tokens
    for sum in attention.sum(3).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap() {
        assert!((sum - 1.0).abs() < 1e-5);
    }
    assert_eq!(of("down_blocks.0", Quantity::Activation).dims(), [2, 4, 4, 4]);
    assert_eq!(of("mid_block", Quantity::Activation).dims(), [2, 8, 2, 2]);
    assert_eq!(of("up_blocks.2", Quantity::Activation).dims(), [2, 4, 8, 8]);
}

#[test]
fn a_gradient_reaches_every_parameter() {
    for name in CASES {
        let (config, fixture) = open(name);
        let x = inputs(&fixture);
        let params = Params::load(fixture.source("weights"), DType::F32, &Device::Cpu).trainable();
        let model = UNet2DConditionModel::new(&params, &config).unwrap();
        let y = model.forward(&x.sample, &x.timesteps, &x.prompt, &x.added, &mut NoProbe).unwrap();
        let gradients = y.sqr().unwrap().sum_all().unwrap().backward().unwrap();
        let variables = params.variables();
        assert_eq!(variables.len(), fixture.below("weights").len());
        for (key, variable) in variables {
            let gradient = gradients.get(&variable).unwrap_or_else(|| panic!("{name}: no gradient for {key}"));
            let norm = gradient.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
            assert!(norm.is_finite() && norm > 0.0, "{name}: gradient of {key} has squared norm {norm}");
        }
    }
}

#[test]
fn each_sample_of_a_batch_has_its_own_time() {
    let (config, fixture) = open("inpaint_lcm");
    let x = inputs(&fixture);
    let model = load(&config, &fixture);
    let row = |t: &Tensor, i| t.narrow(0, i, 1).unwrap();
    let whole = model.forward(&x.sample, &x.timesteps, &x.prompt, &x.added, &mut NoProbe).unwrap();
    for i in 0..2 {
        let added = AddedConditions {
            timestep_cond: x.added.timestep_cond.as_ref().map(|t| row(t, i)),
            class_labels: x.added.class_labels.as_ref().map(|t| row(t, i)),
            encoder_attention_mask: x.added.encoder_attention_mask.as_ref().map(|t| row(t, i)),
            ..AddedConditions::default()
        };
        let one =
            model.forward(&row(&x.sample, i), &row(&x.timesteps, i), &row(&x.prompt, i), &added, &mut NoProbe).unwrap();
        assert!(fixture::relative_error(&one, &row(&whole, i)) < 1e-5);
    }
}

#[test]
fn conditions_that_do_not_fit_are_refused() {
    let (config, fixture) = open("sdxl");
    let x = inputs(&fixture);
    let model = load(&config, &fixture);
    let error = |sample: &Tensor, timesteps: &Tensor, added: &AddedConditions| {
        model.forward(sample, timesteps, &x.prompt, added, &mut NoProbe).unwrap_err().to_string()
    };
    assert!(error(&x.sample, &x.timesteps, &AddedConditions::default()).contains("needs the pooled prompt"));
    let classes = AddedConditions { class_labels: Some(x.timesteps.clone()), ..x.added.clone() };
    assert!(error(&x.sample, &x.timesteps, &classes).contains("takes no class labels"));
    let guidance = AddedConditions { timestep_cond: Some(x.sample.clone()), ..x.added.clone() };
    assert!(error(&x.sample, &x.timesteps, &guidance).contains("takes none"));
    let three = Tensor::zeros(3, DType::F32, &Device::Cpu).unwrap();
    assert!(error(&x.sample, &three, &x.added).contains("do not fit a batch of 2"));
    let narrow = x.sample.narrow(1, 0, 3).unwrap();
    assert!(error(&narrow, &x.timesteps, &x.added).contains("takes 4 channels, and was given 3"));
    let wide = AddedConditions {
        text_embeds: Some(Tensor::zeros((2, 11), DType::F32, &Device::Cpu).unwrap()),
        ..x.added.clone()
    };
    assert!(error(&x.sample, &x.timesteps, &wide).contains("46 features together, and was given 47"));
}
