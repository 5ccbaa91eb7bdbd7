//! dense: `C[m,n] += X[m,k] · W[n,k]ᵀ` for weights in f32, f16 or bf16, row-major as in the file.
//!
//! order   per output, k in blocks of `DENSE_K_BLOCK` (256): within a block eight partial sums, one
//!         for each k mod 8, by fused multiply-add in ascending k, joined by the tree of
//!         `Simd::sum`; blocks are added in ascending order. Independent of m, n and tiles.
//! layout  W is read where the file is mapped, never copied whole. Up to three rows of X: weights are
//!         converted in registers, each read once. More: a block of n x 256 weights is converted into
//!         scratch that stays in L2 while all rows of the tile pass, twelve at a time, packed, in L1.
//! tile    3 rows x 4 outputs: 12 accumulators of 8 lanes, 7 loads for 12 multiply-adds.
//! bytes   n·k·size of W once per tile of rows; X from cache.
//! bound   m <= 3: memory bandwidth; m >= 32: fused multiply-adds, 2·m·n·k FLOP.

use qwenvl_graph::DType;
use qwenvl_graph::kernel::{DENSE_K_BLOCK, DENSE_PACKED_ROWS};

use super::simd::Simd;
use super::{Isa, dispatch};

/// Rows of X up to which weights are converted in registers.
const DIRECT_ROWS: usize = TILE_ROWS;
/// Rows of a register tile.
const TILE_ROWS: usize = 3;
/// Outputs of a register tile.
const TILE_OUTPUTS: usize = 4;
/// Rows of X that are packed at a time.
const PACKED_ROWS: usize = DENSE_PACKED_ROWS;

/// f32 of scratch that [`accumulate`] needs for `n` outputs.
pub const fn scratch(n: usize) -> usize {
    (n + PACKED_ROWS) * DENSE_K_BLOCK
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
    // SAFETY: every pointer below stays within the extents that `Tile` names.
    unsafe {
        if t.m <= DIRECT_ROWS {
            let mut n = 0;
            while n < t.n {
                let outputs = (t.n - n).min(TILE_OUTPUTS);
                let mut k0 = 0;
                while k0 < t.k {
                    let len = (t.k - k0).min(DENSE_K_BLOCK);
                    let w = t.w.add((n * t.k + k0) * E::SIZE);
                    tile::<S, E>(outputs, t.m, w, t.k, len, t.x.add(k0), t.k, t.c.add(n), t.ldc);
                    k0 += len;
                }
                n += outputs;
            }
            return;
        }
        let (weights, rows) = (t.scratch, t.scratch.add(t.n * DENSE_K_BLOCK));
        let mut k0 = 0;
        while k0 < t.k {
            let len = (t.k - k0).min(DENSE_K_BLOCK);
            // What is padded with zeros adds nothing.
            let padded = len.next_multiple_of(8);
            for n in 0..t.n {
                convert::<S, E>(t.w.add((n * t.k + k0) * E::SIZE), len, weights.add(n * DENSE_K_BLOCK));
            }
            let mut i = 0;
            while i < t.m {
                let count = (t.m - i).min(PACKED_ROWS);
                for r in 0..count {
                    let from = t.x.add((i + r) * t.k + k0).cast();
                    convert::<S, F32>(from, len, rows.add(r * DENSE_K_BLOCK));
                }
                let mut n = 0;
                while n < t.n {
                    let outputs = (t.n - n).min(TILE_OUTPUTS);
                    let w = weights.add(n * DENSE_K_BLOCK).cast();
                    let mut r = 0;
                    while r < count {
                        let m = (count - r).min(TILE_ROWS);
                        let (x, c) = (rows.add(r * DENSE_K_BLOCK), t.c.add((i + r) * t.ldc + n));
                        tile::<S, F32>(outputs, m, w, DENSE_K_BLOCK, padded, x, DENSE_K_BLOCK, c, t.ldc);
                        r += m;
                    }
                    n += outputs;
                }
                i += count;
            }
            k0 += len;
        }
    }
}

/// `len` numbers as f32, padded with zeros to whole eights.
#[inline(always)]
unsafe fn convert<S: Simd, E: Elem>(from: *const u8, len: usize, to: *mut f32) {
    // SAFETY: the caller gives `len` elements and room for the next multiple of 8.
    unsafe {
        let mut k = 0;
        while k < len {
            S::store(to.add(k), load_some::<S, E>(from.add(k * E::SIZE), len - k));
            k += 8;
        }
    }
}

/// `c[i·ldc + j] += Σ_{k < len} x[i·ldx + k] · w[j·ldw + k]` for `j < n <= 4`, `i < m <= 3`.
#[inline(always)]
unsafe fn tile<S: Simd, E: Elem>(
    n: usize,
    m: usize,
    w: *const u8,
    ldw: usize,
    len: usize,
    x: *const f32,
    ldx: usize,
    c: *mut f32,
    ldc: usize,
) {
    // SAFETY: the caller's extents.
    unsafe {
        match (n, m) {
            (4, 3) => dots::<S, E, 4, 3>(w, ldw, len, x, ldx, c, ldc),
            (4, 2) => dots::<S, E, 4, 2>(w, ldw, len, x, ldx, c, ldc),
            (4, 1) => dots::<S, E, 4, 1>(w, ldw, len, x, ldx, c, ldc),
            (n, m) => {
                for j in 0..n {
                    for i in 0..m {
                        let (w, x) = (w.add(j * ldw * E::SIZE), x.add(i * ldx));
                        dots::<S, E, 1, 1>(w, ldw, len, x, ldx, c.add(i * ldc + j), ldc);
                    }
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn dots<S: Simd, E: Elem, const N: usize, const M: usize>(
    w: *const u8,
    ldw: usize,
    len: usize,
    x: *const f32,
    ldx: usize,
    c: *mut f32,
    ldc: usize,
) {
    // SAFETY: the caller's extents; the loads of the last, partial eight are bounded by `len`.
    unsafe {
        let mut acc = [[S::splat(0.0); N]; M];
        let mut k = 0;
        while k + 8 <= len {
            // M rows and one weight vector at a time: with the accumulators, 16 registers.
            let mut xv = [S::splat(0.0); M];
            for i in 0..M {
                xv[i] = S::load(x.add(i * ldx + k));
            }
            for j in 0..N {
                let wv = E::load::<S>(w.add((j * ldw + k) * E::SIZE));
                for i in 0..M {
                    acc[i][j] = S::fma(wv, xv[i], acc[i][j]);
                }
            }
            k += 8;
        }
        if k < len {
            for i in 0..M {
                let xv = load_some::<S, F32>(x.add(i * ldx + k).cast(), len - k);
                for j in 0..N {
                    let wv = load_some::<S, E>(w.add((j * ldw + k) * E::SIZE), len - k);
                    acc[i][j] = S::fma(wv, xv, acc[i][j]);
                }
            }
        }
        for i in 0..M {
            let c = c.add(i * ldc);
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
