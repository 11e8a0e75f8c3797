//! A few for many.

/// `count` of `all`, or all of them if there are fewer, evenly spread over the whole list.
pub fn spread<T>(all: &[T], count: usize) -> impl ExactSizeIterator<Item = &T> {
    let count = count.min(all.len());
    (0..count).map(move |i| &all[i * all.len() / count])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_is_spread_evenly() {
        let all: Vec<usize> = (0..10).collect();
        let taken = |count| spread(&all, count).copied().collect::<Vec<_>>();
        assert_eq!(taken(4), [0, 2, 5, 7]);
        assert_eq!(taken(10), all);
        assert_eq!(taken(99), all);
        assert!(taken(0).is_empty());
        assert_eq!(spread(&[0; 0], 3).len(), 0);
    }
}
