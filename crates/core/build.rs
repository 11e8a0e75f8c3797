//! Compiles the kernels for NVIDIA GPUs, in builds with the feature `cuda`.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    #[cfg(feature = "cuda")]
    cuda();
}

#[cfg(feature = "cuda")]
fn cuda() {
    println!("cargo::rerun-if-changed=src/cuda/kernels.cu");
    let built = cudaforge::KernelBuilder::new().source_files(["src/cuda/kernels.cu"]).arg("-O3").build_ptx();
    if let Err(error) = built {
        println!("cargo::error=src/cuda/kernels.cu: {error}");
    }
}
