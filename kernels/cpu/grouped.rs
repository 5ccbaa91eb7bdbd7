//! grouped: `C[m,n] += X[m,k] · ((Q − Z) · S)[n,k]ᵀ` for integer weights with a scale and a zero point
//! for each output and group of inputs; `int4.rs` and `int8.rs` say how codes are laid out.
//!
//! math    each row of X is rounded, group by group, to 16-bit integers (`rounded.rs`). Within a group
//!         t = Σ q·xq − z·Σ xq  is exact in 32-bit integers, whatever the order, because groups have at
//!         most `MAX_GROUP` inputs; groups are folded in ascending order by  c = fma(f32(t), s·xs, c).
//! layout  strips of 16 outputs; in a strip, groups; in a group, for each `PER_WORD` inputs one u32 per
//!         output. Scales (f16) and zero points lie in planes of their own.
//! bytes   those of the matrix once per tile of rows.
//! bound   m <= 2: memory bandwidth; else integer multiply-adds, 16 products an instruction, twice the
//!         rate of f32.

use std::ops::Range;
use std::sync::Arc;

use bytemuck::Pod;

use super::aligned::Plane;
use super::order::InputOrder;
use super::rounded::QuantizedRows;
use super::shared::SharedMut;
use super::simd::Simd;
use super::{Aligned, Isa, Pool};

/// Outputs of a strip.
pub const STRIP: usize = 16;
/// Rows of X up to which weights are unpacked in registers.
const DIRECT_ROWS: usize = 2;
/// How far ahead of a load of codes its cache line is asked for.
pub(super) const PREFETCH_BYTES: usize = 2048;

/// A width of codes.
pub trait Codes: Sized + 'static {
    /// Zero points of 16 outputs.
    type Zeros: Pod + Send + Sync;
    /// Codes in a word.
    const PER_WORD: usize;
    /// Largest group for which integer sums cannot overflow.
    const MAX_GROUP: usize;

    /// Code of input `i` of a word.
    fn code(word: u32, i: usize) -> u8;
    /// Zero point of output `lane`.
    fn zero(zeros: &Self::Zeros, lane: usize) -> u8;
    /// Words of the strips in `out`: `[strip][k / PER_WORD][16]`.
    fn repack_codes(source: &Source, k: usize, strips: Range<usize>, out: &mut [u32]);
    /// Sets the zero point of output `lane`.
    fn set_zero(zeros: &mut Self::Zeros, lane: usize, zero: u8);
    /// Adds to `c` the products of `m` rows.
    ///
    /// # Safety
    /// `strip` exists, `c` holds `m` rows of `ldc` with 16 columns, and the scratch is large enough.
    unsafe fn run(isa: Isa, call: &Call<Self>, strip: usize, c: *mut f32, ldc: usize);
}

/// The part of a [`Codes`] that is compiled for an instruction set.
///
/// # Safety
/// Pointers hold what the functions say; the processor has the instructions of `S`.
pub(super) unsafe trait Unpack<S: Simd>: Codes {
    /// Zero points of 16 outputs as the kernel subtracts them.
    unsafe fn zeros(zeros: &Self::Zeros) -> S::WideI;
    /// Σ code·x over a group, codes unpacked in registers.
    unsafe fn direct(codes: *const u8, group: usize, x: *const i16) -> S::WideI;
    /// Codes of a strip and group as i16 pairs: `[group/2][16 outputs][2 inputs]`.
    unsafe fn unpack(codes: *const u8, group: usize, out: *mut u8);
}

/// How a file packs codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// AutoAWQ "gemm": words along the outputs, in the order 0 2 4 6 1 3 5 7; zero points alike.
    Awq,
    /// AutoGPTQ: words along the inputs, in order; zero points along the outputs, in order.
    Gptq {
        /// Whether zero points are stored as they are; else less one, and one is added within the
        /// bits of a code, so that the largest stored value means 0, as in AutoGPTQ.
        v2: bool,
    },
}

/// Where the packer finds a matrix.
#[derive(Clone)]
pub struct Source<'a> {
    /// How it is packed.
    pub packing: Packing,
    /// Packed codes, little-endian u32.
    pub qweight: &'a [u8],
    /// Packed zero points, one row for each group of the file.
    pub qzeros: &'a [u8],
    /// `[groups, n]` f16 bits, little-endian.
    pub scales: &'a [u8],
    /// Outputs, a multiple of [`Codes::PER_WORD`].
    pub n: usize,
    /// Inputs.
    pub k: usize,
    /// Inputs per group of the file.
    pub group: usize,
    /// The order of the inputs, if not that of the file.
    pub order: Option<Arc<InputOrder>>,
}

impl Source<'_> {
    /// The word at an index of packed numbers.
    pub(super) fn word(bytes: &[u8], at: usize) -> u32 {
        let b = &bytes[at * 4..at * 4 + 4];
        u32::from_le_bytes([b[0], b[1], b[2], b[3]])
    }

    /// The zero point of an output in a group of the file.
    fn zero(&self, bits: usize, g: usize, output: usize) -> u8 {
        let per_word = 32 / bits;
        let word = Self::word(self.qzeros, g * (self.n / per_word) + output / per_word);
        let mask = (1 << bits) - 1;
        match self.packing {
            Packing::Awq => {
                let nibble =
                    super::int4::AWQ_ORDER.iter().position(|&o| o == output % 8).expect("a permutation");
                (word >> (4 * nibble) & 15) as u8
            }
            Packing::Gptq { v2 } => {
                let stored = word >> (bits * (output % per_word)) & mask;
                ((stored + u32::from(!v2)) & mask) as u8
            }
        }
    }
}

/// A matrix in the layout of these kernels.
pub struct GroupedMatrix<C: Codes> {
    pub(super) n: usize,
    /// Inputs of the layer.
    pub(super) k: usize,
    /// Inputs per group.
    pub(super) group: usize,
    /// Groups: of `k` inputs, or of those in order.
    pub(super) groups: usize,
    pub(super) order: Option<Arc<InputOrder>>,
    pub(super) codes: Plane<u32>,
    pub(super) scales: Plane<u16>,
    pub(super) zeros: Plane<C::Zeros>,
}

impl<C: Codes> GroupedMatrix<C> {
    /// Repacks a matrix. `group` is the number of inputs per group here: a divisor of the file's, so
    /// that sums within a group cannot overflow.
    ///
    /// # Panics
    /// If the parts of the source do not have the sizes that its shape asks for, or `group` is not a
    /// multiple of 8 that divides the groups of the file, at most [`Codes::MAX_GROUP`].
    pub fn pack(pool: &mut Pool, source: &Source, group: usize) -> GroupedMatrix<C> {
        let &Source { n, k, .. } = source;
        assert!(n.is_multiple_of(C::PER_WORD) && k.is_multiple_of(C::PER_WORD) && n > 0 && k > 0);
        assert!(group.is_multiple_of(8) && group > 0 && group <= C::MAX_GROUP);
        let stored_groups = k.div_ceil(source.group);
        assert_eq!(source.qweight.len(), k * n * 4 / C::PER_WORD);
        assert_eq!(source.qzeros.len(), stored_groups * n * 4 / C::PER_WORD);
        assert_eq!(source.scales.len(), stored_groups * n * 2);
        let (padded, order) = match &source.order {
            Some(order) => {
                assert!(order.k() == k && order.block() == group);
                (order.inputs().len(), Some(Arc::clone(order)))
            }
            None => {
                assert!(
                    k.is_multiple_of(group) && (source.group.is_multiple_of(group) || stored_groups == 1)
                );
                (k, None)
            }
        };
        let (groups, strips) = (padded / group, n.div_ceil(STRIP));
        let (words, per_strip) = (padded / C::PER_WORD, STRIP * padded / C::PER_WORD);
        let mut codes = Aligned::zeroed(strips * per_strip);
        let mut scales = Aligned::zeroed(strips * STRIP * groups);
        let mut zeros = Aligned::<C::Zeros>::zeroed(strips * groups);
        // Eight strips are one cache line of each row of an AWQ file.
        const STRIPS_PER_TASK: usize = 8;
        let shared =
            (SharedMut::new(&mut codes[..]), SharedMut::new(&mut scales[..]), SharedMut::new(&mut zeros[..]));
        pool.run(strips.div_ceil(STRIPS_PER_TASK), |task, _| {
            let first = task * STRIPS_PER_TASK;
            let last = (first + STRIPS_PER_TASK).min(strips);
            let of = |per_strip: usize| first * per_strip..last * per_strip;
            // SAFETY: tasks own disjoint ranges of strips.
            let (codes, scales, zeros) = unsafe {
                (shared.0.part(of(per_strip)), shared.1.part(of(STRIP * groups)), shared.2.part(of(groups)))
            };
            C::repack_codes(source, words * C::PER_WORD, first..last, codes);
            for strip in first..last {
                for g in 0..groups {
                    let stored = match &source.order {
                        Some(order) => order.groups()[g] as usize,
                        None => g * group / source.group,
                    };
                    let at = (strip - first) * groups + g;
                    for lane in 0..STRIP.min(n - strip * STRIP) {
                        let output = strip * STRIP + lane;
                        let b = &source.scales[(stored * n + output) * 2..][..2];
                        scales[at * STRIP + lane] = u16::from_le_bytes([b[0], b[1]]);
                        let zero = source.zero(32 / C::PER_WORD, stored, output);
                        C::set_zero(&mut zeros[at], lane, zero);
                    }
                }
            }
        });
        let (codes, scales, zeros) = (Plane::Owned(codes), Plane::Owned(scales), Plane::Owned(zeros));
        GroupedMatrix { n, k, group, groups, order, codes, scales, zeros }
    }

    /// A matrix `[n, k]` that was packed before; `None` if the lengths do not fit.
    pub fn from_planes(
        (n, k, group): (usize, usize, usize),
        order: Option<Arc<InputOrder>>,
        codes: Plane<u32>,
        scales: Plane<u16>,
        zeros: Plane<C::Zeros>,
    ) -> Option<GroupedMatrix<C>> {
        if n == 0 || k == 0 || !group.is_multiple_of(8) || group == 0 || group > C::MAX_GROUP {
            return None;
        }
        let padded = match &order {
            Some(order) if order.k() == k && order.block() == group => order.inputs().len(),
            Some(_) => return None,
            None => k,
        };
        let (groups, strips) = (padded / group, n.div_ceil(STRIP));
        let fits = padded.is_multiple_of(group)
            && codes.len() == strips.checked_mul(STRIP)?.checked_mul(padded)? / C::PER_WORD
            && scales.len() == strips * STRIP * groups
            && zeros.len() == strips * groups;
        fits.then_some(GroupedMatrix { n, k, group, groups, order, codes, scales, zeros })
    }

    /// The numbers.
    pub fn planes(&self) -> Planes<'_, C> {
        Planes { codes: &self.codes, scales: &self.scales, zeros: &self.zeros }
    }

    /// Gives the matrix an equal order that it shares with others.
    pub fn share_order(&mut self, share: impl FnOnce(Arc<InputOrder>) -> Arc<InputOrder>) {
        self.order = self.order.take().map(share);
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

    /// Inputs that a row rounded for this matrix has: those of all groups.
    pub fn padded_k(&self) -> usize {
        self.groups * self.group
    }

    /// The order of its inputs, if not that of the layer.
    pub fn order(&self) -> Option<&Arc<InputOrder>> {
        self.order.as_ref()
    }

    /// Bytes in memory.
    pub fn bytes(&self) -> u64 {
        let planes = size_of_val(&*self.codes) + size_of_val(&*self.scales) + size_of_val(&*self.zeros);
        planes as u64
    }

    /// Code, zero point and scale (f16 bits) of one weight, as in the file.
    ///
    /// # Panics
    /// If there is no such weight.
    pub fn weight(&self, n: usize, k: usize) -> (u8, u8, u16) {
        assert!(n < self.n && k < self.k);
        let place = match &self.order {
            Some(order) => {
                order.inputs().iter().position(|&i| i as usize == k).expect("every input has a place")
            }
            None => k,
        };
        let (strip, lane, g) = (n / STRIP, n % STRIP, place / self.group);
        let words = self.padded_k() / C::PER_WORD;
        let word = self.codes[(strip * words + place / C::PER_WORD) * STRIP + lane];
        let at = strip * self.groups + g;
        (C::code(word, place % C::PER_WORD), C::zero(&self.zeros[at], lane), self.scales[at * STRIP + lane])
    }
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
pub fn accumulate<C: Codes>(
    isa: Isa,
    w: &GroupedMatrix<C>,
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
    let (rows, groups, group) = x.shape();
    assert!(group == w.group && groups == w.groups && m0 + m <= rows);
    assert!(m == 0 || c.len() >= m * ldc);
    assert!(scratch.len() >= self::scratch(w.group));
    let call = Call { w, planes: w.planes(), x, m0, m, scratch: scratch.as_mut_ptr().cast() };
    for strip in 0..n.div_ceil(STRIP) {
        // SAFETY: the assertions; a strip of `c` has 16 columns within `ldc`.
        unsafe { C::run(isa, &call, n0 / STRIP + strip, c.as_mut_ptr().add(strip * STRIP), ldc) };
    }
}

/// The numbers of a matrix.
pub struct Planes<'a, C: Codes> {
    /// `[strip][k / PER_WORD][16]`.
    pub codes: &'a [u32],
    /// `[strip][group][16]`, bits of f16.
    pub scales: &'a [u16],
    /// `[strip][group]`.
    pub zeros: &'a [C::Zeros],
}

/// One call of [`accumulate`].
pub struct Call<'a, C: Codes> {
    w: &'a GroupedMatrix<C>,
    planes: Planes<'a, C>,
    x: &'a QuantizedRows,
    m0: usize,
    m: usize,
    /// `STRIP · group` i16.
    scratch: *mut i16,
}

/// See [`Codes::run`].
#[inline(always)]
pub(super) unsafe fn strip_body<S: Simd, C: Unpack<S>>(
    call: &Call<C>,
    strip: usize,
    c: *mut f32,
    ldc: usize,
) {
    let Call { w, planes, x, m0, m, scratch } = call;
    let (m0, m, group) = (*m0, *m, w.group);
    for g in 0..w.groups {
        let at = strip * w.groups + g;
        // SAFETY: `at` is below strips·groups, rows are within `x`, `c` holds `m` rows of `ldc`.
        unsafe {
            let codes = planes.codes.as_ptr().add(at * (group / C::PER_WORD) * STRIP).cast::<u8>();
            let weights = Group::<S> {
                scales: S::wide_load_f16(planes.scales.as_ptr().add(at * STRIP).cast()),
                zeros: C::zeros(planes.zeros.get_unchecked(at)),
            };
            if m <= DIRECT_ROWS {
                for i in 0..m {
                    let sums = C::direct(codes, group, x.codes(g, m0 + i));
                    weights.fold(sums, x.scale_and_sum(g, m0 + i), c.add(i * ldc));
                }
                continue;
            }
            C::unpack(codes, group, scratch.cast());
            let mut i = 0;
            while i < m {
                let rows = Rows { x, g, first: m0 + i, group, weights: *scratch };
                let c = c.add(i * ldc);
                i += match m - i {
                    12.. if S::TALL => weights.pass::<12>(&rows, c, ldc),
                    6.. => weights.pass::<6>(&rows, c, ldc),
                    _ => weights.pass::<1>(&rows, c, ldc),
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

/// Rows of X in a group, and the group's unpacked weights.
struct Rows<'a> {
    x: &'a QuantizedRows,
    g: usize,
    first: usize,
    group: usize,
    weights: *const i16,
}

impl<S: Simd> Group<S> {
    /// `c = fma(f32(sums − zeros·x_sum), scales·x_scale, c)` for 16 outputs.
    #[inline(always)]
    unsafe fn fold(&self, sums: S::WideI, (x_scale, x_sum): (f32, i32), c: *mut f32) {
        // SAFETY: the caller gives 16 floats at `c`.
        unsafe {
            let exact = S::wide_sub_i(sums, S::wide_mul_i(self.zeros, S::wide_splat_i(x_sum)));
            let scale = S::wide_mul(self.scales, S::wide_splat(x_scale));
            S::wide_store(c, S::wide_fma(S::wide_to_f32(exact), scale, S::wide_load(c)));
        }
    }

    /// `M` rows of `x` against an unpacked group, folded into `c`; returns `M`.
    #[inline(always)]
    unsafe fn pass<const M: usize>(&self, rows: &Rows, c: *mut f32, ldc: usize) -> usize {
        let group = rows.group;
        // SAFETY: the scratch holds 16·group unpacked weights; the caller gives M rows of x and c.
        unsafe {
            let x = rows.x.codes(rows.g, rows.first);
            let mut acc = [S::wide_zero_i(); M];
            for k2 in 0..group / 2 {
                let w = S::wide_load_i(rows.weights.add(k2 * STRIP * 2).cast());
                for i in 0..M {
                    acc[i] = S::wide_madd16(acc[i], w, S::wide_splat_pair(x.add(i * group + 2 * k2)));
                }
            }
            for i in 0..M {
                self.fold(acc[i], rows.x.scale_and_sum(rows.g, rows.first + i), c.add(i * ldc));
            }
        }
        M
    }
}
