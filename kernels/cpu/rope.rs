//! rope: rotary embeddings, half-split pairs (j, j + head_dim/2).
//!
//! math    angle_j = position · theta^(−2j/d) in f32 as the reference forms it, then cosine and sine of
//!         that angle to f32; (a, b) → (a·cos − b·sin, b·cos + a·sin).
//! bytes   reads and writes the rotated elements once; fused into the epilogue of qkv in plans.

use qwenvl_graph::op::MRope;

use super::Pool;

/// Cosines and sines of every row: `[rows, head_dim/2]` of each. Buffers are kept between calls.
#[derive(Default)]
pub struct RopeTable {
    half: usize,
    rows: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
    frequencies: Vec<f32>,
}

impl RopeTable {
    /// A table with room for `rows` rows, so that filling it allocates nothing.
    pub fn with_capacity(rows: usize, head_dim: usize) -> RopeTable {
        let len = rows * head_dim / 2;
        RopeTable {
            half: head_dim / 2,
            rows: 0,
            cos: Vec::with_capacity(len),
            sin: Vec::with_capacity(len),
            frequencies: Vec::with_capacity(head_dim / 2),
        }
    }

    /// `(cos, sin)` of `position · theta^(−2j / (2·columns))`, `[positions, columns, 2]`: what kernels on a
    /// GPU look up.
    pub fn by_position(columns: usize, theta: f64, positions: u32) -> Vec<f32> {
        let mut each = Vec::with_capacity(columns);
        frequencies(&mut each, columns, theta);
        let mut out = Vec::with_capacity(positions as usize * columns * 2);
        for position in 0..positions {
            for f in &each {
                let (s, c) = f64::from(position as f32 * f).sin_cos();
                out.extend([c as f32, s as f32]);
            }
        }
        out
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Fills the table for the decoder: row `i` at `positions[i]` = (t, h, w).
    pub fn fill_mrope(&mut self, rope: &MRope, positions: &[[u32; 3]]) {
        let half = rope.head_dim / 2;
        self.start(half, positions.len());
        frequencies(&mut self.frequencies, half, rope.theta);
        let [t, h, _] = rope.sections;
        for position in positions {
            for (j, f) in self.frequencies.iter().enumerate() {
                let axis = if j < t {
                    0
                } else if j < t + h {
                    1
                } else {
                    2
                };
                push(&mut self.cos, &mut self.sin, position[axis] as f32 * f);
            }
        }
    }

    /// Fills the table for the vision tower: row `i` at `positions[i]` = (row, column).
    pub fn fill_vision(&mut self, head_dim: usize, positions: impl Iterator<Item = [u32; 2]>) {
        let half = head_dim / 2;
        self.start(half, 0);
        frequencies(&mut self.frequencies, half / 2, 10_000.0);
        for position in positions {
            self.rows += 1;
            for axis in position {
                for f in &self.frequencies {
                    push(&mut self.cos, &mut self.sin, axis as f32 * f);
                }
            }
        }
    }

    fn start(&mut self, half: usize, rows: usize) {
        (self.half, self.rows) = (half, rows);
        self.cos.clear();
        self.sin.clear();
        self.frequencies.clear();
    }

    /// Rotates one head of `2·half` channels by row `row`.
    ///
    /// # Panics
    /// If there is no such row or `head` has another width.
    pub fn rotate(&self, row: usize, head: &mut [f32]) {
        let half = self.half;
        let (cos, sin) = (&self.cos[row * half..][..half], &self.sin[row * half..][..half]);
        assert_eq!(head.len(), 2 * half);
        let (low, high) = head.split_at_mut(half);
        for (((a, b), c), s) in low.iter_mut().zip(high).zip(cos).zip(sin) {
            (*a, *b) = (*a * c - *b * s, *b * c + *a * s);
        }
    }
}

/// theta^(−2j / (2·count)) for j < count, in f32 as the reference computes it.
fn frequencies(out: &mut Vec<f32>, count: usize, theta: f64) {
    out.extend((0..count).map(|j| {
        let exponent = (2 * j) as f32 / (2 * count) as f32;
        (1.0 / theta.powf(f64::from(exponent))) as f32
    }));
}

fn push(cos: &mut Vec<f32>, sin: &mut Vec<f32>, angle: f32) {
    let (s, c) = f64::from(angle).sin_cos();
    cos.push(c as f32);
    sin.push(s as f32);
}

/// `out = x` with the heads of the first `rotated` columns turned; row `i` by row `first_row + i` of
/// the table.
///
/// # Panics
/// If the shapes do not match.
#[allow(clippy::too_many_arguments)]
pub fn rotate_rows(
    pool: &mut Pool,
    table: &RopeTable,
    first_row: usize,
    x: &[f32],
    cols: usize,
    rotated: usize,
    head_dim: usize,
    out: &mut [f32],
) {
    assert!(
        x.len() == out.len()
            && x.len().is_multiple_of(cols)
            && rotated <= cols
            && rotated.is_multiple_of(head_dim)
    );
    pool.run_on_chunks(out, cols, 16, |first, out| {
        for (i, out) in out.chunks_exact_mut(cols).enumerate() {
            out.copy_from_slice(&x[(first + i) * cols..][..cols]);
            for head in out[..rotated].chunks_exact_mut(head_dim) {
                table.rotate(first_row + first + i, head);
            }
        }
    });
}
