//! The smallest language model: the real architecture at toy size, with random weights and a tokenizer of bytes. It is for
//! tests and for trying things out; what it says is noise.

use crate::image_file::write_atomically;
use crate::model_folder::{self, TRANSFORMERS_FILE};
use crate::tokens::clip_tokenizer::byte_symbols;
use conjure_core::weights::Params;
use conjure_core::{DType, Device, Error, Result, Tensor};
use conjure_models::decoder::{Decoder, DecoderConfig};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// Pairs of symbols that are one token; `Ġ` is a space.
const MERGES: [(&str, &str); 10] = [
    ("h", "e"),
    ("t", "he"),
    ("Ġ", "the"),
    ("i", "n"),
    ("Ġ", "a"),
    ("e", "r"),
    ("o", "n"),
    ("Ġa", "n"),
    ("Ġan", "d"),
    ("Ġ", "t"),
];
/// Tokens that are no text.
const MARKS: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];
/// As SmolLM2 writes conversations.
const CHAT_TEMPLATE: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + \
                             message['content'] + '<|im_end|>' + '\n' }}{% endfor %}\
                             {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// Writes an untrained decoder as a folder that transformers opens as a `LlamaForCausalLM`.
///
/// # Errors
/// `folder` exists and is not empty; it cannot be written.
pub fn save_tiny(folder: &Path, seed: u64) -> Result<()> {
    if folder.exists() && std::fs::read_dir(folder).map_err(|e| Error::io(folder, e))?.next().is_some() {
        return Err(Error::file(folder, "exists and is not empty").with_help("name a folder that does not exist yet"));
    }
    let first_mark = 256 + MERGES.len();
    let config = json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": first_mark + MARKS.len(),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "attention_bias": false,
        "mlp_bias": false,
        "tie_word_embeddings": true,
        "bos_token_id": first_mark,
        "eos_token_id": first_mark + 2,
    });
    let params = Params::seeded(seed, DType::F32, &Device::Cpu).trainable();
    Decoder::new(&params, &DecoderConfig::from_json(&config.to_string())?)?;
    let tensors: BTreeMap<String, Tensor> =
        params.variables().into_iter().map(|(name, var)| (name, var.as_tensor().detach())).collect();
    model_folder::write(folder, TRANSFORMERS_FILE, &config, None, &tensors)?;
    let settings = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": MARKS[0],
        "eos_token": MARKS[2],
        "model_max_length": 256,
        "chat_template": CHAT_TEMPLATE,
    });
    for (name, value) in [("tokenizer.json", tokenizer()), ("tokenizer_config.json", settings)] {
        write_atomically(&folder.join(name), |file| writeln!(file, "{value:#}"))?;
    }
    Ok(())
}

/// A byte-pair tokenizer in the format of the `tokenizers` library.
fn tokenizer() -> Value {
    let mut vocabulary: Vec<String> = byte_symbols().into_iter().map(String::from).collect();
    vocabulary.extend(MERGES.iter().map(|(a, b)| format!("{a}{b}")));
    let ids: BTreeMap<&String, usize> = vocabulary.iter().enumerate().map(|(id, token)| (token, id)).collect();
    let marks: Vec<Value> = (vocabulary.len()..)
        .zip(MARKS)
        .map(|(id, mark)| {
            json!({
                "id": id, "content": mark, "special": true,
                "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            })
        })
        .collect();
    let bytes = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true });
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": marks,
        "normalizer": null,
        "pre_tokenizer": bytes,
        "post_processor": null,
        "decoder": bytes,
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": null,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": false,
            "byte_fallback": false,
            "ignore_merges": false,
            "vocab": ids,
            "merges": MERGES.map(|(a, b)| [a, b]),
        },
    })
}
