//! `st`.

use super::super::cx::Cx;
use super::super::inst::{ExecFn, Inst};
use super::super::lanes::vectored;
use super::load::InMemory;
use super::{Access, accessor, addresses, mem_flag, race, resolve};
use crate::decode::dec::SHARED_WINDOW;

#[inline(always)]
unsafe fn store_body<E: InMemory, const VEC: usize>(cx: &mut Cx, i: &Inst, mask: u32) {
    // SAFETY: the decoder placed an address and `VEC` rows of the class of `E`; `resolve` proved the pointers.
    unsafe {
        let addr = addresses(cx, i);
        let bytes = (size_of::<E>() * VEC) as u32;
        if !resolve(cx, i, mask, &addr, bytes, Access::Store) {
            return;
        }
        let rows: [&[E::Raw; 32]; VEC] = std::array::from_fn(|v| cx.row::<E::Raw>(i.ops[1 + v]));
        if cx.cta.shared.checks_races() && i.aux[0] & mem_flag::ORDERED == 0 {
            let values: [[E; 32]; VEC] = std::array::from_fn(|v| rows[v].map(E::narrow));
            check_races(cx, i, mask, &addr, bytes, |l, p| {
                let mut lane = [values[0][l]; VEC];
                for v in 0..VEC {
                    lane[v] = values[v][l];
                }
                let new = std::slice::from_raw_parts(lane.as_ptr().cast::<u8>(), size_of::<E>() * VEC);
                new == std::slice::from_raw_parts(p as *const u8, size_of::<E>() * VEC)
            });
        }
        let mut rest = mask;
        while rest != 0 {
            let l = rest.trailing_zeros() as usize;
            rest &= rest - 1;
            let p = cx.ptrs[l] as *mut E;
            for (v, row) in rows.iter().enumerate() {
                p.add(v).write(E::narrow(row[l]));
            }
        }
    }
}

#[inline(always)]
unsafe fn store_wide_body(cx: &mut Cx, i: &Inst, mask: u32) {
    // SAFETY: the decoder placed an address and a 128-bit row; `resolve` proved the pointers.
    unsafe {
        let addr = addresses(cx, i);
        if !resolve(cx, i, mask, &addr, 16, Access::Store) {
            return;
        }
        let (low, high) = (cx.row::<u64>(i.ops[1]), cx.row::<u64>(i.ops[1] + 64));
        if cx.cta.shared.checks_races() && i.aux[0] & mem_flag::ORDERED == 0 {
            check_races(cx, i, mask, &addr, 16, |_, _| false);
        }
        for l in (0..32).filter(|&l| mask >> l & 1 != 0) {
            let p = cx.ptrs[l] as *mut u64;
            p.write(low[l]);
            p.add(1).write(high[l]);
        }
    }
}

/// Records the lanes that write shared memory. `same` says whether a lane writes what is there already.
#[inline(never)]
pub(crate) fn check_races(
    cx: &mut Cx,
    i: &Inst,
    mask: u32,
    addr: &[u64; 32],
    bytes: u32,
    same: impl Fn(usize, u64) -> bool,
) {
    let mut by = accessor(cx, 0);
    let mut found = None;
    for l in (0..32u32).filter(|&l| mask >> l & 1 != 0) {
        let at = addr[l as usize];
        let is_shared = i.aux[1] == super::space::SHARED
            || (i.aux[1] == super::space::GENERIC && at & !0xffff_ffff == SHARED_WINDOW);
        if !is_shared {
            continue;
        }
        by.lane = l as u8;
        let unchanged = same(l as usize, cx.ptrs[l as usize]);
        let conflict = cx.cta.shared.write(at as u32, bytes, &by, unchanged);
        if found.is_none() {
            found = conflict.map(|c| (c, l));
        }
    }
    if let Some((conflict, lane)) = found {
        race(cx, conflict, lane, addr[lane as usize]);
    }
}

vectored!(fn store_of<E: InMemory>[const VEC: usize] = store_body);
vectored!(
    /// `st.b128`
    pub(crate) fn store_wide<> = store_wide_body
);

/// The store for elements of a size and a vector length; `None` when there is none.
pub(crate) fn store(bytes: u32, vector: usize) -> Option<ExecFn> {
    fn of<E: InMemory>(vector: usize) -> Option<ExecFn> {
        Some(match vector {
            1 => store_of::<E, 1>(),
            2 => store_of::<E, 2>(),
            4 => store_of::<E, 4>(),
            _ => return None,
        })
    }
    match bytes {
        1 => of::<u8>(vector),
        2 => of::<u16>(vector),
        4 => of::<u32>(vector),
        8 if vector <= 4 => of::<u64>(vector),
        16 if vector == 1 => Some(store_wide()),
        _ => None,
    }
}
