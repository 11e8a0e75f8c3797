#![no_main]

#[path = "../bodies/weights.rs"]
#[allow(dead_code)]
mod weights;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    weights::lora(data);
});
