//! How many threads the library works with.

use crate::{Error, Result};

/// Most threads that can be asked for: beyond any machine's cores they only wait for each other.
const MAX: usize = 1024;

/// Sets the number of threads for everything: kernels, and the tensor library's own operations. Call it once, before any
/// work.
///
/// # Errors
/// 0 or more than 1024 threads; the system refuses to start them; work has begun already.
pub fn set_threads(count: usize) -> Result<()> {
    if !(1..=MAX).contains(&count) {
        return Err(Error::request(format!("threads {count} is outside 1 to {MAX}"))
            .with_help("leave it out to use every core"));
    }
    let refused = |e: rayon::ThreadPoolBuildError| Error::failure(format!("cannot start {count} threads: {e}"));
    rayon::ThreadPoolBuilder::new().num_threads(count).build_global().map_err(refused)
}
