//! How many threads kernels use.

use rayon::prelude::*;
use std::sync::{Arc, PoisonError, RwLock};

static POOL: RwLock<Option<Arc<rayon::ThreadPool>>> = RwLock::new(None);

/// Sets the number of threads; 0 means one per available core.
///
/// # Errors
/// The system refuses to start that many threads.
pub fn set_count(count: usize) -> Result<(), rayon::ThreadPoolBuildError> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(count).build()?;
    *POOL.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(pool));
    Ok(())
}

/// The number of threads in use.
pub fn count() -> usize {
    current().map_or_else(rayon::current_num_threads, |pool| pool.current_num_threads())
}

/// Runs `task(0)` to `task(tasks - 1)`, in any order, on the threads.
pub fn run(tasks: usize, task: impl Fn(usize) + Sync + Send) {
    if tasks <= 1 || count() == 1 {
        (0..tasks).for_each(task);
        return;
    }
    let all = || (0..tasks).into_par_iter().with_max_len(1).for_each(&task);
    match current() {
        Some(pool) => pool.install(all),
        None => all(),
    }
}

/// Splits `out` into pieces of `chunk` elements and runs `task(index, piece)` for each on the threads.
pub fn run_chunks<T: Send>(out: &mut [T], chunk: usize, task: impl Fn(usize, &mut [T]) + Sync + Send) {
    if out.len() <= chunk || count() == 1 {
        out.chunks_mut(chunk).enumerate().for_each(|(i, piece)| task(i, piece));
        return;
    }
    let mut all = || out.par_chunks_mut(chunk).enumerate().with_max_len(1).for_each(|(i, piece)| task(i, piece));
    match current() {
        Some(pool) => pool.install(all),
        None => all(),
    }
}

fn current() -> Option<Arc<rayon::ThreadPool>> {
    POOL.read().unwrap_or_else(PoisonError::into_inner).clone()
}
