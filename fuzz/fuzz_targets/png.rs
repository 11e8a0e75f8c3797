#![no_main]

#[path = "../bodies/words_and_pictures.rs"]
#[allow(dead_code)]
mod words_and_pictures;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    words_and_pictures::png(data);
});
