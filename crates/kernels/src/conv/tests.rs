use super::*;
use crate::gemm::tests::{levels, values};
use crate::precision::Precision;
use proptest::prelude::*;

/// Every (input index, weight index, output index) that the convolution's definition multiplies together.
fn each_product(g: &Geometry, mut each: impl FnMut(usize, usize, usize)) {
    for b in 0..g.batch {
        for o in 0..g.out_channels {
            for c in 0..g.group_in() {
                let channel = o / g.group_out() * g.group_in() + c;
                for y in 0..g.output[0] {
                    for x in 0..g.output[1] {
                        for i in 0..g.kernel[0] {
                            for j in 0..g.kernel[1] {
                                let row = (y * g.stride[0] + i * g.dilation[0]).wrapping_sub(g.padding[0]);
                                let column = (x * g.stride[1] + j * g.dilation[1]).wrapping_sub(g.padding[1]);
                                if row < g.input[0] && column < g.input[1] {
                                    each(
                                        ((b * g.in_channels + channel) * g.input[0] + row) * g.input[1] + column,
                                        ((o * g.group_in() + c) * g.kernel[0] + i) * g.kernel[1] + j,
                                        ((b * g.out_channels + o) * g.output[0] + y) * g.output[1] + x,
                                    );
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Sums of up to a few hundred products below 1 each.
fn close(got: &[f32], want: &[f64]) -> Result<(), TestCaseError> {
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        prop_assert!((f64::from(*got) - want).abs() <= 1e-4, "{i}: {got} {want}");
    }
    Ok(())
}

fn check(g: &Geometry, seed: u64) -> Result<(), TestCaseError> {
    let (x, w, gy) = (values(g.input_len(), seed), values(g.weight_len(), seed + 1), values(g.output_len(), seed + 2));
    let (out_bias, in_bias) = (values(g.out_channels, seed + 3), values(g.in_channels, seed + 4));
    let per_channel = |n: usize, area: usize, bias: &[f32]| -> Vec<f64> {
        (0..n).map(|i| f64::from(bias[i / area.max(1) % bias.len()])).collect()
    };
    let mut want_y = per_channel(g.output_len(), g.output_area(), &out_bias);
    let mut want_gx = per_channel(g.input_len(), g.input_area(), &in_bias);
    let mut want_gw = vec![0f64; g.weight_len()];
    each_product(g, |xi, wi, yi| {
        want_y[yi] += f64::from(x[xi]) * f64::from(w[wi]);
        want_gx[xi] += f64::from(gy[yi]) * f64::from(w[wi]);
        want_gw[wi] += f64::from(gy[yi]) * f64::from(x[xi]);
    });
    for level in levels() {
        let (mut y, mut gx, mut gw) = (vec![9.0; gy.len()], vec![9.0; x.len()], vec![9.0; w.len()]);
        forward_on(level, g, &x, &w, Some(&out_bias), &mut y);
        close(&y, &want_y)?;
        input_gradient_on(level, g, &gy, &w, Some(&in_bias), &mut gx);
        close(&gx, &want_gx)?;
        weight_gradient_on(level, g, &x, &gy, &mut gw);
        close(&gw, &want_gw)?;
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn agrees_with_the_definition(
        batch in 1usize..4, groups in 1usize..4, group_in in 1usize..4, group_out in 1usize..15,
        input in [1usize..12, 1usize..40], kernel in [1usize..4, 1usize..4], stride in [1usize..4, 1usize..4],
        dilation in [1usize..3, 1usize..3], padding in [0usize..5, 0usize..5], after in [0usize..4, 0usize..4],
        seed in 0u64..1000,
    ) {
        let mut output = [0; 2];
        for axis in 0..2 {
            let span = dilation[axis] * (kernel[axis] - 1) + 1;
            let padded = input[axis] + padding[axis] + after[axis];
            prop_assume!(padded >= span);
            output[axis] = (padded - span) / stride[axis] + 1;
        }
        let g = Geometry {
            batch, in_channels: groups * group_in, input, out_channels: groups * group_out, output, kernel, stride,
            padding, dilation, groups,
        };
        check(&g, seed)?;
        // Depthwise.
        check(&Geometry { in_channels: 3, out_channels: 3, groups: 3, ..g }, seed)?;
        // Channels that fill panels.
        if seed % 8 == 0 {
            check(&Geometry { in_channels: 32, out_channels: group_out, groups: 1, ..g }, seed)?;
            check(&Geometry { in_channels: 64, out_channels: 2 * group_out, groups: 2, ..g }, seed)?;
        }
        // Pointwise.
        if input.iter().all(|n| *n > 0) {
            check(&Geometry { kernel: [1; 2], stride: [1; 2], padding: [0; 2], output: input, ..g }, seed)?;
        }
    }
}

#[test]
fn bias_gradient_sums_pictures_and_pixels() {
    let gy: Vec<f32> = (0..2 * 3 * 19).map(|i| i as f32).collect();
    let mut gb = [0f32; 3];
    bias_gradient(2, 19, &gy, &mut gb);
    for (channel, got) in gb.iter().enumerate() {
        let want: f32 = (0..2).flat_map(|b| (0..19).map(move |p| ((b * 3 + channel) * 19 + p) as f32)).sum();
        assert_eq!(*got, want);
    }
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let g = Geometry {
        batch: 5,
        in_channels: 32,
        input: [9, 7],
        out_channels: 40,
        output: [9, 7],
        kernel: [3; 2],
        stride: [1; 2],
        padding: [1; 2],
        dilation: [1; 2],
        groups: 1,
    };
    let (x, w, gy) = (values(g.input_len(), 1), values(g.weight_len(), 2), values(g.output_len(), 3));
    let run = |threads: usize, precision: Precision| {
        threads::set_count(threads).unwrap();
        let (mut y, mut gx, mut gw) = (vec![0.0; gy.len()], vec![0.0; x.len()], vec![0.0; w.len()]);
        precision::with(precision, || {
            forward(&g, &x, &w, None, &mut y);
            input_gradient(&g, &gy, &w, None, &mut gx);
            weight_gradient(&g, &x, &gy, &mut gw);
        });
        (y, gx, gw)
    };
    let (one, three) = (run(1, Precision::F32), run(3, Precision::F32));
    assert!(one == three);
    let (low, low_three) = (run(1, Precision::Bf16), run(3, Precision::Bf16));
    threads::set_count(0).unwrap();
    assert!(low == low_three && low != one);
    // Factors below 1 are rounded by at most 2^-9 each; 360 products of random signs.
    for (low, one) in [(&low.0, &one.0), (&low.1, &one.1), (&low.2, &one.2)] {
        for (low, one) in low.iter().zip(one) {
            assert!((low - one).abs() < 0.1, "{low} beside {one}");
        }
    }
}
