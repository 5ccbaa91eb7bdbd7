//! Pillow's antialiased bicubic resize, bit for bit.
//!
//! Source: `src/libImaging/Resample.c` of Pillow 13.0.0 (`precompute_coeffs`,
//! `normalize_coeffs_8bpc`), and for the order of passes the compiled `ImagingResample`.

use super::decode::Rgb8;
use crate::kernels::cpu::Isa;
use crate::kernels::cpu::resample::{self, PRECISION_BITS, STRIP_PADDING, STRIP_ROWS, Weights4};

/// Radius of the bicubic kernel, in output pixels when reducing and in input pixels when enlarging.
const RADIUS: f64 = 2.0;

/// `image` resized to `width` x `height`, both positive. A side that does not change is not filtered.
pub fn resize(image: &Rgb8, width: u32, height: u32) -> Rgb8 {
    resize_on(1, image, width, height)
}

/// As [`resize`], on up to `threads` threads, with the same result.
///
/// Beside the result there is memory for a few rows only: what the first pass makes goes into the second at once.
pub fn resize_on(threads: usize, image: &Rgb8, width: u32, height: u32) -> Rgb8 {
    let size = (image.width() as usize, image.height() as usize);
    let out_size = (width as usize, height as usize);
    let columns = (size.0 != out_size.0).then(|| Columns::new(size.0, out_size.0));
    let rows = (size.1 != out_size.1).then(|| Taps::new(size.1, out_size.1));
    let source = Source { isa: Isa::detect(), data: image.data(), row: size.0 * 3, height: size.1 };
    if columns.is_none() && rows.is_none() {
        return image.clone();
    }
    let mut data = vec![0; out_size.0 * out_size.1 * 3];
    in_parts(threads, &mut data, out_size.0 * 3, |part, out| match (&columns, &rows) {
        (Some(columns), Some(rows)) if vertical_first(size, out_size) => {
            source.rows_then_columns(rows, columns, part, out);
        }
        (Some(columns), Some(rows)) => source.columns_then_rows(columns, rows, part, out),
        (Some(columns), None) => source.columns(columns, part, out),
        (None, Some(rows)) => source.rows(rows, part, out),
        (None, None) => {}
    });
    Rgb8::trusted(width, height, data)
}

/// The order of passes, `(width, height)` in and out. Pillow up to 12 always filters rows first;
/// Pillow 13 begins with the columns if the height loses more than twice what the width loses.
/// Every pass rounds to bytes, so that the order shows in the last bits.
fn vertical_first(input: (usize, usize), output: (usize, usize)) -> bool {
    let lost = |i: usize, o: usize| i as i64 - o as i64;
    let (width, height) = (lost(input.0, output.0), lost(input.1, output.1));
    height > 0 && height > 2 * width
}

/// The picture to resize. The methods make rows of the result from row `part` on, as many as `out` holds.
struct Source<'a> {
    isa: Isa,
    data: &'a [u8],
    /// Values of a row.
    row: usize,
    height: usize,
}

impl Source<'_> {
    fn row(&self, y: usize) -> &[u8] {
        &self.data[y * self.row..][..self.row]
    }

    fn rows(&self, rows: &Taps, part: usize, out: &mut [u8]) {
        for (i, out) in out.chunks_exact_mut(self.row).enumerate() {
            rows.weigh(self.isa, part + i, self.data, 0, out);
        }
    }

    fn columns(&self, columns: &Columns, part: usize, out: &mut [u8]) {
        let mut strip = columns.strip();
        for (i, out) in out.chunks_mut(columns.out_row * STRIP_ROWS).enumerate() {
            let first = part + i * STRIP_ROWS;
            strip.filter(self.isa, out, |r, to| to.copy_from_slice(self.row(first + r)));
        }
    }

    fn rows_then_columns(&self, rows: &Taps, columns: &Columns, part: usize, out: &mut [u8]) {
        let mut strip = columns.strip();
        for (i, out) in out.chunks_mut(columns.out_row * STRIP_ROWS).enumerate() {
            let first = part + i * STRIP_ROWS;
            strip.filter(self.isa, out, |r, to| rows.weigh(self.isa, first + r, self.data, 0, to));
        }
    }

    fn columns_then_rows(&self, columns: &Columns, rows: &Taps, part: usize, out: &mut [u8]) {
        let row = columns.out_row;
        let mut strip = columns.strip();
        // Rows `start..end` of the source with other columns. When there is no room for more, those that no later
        // output reads make it.
        let capacity = 4 * (4 * rows.stride) + STRIP_ROWS;
        let mut window = vec![0; capacity * row];
        let (mut start, mut end) = (rows.spans[part].0, rows.spans[part].0);
        for (i, out) in out.chunks_exact_mut(row).enumerate() {
            let (first, count) = rows.spans[part + i];
            while end < first + count {
                if end + STRIP_ROWS - start > capacity {
                    window.copy_within((first - start) * row..(end - start) * row, 0);
                    start = first;
                }
                let more = STRIP_ROWS.min(self.height - end);
                let to = &mut window[(end - start) * row..][..more * row];
                strip.filter(self.isa, to, |r, to| to.copy_from_slice(self.row(end + r)));
                end += more;
            }
            rows.weigh(self.isa, part + i, &window, start, out);
        }
    }
}

/// How a row gets another width.
struct Columns {
    taps: Taps,
    /// The first input of each output.
    firsts: Vec<usize>,
    /// Values of a row before and after.
    row: usize,
    out_row: usize,
}

impl Columns {
    fn new(width: usize, out_width: usize) -> Columns {
        let taps = Taps::new(width, out_width);
        let firsts = taps.spans.iter().map(|(first, _)| *first).collect();
        Columns { taps, firsts, row: width * 3, out_row: out_width * 3 }
    }

    fn strip(&self) -> Strip<'_> {
        // Fours of weights may reach beyond the last column, with weights of 0.
        let reach = self.firsts.iter().map(|first| (first + 4 * self.taps.stride) * 3).max().unwrap_or(0);
        Strip {
            columns: self,
            input: vec![0; STRIP_ROWS * (reach.max(self.row) + STRIP_PADDING)],
            output: vec![0; STRIP_ROWS * (self.out_row + STRIP_PADDING)],
        }
    }
}

/// Room for the rows that get another width together.
struct Strip<'a> {
    columns: &'a Columns,
    input: Vec<u8>,
    output: Vec<u8>,
}

impl Strip<'_> {
    /// Makes the rows of `out`, at most [`STRIP_ROWS`], from those that `fill` writes.
    fn filter(&mut self, isa: Isa, out: &mut [u8], mut fill: impl FnMut(usize, &mut [u8])) {
        let Columns { taps, firsts, row, out_row } = self.columns;
        let (from, to) = (self.input.len() / STRIP_ROWS, self.output.len() / STRIP_ROWS);
        // Rows that are not filled hold what they held, and are dropped.
        for (r, input) in self.input.chunks_exact_mut(from).enumerate().take(out.len() / out_row) {
            fill(r, &mut input[..*row]);
        }
        resample::columns(isa, &self.input, firsts, taps.stride, &taps.fours, &mut self.output);
        for (out, output) in out.chunks_exact_mut(*out_row).zip(self.output.chunks_exact(to)) {
            out.copy_from_slice(&output[..*out_row]);
        }
    }
}

/// Rows of `row` values of `out`, in as many parts as there are threads; `work` is told its first row.
fn in_parts(threads: usize, out: &mut [u8], row: usize, work: impl Fn(usize, &mut [u8]) + Sync) {
    let rows = out.len() / row;
    let part = rows.div_ceil(threads.max(1)).next_multiple_of(STRIP_ROWS);
    if part >= rows {
        return work(0, out);
    }
    std::thread::scope(|scope| {
        for (i, out) in out.chunks_mut(part * row).enumerate() {
            let work = &work;
            scope.spawn(move || work(i * part, out));
        }
    });
}

/// Which inputs an output is made of, along one side.
struct Taps {
    /// `(first input, number of inputs)` of each output.
    spans: Vec<(usize, usize)>,
    /// Weights of each output, `stride` fours each; those beyond its inputs are 0.
    fours: Vec<Weights4>,
    stride: usize,
}

impl Taps {
    fn new(input: usize, output: usize) -> Self {
        let scale = input as f64 / output as f64;
        let filter_scale = scale.max(1.0);
        let support = RADIUS * filter_scale;
        let stride = (support.ceil() as usize * 2 + 1).div_ceil(4);
        let (mut spans, mut fours) = (Vec::with_capacity(output), Vec::with_capacity(output * stride));
        let (mut real, mut fixed) = (vec![0.0; 4 * stride], vec![0; 4 * stride]);
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
            fixed.fill(0);
            for (fixed, weight) in fixed.iter_mut().zip(real) {
                let scaled = *weight / sum * f64::from(1 << PRECISION_BITS);
                *fixed = (scaled + 0.5_f64.copysign(scaled)) as i32;
            }
            fours.extend(fixed.as_chunks().0.iter().map(|four| Weights4::new(*four)));
            spans.push((lo, hi - lo));
        }
        Taps { spans, fours, stride }
    }

    /// Makes output `i` of rows like `out`, of which `data` holds those from `start` on.
    fn weigh(&self, isa: Isa, i: usize, data: &[u8], start: usize, out: &mut [u8]) {
        let (first, count) = self.spans[i];
        let rows = &data[(first - start) * out.len()..][..count * out.len()];
        resample::row(isa, rows, &self.fours(i)[..count.div_ceil(4)], out);
    }

    /// The weights of an output.
    fn fours(&self, output: usize) -> &[Weights4] {
        &self.fours[output * self.stride..][..self.stride]
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
                        let i = if along_x { x } else { y };
                        let (lo, count) = taps.spans[i];
                        let weights = taps.fours(i).iter().flat_map(Weights4::plain).take(count);
                        let mut sum = 1i64 << (PRECISION_BITS - 1);
                        for (k, weight) in weights.enumerate() {
                            let (sx, sy) = if along_x { (lo + k, y) } else { (x, lo + k) };
                            sum += i64::from(weight) * i64::from(data[(sy * w + sx) * 3 + c]);
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
        if vertical_first((w, h), (ow, oh)) {
            data = pass(&data, (w, h), oh, false);
        }
        if w != ow {
            data = pass(&data, (w, data.len() / (w * 3)), ow, true);
        }
        if h != oh && !vertical_first((w, h), (ow, oh)) {
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
        for (w, h, ow, oh) in [
            (1, 1, 28, 28),
            (37, 23, 28, 56),
            (64, 9, 28, 28),
            (28, 90, 28, 28),
            (90, 28, 28, 28),
            (61, 150, 5, 61),
        ] {
            let image = extremes(w, h);
            let expected = reference(&image, ow, oh);
            for threads in [1, 2, 5] {
                assert_eq!(
                    resize_on(threads, &image, ow, oh),
                    expected,
                    "{w}x{h} to {ow}x{oh}, {threads} threads"
                );
            }
        }
    }

    #[test]
    fn sums_of_products_never_overflow() {
        let limit = f64::from(i32::MAX - (1 << (PRECISION_BITS - 1))) / 255.0;
        for input in (1..200).chain([333, 1000, 4095, 20_000]) {
            for output in (28..300).step_by(28).chain([1, 2, 3, 5, 7, 1036, 4760]) {
                let taps = Taps::new(input, output);
                for i in 0..output {
                    let weights = taps.fours(i).iter().flat_map(Weights4::plain);
                    let total: i64 = weights.map(|w| i64::from(w.abs())).sum();
                    assert!((total as f64) < limit, "{input} to {output}, output {i}: {total}");
                    assert!((total as f64) < 1.7 * f64::from(1 << PRECISION_BITS), "{input} to {output}");
                }
            }
        }
    }
}
