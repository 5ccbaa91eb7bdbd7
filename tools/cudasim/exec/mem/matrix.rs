//! `ldmatrix` and `stmatrix`: 8×8 matrices of 16-bit elements between shared memory and registers.

use super::super::cx::Cx;
use super::super::inst::Inst;
use super::store::check_races;
use super::{Access, addresses, poison, resolve};

/// Lanes that give row addresses for `n` matrices.
fn address_lanes(n: u8) -> u32 {
    if n == 4 { u32::MAX } else { (1 << (8 * n)) - 1 }
}

/// `ops`: address, then a destination for each of the `aux[2]` matrices; `imm`'s offset as for loads; `pool_len` is 1
/// for `.trans`.
pub(crate) unsafe fn ldmatrix(cx: &mut Cx, i: &Inst, mask: u32) {
    let n = i.aux[2];
    let lanes = address_lanes(n) & mask;
    // SAFETY: the decoder placed an address and `n` 32-bit rows; pointers are resolved for the 16 bytes that are read.
    unsafe {
        let addr = addresses(cx, i);
        if lanes == 0 || !resolve(cx, i, lanes, &addr, 16, Access::Load) {
            return;
        }
        if cx.unwritten {
            poison(cx, lanes, 16);
        }
        for m in 0..usize::from(n) {
            if i.pool_len == 0 {
                // Four lanes hold a row of 16 bytes in order.
                let mut out = [[u32::MAX; 4]; 8];
                for (r, row) in out.iter_mut().enumerate() {
                    if lanes >> (8 * m + r) & 1 != 0 {
                        *row = (cx.ptrs[8 * m + r] as *const [u32; 4]).read();
                    }
                }
                let flat: [u32; 32] = std::mem::transmute(out);
                cx.put(i.ops[1 + m], &flat, mask);
                continue;
            }
            let mut rows = [[0xffffu16; 8]; 8];
            for (r, row) in rows.iter_mut().enumerate() {
                if lanes >> (8 * m + r) & 1 != 0 {
                    *row = (cx.ptrs[8 * m + r] as *const [u16; 8]).read();
                }
            }
            cx.put(i.ops[1 + m], &fragment(&transposed(&rows)), mask);
        }
    }
}

/// Lane 4r + c of a fragment holds elements 2c and 2c + 1 of row r.
fn fragment(rows: &[[u16; 8]; 8]) -> [u32; 32] {
    let mut out = [0; 32];
    for r in 0..8 {
        for c in 0..4 {
            out[4 * r + c] = u32::from(rows[r][2 * c]) | u32::from(rows[r][2 * c + 1]) << 16;
        }
    }
    out
}

fn rows_of(fragment: &[u32; 32]) -> [[u16; 8]; 8] {
    let mut out = [[0; 8]; 8];
    for r in 0..8 {
        for c in 0..4 {
            out[r][2 * c] = fragment[4 * r + c] as u16;
            out[r][2 * c + 1] = (fragment[4 * r + c] >> 16) as u16;
        }
    }
    out
}

fn transposed(rows: &[[u16; 8]; 8]) -> [[u16; 8]; 8] {
    let mut out = [[0; 8]; 8];
    for r in 0..8 {
        for c in 0..8 {
            out[c][r] = rows[r][c];
        }
    }
    out
}

/// `stmatrix`: operands as for [`ldmatrix`].
pub(crate) unsafe fn stmatrix(cx: &mut Cx, i: &Inst, mask: u32) {
    let n = i.aux[2];
    let lanes = address_lanes(n) & mask;
    // SAFETY: as for `ldmatrix`.
    unsafe {
        let addr = addresses(cx, i);
        if lanes == 0 || !resolve(cx, i, lanes, &addr, 16, Access::Store) {
            return;
        }
        if cx.cta.shared.checks_races() {
            check_races(cx, i, lanes, &addr, 16, |_, _| false);
        }
        for m in 0..usize::from(n) {
            let mut rows = rows_of(cx.row::<u32>(i.ops[1 + m]));
            if i.pool_len != 0 {
                rows = transposed(&rows);
            }
            for (r, row) in rows.iter().enumerate() {
                if lanes >> (8 * m + r) & 1 != 0 {
                    (cx.ptrs[8 * m + r] as *mut [u16; 8]).write(*row);
                }
            }
        }
    }
}

/// `movmatrix.trans`
pub(crate) unsafe fn movmatrix(cx: &mut Cx, i: &Inst, mask: u32) {
    // SAFETY: the decoder placed 32-bit rows.
    unsafe {
        let rows = rows_of(cx.row::<u32>(i.ops[1]));
        cx.put(i.ops[0], &fragment(&transposed(&rows)), mask);
    }
}
