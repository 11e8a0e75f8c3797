//! Which examples come when.

use conjure_core::rng::{self, Generator};

/// Passes over all examples, each in an order of its own that depends on seed and pass alone.
pub struct Order {
    seed: u64,
    examples: usize,
    pass: Option<(u64, Vec<usize>)>,
}

impl Order {
    /// An order of `examples` examples, at least one.
    pub fn new(seed: u64, examples: usize) -> Self {
        Self { seed, examples, pass: None }
    }

    /// The examples from position `start` of the endless sequence of passes.
    pub fn take(&mut self, start: u64, count: usize) -> Vec<usize> {
        (start..start + count as u64).map(|position| self.at(position)).collect()
    }

    fn at(&mut self, position: u64) -> usize {
        let pass = position / self.examples as u64;
        if self.pass.as_ref().is_none_or(|(number, _)| *number != pass) {
            self.pass = Some((pass, shuffled(self.seed, pass, self.examples)));
        }
        self.pass.as_ref().map_or(0, |(_, order)| order[(position % self.examples as u64) as usize])
    }
}

/// Fisher and Yates' shuffle of `0..n`.
fn shuffled(seed: u64, pass: u64, n: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..n).collect();
    let draws = rng::keyed(seed, &format!("order of pass {pass}")).uniform(n);
    for (i, draw) in (1..n).rev().zip(draws) {
        order.swap(i, ((f64::from(draw) * (i + 1) as f64) as usize).min(i));
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pass_holds_every_example_once_and_passes_differ() {
        let mut order = Order::new(5, 100);
        let passes: Vec<Vec<usize>> = (0..3).map(|pass| order.take(pass * 100, 100)).collect();
        for pass in &passes {
            let mut sorted = pass.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..100).collect::<Vec<_>>());
        }
        assert_ne!(passes[0], passes[1]);
        assert_ne!(passes[1], passes[2]);
        assert_ne!(Order::new(6, 100).take(0, 100), passes[0]);
    }

    #[test]
    fn any_position_can_be_taken_up() {
        let all = Order::new(5, 7).take(0, 50);
        assert_eq!(Order::new(5, 7).take(23, 20), all[23..43]);
        assert_eq!(Order::new(5, 1).take(9, 3), [0, 0, 0]);
    }

    /// Each example is first about as often as any other: 600 passes over 6, expected 100 each, deviation 9.
    #[test]
    fn the_shuffle_is_fair() {
        let mut counts = [0; 6];
        for pass in 0..600 {
            counts[shuffled(1, pass, 6)[0]] += 1;
        }
        assert!(counts.iter().all(|count| (60..140).contains(count)), "{counts:?}");
    }
}
