#![no_main]

#[path = "../bodies/training_files.rs"]
#[allow(dead_code)]
mod training_files;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    training_files::translations(data);
});
