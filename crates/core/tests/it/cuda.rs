//! What the first NVIDIA GPU computes against the CPU's kernels, forwards and backwards; in builds with the feature `cuda`.

#![allow(clippy::print_stderr, reason = "the measured distances, seen with --nocapture")]

use crate::ops::{numbers, values};
use conjure_core::ops::{self, AttentionSpec, Conv2dSpec};
use conjure_core::optim::{AdamW, AdamWConfig, WeightAverage, sum_of_squares};
use conjure_core::{Device, DeviceName, Result, Tensor, Var, dropout, recompute, rng};
use std::collections::BTreeMap;

/// Of the largest element of a result or gradient: sums of up to some thousand products in f32, in another order.
const TOLERANCE: f64 = 2e-5;

type Operation = Box<dyn Fn(&[Tensor]) -> Result<Tensor>>;

fn gpu() -> Device {
    DeviceName::Cuda(0).open().unwrap()
}

/// The result, and the gradients of the sum of the result times fixed weights.
fn run(operation: &Operation, inputs: &[Tensor], device: &Device) -> Vec<Tensor> {
    let variables: Vec<Var> = inputs.iter().map(|x| Var::from_tensor(&x.to_device(device).unwrap()).unwrap()).collect();
    let tensors: Vec<Tensor> = variables.iter().map(|x| x.as_tensor().clone()).collect();
    let y = operation(&tensors).unwrap();
    let weights = numbers(y.dims(), 1.0, 99).to_device(device).unwrap();
    let gradients = recompute::backward(&(&y * weights).unwrap().sum_all().unwrap()).unwrap();
    let gradients = variables.iter().map(|x| gradients.get(x).expect("every input has a gradient").clone());
    std::iter::once(y.clone()).chain(gradients).collect()
}

fn check(name: &str, operation: Operation, inputs: &[Tensor]) {
    let (cpu, gpu) = (run(&operation, inputs, &Device::Cpu), run(&operation, inputs, &gpu()));
    for (i, (cpu, gpu)) in cpu.iter().zip(&gpu).enumerate() {
        assert_eq!(cpu.dims(), gpu.dims(), "{name}, tensor {i}");
        let (cpu, gpu) = (values(cpu), values(&gpu.to_device(&Device::Cpu).unwrap()));
        let scale = cpu.iter().fold(1.0f64, |m, x| m.max(x.abs()));
        let worst = cpu.iter().zip(&gpu).map(|(a, b)| (a - b).abs() / scale).fold(0.0, f64::max);
        eprintln!("    {name} {i}: {worst:.1e}");
        assert!(worst <= TOLERANCE, "{name}, tensor {i}: {worst}");
    }
}

#[test]
fn convolutions_and_products() {
    let strided = Conv2dSpec { stride: [2, 1], padding: [0, 1, 2, 0], dilation: [1, 2], groups: 1 };
    for (x, weight, spec) in [
        ([2, 16, 8, 8], [24, 16, 3, 3], Conv2dSpec::new(1, 1)),
        ([2, 16, 8, 8], [24, 16, 3, 3], Conv2dSpec::new(2, 1)),
        ([1, 3, 7, 6], [4, 3, 3, 2], strided),
        ([2, 16, 5, 5], [6, 16, 1, 1], Conv2dSpec::new(1, 0)),
        ([2, 4, 5, 5], [6, 2, 3, 3], Conv2dSpec { groups: 2, ..Conv2dSpec::new(1, 1) }),
    ] {
        let inputs = [numbers(&x, 1.0, 1), numbers(&weight, 0.1, 2), numbers(&[weight[0]], 1.0, 3)];
        let conv = move |x: &[Tensor]| ops::conv2d(&x[0], &x[1], Some(&x[2]), spec);
        check(&format!("conv2d {spec:?}"), Box::new(conv), &inputs);
    }
    let inputs = [numbers(&[2, 3, 9, 9], 1.0, 1), numbers(&[5, 3, 3, 3], 0.1, 2)];
    check("conv2d without bias", Box::new(|x| ops::conv2d(&x[0], &x[1], None, Conv2dSpec::new(1, 1))), &inputs);
    let segment = |x: &[Tensor]| {
        recompute::with(true, || {
            recompute::segment(&[&x[0], &x[1]], |x| ops::silu(&ops::conv2d(&x[0], &x[1], None, Conv2dSpec::new(1, 1))?))
        })
    };
    check("a segment", Box::new(segment), &inputs);
    let transposed = |x: &[Tensor]| ops::conv_transpose2d(&x[0], &x[1], Some(&x[2]), Conv2dSpec::new(2, 1));
    let inputs = [numbers(&[2, 6, 4, 4], 1.0, 1), numbers(&[6, 5, 4, 4], 0.1, 2), numbers(&[5], 1.0, 3)];
    check("conv_transpose2d", Box::new(transposed), &inputs);
    let inputs = [numbers(&[3, 7, 64], 1.0, 1), numbers(&[48, 64], 0.1, 2), numbers(&[48], 1.0, 3)];
    check("linear", Box::new(|x| ops::linear(&x[0], &x[1], Some(&x[2]))), &inputs);
    let inputs = [numbers(&[2, 3, 9, 33], 1.0, 1), numbers(&[2, 3, 33, 17], 0.1, 2)];
    check("matmul", Box::new(|x| ops::matmul(&x[0], &x[1])), &inputs);
}

#[test]
fn norms_and_activations() {
    let x = || numbers(&[2, 16, 6, 5], 2.0, 1);
    let channels = || [x(), numbers(&[16], 1.0, 2), numbers(&[16], 1.0, 3)];
    check("group_norm", Box::new(|x| ops::group_norm(&x[0], &x[1], &x[2], 4, 1e-5)), &channels());
    // More channels in a group than warps in a block, and planes larger than a warp.
    let large = [numbers(&[3, 40, 9, 11], 2.0, 1), numbers(&[40], 1.0, 2), numbers(&[40], 1.0, 3)];
    check("group_norm of large groups", Box::new(|x| ops::group_norm(&x[0], &x[1], &x[2], 2, 1e-5)), &large);
    let many = [numbers(&[700, 3, 40], 2.0, 1), numbers(&[40], 1.0, 2), numbers(&[40], 1.0, 3)];
    check("layer_norm of many rows", Box::new(|x| ops::layer_norm(&x[0], &x[1], &x[2], 1e-5)), &many);
    check("more elements than threads", Box::new(|x| ops::silu(&x[0])), &[numbers(&[1025, 1100], 2.0, 1)]);
    check("group_norm_silu", Box::new(|x| ops::group_norm_silu(&x[0], &x[1], &x[2], 4, 1e-5)), &channels());
    let rows = || [numbers(&[2, 9, 40], 2.0, 1), numbers(&[40], 1.0, 2), numbers(&[40], 1.0, 3)];
    check("layer_norm", Box::new(|x| ops::layer_norm(&x[0], &x[1], &x[2], 1e-5)), &rows());
    check("rms_norm", Box::new(|x| ops::rms_norm(&x[0], &x[1], 1e-5)), &rows()[..2]);
    check("softmax", Box::new(|x| ops::softmax(&x[0])), &rows()[..1]);
    check("log_softmax", Box::new(|x| ops::log_softmax(&x[0])), &rows()[..1]);
    check("silu", Box::new(|x| ops::silu(&x[0])), &[x()]);
    check("gelu", Box::new(|x| ops::gelu(&x[0])), &[x()]);
    check("gelu_tanh", Box::new(|x| ops::gelu_tanh(&x[0])), &[x()]);
    check("quick_gelu", Box::new(|x| ops::quick_gelu(&x[0])), &[x()]);
    check("leaky_relu", Box::new(|x| ops::leaky_relu(&x[0])), &[x()]);
    check("geglu", Box::new(|x| ops::geglu(&x[0])), &[numbers(&[3, 5, 32], 2.0, 1)]);
    check("add", Box::new(|x| ops::add(&x[0], &x[1])), &[x(), numbers(&[2, 16, 6, 5], 2.0, 2)]);
    check("add_channels", Box::new(|x| ops::add_channels(&x[0], &x[1])), &[x(), numbers(&[2, 16], 2.0, 2)]);
    check("upsample", Box::new(|x| ops::upsample_nearest2d(&x[0], 12, 10)), &[x()]);
}

/// The same values are dropped, in draws one after the other.
#[test]
fn dropped_values() {
    let twice = |x: &[Tensor]| {
        dropout::with(0.3, rng::keyed(7, "dropout"), || dropout::apply(&(dropout::apply(&x[0])?.sqr()? + &x[0])?))
    };
    check("dropout", Box::new(twice), &[numbers(&[3, 5, 1001], 1.0, 1)]);
    check("dropout of more than threads", Box::new(twice), &[numbers(&[1025, 4103], 1.0, 1)]);
}

#[test]
fn attention_and_look_ups() {
    let heads = |t: usize, seed: u64| numbers(&[2, 4, t, 16], 1.0, seed);
    for causal in [false, true] {
        let attend =
            move |x: &[Tensor]| ops::attention(&x[0], &x[1], &x[2], AttentionSpec { causal, ..AttentionSpec::new(16) });
        check(&format!("attention, causal {causal}"), Box::new(attend), &[heads(9, 1), heads(9, 2), heads(9, 3)]);
    }
    // Fewer queries than keys, values of another width, more keys than a warp has lanes; as views, and with frozen keys.
    let inputs = [heads(5, 1), heads(70, 2), numbers(&[2, 4, 70, 12], 1.0, 3)];
    let attend = |x: &[Tensor]| {
        let (q, k, v) = (x[0].transpose(1, 2)?.contiguous()?.transpose(1, 2)?, x[1].detach(), &x[2]);
        let spec = AttentionSpec { causal: true, ..AttentionSpec::new(16) };
        ops::attention(&q, &(&k + (&x[1] * 0.5)?)?, v, spec)
    };
    check("attention of 5 to 70", Box::new(attend), &inputs);
    let ids = || numbers(&[3, 32], 8.0, 5).abs().unwrap().to_dtype(conjure_core::DType::U32).unwrap();
    let look_up = move |x: &[Tensor]| ops::embedding(&ids().to_device(x[0].device())?, &x[0]);
    check("embedding", Box::new(look_up), &[numbers(&[50, 24], 1.0, 1)]);
    let targets = move |device: &Device| Tensor::new(&[1u32, 0, 4, 2], device);
    let loss = move |x: &[Tensor]| ops::cross_entropy(&x[0], &targets(x[0].device())?, 0.1);
    check("cross_entropy", Box::new(loss), &[numbers(&[4, 5], 3.0, 1)]);
}

#[test]
fn optimizers_take_the_same_steps() {
    let after = |device: &Device| {
        let shapes = [("bias", vec![7]), ("matrix", vec![5, 7])];
        let start = |(i, (name, shape)): (usize, &(&str, Vec<usize>))| {
            let value = numbers(shape, 1.0, i as u64).to_device(device).unwrap();
            ((*name).to_owned(), Var::from_tensor(&value).unwrap())
        };
        let variables: BTreeMap<String, Var> = shapes.iter().enumerate().map(start).collect();
        let mut adamw = AdamW::new(variables.clone(), AdamWConfig::default()).unwrap();
        let mut average = WeightAverage::new(variables.clone(), 0.9).unwrap();
        let mut norms = Vec::new();
        for step in 0..4u64 {
            let gradient = |(name, variable): (&String, &Var)| {
                (name.clone(), numbers(variable.dims(), 1.0, 10 + step).to_device(device).unwrap())
            };
            let gradients: BTreeMap<String, Tensor> = variables.iter().map(gradient).collect();
            norms.push(sum_of_squares(gradients.values()).unwrap());
            adamw.step(&gradients, 0.01, 0.5).unwrap();
            average.update(adamw.steps()).unwrap();
        }
        let averages = average.state().unwrap();
        let tensors = variables.values().map(Var::as_tensor).chain(averages.values());
        let numbers = tensors.flat_map(|x| values(&x.to_device(&Device::Cpu).unwrap()));
        numbers.chain(norms).collect::<Vec<f64>>()
    };
    for (cpu, gpu) in after(&Device::Cpu).iter().zip(after(&gpu())) {
        assert!((cpu - gpu).abs() <= 2e-6 * cpu.abs().max(1.0), "{cpu} and {gpu}");
    }
}

/// The same device whenever it is asked for: tensors of one part of a program meet those of another.
#[test]
fn a_gpu_is_opened_once() {
    let (a, b) = (numbers(&[4], 1.0, 1).to_device(&gpu()).unwrap(), numbers(&[4], 1.0, 2).to_device(&gpu()).unwrap());
    assert_eq!((a + b).unwrap().dims(), [4]);
}
