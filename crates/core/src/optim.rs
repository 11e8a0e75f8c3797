//! How parameters follow their gradients: AdamW, and the running average of weights.

#[cfg(feature = "cuda")]
use crate::cuda;
use crate::ops::slices::{contiguous, on_cpu_in_f32, with_slice};
use crate::{DType, Error, Result, Tensor, Var};
use candle_core::{CpuStorage, InplaceOp1, InplaceOp2, Layout};
use conjure_kernels::optimizer as kernel;
use std::collections::BTreeMap;
use std::sync::Mutex;

/// Settings of [`AdamW`] ("Decoupled Weight Decay Regularization", Loshchilov & Hutter 2017,
/// <https://arxiv.org/abs/1711.05101>, algorithm 2).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWConfig {
    /// Decay of the average of gradients.
    pub beta1: f64,
    /// Decay of the average of squared gradients.
    pub beta2: f64,
    /// Added to the root of that average.
    pub eps: f64,
    /// Share of a parameter that is taken away in each step, times the learning rate. Parameters of fewer than two axes
    /// (biases, gains of norms) are exempt.
    pub weight_decay: f64,
}

impl Default for AdamWConfig {
    /// PyTorch's defaults.
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 }
    }
}

/// Averages of the gradients and of their squares.
enum Moments {
    /// Beside parameters in main memory and f32.
    Host(Vec<f32>, Vec<f32>),
    /// Beside parameters elsewhere.
    Device(Tensor, Tensor),
}

struct Slot {
    variable: Var,
    moments: Moments,
}

/// The optimizer, with its state for each parameter.
pub struct AdamW {
    config: AdamWConfig,
    slots: BTreeMap<String, Slot>,
    steps: u64,
}

impl AdamW {
    /// An optimizer of these parameters; its averages begin at zero.
    ///
    /// # Errors
    /// The device refuses memory.
    pub fn new(variables: BTreeMap<String, Var>, config: AdamWConfig) -> Result<Self> {
        let slot = |variable: Var| -> Result<Slot> {
            let moments = if fits_kernel(&variable) {
                let zeros = || vec![0.0; variable.elem_count()];
                Moments::Host(zeros(), zeros())
            } else {
                Moments::Device(variable.zeros_like()?, variable.zeros_like()?)
            };
            Ok(Slot { variable, moments })
        };
        let slots = variables.into_iter().map(|(name, variable)| Ok((name, slot(variable)?))).collect::<Result<_>>()?;
        Ok(Self { config, slots, steps: 0 })
    }

    /// Updates made so far.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// One update with the learning rate `learning_rate`. `gradients` are multiplied by `scale` first (clipping, averages
    /// over micro-batches); parameters without a gradient stay, and so does their state.
    ///
    /// # Errors
    /// A gradient whose shape is not its parameter's.
    pub fn step(&mut self, gradients: &BTreeMap<String, Tensor>, learning_rate: f64, scale: f64) -> Result<()> {
        self.steps += 1;
        for (name, slot) in &mut self.slots {
            let Some(gradient) = gradients.get(name) else { continue };
            if gradient.shape() != slot.variable.shape() {
                return Err(Error::failure(format!("the gradient of {name} has another shape than {name}")));
            }
            let decay = if slot.variable.rank() < 2 { 0.0 } else { self.config.weight_decay };
            let hyper = kernel::AdamW {
                lr: learning_rate,
                beta1: self.config.beta1,
                beta2: self.config.beta2,
                eps: self.config.eps,
                weight_decay: decay,
                step: self.steps,
                grad_scale: scale,
            };
            match &mut slot.moments {
                Moments::Host(m, v) => {
                    let update = Update { hyper, moments: Mutex::new((m, v)) };
                    slot.variable.inplace_op2(&gradient.contiguous()?, &update)?;
                }
                #[cfg(feature = "cuda")]
                Moments::Device(m, v) if cuda::takes(&[&slot.variable, gradient, m, v]) => {
                    cuda::adamw(&slot.variable, gradient, m, v, hyper.factors())?;
                }
                Moments::Device(m, v) => {
                    let (parameter, new_m, new_v) = plain(slot.variable.as_tensor(), gradient, m, v, &hyper)?;
                    slot.variable.set(&parameter)?;
                    (*m, *v) = (new_m, new_v);
                }
            }
        }
        Ok(())
    }

    /// The state as tensors: `m.NAME` and `v.NAME` for each parameter.
    ///
    /// # Errors
    /// The device refuses memory.
    pub fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        let mut state = BTreeMap::new();
        for (name, slot) in &self.slots {
            let (m, v) = match &slot.moments {
                Moments::Host(m, v) => {
                    let tensor =
                        |values: &[f32]| Tensor::from_slice(values, slot.variable.shape(), slot.variable.device());
                    (tensor(m)?, tensor(v)?)
                }
                Moments::Device(m, v) => (m.copy()?, v.copy()?),
            };
            state.insert(format!("m.{name}"), m);
            state.insert(format!("v.{name}"), v);
        }
        Ok(state)
    }

    /// Takes up a state that [`AdamW::state`] gave after `steps` updates.
    ///
    /// # Errors
    /// A tensor is missing or has another shape.
    pub fn restore(&mut self, steps: u64, state: &mut dyn FnMut(&str) -> Result<Tensor>) -> Result<()> {
        for (name, slot) in &mut self.slots {
            let mut moment = |kind: &str| -> Result<Tensor> {
                let tensor = state(&format!("{kind}.{name}"))?;
                if tensor.shape() != slot.variable.shape() {
                    return Err(Error::request(format!(
                        "the optimizer's state of {name} has another shape than {name}"
                    )));
                }
                Ok(tensor)
            };
            let (new_m, new_v) = (moment("m")?, moment("v")?);
            match &mut slot.moments {
                Moments::Host(m, v) => {
                    *m = new_m.flatten_all()?.to_vec1()?;
                    *v = new_v.flatten_all()?.to_vec1()?;
                }
                Moments::Device(m, v) => {
                    let device = slot.variable.device();
                    // Copies: steps change them in place.
                    *m = new_m.to_device(device)?.force_contiguous()?;
                    *v = new_v.to_device(device)?.force_contiguous()?;
                }
            }
        }
        self.steps = steps;
        Ok(())
    }
}

/// The plain twin of the kernel: parameter and moments after one step.
fn plain(
    p: &Tensor,
    gradient: &Tensor,
    m: &Tensor,
    v: &Tensor,
    hyper: &kernel::AdamW,
) -> Result<(Tensor, Tensor, Tensor)> {
    let kernel::AdamW { lr, beta1, beta2, eps, weight_decay, step, grad_scale } = hyper;
    let gradient = (gradient.detach() * *grad_scale)?;
    let m = ((m * *beta1)? + (&gradient * (1.0 - beta1))?)?;
    let v = ((v * *beta2)? + (gradient.sqr()? * (1.0 - beta2))?)?;
    let m_hat = (&m / (1.0 - beta1.powf(*step as f64)))?;
    let v_hat = (&v / (1.0 - beta2.powf(*step as f64)))?;
    let decayed = (p.detach() * (1.0 - lr * weight_decay))?;
    Ok(((decayed - (m_hat / (v_hat.sqrt()? + *eps)?)? * *lr)?, m, v))
}

fn fits_kernel(x: &Tensor) -> bool {
    on_cpu_in_f32(&[x]) && x.is_contiguous()
}

struct Update<'a> {
    hyper: kernel::AdamW,
    moments: Mutex<(&'a mut Vec<f32>, &'a mut Vec<f32>)>,
}

impl InplaceOp2 for Update<'_> {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn cpu_fwd(
        &self,
        p: &mut CpuStorage,
        layout: &Layout,
        g: &CpuStorage,
        g_layout: &Layout,
    ) -> candle_core::Result<()> {
        let gradient = contiguous(g, g_layout)?;
        let parameter = contiguous_mut(p, layout)?;
        let mut moments = self.moments.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let (m, v) = &mut *moments;
        kernel::adamw(parameter, gradient, m, v, self.hyper);
        Ok(())
    }
}

fn contiguous_mut<'a>(storage: &'a mut CpuStorage, layout: &Layout) -> candle_core::Result<&'a mut [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(data), Some((start, end))) => Ok(&mut data[start..end]),
        _ => Err(candle_core::Error::Msg("a kernel was given a tensor that is not f32 and contiguous".into()).bt()),
    }
}

struct Follow<'a> {
    decay: f32,
    average: Mutex<&'a mut Vec<f32>>,
}

impl InplaceOp1 for Follow<'_> {
    fn name(&self) -> &'static str {
        "ema"
    }

    fn cpu_fwd(&self, value: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        let value = contiguous_mut(value, layout)?;
        kernel::ema(&mut self.average.lock().unwrap_or_else(std::sync::PoisonError::into_inner), value, self.decay);
        Ok(())
    }
}

enum Averaged {
    Host(Vec<f32>),
    Device(Tensor),
}

/// The exponential moving average of weights, which usually samples better than the weights themselves. The decay warms up:
/// after `t` updates it is `min(decay, (1 + t) / (10 + t))`, so that the random start is forgotten quickly.
pub struct WeightAverage {
    decay: f64,
    slots: BTreeMap<String, (Var, Averaged)>,
}

impl WeightAverage {
    /// The average begins as the weights are.
    ///
    /// # Errors
    /// The device refuses memory.
    pub fn new(variables: BTreeMap<String, Var>, decay: f64) -> Result<Self> {
        let slot = |variable: Var| -> Result<(Var, Averaged)> {
            let averaged = if fits_kernel(&variable) {
                Averaged::Host(variable.flatten_all()?.to_vec1()?)
            } else {
                Averaged::Device(variable.as_detached_tensor().copy()?)
            };
            Ok((variable, averaged))
        };
        let slots = variables.into_iter().map(|(name, variable)| Ok((name, slot(variable)?))).collect::<Result<_>>()?;
        Ok(Self { decay, slots })
    }

    /// Takes the weights after update number `step`, counted from 1, into the average.
    ///
    /// # Errors
    /// The device fails.
    pub fn update(&mut self, step: u64) -> Result<()> {
        let t = step as f64;
        let decay = self.decay.min((1.0 + t) / (10.0 + t));
        for (variable, averaged) in self.slots.values_mut() {
            match averaged {
                Averaged::Host(average) => {
                    variable.inplace_op1(&Follow { decay: decay as f32, average: Mutex::new(average) })?;
                }
                #[cfg(feature = "cuda")]
                Averaged::Device(average) if cuda::takes(&[variable, average]) => {
                    cuda::ema(average, variable, decay)?;
                }
                Averaged::Device(average) => {
                    *average = ((&*average * decay)? + (variable.as_detached_tensor() * (1.0 - decay))?)?;
                }
            }
        }
        Ok(())
    }

    /// The averages by parameter name.
    ///
    /// # Errors
    /// The device refuses memory.
    pub fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        let tensor = |(variable, averaged): &(Var, Averaged)| -> Result<Tensor> {
            Ok(match averaged {
                Averaged::Host(average) => Tensor::from_slice(average, variable.shape(), variable.device())?,
                Averaged::Device(average) => average.copy()?,
            })
        };
        self.slots.iter().map(|(name, slot)| Ok((name.clone(), tensor(slot)?))).collect()
    }

    /// Takes up averages that [`WeightAverage::state`] gave.
    ///
    /// # Errors
    /// A tensor is missing or has another shape.
    pub fn restore(&mut self, state: &mut dyn FnMut(&str) -> Result<Tensor>) -> Result<()> {
        for (name, (variable, averaged)) in &mut self.slots {
            let tensor = state(name)?;
            if tensor.shape() != variable.shape() {
                return Err(Error::request(format!("the average of {name} has another shape than {name}")));
            }
            *averaged = match averaged {
                Averaged::Host(_) => Averaged::Host(tensor.flatten_all()?.to_vec1()?),
                Averaged::Device(_) => Averaged::Device(tensor.to_device(variable.device())?.force_contiguous()?),
            };
        }
        Ok(())
    }

    /// Exchanges the weights and their averages: once to look at the average in the model, once more to train on.
    ///
    /// # Errors
    /// The device fails.
    pub fn swap(&mut self) -> Result<()> {
        for (variable, averaged) in self.slots.values_mut() {
            let weights = variable.as_detached_tensor().copy()?;
            match averaged {
                Averaged::Host(average) => {
                    variable.set(&Tensor::from_slice(average, variable.shape(), variable.device())?)?;
                    *average = weights.flatten_all()?.to_vec1()?;
                }
                Averaged::Device(average) => {
                    variable.set(average)?;
                    *average = weights;
                }
            }
        }
        Ok(())
    }
}

/// Sum of the squares of all elements of all tensors, independent of the number of threads.
///
/// # Errors
/// The device fails.
pub fn sum_of_squares<'a>(tensors: impl IntoIterator<Item = &'a Tensor>) -> Result<f64> {
    let mut sum = 0.0;
    // Numbers on a GPU are fetched together: each fetch waits for all that was asked of it before.
    let mut elsewhere = Vec::new();
    for x in tensors {
        if fits_kernel(x) {
            sum += with_slice(x, |values| Ok(kernel::sum_of_squares(values)))?;
            continue;
        }
        #[cfg(feature = "cuda")]
        if cuda::takes(&[x]) {
            elsewhere.push(cuda::sum_of_squares(x)?.to_dtype(DType::F64)?);
            continue;
        }
        elsewhere.push(x.detach().to_dtype(DType::F64)?.sqr()?.sum_all()?);
    }
    if !elsewhere.is_empty() {
        sum += Tensor::stack(&elsewhere, 0)?.sum_all()?.to_scalar::<f64>()?;
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DType, Device, rng};

    fn random(name: &str, n: usize) -> Tensor {
        rng::randn(&mut rng::keyed(3, name), (n / 4, 4), &Device::Cpu).unwrap()
    }

    #[test]
    fn the_kernel_agrees_with_its_plain_twin() {
        let (p, n) = (random("p", 4096), 4096);
        let kernel = Var::from_tensor(&p).unwrap();
        let config = AdamWConfig { weight_decay: 0.1, ..AdamWConfig::default() };
        let mut adamw = AdamW::new(BTreeMap::from([("p".to_owned(), kernel.clone())]), config).unwrap();
        let (mut twin, mut m, mut v) = (p.clone(), p.zeros_like().unwrap(), p.zeros_like().unwrap());
        for step in 1..=5 {
            let gradient = random(&format!("g{step}"), n);
            adamw.step(&BTreeMap::from([("p".to_owned(), gradient.clone())]), 0.01, 0.5).unwrap();
            let AdamWConfig { beta1, beta2, eps, weight_decay } = config;
            let hyper = kernel::AdamW { lr: 0.01, beta1, beta2, eps, weight_decay, step, grad_scale: 0.5 };
            (twin, m, v) = plain(&twin, &gradient, &m, &v, &hyper).unwrap();
        }
        let worst = (kernel.as_tensor() - &twin).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(worst < 2e-6, "{worst}");
        // Five steps of about 0.01 each.
        let moved = (&p - &twin).unwrap().abs().unwrap().mean_all().unwrap().to_scalar::<f32>().unwrap();
        assert!((0.01..0.06).contains(&moved), "{moved}");
    }

    /// The first step of Adam moves each parameter by the learning rate against the sign of its gradient; biases do not
    /// decay.
    #[test]
    fn the_first_step_is_as_large_as_the_learning_rate() {
        let bias = Var::new(&[1f32, 1.0, 1.0], &Device::Cpu).unwrap();
        let config = AdamWConfig { weight_decay: 0.5, ..AdamWConfig::default() };
        let mut adamw = AdamW::new(BTreeMap::from([("b".to_owned(), bias.clone())]), config).unwrap();
        let gradient = Tensor::new(&[3f32, -0.2, 0.0], &Device::Cpu).unwrap();
        adamw.step(&BTreeMap::from([("b".to_owned(), gradient)]), 0.1, 1.0).unwrap();
        let after = bias.to_vec1::<f32>().unwrap();
        for (value, expected) in after.iter().zip([0.9, 1.1, 1.0]) {
            assert!((value - expected).abs() < 1e-5, "{after:?}");
        }
    }

    #[test]
    fn state_survives_the_way_out_and_back() {
        let run = |interrupted: bool| {
            let var = Var::from_tensor(&random("p", 64)).unwrap();
            let variables = BTreeMap::from([("p".to_owned(), var.clone())]);
            let mut adamw = AdamW::new(variables.clone(), AdamWConfig::default()).unwrap();
            let mut average = WeightAverage::new(variables.clone(), 0.9).unwrap();
            for step in 0..6 {
                if interrupted && step == 3 {
                    let (state, averages, steps) = (adamw.state().unwrap(), average.state().unwrap(), adamw.steps());
                    adamw = AdamW::new(variables.clone(), AdamWConfig::default()).unwrap();
                    adamw.restore(steps, &mut |name| Ok(state[name].clone())).unwrap();
                    average = WeightAverage::new(variables.clone(), 0.9).unwrap();
                    average.restore(&mut |name| Ok(averages[name].clone())).unwrap();
                }
                let gradient = random(&format!("g{step}"), 64);
                adamw.step(&BTreeMap::from([("p".to_owned(), gradient)]), 0.01, 1.0).unwrap();
                average.update(adamw.steps()).unwrap();
            }
            let bits = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            (bits(var.as_tensor()), bits(&average.state().unwrap()["p"]))
        };
        let (weights, average) = run(false);
        assert_eq!(run(true), (weights.clone(), average.clone()));
        assert_ne!(weights, average);
    }

    #[test]
    fn swapping_twice_changes_nothing() {
        let var = Var::from_tensor(&random("p", 64)).unwrap();
        let mut average = WeightAverage::new(BTreeMap::from([("p".to_owned(), var.clone())]), 0.5).unwrap();
        var.set(&random("q", 64)).unwrap();
        average.swap().unwrap();
        assert_eq!(var.to_vec2::<f32>().unwrap(), random("p", 64).to_vec2::<f32>().unwrap());
        average.swap().unwrap();
        assert_eq!(var.to_vec2::<f32>().unwrap(), random("q", 64).to_vec2::<f32>().unwrap());
        assert_eq!(average.state().unwrap()["p"].to_vec2::<f32>().unwrap(), random("p", 64).to_vec2::<f32>().unwrap());
    }

    /// Parameters in f64 take the way of those on a device: moments as tensors, the twin, state out and back.
    #[test]
    fn the_way_of_other_devices_agrees_with_the_kernel() {
        let run = |dtype: DType| {
            let var = Var::from_tensor(&random("p", 64).to_dtype(dtype).unwrap()).unwrap();
            let variables = BTreeMap::from([("p".to_owned(), var.clone())]);
            let mut adamw = AdamW::new(variables.clone(), AdamWConfig::default()).unwrap();
            let mut average = WeightAverage::new(variables.clone(), 0.9).unwrap();
            for step in 0..6 {
                if step == 3 {
                    let (state, averages, steps) = (adamw.state().unwrap(), average.state().unwrap(), adamw.steps());
                    adamw = AdamW::new(variables.clone(), AdamWConfig::default()).unwrap();
                    adamw.restore(steps, &mut |name| Ok(state[name].clone())).unwrap();
                    average.restore(&mut |name| Ok(averages[name].clone())).unwrap();
                }
                let gradient = random(&format!("g{step}"), 64).to_dtype(dtype).unwrap();
                adamw.step(&BTreeMap::from([("p".to_owned(), gradient)]), 0.01, 0.5).unwrap();
                average.update(adamw.steps()).unwrap();
            }
            let weights = var.as_detached_tensor().copy().unwrap();
            average.swap().unwrap();
            [weights, var.as_detached_tensor()].map(|t| t.to_dtype(DType::F64).unwrap())
        };
        for (kernel, twin) in run(DType::F32).iter().zip(&run(DType::F64)) {
            let worst = (kernel - twin).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f64>().unwrap();
            assert!(worst < 1e-6, "{worst}");
        }
    }

    #[test]
    fn squares_are_summed() {
        let x = Tensor::new(&[[1f32, 2.0], [-3.0, 0.5]], &Device::Cpu).unwrap();
        let elsewhere = x.to_dtype(DType::F64).unwrap();
        assert_eq!(sum_of_squares([&x]).unwrap(), 14.25);
        assert_eq!(sum_of_squares([&elsewhere, &x, &elsewhere]).unwrap(), 3.0 * 14.25);
    }
}
