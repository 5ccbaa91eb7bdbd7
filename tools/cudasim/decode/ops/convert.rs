//! `cvt`.

use super::super::builder::Result;
use super::super::dec::Dec;
use super::super::program::Class;
use super::float::rounding;
use super::int_types;
use crate::exec::elem::{B, H};
use crate::exec::float::convert as c;
use crate::exec::float::f32s::{canon, ftz, sat, sat64};
use crate::exec::float::half::{bf16_to_f32, f16_to_f32};
use crate::exec::float::round::{Down, Near, Round, Up, Zero};
use crate::exec::inst::{ExecFn, Inst, Kind};
use crate::exec::lanes;
use crate::ptx::ast::Type;

/// Rounding to an integral value.
fn integral(d: &mut Dec) -> Option<Round> {
    d.one_of(&[("rni", Round::Near), ("rzi", Round::Zero), ("rmi", Round::Down), ("rpi", Round::Up)])
}

/// Runs an expression with `M` for a mode.
macro_rules! by_mode {
    ($round:expr, |$M:ident| $e:expr) => {
        match $round {
            Round::Near => {
                type $M = Near;
                $e
            }
            Round::Zero => {
                type $M = Zero;
                $e
            }
            Round::Down => {
                type $M = Down;
                $e
            }
            Round::Up => {
                type $M = Up;
                $e
            }
        }
    };
}

/// `cvt{.rounding}{.ftz}{.sat}.to.from`
pub(super) fn decode(d: &mut Dec) -> Result<()> {
    if d.flag("pack") {
        return pack(d);
    }
    let &[to, from] = &d.types[..] else { return Err(d.unsupported("two types are expected")) };
    let is_pair = matches!(to, Type::F16x2 | Type::Bf16x2 | Type::E4m3x2 | Type::E5m2x2);
    if is_pair || matches!(from, Type::E4m3x2 | Type::E5m2x2) {
        return pairs(d, to, from);
    }
    if to == Type::Tf32 {
        return tf32(d, from);
    }
    d.arity(2)?;
    let exec = match (from.float(), to.float()) {
        (false, false) => int_to_int(d, to, from)?,
        (false, true) => int_to_float(d, to, from)?,
        (true, false) => float_to_int(d, to, from)?,
        (true, true) => float_to_float(d, to, from)?,
    };
    d.inst.ops[1] = d.read_wide(d.operand(1)?, from)?;
    if let Some(widen) = d.widen.take() {
        // A 64-bit value in between.
        let (a, wide) = (d.inst.ops[1], d.b.virtual_reg(Class::W64));
        let mut helper = Inst::new(Kind::Plain, widen);
        (helper.ops[0], helper.ops[1]) = (wide, a);
        d.emit_helper(helper, vec![a], vec![wide]);
        d.inst.ops[1] = wide;
        d.meta.uses.push(wide);
    }
    d.inst.ops[0] = d.write_wide(d.operand(0)?, to)?;
    d.emit(Kind::Plain, exec)
}

fn int_to_int(d: &mut Dec, to: Type, from: Type) -> Result<ExecFn> {
    if !d.flag("sat") {
        // The destination's signedness matters only where it is extended further, see `write_wide`.
        return int_types!(d, from, S in [U8 u8, S8 i8, U16 u16, S16 i16, U32 u32, S32 i32, U64 u64, S64 i64] => {
            int_types!(d, to, T in [U8 u8, S8 u8, U16 u16, S16 u16, U32 u32, S32 u32, U64 u64, S64 u64] =>
                Ok(lanes::un(|a: S| a as T)))
        });
    }
    int_types!(d, from, S in [U8 u8, S8 i8, U16 u16, S16 i16, U32 u32, S32 i32, U64 u64, S64 i64] => {
        int_types!(d, to, T in [U8 u8, S8 i8, U16 u16, S16 i16, U32 u32, S32 i32, U64 u64, S64 i64] =>
            Ok(lanes::un(|a: S| (a as i128).clamp(T::MIN as i128, T::MAX as i128) as T)))
    })
}

fn int_to_float(d: &mut Dec, to: Type, from: Type) -> Result<ExecFn> {
    let Some(round) = rounding(d) else { return Err(d.unsupported("without a rounding mode")) };
    if d.flag("sat") {
        let exec = match to {
            Type::F32 => lanes::un(|a: f32| sat(a)),
            Type::F64 => lanes::un(|a: f64| sat64(a)),
            _ => return Err(d.unsupported(".sat to this type")),
        };
        d.after_in_place(Inst::new(Kind::Plain, exec))?;
    }
    if round == Round::Near && matches!(to, Type::F32 | Type::F64) {
        return int_types!(d, from, S in [U8 u8, S8 i8, U16 u16, S16 i16, U32 u32, S32 i32, U64 u64, S64 i64] => {
            Ok(if to == Type::F32 { lanes::un(|a: S| a as f32) } else { lanes::un(|a: S| a as f64) })
        });
    }
    // The other modes and formats start from 64 bits.
    d.widen = Some(match from {
        Type::U64 | Type::S64 => return wide_to_float(d, to, from, round),
        _ => int_types!(d, from, S in [U8 u8, S8 i8, U16 u16, S16 i16, U32 u32, S32 i32] =>
            Ok(lanes::un(|a: S| i64::from(a))))?,
    });
    wide_to_float(d, to, Type::S64, round)
}

fn wide_to_float(d: &mut Dec, to: Type, from: Type, round: Round) -> Result<ExecFn> {
    macro_rules! of {
        ($f:path) => {
            if from == Type::U64 {
                by_mode!(round, |M| lanes::un(|a: u64| $f(a as i128)))
            } else {
                by_mode!(round, |M| lanes::un(|a: i64| $f(a as i128)))
            }
        };
    }
    Ok(match to {
        Type::F32 => of!(c::int_to_f32::<M>),
        Type::F64 => of!(c::int_to_f64::<M>),
        Type::F16 => of!(c::int_to_f16::<M>),
        Type::Bf16 => of!(c::int_to_bf16::<M>),
        _ => return Err(d.unsupported("to this type")),
    })
}

fn float_to_int(d: &mut Dec, to: Type, from: Type) -> Result<ExecFn> {
    let Some(round) = integral(d) else { return Err(d.unsupported("without a rounding mode to integers")) };
    let flush = d.flag("ftz");
    // Results are clamped in any case.
    d.flag("sat");
    match (from, to, round, flush) {
        (Type::F32, Type::S32, Round::Zero, false) => return Ok(lanes::un(|a: f32| a as i32)),
        (Type::F32, Type::U32, Round::Zero, false) => return Ok(lanes::un(|a: f32| a as u32)),
        (Type::F32, Type::S32, Round::Near, false) => {
            return Ok(lanes::un(|a: f32| a.round_ties_even() as i32));
        }
        _ => {}
    }
    // Rounded as a double first, which holds every value of the narrower formats.
    d.widen = Some(match from {
        Type::F32 if flush => by_mode!(round, |M| lanes::un(|a: f32| c::integral::<M>(f64::from(ftz(a))))),
        Type::F32 => by_mode!(round, |M| lanes::un(|a: f32| c::integral::<M>(f64::from(a)))),
        Type::F64 => by_mode!(round, |M| lanes::un(|a: f64| c::integral::<M>(a))),
        Type::F16 => by_mode!(round, |M| lanes::un(|a: H| c::integral::<M>(f64::from(f16_to_f32(a.0))))),
        Type::Bf16 => by_mode!(round, |M| lanes::un(|a: B| c::integral::<M>(f64::from(bf16_to_f32(a.0))))),
        _ => return Err(d.unsupported("from this type")),
    });
    // What a NaN becomes depends on the widths.
    if from != Type::F64 && to.bits() != 64 {
        return int_types!(d, to, T in [U8 u8, S8 i8, U16 u16, S16 i16, U32 u32, S32 i32] =>
            Ok(lanes::un(|a: f64| a as T)));
    }
    int_types!(d, to, T in [U8 u8, S8 i8, U16 u16, S16 i16, U32 u32, S32 i32, U64 u64, S64 i64] =>
        Ok(lanes::un(|a: f64| if a.is_nan() { (1 as T) << (T::BITS - 1) } else { a as T })))
}

fn float_to_float(d: &mut Dec, to: Type, from: Type) -> Result<ExecFn> {
    let round_integral = integral(d);
    let round = rounding(d);
    let flush = d.flag("ftz");
    let saturates = d.flag("sat");
    let relu = d.flag("relu");
    if to == from {
        if relu || round.is_some() {
            return Err(d.unsupported("this modifier between equal types"));
        }
        return same_float(d, to, round_integral, flush, saturates);
    }
    if round_integral.is_some() {
        return Err(d.unsupported("rounding to an integer between different types"));
    }
    let narrowing = to.bits() < from.bits() || (to.bits() == 16 && from.bits() == 16);
    if narrowing && round.is_none() {
        return Err(d.unsupported("without a rounding mode"));
    }
    if !narrowing && round.is_some_and(|r| r != Round::Near) {
        return Err(d.unsupported("a rounding mode where nothing is rounded"));
    }
    let near = round.unwrap_or(Round::Near);
    if saturates && to == Type::F32 {
        let after = Inst::new(Kind::Plain, lanes::un(|a: f32| sat(a)));
        d.after_in_place(after)?;
    } else if saturates && to == Type::F64 {
        d.after_in_place(Inst::new(Kind::Plain, lanes::un(|a: f64| sat64(a))))?;
    } else if saturates && to == Type::F16 && !relu {
        let after = Inst::new(
            Kind::Plain,
            lanes::un(|a: H| H(crate::exec::float::half::f32_to_f16(sat(f16_to_f32(a.0))))),
        );
        d.after_in_place(after)?;
    } else if saturates {
        return Err(d.unsupported(".sat to this type"));
    }
    if relu {
        if !matches!(to, Type::F16 | Type::Bf16) {
            return Err(d.unsupported(".relu to this type"));
        }
        // Positive values and NaNs stay.
        let exec = lanes::un(|a: u16| if a & 0x8000 != 0 && a & 0x7fff <= 0x7c00 { 0 } else { a });
        let bf = lanes::un(|a: u16| if a & 0x8000 != 0 && a & 0x7fff <= 0x7f80 { 0 } else { a });
        d.after_in_place(Inst::new(Kind::Plain, if to == Type::F16 { exec } else { bf }))?;
    }
    Ok(match (from, to) {
        (Type::F16, Type::F32) => lanes::un(|a: H| canon(f16_to_f32(a.0))),
        (Type::Bf16, Type::F32) => lanes::un(|a: B| canon(bf16_to_f32(a.0))),
        (Type::F16, Type::F64) => lanes::un(|a: H| f64::from(f16_to_f32(a.0))),
        (Type::Bf16, Type::F64) => lanes::un(|a: B| f64::from(bf16_to_f32(a.0))),
        (Type::F32, Type::F64) if flush => lanes::un(|a: f32| f64::from(ftz(a))),
        (Type::F32, Type::F64) => lanes::un(|a: f32| f64::from(a)),
        (Type::F64, Type::F32) if flush => by_mode!(near, |M| lanes::un(|a: f64| ftz(c::f64_to_f32::<M>(a)))),
        (Type::F64, Type::F32) => by_mode!(near, |M| lanes::un(|a: f64| c::f64_to_f32::<M>(a))),
        (Type::F32, Type::F16) if flush => {
            by_mode!(near, |M| lanes::un(|a: f32| c::f32_to_f16_in::<M>(ftz(a))))
        }
        (Type::F32, Type::F16) => by_mode!(near, |M| lanes::un(|a: f32| c::f32_to_f16_in::<M>(a))),
        (Type::F32, Type::Bf16) => by_mode!(near, |M| lanes::un(|a: f32| c::f32_to_bf16_in::<M>(a))),
        (Type::F64, Type::F16) => by_mode!(near, |M| lanes::un(|a: f64| c::f64_to_f16::<M>(a))),
        (Type::F64, Type::Bf16) => by_mode!(near, |M| lanes::un(|a: f64| c::f64_to_bf16::<M>(a))),
        (Type::F16, Type::Bf16) => {
            by_mode!(near, |M| lanes::un(|a: H| c::f32_to_bf16_in::<M>(f16_to_f32(a.0))))
        }
        (Type::Bf16, Type::F16) => {
            by_mode!(near, |M| lanes::un(|a: B| c::f32_to_f16_in::<M>(bf16_to_f32(a.0))))
        }
        _ => return Err(d.unsupported("between these types")),
    })
}

fn same_float(
    d: &mut Dec,
    ty: Type,
    integral: Option<Round>,
    flush: bool,
    saturates: bool,
) -> Result<ExecFn> {
    macro_rules! f32s {
        ($body:expr) => {
            match (flush, saturates) {
                (false, false) => lanes::un(|a: f32| canon($body(a))),
                (true, false) => lanes::un(|a: f32| ftz(canon($body(ftz(a))))),
                (false, true) => lanes::un(|a: f32| sat($body(a))),
                (true, true) => lanes::un(|a: f32| sat($body(ftz(a)))),
            }
        };
    }
    Ok(match ty {
        Type::F32 => match integral {
            Some(r) => by_mode!(r, |M| f32s!((|x: f32| c::integral32::<M>(x)))),
            None => f32s!((|x: f32| x)),
        },
        Type::F64 if saturates && !flush => match integral {
            Some(r) => by_mode!(r, |M| lanes::un(|a: f64| sat64(c::integral::<M>(a)))),
            None => lanes::un(|a: f64| sat64(a)),
        },
        _ if flush || saturates => return Err(d.unsupported("this modifier of this type")),
        Type::F64 => match integral {
            Some(r) => by_mode!(r, |M| lanes::un(|a: f64| c::integral::<M>(a))),
            None => lanes::un(|a: f64| a),
        },
        Type::F16 => match integral {
            Some(r) => by_mode!(r, |M| lanes::un(|a: H| {
                H(crate::exec::float::half::f32_to_f16(c::integral32::<M>(f16_to_f32(a.0))))
            })),
            None => lanes::un(|a: H| a),
        },
        Type::Bf16 => match integral {
            Some(r) => by_mode!(r, |M| lanes::un(|a: B| {
                B(crate::exec::float::half::f32_to_bf16(c::integral32::<M>(bf16_to_f32(a.0))))
            })),
            None => lanes::un(|a: B| a),
        },
        _ => return Err(d.unsupported("this type")),
    })
}

fn tf32(d: &mut Dec, from: Type) -> Result<()> {
    if from != Type::F32 {
        return Err(d.unsupported("from this type"));
    }
    d.arity(2)?;
    let relu = d.flag("relu");
    let satfinite = d.flag("satfinite");
    let exec = match (d.one_of(&[("rna", 0), ("rn", 1), ("rz", 2)]), relu) {
        (Some(0), false) => lanes::un(|a: f32| c::tf32_away(a)),
        (Some(1), false) => lanes::un(|a: f32| c::tf32_even(a)),
        (Some(1), true) => lanes::un(|a: f32| c::tf32_even(if a > 0.0 || a.is_nan() { a } else { 0.0 })),
        (Some(2), false) => lanes::un(|a: f32| c::tf32_zero(a)),
        (Some(2), true) => lanes::un(|a: f32| c::tf32_zero(if a > 0.0 || a.is_nan() { a } else { 0.0 })),
        _ => return Err(d.unsupported("this rounding")),
    };
    if satfinite {
        return Err(d.unsupported(".satfinite"));
    }
    d.inst.ops[1] = d.read(d.operand(1)?, Type::F32)?;
    d.inst.ops[0] = d.write(d.operand(0)?, Type::B32)?;
    d.emit(Kind::Plain, exec)
}

/// Two values at once: `cvt.rn.f16x2.f32 d, high, low`.
fn pairs(d: &mut Dec, to: Type, from: Type) -> Result<()> {
    let round = rounding(d);
    let relu = d.flag("relu");
    let satfinite = d.flag("satfinite");
    match (to, from) {
        (Type::F16x2 | Type::Bf16x2, Type::F32) => {
            d.arity(3)?;
            if satfinite {
                return Err(d.unsupported(".satfinite"));
            }
            let exec = match (to, round, relu) {
                (Type::F16x2, Some(Round::Near), false) => {
                    lanes::bin(|a: f32, b: f32| c::f16x2::<Near>(a, b))
                }
                (Type::F16x2, Some(Round::Zero), false) => {
                    lanes::bin(|a: f32, b: f32| c::f16x2::<Zero>(a, b))
                }
                (Type::F16x2, Some(Round::Near), true) => {
                    lanes::bin(|a: f32, b: f32| c::f16x2::<Near>(c::relu(a), c::relu(b)))
                }
                (Type::F16x2, Some(Round::Zero), true) => {
                    lanes::bin(|a: f32, b: f32| c::f16x2::<Zero>(c::relu(a), c::relu(b)))
                }
                (Type::Bf16x2, Some(Round::Near), false) => {
                    lanes::bin(|a: f32, b: f32| c::bf16x2::<Near>(a, b))
                }
                (Type::Bf16x2, Some(Round::Zero), false) => {
                    lanes::bin(|a: f32, b: f32| c::bf16x2::<Zero>(a, b))
                }
                (Type::Bf16x2, Some(Round::Near), true) => {
                    lanes::bin(|a: f32, b: f32| c::bf16x2::<Near>(c::relu(a), c::relu(b)))
                }
                (Type::Bf16x2, Some(Round::Zero), true) => {
                    lanes::bin(|a: f32, b: f32| c::bf16x2::<Zero>(c::relu(a), c::relu(b)))
                }
                _ => return Err(d.unsupported("this rounding")),
            };
            d.src::<f32>(1, 1)?;
            d.src::<f32>(2, 2)?;
            d.dst::<u32>(0, 0)?;
            d.emit(Kind::Plain, exec)
        }
        (Type::E4m3x2 | Type::E5m2x2, Type::F32) if round == Some(Round::Near) && satfinite => {
            d.arity(3)?;
            let exec = match (to, relu) {
                (Type::E4m3x2, false) => lanes::bin(|a: f32, b: f32| c::fp8x2::<4>(a, b)),
                (Type::E4m3x2, true) => lanes::bin(|a: f32, b: f32| c::fp8x2::<4>(c::relu(a), c::relu(b))),
                (_, false) => lanes::bin(|a: f32, b: f32| c::fp8x2::<5>(a, b)),
                (_, true) => lanes::bin(|a: f32, b: f32| c::fp8x2::<5>(c::relu(a), c::relu(b))),
            };
            d.src::<f32>(1, 1)?;
            d.src::<f32>(2, 2)?;
            d.dst::<u16>(0, 0)?;
            d.emit(Kind::Plain, exec)
        }
        (Type::E4m3x2 | Type::E5m2x2, Type::F16x2) if round == Some(Round::Near) && satfinite => {
            d.arity(2)?;
            let exec = match (to, relu) {
                (Type::E4m3x2, false) => lanes::un(|a: u32| c::fp8_of_f16x2::<4>(a, false)),
                (Type::E4m3x2, true) => lanes::un(|a: u32| c::fp8_of_f16x2::<4>(a, true)),
                (_, false) => lanes::un(|a: u32| c::fp8_of_f16x2::<5>(a, false)),
                (_, true) => lanes::un(|a: u32| c::fp8_of_f16x2::<5>(a, true)),
            };
            d.src::<u32>(1, 1)?;
            d.dst::<u16>(0, 0)?;
            d.emit(Kind::Plain, exec)
        }
        (Type::F16x2, Type::E4m3x2 | Type::E5m2x2) if round == Some(Round::Near) => {
            d.arity(2)?;
            let exec = match (from, relu) {
                (Type::E4m3x2, false) => lanes::un(|a: u16| c::f16x2_of_fp8::<4>(a, false)),
                (Type::E4m3x2, true) => lanes::un(|a: u16| c::f16x2_of_fp8::<4>(a, true)),
                (_, false) => lanes::un(|a: u16| c::f16x2_of_fp8::<5>(a, false)),
                (_, true) => lanes::un(|a: u16| c::f16x2_of_fp8::<5>(a, true)),
            };
            d.src::<u16>(1, 1)?;
            d.dst::<u32>(0, 0)?;
            d.emit(Kind::Plain, exec)
        }
        _ => Err(d.unsupported("between these types")),
    }
}

/// `cvt.pack.sat.type.s32{.b32} d, a, b{, c}`
fn pack(d: &mut Dec) -> Result<()> {
    d.need(".sat", &[("sat", ())])?;
    match d.types[..] {
        [Type::U16, Type::S32] => {
            d.bin(|a: i32, b: i32| (a.clamp(0, 0xffff) as u32) << 16 | b.clamp(0, 0xffff) as u32)
        }
        [Type::S16, Type::S32] => d.bin(|a: i32, b: i32| {
            u32::from(a.clamp(-0x8000, 0x7fff) as i16 as u16) << 16
                | u32::from(b.clamp(-0x8000, 0x7fff) as i16 as u16)
        }),
        [Type::U8, Type::S32, Type::B32] => {
            d.ter(|a: i32, b: i32, c: u32| c << 16 | (a.clamp(0, 0xff) as u32) << 8 | b.clamp(0, 0xff) as u32)
        }
        [Type::S8, Type::S32, Type::B32] => d.ter(|a: i32, b: i32, c: u32| {
            c << 16
                | u32::from(a.clamp(-0x80, 0x7f) as i8 as u8) << 8
                | u32::from(b.clamp(-0x80, 0x7f) as i8 as u8)
        }),
        _ => Err(d.unsupported("these types")),
    }
}
