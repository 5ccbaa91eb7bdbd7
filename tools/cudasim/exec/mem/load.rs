//! `ld` and `ldu`.

use super::super::cx::Cx;
use super::super::elem::Raw;
use super::super::inst::{ExecFn, Inst};
use super::super::lanes::vectored;
use super::{Access, addresses, mem_flag, poison, resolve};

/// A value in memory and how it is put into a register.
pub(crate) trait InMemory: Copy + 'static {
    type Raw: Raw;
    fn extend(self) -> Self::Raw;
    fn narrow(raw: Self::Raw) -> Self;
}

macro_rules! in_memory {
    ($($t:ty, $raw:ty, |$s:ident| $extend:expr, |$r:ident| $narrow:expr;)*) => {$(
        impl InMemory for $t {
            type Raw = $raw;
            #[inline(always)]
            fn extend(self) -> $raw {
                let $s = self;
                $extend
            }
            #[inline(always)]
            fn narrow($r: $raw) -> $t {
                $narrow
            }
        }
    )*};
}

in_memory! {
    u8, u32, |s| u32::from(s), |r| r as u8;
    i8, u32, |s| s as i32 as u32, |r| r as i8;
    u16, u32, |s| u32::from(s), |r| r as u16;
    i16, u32, |s| s as i32 as u32, |r| r as i16;
    u32, u32, |s| s, |r| r;
    u64, u64, |s| s, |r| r;
}

#[inline(always)]
unsafe fn load_body<E: InMemory, const VEC: usize>(cx: &mut Cx, i: &Inst, mask: u32) {
    // SAFETY: the decoder placed an address and `VEC` rows of the class of `E`; `resolve` proved the pointers.
    unsafe {
        let addr = addresses(cx, i);
        let bytes = (size_of::<E>() * VEC) as u32;
        if !resolve(cx, i, mask, &addr, bytes, Access::Load) {
            return;
        }
        if cx.unwritten {
            poison(cx, mask, bytes);
        }
        let mut out = [[E::Raw::default(); 32]; VEC];
        if mask == u32::MAX {
            for l in 0..32 {
                let p = cx.ptrs[l] as *const E;
                for (v, row) in out.iter_mut().enumerate() {
                    row[l] = p.add(v).read().extend();
                }
            }
        } else {
            let mut rest = mask;
            while rest != 0 {
                let l = rest.trailing_zeros() as usize;
                rest &= rest - 1;
                let p = cx.ptrs[l] as *const E;
                for (v, row) in out.iter_mut().enumerate() {
                    row[l] = p.add(v).read().extend();
                }
            }
        }
        for (v, row) in out.iter().enumerate() {
            cx.put(i.ops[1 + v], row, mask);
        }
        if i.aux[0] & mem_flag::ORDERED != 0 {
            let row = out[0];
            cx.observe(i);
            cx.poll(mask, &addr, |l| row[l].to_u64());
        }
    }
}

/// Loads of 16-byte scalars: two 64-bit rows.
#[inline(always)]
unsafe fn load_wide_body(cx: &mut Cx, i: &Inst, mask: u32) {
    // SAFETY: the decoder placed an address and a 128-bit row; `resolve` proved the pointers.
    unsafe {
        let addr = addresses(cx, i);
        if !resolve(cx, i, mask, &addr, 16, Access::Load) {
            return;
        }
        if cx.unwritten {
            poison(cx, mask, 16);
        }
        let mut out = [[0u64; 32]; 2];
        for l in (0..32).filter(|&l| mask >> l & 1 != 0) {
            let p = cx.ptrs[l] as *const u64;
            out[0][l] = p.read();
            out[1][l] = p.add(1).read();
        }
        cx.put(i.ops[1], &out[0], mask);
        cx.put(i.ops[1] + 64, &out[1], mask);
        if i.aux[0] & mem_flag::ORDERED != 0 {
            cx.observe(i);
            cx.poll(mask, &addr, |l| out[0][l] ^ out[1][l].rotate_left(32));
        }
    }
}

vectored!(fn load_of<E: InMemory>[const VEC: usize] = load_body);
vectored!(
    /// `ld.b128`
    pub(crate) fn load_wide<> = load_wide_body
);

/// The load for elements of a size, a signedness and a vector length; `None` when there is none.
pub(crate) fn load(bytes: u32, signed: bool, vector: usize) -> Option<ExecFn> {
    fn of<E: InMemory>(vector: usize) -> Option<ExecFn> {
        Some(match vector {
            1 => load_of::<E, 1>(),
            2 => load_of::<E, 2>(),
            4 => load_of::<E, 4>(),
            _ => return None,
        })
    }
    match (bytes, signed) {
        (1, false) => of::<u8>(vector),
        (1, true) => of::<i8>(vector),
        (2, false) => of::<u16>(vector),
        (2, true) => of::<i16>(vector),
        (4, _) => of::<u32>(vector),
        (8, _) if vector <= 4 => of::<u64>(vector),
        (16, _) if vector == 1 => Some(load_wide()),
        _ => None,
    }
}
