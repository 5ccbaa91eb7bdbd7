//! resample: rows and columns of a resized picture, `out = clamp((Σ w[k]·in[k] + 2²¹) >> 22, 0, 255)`.
//!
//! math    i32, exact: the weights of an output add up to less than 1.7·2²² in absolute value.
//! layout  bytes, three to a pixel. Four inputs of an output lie side by side in a 32-bit lane and meet four
//!         weights at once. Along y the lanes are 64 neighbouring values of a row, along x four rows of one
//!         column, three channels each.
//! bound   multiplications: with AVX-512 three for 64 products (weights in three digits of 8 bits), with AVX2
//!         eight (two digits of 16 bits).

use super::simd::Simd;
use super::{Isa, dispatch};

/// Fractional bits of the weights.
pub const PRECISION_BITS: u32 = 22;
/// Half of the last kept bit: adding it before the shift rounds to nearest.
const ROUND: i32 = 1 << (PRECISION_BITS - 1);
/// Rows that [`columns`] makes at a time.
pub const STRIP_ROWS: usize = 4;
/// Bytes that a row of a strip has beyond its pixels: four pixels are stored as 16 bytes.
pub const STRIP_PADDING: usize = 32;
/// Values of a row whose sums are in registers together.
const LANES: usize = 64;

/// Four consecutive weights with [`PRECISION_BITS`] fractional bits, in digits.
#[derive(Clone, Copy, Debug)]
pub struct Weights4 {
    /// Signed digits to the base 2⁸, the lowest first, each of the four weights in its byte.
    pub(crate) bytes: [i32; 3],
    /// High and low digits to the base 2¹² of the first and third weight, then of the second and fourth, as
    /// pairs of i16.
    pub(crate) pairs: [[i32; 2]; 2],
}

impl Weights4 {
    /// # Panics
    /// If a weight is not within ±1.9.
    pub fn new(weights: [i32; 4]) -> Weights4 {
        const MOST: i32 = (1.9 * (1u32 << PRECISION_BITS) as f64) as i32;
        assert!(weights.iter().all(|w| w.abs() <= MOST), "weights {weights:?}");
        let mut bytes = [0; 3];
        let mut left = weights;
        for digit in &mut bytes {
            for (k, w) in left.iter_mut().enumerate() {
                let low = *w as i8;
                *digit |= i32::from(low as u8) << (8 * k);
                *w = (*w - i32::from(low)) >> 8;
            }
        }
        let pair = |a: i32, b: i32| (a & 0xffff) | b << 16;
        let digits = |a: i32, b: i32| [pair(a >> 12, b >> 12), pair(a & 0xfff, b & 0xfff)];
        Weights4 { bytes, pairs: [digits(weights[0], weights[2]), digits(weights[1], weights[3])] }
    }

    /// The four weights.
    pub(crate) fn plain(&self) -> [i32; 4] {
        std::array::from_fn(|k| {
            self.bytes.iter().rev().fold(0, |w, digit| (w << 8) + i32::from((digit >> (8 * k)) as i8))
        })
    }
}

/// Makes a row of `out.len()` values from rows that begin `stride` values apart in `rows`, by `weights`; those beyond
/// the last row must be 0.
///
/// # Panics
/// If `rows` does not end with a whole row, or there are fours of weights without any row.
pub fn row(isa: Isa, rows: &[u8], stride: usize, weights: &[Weights4], out: &mut [u8]) {
    assert!(
        out.len() <= stride && rows.len() % stride == out.len() % stride && rows.len() >= out.len(),
        "{} values for {} every {stride}",
        rows.len(),
        out.len()
    );
    assert!(weights.len() <= rows.len().div_ceil(stride).div_ceil(4), "{} fours of weights", weights.len());
    // SAFETY: the assertions above.
    unsafe { run_row(isa, rows, stride, weights, out) }
}

/// How a row gets another width: output pixel `i` is made of the inputs from `firsts[i]` on by the `fours` fours of
/// weights at `i·fours`, of which those beyond the last input are 0.
#[derive(Debug)]
pub struct Columns {
    firsts: Vec<usize>,
    fours: usize,
    weights: Vec<Weights4>,
    /// Bytes of a row that loads touch.
    reach: usize,
}

impl Columns {
    /// # Panics
    /// If the number of weights is another.
    pub fn new(firsts: Vec<usize>, fours: usize, weights: Vec<Weights4>) -> Columns {
        assert_eq!(weights.len(), firsts.len() * fours, "fours of weights");
        // The last load of a row ends four bytes beyond its four pixels.
        let reach = firsts.iter().max().map_or(0, |first| (first + 4 * fours) * 3 + 4);
        Columns { firsts, fours, weights, reach }
    }

    /// Bytes that [`columns`] reads of `STRIP_ROWS` rows that begin `stride` bytes apart.
    pub fn reach(&self, stride: usize) -> usize {
        (STRIP_ROWS - 1) * stride + self.reach
    }
}

/// Makes [`STRIP_ROWS`] rows of another width, from rows that begin `stride` bytes apart in `rows`. In `out` each row
/// has its pixels and [`STRIP_PADDING`] bytes or more.
///
/// # Panics
/// If `rows` is shorter than [`Columns::reach`], or `out` is not of four such rows.
pub fn columns(isa: Isa, columns: &Columns, rows: &[u8], stride: usize, out: &mut [u8]) {
    let (reach, out_row) = (columns.reach(stride), columns.firsts.len() * 3);
    assert!(rows.len() >= reach, "{} of {reach} bytes to read", rows.len());
    assert!(
        out.len().is_multiple_of(STRIP_ROWS) && out.len() / STRIP_ROWS >= out_row + STRIP_PADDING,
        "{} bytes for four rows of {out_row}",
        out.len()
    );
    // SAFETY: the assertions above.
    unsafe { run_columns(isa, columns, rows, stride, out) }
}

dispatch!(fn run_row => row_body(rows: &[u8], stride: usize, weights: &[Weights4], out: &mut [u8]));
dispatch!(fn run_columns => columns_body(columns: &Columns, rows: &[u8], stride: usize, out: &mut [u8]));

#[inline(always)]
unsafe fn row_body<S: Simd>(rows: &[u8], stride: usize, weights: &[Weights4], out: &mut [u8]) {
    let (len, last_row) = (out.len(), rows.len().div_ceil(stride) - 1);
    let Some(last) = len.checked_sub(LANES) else {
        for (x, out) in out.iter_mut().enumerate() {
            let all = weights.iter().flat_map(Weights4::plain);
            let sum: i32 = all.zip(rows[x..].iter().step_by(stride)).map(|(w, v)| w * i32::from(*v)).sum();
            *out = ((sum + ROUND) >> PRECISION_BITS).clamp(0, 255) as u8;
        }
        return;
    };
    // The last lanes may overlap those before them.
    for x in (0..len).step_by(LANES).map(|x| x.min(last)) {
        // SAFETY: rows up to `last_row` have `LANES` values from `x` on, and so has `out`.
        unsafe {
            let mut dots = [S::wide_dots(ROUND); 4];
            for (four, weights) in weights.iter().enumerate() {
                let from = |k: usize| rows.as_ptr().add((4 * four + k).min(last_row) * stride + x);
                let quads = S::wide_quads([from(0), from(1), from(2), from(3)]);
                for (dots, quads) in dots.iter_mut().zip(quads) {
                    *dots = S::wide_dot4(*dots, quads, weights);
                }
            }
            let [a, b, c, d] = dots;
            let sums = [S::wide_dots_sum(a), S::wide_dots_sum(b), S::wide_dots_sum(c), S::wide_dots_sum(d)];
            S::wide_store_quads(out.as_mut_ptr().add(x), sums);
        }
    }
}

#[inline(always)]
unsafe fn columns_body<S: Simd>(columns: &Columns, rows: &[u8], stride: usize, out: &mut [u8]) {
    // SAFETY: the caller's checks.
    unsafe {
        match columns.fours {
            // Up to a reduction by 1.5, where there is the most to do: unrolled.
            2 => columns_of::<S>(columns, 2, rows, stride, out),
            fours => columns_of::<S>(columns, fours, rows, stride, out),
        }
    }
}

#[inline(always)]
unsafe fn columns_of<S: Simd>(columns: &Columns, fours: usize, rows: &[u8], stride: usize, out: &mut [u8]) {
    let outputs = columns.firsts.len();
    let (to, last) = (out.len() / STRIP_ROWS, outputs.saturating_sub(1));
    for i in (0..outputs).step_by(4) {
        // SAFETY: the caller has checked that 16 bytes from every input on, and from every fourth output on, are there.
        unsafe {
            // Beyond the last output is padding.
            let [b, c, d] = [(i + 1).min(last), (i + 2).min(last), (i + 3).min(last)];
            let sums = [
                pixel::<S>(columns, fours, rows, stride, i),
                pixel::<S>(columns, fours, rows, stride, b),
                pixel::<S>(columns, fours, rows, stride, c),
                pixel::<S>(columns, fours, rows, stride, d),
            ];
            let p = out.as_mut_ptr().add(i * 3);
            S::wide_store_pixels([p, p.add(to), p.add(2 * to), p.add(3 * to)], sums);
        }
    }
}

/// Output pixel `i` of four rows.
#[inline(always)]
unsafe fn pixel<S: Simd>(columns: &Columns, fours: usize, rows: &[u8], stride: usize, i: usize) -> S::WideI {
    // SAFETY: the caller's.
    unsafe {
        let (first, weights) = (*columns.firsts.get_unchecked(i), columns.weights.as_ptr().add(i * fours));
        let mut dots = S::wide_dots(ROUND);
        for four in 0..fours {
            let p = rows.as_ptr().add((first + 4 * four) * 3);
            let pixels = S::wide_pixels([p, p.add(stride), p.add(2 * stride), p.add(3 * stride)]);
            dots = S::wide_dot4(dots, pixels, &*weights.add(four));
        }
        S::wide_dots_sum(dots)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_of_weights_add_up_to_them() {
        let mut state = 1u32;
        for i in 0..10_000 {
            let weights: [i32; 4] = std::array::from_fn(|k| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                match i {
                    0 => [0, -1, 128, -128][k],
                    1 => [4095, 4096, -4096, -4097][k],
                    2 => [1, -1, 1, -1][k] * (1 << PRECISION_BITS) / 10 * 19,
                    _ => state as i32 >> 9,
                }
            });
            let digits = Weights4::new(weights);
            assert_eq!(digits.plain(), weights);
            let halves = |pair: i32| [i32::from(pair as i16), pair >> 16];
            let pairs = digits.pairs.map(|[high, low]| {
                let (high, low) = (halves(high), halves(low));
                [high[0] * 4096 + low[0], high[1] * 4096 + low[1]]
            });
            assert_eq!([pairs[0][0], pairs[1][0], pairs[0][1], pairs[1][1]], weights);
        }
    }
}
