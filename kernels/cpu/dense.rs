//! dense: `C[m,n] += X[m,k] · W[n,k]ᵀ` for weights in f32, f16 or bf16, row-major as in the file.
//!
//! order   per output, k in blocks of `DENSE_K_BLOCK` (256): within a block eight partial sums, one
//!         for each k mod 8, by fused multiply-add in ascending k, joined by the tree of
//!         `Simd::sum`; blocks are added in ascending order. Independent of m, n and tiles.
//! layout  W is read where the file is mapped, never copied whole. Up to three rows of X: weights are
//!         converted in registers, each read once. More: a block of n x 256 weights is converted into
//!         scratch, in the order in which it is read, and stays in L2 while all rows of the tile pass, twelve at a
//!         time, in L1.
//! tile    3 rows x 4 outputs: 12 accumulators of 8 lanes, 7 loads for 12 multiply-adds. With AVX-512 6 rows x 8
//!         outputs, two of which share a register: 10 loads for 24 multiply-adds of 16 lanes.
//! bytes   n·k·size of W once per tile of rows; X from cache.
//! bound   m <= 3: memory bandwidth; m >= 32: fused multiply-adds, 2·m·n·k FLOP.

use qwenvl_graph::DType;
use qwenvl_graph::kernel::{DENSE_K_BLOCK, DENSE_PANEL};

use super::simd::Simd;
use super::{Isa, dispatch};

/// Rows of X up to which weights are converted in registers.
const DIRECT_ROWS: usize = TILE_ROWS;
/// Rows of a register tile.
const TILE_ROWS: usize = 3;
/// Outputs of a register tile.
const TILE_OUTPUTS: usize = 4;
/// Rows of X that a panel of weights meets while it is in L1.
const PASS_ROWS: usize = 12;

/// f32 of scratch that [`accumulate`] needs for `n` outputs.
pub const fn scratch(n: usize) -> usize {
    n.next_multiple_of(DENSE_PANEL) * DENSE_K_BLOCK
}

/// A row-major matrix `[n, k]` of f32, f16 or bf16 in little-endian bytes, which need not be aligned.
#[derive(Clone, Copy, Debug)]
pub struct DenseMatrix<'a> {
    bytes: &'a [u8],
    dtype: DType,
    n: usize,
    k: usize,
}

impl<'a> DenseMatrix<'a> {
    /// # Panics
    /// If the type is not a float or the bytes are not exactly `n·k` numbers.
    pub fn new(bytes: &'a [u8], dtype: DType, n: usize, k: usize) -> Self {
        assert!(dtype.is_float(), "a dense matrix of {dtype}");
        assert_eq!(
            bytes.len() as u64,
            n as u64 * k as u64 * dtype.size_bytes(),
            "bytes of a [{n}, {k}] {dtype} matrix"
        );
        DenseMatrix { bytes, dtype, n, k }
    }

    /// Outputs.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Inputs.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Row `row` converted to f32.
    ///
    /// # Panics
    /// If there is no such row, or `out` has not `k` elements.
    pub fn row_to_f32(&self, row: usize, out: &mut [f32]) {
        assert_eq!(out.len(), self.k);
        let size = self.dtype.size_bytes() as usize;
        let bytes = &self.bytes[row * self.k * size..(row + 1) * self.k * size];
        for (x, b) in out.iter_mut().zip(bytes.chunks_exact(size)) {
            *x = match self.dtype {
                DType::BF16 => half::bf16::from_le_bytes([b[0], b[1]]).to_f32(),
                DType::F16 => half::f16::from_le_bytes([b[0], b[1]]).to_f32(),
                _ => f32::from_le_bytes([b[0], b[1], b[2], b[3]]),
            };
        }
    }
}

/// `c[i·ldc + j] += Σ x[i·k ..] · w[n0 + j]` for `i < m`, `j < n`.
///
/// # Panics
/// If a slice is too short for `m` rows, or `n0 + n` is beyond the matrix, or `scratch` is shorter
/// than [`scratch`] says.
pub fn accumulate(
    isa: Isa,
    w: &DenseMatrix,
    n0: usize,
    n: usize,
    x: &[f32],
    m: usize,
    c: &mut [f32],
    ldc: usize,
    scratch: &mut [f32],
) {
    assert!(n0 + n <= w.n && n <= ldc && x.len() == m * w.k);
    assert!(m == 0 || c.len() >= (m - 1) * ldc + n);
    assert!(scratch.len() >= self::scratch(n));
    let size = w.dtype.size_bytes() as usize;
    let start = &w.bytes[n0 * w.k * size..];
    let tile = Tile {
        w: start.as_ptr(),
        k: w.k,
        n,
        x: x.as_ptr(),
        m,
        c: c.as_mut_ptr(),
        ldc,
        scratch: scratch.as_mut_ptr(),
    };
    // SAFETY: the assertions give the extents that `Tile` names.
    unsafe {
        match w.dtype {
            DType::BF16 => tile_bf16(isa, &tile),
            DType::F16 => tile_f16(isa, &tile),
            _ => tile_f32(isa, &tile),
        }
    }
}

/// Pointers to `n` rows of `k` weights, `m` rows of `k` inputs, `m` rows of `ldc` outputs, and
/// `scratch(n)` floats.
struct Tile {
    w: *const u8,
    k: usize,
    n: usize,
    x: *const f32,
    m: usize,
    c: *mut f32,
    ldc: usize,
    scratch: *mut f32,
}

dispatch!(fn tile_bf16 => run_bf16(tile: &Tile));
dispatch!(fn tile_f16 => run_f16(tile: &Tile));
dispatch!(fn tile_f32 => run_f32(tile: &Tile));

#[inline(always)]
unsafe fn run_bf16<S: Simd>(tile: &Tile) {
    // SAFETY: the caller's contract.
    unsafe { run::<S, Bf16>(tile) }
}

#[inline(always)]
unsafe fn run_f16<S: Simd>(tile: &Tile) {
    // SAFETY: the caller's contract.
    unsafe { run::<S, F16>(tile) }
}

#[inline(always)]
unsafe fn run_f32<S: Simd>(tile: &Tile) {
    // SAFETY: the caller's contract.
    unsafe { run::<S, F32>(tile) }
}

/// How stored weights become f32.
trait Elem {
    const SIZE: usize;
    /// Reads eight.
    unsafe fn load<S: Simd>(p: *const u8) -> S::F;
    /// Reads one.
    unsafe fn one(p: *const u8) -> f32;
}

struct Bf16;
struct F16;
struct F32;

// SAFETY (all three): the pointers are valid for the elements named.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Elem for Bf16 {
    const SIZE: usize = 2;
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const u8) -> S::F {
        unsafe { S::load_bf16(p) }
    }
    #[inline(always)]
    unsafe fn one(p: *const u8) -> f32 {
        half::bf16::from_le_bytes(unsafe { p.cast::<[u8; 2]>().read() }).to_f32()
    }
}
#[allow(clippy::undocumented_unsafe_blocks)]
impl Elem for F16 {
    const SIZE: usize = 2;
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const u8) -> S::F {
        unsafe { S::load_f16(p) }
    }
    #[inline(always)]
    unsafe fn one(p: *const u8) -> f32 {
        half::f16::from_le_bytes(unsafe { p.cast::<[u8; 2]>().read() }).to_f32()
    }
}
#[allow(clippy::undocumented_unsafe_blocks)]
impl Elem for F32 {
    const SIZE: usize = 4;
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const u8) -> S::F {
        unsafe { S::load(p.cast()) }
    }
    #[inline(always)]
    unsafe fn one(p: *const u8) -> f32 {
        f32::from_le_bytes(unsafe { p.cast::<[u8; 4]>().read() })
    }
}

/// Eight weights, the first `count` of them read and the rest zero.
#[inline(always)]
unsafe fn load_some<S: Simd, E: Elem>(p: *const u8, count: usize) -> S::F {
    // SAFETY: the caller gives `count` readable elements.
    unsafe {
        if count >= 8 {
            return E::load::<S>(p);
        }
        let mut padded = [0f32; 8];
        for (i, slot) in padded.iter_mut().enumerate().take(count) {
            *slot = E::one(p.add(i * E::SIZE));
        }
        S::load(padded.as_ptr())
    }
}

#[inline(always)]
unsafe fn run<S: Simd, E: Elem>(t: &Tile) {
    // SAFETY: the extents are those that `Tile` names.
    unsafe {
        if t.m <= DIRECT_ROWS {
            return direct::<S, E>(t);
        }
        let mut k0 = 0;
        while k0 < t.k {
            let len = (t.k - k0).min(DENSE_K_BLOCK);
            packed_block::<S, E>(t, k0, len);
            k0 += len;
        }
    }
}

/// Few rows: weights are converted in registers, each row of them read from one end to the other.
#[inline(always)]
unsafe fn direct<S: Simd, E: Elem>(t: &Tile) {
    // SAFETY: every pointer below stays within the extents that `Tile` names.
    unsafe {
        let mut n = 0;
        while n < t.n {
            let mut k0 = 0;
            while k0 < t.k {
                let len = (t.k - k0).min(DENSE_K_BLOCK);
                let (x, w, c) = (t.x.add(k0), t.w.add((n * t.k + k0) * E::SIZE), t.c.add(n));
                match (t.n - n, t.m) {
                    (TILE_OUTPUTS.., 3) => dots::<S, E, TILE_OUTPUTS, 3>(t, w, len, x, c),
                    (TILE_OUTPUTS.., 2) => dots::<S, E, TILE_OUTPUTS, 2>(t, w, len, x, c),
                    (TILE_OUTPUTS.., 1) => dots::<S, E, TILE_OUTPUTS, 1>(t, w, len, x, c),
                    (left, m) => {
                        for j in 0..left {
                            for i in 0..m {
                                let (w, x) = (w.add(j * t.k * E::SIZE), x.add(i * t.k));
                                dots::<S, E, 1, 1>(t, w, len, x, c.add(i * t.ldc + j));
                            }
                        }
                    }
                }
                k0 += len;
            }
            n += TILE_OUTPUTS;
        }
    }
}

/// `c[i·ldc + j] += Σ_{l < len} x[i·k + l] · w[j·k + l]` for `j < N`, `i < M`.
#[inline(always)]
unsafe fn dots<S: Simd, E: Elem, const N: usize, const M: usize>(
    t: &Tile,
    w: *const u8,
    len: usize,
    x: *const f32,
    c: *mut f32,
) {
    // SAFETY: the caller's extents; the loads of the last, partial eight are bounded by `len`.
    unsafe {
        let mut acc = [[S::splat(0.0); N]; M];
        let mut l = 0;
        while l < len {
            let mut xv = [S::splat(0.0); M];
            for i in 0..M {
                xv[i] = load_some::<S, F32>(x.add(i * t.k + l).cast(), len - l);
            }
            for j in 0..N {
                let w = w.add((j * t.k + l) * E::SIZE);
                // The same place in the next outputs.
                S::prefetch(w.wrapping_add(N * t.k * E::SIZE));
                let wv = load_some::<S, E>(w, len - l);
                for i in 0..M {
                    acc[i][j] = S::fma(wv, xv[i], acc[i][j]);
                }
            }
            l += 8;
        }
        for i in 0..M {
            let c = c.add(i * t.ldc);
            if N == TILE_OUTPUTS {
                let sums = S::sum4([acc[i][0], acc[i][1 % N], acc[i][2 % N], acc[i][3 % N]]);
                for j in 0..N {
                    *c.add(j) += sums[j];
                }
            } else {
                for j in 0..N {
                    *c.add(j) += S::sum(acc[i][j]);
                }
            }
        }
    }
}

/// A block of inputs for many rows. Weights are converted and packed panel by panel, as `[k/8][outputs][8]`, in the
/// order in which a tile reads them; rows are read where they are.
#[inline(always)]
unsafe fn packed_block<S: Simd, E: Elem>(t: &Tile, k0: usize, len: usize) {
    // SAFETY: every pointer below stays within the extents that `Tile` names.
    unsafe {
        let (steps, outputs) = (len.div_ceil(8), panel_outputs::<S>());
        for n in 0..t.n {
            let panel = t.scratch.add(n / outputs * outputs * steps * 8);
            let from = t.w.add((n * t.k + k0) * E::SIZE);
            convert::<S, E>(from, len, panel.add(place::<S>(n % outputs)), outputs);
        }
        let mut i = 0;
        while i < t.m {
            let count = (t.m - i).min(PASS_ROWS);
            let mut n = 0;
            while n < t.n {
                let mut r = i;
                while r < i + count {
                    let panel = Panel {
                        w: t.scratch.add(n * steps * 8),
                        x: t.x.add(r * t.k + k0),
                        ldx: t.k,
                        len,
                        c: t.c.add(r * t.ldc + n),
                        ldc: t.ldc,
                        outputs: (t.n - n).min(outputs),
                    };
                    let m = tile_rows::<S>(i + count - r);
                    match m {
                        6 => panel.add::<S, 6>(),
                        3 => panel.add::<S, 3>(),
                        2 => panel.add::<S, 2>(),
                        _ => panel.add::<S, 1>(),
                    }
                    r += m;
                }
                n += outputs;
            }
            i += count;
        }
    }
}

/// Rows of the next tile, of those that are left.
#[inline(always)]
fn tile_rows<S: Simd>(left: usize) -> usize {
    match left {
        6.. if S::TALL => 6,
        _ => left.min(TILE_ROWS),
    }
}

/// Outputs of a panel: as many as there are registers for.
#[inline(always)]
fn panel_outputs<S: Simd>() -> usize {
    if S::TALL { 2 * TILE_OUTPUTS } else { TILE_OUTPUTS }
}

/// Where the eights of an output are in a step of its panel. Outputs `o` and `o + 4` of a wide panel share a register,
/// so that their sums come out of [`Simd::wide_sums`] in order.
#[inline(always)]
fn place<S: Simd>(output: usize) -> usize {
    if S::TALL { output % 4 * 16 + output / 4 * 8 } else { output * 8 }
}

/// `len` numbers as f32 in eights, padded with zeros; the eights go `every` eights apart.
#[inline(always)]
unsafe fn convert<S: Simd, E: Elem>(from: *const u8, len: usize, to: *mut f32, every: usize) {
    // SAFETY: the caller gives `len` elements and room for `len/8` eights.
    unsafe {
        let mut k = 0;
        while k + 32 <= len {
            for i in 0..4 {
                let k = k + 8 * i;
                S::store(to.add(k * every), E::load::<S>(from.add(k * E::SIZE)));
            }
            k += 32;
        }
        while k + 8 <= len {
            S::store(to.add(k * every), E::load::<S>(from.add(k * E::SIZE)));
            k += 8;
        }
        if k < len {
            S::store(to.add(k * every), load_some::<S, E>(from.add(k * E::SIZE), len - k));
        }
    }
}

/// A packed panel of weights, rows of X and of C.
#[derive(Clone, Copy)]
struct Panel {
    w: *const f32,
    x: *const f32,
    ldx: usize,
    len: usize,
    c: *mut f32,
    ldc: usize,
    /// Of those of the panel, how many there are.
    outputs: usize,
}

impl Panel {
    /// `c[i·ldc + j] += Σ_{l < len} x[i·ldx + l] · w[j, l]` for `i < M`, `j < outputs`.
    #[inline(always)]
    unsafe fn add<S: Simd, const M: usize>(self) {
        // SAFETY: the extents that the fields name.
        unsafe {
            if S::TALL {
                let sums = self.wide_sums::<S, M>();
                for i in 0..M {
                    let c = self.c.add(i * self.ldc);
                    if self.outputs == 2 * TILE_OUTPUTS {
                        S::store(c, S::add(S::load(c), sums[i]));
                    } else {
                        let mut eight = [0f32; 2 * TILE_OUTPUTS];
                        S::store(eight.as_mut_ptr(), sums[i]);
                        (0..self.outputs).for_each(|j| *c.add(j) += eight[j]);
                    }
                }
            } else {
                let sums = self.sums::<S, M>();
                for i in 0..M {
                    let c = self.c.add(i * self.ldc);
                    if self.outputs == TILE_OUTPUTS {
                        let mut four = c.cast::<[f32; TILE_OUTPUTS]>().read_unaligned();
                        for j in 0..TILE_OUTPUTS {
                            four[j] += sums[i][j];
                        }
                        c.cast::<[f32; TILE_OUTPUTS]>().write_unaligned(four);
                    } else {
                        (0..self.outputs).for_each(|j| *c.add(j) += sums[i][j]);
                    }
                }
            }
        }
    }

    /// The last, partial eight of each row, padded with zeros; rows are `8` apart.
    #[inline(always)]
    unsafe fn tail<S: Simd, const M: usize>(self) -> [[f32; 8]; M] {
        // SAFETY: `len % 8` elements are left of each row.
        unsafe {
            let mut rows = [[0f32; 8]; M];
            for i in 0..M {
                let from = self.x.add(i * self.ldx + self.len / 8 * 8);
                S::store(rows[i].as_mut_ptr(), load_some::<S, F32>(from.cast(), self.len % 8));
            }
            rows
        }
    }

    /// The products of eight outputs, two to a register.
    #[inline(always)]
    unsafe fn wide_sums<S: Simd, const M: usize>(self) -> [S::F; M] {
        // SAFETY: the extents that the fields name.
        unsafe {
            let mut acc = [[S::wide_splat(0.0); 4]; M];
            let (mut w, mut x) = (self.w, self.x);
            for _ in 0..self.len / 8 {
                wide_step::<S, M>(&mut acc, w, x, self.ldx);
                (w, x) = (w.add(16 * TILE_OUTPUTS), x.add(8));
            }
            if !self.len.is_multiple_of(8) {
                wide_step::<S, M>(&mut acc, w, self.tail::<S, M>().as_ptr().cast(), 8);
            }
            let mut sums = [S::splat(0.0); M];
            let mut i = 0;
            while i < M {
                // Two rows at a time; a last, odd one twice.
                let j = (i + 1).min(M - 1);
                let ([a, b, c, d], [e, f, g, h]) = (acc[i], acc[j]);
                [sums[i], sums[j]] = S::wide_sums([a, b, c, d, e, f, g, h]);
                i += 2;
            }
            sums
        }
    }

    /// The products of four outputs.
    #[inline(always)]
    unsafe fn sums<S: Simd, const M: usize>(self) -> [[f32; TILE_OUTPUTS]; M] {
        // SAFETY: the extents that the fields name.
        unsafe {
            let mut acc = [[S::splat(0.0); TILE_OUTPUTS]; M];
            let (mut w, mut x) = (self.w, self.x);
            for _ in 0..self.len / 8 {
                step::<S, M>(&mut acc, w, x, self.ldx);
                (w, x) = (w.add(8 * TILE_OUTPUTS), x.add(8));
            }
            if !self.len.is_multiple_of(8) {
                step::<S, M>(&mut acc, w, self.tail::<S, M>().as_ptr().cast(), 8);
            }
            let mut sums = [[0.0; TILE_OUTPUTS]; M];
            for i in 0..M {
                sums[i] = S::sum4(acc[i]);
            }
            sums
        }
    }
}

/// Eight inputs of `M` rows and eight outputs.
#[inline(always)]
unsafe fn wide_step<S: Simd, const M: usize>(
    acc: &mut [[S::Wide; 4]; M],
    w: *const f32,
    x: *const f32,
    ldx: usize,
) {
    // SAFETY: the caller gives a step of the panel and eight of each row.
    unsafe {
        let mut wv = [S::wide_splat(0.0); 4];
        for j in 0..4 {
            wv[j] = S::wide_load(w.add(16 * j));
        }
        for i in 0..M {
            let xv = S::wide_twice(x.add(i * ldx));
            for j in 0..4 {
                acc[i][j] = S::wide_fma(wv[j], xv, acc[i][j]);
            }
        }
    }
}

/// Eight inputs of `M` rows and four outputs.
#[inline(always)]
unsafe fn step<S: Simd, const M: usize>(
    acc: &mut [[S::F; TILE_OUTPUTS]; M],
    w: *const f32,
    x: *const f32,
    ldx: usize,
) {
    // SAFETY: the caller gives a step of the panel and eight of each row.
    unsafe {
        // Rows and one vector of weights at a time: with the accumulators, 16 registers.
        let mut xv = [S::splat(0.0); M];
        for i in 0..M {
            xv[i] = S::load(x.add(i * ldx));
        }
        for j in 0..TILE_OUTPUTS {
            let wv = S::load(w.add(j * 8));
            for i in 0..M {
                acc[i][j] = S::fma(wv, xv[i], acc[i][j]);
            }
        }
    }
}
