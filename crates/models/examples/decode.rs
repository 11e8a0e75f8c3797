//! How fast a decoder reads and writes: `decode MODEL.gguf [PROMPT TOKENS] [NEW TOKENS] [THREADS]`,
//! with a cache of floats and with one of 16 bits.

use conjure_core::blocks::KeptAs;
use conjure_core::probe::NoProbe;
use conjure_core::weights::{self, Params};
use conjure_core::{DType, Device, Error, Result, Tensor};
use conjure_models::decoder::{self, Decoder, DecoderConfig};
use std::time::Instant;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[allow(clippy::print_stdout)]
fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or_else(|| Error::request("no model is named"))?;
    let mut number = |default: usize| arguments.next().and_then(|n| n.parse().ok()).unwrap_or(default);
    let (prompt, new, threads) = (number(512), number(64), number(2));
    conjure_kernels::threads::set_count(threads).map_err(|error| Error::failure(error.to_string()))?;
    let start = Instant::now();
    let source = weights::open(&path)?;
    let config = DecoderConfig::from_gguf(&*source)?;
    let params = Params::load(decoder::canonical(source, &config)?, DType::F32, &Device::Cpu);
    let model = Decoder::new(&params, &config)?;
    println!("open {:.0} ms", start.elapsed().as_secs_f64() * 1e3);
    for kept in [KeptAs::Given, KeptAs::Half, KeptAs::EightBits, KeptAs::Given, KeptAs::Half, KeptAs::EightBits] {
        let ids: Vec<u32> = (0..prompt as u32).map(|n| 100 + n * 37 % 1000).collect();
        let mut cache = model.new_cache(prompt + new).keeping(kept);
        let start = Instant::now();
        let mut logits =
            model.forward_last(&Tensor::from_vec(ids, (1, prompt), &Device::Cpu)?, Some(&mut cache), &mut NoProbe)?;
        println!("read {prompt} tokens: {:.1} tokens/s", prompt as f64 / start.elapsed().as_secs_f64());
        let start = Instant::now();
        for _ in 0..new {
            let next = logits.argmax(1)?.reshape((1, 1))?; // (1, 1)
            logits = model.forward_last(&next, Some(&mut cache), &mut NoProbe)?;
        }
        let speed = new as f64 / start.elapsed().as_secs_f64();
        println!("write {new} tokens: {speed:.1} tokens/s; cache {kept:?} of {} kB", cache.bytes() / 1000);
    }
    Ok(())
}
