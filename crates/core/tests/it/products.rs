//! Matrix products, convolutions and upsampling against their plain twins in f64, forwards and backwards. That each
//! level of instructions computes the same is tested beside the kernels.

use crate::ops::{Case, numbers, values};
use conjure_core::ops::{self, Conv2dSpec, plain};
use conjure_core::{DType, Device, Tensor, Var};
use proptest::prelude::*;

/// Sums of up to some thousand products: an element may err by this much of the largest one.
const TOLERANCE: f64 = 1e-5;

fn check_matmul(a: Tensor, b: Tensor) {
    let name = format!("matmul {:?} {:?}", a.layout(), b.layout());
    Case {
        name,
        fast: &|x| ops::matmul(&x[0], &x[1]),
        twin: &|x| plain::matmul(&x[0], &x[1]),
        inputs: vec![a.clone(), b.clone()],
    }
    .check(TOLERANCE);
    // The harness makes variables, which are contiguous: strides need a look of their own.
    let wide = |x: &Tensor| x.to_dtype(DType::F64).unwrap();
    let (fast, twin) = (ops::matmul(&a, &b).unwrap(), plain::matmul(&wide(&a), &wide(&b)).unwrap());
    assert_eq!(fast.dims(), twin.dims());
    for (fast, twin) in values(&fast).iter().zip(values(&twin)) {
        assert!((fast - twin).abs() <= TOLERANCE * (1.0 + twin.abs()), "{fast} but the twin has {twin}");
    }
}

#[test]
fn strided_operands_are_read_in_place() {
    let a = numbers(&[3, 2, 70, 9], 1.0, 1);
    let b = numbers(&[3, 2, 9, 70], 1.0, 2);
    for (a, b) in [
        (a.clone(), a.t().unwrap()),
        (b.t().unwrap(), b.clone()),
        (b.t().unwrap(), a.t().unwrap()),
        (a.transpose(0, 1).unwrap(), b.transpose(0, 1).unwrap()),
        (a.narrow(2, 3, 40).unwrap(), b.narrow(3, 5, 33).unwrap()),
        (a.narrow(3, 2, 5).unwrap(), b.narrow(2, 1, 5).unwrap()),
        (a.narrow(0, 1, 1).unwrap().broadcast_as((3, 2, 70, 9)).unwrap(), b.clone()),
    ] {
        check_matmul(a, b);
    }
    // Heads between time and head_dim, as attention sees them.
    let heads = numbers(&[2, 30, 4, 8], 1.0, 3).transpose(1, 2).unwrap();
    check_matmul(heads.clone(), heads.t().unwrap());
    let x = numbers(&[30, 2, 16], 1.0, 4).transpose(0, 1).unwrap();
    let weight = numbers(&[16, 5], 1.0, 5).t().unwrap();
    let fast = ops::linear(&x, &weight, None).unwrap();
    let twin = plain::linear(&x.contiguous().unwrap(), &weight, None).unwrap();
    for (fast, twin) in values(&fast).iter().zip(values(&twin)) {
        assert!((fast - twin).abs() <= TOLERANCE, "{fast} but the twin has {twin}");
    }
}

#[test]
fn linear_agrees_with_its_twin() {
    for (shape, out) in [(vec![7], 3), (vec![1, 300], 5), (vec![5, 64], 33), (vec![2, 3, 65], 70), (vec![2, 0, 4], 3)] {
        let features = *shape.last().unwrap();
        let empty = shape.contains(&0);
        let inputs = [numbers(&shape, 1.0, 1), numbers(&[out, features], 1.0, 2), numbers(&[out], 1.0, 3)];
        for bias in [true, false] {
            let case = Case {
                name: format!("linear {shape:?} {out}"),
                fast: &|x| ops::linear(&x[0], &x[1], x.get(2)),
                twin: &|x| plain::linear(&x[0], &x[1], x.get(2)),
                inputs: inputs[..if bias { 3 } else { 2 }].to_vec(),
            };
            if empty {
                assert_eq!((case.fast)(&case.inputs).unwrap().dims(), [2, 0, out]);
                continue;
            }
            case.check(TOLERANCE);
            case.check_gradients_flow();
            case.check_differences();
        }
    }
}

fn with_convolution(x: [usize; 4], weight: [usize; 4], spec: Conv2dSpec, transposed: bool, look: impl Fn(&Case)) {
    let out_channels = if transposed { weight[1] * spec.groups } else { weight[0] };
    for bias in [true, false] {
        let mut inputs = vec![numbers(&x, 1.0, 1), numbers(&weight, 1.0, 2)];
        if bias {
            inputs.push(numbers(&[out_channels], 1.0, 3));
        }
        let name = format!("x {x:?} weight {weight:?} {spec:?} transposed {transposed} bias {bias}");
        if transposed {
            look(&Case {
                name,
                fast: &|x| ops::conv_transpose2d(&x[0], &x[1], x.get(2), spec),
                twin: &|x| plain::conv_transpose2d(&x[0], &x[1], x.get(2), spec),
                inputs,
            });
        } else {
            look(&Case {
                name,
                fast: &|x| ops::conv2d(&x[0], &x[1], x.get(2), spec),
                twin: &|x| plain::conv2d(&x[0], &x[1], x.get(2), spec),
                inputs,
            });
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn convolutions_agree_with_their_twins(
        batch in 1usize..3, groups in 1usize..4, channels in [1usize..4, 1usize..6],
        size in [4usize..9, 4usize..20], kernel in [1usize..4, 1usize..4], stride in [1usize..4, 1usize..4],
        padding in [0usize..3, 0usize..3, 0usize..3, 0usize..3], dilation in [1usize..3, 1usize..3],
        transposed in proptest::bool::ANY,
    ) {
        let spec = Conv2dSpec { stride, padding, dilation, groups };
        let reach = |axis: usize| dilation[axis] * (kernel[axis] - 1) + 1;
        if transposed {
            prop_assume!((0..2).all(|i| (size[i] - 1) * stride[i] + reach(i) > padding[2 * i] + padding[2 * i + 1]));
            let (x, weight) = ([batch, groups * channels[0], size[0], size[1]], [groups * channels[0], channels[1], kernel[0], kernel[1]]);
            with_convolution(x, weight, spec, true, |case| case.check(TOLERANCE));
        } else {
            prop_assume!((0..2).all(|i| size[i] + padding[2 * i] + padding[2 * i + 1] >= reach(i)));
            let (x, weight) = ([batch, groups * channels[0], size[0], size[1]], [groups * channels[1], channels[0], kernel[0], kernel[1]]);
            with_convolution(x, weight, spec, false, |case| case.check(TOLERANCE));
        }
    }

    #[test]
    fn products_agree_with_their_twin(batch in 1usize..4, m in 1usize..40, n in 1usize..70, k in 1usize..90) {
        check_matmul(numbers(&[batch, m, k], 1.0, 1), numbers(&[batch, k, n], 1.0, 2));
    }

    #[test]
    fn upsampling_agrees_with_its_twin(h in 1usize..7, w in 1usize..7, height in 1usize..15, width in 1usize..15) {
        Case {
            name: format!("upsample {h}x{w} to {height}x{width}"),
            fast: &|x| ops::upsample_nearest2d(&x[0], height, width),
            twin: &|x| plain::upsample_nearest2d(&x[0], height, width),
            inputs: vec![numbers(&[2, 3, h, w], 1.0, 1)],
        }
        .check(TOLERANCE);
    }
}

#[test]
fn gradients_flow_and_agree_with_differences() {
    let strided = Conv2dSpec { stride: [2, 1], padding: [0, 1, 2, 0], dilation: [1, 2], groups: 1 };
    let grouped = Conv2dSpec { groups: 2, ..Conv2dSpec::new(1, 1) };
    let depthwise = Conv2dSpec { groups: 4, ..Conv2dSpec::new(2, 1) };
    for (x, weight, spec, transposed) in [
        ([2, 3, 5, 6], [4, 3, 3, 3], Conv2dSpec::new(1, 1), false),
        ([1, 3, 7, 6], [4, 3, 3, 2], strided, false),
        ([2, 4, 5, 5], [6, 2, 3, 3], grouped, false),
        ([2, 4, 5, 5], [4, 1, 3, 3], depthwise, false),
        ([2, 4, 5, 5], [6, 4, 1, 1], Conv2dSpec::new(1, 0), false),
        ([2, 3, 5, 6], [3, 4, 3, 3], Conv2dSpec::new(1, 1), true),
        ([1, 3, 4, 4], [3, 2, 4, 4], Conv2dSpec::new(2, 1), true),
    ] {
        with_convolution(x, weight, spec, transposed, |case| {
            case.check_gradients_flow();
            case.check_differences();
        });
    }
    Case {
        name: "upsample".into(),
        fast: &|x| ops::upsample_nearest2d(&x[0], 7, 8),
        twin: &|x| plain::upsample_nearest2d(&x[0], 7, 8),
        inputs: vec![numbers(&[1, 2, 3, 4], 1.0, 1)],
    }
    .check_differences();
}

/// Shapes large enough to be cut into several tasks.
#[test]
fn bits_do_not_depend_on_the_threads() {
    for (x, weight, spec, transposed) in [
        ([1, 32, 24, 24], [40, 32, 3, 3], Conv2dSpec::new(1, 1), false),
        ([3, 16, 24, 24], [24, 16, 3, 3], Conv2dSpec::new(2, 1), false),
        ([2, 64, 20, 20], [40, 64, 1, 1], Conv2dSpec::new(1, 0), false),
        ([3, 8, 24, 24], [8, 1, 3, 3], Conv2dSpec { groups: 8, ..Conv2dSpec::new(1, 1) }, false),
        ([1, 24, 16, 16], [24, 32, 4, 4], Conv2dSpec::new(2, 1), true),
    ] {
        with_convolution(x, weight, spec, transposed, |case| case.check_threads());
    }
    Case {
        name: "linear".into(),
        fast: &|x| ops::linear(&x[0], &x[1], Some(&x[2])),
        twin: &|x| plain::linear(&x[0], &x[1], Some(&x[2])),
        inputs: vec![numbers(&[2, 60, 300], 1.0, 1), numbers(&[200, 300], 1.0, 2), numbers(&[200], 1.0, 3)],
    }
    .check_threads();
}

/// What does not fit is refused with a message, never a panic.
#[test]
fn what_does_not_fit_is_refused() {
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
    let (x, weight) = (zeros(&[1, 4, 5, 5]), zeros(&[6, 4, 3, 3]));
    let spec = Conv2dSpec::new(1, 0);
    let refused = [
        ops::matmul(&zeros(&[2, 3]), &zeros(&[2, 3])),
        ops::matmul(&zeros(&[2, 2, 3]), &zeros(&[3, 3, 2])),
        ops::matmul(&zeros(&[3]), &zeros(&[3])),
        ops::linear(&zeros(&[2, 3]), &zeros(&[4, 2]), None),
        ops::linear(&zeros(&[2, 3]), &zeros(&[4, 3]), Some(&zeros(&[3]))),
        ops::conv2d(&x, &weight, None, Conv2dSpec { groups: 0, ..spec }),
        ops::conv2d(&x, &weight, None, Conv2dSpec { groups: 2, ..spec }),
        ops::conv2d(&x, &weight, None, Conv2dSpec { stride: [0, 1], ..spec }),
        ops::conv2d(&x, &weight, None, Conv2dSpec { dilation: [3, 1], ..spec }),
        ops::conv2d(&x, &weight, Some(&zeros(&[5])), spec),
        ops::conv2d(&x, &zeros(&[6, 4, 0, 3]), None, spec),
        ops::conv_transpose2d(&x, &weight, None, spec),
        ops::conv_transpose2d(&x, &zeros(&[4, 2, 1, 1]), None, Conv2dSpec::new(1, 3)),
        ops::upsample_nearest2d(&zeros(&[1, 1, 0, 2]), 4, 4),
    ];
    for (i, result) in refused.into_iter().enumerate() {
        assert!(result.is_err(), "case {i}");
    }
    let double = x.to_dtype(DType::F64).unwrap();
    assert!(ops::conv2d(&double, &weight, None, spec).is_err(), "mixed types");
}

/// An input that needs no gradient gets none, and one that does is not forgotten when the others are constants.
#[test]
fn gradients_go_where_they_are_wanted() {
    let (x, weight) = (numbers(&[1, 2, 5, 5], 1.0, 1), numbers(&[3, 2, 3, 3], 1.0, 2));
    for position in 0..2 {
        let inputs = [x.clone(), weight.clone()];
        let variable = Var::from_tensor(&inputs[position]).unwrap();
        let mut inputs = inputs.to_vec();
        inputs[position] = variable.as_tensor().clone();
        let y = ops::conv2d(&inputs[0], &inputs[1], None, Conv2dSpec::new(1, 1)).unwrap();
        let gradients = y.sum_all().unwrap().backward().unwrap();
        assert_eq!(gradients.get(&variable).unwrap().dims(), variable.dims());
        assert!(gradients.get(&inputs[1 - position]).is_none());
    }
}
