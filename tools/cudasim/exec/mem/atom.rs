//! `atom` and `red`: read, modify, write by each lane in turn, atomic also between host threads.

use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

use super::super::cx::Cx;
use super::super::elem::{Elem, Raw};
use super::super::inst::{ExecFn, Inst};
use super::super::lanes::{F3, conjure, vectored};
use super::{Access, addresses, resolve};

/// Memory cells that the host can change atomically.
pub(crate) trait Cell: 'static {
    /// Replaces the value by `f` of it; returns the old one.
    ///
    /// # Safety
    ///
    /// `p` is valid, aligned, and accessed by others only as `Cell`s or as the device program under test does.
    unsafe fn update(p: u64, f: impl FnMut(u64) -> u64) -> u64;
    const BYTES: u32;
}

macro_rules! cell {
    ($name:ident, $atomic:ty, $int:ty) => {
        #[doc = concat!("A cell of type `", stringify!($int), "`.")]
        pub(crate) struct $name;
        impl Cell for $name {
            #[inline(always)]
            unsafe fn update(p: u64, mut f: impl FnMut(u64) -> u64) -> u64 {
                // SAFETY: passed on to the caller.
                let cell = unsafe { <$atomic>::from_ptr(p as *mut $int) };
                let mut old = cell.load(Ordering::SeqCst);
                loop {
                    let new = f(u64::from(old)) as $int;
                    match cell.compare_exchange_weak(old, new, Ordering::SeqCst, Ordering::SeqCst) {
                        Ok(_) => return u64::from(old),
                        Err(now) => old = now,
                    }
                }
            }
            const BYTES: u32 = size_of::<$int>() as u32;
        }
    };
}
cell!(Cell16, AtomicU16, u16);
cell!(Cell32, AtomicU32, u32);
cell!(Cell64, AtomicU64, u64);

/// `ops`: address, destination, operand, second operand (for `cas`); `aux[2]` says whether there is a destination.
#[inline(always)]
unsafe fn atom_body<C: Cell, E: Elem, F: F3<E, E, E, E>>(cx: &mut Cx, i: &Inst, mask: u32) {
    // SAFETY: the decoder placed rows of these classes; `resolve` proved the pointers; the closure was decoded.
    unsafe {
        let f = conjure::<F>();
        let addr = addresses(cx, i);
        if !resolve(cx, i, mask, &addr, C::BYTES, Access::Atomic) {
            return;
        }
        cx.unwritten = false;
        cx.publish(i);
        let (b, c) = (cx.row::<E::Raw>(i.ops[2]), cx.row::<E::Raw>(i.ops[3]));
        let mut out = [E::Raw::default(); 32];
        for l in (0..32).filter(|&l| mask >> l & 1 != 0) {
            let mut changed = false;
            let old = C::update(cx.ptrs[l], |old| {
                let new = f(E::of(E::Raw::of_u64(old)), E::of(b[l]), E::of(c[l])).raw().to_u64();
                changed = new != old;
                new
            });
            if changed {
                cx.cta.warps[cx.warp].note_change(addr[l]);
            }
            out[l] = E::Raw::of_u64(old);
        }
        if cx.stats.on {
            collisions(cx, mask, &addr);
        }
        if i.aux[2] != 0 {
            cx.put(i.ops[1], &out, mask);
            cx.observe(i);
            cx.poll(mask, &addr, |l| out[l].to_u64());
        }
    }
}

/// Lanes beyond the first on one address.
fn collisions(cx: &mut Cx, mask: u32, addr: &[u64; 32]) {
    let mut seen: [u64; 32] = [0; 32];
    let mut n = 0;
    for l in (0..32).filter(|&l| mask >> l & 1 != 0) {
        if !seen[..n].contains(&addr[l]) {
            seen[n] = addr[l];
            n += 1;
        }
    }
    let m = &mut cx.stats.insts[cx.pc as usize].memory;
    m.collisions += u64::from(mask.count_ones()) - n as u64;
}

vectored!(fn atom_of<C: Cell, E: Elem, F: F3<E, E, E, E>> = atom_body);

/// `d = [a]; [a] = f(d, b, c)`
pub(crate) fn atom<C: Cell, E: Elem, F: F3<E, E, E, E>>(_: F) -> ExecFn {
    const { assert!(size_of::<F>() == 0, "the closure of an instruction captures nothing") };
    atom_of::<C, E, F>()
}
