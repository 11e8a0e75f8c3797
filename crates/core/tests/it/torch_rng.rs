//! `rng::Mode::Torch` against values recorded from PyTorch by `tools/reference/rng.py`.

use conjure_core::rng::{self, Mode};
use serde_json::Value;

#[test]
fn draws_equal_pytorchs_to_1e_6() {
    let fixture: Value = serde_json::from_str(include_str!("../fixtures/torch_rng.json")).unwrap();
    let keep = fixture["keep"].as_u64().unwrap() as usize;
    let mut compared = 0;
    for case in fixture["cases"].as_array().unwrap() {
        let seed: u64 = case["seed"].as_str().unwrap().parse().unwrap();
        let mut generator = rng::generator(Mode::Torch, seed);
        for draw in case["draws"].as_array().unwrap() {
            let (kind, n) = (draw["kind"].as_str().unwrap(), draw["n"].as_u64().unwrap() as usize);
            let (drawn, tolerance) = match kind {
                "normal" => (generator.normal(n), 1e-6),
                _ => (generator.uniform(n), 0.0),
            };
            let got = if n <= 2 * keep { drawn } else { [&drawn[..keep], &drawn[n - keep..]].concat() };
            let expected: Vec<f32> =
                draw["values"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32).collect();
            assert_eq!(got.len(), expected.len());
            for (i, (a, b)) in got.iter().zip(&expected).enumerate() {
                assert!((a - b).abs() <= tolerance, "seed {seed}, {kind} {n}, kept element {i}: {a} is not {b}");
                compared += 1;
            }
        }
    }
    assert_eq!(compared, 1984);
}
