//! What an explanation of attention holds is what the model did.

use base64::Engine as _;
use conjure::explain::attention::{
    Explanation, Kind, Outcome, Request, Role, Selection, Subject, agreement, csv, explain, html, json, open, open_for,
    select, svg, weights,
};
use conjure_core::blocks::attend;
use conjure_core::ops::AttentionSpec;
use conjure_core::probe::{NoProbe, Probe, Quantity, Recorder};
use conjure_core::{Device, Result, Tensor, rng};
use serde_json::Value;
use std::path::{Path, PathBuf};

const SENTENCE: &str = "The lamp could not be packed into the suitcase because it was too large";

fn emoji() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/emoji")
}

fn request() -> Request {
    Request {
        compare: Some(SENTENCE.replace("large", "small")),
        mask: vec!["suitcase".into()],
        ablate: vec![(2, 1)],
        ..Request::new(SENTENCE)
    }
}

/// The data in a page, as the page reads it.
fn data(page: &str) -> Value {
    let start = page.find(r#"id="data">"#).unwrap() + r#"id="data">"#.len();
    let end = start + page[start..].find("</script>").unwrap();
    serde_json::from_str(&page[start..end]).unwrap()
}

fn as_csv(explanation: &Explanation, selection: Selection) -> Result<String> {
    let mut out = Vec::new();
    csv(&select(explanation, selection)?, &mut out).unwrap();
    Ok(String::from_utf8(out).unwrap())
}

fn as_json(explanation: &Explanation, selection: Selection) -> Result<Value> {
    let mut out = Vec::new();
    json(&select(explanation, selection)?, &mut out).unwrap();
    Ok(serde_json::from_slice(&out).unwrap())
}

fn floats(array: &Value) -> Vec<f32> {
    let bytes = base64::engine::general_purpose::STANDARD.decode(array["f32"].as_str().unwrap()).unwrap();
    let numbers: Vec<f32> = bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    let shape: u64 = array["shape"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).product();
    assert_eq!(numbers.len() as u64, shape);
    numbers
}

/// softmax(q k^T / sqrt(d)) of a causal layer in the page's data, `(heads, time, time)`, written here once more.
fn recomputed(layer: &Value) -> Vec<f32> {
    let size = |name: &str| layer[name].as_u64().unwrap() as usize;
    let (heads, time, dim) = (size("heads"), size("time"), size("head_dim"));
    assert_eq!((size("kv_heads"), size("source")), (heads, time));
    assert_eq!(layer["bias"]["causal"], true);
    let hidden: Vec<usize> =
        layer["bias"]["hidden"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as usize).collect();
    let (q, k) = (floats(&layer["whole"]["q"]), floats(&layer["whole"]["k"]));
    let mut weights = Vec::new();
    for h in 0..heads {
        for i in 0..time {
            let score = |j: usize| {
                let at = |n: usize| (h * time + n) * dim;
                let dot: f32 = q[at(i)..][..dim].iter().zip(&k[at(j)..][..dim]).map(|(a, b)| a * b).sum();
                if j > i || (j != i && hidden.contains(&j)) { f32::NEG_INFINITY } else { dot / (dim as f32).sqrt() }
            };
            let scores: Vec<f32> = (0..time).map(score).collect();
            let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let exp: Vec<f32> = scores.iter().map(|x| (x - max).exp()).collect();
            let sum: f32 = exp.iter().sum();
            weights.extend(exp.iter().map(|x| x / sum));
        }
    }
    weights
}

fn farthest(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn numbers_in_the_page_recompute_to_the_models_weights() {
    let subject = open(&emoji()).unwrap();
    let explanation = explain(subject.as_ref(), "emoji", &request()).unwrap();
    let found = agreement(&explanation);
    assert!(found.weights < 1e-5 && found.sums < 2e-5, "{found:?}");

    let page = data(&html(&explanation).unwrap());
    // What the model says when only its probabilities are asked for.
    let mut recorder = Recorder::new(|_: &str, quantity| quantity == Quantity::AttentionProbabilities);
    subject.run(&subject.encode(SENTENCE).unwrap(), None, &mut recorder).unwrap();
    assert_eq!(recorder.records.len(), 4);
    for (n, (path, _, probabilities)) in recorder.records.iter().enumerate() {
        let layer = &page["runs"][0]["attentions"][0]["layers"][n];
        assert_eq!(layer["path"], path.as_str());
        let own = probabilities.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let off = farthest(&recomputed(layer), &own);
        assert!(off < 1e-5, "layer {n}: {off}");
        assert_eq!(floats(&layer["whole"]["recorded"]["weights"]), own);
    }
    for run in page["runs"].as_array().unwrap() {
        for layer in run["attentions"][0]["layers"].as_array().unwrap() {
            let off = farthest(&recomputed(layer), &floats(&layer["whole"]["recorded"]["weights"]));
            assert!(off < 1e-5, "{} {}: {off}", run["role"], layer["path"]);
        }
    }
}

#[test]
fn a_change_shows_where_it_is_made_and_after_it() {
    let subject = open(&emoji()).unwrap();
    let explanation = explain(subject.as_ref(), "emoji", &request()).unwrap();
    let roles: Vec<Role> = explanation.runs.iter().map(|run| run.role).collect();
    assert_eq!(roles, [Role::Original, Role::Compared, Role::Changed]);
    let [original, compared, changed] = &explanation.runs[..] else { panic!() };
    assert_eq!(original.attentions.len(), 1);
    assert_eq!(original.attentions[0].kind, Kind::Causal);
    let tokens = &original.sequences[0].tokens;
    assert_eq!(tokens[explanation.focus.token].text, "it");
    assert_eq!(compared.sequences[0].tokens[explanation.focus.compared_token.unwrap()].text, "it");
    let hidden = &changed.change.as_ref().unwrap().hidden;
    let spelt: String = hidden.iter().map(|n| tokens[*n].text.as_str()).collect();
    assert_eq!(spelt, "suitcase");
    // Tokens before the hidden word do not see it, and so nothing of the mask; the head that is off changes them all.
    assert!(changed.output_cosines[hidden[0] - 1] < 0.9999);
    assert!(changed.embedding_cosine.unwrap() < 0.9999);

    let only = |mask: &[&str], ablate: &[(usize, usize)]| {
        let mask = mask.iter().map(|word| (*word).to_owned()).collect();
        let request = Request { mask, ablate: ablate.to_vec(), ..Request::new(SENTENCE) };
        explain(subject.as_ref(), "emoji", &request).unwrap()
    };
    // The emoji's text encoder hardly hears of a word late in a sentence; of an early one all that follows does.
    let masked = only(&["lamp"], &[]);
    let masked = &masked.runs[1];
    let [lamp] = masked.change.as_ref().unwrap().hidden[..] else { panic!("lamp is one token") };
    let (before, after) = (&masked.output_cosines[..lamp], &masked.output_cosines[lamp + 1..]);
    assert!(before.iter().all(|cosine| (cosine - 1.0).abs() < 1e-5), "{before:?}");
    assert!(after.iter().all(|cosine| *cosine < 0.9999), "{after:?}");
    let q = |explanation: &Explanation, run: usize, layer: usize| {
        explanation.runs[run].attentions[0].layers[layer].whole.as_ref().unwrap().q.clone()
    };
    let ablated = only(&[], &[(2, 1)]);
    for layer in 0..4 {
        assert_eq!(q(&ablated, 0, layer) == q(&ablated, 1, layer), layer <= 2, "layer {layer}");
    }
}

#[test]
fn numbers_and_drawings_are_written_for_other_programs() {
    let subject = open(&emoji()).unwrap();
    let explanation = explain(subject.as_ref(), "emoji", &Request::new("it is <b>\"so\" & so</b>")).unwrap();
    let time = explanation.runs[0].sequences[0].tokens.len();
    let lines = as_csv(&explanation, Selection { layer: Some(1), head: Some(2) }).unwrap();
    assert_eq!(lines.lines().count(), 1 + time * time);
    let all = as_json(&explanation, Selection::default()).unwrap();
    let layers = all["runs"][0]["attentions"][0]["layers"].as_array().unwrap();
    assert_eq!((layers.len(), layers[3]["heads"].as_array().unwrap().len()), (4, 4));
    for row in layers[1]["heads"][2]["weights"].as_array().unwrap() {
        let sum: f64 = row.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).sum();
        assert!((sum - 1.0).abs() < 1e-9);
    }
    let drawing = svg(&explanation, Selection::default()).unwrap();
    assert!(drawing.contains("Layer 3, Head 0, Attention: Input - Input") && !drawing.contains("<b>"));
    // Nothing in a text ends the element that the data stands in.
    let page = html(&explanation).unwrap();
    assert_eq!(data(&page)["runs"][0]["text"], "it is <b>\"so\" & so</b>");
    assert!(!page.contains("{{") && !page.contains("/*{{") && page.contains("&lt;b&gt;"));
}

#[test]
fn what_is_not_there_is_refused_by_name() {
    let subject = open(&emoji()).unwrap();
    let ask = |change: &dyn Fn(&mut Request)| {
        let mut request = Request::new(SENTENCE);
        change(&mut request);
        let error = explain(subject.as_ref(), "emoji", &request).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        format!("{error}; {}", error.help().unwrap_or_default())
    };
    for (said, message) in [
        ("there is no layer 4: the model has 4; layers are counted from 0 to 3", ask(&|r| r.layer = Some(4))),
        ("there is no head 9: the model has 4", ask(&|r| r.head = 9)),
        ("there is no head 7: the model has 4", ask(&|r| r.ablate = vec![(0, 7)])),
        ("there is no word \"moon\" to mask in the text; the tokens spell", ask(&|r| r.mask = vec!["moon".into()])),
        ("there is no word \"moon\" to look at", ask(&|r| r.word = Some("moon".into()))),
        ("the text is empty; give a sentence", ask(&|r| r.text = " \n".into())),
        ("the text has 42 tokens; the model reads 32; shorten", ask(&|r| r.text = "it ".repeat(40))),
    ] {
        assert!(message.starts_with(said), "{message}");
    }
}

/// Two layers with all that a decoder may have: grouped heads, a window and a soft cap in one, a bias by distance in the other.
struct Wild {
    sharp: f64,
}

impl Subject for Wild {
    fn family(&self) -> &'static str {
        "random numbers"
    }

    fn layers(&self) -> usize {
        2
    }

    fn heads(&self) -> usize {
        4
    }

    fn encode(&self, text: &str) -> Result<Vec<u32>> {
        Ok((0..text.split_whitespace().count() as u32).collect())
    }

    fn piece(&self, id: u32) -> String {
        format!("w{id} ")
    }

    fn run(&self, ids: &[u32], _: Option<&[u32]>, probe: &mut dyn Probe) -> Result<Outcome> {
        let t = ids.len();
        let random = |name: &str, heads: usize| -> Result<Tensor> {
            Ok((rng::randn(&mut rng::keyed(1, name), &[1, heads, t, 8], &Device::Cpu)? * self.sharp)?)
        };
        let slopes: Vec<f32> = (0..4)
            .flat_map(|h| (0..t * t).map(move |n| -((n / t) as f32 - (n % t) as f32) / (1 << (h + 1)) as f32))
            .collect();
        let slopes = Tensor::from_vec(slopes, (1, 4, t, t), &Device::Cpu)?;
        let plain = AttentionSpec { causal: true, ..AttentionSpec::new(8) };
        let mut hidden = Tensor::zeros((t, 1), conjure_core::DType::F32, &Device::Cpu)?;
        for (n, spec) in [
            AttentionSpec { window: Some(7), soft_cap: Some(2.0), ..plain },
            AttentionSpec { mask: Some(&slopes), scale: 1.0, ..plain },
        ]
        .into_iter()
        .enumerate()
        {
            let (q, k, v) = (random("q", 4)?, random("k", 2)?, random("v", 2)?);
            let path = format!("model.layers.{n}.self_attn");
            let y = attend(&q, &k, &v, spec, &|y| Ok((y * 2.0)?), &path, probe)?;
            hidden = y.transpose(1, 2)?.reshape((t, 32))?;
        }
        let logits = hidden.narrow(1, 0, 16)?;
        Ok(Outcome { output: Vec::new(), hidden: Some(hidden), embedding: None, logits: Some(logits) })
    }
}

#[test]
fn windows_soft_caps_grouped_heads_and_position_biases_recompute_too() {
    let text = "word ".repeat(40);
    let request = Request { mask: vec!["w3".into()], ..Request::new(text) };
    let explanation = explain(&Wild { sharp: 1.5 }, "wild", &request).unwrap();
    let found = agreement(&explanation);
    assert_eq!(found.rows, 2 * 2 * 4 * 40);
    assert!(found.weights < 1e-6 && found.sums < 1e-5, "{found:?}");
    let layers = &explanation.runs[0].attentions[0].layers;
    assert!(layers[1].bias.by_distance.is_some() && layers[1].bias.by_pair.is_none());
    assert_eq!((layers[0].bias.window, layers[0].soft_cap, layers[0].kv_heads), (Some(7), Some(2.0), 2));
    // The projection doubles, and so it does the norms.
    let v = &layers[0].whole.as_ref().unwrap().v.data;
    let norm = v[..8].iter().map(|x| x * x).sum::<f32>().sqrt();
    assert!((layers[0].norms.data[0] - 2.0 * norm).abs() < 1e-5);
    let top = &explanation.runs[1].predictions[39].top;
    assert_eq!(top.len(), 8);
    assert!(top.windows(2).all(|pair| pair[0].probability >= pair[1].probability));
}

#[test]
fn a_long_text_keeps_the_layers_that_fit() {
    let request = Request { layer: Some(1), budget: 200 << 10, ..Request::new("word ".repeat(500)) };
    let explanation = explain(&Wild { sharp: 1.0 }, "wild", &request).unwrap();
    let layers = &explanation.runs[0].attentions[0].layers;
    assert!(layers[0].whole.is_none() && layers[1].whole.is_some());
    let small = layers[0].thumbnails.as_ref().unwrap();
    assert_eq!((small.height, small.width, small.u8.len()), (48, 48, 4 * 48 * 48));
    let recorded = &layers[1].whole.as_ref().unwrap().recorded;
    assert_eq!(recorded.rows.last(), Some(&499));
    assert!(recorded.weights.data.len() <= 500_000);
    assert!(agreement(&explanation).weights < 1e-6);
    let error = as_json(&explanation, Selection::default()).unwrap_err();
    assert!(error.to_string().starts_with("layer 0 was not kept"), "{error}");
    assert_eq!(error.help(), Some("choose one with --layer, or make room with --budget"));
    // Told at the first layer, not after the last.
    let early = explain(&Wild { sharp: 1.0 }, "wild", &Request { table: Some(Selection::default()), ..request });
    assert_eq!(early.unwrap_err().to_string(), error.to_string());
    assert!(as_csv(&explanation, Selection { layer: Some(1), head: Some(0) }).is_ok());
    assert!(svg(&explanation, Selection::default()).unwrap_err().to_string().contains("500 tokens"));
}

/// The numbers stand in the page in base64, a third longer than they are.
#[test]
fn the_page_is_no_larger_than_was_asked_for() {
    for (megabytes, kept) in [(2, [false, true]), (4, [true, true])] {
        let budget = megabytes << 20;
        let request = Request { budget, ..Request::new("word ".repeat(500)) };
        let explanation = explain(&Wild { sharp: 1.0 }, "wild", &request).unwrap();
        let layers = &explanation.runs[0].attentions[0].layers;
        assert_eq!([0, 1].map(|n| layers[n].whole.is_some()), kept, "{megabytes}");
        // Beside the numbers stand program, words and small pictures.
        let page = html(&explanation).unwrap().len();
        assert!(page < budget + (1 << 19), "{page} bytes of {megabytes} MiB");
    }
}

/// Counts what it is given, and how much at most at a time.
#[derive(Default)]
struct Counter {
    all: usize,
    largest: usize,
}

impl std::io::Write for Counter {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.all += bytes.len();
        self.largest = self.largest.max(bytes.len());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn tables_are_written_number_by_number() {
    let explanation = explain(&Wild { sharp: 1.0 }, "wild", &Request::new("word ".repeat(60))).unwrap();
    let selected = select(&explanation, Selection::default()).unwrap();
    let (mut table, mut tree) = (Counter::default(), Counter::default());
    csv(&selected, &mut table).unwrap();
    json(&selected, &mut tree).unwrap();
    for counter in [table, tree] {
        // 28800 weights, none of which waits for another.
        assert!(counter.all > 300_000 && counter.largest < 1000, "{} {}", counter.all, counter.largest);
    }
    let all = as_json(&explanation, Selection::default()).unwrap();
    for (n, layer) in explanation.runs[0].attentions[0].layers.iter().enumerate() {
        for head in 0..4 {
            let told = &all["runs"][0]["attentions"][0]["layers"][n]["heads"][head];
            let own = weights(layer, layer.whole.as_ref().unwrap(), head);
            let told_weights: Vec<Vec<f64>> = serde_json::from_value(told["weights"].clone()).unwrap();
            assert_eq!(told_weights.len(), own.len());
            for (told, own) in told_weights.iter().flatten().zip(own.iter().flatten()) {
                assert!((told - own).abs() < 1e-15, "{told} {own}");
            }
            assert_eq!(told["sums"].as_array().unwrap().len(), 60);
            assert_eq!(told["sums"][59].as_array().unwrap().len(), 8);
        }
    }
    let two = as_json(&explanation, Selection { layer: Some(1), head: Some(3) }).unwrap();
    let layers = &two["runs"][0]["attentions"][0]["layers"];
    assert_eq!((layers.as_array().unwrap().len(), &layers[0]["layer"]), (1, &Value::from(1)));
    assert_eq!(layers[0]["heads"][0], all["runs"][0]["attentions"][0]["layers"][1]["heads"][3]);
    let lines = as_csv(&explanation, Selection { layer: Some(1), head: Some(3) }).unwrap();
    let own = &layers[0]["heads"][0]["weights"][59][58];
    let last = lines.lines().rev().nth(1).unwrap();
    let weight = format!("original,Input - Input,1,3,59,\"w59\",58,\"w58\",{:.9},", own.as_f64().unwrap());
    assert!(last.starts_with(&weight), "{last} {weight}");
}

/// As many tokens as words, and no computing.
struct Unused;

impl Subject for Unused {
    fn family(&self) -> &'static str {
        "nothing"
    }

    fn layers(&self) -> usize {
        30
    }

    fn heads(&self) -> usize {
        9
    }

    fn encode(&self, text: &str) -> Result<Vec<u32>> {
        Ok((0..text.split_whitespace().count() as u32).collect())
    }

    fn piece(&self, id: u32) -> String {
        format!("w{id} ")
    }

    fn run(&self, _: &[u32], _: Option<&[u32]>, _: &mut dyn Probe) -> Result<Outcome> {
        Err(conjure::Error::failure("the model runs"))
    }
}

#[test]
fn what_would_be_too_large_is_refused_before_the_model_runs() {
    let words = |count: usize| Request::new("word ".repeat(count));
    let refused = |request: &Request| {
        let error = explain(&Unused, "unused", request).unwrap_err();
        (error.to_string(), error.help().unwrap_or_default().to_owned())
    };
    let runs = ("the model runs".to_owned(), String::new());
    let (all, one) = (Some(Selection::default()), Some(Selection { layer: Some(1), head: Some(2) }));
    assert_eq!(refused(&Request { table: all, drawing: true, ..words(270) }), runs);
    assert_eq!(
        refused(&Request { drawing: true, ..words(301) }).0,
        "a drawing of 301 tokens is too large; at most 300"
    );
    let (message, help) = refused(&Request { table: all, ..words(300) });
    assert_eq!(message, "these are 24300000 weights; at most 20000000 are written");
    assert_eq!(help, "choose one head with --layer and --head, or shorten the text");
    assert_eq!(refused(&Request { table: one, ..words(300) }), runs);
    assert_eq!(refused(&Request { table: one, ..words(5000) }).1, "shorten the text");
    // Each run has its own.
    let compared = Request { table: all, compare: Some("word ".repeat(200)), ..words(200) };
    assert_eq!(refused(&compared).0, "these are 21600000 weights; at most 20000000 are written");
    let changed = Request { table: all, ablate: vec![(0, 0)], ..words(200) };
    assert_eq!(refused(&changed).0, "these are 21600000 weights; at most 20000000 are written");
    assert_eq!(refused(&Request { compare: Some(" ".into()), ..words(3) }).0, "the text is empty");
}

#[test]
fn languages_for_a_model_without_are_refused_before_its_weights_are_read() {
    let folder = tempfile::tempdir().unwrap();
    for kind in ["bert", "clip_text_model", "llama"] {
        std::fs::write(folder.path().join("config.json"), format!("{{\"model_type\": \"{kind}\"}}")).unwrap();
        let error = open_for(folder.path(), None, Some("de")).err().unwrap();
        assert_eq!(error.to_string(), "languages are for translators; this model has one sequence");
    }
    let file = folder.path().join("no.gguf");
    std::fs::write(&file, "no GGUF").unwrap();
    let error = open_for(&file, Some("en"), None).err().unwrap();
    assert_eq!(error.to_string(), "languages are for translators; this model has one sequence");
}

/// What is shown as a translator's output is what it would write: nothing suppressed, no longer than its folder says.
#[test]
fn a_translators_output_is_what_it_translates() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/translate");
    let expected: Value = serde_json::from_slice(&std::fs::read(folder.join("marian.json")).unwrap()).unwrap();
    let (marian, to) = (folder.join("marian"), expected["to"].as_str().unwrap());
    let told = open_for(&marian, None, Some(to)).unwrap();
    let untold = open(&marian).unwrap();
    let ids = |value: &Value| -> Vec<u32> { serde_json::from_value(value.clone()).unwrap() };
    for (n, line) in expected["lines"].as_array().unwrap().iter().enumerate() {
        let line = line.as_str().unwrap();
        let source = told.encode(line).unwrap();
        assert_eq!(source, ids(&expected["sources"][n]));
        assert_eq!(untold.encode(&format!(">>{to}<< {line}")).unwrap(), source);
        let mut greedy = ids(&expected["made"]["greedy"]["ids"][n]);
        greedy.retain(|id| *id != 0);
        for subject in [&told, &untold] {
            let output = subject.run(&source, None, &mut NoProbe).unwrap().output;
            assert_eq!(output[1..], greedy, "{line}");
        }
    }
    assert!(untold.encode("a cat").unwrap_err().help().unwrap().starts_with("name one with --to; the model knows de"));
    // No file says that it knows this source language.
    assert_eq!(open_for(&marian, Some("xx"), Some(to)).unwrap().unheard(), Some("xx"));
    assert_eq!(told.unheard(), None);
    let error = open_for(&emoji(), None, Some("de")).err().unwrap();
    assert_eq!(error.to_string(), "languages are for translators; this model has one sequence");
}
