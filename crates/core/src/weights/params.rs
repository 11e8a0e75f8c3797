//! The one way in which a model asks for its parameters, wherever they come from.

use super::additions::Additions;
use super::{Quantized, TensorInfo, TensorSource};
use crate::rng::{self, Generator};
use crate::{DType, Device, Error, Result, Shape, Tensor, Var};
use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::{Arc, Mutex};

/// How a parameter begins when nothing is loaded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// Every element this value.
    Constant(f64),
    /// Normal with mean 0.
    Normal {
        /// Standard deviation.
        std: f64,
    },
    /// Uniform on `[-bound, bound]`. PyTorch's default for linear and convolution layers is `bound = 1 / sqrt(fan_in)`.
    Uniform {
        /// Half the width of the interval.
        bound: f64,
    },
}

/// Name and shape of a parameter that a model asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParameterSpec {
    /// Full name: the checkpoint key.
    pub name: String,
    /// Shape.
    pub shape: Shape,
}

enum Origin {
    /// Read from a source.
    Source(Arc<dyn TensorSource>),
    /// Drawn from a generator keyed by seed and parameter name, so that the order of asking does not matter.
    Seeded(u64),
    /// Nothing is drawn or read: zero-stride zeros of the right shape that take no memory. For finding out what a model
    /// asks for before memory is taken.
    Outline,
}

struct Store {
    origin: Origin,
    dtype: DType,
    device: Device,
    trainable: bool,
    /// Most elements of all parameters that are drawn.
    most: Option<u64>,
    asked: Mutex<Vec<ParameterSpec>>,
    variables: Mutex<BTreeMap<String, Var>>,
}

/// Parameters below a name prefix. `params.sub("down_blocks").sub(0)` asks for keys that begin with `down_blocks.0.`.
#[derive(Clone)]
pub struct Params {
    store: Arc<Store>,
    prefix: String,
    pub(super) additions: Option<Arc<Additions>>,
}

impl Params {
    fn new(origin: Origin, dtype: DType, device: &Device) -> Self {
        let device = device.clone();
        let (asked, variables) = (Mutex::default(), Mutex::default());
        let store = Store { origin, dtype, device, trainable: false, most: None, asked, variables };
        Self { store: Arc::new(store), prefix: String::new(), additions: None }
    }

    /// Parameters read from `source`, converted to `dtype`.
    pub fn load(source: Arc<dyn TensorSource>, dtype: DType, device: &Device) -> Self {
        Self::new(Origin::Source(source), dtype, device)
    }

    /// Parameters drawn by each layer's [`Init`] from generators keyed by `seed` and parameter name.
    pub fn seeded(seed: u64, dtype: DType, device: &Device) -> Self {
        Self::new(Origin::Seeded(seed), dtype, device)
    }

    /// No parameters: only a record of what a model asks for, see [`Params::asked`]. Takes no memory for tensors.
    pub fn outline() -> Self {
        Self::new(Origin::Outline, DType::F32, &Device::Cpu)
    }

    /// The same origin, each parameter a variable that gradients flow into. Call before the model is built.
    pub fn trainable(self) -> Self {
        self.anew(|store| store.trainable = true)
    }

    /// The same origin, which draws no more than `elements` of all parameters together: a config may ask for more than there
    /// is memory for. Call before the model is built.
    pub fn at_most(self, elements: u64) -> Self {
        self.anew(|store| store.most = Some(elements))
    }

    /// The same origin with a change, of which nothing was asked.
    fn anew(self, change: impl FnOnce(&mut Store)) -> Self {
        let Store { origin, dtype, device, trainable, most, .. } = &*self.store;
        let origin = match origin {
            Origin::Source(source) => Origin::Source(source.clone()),
            Origin::Seeded(seed) => Origin::Seeded(*seed),
            Origin::Outline => Origin::Outline,
        };
        let mut store = Store {
            origin,
            dtype: *dtype,
            device: device.clone(),
            trainable: *trainable,
            most: *most,
            asked: Mutex::default(),
            variables: Mutex::default(),
        };
        change(&mut store);
        Self { store: Arc::new(store), ..self }
    }

    /// Parameters below `prefix.name`.
    pub fn sub(&self, name: impl Display) -> Self {
        Self { prefix: self.key(&name.to_string()), ..self.clone() }
    }

    /// The prefix: the module's path.
    pub fn path(&self) -> &str {
        &self.prefix
    }

    /// Element type of the tensors handed out.
    pub fn dtype(&self) -> DType {
        self.store.dtype
    }

    /// Device of the tensors handed out.
    pub fn device(&self) -> &Device {
        &self.store.device
    }

    /// Whether the source has this parameter. True where parameters are not loaded.
    pub fn contains(&self, name: &str) -> bool {
        match &self.store.origin {
            Origin::Source(source) => source.infos().contains_key(&self.key(name)),
            _ => true,
        }
    }

    fn key(&self, name: &str) -> String {
        if self.prefix.is_empty() { name.to_owned() } else { format!("{}.{name}", self.prefix) }
    }

    /// The parameter `name` below the prefix.
    ///
    /// # Errors
    /// Missing from the source, or of another shape there; more than [`Params::at_most`] allows.
    pub fn get(&self, name: &str, shape: impl Into<Shape>, init: Init) -> Result<Tensor> {
        let (name, shape) = (self.key(name), shape.into());
        let store = &*self.store;
        lock(&store.asked).push(ParameterSpec { name: name.clone(), shape: shape.clone() });
        if store.trainable
            && let Some(var) = lock(&store.variables).get(&name)
        {
            return Ok(var.as_tensor().clone());
        }
        if let (Some(most), Origin::Seeded(_)) = (store.most, &store.origin) {
            room(&lock(&store.asked), most)?;
        }
        let tensor = match &store.origin {
            Origin::Source(source) => {
                check(source.infos().get(&name), &name, &shape)?;
                source.load(&name, store.dtype, &store.device)?
            }
            Origin::Seeded(seed) => {
                let n = shape.elem_count();
                let mut generator = rng::keyed(*seed, &name);
                let values: Vec<f32> = match init {
                    Init::Constant(value) => vec![value as f32; n],
                    Init::Normal { std } => generator.normal(n).into_iter().map(|z| z * std as f32).collect(),
                    Init::Uniform { bound } => {
                        generator.uniform(n).into_iter().map(|u| (2.0 * u - 1.0) * bound as f32).collect()
                    }
                };
                Tensor::from_vec(values, shape, &store.device)?.to_dtype(store.dtype)?
            }
            Origin::Outline => Tensor::zeros(1, store.dtype, &store.device)?.broadcast_as(shape)?,
        };
        if !store.trainable {
            return Ok(tensor);
        }
        let var = Var::from_tensor(&tensor)?;
        let tensor = var.as_tensor().clone();
        lock(&store.variables).insert(name, var);
        Ok(tensor)
    }

    /// The matrix `name (rows, columns)` below the prefix where it is stored in few bits and can be used so: in a source that
    /// has it so, for a model that computes in f32 on a CPU and is not trained. `None` elsewhere: ask with [`Params::get`].
    ///
    /// # Errors
    /// Of another shape in the source.
    pub fn quantized(&self, name: &str, rows: usize, columns: usize) -> Result<Option<Quantized>> {
        let (name, shape, store) = (self.key(name), Shape::from((rows, columns)), &*self.store);
        let Origin::Source(source) = &store.origin else { return Ok(None) };
        if store.trainable || store.dtype != DType::F32 || !store.device.is_cpu() {
            return Ok(None);
        }
        let Some(matrix) = source.quantized(&name) else { return Ok(None) };
        check(source.infos().get(&name), &name, &shape)?;
        lock(&store.asked).push(ParameterSpec { name, shape });
        Ok(Some(matrix))
    }

    /// Everything asked for so far, in order.
    pub fn asked(&self) -> Vec<ParameterSpec> {
        lock(&self.store.asked).clone()
    }

    /// The trainable variables by name; empty unless [`Params::trainable`].
    pub fn variables(&self) -> BTreeMap<String, Var> {
        lock(&self.store.variables).clone()
    }
}

/// Whether all that was asked for has no more elements than `most`.
fn room(asked: &[ParameterSpec], most: u64) -> Result<()> {
    let elements = |shape: &Shape| shape.dims().iter().map(|&size| size as f64).product::<f64>();
    let sum: f64 = asked.iter().map(|spec| elements(&spec.shape)).sum();
    if sum <= most as f64 {
        return Ok(());
    }
    Err(Error::request(format!(
        "the model has over {:.0} million parameters, and there is memory for {:.0} million",
        sum / 1e6,
        most as f64 / 1e6
    ))
    .with_help("choose a smaller width, or fewer layers"))
}

/// Whether a source's tensor is the one that a model asks for.
fn check(info: Option<&TensorInfo>, name: &str, shape: &Shape) -> Result<()> {
    let info = info.ok_or_else(|| Error::request(format!("the weights lack the tensor {name}")))?;
    if info.shape == *shape {
        return Ok(());
    }
    let (stored, asked) = (info.shape.dims(), shape.dims());
    Err(Error::request(format!("tensor {name} has shape {stored:?}, the model's config asks for {asked:?}")))
}

/// A poisoned lock only means that another thread panicked between two whole operations; the data is sound.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
