//! int4: `C[m,n] += X[m,k] · ((Q − Z) · S)[n,k]ᵀ` for 4-bit weights with a scale and a zero point for
//! each output and group of inputs.
//!
//! math    each row of X is rounded, group by group, to 16-bit integers x ≈ xs·xq with xs = max|x|/32767.
//!         Within a group  t = Σ q·xq − z·Σ xq  is exact in 32-bit integers (15·32767·128 < 2³¹), whatever the
//!         order; groups are folded in ascending order by  c = fma(f32(t), s·xs, c).  The rounding of X is
//!         2⁻¹⁶ of the group's largest value, 16 times finer than f16 activations.
//! layout  strips of 16 outputs; in a strip, groups; in a group, for each 8 inputs one u32 per output.
//!         Nibble p of a u32 is input p/4 + 2·(p%4): masks of 0x000f000f give pairs of neighbours, which
//!         `madd16` multiplies with pairs of X. Scales (f16) and zeros (one u64 per strip and group)
//!         lie in planes of their own. 4.15625 bits per weight at group 128, as in the file.
//! bytes   k·n/2 + 2.5·k·n/group once per tile of rows.
//! bound   m <= 2: memory bandwidth at 0.28 instructions per weight; else integer multiply-adds,
//!         16 products an instruction, twice the rate of f32.

use super::shared::SharedMut;
use super::simd::Simd;
use super::{Aligned, Isa, Pool, dispatch};

/// Outputs of a strip.
pub const STRIP: usize = 16;
/// Rows of X up to which weights are unpacked in registers.
const DIRECT_ROWS: usize = 2;
/// How far ahead of a load of codes its cache line is asked for.
const PREFETCH_BYTES: usize = 2048;
/// Largest magnitude of a rounded input.
const X_MAX: f32 = 32767.0;
/// Largest group for which integer sums cannot overflow: 15·32767·g < 2³¹.
pub const MAX_GROUP: usize = 4368;

/// A 4-bit matrix in the layout of this kernel.
pub struct Int4Matrix {
    n: usize,
    k: usize,
    group: usize,
    codes: Aligned<u32>,
    scales: Aligned<u16>,
    zeros: Aligned<u64>,
}

/// Where the packer finds a matrix: codes as AWQ packs them.
pub struct AwqSource<'a> {
    /// `[k, n/8]` little-endian u32, eight outputs in the order 0 2 4 6 1 3 5 7.
    pub qweight: &'a [u8],
    /// `[k/group, n/8]`, same packing.
    pub qzeros: &'a [u8],
    /// `[k/group, n]` f16 bits, little-endian.
    pub scales: &'a [u8],
}

/// Output, within its word of eight, of nibble `i` of an AWQ word.
const AWQ_ORDER: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];
/// Input, within its eight, of nibble `p` of a word of this layout.
const NIBBLE_INPUT: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];

impl Int4Matrix {
    /// Repacks an AWQ matrix.
    ///
    /// # Panics
    /// If the sizes are not those of an AWQ matrix `[n, k]` with this group: `n` and `group`
    /// multiples of 8, `k` of `group`, `group` at most [`MAX_GROUP`].
    pub fn from_awq(pool: &mut Pool, source: &AwqSource, n: usize, k: usize, group: usize) -> Int4Matrix {
        assert!(
            n.is_multiple_of(8)
                && group.is_multiple_of(8)
                && group <= MAX_GROUP
                && k.is_multiple_of(group)
                && k > 0
                && n > 0
        );
        let groups = k / group;
        assert_eq!(source.qweight.len(), k * n / 2);
        assert_eq!(source.qzeros.len(), groups * n / 2);
        assert_eq!(source.scales.len(), groups * n * 2);
        let strips = n.div_ceil(STRIP);
        let mut matrix = Int4Matrix {
            n,
            k,
            group,
            codes: Aligned::zeroed(strips * STRIP * k / 8),
            scales: Aligned::zeroed(strips * STRIP * groups),
            zeros: Aligned::zeroed(strips * groups),
        };
        // Eight strips are one cache line of each row of the source.
        const STRIPS_PER_TASK: usize = 8;
        let codes = SharedMut::new(&mut matrix.codes);
        let scales = SharedMut::new(&mut matrix.scales);
        let zeros = SharedMut::new(&mut matrix.zeros);
        pool.run(strips.div_ceil(STRIPS_PER_TASK), |task, _| {
            let first = task * STRIPS_PER_TASK;
            let last = (first + STRIPS_PER_TASK).min(strips);
            let of = |per_strip: usize| first * per_strip..last * per_strip;
            // SAFETY: tasks own disjoint ranges of strips.
            let (codes, scales, zeros) = unsafe {
                (codes.part(of(STRIP * k / 8)), scales.part(of(STRIP * groups)), zeros.part(of(groups)))
            };
            repack_codes(source.qweight, n, k, first..last, codes);
            repack_groups(source, n, groups, first..last, scales, zeros);
        });
        matrix
    }

    /// Outputs.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Inputs.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Inputs per group.
    pub fn group(&self) -> usize {
        self.group
    }

    /// Bytes in memory.
    pub fn bytes(&self) -> u64 {
        (self.codes.len() * 4 + self.scales.len() * 2 + self.zeros.len() * 8) as u64
    }

    /// Code, zero point and scale (f16 bits) of one weight.
    ///
    /// # Panics
    /// If there is no such weight.
    pub fn weight(&self, n: usize, k: usize) -> (u8, u8, u16) {
        assert!(n < self.n && k < self.k);
        let groups = self.k / self.group;
        let (strip, lane, g) = (n / STRIP, n % STRIP, k / self.group);
        let word = self.codes[(strip * self.k / 8 + k / 8) * STRIP + lane];
        let nibble = NIBBLE_INPUT.iter().position(|&i| i == k % 8).expect("a permutation");
        let code = (word >> (4 * nibble)) as u8 & 15;
        let zero = (self.zeros[strip * groups + g] >> (4 * lane)) as u8 & 15;
        (code, zero, self.scales[(strip * groups + g) * STRIP + lane])
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    let b = &bytes[at * 4..at * 4 + 4];
    u32::from_le_bytes([b[0], b[1], b[2], b[3]])
}

fn repack_codes(qweight: &[u8], n: usize, k: usize, strips: std::ops::Range<usize>, out: &mut [u32]) {
    let words_per_row = n / 8;
    for k8 in 0..k / 8 {
        for strip in strips.clone() {
            let base = ((strip - strips.start) * (k / 8) + k8) * STRIP;
            for half in 0..STRIP / 8 {
                let column = strip * (STRIP / 8) + half;
                if column >= words_per_row {
                    break;
                }
                let mut block = NIBBLE_INPUT.map(|i| word(qweight, (k8 * 8 + i) * words_per_row + column));
                transpose_nibbles(&mut block);
                for (nibble, &output) in AWQ_ORDER.iter().enumerate() {
                    out[base + half * 8 + output] = block[nibble];
                }
            }
        }
    }
}

/// Nibble `j` of word `i` becomes nibble `i` of word `j`.
fn transpose_nibbles(w: &mut [u32; 8]) {
    let mut swap = |a: usize, b: usize, shift: u32, mask: u32| {
        let t = ((w[a] >> shift) ^ w[b]) & mask;
        w[b] ^= t;
        w[a] ^= t << shift;
    };
    for i in [0, 2, 4, 6] {
        swap(i, i + 1, 4, 0x0f0f_0f0f);
    }
    for i in [0, 1, 4, 5] {
        swap(i, i + 2, 8, 0x00ff_00ff);
    }
    for i in [0, 1, 2, 3] {
        swap(i, i + 4, 16, 0x0000_ffff);
    }
}

fn repack_groups(
    source: &AwqSource,
    n: usize,
    groups: usize,
    strips: std::ops::Range<usize>,
    scales: &mut [u16],
    zeros: &mut [u64],
) {
    for strip in strips.clone() {
        for g in 0..groups {
            let at = (strip - strips.start) * groups + g;
            for lane in 0..STRIP.min(n - strip * STRIP) {
                let output = strip * STRIP + lane;
                let b = &source.scales[(g * n + output) * 2..][..2];
                scales[at * STRIP + lane] = u16::from_le_bytes([b[0], b[1]]);
                let packed = word(source.qzeros, g * (n / 8) + output / 8);
                let nibble = AWQ_ORDER.iter().position(|&o| o == output % 8).expect("a permutation");
                zeros[at] |= u64::from(packed >> (4 * nibble) & 15) << (4 * lane);
            }
        }
    }
}

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

    /// Rounds `x`, `[m, k]`.
    ///
    /// # Panics
    /// If `k` is not a multiple of `group`, `group` of 8, or `x` has not `m·k` elements.
    pub fn quantize(&mut self, isa: Isa, pool: &mut Pool, x: &[f32], m: usize, k: usize, group: usize) {
        assert!(k.is_multiple_of(group) && group.is_multiple_of(8) && x.len() == m * k);
        self.reserve(m, k, group);
        (self.m, self.group, self.groups) = (m, group, k / group);
        let (groups, total) = (self.groups, m * k);
        let codes = SharedMut::new(&mut self.codes[..total]);
        let scales = SharedMut::new(&mut self.scales[..m * groups]);
        let sums = SharedMut::new(&mut self.sums[..m * groups]);
        // Too little work for more than one thread below this many numbers per task.
        let per_task = (8192 / (m * group).max(1)).max(1);
        pool.run(groups.div_ceil(per_task), |task, _| {
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
                    let from = &x[i * k + g * group..][..group];
                    let to = &mut codes[i * group..(i + 1) * group];
                    // SAFETY: both slices have `group` elements, a multiple of 8.
                    (scales[i], sums[i]) = unsafe { quantize_group(isa, from, to) };
                }
            }
        });
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
        (scale, lanes.iter().sum())
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

/// f32 of scratch that [`accumulate`] needs for a matrix of this group.
pub const fn scratch(group: usize) -> usize {
    STRIP * group / 2
}

/// `c[i·ldc + j] += Σ x[m0 + i] · w[n0 + j]` for `i < m`, `j < n`.
///
/// # Panics
/// If `n0` is not a multiple of [`STRIP`], or the ranges are outside the matrix, the rounded rows
/// or `c`, or `scratch` is shorter than [`scratch`] says.
pub fn accumulate(
    isa: Isa,
    w: &Int4Matrix,
    n0: usize,
    n: usize,
    x: &QuantizedRows,
    m0: usize,
    m: usize,
    c: &mut [f32],
    ldc: usize,
    scratch: &mut [f32],
) {
    assert!(n0.is_multiple_of(STRIP) && n0 + n <= w.n && n.next_multiple_of(STRIP) <= ldc);
    assert!(x.group == w.group && x.groups * x.group == w.k && m0 + m <= x.m);
    assert!(m == 0 || c.len() >= m * ldc);
    assert!(scratch.len() >= self::scratch(w.group));
    let call = Call { w, x, m0, m, scratch: scratch.as_mut_ptr().cast() };
    for strip in 0..n.div_ceil(STRIP) {
        // SAFETY: the assertions; a strip of `c` has 16 columns within `ldc`.
        unsafe { run_strip(isa, &call, n0 / STRIP + strip, c.as_mut_ptr().add(strip * STRIP), ldc) };
    }
}

struct Call<'a> {
    w: &'a Int4Matrix,
    x: &'a QuantizedRows,
    m0: usize,
    m: usize,
    /// `STRIP · group` i16.
    scratch: *mut i16,
}

dispatch!(fn run_strip => strip_body(call: &Call, strip: usize, c: *mut f32, ldc: usize));

#[inline(always)]
unsafe fn strip_body<S: Simd>(call: &Call, strip: usize, c: *mut f32, ldc: usize) {
    let Call { w, x, m0, m, scratch } = *call;
    let groups = w.k / w.group;
    for g in 0..groups {
        let at = strip * groups + g;
        // SAFETY: `at` is below strips·groups, rows are within `x`, `c` holds `m` rows of `ldc`.
        unsafe {
            let codes = w.codes.as_ptr().add(at * (w.group / 8) * STRIP).cast::<u8>();
            let weights = Group::<S> {
                scales: S::wide_load_f16(w.scales.as_ptr().add(at * STRIP).cast()),
                zeros: S::wide_spread(w.zeros[at]),
            };
            let first = g * x.m + m0;
            let input = x.codes.as_ptr().add(first * w.group);
            if m <= DIRECT_ROWS {
                for i in 0..m {
                    let sums = direct::<S>(codes, w.group, input.add(i * w.group));
                    weights.fold(sums, x.sums[first + i], x.scales[first + i], c.add(i * ldc));
                }
                continue;
            }
            unpack::<S>(codes, w.group, scratch.cast());
            let mut i = 0;
            while i < m {
                let (at, x, c) = (first + i, input.add(i * w.group), c.add(i * ldc));
                i += match m - i {
                    12.. if S::TALL => weights.pass::<12>(call, at, x, c, ldc),
                    6.. => weights.pass::<6>(call, at, x, c, ldc),
                    _ => weights.pass::<1>(call, at, x, c, ldc),
                };
            }
        }
    }
}

/// Scales and zero points of 16 outputs.
struct Group<S: Simd> {
    scales: S::Wide,
    zeros: S::WideI,
}

impl<S: Simd> Group<S> {
    /// `c = fma(f32(sums − zeros·x_sum), scales·x_scale, c)` for 16 outputs.
    #[inline(always)]
    unsafe fn fold(&self, sums: S::WideI, x_sum: i32, x_scale: f32, c: *mut f32) {
        // SAFETY: the caller gives 16 floats at `c`.
        unsafe {
            let exact = S::wide_sub_i(sums, S::wide_mul_i(self.zeros, S::wide_splat_i(x_sum)));
            let scale = S::wide_mul(self.scales, S::wide_splat(x_scale));
            S::wide_store(c, S::wide_fma(S::wide_to_f32(exact), scale, S::wide_load(c)));
        }
    }

    /// `M` rows of `x` against an unpacked group, folded into `c`; returns `M`. `at` is the first row in
    /// `call.x`'s scales and sums.
    #[inline(always)]
    unsafe fn pass<const M: usize>(
        &self,
        call: &Call,
        at: usize,
        x: *const i16,
        c: *mut f32,
        ldc: usize,
    ) -> usize {
        let group = call.w.group;
        // SAFETY: the scratch holds 16·group unpacked weights; the caller gives M rows of x and c.
        unsafe {
            let mut acc = [S::wide_zero_i(); M];
            for k2 in 0..group / 2 {
                let w = S::wide_load_i(call.scratch.add(k2 * STRIP * 2).cast());
                for i in 0..M {
                    acc[i] = S::wide_madd16(acc[i], w, S::wide_splat_pair(x.add(i * group + 2 * k2)));
                }
            }
            for i in 0..M {
                self.fold(acc[i], call.x.sums[at + i], call.x.scales[at + i], c.add(i * ldc));
            }
        }
        M
    }
}

/// Sums of one row over a group, weights unpacked in registers.
#[inline(always)]
unsafe fn direct<S: Simd>(codes: *const u8, group: usize, x: *const i16) -> S::WideI {
    // SAFETY: the caller gives group/8 blocks of 64 bytes and `group` inputs.
    unsafe {
        // Two sums: one chain of additions would limit the speed.
        let mut acc = [S::wide_zero_i(); 2];
        for k8 in 0..group / 8 {
            let x = x.add(8 * k8);
            let v = S::wide_load_i(codes.add(64 * k8));
            S::prefetch(codes.wrapping_add(64 * k8 + PREFETCH_BYTES));
            acc[0] = S::wide_madd16(acc[0], S::wide_nibbles::<0>(v), S::wide_splat_pair(x));
            acc[1] = S::wide_madd16(acc[1], S::wide_nibbles::<1>(v), S::wide_splat_pair(x.add(2)));
            acc[0] = S::wide_madd16(acc[0], S::wide_nibbles::<2>(v), S::wide_splat_pair(x.add(4)));
            acc[1] = S::wide_madd16(acc[1], S::wide_nibbles::<3>(v), S::wide_splat_pair(x.add(6)));
        }
        S::wide_add_i(acc[0], acc[1])
    }
}

/// Codes of a strip and group as i16 pairs: `[group/2][16 outputs][2 inputs]`.
#[inline(always)]
unsafe fn unpack<S: Simd>(codes: *const u8, group: usize, out: *mut u8) {
    // SAFETY: the caller gives group/8 blocks of 64 bytes and room for 16·group i16.
    unsafe {
        for k8 in 0..group / 8 {
            let v = S::wide_load_i(codes.add(64 * k8));
            let to = out.add(256 * k8);
            S::wide_store_i(to, S::wide_nibbles::<0>(v));
            S::wide_store_i(to.add(64), S::wide_nibbles::<1>(v));
            S::wide_store_i(to.add(128), S::wide_nibbles::<2>(v));
            S::wide_store_i(to.add(192), S::wide_nibbles::<3>(v));
        }
    }
}
