//! Rows of a table.

use crate::threads;

/// `out` = the rows `ids` of `table`, each of `features` elements.
///
/// # Panics
/// An id is beyond the table, or the lengths do not fit.
pub fn gather(table: &[f32], ids: &[u32], features: usize, out: &mut [f32]) {
    assert_eq!(out.len(), ids.len() * features);
    if out.is_empty() {
        return;
    }
    let rows = (16_384 / features).max(1);
    threads::run_chunks(out, rows * features, |task, piece| {
        for (out, id) in piece.chunks_exact_mut(features).zip(&ids[task * rows..]) {
            out.copy_from_slice(&table[*id as usize * features..][..features]);
        }
    });
}

/// Adds each row of `dy` to the row of `d_table` that its id names: the gradient of [`gather`], into zeros.
///
/// Tasks own ranges of the table and look at all ids, so rows are added in the order of the ids.
///
/// # Panics
/// An id is beyond the table, or the lengths do not fit.
pub fn scatter_add(dy: &[f32], ids: &[u32], features: usize, d_table: &mut [f32]) {
    assert_eq!(dy.len(), ids.len() * features);
    if d_table.is_empty() {
        assert!(ids.is_empty() || features == 0, "ids into an empty table");
        return;
    }
    let vocabulary = d_table.len() / features;
    assert!(ids.iter().all(|id| (*id as usize) < vocabulary), "an id is beyond the table of {vocabulary}");
    let rows = vocabulary.div_ceil(16);
    threads::run_chunks(d_table, rows * features, |task, piece| {
        let owned = task * rows..task * rows + piece.len() / features;
        for (row, id) in dy.chunks_exact(features).zip(ids) {
            if owned.contains(&(*id as usize)) {
                let to = &mut piece[(*id as usize - owned.start) * features..][..features];
                for (to, x) in to.iter_mut().zip(row) {
                    *to += x;
                }
            }
        }
    });
}
