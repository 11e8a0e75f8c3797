//! Logit filters against transformers' processors, see `tools/reference/logit_filters.py`.

use conjure_core::sampling::text::{
    Chain, History, LogitFilter, MinP, RepetitionPenalty, Temperature, TopK, TopP, Typical,
};
use safetensors::SafeTensors;

fn filter(name: &str, value: f32) -> Chain {
    let chain = Chain::default();
    match name {
        "temperature" => chain.then(Temperature::new(value).unwrap()),
        "top_k" => chain.then(TopK::new(value as usize).unwrap()),
        "top_p" => chain.then(TopP::new(value).unwrap()),
        "min_p" => chain.then(MinP::new(value).unwrap()),
        "typical" => chain.then(Typical::new(value).unwrap()),
        "repetition" => chain.then(RepetitionPenalty::new(value).unwrap()),
        "chain" => chain
            .then(RepetitionPenalty::new(1.1).unwrap())
            .then(Temperature::new(0.8).unwrap())
            .then(TopK::new(40).unwrap())
            .then(TopP::new(0.95).unwrap())
            .then(MinP::new(0.05).unwrap())
            .then(Typical::new(0.9).unwrap()),
        other => panic!("{other}"),
    }
}

#[test]
fn every_filter_equals_that_of_transformers() {
    let bytes =
        std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/logit_filters.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let words = |name: &str| -> Vec<u32> {
        let data = file.tensor(name).unwrap().data().to_vec();
        data.chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().unwrap())).collect()
    };
    let floats = |name: &str| -> Vec<f32> { words(name).into_iter().map(f32::from_bits).collect() };
    let (logits, prompt) = (floats("logits"), words("prompt"));
    let vocabulary = file.tensor("logits").unwrap().shape()[1];
    let length = file.tensor("prompt").unwrap().shape()[1];
    let cases: Vec<_> = file.names().into_iter().filter(|name| !["logits", "prompt"].contains(name)).collect();
    assert_eq!(cases.len(), 18);
    for case in cases {
        let (name, value) = case.split_once('.').unwrap_or((case, "0"));
        let filter = filter(name, value.parse().unwrap());
        let rows = logits.chunks_exact(vocabulary).zip(prompt.chunks_exact(length));
        for ((row, prompt), expected) in rows.zip(floats(case).chunks_exact(vocabulary)) {
            let mut row = row.to_vec();
            filter.apply(&mut row, History { prompt, answer: &[] });
            for (id, (own, theirs)) in row.iter().zip(expected).enumerate() {
                let close = (own - theirs).abs() <= 1e-6 * theirs.abs();
                assert!(own == theirs || close, "{case}, token {id}: {own} instead of {theirs}");
            }
        }
    }
}
