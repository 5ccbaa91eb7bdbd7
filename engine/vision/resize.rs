//! Pillow's antialiased bicubic resize, bit for bit.
//!
//! Source: `src/libImaging/Resample.c` of Pillow 13.0.0 (`precompute_coeffs`,
//! `normalize_coeffs_8bpc`, `ImagingResampleInner`).

use super::decode::Rgb8;

/// Fractional bits of the fixed-point weights.
const PRECISION_BITS: u32 = 22;
/// Half of the last kept bit: adding it before the shift rounds to nearest.
const ROUND: i32 = 1 << (PRECISION_BITS - 1);
/// Radius of the bicubic kernel, in output pixels when reducing and in input pixels when enlarging.
const RADIUS: f64 = 2.0;
/// Rows that the horizontal pass handles together.
const STRIP_ROWS: usize = 8;
/// Values whose sums are kept in registers while the taps go by.
const LANES: usize = 24;

/// `image` resized to `width` x `height`, both positive. A side that does not change is not filtered.
pub fn resize(image: &Rgb8, width: u32, height: u32) -> Rgb8 {
    let (width, height) = (width as usize, height as usize);
    let (in_width, in_height) = (image.width() as usize, image.height() as usize);
    let rows = Taps::new(in_height, height);
    // Rows that the vertical pass will read: the others need no horizontal pass.
    let used = if in_height == height { 0..in_height } else { rows.used() };

    let wide = (in_width != width).then(|| {
        let columns = Taps::new(in_width, width);
        let source = &image.data()[used.start * in_width * 3..used.end * in_width * 3];
        horizontal(source, in_width, &columns)
    });
    let data = match (wide, in_height == height) {
        (None, true) => image.data().to_vec(),
        (Some(wide), true) => wide,
        (wide, false) => {
            let (source, first) = match &wide {
                Some(wide) => (wide.as_slice(), used.start),
                None => (image.data(), 0),
            };
            let mut out = vec![0; height * width * 3];
            vertical(source, width * 3, first, &rows, &mut out);
            out
        }
    };
    Rgb8::trusted(width as u32, height as u32, data)
}

/// Which inputs an output is made of, along one side.
struct Taps {
    /// `(first input, number of inputs)` of each output.
    spans: Vec<(usize, usize)>,
    /// Weights of each output, `stride` apart, with [`PRECISION_BITS`] fractional bits.
    weights: Vec<i32>,
    stride: usize,
}

impl Taps {
    fn new(input: usize, output: usize) -> Self {
        let scale = input as f64 / output as f64;
        let filter_scale = scale.max(1.0);
        let support = RADIUS * filter_scale;
        let stride = support.ceil() as usize * 2 + 1;
        let mut taps = Taps { spans: Vec::with_capacity(output), weights: vec![0; output * stride], stride };
        let mut real = vec![0.0; stride];
        for i in 0..output {
            let center = (i as f64 + 0.5) * scale;
            // `as` truncates, and takes what is below zero to zero.
            let lo = (center - support + 0.5) as usize;
            let hi = ((center + support + 0.5) as usize).min(input);
            let real = &mut real[..hi - lo];
            for (j, weight) in real.iter_mut().enumerate() {
                *weight = bicubic(((j + lo) as f64 - center + 0.5) * (1.0 / filter_scale));
            }
            let sum: f64 = real.iter().sum();
            for (fixed, weight) in taps.weights[i * stride..].iter_mut().zip(real) {
                let scaled = *weight / sum * f64::from(1 << PRECISION_BITS);
                *fixed = (scaled + 0.5_f64.copysign(scaled)) as i32;
            }
            taps.spans.push((lo, hi - lo));
        }
        taps
    }

    fn output(&self, i: usize) -> (usize, &[i32]) {
        let (first, n) = self.spans[i];
        (first, &self.weights[i * self.stride..][..n])
    }

    /// The inputs that any output reads. Spans move forward, so the ends bound them all.
    fn used(&self) -> std::ops::Range<usize> {
        let (last, n) = self.spans[self.spans.len() - 1];
        self.spans[0].0..last + n
    }
}

/// The Keys kernel with a = -0.5.
fn bicubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

/// Filters every row of `source` (`[rows, width, 3]`) to `columns.spans.len()` pixels.
///
/// A strip of rows is transposed so that pixel `x` of all its rows lies together; filtering along
/// x is then the vertical pass, whose inner loop runs over contiguous values.
fn horizontal(source: &[u8], width: usize, columns: &Taps) -> Vec<u8> {
    const ROW: usize = 3 * STRIP_ROWS;
    let out_width = columns.spans.len();
    let rows = source.len() / (width * 3);
    let mut out = vec![0; rows * out_width * 3];
    let mut strip = vec![0; width * ROW];
    let mut filtered = vec![0; out_width * ROW];
    let strips = source.chunks(width * 3 * STRIP_ROWS).zip(out.chunks_mut(out_width * 3 * STRIP_ROWS));
    for (source, out) in strips {
        for (r, row) in source.chunks_exact(width * 3).enumerate() {
            for (to, from) in strip.chunks_exact_mut(ROW).zip(row.chunks_exact(3)) {
                to[r * 3..r * 3 + 3].copy_from_slice(from);
            }
        }
        vertical(&strip, ROW, 0, columns, &mut filtered);
        for (r, row) in out.chunks_exact_mut(out_width * 3).enumerate() {
            for (to, from) in row.chunks_exact_mut(3).zip(filtered.chunks_exact(ROW)) {
                to.copy_from_slice(&from[r * 3..r * 3 + 3]);
            }
        }
    }
    out
}

/// Makes every row of `out` from the rows of `source` that its taps name, `row` values each.
/// The first row of `source` is input number `first`.
///
/// Sums fit in i32: the weights of one output have absolute values that add up to less than
/// 1.7 * 2^22, and a value is at most 255.
fn vertical(source: &[u8], row: usize, first: usize, taps: &Taps, out: &mut [u8]) {
    for (i, out) in out.chunks_exact_mut(row).enumerate() {
        let (lo, weights) = taps.output(i);
        let rows = &source[(lo - first) * row..][..weights.len() * row];
        let mut blocks = out.chunks_exact_mut(LANES);
        for (b, out) in blocks.by_ref().enumerate() {
            let mut sums = [ROUND; LANES];
            for (weight, from) in weights.iter().zip(rows.chunks_exact(row)) {
                let from: &[u8; LANES] = from[b * LANES..][..LANES].try_into().expect("LANES values");
                for (sum, value) in sums.iter_mut().zip(from) {
                    *sum += weight * i32::from(*value);
                }
            }
            for (out, sum) in out.iter_mut().zip(sums) {
                *out = (sum >> PRECISION_BITS).clamp(0, 255) as u8;
            }
        }
        let rest = row - row % LANES;
        for (x, out) in (rest..).zip(blocks.into_remainder()) {
            let sum: i32 =
                weights.iter().zip(rows.iter().skip(x).step_by(row)).map(|(w, v)| w * i32::from(*v)).sum();
            *out = ((sum + ROUND) >> PRECISION_BITS).clamp(0, 255) as u8;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition, one output value at a time, in i64.
    fn reference(image: &Rgb8, width: u32, height: u32) -> Rgb8 {
        let pass = |data: &[u8], (w, h): (usize, usize), out: usize, along_x: bool| -> Vec<u8> {
            let taps = Taps::new(if along_x { w } else { h }, out);
            let (ow, oh) = if along_x { (out, h) } else { (w, out) };
            let mut result = Vec::with_capacity(ow * oh * 3);
            for y in 0..oh {
                for x in 0..ow {
                    for c in 0..3 {
                        let (lo, weights) = taps.output(if along_x { x } else { y });
                        let mut sum = i64::from(ROUND);
                        for (k, weight) in weights.iter().enumerate() {
                            let (sx, sy) = if along_x { (lo + k, y) } else { (x, lo + k) };
                            sum += i64::from(*weight) * i64::from(data[(sy * w + sx) * 3 + c]);
                        }
                        result.push((sum >> PRECISION_BITS).clamp(0, 255) as u8);
                    }
                }
            }
            result
        };
        let (w, h) = (image.width() as usize, image.height() as usize);
        let (ow, oh) = (width as usize, height as usize);
        let mut data = image.data().to_vec();
        if w != ow {
            data = pass(&data, (w, h), ow, true);
        }
        if h != oh {
            data = pass(&data, (ow, h), oh, false);
        }
        Rgb8::trusted(width, height, data)
    }

    fn extremes(width: u32, height: u32) -> Rgb8 {
        let mut state = 1_u32;
        let data = (0..width * height * 3)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                if state >> 31 == 0 { 0 } else { 255 }
            })
            .collect();
        Rgb8::trusted(width, height, data)
    }

    #[test]
    fn resize_equals_its_definition() {
        for (w, h, ow, oh) in
            [(1, 1, 28, 28), (37, 23, 28, 56), (64, 9, 28, 28), (28, 90, 28, 28), (90, 28, 28, 28)]
        {
            let image = extremes(w, h);
            assert_eq!(resize(&image, ow, oh), reference(&image, ow, oh), "{w}x{h} to {ow}x{oh}");
        }
    }

    #[test]
    fn sums_of_products_never_overflow() {
        let limit = f64::from(i32::MAX - ROUND) / 255.0;
        for input in (1..200).chain([333, 1000, 4095, 20_000]) {
            for output in (28..300).step_by(28).chain([1, 2, 3, 5, 7, 1036, 4760]) {
                let taps = Taps::new(input, output);
                for i in 0..output {
                    let total: i64 = taps.output(i).1.iter().map(|w| i64::from(w.abs())).sum();
                    assert!((total as f64) < limit, "{input} to {output}, output {i}: {total}");
                    assert!((total as f64) < 1.7 * f64::from(1 << PRECISION_BITS), "{input} to {output}");
                }
            }
        }
    }
}
