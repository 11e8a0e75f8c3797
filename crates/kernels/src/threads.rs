//! How many threads kernels use.

use rayon::prelude::*;
use std::cell::RefCell;
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

thread_local! {
    /// The threads that this thread computes on, where those are not everybody's.
    static SHARE: RefCell<Option<Arc<rayon::ThreadPool>>> = const { RefCell::new(None) };
}

/// The threads in equal shares, for tasks that run at the same time: many small kernels keep a core busier each on a core of
/// their own than one after the other on all.
pub struct Shares {
    tasks: rayon::ThreadPool,
    shares: Vec<Arc<rayon::ThreadPool>>,
}

impl Shares {
    /// `tasks` shares, at most one for each thread there is now and at least one.
    ///
    /// # Errors
    /// The system refuses to start threads.
    pub fn new(tasks: usize) -> Result<Self, rayon::ThreadPoolBuildError> {
        let tasks = tasks.clamp(1, count());
        let each = count() / tasks;
        let pool = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        let shares = (0..tasks).map(|_| pool(each).map(Arc::new)).collect::<Result<_, _>>()?;
        Ok(Self { tasks: pool(tasks)?, shares })
    }

    /// How many shares there are.
    pub fn count(&self) -> usize {
        self.shares.len()
    }

    /// Runs `task(0)` to `task(count - 1)` at the same time, each with the kernels that it starts on a share of its own, and
    /// gives what they return in this order.
    ///
    /// # Panics
    /// Where a task does.
    pub fn run<T: Send>(&self, task: impl Fn(usize) -> T + Sync) -> Vec<T> {
        /// Also restores after a panic.
        struct Restore(Option<Arc<rayon::ThreadPool>>);
        impl Drop for Restore {
            fn drop(&mut self) {
                SHARE.set(self.0.take());
            }
        }
        self.tasks.broadcast(|context| {
            let _restore = Restore(SHARE.replace(Some(self.shares[context.index()].clone())));
            task(context.index())
        })
    }
}

fn current() -> Option<Arc<rayon::ThreadPool>> {
    if let Some(share) = SHARE.with_borrow(Clone::clone) {
        return Some(share);
    }
    POOL.read().unwrap_or_else(PoisonError::into_inner).clone()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_run_every_task_and_compute_the_same() {
        let shares = Shares::new(2).unwrap();
        let sums = shares.run(|task| {
            assert_eq!(count(), shares.shares[task].current_num_threads());
            let mut out = vec![0_usize; 1000];
            run_chunks(&mut out, 7, |index, piece| piece.fill(index + task));
            out.iter().sum::<usize>()
        });
        assert_eq!(sums.len(), shares.count());
        let whole: usize = (0..1000).map(|i| i / 7).sum();
        for (task, sum) in sums.into_iter().enumerate() {
            assert_eq!(sum, whole + 1000 * task);
        }
    }

    #[test]
    fn a_share_is_given_back_after_a_panic() {
        let shares = Shares::new(1).unwrap();
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| shares.run(|_| panic!("expected"))));
        assert!(outcome.is_err());
        let held = shares.run(|_| SHARE.with_borrow(|share| share.as_ref().map(|share| Arc::as_ptr(share).addr())));
        assert_eq!(held, [Some(Arc::as_ptr(&shares.shares[0]).addr())]);
    }
}
