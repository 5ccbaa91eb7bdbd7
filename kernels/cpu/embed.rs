//! embed: rows gathered by index.

use super::Pool;
use super::dense::DenseMatrix;
use super::shared::SharedMut;

/// Marks a token that is not a placeholder in the visual index.
pub const NO_VISUAL_ROW: u32 = u32::MAX;

/// `out[i] = table[tokens[i]]`, or `visual[visual_index[i]]` where that is not [`NO_VISUAL_ROW`].
///
/// # Panics
/// If an index is out of range or the shapes do not match.
pub fn embed(
    pool: &mut Pool,
    table: &DenseMatrix,
    tokens: &[u32],
    visual: &[f32],
    visual_index: &[u32],
    out: &mut [f32],
) {
    let cols = table.k();
    assert!(tokens.len() == visual_index.len() && out.len() == tokens.len() * cols);
    let shared = SharedMut::new(out);
    pool.run(tokens.len(), |i, _| {
        // SAFETY: one task for each row.
        let out = unsafe { shared.part(i * cols..(i + 1) * cols) };
        match visual_index[i] {
            NO_VISUAL_ROW => table.row_to_f32(tokens[i] as usize, out),
            row => out.copy_from_slice(&visual[row as usize * cols..][..cols]),
        }
    });
}

/// `out[i] = x[rows[i]]`, rows of `cols` columns.
///
/// # Panics
/// If an index is out of range or the shapes do not match.
pub fn select_rows(x: &[f32], cols: usize, rows: &[u32], out: &mut [f32]) {
    assert_eq!(out.len(), rows.len() * cols);
    for (out, &row) in out.chunks_exact_mut(cols).zip(rows) {
        out.copy_from_slice(&x[row as usize * cols..][..cols]);
    }
}
