//! The LSTM against `torch.nn.LSTM`, forwards and backwards (`tools/reference/lstm.py`).

use conjure_core::blocks::{Lstm, LstmConfig, LstmState};
use conjure_core::probe::{NoProbe, Quantity, Recorder};
use conjure_core::weights::{MemorySource, Params, TensorSource, open};
use conjure_core::{DType, Device, Result, Tensor, Var};
use std::collections::BTreeMap;
use std::sync::Arc;

const CONFIG: LstmConfig = LstmConfig { input_size: 5, hidden_size: 6, num_layers: 2, bidirectional: true };
const TOLERANCE: f32 = 1e-5;

struct Fixture(Arc<dyn TensorSource>);

impl Fixture {
    fn open() -> Self {
        Self(open(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/lstm.safetensors")).unwrap())
    }

    fn get(&self, name: &str) -> Tensor {
        self.0.load(name, DType::F32, &Device::Cpu).unwrap()
    }

    fn mask(&self) -> Tensor {
        self.get("mask").to_dtype(DType::U32).unwrap()
    }

    /// Below `prefix.`, without it.
    fn below(&self, prefix: &str) -> BTreeMap<String, Tensor> {
        let keys = self.0.infos().keys().filter_map(|key| key.strip_prefix(prefix)?.strip_prefix('.'));
        keys.map(|key| (key.to_owned(), self.get(&format!("{prefix}.{key}")))).collect()
    }

    fn params(&self) -> Params {
        Params::load(Arc::new(MemorySource::new(self.below("weights"))), DType::F32, &Device::Cpu)
    }

    /// To 1e-5 of the largest value.
    #[track_caller]
    fn agrees(&self, got: &Tensor, name: &str) {
        let want = self.get(name);
        assert_eq!(got.dims(), want.dims(), "{name}");
        let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let (got, want) = (flat(got), flat(&want));
        let scale = want.iter().fold(0f32, |m, v| m.max(v.abs()));
        for (g, w) in got.iter().zip(&want) {
            assert!((g - w).abs() <= TOLERANCE * scale, "{name}: {g} is not {w}");
        }
    }
}

fn stacked(states: &[LstmState], part: fn(&LstmState) -> Result<Tensor>) -> Tensor {
    Tensor::stack(&states.iter().map(|state| part(state).unwrap()).collect::<Vec<_>>(), 0).unwrap()
}

#[test]
fn outputs_and_states_are_those_of_torch() {
    let fixture = Fixture::open();
    let params = fixture.params();
    let lstm = Lstm::new(&params, CONFIG).unwrap();
    let (h0, c0) = (fixture.get("h0"), fixture.get("c0"));
    let before = (0..4).map(|n| LstmState::new(&h0.get(n).unwrap(), &c0.get(n).unwrap()).unwrap()).collect();
    let (y, ends) = lstm.forward(&fixture.get("x"), None, Some(before), &mut NoProbe).unwrap();
    fixture.agrees(&y, "whole");
    fixture.agrees(&stacked(&ends, LstmState::h), "whole_h");
    fixture.agrees(&stacked(&ends, LstmState::c), "whole_c");

    let (y, ends) = lstm.forward(&fixture.get("x"), Some(&fixture.mask()), None, &mut NoProbe).unwrap();
    fixture.agrees(&y, "y");
    fixture.agrees(&stacked(&ends, LstmState::h), "h");
    fixture.agrees(&stacked(&ends, LstmState::c), "c");
    let asked: Vec<String> = params.asked().into_iter().map(|spec| spec.name).collect();
    assert_eq!(asked.len(), fixture.below("weights").len());
}

#[test]
fn gradients_are_those_of_torch() {
    let fixture = Fixture::open();
    let params = fixture.params().trainable();
    let lstm = Lstm::new(&params, CONFIG).unwrap();
    let x = Var::from_tensor(&fixture.get("x")).unwrap();
    let (y, ends) = lstm.forward(x.as_tensor(), Some(&fixture.mask()), None, &mut NoProbe).unwrap();
    let cells = (stacked(&ends, LstmState::c) * fixture.get("dc")).unwrap().sum_all().unwrap();
    let loss = ((y * fixture.get("dy")).unwrap().sum_all().unwrap() + cells).unwrap();
    let gradients = loss.backward().unwrap();
    fixture.agrees(gradients.get(x.as_tensor()).unwrap(), "gradients.x");
    for (name, variable) in params.variables() {
        fixture.agrees(gradients.get(variable.as_tensor()).unwrap(), &format!("gradients.{name}"));
    }
}

#[test]
fn a_probe_sees_gates_and_changes_nothing() {
    let fixture = Fixture::open();
    let lstm = Lstm::new(&fixture.params(), CONFIG).unwrap();
    let bits = |t: &Tensor| -> Vec<u32> {
        t.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
    };
    let (plain, _) = lstm.forward(&fixture.get("x"), None, None, &mut NoProbe).unwrap();
    let mut probe = Recorder::new(|path, quantity| path == "l0_reverse" && quantity == Quantity::Gate);
    let (seen, _) = lstm.forward(&fixture.get("x"), None, None, &mut probe).unwrap();
    assert_eq!(bits(&plain), bits(&seen));
    let [(path, _, gates)] = &probe.records[..] else { panic!("one record") };
    assert_eq!((path.as_str(), gates.dims()), ("l0_reverse", &[3, 9, 4, 6][..]));
    // At the end of the text, where the second direction begins with nothing: c = i g, h = o tanh(i g).
    let gate = |n: usize| gates.get(0).unwrap().get(8).unwrap().get(n).unwrap();
    let h = (gate(3) * (gate(0) * gate(2)).unwrap().tanh().unwrap()).unwrap().to_vec1::<f32>().unwrap();
    let (first, _) = Lstm::new(&fixture.params(), LstmConfig { num_layers: 1, ..CONFIG })
        .unwrap()
        .forward(&fixture.get("x"), None, None, &mut NoProbe)
        .unwrap();
    let said = first.get(0).unwrap().get(8).unwrap().narrow(0, 6, 6).unwrap().to_vec1::<f32>().unwrap();
    assert!(h.iter().zip(&said).all(|(a, b)| (a - b).abs() < 1e-6), "{h:?} {said:?}");
    assert!(gate(0).to_vec1::<f32>().unwrap().iter().all(|v| (0.0..=1.0).contains(v)));
}
