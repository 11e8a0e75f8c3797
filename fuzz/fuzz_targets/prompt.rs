#![no_main]

#[path = "../bodies/words_and_pictures.rs"]
#[allow(dead_code)]
mod words_and_pictures;

use conjure::tokens::ClipTokenizer;
use std::sync::LazyLock;

static TOKENIZER: LazyLock<ClipTokenizer> = LazyLock::new(ClipTokenizer::tiny);

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    words_and_pictures::prompt(&TOKENIZER, data);
});
