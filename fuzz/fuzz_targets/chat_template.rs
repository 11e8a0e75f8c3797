#![no_main]

#[path = "../bodies/text_tokenizers.rs"]
#[allow(dead_code)]
mod text_tokenizers;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    text_tokenizers::chat_template(data);
});
