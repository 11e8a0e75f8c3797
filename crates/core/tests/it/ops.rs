//! Each kernel against its plain twin in f64: results and gradients; the twin's gradients against finite differences;
//! bits with different numbers of threads; all of it again at each level of instructions.

use conjure_core::ops::{self, AttentionSpec, RopeLayout, plain};
use conjure_core::{DType, Device, Result, Tensor, Var};
use proptest::prelude::*;
use std::process::Command;

/// Numbers between -`scale` and `scale` that depend on the seed alone (splitmix64).
pub(super) fn numbers(shape: &[usize], scale: f64, seed: u64) -> Tensor {
    let count = shape.iter().product::<usize>() as u64;
    let data: Vec<f32> = (0..count)
        .map(|i| {
            let mut z = (seed << 32 | i).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            let unit = ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64;
            ((2.0 * unit - 1.0) * scale) as f32
        })
        .collect();
    Tensor::from_vec(data, shape, &Device::Cpu).unwrap()
}

/// An operation with its plain twin, and inputs that get gradients.
pub(super) struct Case<'a> {
    pub name: String,
    pub fast: &'a dyn Fn(&[Tensor]) -> Result<Tensor>,
    pub twin: &'a dyn Fn(&[Tensor]) -> Result<Tensor>,
    pub inputs: Vec<Tensor>,
}

/// The result, and the gradients of the sum of the result times fixed weights, for each input; computed twice from the
/// same result, because an operation keeps state between its passes.
fn run(operation: &dyn Fn(&[Tensor]) -> Result<Tensor>, inputs: &[Tensor], dtype: DType) -> Vec<Tensor> {
    let variables: Vec<Var> = inputs.iter().map(|x| Var::from_tensor(&x.to_dtype(dtype).unwrap()).unwrap()).collect();
    let tensors: Vec<Tensor> = variables.iter().map(|x| x.as_tensor().clone()).collect();
    let y = operation(&tensors).unwrap();
    let weights = numbers(y.dims(), 1.0, 99).to_dtype(dtype).unwrap();
    let loss = (&y * weights).unwrap().sum_all().unwrap();
    let mut results = vec![y];
    let gradients = loss.backward().unwrap();
    results.extend(variables.iter().map(|x| gradients.get(x).expect("every input has a gradient").clone()));
    let again = loss.backward().unwrap();
    for (x, first) in variables.iter().zip(&results[1..]) {
        assert_eq!(bits(again.get(x).unwrap()), bits(first), "a second backward pass differs");
    }
    results
}

pub(super) fn values(x: &Tensor) -> Vec<f64> {
    x.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn bits(x: &Tensor) -> Vec<u64> {
    values(x).into_iter().map(f64::to_bits).collect()
}

impl Case<'_> {
    /// Result and gradients of the kernel agree with those of the plain twin in f64: each element to `tolerance` times
    /// the largest element of its tensor, or 1 where that is less.
    pub(super) fn check(&self, tolerance: f64) {
        let fast = run(self.fast, &self.inputs, DType::F32);
        let twin = run(self.twin, &self.inputs, DType::F64);
        for (i, (fast, twin)) in fast.iter().zip(&twin).enumerate() {
            assert_eq!(fast.dims(), twin.dims(), "{}, tensor {i}", self.name);
            let (fast, twin) = (values(fast), values(twin));
            let scale = twin.iter().fold(1.0f64, |m, x| m.max(x.abs()));
            for (at, (a, b)) in fast.iter().zip(&twin).enumerate() {
                let close = (a - b).abs() <= tolerance * scale;
                assert!(close, "{}, tensor {i} element {at}: {a} but the twin has {b}, scale {scale}", self.name);
            }
        }
    }

    /// The kernel's gradients are not all zero.
    pub(super) fn check_gradients_flow(&self) {
        for (i, gradient) in run(self.fast, &self.inputs, DType::F32)[1..].iter().enumerate() {
            let gradient = values(gradient);
            assert!(gradient.iter().all(|x| x.is_finite()), "{}: gradient {i} is not finite", self.name);
            assert!(gradient.iter().any(|x| *x != 0.0), "{}: gradient {i} is zero", self.name);
        }
    }

    /// The twin's gradients in f64 agree with central differences to 1e-6, at up to 7 places of each input.
    pub(super) fn check_differences(&self) {
        let gradients = run(self.twin, &self.inputs, DType::F64);
        let weights = values(&numbers(gradients[0].dims(), 1.0, 99));
        let loss = |inputs: &[Tensor]| -> f64 {
            values(&(self.twin)(inputs).unwrap()).iter().zip(&weights).map(|(y, w)| y * w).sum()
        };
        let inputs: Vec<Tensor> = self.inputs.iter().map(|x| x.to_dtype(DType::F64).unwrap()).collect();
        for (i, gradient) in gradients[1..].iter().enumerate() {
            let gradient = values(gradient);
            for at in (0..gradient.len()).step_by(gradient.len().div_ceil(7)) {
                let moved = |by: f64| {
                    let mut data = values(&inputs[i]);
                    data[at] += by;
                    let mut inputs = inputs.clone();
                    inputs[i] = Tensor::from_vec(data, inputs[i].dims(), &Device::Cpu).unwrap();
                    loss(&inputs)
                };
                let h = 1e-5;
                let difference = (moved(h) - moved(-h)) / (2.0 * h);
                let close = (difference - gradient[at]).abs() <= 1e-6 * (1.0 + difference.abs());
                assert!(
                    close,
                    "{}: input {i} element {at}: {} but differences give {difference}",
                    self.name, gradient[at]
                );
            }
        }
    }

    /// Results and gradients have the same bits with 1, 2 and 3 threads.
    pub(super) fn check_threads(&self) {
        let results: Vec<Vec<Vec<u64>>> = [1, 2, 3]
            .into_iter()
            .map(|count| {
                conjure_kernels::threads::set_count(count).unwrap();
                run(self.fast, &self.inputs, DType::F32).iter().map(bits).collect()
            })
            .collect();
        assert!(results[0] == results[1] && results[0] == results[2], "{}: bits depend on the threads", self.name);
    }
}

/// The shapes of an attention and what is special about it.
#[derive(Clone, Copy, Debug)]
struct Shapes {
    batch: usize,
    kv_heads: usize,
    group: usize,
    t: usize,
    s: usize,
    head_dim: usize,
    value_dim: usize,
    causal: bool,
    window: Option<usize>,
    soft_cap: Option<f64>,
    /// Which dimensions of the mask are broadcast, or no mask.
    mask: Option<[bool; 4]>,
    /// Whether queries, keys and values are transposed views of `(batch, time, heads, dim)`.
    transposed: bool,
}

impl Shapes {
    fn with_case(self, check: impl Fn(Case<'_>)) {
        let Self { batch, kv_heads, group, t, s, head_dim, value_dim, causal, window, soft_cap, transposed, .. } = self;
        let heads = kv_heads * group;
        let mask = self.mask.map(|broadcast| {
            let full = [batch, heads, t, s];
            let shape: Vec<usize> = (0..4).map(|i| if broadcast[i] { 1 } else { full[i] }).collect();
            // About a third of the keys are hidden, and the first row sees none.
            let raw = values(&numbers(&shape, 1.0, 4));
            let row = shape[3];
            let data: Vec<f64> = raw
                .iter()
                .enumerate()
                .map(|(i, x)| if *x < -0.4 || i < row && !broadcast[2] { f64::NEG_INFINITY } else { *x })
                .collect();
            Tensor::from_vec(data, shape, &Device::Cpu).unwrap()
        });
        let view = |x: &Tensor| if transposed { x.transpose(1, 2).unwrap() } else { x.clone() };
        let call = |inputs: &[Tensor], f: fn(&Tensor, &Tensor, &Tensor, AttentionSpec<'_>) -> Result<Tensor>| {
            let mask = mask.as_ref().map(|mask| mask.to_dtype(inputs[0].dtype()).unwrap());
            let spec = AttentionSpec { causal, window, soft_cap, mask: mask.as_ref(), ..AttentionSpec::new(head_dim) };
            f(&view(&inputs[0]), &view(&inputs[1]), &view(&inputs[2]), spec)
        };
        let shape = |heads, time, dim| if transposed { [batch, time, heads, dim] } else { [batch, heads, time, dim] };
        check(Case {
            name: format!("{self:?}"),
            fast: &|inputs| call(inputs, ops::attention),
            twin: &|inputs| {
                call(inputs, |q, k, v, spec| {
                    // The twin makes rows contiguous itself, but for the values when no head is repeated.
                    plain::attention(q, k, &v.contiguous()?, spec)
                })
            },
            inputs: vec![
                numbers(&shape(heads, t, head_dim), 2.0, 1),
                numbers(&shape(kv_heads, s, head_dim), 2.0, 2),
                numbers(&shape(kv_heads, s, value_dim), 2.0, 3),
            ],
        });
    }
}

const SELF_ATTENTION: Shapes = Shapes {
    batch: 2,
    kv_heads: 2,
    group: 1,
    t: 67,
    s: 67,
    head_dim: 40,
    value_dim: 40,
    causal: false,
    window: None,
    soft_cap: None,
    mask: None,
    transposed: true,
};

fn attention_cases() -> Vec<Shapes> {
    let own = SELF_ATTENTION;
    vec![
        own,
        Shapes { causal: true, ..own },
        Shapes { t: 50, s: 77, ..own },
        Shapes { t: 90, s: 77, causal: true, ..own },
        Shapes { t: 9, s: 1, ..own },
        Shapes { t: 1, s: 130, causal: true, ..own },
        Shapes { group: 3, t: 31, s: 70, causal: true, ..own },
        Shapes { batch: 1, kv_heads: 1, t: 70, s: 65, head_dim: 290, value_dim: 7, transposed: false, ..own },
        Shapes { mask: Some([false; 4]), ..own },
        Shapes { mask: Some([false, true, true, false]), group: 2, ..own },
        Shapes { mask: Some([true, true, false, false]), causal: true, ..own },
        Shapes { mask: Some([true, false, false, true]), transposed: false, ..own },
        Shapes { causal: true, window: Some(20), ..own },
        Shapes { t: 130, s: 150, causal: true, window: Some(5), group: 2, ..own },
        Shapes { causal: true, window: Some(20), mask: Some([false; 4]), ..own },
        Shapes { window: Some(9), ..own },
        Shapes { causal: true, soft_cap: Some(3.0), window: Some(33), ..own },
        Shapes { soft_cap: Some(0.5), mask: Some([false; 4]), ..own },
        // Few queries: several pieces of keys.
        Shapes { t: 2, s: 700, group: 2, causal: true, soft_cap: Some(3.0), ..own },
        Shapes { t: 3, s: 600, causal: true, window: Some(300), mask: Some([false, true, true, false]), ..own },
        Shapes { t: 1, s: 300, group: 4, window: Some(20), head_dim: 67, value_dim: 131, transposed: false, ..own },
    ]
}

#[test]
fn attention_agrees_with_its_twin() {
    for shapes in attention_cases() {
        shapes.with_case(|case| case.check(1e-5));
    }
}

#[test]
fn rows_that_see_no_key_are_zero_and_have_no_gradient() {
    let mask = Tensor::new(&[[[[f32::NEG_INFINITY; 5], [0.0; 5]]]], &Device::Cpu).unwrap();
    let q = Var::from_tensor(&numbers(&[1, 1, 2, 3], 1.0, 1)).unwrap();
    let (k, v) = (numbers(&[1, 1, 5, 3], 1.0, 2), numbers(&[1, 1, 5, 4], 1.0, 3));
    let y = ops::attention(&q, &k, &v, AttentionSpec { mask: Some(&mask), ..AttentionSpec::new(3) }).unwrap();
    let gradient = y.sum_all().unwrap().backward().unwrap().get(&q).unwrap().clone();
    let (y, gradient) = (values(&y), values(&gradient));
    assert_eq!(y[..4], [0.0; 4]);
    assert!(y[4..].iter().all(|x| *x != 0.0));
    assert_eq!(gradient[..3], [0.0; 3]);
    assert!(gradient[3..].iter().all(|x| *x != 0.0));
}

#[test]
fn a_mask_of_the_least_finite_number_leaves_a_uniform_row() {
    // As transformers builds masks: a row that is masked throughout with it weighs all keys alike.
    let mask = Tensor::full(f32::MIN, (1, 1, 3, 5), &Device::Cpu).unwrap();
    let spec = AttentionSpec { mask: Some(&mask), ..AttentionSpec::new(4) };
    let (q, k, v) = (numbers(&[1, 1, 3, 4], 1.0, 1), numbers(&[1, 1, 5, 4], 1.0, 2), numbers(&[1, 1, 5, 2], 1.0, 3));
    let fast = values(&ops::attention(&q, &k, &v, spec).unwrap());
    let mean = values(&v.mean(2).unwrap());
    for (i, x) in fast.iter().enumerate() {
        assert!((x - mean[i % 2]).abs() < 1e-6, "{x} but the mean value is {}", mean[i % 2]);
    }
}

#[test]
fn keys_and_values_of_fewer_bits_are_read_as_what_they_are() {
    let (k, v) = (numbers(&[2, 2, 300, 40], 2.0, 2), numbers(&[2, 2, 300, 19], 2.0, 3));
    let half = |x: &Tensor| x.to_dtype(DType::F16).unwrap();
    let eight = |x: &Tensor| ops::to_eight_bits(&x.to_dtype(DType::F32).unwrap()).unwrap();
    let wide = |x: &Tensor| match x.dtype() {
        DType::U8 => ops::from_eight_bits(x).unwrap(),
        _ => x.to_dtype(DType::F32).unwrap(),
    };
    let spec = AttentionSpec { causal: true, window: Some(190), soft_cap: Some(2.0), ..AttentionSpec::new(40) };
    // Few queries, and too many for the kernel that reads fewer bits; also of different kinds.
    let kept = [(half(&k), half(&v)), (eight(&k), eight(&v)), (eight(&k), half(&v))];
    for (t, (k, v)) in [1, 2, 40].into_iter().flat_map(|t| kept.iter().map(move |kept| (t, kept))) {
        let (k, v) = (&k.narrow(2, 20, 270).unwrap(), &v.narrow(2, 20, 270).unwrap());
        let q = numbers(&[2, 4, t, 40], 2.0, 1).to_dtype(DType::F32).unwrap();
        let got = values(&ops::attention(&q, k, v, spec).unwrap());
        let want = values(&plain::attention(&q, &wide(k), &wide(v), spec).unwrap());
        for (a, b) in got.iter().zip(&want) {
            assert!((a - b).abs() < 1e-5, "{t} {:?}: {a} but {b}", k.dtype());
        }
    }
}

#[test]
fn nan_is_not_hidden_by_attention() {
    let mut data = vec![0.5f32; 8];
    data[3] = f32::NAN;
    let k = Tensor::from_vec(data, (1, 1, 4, 2), &Device::Cpu).unwrap();
    let (q, v) = (numbers(&[1, 1, 3, 2], 1.0, 1), numbers(&[1, 1, 4, 2], 1.0, 2));
    let y = values(&ops::attention(&q, &k, &v, AttentionSpec::new(2)).unwrap());
    assert!(y.iter().all(|x| x.is_nan()), "{y:?}");
}

#[test]
fn attention_refuses_shapes_that_do_not_fit() {
    let x = |shape: [usize; 4]| numbers(&shape, 1.0, 1);
    let spec = AttentionSpec::new(4);
    let message = |q, k, v, spec| ops::attention(&x(q), &x(k), &x(v), spec).unwrap_err().to_string();
    assert!(message([1, 3, 5, 4], [1, 2, 5, 4], [1, 2, 5, 4], spec).contains("3 heads do not divide into 2 key heads"));
    assert!(message([1, 2, 5, 4], [1, 2, 5, 3], [1, 2, 5, 4], spec).contains("do not fit"));
    let mask = x([1, 1, 5, 6]);
    let masked = AttentionSpec { mask: Some(&mask), ..spec };
    assert!(message([1, 2, 5, 4], [1, 2, 5, 4], [1, 2, 5, 4], masked).contains("does not broadcast"));
}

/// All operations but attention, at sizes that fill no vector.
fn with_other_cases(check: impl Fn(Case<'_>)) {
    type Unary = fn(&Tensor) -> Result<Tensor>;
    let unary: [(&str, Unary, Unary, &[usize]); 7] = [
        ("silu", ops::silu, plain::silu, &[3, 37]),
        ("gelu", ops::gelu, plain::gelu, &[3, 37]),
        ("gelu_tanh", ops::gelu_tanh, plain::gelu_tanh, &[3, 37]),
        ("quick_gelu", ops::quick_gelu, plain::quick_gelu, &[3, 37]),
        ("leaky_relu", ops::leaky_relu, plain::leaky_relu, &[3, 37]),
        ("geglu", ops::geglu, plain::geglu, &[5, 3, 46]),
        ("softmax", ops::softmax, plain::softmax, &[2, 5, 37]),
    ];
    for (name, fast, twin, shape) in unary {
        check(Case {
            name: name.to_owned(),
            fast: &|x| fast(&x[0]),
            twin: &|x| twin(&x[0]),
            inputs: vec![numbers(shape, 6.0, 1)],
        });
    }
    for (rows, n) in [(7, 37), (300, 65)] {
        let inputs = vec![numbers(&[rows, n], 3.0, 1), numbers(&[n], 2.0, 2), numbers(&[n], 2.0, 3)];
        check(Case {
            name: format!("layer_norm {rows} {n}"),
            fast: &|x| ops::layer_norm(&x[0], &x[1], &x[2], 1e-5),
            twin: &|x| plain::layer_norm(&x[0], &x[1], &x[2], 1e-5),
            inputs: inputs.clone(),
        });
        check(Case {
            name: format!("rms_norm {rows} {n}"),
            fast: &|x| ops::rms_norm(&x[0], &x[1], 1e-6),
            twin: &|x| plain::rms_norm(&x[0], &x[1], 1e-6),
            inputs: inputs[..2].to_vec(),
        });
    }
    for (channels, groups, h, w) in [(6, 3, 5, 7), (12, 4, 40, 40), (5, 5, 1, 9)] {
        let shape = [2, channels, h, w];
        let inputs = vec![numbers(&shape, 3.0, 1), numbers(&[channels], 2.0, 2), numbers(&[channels], 2.0, 3)];
        check(Case {
            name: format!("group_norm {shape:?}"),
            fast: &|x| ops::group_norm(&x[0], &x[1], &x[2], groups, 1e-5),
            twin: &|x| plain::group_norm(&x[0], &x[1], &x[2], groups, 1e-5),
            inputs: inputs.clone(),
        });
        check(Case {
            name: format!("group_norm_silu {shape:?}"),
            fast: &|x| ops::group_norm_silu(&x[0], &x[1], &x[2], groups, 1e-5),
            twin: &|x| plain::group_norm_silu(&x[0], &x[1], &x[2], groups, 1e-5),
            inputs,
        });
    }
    let angles = numbers(&[9, 7], 3.0, 2);
    let (cos, sin) = (angles.cos().unwrap(), angles.sin().unwrap());
    for layout in [RopeLayout::Halves, RopeLayout::Interleaved] {
        check(Case {
            name: format!("rope {layout:?}"),
            fast: &|x| ops::rope(&x[0], &cos, &sin, layout),
            twin: &|x| {
                let dtype = x[0].dtype();
                plain::rope(&x[0], &cos.to_dtype(dtype)?, &sin.to_dtype(dtype)?, layout)
            },
            inputs: vec![numbers(&[2, 3, 9, 14], 2.0, 1)],
        });
    }
    let ids = Tensor::new(&[[3u32, 0, 3], [10, 3, 1]], &Device::Cpu).unwrap();
    check(Case {
        name: "embedding".to_owned(),
        fast: &|x| ops::embedding(&ids, &x[0]),
        twin: &|x| plain::embedding(&ids, &x[0]),
        inputs: vec![numbers(&[11, 13], 2.0, 1)],
    });
    check(Case {
        name: "add".to_owned(),
        fast: &|x| ops::add(&x[0], &x[1]),
        twin: &|x| plain::add(&x[0], &x[1]),
        inputs: vec![numbers(&[3, 50, 131], 2.0, 1), numbers(&[3, 50, 131], 2.0, 2)],
    });
    check(Case {
        name: "add_channels".to_owned(),
        fast: &|x| ops::add_channels(&x[0], &x[1]),
        twin: &|x| plain::add_channels(&x[0], &x[1]),
        inputs: vec![numbers(&[2, 5, 70, 61], 2.0, 1), numbers(&[2, 5], 2.0, 2)],
    });
    // The state of a net without activations, at four steps.
    let steps = |forward: &dyn Fn(&Tensor) -> Result<Tensor>, x: &Tensor| {
        let mut said = vec![x.clone()];
        for step in 0..4 {
            said.push((forward(&said[step])? * 0.3)?);
        }
        Ok(Tensor::cat(&said, 0)?)
    };
    check(Case {
        name: "repeated_linear".to_owned(),
        fast: &|x| {
            let weight = ops::RepeatedLinear::new(&x[1])?;
            steps(&|h| weight.forward(h), &x[0])
        },
        twin: &|x| steps(&|h| plain::linear(h, &x[1], None), &x[0]),
        inputs: vec![numbers(&[5, 17], 2.0, 1), numbers(&[17, 17], 1.0, 2)],
    });
    for (rows, hidden) in [(3usize, 5), (250, 37)] {
        let present: Vec<u32> = (0..rows).map(|row| u32::from(row % 3 != 1)).collect();
        let present = Tensor::from_vec(present, (rows, 1), &Device::Cpu).unwrap();
        for present in [None, Some(&present)] {
            check(Case {
                name: format!("lstm_step {rows} {hidden}, some absent: {}", present.is_some()),
                fast: &|x| ops::lstm_step(&x[0], &x[1], present),
                twin: &|x| plain::lstm_step(&x[0], &x[1], present),
                inputs: vec![numbers(&[rows, 4 * hidden], 5.0, 1), numbers(&[rows, 2, hidden], 2.0, 2)],
            });
        }
    }
}

#[test]
fn the_other_operations_agree_with_their_twins() {
    with_other_cases(|case| case.check(1e-5));
}

#[test]
fn every_input_gets_a_gradient() {
    SELF_ATTENTION.with_case(|case| case.check_gradients_flow());
    with_other_cases(|case| case.check_gradients_flow());
}

#[test]
fn the_twins_gradients_agree_with_finite_differences() {
    for shapes in attention_cases().into_iter().filter(|shapes| shapes.head_dim == 40) {
        Shapes { batch: 1, t: shapes.t.min(6), s: shapes.s.min(7), ..shapes }
            .with_case(|case| case.check_differences());
    }
    with_other_cases(|case| case.check_differences());
}

#[test]
fn bits_do_not_depend_on_the_threads() {
    for shapes in attention_cases() {
        shapes.with_case(|case| case.check_threads());
    }
    with_other_cases(|case| case.check_threads());
}

#[test]
fn every_level_of_instructions_agrees_with_the_twins() {
    // The level is found out once per process, so that each one needs a process of its own.
    for level in ["avx2", "portable"] {
        let tests = ["ops::attention_agrees_with_its_twin", "ops::the_other_operations_agree_with_their_twins"];
        let output = Command::new(std::env::current_exe().unwrap())
            .env("CONJURE_ISA", level)
            .args(tests)
            .arg("--exact")
            .output()
            .unwrap();
        let stdout = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && stdout.contains("2 passed"), "{level}: {stdout}");
    }
}

#[test]
fn gelu_is_exact_to_a_millionth() {
    let x: Vec<f32> = (-80_000..80_000).map(|i| i as f32 * 1e-4).collect();
    let x = Tensor::from_vec(x, 160_000, &Device::Cpu).unwrap();
    let exact = values(&plain::gelu(&x.to_dtype(DType::F64).unwrap()).unwrap());
    for (a, b) in values(&ops::gelu(&x).unwrap()).iter().zip(&exact) {
        assert!((a - b).abs() <= 1e-6, "{a} but exactly {b}");
    }
}

#[test]
fn norms_are_stable_far_from_zero() {
    // 10,000 plus noise: a variance computed as a difference of squares would lose all its digits.
    let x = (numbers(&[1, 4, 64, 64], 1.0, 1) + 1e4).unwrap();
    let (weight, bias) = (numbers(&[4], 1.0, 2), numbers(&[4], 1.0, 3));
    let wide = |x: &Tensor| x.to_dtype(DType::F64).unwrap();
    let exact = values(&plain::group_norm(&wide(&x), &wide(&weight), &wide(&bias), 2, 1e-5).unwrap());
    let fast = values(&ops::group_norm(&x, &weight, &bias, 2, 1e-5).unwrap());
    // The mean is rounded to f32 once, which shifts all elements by up to 5e-4 here.
    assert!(fast.iter().zip(&exact).all(|(a, b)| (a - b).abs() < 2e-3));
}

#[test]
fn extreme_inputs_of_activations_stay_finite() {
    let x = Tensor::new(&[-1e30f32, -1e4, -90.0, 90.0, 1e4, 1e30], &Device::Cpu).unwrap();
    for f in [ops::silu, ops::gelu, ops::quick_gelu] {
        let y = values(&f(&x).unwrap());
        assert!(y[..3].iter().all(|y| y.abs() < 1e-30), "{y:?}");
        assert_eq!(y[3..], values(&x)[3..]);
    }
    let nan = Tensor::new(&[f32::NAN], &Device::Cpu).unwrap();
    for f in [ops::silu, ops::gelu, ops::gelu_tanh, ops::quick_gelu, ops::leaky_relu, ops::softmax] {
        assert!(values(&f(&nan).unwrap())[0].is_nan());
    }
}

#[test]
fn operations_refuse_parameters_that_do_not_fit() {
    let x = numbers(&[2, 6, 4], 1.0, 1);
    let (four, five, six) = (numbers(&[4], 1.0, 2), numbers(&[5], 1.0, 2), numbers(&[6], 1.0, 2));
    let refused = |result: Result<Tensor>, text: &str| {
        let message = result.unwrap_err().to_string();
        assert!(message.contains(text), "{message}");
    };
    refused(ops::layer_norm(&x, &five, &four, 1e-5), "weight has shape [5] but x has 4 features");
    refused(ops::group_norm(&x, &six, &six, 4, 1e-5), "6 channels do not divide into 4 groups");
    refused(ops::group_norm(&x, &six, &five, 2, 1e-5), "bias has shape [5] but x has 6 channels");
    refused(ops::geglu(&numbers(&[2, 5], 1.0, 1)), "5 features cannot be halved");
    let ids = Tensor::new(&[7u32], &Device::Cpu).unwrap();
    refused(ops::embedding(&ids, &numbers(&[7, 2], 1.0, 1)), "id 7 is beyond the table of 7 rows");
    refused(ops::add_channels(&x, &numbers(&[2, 5], 1.0, 1)), "does not fit");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn attention_agrees_with_its_twin_at_any_size(
        (batch, kv_heads, group) in (1usize..3, 1usize..3, 1usize..4),
        (t, s) in (1usize..120, 1usize..150),
        (head_dim, value_dim) in (1usize..90, 1usize..90),
        (causal, transposed) in (any::<bool>(), any::<bool>()),
        (window, soft_cap) in (proptest::option::of(1usize..100), proptest::option::of(0.5f64..5.0)),
        mask in proptest::option::of(any::<[bool; 4]>()),
    ) {
        let shapes =
            Shapes { batch, kv_heads, group, t, s, head_dim, value_dim, causal, window, soft_cap, mask, transposed };
        shapes.with_case(|case| case.check(2e-5));
    }

    #[test]
    fn norms_agree_with_their_twins_at_any_size(
        (batch, groups, per_group, plane) in (1usize..4, 1usize..5, 1usize..5, 1usize..200),
        silu in any::<bool>(),
    ) {
        let channels = groups * per_group;
        prop_assume!(per_group * plane > 1);
        let (fast, twin) = if silu {
            (ops::group_norm_silu as fn(&_, &_, &_, _, _) -> _, plain::group_norm_silu as fn(&_, &_, &_, _, _) -> _)
        } else {
            (ops::group_norm as fn(&_, &_, &_, _, _) -> _, plain::group_norm as fn(&_, &_, &_, _, _) -> _)
        };
        Case {
            name: format!("group norm {batch} {groups} {per_group} {plane} {silu}"),
            fast: &|x| fast(&x[0], &x[1], &x[2], groups, 1e-2),
            twin: &|x| twin(&x[0], &x[1], &x[2], groups, 1e-2),
            inputs: vec![
                numbers(&[batch, channels, plane], 3.0, 1),
                numbers(&[channels], 2.0, 2),
                numbers(&[channels], 2.0, 3),
            ],
        }
        .check(2e-5);
    }
}
