//! embed: rows gathered by index.

use super::Pool;
use super::dense::DenseMatrix;

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
    pool.run_on_chunks(out, cols, 16, |first, out| {
        for (i, out) in out.chunks_exact_mut(cols).enumerate() {
            match visual_index[first + i] {
                NO_VISUAL_ROW => table.row_to_f32(tokens[first + i] as usize, out),
                row => out.copy_from_slice(&visual[row as usize * cols..][..cols]),
            }
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
