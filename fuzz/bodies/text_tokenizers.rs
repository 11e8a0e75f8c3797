//! Bodies of the fuzz targets for language models' tokenizers and chat templates, shared with `crates/conjure/tests`: what
//! strangers wrote is refused with an error or can be used. A panic, an endless loop or unbounded memory is a bug.

use conjure::tokens::{ChatTemplate, Date, Message, SentencePiece, Tokenizer};

const TEXT: &str = "A lighthouse,  café e\u{301} 夜 <s></s><sep>\n\n<|im_end|> [MASK] 1,024 ﬁ ½🐱 aaaa";

/// A SentencePiece model; whether it could be opened.
pub fn sentencepiece(data: &[u8]) -> bool {
    match SentencePiece::from_bytes(data, "fuzzed.model") {
        Ok(model) => {
            let ids = model.encode(TEXT);
            assert!(ids.iter().all(|id| (*id as usize) < model.pieces().len()));
            let _ = (model.decode(&ids), model.encode_as_pieces(TEXT));
            use_all(&Tokenizer::from_sentencepiece(model));
            true
        }
        Err(error) => {
            assert!(!error.to_string().is_empty() && error.help().is_some());
            false
        }
    }
}

/// A `tokenizer.json`; whether it could be opened.
pub fn tokenizer_json(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    match Tokenizer::from_json(text, "fuzzed.json") {
        Ok(tokenizer) => {
            use_all(&tokenizer);
            true
        }
        Err(error) => {
            assert!(!error.to_string().is_empty() && error.help().is_some());
            false
        }
    }
}

/// A chat template; whether it renders.
pub fn chat_template(data: &[u8]) -> bool {
    let Ok(source) = std::str::from_utf8(data) else { return false };
    let marks = [("bos_token", "<s>"), ("eos_token", "</s>")];
    let Ok(template) = ChatTemplate::new(source, &marks) else { return false };
    let messages = ["system", "user", "assistant", "user"].map(|role| Message::new(role, "Hello  <b>夜</b>\n"));
    template.with_date(Date { year: 2026, month: 2, day: 3 }).render(&messages, true).is_ok()
}

fn use_all(tokenizer: &Tokenizer) {
    // A vocabulary need not spell every text.
    if let Ok(ids) = tokenizer.encode(TEXT, true) {
        assert!(ids.iter().all(|id| (*id as usize) < tokenizer.vocabulary_size()));
        for skip in [false, true] {
            let _ = tokenizer.decode(&ids, skip);
            let mut stream = tokenizer.stream(skip);
            for id in &ids {
                let _ = stream.push(*id);
            }
            let _ = stream.finish();
        }
        for id in ids.iter().take(8).chain([&u32::MAX]) {
            let _ = (tokenizer.token_text(*id), tokenizer.is_special(*id));
        }
    }
}
