//! rounded: rows of X as 16-bit integers, for the kernels with integer weights.
//!
//! math    group by group, x ≈ xs·xq with xs = max|x|/32767: the rounding is 2⁻¹⁶ of the group's largest
//!         value, 16 times finer than f16 activations. A group with NaN or infinity gets xs = NaN.
//! layout  groups outermost, so that a matrix reads a group of all rows before the next.

use super::order::InputOrder;
use super::shared::SharedMut;
use super::simd::Simd;
use super::{Aligned, Isa, Pool, dispatch};

/// Largest magnitude of a rounded input.
pub const X_MAX: f32 = 32767.0;
/// Longest block of an [`InputOrder`]: its inputs are gathered on the stack.
pub const MAX_ORDERED_BLOCK: usize = 256;

/// Rows of X rounded to 16-bit integers, group by group. Buffers are kept between calls.
#[derive(Default)]
pub struct QuantizedRows {
    m: usize,
    group: usize,
    groups: usize,
    /// `[groups, m, group]`.
    codes: Aligned<i16>,
    /// `[groups, m]`.
    scales: Aligned<f32>,
    /// `[groups, m]`, sums of the codes.
    sums: Aligned<i32>,
}

impl QuantizedRows {
    /// Makes room for `m·k` numbers in groups of `group`, so that rounding them allocates nothing.
    pub fn reserve(&mut self, m: usize, k: usize, group: usize) {
        self.codes.grow(m * k);
        self.scales.grow(m * k / group);
        self.sums.grow(m * k / group);
    }

    /// Rounds `x`, `[m, k]`, inputs in the order `order` if there is one.
    ///
    /// # Panics
    /// If the inputs in their order are no multiple of `group`, `group` of 8, or `x` has not `m·k`
    /// elements; with an order, if its blocks are not `group` or longer than [`MAX_ORDERED_BLOCK`].
    pub fn quantize(
        &mut self,
        isa: Isa,
        pool: &mut Pool,
        x: &[f32],
        m: usize,
        k: usize,
        group: usize,
        order: Option<&InputOrder>,
    ) {
        assert!(group.is_multiple_of(8) && x.len() == m * k);
        let padded = match order {
            Some(order) => {
                assert!(order.k() == k && order.block() == group && group <= MAX_ORDERED_BLOCK);
                order.inputs().len()
            }
            None => k,
        };
        assert!(padded.is_multiple_of(group));
        self.reserve(m, padded, group);
        (self.m, self.group, self.groups) = (m, group, padded / group);
        let (groups, total) = (self.groups, m * padded);
        let codes = SharedMut::new(&mut self.codes[..total]);
        let scales = SharedMut::new(&mut self.scales[..m * groups]);
        let sums = SharedMut::new(&mut self.sums[..m * groups]);
        // Too little work for more than one thread below this many numbers per task.
        let per_task = (8192 / (m * group).max(1)).max(1);
        pool.run(groups.div_ceil(per_task), |task, _| {
            let mut gathered = [0.0; MAX_ORDERED_BLOCK];
            for g in task * per_task..((task + 1) * per_task).min(groups) {
                // SAFETY: tasks own disjoint groups.
                let (codes, scales, sums) = unsafe {
                    let rows = g * m..(g + 1) * m;
                    (
                        codes.part(g * m * group..(g + 1) * m * group),
                        scales.part(rows.clone()),
                        sums.part(rows),
                    )
                };
                for i in 0..m {
                    let from = match order {
                        None => &x[i * k + g * group..][..group],
                        Some(order) => {
                            let row = &x[i * k..][..k];
                            let inputs = &order.inputs()[g * group..][..group];
                            for (to, &input) in gathered.iter_mut().zip(inputs) {
                                // `NONE` is behind the last input.
                                *to = row.get(input as usize).copied().unwrap_or(0.0);
                            }
                            &gathered[..group]
                        }
                    };
                    let to = &mut codes[i * group..(i + 1) * group];
                    // SAFETY: both slices have `group` elements, a multiple of 8.
                    (scales[i], sums[i]) = unsafe { quantize_group(isa, from, to) };
                }
            }
        });
    }

    /// Groups and inputs of each.
    pub(super) fn shape(&self) -> (usize, usize, usize) {
        (self.m, self.groups, self.group)
    }

    /// The first code of row `i` in group `g`; the row's codes and those of the following rows come
    /// after it.
    ///
    /// # Safety
    /// The row and the group exist.
    #[inline(always)]
    pub(super) unsafe fn codes(&self, g: usize, i: usize) -> *const i16 {
        // SAFETY: the caller's promise.
        unsafe { self.codes.as_ptr().add((g * self.m + i) * self.group) }
    }

    /// Scale and sum of row `i` in group `g`.
    ///
    /// # Safety
    /// The row and the group exist.
    #[inline(always)]
    pub(super) unsafe fn scale_and_sum(&self, g: usize, i: usize) -> (f32, i32) {
        // SAFETY: the caller's promise.
        unsafe { (*self.scales.as_ptr().add(g * self.m + i), *self.sums.as_ptr().add(g * self.m + i)) }
    }
}

dispatch!(fn quantize_group => quantize_body(x: &[f32], out: &mut [i16]) -> (f32, i32));

/// # Safety
/// `x` and `out` have the same length, a multiple of 8.
#[inline(always)]
unsafe fn quantize_body<S: Simd>(x: &[f32], out: &mut [i16]) -> (f32, i32) {
    // SAFETY: loads and stores are of whole eights within the slices.
    unsafe {
        let (mut high, mut low) = (S::splat(0.0), S::splat(0.0));
        for k in (0..x.len()).step_by(8) {
            let v = S::load(x.as_ptr().add(k));
            (high, low) = (S::max(v, high), S::min(v, low));
        }
        let largest = S::max_lane(S::max(high, S::sub(S::splat(0.0), low)));
        // An all-zero group has scale 0; infinities and NaN pass on through the scale.
        let inverse = if largest > 0.0 { X_MAX / largest } else { 0.0 };
        if !(inverse.is_finite() && largest.is_finite()) {
            return quantize_extreme(x, out, largest);
        }
        let factor = S::splat(inverse);
        let (mut sum, mut lanes) = (S::zero_i(), [0i32; 8]);
        for k in (0..x.len()).step_by(8) {
            let q = S::round(S::mul(S::load(x.as_ptr().add(k)), factor));
            sum = S::add_i(sum, q);
            S::store_i(lanes.as_mut_ptr().cast(), q);
            for (o, q) in out[k..k + 8].iter_mut().zip(lanes) {
                *o = q as i16;
            }
        }
        S::store_i(lanes.as_mut_ptr().cast(), sum);
        let scale =
            if inverse > 0.0 && x.iter().all(|v| !v.is_nan()) { largest / X_MAX } else { nan_or_zero(x) };
        // A NaN rounds to the least integer; the scale then is NaN, whatever the sum.
        (scale, lanes.into_iter().fold(0, i32::wrapping_add))
    }
}

/// The scale of a group without a usable largest value: NaN if it holds a NaN, else 0.
fn nan_or_zero(x: &[f32]) -> f32 {
    if x.iter().any(|v| v.is_nan()) { f32::NAN } else { 0.0 }
}

/// Groups with infinities become NaN, so that the error shows; groups of subnormals become zero.
#[cold]
fn quantize_extreme(x: &[f32], out: &mut [i16], largest: f32) -> (f32, i32) {
    out.fill(0);
    let scale = if largest.is_infinite() { f32::NAN } else { nan_or_zero(x) };
    (scale, 0)
}
