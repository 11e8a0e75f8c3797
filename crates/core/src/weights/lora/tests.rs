//! Factors with known products, in every layout.

use super::*;
use crate::weights::MemorySource;

const METADATA: BTreeMap<String, String> = BTreeMap::new();

fn target(component: &'static str, layer: &str, shape: &[usize]) -> LoraTarget {
    let short = if component == "unet" { "unet" } else { "te" };
    LoraTarget {
        component,
        parameter: format!("{layer}.weight"),
        shape: Shape::from(shape),
        spellings: vec![format!("{component}.{layer}"), format!("{short}.{layer}"), layer.to_owned()],
    }
}

fn targets() -> Vec<LoraTarget> {
    vec![
        target("unet", "mid.to_q", &[2, 3]),
        target("unet", "conv", &[2, 1, 3, 3]),
        target("unet", "proj", &[2, 2, 1, 1]),
        target("text_encoder", "layers.0.q_proj", &[2, 2]),
    ]
}

fn tensor(shape: &[usize], values: impl IntoIterator<Item = f32>) -> Tensor {
    Tensor::from_vec(values.into_iter().collect::<Vec<_>>(), shape, &Device::Cpu).unwrap()
}

fn source(tensors: Vec<(&str, Tensor)>) -> Arc<dyn TensorSource> {
    Arc::new(MemorySource::new(tensors.into_iter().map(|(name, tensor)| (name.to_owned(), tensor))))
}

fn lora(tensors: Vec<(&str, Tensor)>) -> Result<Lora> {
    Lora::new(source(tensors), &METADATA, "some.safetensors", &targets())
}

fn values(lora: &Lora, component: &'static str, parameter: &str) -> Vec<f32> {
    let delta = lora.delta(component, parameter, DType::F32, &Device::Cpu).unwrap().unwrap();
    delta.flatten_all().unwrap().to_vec1().unwrap()
}

fn to_q(down: &'static str, up: &'static str) -> Vec<(&'static str, Tensor)> {
    vec![(down, tensor(&[1, 3], [1.0, 2.0, 3.0])), (up, tensor(&[2, 1], [10.0, 100.0]))]
}

#[test]
fn a_linear_layer_in_each_layout() {
    for (down, up) in [
        ("unet.mid.to_q.lora_A.weight", "unet.mid.to_q.lora_B.weight"),
        ("mid.to_q.lora.down.weight", "mid.to_q.lora.up.weight"),
        ("lora_unet_mid_to_q.lora_down.weight", "lora_unet_mid_to_q.lora_up.weight"),
    ] {
        let lora = lora(to_q(down, up)).unwrap();
        assert_eq!(values(&lora, "unet", "mid.to_q.weight"), [10.0, 20.0, 30.0, 100.0, 200.0, 300.0]);
        assert!(lora.delta("unet", "conv.weight", DType::F32, &Device::Cpu).unwrap().is_none());
        assert!(lora.delta("text_encoder", "mid.to_q.weight", DType::F32, &Device::Cpu).unwrap().is_none());
    }
}

#[test]
fn alpha_over_rank_scales_and_weights_add_up() {
    let mut tensors = to_q("lora_unet_mid_to_q.lora_down.weight", "lora_unet_mid_to_q.lora_up.weight");
    tensors.push(("lora_unet_mid_to_q.alpha", Tensor::new(0.5f32, &Device::Cpu).unwrap()));
    let halved = Arc::new(lora(tensors).unwrap());
    assert_eq!(values(&halved, "unet", "mid.to_q.weight"), [5.0, 10.0, 15.0, 50.0, 100.0, 150.0]);
    let plain = Arc::new(lora(to_q("unet.mid.to_q.lora_A.weight", "unet.mid.to_q.lora_B.weight")).unwrap());
    let base = source(vec![("mid.to_q.weight", tensor(&[2, 3], [1.0; 6])), ("other", tensor(&[1], [7.0]))]);
    let merged = Merged::new(base, "unet", vec![(halved, 2.0), (plain, -0.5)]);
    let load = |name: &str, dtype| merged.load(name, dtype, &Device::Cpu).unwrap().to_dtype(DType::F32).unwrap();
    // 1 + (2 * 0.5 - 0.5) * the product.
    let expected = [[6.0, 11.0, 16.0], [51.0, 101.0, 151.0]];
    assert_eq!(load("mid.to_q.weight", DType::F32).to_vec2::<f32>().unwrap(), expected);
    assert_eq!(load("mid.to_q.weight", DType::F16).to_vec2::<f32>().unwrap(), expected);
    assert_eq!(load("other", DType::F32).to_vec1::<f32>().unwrap(), [7.0]);
}

#[test]
fn convolutions_of_size_three_and_one() {
    let nine = (1..=9).map(|v| v as f32);
    let lora = lora(vec![
        ("lora_unet_conv.lora_down.weight", tensor(&[1, 1, 3, 3], nine.clone())),
        ("lora_unet_conv.lora_up.weight", tensor(&[2, 1, 1, 1], [1.0, -2.0])),
        // A convolution of size 1 whose factors were saved as a linear layer's.
        ("unet.proj.lora_A.weight", tensor(&[1, 2], [1.0, 3.0])),
        ("unet.proj.lora_B.weight", tensor(&[2, 1], [2.0, 5.0])),
    ])
    .unwrap();
    let expected: Vec<f32> = nine.clone().chain(nine.map(|v| -2.0 * v)).collect();
    assert_eq!(values(&lora, "unet", "conv.weight"), expected);
    assert_eq!(values(&lora, "unet", "proj.weight"), [2.0, 6.0, 5.0, 15.0]);
}

/// `sum over p, q of up[o, p] mid[p, q, y, x] down[q, i]`, written out.
#[test]
fn a_tucker_form_is_multiplied_out() {
    let (up, mid, down) =
        ([1.0f32, 2.0, -1.0, 0.5], (0..36).map(|v| v as f32 / 7.0).collect::<Vec<_>>(), [3.0f32, -1.0]);
    let lora = lora(vec![
        ("lora_unet_conv.lora_up.weight", tensor(&[2, 2, 1, 1], up)),
        ("lora_unet_conv.lora_mid.weight", tensor(&[2, 2, 3, 3], mid.clone())),
        ("lora_unet_conv.lora_down.weight", tensor(&[2, 1, 1, 1], down)),
    ])
    .unwrap();
    let got = values(&lora, "unet", "conv.weight");
    for o in 0..2 {
        for place in 0..9 {
            let mut expected = 0.0;
            for p in 0..2 {
                for q in 0..2 {
                    expected += up[o * 2 + p] * mid[(p * 2 + q) * 9 + place] * down[q];
                }
            }
            assert!((got[o * 9 + place] - expected).abs() < 1e-5, "{o} {place}");
        }
    }
}

#[test]
fn both_layouts_save_and_load_the_same_change() {
    let folder = tempfile::tempdir().unwrap();
    let mut tensors = to_q("lora_unet_mid_to_q.lora_down.weight", "lora_unet_mid_to_q.lora_up.weight");
    tensors.push(("lora_unet_mid_to_q.alpha", Tensor::new(3f32, &Device::Cpu).unwrap()));
    tensors.push(("lora_unet_conv.lora_up.weight", tensor(&[2, 1, 1, 1], [1.0, 2.0])));
    tensors.push(("lora_unet_conv.lora_mid.weight", tensor(&[1, 1, 3, 3], [2.0; 9])));
    tensors.push(("lora_unet_conv.lora_down.weight", tensor(&[1, 1, 1, 1], [3.0])));
    tensors.push(("text_encoder.layers.0.q_proj.lora_A.weight", tensor(&[1, 2], [1.0, 2.0])));
    tensors.push(("text_encoder.layers.0.q_proj.lora_B.weight", tensor(&[2, 1], [4.0, 8.0])));
    let before = lora(tensors).unwrap();
    for layout in LoraLayout::ALL {
        let path = folder.path().join(layout.name());
        before.save(&path, layout, DType::F32, &METADATA).unwrap();
        let after = Lora::open(&path, &targets()).unwrap();
        assert_eq!(before.parameters().collect::<Vec<_>>(), after.parameters().collect::<Vec<_>>());
        for (component, parameter) in before.parameters() {
            assert_eq!(values(&before, component, parameter), values(&after, component, parameter), "{parameter}");
        }
        let names: Vec<String> = crate::weights::open(&path).unwrap().infos().keys().cloned().collect();
        let marker = match layout {
            LoraLayout::Diffusers => "text_encoder.layers.0.q_proj.lora_B.weight",
            LoraLayout::Kohya => "lora_te_layers_0_q_proj.alpha",
        };
        assert!(names.iter().any(|name| name == marker), "{names:?}");
    }
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let refused = |tensors: Vec<(&str, Tensor)>| {
        let error = lora(tensors).err().unwrap();
        assert_eq!(error.exit_code(), 2);
        format!("{error}; {}", error.help().unwrap())
    };
    let one = || tensor(&[1, 1], [1.0]);
    let unmatched = refused(vec![
        ("lora_unet_down_attn2_to_k.lora_down.weight", tensor(&[1, 768], vec![0.0; 768])),
        ("lora_unet_down_attn2_to_k.lora_up.weight", one()),
    ]);
    assert_eq!(
        unmatched,
        "some.safetensors: changes layers that the model lacks: lora_unet_down_attn2_to_k.lora_down.weight, \
         lora_unet_down_attn2_to_k.lora_up.weight; it seems to be made for Stable Diffusion 1"
    );
    let shapes = refused(vec![("unet.mid.to_q.lora_A.weight", one()), ("unet.mid.to_q.lora_B.weight", one())]);
    assert!(shapes.contains("lora_A.weight [1, 1] and"), "{shapes}");
    assert!(shapes.contains("do not make the model's mid.to_q.weight [2, 3]"), "{shapes}");
    let half = refused(vec![("unet.mid.to_q.lora_A.weight", tensor(&[1, 3], [0.0; 3]))]);
    assert!(half.contains("unet.mid.to_q.lora_A.weight without its other factor"), "{half}");
    assert!(refused(vec![("lora_unet_conv.hada_w1_a", one())]).contains("a LoHa adapter, which is not read"));
    assert!(refused(vec![("conv_in.weight", one())]).contains("is not a LoRA: it holds conv_in.weight"));
    let twice = refused(vec![("unet.mid.to_q.lora_A.a.weight", one()), ("unet.mid.to_q.lora_A.b.weight", one())]);
    assert!(twice.contains("are the same factor"), "{twice}");
    let mut tensors = to_q("lora_unet_mid_to_q.lora_down.weight", "lora_unet_mid_to_q.lora_up.weight");
    tensors.push(("lora_unet_mid_to_q.alpha", Tensor::new(f32::NAN, &Device::Cpu).unwrap()));
    assert!(refused(tensors).contains("alpha is not one finite number"));
}
