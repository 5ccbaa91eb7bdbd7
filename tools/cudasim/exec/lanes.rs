//! Element-wise instructions: 32-lane loops over closures, on x86-64 compiled for the vector extensions of every
//! machine since 2013 (AVX2, FMA, F16C, BMI); [`supported`] says whether this machine has them.

use super::cx::Cx;
use super::elem::{Elem, Raw};
use super::inst::{ExecFn, Inst};

/// Whether this machine has what the code that executes instructions was compiled for; else the name of what it lacks.
///
/// Nothing executes before a module was decoded, which asks first.
pub(crate) fn supported() -> Result<(), &'static str> {
    #[cfg(target_arch = "x86_64")]
    {
        macro_rules! need {
            ($($feature:tt)*) => {$(
                if !is_x86_feature_detected!($feature) {
                    return Err($feature);
                }
            )*};
        }
        need!("avx2" "fma" "f16c" "bmi1" "bmi2" "lzcnt" "popcnt");
    }
    Ok(())
}

/// Defines `$name`, which returns `$body` compiled for the vector extensions.
///
/// `$body` is an `#[inline(always)] unsafe fn(&mut Cx, &Inst, u32)` with the given type parameters.
macro_rules! vectored {
    ($(#[$doc:meta])* $vis:vis fn $name:ident<$($g:ident $(: $bound:path)?),*> = $body:ident) => {
        vectored!($(#[$doc])* $vis fn $name<$($g $(: $bound)?),*>[] = $body);
    };
    ($(#[$doc:meta])* $vis:vis fn $name:ident<$($g:ident $(: $bound:path)?),*>[$(const $c:ident: $ct:ty),*] = $body:ident) => {
        $(#[$doc])*
        $vis fn $name<$($g $(: $bound)?,)* $(const $c: $ct),*>() -> $crate::exec::inst::ExecFn {
            #[cfg_attr(
                target_arch = "x86_64",
                target_feature(enable = "avx2,fma,f16c,bmi1,bmi2,lzcnt,popcnt")
            )]
            unsafe fn vector<$($g $(: $bound)?,)* $(const $c: $ct),*>(
                cx: &mut $crate::exec::cx::Cx,
                i: &$crate::exec::inst::Inst,
                mask: u32,
            ) {
                // SAFETY: passed on to the caller.
                unsafe { $body::<$($g,)* $($c),*>(cx, i, mask) }
            }
            vector::<$($g,)* $($c),*>
        }
    };
}
pub(crate) use vectored;

/// A closure without captures, made from its type.
///
/// # Safety
///
/// A value of `F` existed: the caller was given one when the instruction was decoded.
#[inline(always)]
pub(crate) unsafe fn conjure<F: Copy>() -> F {
    const { assert!(size_of::<F>() == 0, "the closure of an instruction captures nothing") };
    // SAFETY: a value without bytes is valid for a type of which the caller had one.
    unsafe { std::ptr::NonNull::<F>::dangling().read() }
}

/// Marker for closures of one argument; the compiler wants one trait per arity to name them in bounds.
pub(crate) trait F1<A, D>: Fn(A) -> D + Copy + 'static {}
impl<A, D, F: Fn(A) -> D + Copy + 'static> F1<A, D> for F {}
/// Closures of two arguments.
pub(crate) trait F2<A, B, D>: Fn(A, B) -> D + Copy + 'static {}
impl<A, B, D, F: Fn(A, B) -> D + Copy + 'static> F2<A, B, D> for F {}
/// Closures of three arguments.
pub(crate) trait F3<A, B, C, D>: Fn(A, B, C) -> D + Copy + 'static {}
impl<A, B, C, D, F: Fn(A, B, C) -> D + Copy + 'static> F3<A, B, C, D> for F {}

#[inline(always)]
unsafe fn un_body<A: Elem, D: Elem, F: F1<A, D>>(cx: &mut Cx, i: &Inst, mask: u32) {
    // SAFETY: the decoder placed operands of these classes.
    unsafe {
        let f = conjure::<F>();
        let a = cx.row::<A::Raw>(i.ops[1]);
        let mut out = [D::Raw::default(); 32];
        for l in 0..32 {
            out[l] = f(A::of(a[l])).raw();
        }
        cx.put(i.ops[0], &out, mask);
    }
}

#[inline(always)]
unsafe fn bin_body<A: Elem, B: Elem, D: Elem, F: F2<A, B, D>>(cx: &mut Cx, i: &Inst, mask: u32) {
    // SAFETY: the decoder placed operands of these classes.
    unsafe {
        let f = conjure::<F>();
        let (a, b) = (cx.row::<A::Raw>(i.ops[1]), cx.row::<B::Raw>(i.ops[2]));
        let mut out = [D::Raw::default(); 32];
        for l in 0..32 {
            out[l] = f(A::of(a[l]), B::of(b[l])).raw();
        }
        cx.put(i.ops[0], &out, mask);
    }
}

#[inline(always)]
unsafe fn ter_body<A: Elem, B: Elem, C: Elem, D: Elem, F: F3<A, B, C, D>>(cx: &mut Cx, i: &Inst, mask: u32) {
    // SAFETY: the decoder placed operands of these classes.
    unsafe {
        let f = conjure::<F>();
        let (a, b, c) = (cx.row::<A::Raw>(i.ops[1]), cx.row::<B::Raw>(i.ops[2]), cx.row::<C::Raw>(i.ops[3]));
        let mut out = [D::Raw::default(); 32];
        for l in 0..32 {
            out[l] = f(A::of(a[l]), B::of(b[l]), C::of(c[l])).raw();
        }
        cx.put(i.ops[0], &out, mask);
    }
}

/// Packs 32 bytes that are 0 or 1 into bits.
#[inline(always)]
pub(crate) fn pack(bytes: &[u8; 32]) -> u32 {
    let mut out = 0;
    for k in 0..4 {
        let mut eight = [0u8; 8];
        eight.copy_from_slice(&bytes[k * 8..k * 8 + 8]);
        let bits = u64::from_le_bytes(eight).wrapping_mul(0x0102_0408_1020_4080) >> 56;
        out |= (bits as u32) << (8 * k);
    }
    out
}

/// Results of comparisons: `aux[0]` says how they combine with the predicate in `ops[4]`.
pub(crate) mod combine {
    pub(crate) const NONE: u8 = 0;
    pub(crate) const AND: u8 = 1;
    pub(crate) const OR: u8 = 2;
    pub(crate) const XOR: u8 = 3;
}

/// Stores a comparison in its one or two destinations.
#[inline(always)]
pub(crate) unsafe fn put_comparison(cx: &mut Cx, i: &Inst, result: u32, mask: u32) {
    // SAFETY: the decoder placed predicates in `ops[0]`, `ops[3]` and, when it is combined, `ops[4]`.
    unsafe {
        let (mut p, mut q) = (result, !result);
        if i.aux[0] != combine::NONE {
            let c = cx.pred(i.ops[4]);
            match i.aux[0] {
                combine::AND => (p, q) = (p & c, q & c),
                combine::OR => (p, q) = (p | c, q | c),
                _ => (p, q) = (p ^ c, q ^ c),
            }
        }
        cx.put_pred(i.ops[0], p, mask);
        if i.aux[1] != 0 {
            cx.put_pred(i.ops[3], q, mask);
        }
    }
}

#[inline(always)]
unsafe fn cmp_body<A: Elem, F: F2<A, A, bool>>(cx: &mut Cx, i: &Inst, mask: u32) {
    // SAFETY: the decoder placed operands of these classes.
    unsafe {
        let f = conjure::<F>();
        let (a, b) = (cx.row::<A::Raw>(i.ops[1]), cx.row::<A::Raw>(i.ops[2]));
        let mut bytes = [0u8; 32];
        for l in 0..32 {
            bytes[l] = u8::from(f(A::of(a[l]), A::of(b[l])));
        }
        put_comparison(cx, i, pack(&bytes), mask);
    }
}

#[inline(always)]
unsafe fn select_body<R: Raw>(cx: &mut Cx, i: &Inst, mask: u32) {
    // SAFETY: the decoder placed operands of these classes.
    unsafe {
        let (a, b, p) = (cx.row::<R>(i.ops[1]), cx.row::<R>(i.ops[2]), cx.pred(i.ops[3]));
        let mut out = [R::default(); 32];
        for l in 0..32 {
            out[l] = if p >> l & 1 != 0 { a[l] } else { b[l] };
        }
        cx.put(i.ops[0], &out, mask);
    }
}

vectored!(fn un_of<A: Elem, D: Elem, F: F1<A, D>> = un_body);
vectored!(fn bin_of<A: Elem, B: Elem, D: Elem, F: F2<A, B, D>> = bin_body);
vectored!(fn ter_of<A: Elem, B: Elem, C: Elem, D: Elem, F: F3<A, B, C, D>> = ter_body);
vectored!(fn cmp_of<A: Elem, F: F2<A, A, bool>> = cmp_body);
vectored!(
    /// `d = p ? a : b`
    pub(crate) fn select<R: Raw> = select_body
);

/// `d = f(a)`
pub(crate) fn un<A: Elem, D: Elem, F: F1<A, D>>(_: F) -> ExecFn {
    un_of::<A, D, F>()
}

/// `d = f(a, b)`
pub(crate) fn bin<A: Elem, B: Elem, D: Elem, F: F2<A, B, D>>(_: F) -> ExecFn {
    bin_of::<A, B, D, F>()
}

/// `d = f(a, b, c)`
pub(crate) fn ter<A: Elem, B: Elem, C: Elem, D: Elem, F: F3<A, B, C, D>>(_: F) -> ExecFn {
    ter_of::<A, B, C, D, F>()
}

/// `p|q = f(a, b)`
pub(crate) fn cmp<A: Elem, F: F2<A, A, bool>>(_: F) -> ExecFn {
    cmp_of::<A, F>()
}
