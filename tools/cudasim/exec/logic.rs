//! Bitwise functions with a table or a mode in the instruction.

use super::cx::Cx;
use super::inst::{ExecFn, Inst};
use super::lanes::vectored;

/// `lop3`: the truth table is `imm`.
#[inline(always)]
unsafe fn lop3_body(cx: &mut Cx, i: &Inst, mask: u32) {
    // SAFETY: the decoder placed 32-bit rows; with `aux[1]` also predicates.
    unsafe {
        let (a, b, c) = (cx.row::<u32>(i.ops[1]), cx.row::<u32>(i.ops[2]), cx.row::<u32>(i.ops[3]));
        let table = i.imm as u32;
        let bit = |n: u32| 0u32.wrapping_sub(table >> n & 1);
        // For each pair of bits of a and b the result is one of 0, c, !c, 1: (c & x) ^ y.
        let term = |n: u32| (bit(n) ^ bit(n + 1), bit(n));
        let (t0, t1, t2, t3) = (term(0), term(2), term(4), term(6));
        let mut out = [0u32; 32];
        for l in 0..32 {
            let (x, y, z) = (a[l], b[l], c[l]);
            let (f0, f1) = ((z & t0.0) ^ t0.1, (z & t1.0) ^ t1.1);
            let (f2, f3) = ((z & t2.0) ^ t2.1, (z & t3.0) ^ t3.1);
            let low = f0 ^ ((f0 ^ f1) & y);
            let high = f2 ^ ((f2 ^ f3) & y);
            out[l] = low ^ ((low ^ high) & x);
        }
        cx.put(i.ops[0], &out, mask);
        if i.aux[1] != 0 {
            let mut nonzero = 0;
            for (l, o) in out.iter().enumerate() {
                nonzero |= u32::from(*o != 0) << l;
            }
            let q = cx.pred(i.ops[4]);
            let p = match i.aux[1] {
                1 => nonzero & q,
                2 => nonzero | q,
                _ => nonzero ^ q,
            };
            cx.put_pred(cx.more(i, 0), p, mask);
        }
    }
}

vectored!(
    /// `lop3`
    pub(crate) fn lop3<> = lop3_body
);

/// `lop3` for tables that have a short formula.
pub(crate) fn lop3_of(table: u8) -> ExecFn {
    use super::lanes::ter;
    match table {
        0xc0 => ter(|a: u32, b: u32, _: u32| a & b),
        0xfc => ter(|a: u32, b: u32, _: u32| a | b),
        0x3c => ter(|a: u32, b: u32, _: u32| a ^ b),
        0x80 => ter(|a: u32, b: u32, c: u32| a & b & c),
        0xfe => ter(|a: u32, b: u32, c: u32| a | b | c),
        0x96 => ter(|a: u32, b: u32, c: u32| a ^ b ^ c),
        0xea => ter(|a: u32, b: u32, c: u32| (a & b) | c),
        0xf8 => ter(|a: u32, b: u32, c: u32| a | (b & c)),
        0xa8 => ter(|a: u32, b: u32, c: u32| (a | b) & c),
        0xe0 => ter(|a: u32, b: u32, c: u32| a & (b | c)),
        0x6a => ter(|a: u32, b: u32, c: u32| (a & b) ^ c),
        0x78 => ter(|a: u32, b: u32, c: u32| a ^ (b & c)),
        0xca => ter(|a: u32, b: u32, c: u32| (a & b) | (!a & c)),
        0xe8 => ter(|a: u32, b: u32, c: u32| (a & b) | (a & c) | (b & c)),
        _ => lop3(),
    }
}

/// `prmt` in a mode other than the default, or with a selector in a register.
pub(crate) fn permute(a: u32, b: u32, selector: u32) -> u32 {
    let bytes = u64::from(a) | u64::from(b) << 32;
    let mut out = 0;
    for n in 0..4 {
        let s = selector >> (4 * n) & 0xf;
        let byte = (bytes >> (8 * (s & 7))) as u8;
        let byte = if s & 8 != 0 { ((byte as i8) >> 7) as u8 } else { byte };
        out |= u32::from(byte) << (8 * n);
    }
    out
}

/// Selector that a special mode of `prmt` stands for.
pub(crate) fn selector(mode: u8, s: u32) -> u32 {
    const F4E: [u32; 4] = [0x3210, 0x4321, 0x5432, 0x6543];
    const B4E: [u32; 4] = [0x5670, 0x6701, 0x7012, 0x0123];
    const ECL: [u32; 4] = [0x3210, 0x3211, 0x3222, 0x3333];
    const ECR: [u32; 4] = [0x0000, 0x1110, 0x2210, 0x3210];
    let k = (s & 3) as usize;
    match mode {
        1 => F4E[k],
        2 => B4E[k],
        3 => 0x1111 * k as u32,
        4 => ECL[k],
        5 => ECR[k],
        6 => [0x1010, 0x3232][k & 1],
        _ => s,
    }
}

/// `prmt` in a special mode, `aux[0]`.
#[inline(always)]
unsafe fn prmt_body(cx: &mut Cx, i: &Inst, mask: u32) {
    // SAFETY: the decoder placed 32-bit rows.
    unsafe {
        let (a, b, c) = (cx.row::<u32>(i.ops[1]), cx.row::<u32>(i.ops[2]), cx.row::<u32>(i.ops[3]));
        let mut out = [0u32; 32];
        for l in 0..32 {
            out[l] = permute(a[l], b[l], selector(i.aux[0], c[l]));
        }
        cx.put(i.ops[0], &out, mask);
    }
}

vectored!(
    /// `prmt`
    pub(crate) fn prmt<> = prmt_body
);

/// `prmt` with a constant selector, `imm`, without sign replication.
#[inline(always)]
unsafe fn prmt_const_body(cx: &mut Cx, i: &Inst, mask: u32) {
    // SAFETY: the decoder placed 32-bit rows.
    unsafe {
        let (a, b) = (cx.row::<u32>(i.ops[1]), cx.row::<u32>(i.ops[2]));
        let s = i.imm as u64;
        let shift = [(s & 7) * 8, (s >> 4 & 7) * 8, (s >> 8 & 7) * 8, (s >> 12 & 7) * 8];
        let mut out = [0u32; 32];
        for l in 0..32 {
            let bytes = u64::from(a[l]) | u64::from(b[l]) << 32;
            out[l] = ((bytes >> shift[0]) as u32 & 0xff)
                | ((bytes >> shift[1]) as u32 & 0xff) << 8
                | ((bytes >> shift[2]) as u32 & 0xff) << 16
                | ((bytes >> shift[3]) as u32 & 0xff) << 24;
        }
        cx.put(i.ops[0], &out, mask);
    }
}

vectored!(
    /// `prmt` with a constant selector
    pub(crate) fn prmt_const<> = prmt_const_body
);

/// `bfe.u32`
pub(crate) fn bfe_u32(a: u32, b: u32, c: u32) -> u32 {
    let (pos, len) = (b & 0xff, c & 0xff);
    let v = if pos > 31 { 0 } else { a >> pos };
    if len > 31 { v } else { v & ((1 << len) - 1) }
}

/// `bfe.s32`
pub(crate) fn bfe_s32(a: i32, b: u32, c: u32) -> i32 {
    let (pos, len) = (b & 0xff, c & 0xff);
    if len == 0 {
        return 0;
    }
    let v = a >> pos.min(31);
    // Bits beyond the field are copies of its highest bit, which is at most bit 31 of a.
    if len > 31 { v } else { (v << (32 - len)) >> (32 - len) }
}

/// `bfe.u64`
pub(crate) fn bfe_u64(a: u64, b: u32, c: u32) -> u64 {
    let (pos, len) = (b & 0xff, c & 0xff);
    let v = if pos > 63 { 0 } else { a >> pos };
    if len > 63 { v } else { v & ((1 << len) - 1) }
}

/// `bfe.s64`
pub(crate) fn bfe_s64(a: i64, b: u32, c: u32) -> i64 {
    let (pos, len) = (b & 0xff, c & 0xff);
    if len == 0 {
        return 0;
    }
    let v = a >> pos.min(63);
    if len > 63 { v } else { (v << (64 - len)) >> (64 - len) }
}

/// The bits of `bfi`: `len` ones at `pos` within `width`.
pub(crate) fn field(pos: u32, len: u32, width: u32) -> u64 {
    let (pos, len) = (pos & 0xff, len & 0xff);
    if pos >= width {
        return 0;
    }
    let ones = if len >= 64 { u64::MAX } else { (1 << len) - 1 };
    let field = ones << pos;
    if width == 64 { field } else { field & ((1 << width) - 1) }
}

/// `bfi`
#[inline(always)]
unsafe fn bfi_body<R: super::elem::Raw>(cx: &mut Cx, i: &Inst, mask: u32) {
    // SAFETY: the decoder placed two rows of `R` and two 32-bit rows.
    unsafe {
        let (a, b) = (cx.row::<R>(i.ops[1]), cx.row::<R>(i.ops[2]));
        let (c, d) = (cx.row::<u32>(i.ops[3]), cx.row::<u32>(i.ops[4]));
        let mut out = [R::default(); 32];
        for l in 0..32 {
            let field = field(c[l], d[l], R::BITS);
            let shifted = if c[l] & 0xff < 64 { a[l].to_u64() << (c[l] & 0xff) } else { 0 };
            out[l] = R::of_u64((b[l].to_u64() & !field) | (shifted & field));
        }
        cx.put(i.ops[0], &out, mask);
    }
}

vectored!(
    /// `bfi`
    pub(crate) fn bfi<R: super::elem::Raw> = bfi_body
);

/// `fns`: the n-th set bit from a base.
pub(crate) fn fns(mask: u32, base: u32, offset: i32) -> u32 {
    let base = base & 31;
    let has = |b: i64| (0..32).contains(&b) && mask >> b & 1 == 1;
    if offset == 0 {
        return if has(base.into()) { base } else { u32::MAX };
    }
    let (mut left, step) = (i64::from(offset).abs(), if offset > 0 { 1 } else { -1 });
    let mut b = i64::from(base);
    while (0..32).contains(&b) {
        if has(b) {
            left -= 1;
            if left == 0 {
                return b as u32;
            }
        }
        b += step;
    }
    u32::MAX
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bit_fields() {
        assert_eq!(bfe_u32(0xabcd_1234, 8, 8), 0x12);
        assert_eq!(bfe_u32(0xabcd_1234, 40, 8), 0);
        assert_eq!(bfe_s32(0x0000_0f00, 8, 4), -1);
        assert_eq!(bfe_s32(i32::MIN, 28, 8), -8);
        assert_eq!(bfe_s32(i32::MIN, 40, 8), -1);
        assert_eq!(bfe_s32(5, 0, 0), 0);
        assert_eq!(field(4, 8, 32), 0xff0);
        assert_eq!(field(28, 8, 32), 0xf000_0000);
        assert_eq!(field(32, 8, 32), 0);
        assert_eq!(fns(0b1011, 0, 2), 1);
        assert_eq!(fns(0b1011, 3, -2), 1);
        assert_eq!(fns(0b1011, 2, 0), u32::MAX);
    }

    #[test]
    fn byte_permutations() {
        assert_eq!(permute(0x3322_1100, 0x7766_5544, 0x7531), 0x7755_3311);
        assert_eq!(permute(0x0000_0080, 0, 0x8888), 0xffff_ffff);
        assert_eq!(permute(0x3322_1100, 0x7766_5544, selector(1, 1)), 0x4433_2211);
        assert_eq!(permute(0x3322_1100, 0x7766_5544, selector(2, 0)), 0x5566_7700);
        assert_eq!(permute(0x3322_1100, 0x7766_5544, selector(4, 1)), 0x3322_1111);
        assert_eq!(permute(0x3322_1100, 0x7766_5544, selector(5, 2)), 0x2222_1100);
        assert_eq!(permute(0x3322_1100, 0x7766_5544, selector(6, 1)), 0x3322_3322);
    }
}
