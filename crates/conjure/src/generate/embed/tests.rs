use super::*;
use crate::model_folder::TRANSFORMERS_FILE;
use serde_json::json;

const WORDS: [&str; 12] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "cat", "dog", "sat", "on", "mat", "##s", "the"];

/// A random encoder of 12 words that reads 10 tokens, as sentence-transformers saves it.
fn folder(normalise: bool) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let config = EncoderConfig {
        vocab_size: WORDS.len(),
        hidden_size: 8,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        intermediate_size: 12,
        max_position_embeddings: 16,
        ..EncoderConfig::default()
    };
    let params = Params::seeded(1, DType::F32, &Device::Cpu).trainable();
    Encoder::new(&params, &config).unwrap();
    // Ten times the usual size, so that words and their order tell.
    let tensors = params.variables().into_iter().map(|(name, var)| {
        let large = name.contains("embeddings.") && name.ends_with("embeddings.weight");
        (name, (var.as_detached_tensor() * if large { 10.0 } else { 1.0 }).unwrap())
    });
    model_folder::write(folder.path(), TRANSFORMERS_FILE, &config, None, &tensors.collect()).unwrap();
    let write = |name: &str, value: serde_json::Value| {
        std::fs::write(folder.path().join(name), value.to_string()).unwrap();
    };
    let mark = |id: usize| {
        json!({"id": id, "content": WORDS[id], "special": true, "single_word": false,
        "lstrip": false, "rstrip": false, "normalized": false})
    };
    let vocabulary: serde_json::Map<_, _> =
        WORDS.iter().enumerate().map(|(id, w)| ((*w).to_owned(), json!(id))).collect();
    let special = |id: usize| json!({"id": WORDS[id], "ids": [id], "tokens": [WORDS[id]]});
    let template = json!([{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
        {"SpecialToken": {"id": "[SEP]", "type_id": 0}}]);
    write(
        "tokenizer.json",
        json!({
            "version": "1.0",
            // As published files have it: what is to be padded and cut is not the tokenizer's business here.
            "truncation": {"max_length": 5, "strategy": "LongestFirst", "stride": 0},
            "padding": {"strategy": {"Fixed": 5}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0,
                "pad_type_id": 0, "pad_token": "[PAD]"},
            "added_tokens": (0..4).map(mark).collect::<Vec<_>>(),
            "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
                "strip_accents": null, "lowercase": true},
            "pre_tokenizer": {"type": "BertPreTokenizer"},
            "post_processor": {"type": "TemplateProcessing", "single": template, "pair": template,
                "special_tokens": {"[CLS]": special(2), "[SEP]": special(3)}},
            "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
            "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                "max_input_chars_per_word": 100, "vocab": vocabulary},
        }),
    );
    let mut modules = vec![
        json!({"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}),
        json!({"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}),
    ];
    if normalise {
        modules.push(
            json!({"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"}),
        );
    }
    write("modules.json", json!(modules));
    std::fs::create_dir(folder.path().join("1_Pooling")).unwrap();
    write("1_Pooling/config.json", json!({"pooling_mode_mean_tokens": true, "pooling_mode_cls_token": false}));
    write("sentence_bert_config.json", json!({"max_seq_length": 10, "do_lower_case": false}));
    folder
}

fn difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn a_batch_gives_each_text_the_vector_that_it_has_alone() {
    let folder = folder(true);
    let encoder = SentenceEncoder::open(folder.path()).unwrap();
    assert_eq!((encoder.dimension(), encoder.max_tokens()), (8, 10));
    let mut texts = vec!["the cats sat on a mat", "a dog", "", "cats on the dog", "Dog", "zebra  "];
    // More than one batch.
    texts.extend(std::iter::repeat_n("a cat on a cat", 70));
    let all = encoder.embed(&texts).unwrap();
    assert_eq!((all.vectors.len(), all.cut.len()), (76, 0));
    for (text, vector) in texts.iter().zip(&all.vectors).take(8) {
        let alone = &encoder.embed(&[text]).unwrap().vectors[0];
        assert!(difference(alone, vector) < 1e-5, "{text}");
        assert!((vector.iter().map(|v| v * v).sum::<f32>() - 1.0).abs() < 1e-5);
    }
    assert!(difference(&all.vectors[0], &all.vectors[3]) > 1e-2, "texts tell");
    assert!(encoder.embed::<&str>(&[]).unwrap().vectors.is_empty());
}

#[test]
fn long_texts_are_cut_and_it_is_said() {
    let folder = folder(false);
    let encoder = SentenceEncoder::open(folder.path()).unwrap();
    let eight = "the cats sat on a mat a";
    let texts = [eight.to_owned(), format!("{eight} dog dog dog"), "a".to_owned()];
    let all = encoder.embed(&texts).unwrap();
    assert_eq!(all.cut, [Cut { text: 1, tokens: 13, read: 10 }]);
    assert!(difference(&all.vectors[0], &all.vectors[1]) < 1e-6);
    let lengths: Vec<f32> = all.vectors.iter().map(|v| v.iter().map(|v| v * v).sum::<f32>()).collect();
    assert!(lengths.iter().any(|length| (length - 1.0).abs() > 1e-2), "not normalised: {lengths:?}");
}

#[test]
fn work_stops_on_request() {
    let folder = folder(true);
    let encoder = SentenceEncoder::open(folder.path()).unwrap();
    let mut asked = Vec::new();
    let stopped = encoder.embed_while(&["a cat"; 200], &mut |done, all| {
        asked.push((done, all));
        asked.len() < 2
    });
    assert!(matches!(stopped, Err(Error::Cancelled)));
    assert_eq!(asked, [(64, 200), (128, 200)]);
}

#[test]
fn folders_that_do_not_fit_together_are_refused() {
    let change = |name: &str, from: &str, to: &str| {
        let folder = folder(true);
        let path = folder.path().join(name);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{text}");
        std::fs::write(&path, text.replace(from, to)).unwrap();
        SentenceEncoder::open(folder.path()).unwrap_err()
    };
    let error = change("config.json", "\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3");
    assert!(error.to_string().contains("the weights do not fit the model"), "{error}");
    assert!(!error.to_string().contains("pooler"), "{error}");
    let error = change("config.json", "\"bert\"", "\"gpt2\"");
    assert!(
        error.to_string().ends_with("config.json: model_type is \"gpt2\", which is no encoder that is known"),
        "{error}"
    );
    let error = change("sentence_bert_config.json", "10", "2");
    assert!(error.to_string().contains("the model reads 2 tokens, which the 2 marks"), "{error}");
    let error = change("tokenizer.json", "\"the\":11", "\"the\":12");
    assert!(error.to_string().contains("the tokenizer has 13 tokens, the encoder knows 12"), "{error}");
    let nothing = tempfile::tempdir().unwrap();
    let error = SentenceEncoder::open(nothing.path()).unwrap_err();
    assert!(error.to_string().ends_with("config.json: not found") && error.help().is_some(), "{error}");
}
