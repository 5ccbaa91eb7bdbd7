//! Values of PTX types and how they lie in the lanes of a register row.

use crate::ptx::ast::Type;

/// What one lane of a row holds: 32 or 64 bits.
pub(crate) trait Raw: Copy + Default + PartialEq + 'static {
    const BITS: u32;
    fn to_u64(self) -> u64;
    fn of_u64(v: u64) -> Self;
}

impl Raw for u32 {
    const BITS: u32 = 32;
    #[inline(always)]
    fn to_u64(self) -> u64 {
        u64::from(self)
    }
    #[inline(always)]
    fn of_u64(v: u64) -> u32 {
        v as u32
    }
}

impl Raw for u64 {
    const BITS: u32 = 64;
    #[inline(always)]
    fn to_u64(self) -> u64 {
        self
    }
    #[inline(always)]
    fn of_u64(v: u64) -> u64 {
        v
    }
}

/// A value of a PTX type. Values narrower than 32 bits use the low bits of a lane; what is above is ignored when
/// read, and zero when written.
pub(crate) trait Elem: Copy + 'static {
    type Raw: Raw;
    /// The type that immediates are read as.
    const TY: Type;
    fn of(raw: Self::Raw) -> Self;
    fn raw(self) -> Self::Raw;
}

macro_rules! elem {
    ($($t:ty, $raw:ty, $ty:expr, |$r:ident| $of:expr, |$s:ident| $to:expr;)*) => {$(
        impl Elem for $t {
            type Raw = $raw;
            const TY: Type = $ty;
            #[inline(always)]
            fn of($r: $raw) -> $t {
                $of
            }
            #[inline(always)]
            fn raw(self) -> $raw {
                let $s = self;
                $to
            }
        }
    )*};
}

/// The bits of an f16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct H(pub(crate) u16);
/// The bits of a bf16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct B(pub(crate) u16);
/// The bits of two f16 or bf16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Two(pub(crate) u32);

elem! {
    u8, u32, Type::U8, |r| r as u8, |s| u32::from(s);
    i8, u32, Type::S8, |r| r as u8 as i8, |s| u32::from(s as u8);
    u16, u32, Type::U16, |r| r as u16, |s| u32::from(s);
    i16, u32, Type::S16, |r| r as u16 as i16, |s| u32::from(s as u16);
    u32, u32, Type::U32, |r| r, |s| s;
    i32, u32, Type::S32, |r| r as i32, |s| s as u32;
    u64, u64, Type::U64, |r| r, |s| s;
    i64, u64, Type::S64, |r| r as i64, |s| s as u64;
    f32, u32, Type::F32, |r| f32::from_bits(r), |s| s.to_bits();
    f64, u64, Type::F64, |r| f64::from_bits(r), |s| s.to_bits();
    H, u32, Type::F16, |r| H(r as u16), |s| u32::from(s.0);
    B, u32, Type::Bf16, |r| B(r as u16), |s| u32::from(s.0);
    Two, u32, Type::B32, |r| Two(r), |s| s.0;
}
