//! Solvers on problems with known solutions: the error, and the rate at which it falls with the number of steps.

use super::*;
use crate::Device;
use crate::sampling::{Denoise, PredictionType};

const MU: f64 = 0.3;
const S2: f64 = 0.25;
const TOP: f64 = 10.0;
const END: f64 = 0.1;

/// The best denoiser of data from N(MU, S2). Along the probability-flow ODE `(x - MU) / sqrt(S2 + sigma^2)` is constant.
struct Gaussian;

impl Denoise for Gaussian {
    fn denoise(&mut self, x: &Tensor, sigma: f64) -> Result<Tensor> {
        let v = sigma * sigma;
        Ok(x.affine(S2 / (S2 + v), v * MU / (S2 + v))?)
    }
}

fn gaussian_solution(start: f64) -> f64 {
    MU + (start - MU) * ((S2 + END * END) / (S2 + TOP * TOP)).sqrt()
}

/// x0 = sigma whatever x is: without its noise the reverse SDE is `dx/dsigma = 2 (x - sigma) / sigma`, whose solutions are
/// `2 sigma + c sigma^2`. (For Gaussian data x0 does not change along the SDE's mean, and every solver is exact.)
struct Given;

impl Denoise for Given {
    fn denoise(&mut self, x: &Tensor, sigma: f64) -> Result<Tensor> {
        Ok(x.affine(0.0, sigma)?)
    }
}

fn given_solution(start: f64) -> f64 {
    2.0 * END + (start - 2.0 * TOP) / (TOP * TOP) * END * END
}

type Solver = fn(&mut dyn Denoise, Tensor, &mut Hooks<'_>) -> Result<Tensor>;

/// The largest error at the end of the steps; all noise is 0.
fn error(solver: Solver, model: &mut dyn Denoise, solution: fn(f64) -> f64, steps: &[Step]) -> f64 {
    let start = [-7.0, 2.0, 12.0];
    let mut hooks = Hooks {
        steps,
        noise: &mut |shape| Ok(Tensor::zeros(shape, DType::F64, &Device::Cpu)?),
        each: &mut |_| Ok(None),
    };
    let x = Tensor::from_slice(&start, (1, 3), &Device::Cpu).unwrap();
    let end = solver(model, x, &mut hooks).unwrap().to_vec2::<f64>().unwrap();
    start.iter().zip(&end[0]).map(|(s, e)| (e - solution(*s)).abs()).fold(0.0, f64::max)
}

fn steps(levels: &[f64]) -> Vec<Step> {
    levels.windows(2).map(|s| Step { timestep: 0.0, sigma: s[0], from: s[0], next: s[1] }).collect()
}

/// `n` steps, even in log sigma.
fn even_in_log(n: usize) -> Vec<Step> {
    steps(&(0..=n).map(|i| TOP * (END / TOP).powf(i as f64 / n as f64)).collect::<Vec<_>>())
}

fn multistep(order: usize, solver_type: SolverType) -> MultistepOptions {
    let without_corrector = Vec::new();
    MultistepOptions {
        order,
        solver_type,
        lower_order_final: false,
        first_order_last: false,
        asked: 0,
        without_corrector,
    }
}

fn assert_rate(name: &str, coarse: f64, fine: f64, order: f64, largest: f64) {
    let rate = (coarse / fine).log2();
    assert!(fine < largest, "{name}: error {fine:e}, expected less than {largest:e}");
    assert!((rate - order).abs() < 0.1, "{name}: order {rate}, expected {order}");
}

/// A multistep solver begins with steps of lower order, which bounds the order of the whole
/// (to 2 for dpmpp-3m) unless, as for LMS, the error of the beginning is small beside that of the end.
#[test]
fn solvers_of_the_ode_reach_the_solution_at_their_order() {
    let solvers: [(&str, Solver, f64, f64); 10] = [
        ("euler", euler, 1.0, 3e-3),
        ("ddim", |m, x, h| ddim(m, x, 0.0, None, h), 1.0, 3e-3),
        ("heun", |m, x, h| heun(m, x, None, h), 2.0, 3e-5),
        ("dpm2", dpm2, 2.0, 2e-5),
        ("dpmpp-2m", |m, x, h| dpmpp_multistep(m, x, false, &multistep(2, SolverType::Midpoint), h), 2.0, 1e-5),
        ("dpmpp-2m heun", |m, x, h| dpmpp_multistep(m, x, false, &multistep(2, SolverType::Heun), h), 2.0, 2e-5),
        ("dpmpp-3m", |m, x, h| dpmpp_multistep(m, x, false, &multistep(3, SolverType::Heun), h), 2.0, 4e-6),
        ("unipc", |m, x, h| unipc(m, x, &multistep(2, SolverType::Bh2), h), 3.0, 4e-7),
        ("unipc bh1", |m, x, h| unipc(m, x, &multistep(2, SolverType::Bh1), h), 3.0, 6e-7),
        ("lms", lms, 3.0, 4e-7),
    ];
    for (name, solver, order, largest) in solvers {
        let at = |n| error(solver, &mut Gaussian, gaussian_solution, &even_in_log(n));
        assert_rate(name, at(128), at(256), order, largest);
    }
}

#[test]
fn solvers_of_the_sde_reach_the_solution_at_their_order() {
    let solvers: [(&str, Solver, f64, f64); 5] = [
        ("euler-a", euler_ancestral, 1.0, 2e-3),
        ("ddpm", |m, x, h| ddpm(m, x, None, false, h), 1.0, 2e-3),
        ("dpmpp-sde", dpmpp_sde, 2.0, 1e-5),
        ("dpmpp-2m-sde", |m, x, h| dpmpp_multistep(m, x, true, &multistep(2, SolverType::Midpoint), h), 2.0, 2e-5),
        ("dpmpp-3m-sde", |m, x, h| dpmpp_multistep(m, x, true, &multistep(3, SolverType::Heun), h), 2.0, 5e-6),
    ];
    for (name, solver, order, largest) in solvers {
        let at = |n| error(solver, &mut Given, given_solution, &even_in_log(n));
        assert_rate(name, at(128), at(256), order, largest);
    }
}

/// PLMS has the weights of even steps.
#[test]
fn plms_reaches_the_solution_on_even_steps() {
    let even = |n: usize| {
        let levels: Vec<f64> = (0..=n).map(|i| TOP + (END - TOP) * i as f64 / n as f64).collect();
        let mut all = steps(&levels);
        all.insert(1, Step { timestep: 0.0, sigma: levels[1], from: levels[0], next: levels[1] });
        all
    };
    let plms: Solver = |m, x, h| pndm(m, x, PredictionType::Epsilon, h);
    let at = |n| error(plms, &mut Gaussian, gaussian_solution, &even(n));
    assert_rate("pndm", at(1024), at(2048), 4.0, 1e-8);
}
