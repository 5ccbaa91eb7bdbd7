//! `wmma.load`, `wmma.store` and `wmma.mma`.
//!
//! PTX leaves open which lane holds which element of a fragment. Here lane l holds the elements from `l × n` on, in
//! row-major order, n being the number of elements per lane; where fragments have room for more elements than the
//! matrix has (f16 operands), they begin again from the first.

use super::super::cx::Cx;
use super::super::float::half::{bf16_to_f32, f16_to_f32, f32_to_f16};
use super::super::inst::Inst;
use super::super::mem::{Access, poison, resolve};
use super::note_chain;

/// Formats of fragments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    F16,
    Bf16,
    Tf32,
    F32,
    F64,
    S8,
    U8,
    S4,
    U4,
    B1,
    S32,
}

impl Kind {
    const ALL: [Kind; 11] = [
        Kind::F16,
        Kind::Bf16,
        Kind::Tf32,
        Kind::F32,
        Kind::F64,
        Kind::S8,
        Kind::U8,
        Kind::S4,
        Kind::U4,
        Kind::B1,
        Kind::S32,
    ];

    /// Width of an element in bits.
    pub(crate) fn bits(self) -> u32 {
        match self {
            Kind::F16 | Kind::Bf16 => 16,
            Kind::F64 => 64,
            Kind::S8 | Kind::U8 => 8,
            Kind::S4 | Kind::U4 => 4,
            Kind::B1 => 1,
            _ => 32,
        }
    }

    /// Elements of a register.
    pub(crate) fn per_register(self) -> u32 {
        (32 / self.bits()).max(1)
    }
}

/// What an instruction does, packed into [`Inst::target`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fragment {
    pub(crate) kind: Kind,
    pub(crate) rows: u32,
    pub(crate) cols: u32,
    pub(crate) col_major: bool,
}

impl Fragment {
    pub(crate) fn pack(self) -> u32 {
        self.kind as u32 | self.rows << 8 | self.cols << 16 | u32::from(self.col_major) << 31
    }

    fn unpack(v: u32) -> Fragment {
        Fragment {
            kind: Kind::ALL[(v & 0xff) as usize % Kind::ALL.len()],
            rows: v >> 8 & 0xff,
            cols: v >> 16 & 0x7fff,
            col_major: v >> 31 != 0,
        }
    }
}

/// Address of the unit `unit` (an element, or a register of elements narrower than a byte) of each lane.
fn addresses(cx: &Cx, i: &Inst, f: &Fragment, base: &[u64; 32], per_lane: u32, unit: u32) -> [u64; 32] {
    let total = f.rows * f.cols;
    let step = if f.kind.bits() < 8 { f.kind.per_register() } else { 1 };
    // SAFETY: the stride is a 32-bit row.
    let stride = unsafe { cx.row::<u32>(i.ops[1]) };
    std::array::from_fn(|l| {
        let e = (l as u32 * per_lane + unit * step) % total;
        let (r, c) = (u64::from(e / f.cols), u64::from(e % f.cols));
        let s = u64::from(stride[l]);
        let element = if f.col_major { c * s + r } else { r * s + c };
        base[l].wrapping_add(element * u64::from(f.kind.bits()) / 8)
    })
}

/// `ops`: address and stride; further operands are the registers.
pub(crate) unsafe fn load(cx: &mut Cx, i: &Inst, mask: u32) {
    let f = Fragment::unpack(i.target);
    let registers = u32::from(i.pool_len);
    let per_register = f.kind.per_register();
    let step = if f.kind.bits() < 8 { per_register } else { 1 };
    // SAFETY: the decoder placed an address, a stride and the registers; pointers are resolved before they are read.
    unsafe {
        let base = super::super::mem::addresses(cx, i);
        let mut out = [[0u64; 32]; 8];
        for unit in 0..registers * per_register / step {
            let addr = addresses(cx, i, &f, &base, registers * per_register, unit);
            let bytes = (f.kind.bits() * step / 8).max(1);
            if !resolve(cx, i, mask, &addr, bytes, Access::Load) {
                return;
            }
            if cx.unwritten {
                poison(cx, mask, bytes);
            }
            let (register, shift) = (unit * step / per_register, unit * step % per_register * f.kind.bits());
            for l in (0..32).filter(|&l| mask >> l & 1 != 0) {
                let p = cx.ptrs[l];
                let v = match bytes {
                    1 => u64::from((p as *const u8).read()),
                    2 => u64::from((p as *const u16).read()),
                    4 => u64::from((p as *const u32).read()),
                    _ => (p as *const u64).read(),
                };
                out[register as usize][l] |= v << shift;
            }
        }
        for (k, row) in out.iter().enumerate().take(registers as usize) {
            let to = cx.more(i, k);
            if f.kind == Kind::F64 {
                cx.put(to, row, mask);
            } else {
                cx.put(to, &row.map(|v| v as u32), mask);
            }
        }
    }
}

/// Operands as for [`load`].
pub(crate) unsafe fn store(cx: &mut Cx, i: &Inst, mask: u32) {
    let f = Fragment::unpack(i.target);
    let registers = u32::from(i.pool_len);
    let per_register = f.kind.per_register();
    // SAFETY: as for `load`.
    unsafe {
        let base = super::super::mem::addresses(cx, i);
        for unit in 0..registers * per_register {
            let addr = addresses(cx, i, &f, &base, registers * per_register, unit);
            let bytes = f.kind.bits() / 8;
            if !resolve(cx, i, mask, &addr, bytes, Access::Store) {
                return;
            }
            if cx.cta.shared.checks_races() {
                super::super::mem::store::check_races(cx, i, mask, &addr, bytes, |_, _| false);
            }
            let (register, shift) = (unit / per_register, unit % per_register * f.kind.bits());
            let from = cx.more(i, register as usize);
            for l in (0..32).filter(|&l| mask >> l & 1 != 0) {
                let p = cx.ptrs[l];
                match bytes {
                    2 => (p as *mut u16).write((cx.row::<u32>(from)[l] >> shift) as u16),
                    4 => (p as *mut u32).write(cx.row::<u32>(from)[l]),
                    _ => (p as *mut u64).write(cx.row::<u64>(from)[l]),
                }
            }
        }
    }
}

/// Element `e` of a fragment as bits.
///
/// # Safety
///
/// Further operands from `first` on are the fragment's registers.
unsafe fn bits(cx: &Cx, i: &Inst, first: usize, registers: u32, kind: Kind, e: u32) -> u64 {
    let per_lane = registers * kind.per_register();
    let (lane, k) = ((e / per_lane) as usize, e % per_lane);
    // SAFETY: passed on to the caller.
    unsafe {
        let row = cx.more(i, first + (k / kind.per_register()) as usize);
        if kind == Kind::F64 {
            return cx.row::<u64>(row)[lane];
        }
        let width = kind.bits();
        let word = u64::from(cx.row::<u32>(row)[lane]) >> (k % kind.per_register() * width);
        word & ((1 << width) - 1)
    }
}

fn as_f32(kind: Kind, bits: u64) -> f32 {
    match kind {
        Kind::F16 => f16_to_f32(bits as u16),
        Kind::Bf16 => bf16_to_f32(bits as u16),
        Kind::Tf32 => f32::from_bits(bits as u32 & 0xffff_e000),
        _ => f32::from_bits(bits as u32),
    }
}

fn as_i32(kind: Kind, bits: u64) -> i32 {
    match kind {
        Kind::S8 => i32::from(bits as i8),
        Kind::S4 => i32::from((bits as i8) << 4 >> 4),
        _ => bits as i32,
    }
}

/// Shape and formats of a `wmma.mma`, in the program's tables.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mma {
    pub(crate) m: u32,
    pub(crate) n: u32,
    pub(crate) k: u32,
    pub(crate) kinds: [Kind; 4],
    /// Registers of d, a, b and c.
    pub(crate) registers: [u32; 4],
    pub(crate) saturate: bool,
    pub(crate) and: bool,
}

impl Mma {
    pub(crate) fn pack(self) -> Vec<u32> {
        let [d, a, b, c] = self.kinds.map(|k| k as u32);
        let [rd, ra, rb, rc] = self.registers;
        let flags = [u32::from(self.saturate), u32::from(self.and)];
        vec![self.m, self.n, self.k, d, a, b, c, rd, ra, rb, rc, flags[0], flags[1]]
    }

    fn unpack(v: &[u32]) -> Mma {
        let kind = |k: usize| Kind::ALL[v[k] as usize % Kind::ALL.len()];
        Mma {
            m: v[0],
            n: v[1],
            k: v[2],
            kinds: [kind(3), kind(4), kind(5), kind(6)],
            registers: [v[7], v[8], v[9], v[10]],
            saturate: v[11] != 0,
            and: v[12] != 0,
        }
    }
}

/// Operands are the registers of d, a, b and c; `target` is the index of the description. Fragments of A are m × k,
/// of B k × n, both row-major whatever layout they were loaded from.
pub(crate) unsafe fn mma(cx: &mut Cx, i: &Inst, mask: u32) {
    let x = Mma::unpack(&cx.launch.program.tables[i.target as usize]);
    let [kd, ka, kb, kc] = x.kinds;
    let [rd, ra, rb, rc] = x.registers;
    let (fa, fb) = (rd as usize, (rd + ra) as usize);
    let fc = fb + rb as usize;
    let (m, n, k) = (x.m as usize, x.n as usize, x.k as usize);
    let mut out = vec![0u64; m * n];
    // SAFETY: the decoder placed the registers of all fragments.
    unsafe {
        // The k index of sub-byte operands runs within registers, for B too, which is loaded by columns.
        let a = |r: usize, t: usize| bits(cx, i, fa, ra, ka, (r * k + t) as u32);
        let by_column = kb.bits() < 8;
        let b = |t: usize, c: usize| {
            bits(cx, i, fb, rb, kb, if by_column { (c * k + t) as u32 } else { (t * n + c) as u32 })
        };
        let old = |r: usize, c: usize| bits(cx, i, fc, rc, kc, (r * n + c) as u32);
        match ka {
            Kind::F64 => {
                for (e, o) in out.iter_mut().enumerate() {
                    let (r, c) = (e / n, e % n);
                    let mut sum = f64::from_bits(old(r, c));
                    for t in 0..k {
                        sum = f64::from_bits(a(r, t)).mul_add(f64::from_bits(b(t, c)), sum);
                    }
                    *o = sum.to_bits();
                }
            }
            Kind::F16 | Kind::Bf16 | Kind::Tf32 => {
                let av: Vec<f32> = (0..m * k).map(|e| as_f32(ka, a(e / k, e % k))).collect();
                let bv: Vec<f32> = (0..k * n).map(|e| as_f32(kb, b(e / n, e % n))).collect();
                for r in 0..m {
                    let mut row: Vec<f32> = (0..n).map(|c| as_f32(kc, old(r, c))).collect();
                    for t in 0..k {
                        for (c, s) in row.iter_mut().enumerate() {
                            *s = av[r * k + t].mul_add(bv[t * n + c], *s);
                        }
                    }
                    for (c, s) in row.iter().enumerate() {
                        let s = super::super::float::f32s::canon(*s);
                        out[r * n + c] =
                            if kd == Kind::F16 { f32_to_f16(s).into() } else { s.to_bits().into() };
                    }
                }
            }
            _ => {
                for (e, o) in out.iter_mut().enumerate() {
                    let (r, c) = (e / n, e % n);
                    let mut sum = 0i32;
                    for t in 0..k {
                        sum += match ka {
                            Kind::B1 if x.and => (a(r, t) & b(t, c)) as i32,
                            Kind::B1 => (a(r, t) ^ b(t, c)) as i32,
                            _ => as_i32(ka, a(r, t)) * as_i32(kb, b(t, c)),
                        };
                    }
                    let before = old(r, c) as i32;
                    let s = if x.saturate { before.saturating_add(sum) } else { before.wrapping_add(sum) };
                    *o = u64::from(s as u32);
                }
            }
        }
        let (d, c) = (cx.more(i, 0), cx.more(i, fc));
        let per_lane = rd * kd.per_register();
        for register in 0..rd {
            let mut row = [0u64; 32];
            for (l, v) in row.iter_mut().enumerate() {
                for e in 0..kd.per_register() {
                    let at = l as u32 * per_lane + register * kd.per_register() + e;
                    *v |= out[at as usize % (m * n)] << (e * kd.bits() % 64);
                }
            }
            let to = cx.more(i, register as usize);
            if kd == Kind::F64 {
                cx.put(to, &row, mask);
            } else {
                cx.put(to, &row.map(|v| v as u32), mask);
            }
        }
        note_chain(cx, d, c);
    }
}
