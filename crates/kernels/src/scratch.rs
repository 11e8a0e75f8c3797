//! Working memory of a task.

/// Zeroed floats that start on a cache line, so that no aligned vector crosses one.
pub(crate) struct Scratch {
    memory: Vec<f32>,
    first: usize,
    len: usize,
}

impl Scratch {
    /// `len` zeros.
    pub(crate) fn new(len: usize) -> Self {
        const LINE: usize = 64;
        let memory = vec![0.0; len + LINE / size_of::<f32>()];
        let first = memory.as_ptr().align_offset(LINE).min(LINE / size_of::<f32>());
        Self { memory, first, len }
    }
}

impl std::ops::Deref for Scratch {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        &self.memory[self.first..][..self.len]
    }
}

impl std::ops::DerefMut for Scratch {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.memory[self.first..][..self.len]
    }
}
