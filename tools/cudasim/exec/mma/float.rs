//! `mma` of f16, bf16 and tf32: m16n8k4, k8 and k16.

use super::super::cx::Cx;
use super::super::float::half::{Bf16, F16, Format, Half16, f16_to_f32, f32_to_f16};
use super::super::inst::{ExecFn, Inst};
use super::super::lanes::vectored;
use super::{note_chain, row32};

/// Fragments of A and B in single precision.
///
/// # Safety
///
/// Further operands from `first` on are 32-bit rows, as many as the fragment has.
trait Operands: Copy + 'static {
    const K: usize;
    const A_ROWS: usize;
    const B_ROWS: usize;
    unsafe fn a(cx: &Cx, i: &Inst, first: usize, out: &mut [[f32; 16]; 16]);
    unsafe fn b(cx: &Cx, i: &Inst, first: usize, out: &mut [[f32; 8]; 16]);
}

/// Halves with `T` tiles of 8 along k.
#[derive(Clone, Copy)]
struct Halves<H: Half16, const T: usize>(std::marker::PhantomData<H>);

impl<H: Half16, const T: usize> Operands for Halves<H, T> {
    const K: usize = 8 * T;
    const A_ROWS: usize = 2 * T;
    const B_ROWS: usize = T;
    #[inline(always)]
    unsafe fn a(cx: &Cx, i: &Inst, first: usize, out: &mut [[f32; 16]; 16]) {
        // SAFETY: passed on; lane 4g + t holds elements 2t and 2t + 1 of row g, so a row of registers is an 8×8 matrix.
        unsafe {
            for j in 0..2 * T {
                let m: &[[u16; 8]; 8] = &*std::ptr::from_ref(row32(cx, i, first + j)).cast();
                for g in 0..8 {
                    let wide = H::widen(&m[g]);
                    out[8 * (j & 1) + g][8 * (j / 2)..8 * (j / 2) + 8].copy_from_slice(&wide);
                }
            }
        }
    }
    #[inline(always)]
    unsafe fn b(cx: &Cx, i: &Inst, first: usize, out: &mut [[f32; 8]; 16]) {
        // SAFETY: passed on; here the matrix is that of B transposed.
        unsafe {
            for j in 0..T {
                let m: &[[u16; 8]; 8] = &*std::ptr::from_ref(row32(cx, i, first + j)).cast();
                let mut t = [[0.0f32; 8]; 8];
                for n in 0..8 {
                    t[n] = H::widen(&m[n]);
                }
                for k in 0..8 {
                    for n in 0..8 {
                        out[8 * j + k][n] = t[n][k];
                    }
                }
            }
        }
    }
}

/// tf32 with `T` tiles of 4 along k.
#[derive(Clone, Copy)]
struct Tf32<const T: usize>;

/// Hardware ignores the low 13 bits.
#[inline(always)]
fn tf32(bits: u32) -> f32 {
    f32::from_bits(bits & 0xffff_e000)
}

impl<const T: usize> Operands for Tf32<T> {
    const K: usize = 4 * T;
    const A_ROWS: usize = 2 * T;
    const B_ROWS: usize = T;
    #[inline(always)]
    unsafe fn a(cx: &Cx, i: &Inst, first: usize, out: &mut [[f32; 16]; 16]) {
        for j in 0..2 * T {
            // SAFETY: passed on to the caller.
            let row = unsafe { row32(cx, i, first + j) };
            for l in 0..32 {
                out[8 * (j & 1) + l / 4][4 * (j / 2) + l % 4] = tf32(row[l]);
            }
        }
    }
    #[inline(always)]
    unsafe fn b(cx: &Cx, i: &Inst, first: usize, out: &mut [[f32; 8]; 16]) {
        for j in 0..T {
            // SAFETY: passed on to the caller.
            let row = unsafe { row32(cx, i, first + j) };
            for l in 0..32 {
                out[4 * j + l % 4][l / 4] = tf32(row[l]);
            }
        }
    }
}

/// `aux[1]`: 1 when c holds halves, 2 when d does.
#[inline(always)]
unsafe fn body<O: Operands>(cx: &mut Cx, i: &Inst, mask: u32) {
    // SAFETY: the decoder placed the rows of d, a, b and c, all 32-bit.
    unsafe {
        let d_rows = if i.aux[1] & 2 != 0 { 2 } else { 4 };
        let (fa, fb) = (d_rows, d_rows + O::A_ROWS);
        let fc = fb + O::B_ROWS;
        let mut a = [[0.0f32; 16]; 16];
        let mut b = [[0.0f32; 8]; 16];
        O::a(cx, i, fa, &mut a);
        O::b(cx, i, fb, &mut b);
        let mut acc = [[0.0f32; 8]; 16];
        if i.aux[1] & 1 != 0 {
            for h in 0..2 {
                let row = row32(cx, i, fc + h);
                for l in 0..32 {
                    acc[8 * h + l / 4][2 * (l % 4)] = f16_to_f32(row[l] as u16);
                    acc[8 * h + l / 4][2 * (l % 4) + 1] = f16_to_f32((row[l] >> 16) as u16);
                }
            }
        } else {
            let flat: &mut [u32; 128] = &mut *std::ptr::from_mut(&mut acc).cast();
            for h in 0..2 {
                let (x, y) = (row32(cx, i, fc + 2 * h), row32(cx, i, fc + 2 * h + 1));
                for l in 0..32 {
                    flat[64 * h + 2 * l] = x[l];
                    flat[64 * h + 2 * l + 1] = y[l];
                }
            }
        }
        // Half of the rows at a time, so that the accumulators stay in registers.
        for half in 0..2 {
            let mut sum = [[0.0f32; 8]; 8];
            sum.copy_from_slice(&acc[8 * half..8 * half + 8]);
            for k in 0..O::K {
                let bk = b[k];
                for (r, row) in sum.iter_mut().enumerate() {
                    let x = a[8 * half + r][k];
                    for n in 0..8 {
                        row[n] = x.mul_add(bk[n], row[n]);
                    }
                }
            }
            acc[8 * half..8 * half + 8].copy_from_slice(&sum);
        }
        let (d, c) = (cx.more(i, 0), cx.more(i, fc));
        if i.aux[1] & 2 != 0 {
            for h in 0..2 {
                let mut out = [0u32; 32];
                for l in 0..32 {
                    let (x, y) = (acc[8 * h + l / 4][2 * (l % 4)], acc[8 * h + l / 4][2 * (l % 4) + 1]);
                    out[l] = u32::from(f32_to_f16(x)) | u32::from(f32_to_f16(y)) << 16;
                }
                cx.put(cx.more(i, h), &out, mask);
            }
        } else {
            let flat: &[u32; 128] = &*std::ptr::from_ref(&acc).cast();
            for h in 0..2 {
                let (mut x, mut y) = ([0u32; 32], [0u32; 32]);
                for l in 0..32 {
                    x[l] = canon(flat[64 * h + 2 * l]);
                    y[l] = canon(flat[64 * h + 2 * l + 1]);
                }
                cx.put(cx.more(i, 2 * h), &x, mask);
                cx.put(cx.more(i, 2 * h + 1), &y, mask);
            }
        }
        note_chain(cx, d, c);
    }
}

#[inline(always)]
fn canon(bits: u32) -> u32 {
    if bits & 0x7fff_ffff > 0x7f80_0000 { 0x7fff_ffff } else { bits }
}

vectored!(fn of<O: Operands> = body);

/// The function for a format and k of 8 or 16.
pub(crate) fn halves(format: Format, k: u32) -> Option<ExecFn> {
    Some(match (format, k) {
        (Format::Bf16, 8) => of::<Halves<Bf16, 1>>(),
        (Format::Bf16, 16) => of::<Halves<Bf16, 2>>(),
        (Format::F16, 8) => of::<Halves<F16, 1>>(),
        (Format::F16, 16) => of::<Halves<F16, 2>>(),
        _ => return None,
    })
}

/// The function for tf32 and k of 4 or 8.
pub(crate) fn tf32s(k: u32) -> Option<ExecFn> {
    Some(match k {
        4 => of::<Tf32<1>>(),
        8 => of::<Tf32<2>>(),
        _ => return None,
    })
}
