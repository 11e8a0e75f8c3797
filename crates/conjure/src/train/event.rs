//! What a run tells while it goes.

use std::path::PathBuf;

/// Whether to go on after an [`Event`].
pub use crate::generate::image::Control;

/// What happens during a run.
#[derive(Clone, Debug)]
pub enum Event {
    /// An update was made.
    Update {
        /// Updates made.
        step: u64,
        /// Updates of the whole run.
        steps: u64,
    },
    /// Something is being done beside the updates, for people.
    Stage(String),
    /// A stretch of updates is done.
    Progress {
        /// Updates made.
        step: u64,
        /// Updates of the whole run.
        steps: u64,
        /// Averages over the stretch: losses by network, and the objective's own figures.
        figures: Vec<(String, f64)>,
        /// Learning rate of the last update.
        learning_rate: f64,
        /// Norm of the first network's gradient in the last update, before clipping.
        gradient_norm: f64,
        /// Examples per second over the stretch, validations and samples left out.
        rate: f64,
        /// Seconds that the rest will take at that rate.
        left: f64,
    },
    /// Figures on held-out data.
    Validation {
        /// Updates made.
        step: u64,
        /// The figures.
        figures: Vec<(String, f64)>,
    },
    /// A file was written.
    Wrote(PathBuf),
    /// Something failed that the run survives.
    Warning(String),
}

/// Who is told, and whether they asked to stop.
pub(super) struct Listener<'a> {
    on_event: &'a mut dyn FnMut(Event) -> Control,
    pub stop: bool,
}

impl<'a> Listener<'a> {
    pub fn new(on_event: &'a mut dyn FnMut(Event) -> Control) -> Self {
        Self { on_event, stop: false }
    }

    pub fn tell(&mut self, event: Event) {
        self.stop |= (self.on_event)(event) == Control::Stop;
    }

    /// Passes on a file that was written, or a warning that it was not: the run goes on.
    pub fn survive(&mut self, written: crate::Result<Option<PathBuf>>) {
        match written {
            Ok(None) => {}
            Ok(Some(path)) => self.tell(Event::Wrote(path)),
            Err(error) => self.tell(Event::Warning(format!("{error}; the run goes on"))),
        }
    }
}
