//! How far the work is: a bar in a terminal, now and then a line elsewhere. Always on stderr.

use crate::report;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

/// A line at most this often where there is no terminal: a log stays readable.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// Shows steps, seconds per step and the time left.
pub struct Progress {
    bar: Option<ProgressBar>,
    began: Instant,
    line_at: Option<Instant>,
    position: (u64, u64),
}

impl Progress {
    /// Steps of making a picture. Begins to count time now.
    pub fn new() -> Self {
        Self::with_template("{bar:40} step {pos}/{len}  {msg}")
    }

    /// Updates of a training run.
    pub fn updates() -> Self {
        Self::with_template("{bar:20} update {pos}/{len}  {wide_msg}")
    }

    fn with_template(template: &str) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style);
            }
            bar
        });
        Self { bar, began: Instant::now(), line_at: None, position: (0, 0) }
    }

    /// Update `step` of `steps` is made: moves the bar, and is no news elsewhere.
    pub fn at(&mut self, step: u64, steps: u64) {
        self.position = (step, steps);
        if let Some(bar) = &self.bar {
            bar.set_length(steps);
            bar.set_position(step);
        }
    }

    /// Says how the updates go: beside the bar, or in a line.
    pub fn update(&self, how: &str) {
        let (step, steps) = self.position;
        match &self.bar {
            Some(bar) => bar.set_message(how.to_owned()),
            None => report::note(&format!("update {step}/{steps}  {how}")),
        }
    }

    /// `step` of `steps` is done; `step` 0 begins the count anew.
    pub fn step(&mut self, step: usize, steps: usize) {
        if step == 0 {
            self.began = Instant::now();
        }
        let timing = timing(step, steps, self.began.elapsed());
        if let Some(bar) = &self.bar {
            bar.set_length(steps as u64);
            bar.set_position(step as u64);
            bar.set_message(timing);
            return;
        }
        let due = self.line_at.is_none_or(|at| at.elapsed() >= LINE_EVERY) || step == steps;
        if step > 0 && due {
            self.line_at = Some(Instant::now());
            report::note(&format!("step {step}/{steps}  {timing}"));
        }
    }

    /// Says what is being done beside the steps.
    pub fn doing(&self, what: &str) {
        match &self.bar {
            Some(bar) => bar.set_message(what.to_owned()),
            None => report::note(what),
        }
    }

    /// Prints something while the bar is out of the way.
    pub fn suspend(&self, print: impl FnOnce()) {
        match &self.bar {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }

    /// Takes the bar away.
    pub fn finish(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }
}

fn timing(step: usize, steps: usize, elapsed: Duration) -> String {
    if step == 0 {
        return String::new();
    }
    let each = elapsed.as_secs_f64() / step as f64;
    let left = each * steps.saturating_sub(step) as f64;
    format!("{each:.2} s/step  {} left", duration(left))
}

fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    if whole < 60 { format!("{whole} s") } else { format!("{} min {:02} s", whole / 60, whole % 60) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_left_is_the_mean_step_times_the_steps_to_come() {
        assert_eq!(timing(0, 10, Duration::from_secs(1)), "");
        assert_eq!(timing(4, 10, Duration::from_secs(6)), "1.50 s/step  9 s left");
        assert_eq!(timing(1, 50, Duration::from_secs(10)), "10.00 s/step  8 min 10 s left");
        assert_eq!(timing(10, 10, Duration::from_secs(5)), "0.50 s/step  0 s left");
    }
}
