//! Single- and double-precision arithmetic.

use super::super::builder::Result;
use super::super::dec::Dec;
use crate::exec::float::f32s::{canon, ftz, max, max_nan, min, min_nan, sat, xorsign};
use crate::exec::float::round::{self, Down, Near, Round, Up, Zero};
use crate::exec::float::{exact, f32s};
use crate::exec::inst::{Inst, Kind};
use crate::exec::lanes;
use crate::ptx::ast::Type;

/// The rounding mode, when the instruction names one.
pub(super) fn rounding(d: &mut Dec) -> Option<Round> {
    d.one_of(&[("rn", Round::Near), ("rz", Round::Zero), ("rm", Round::Down), ("rp", Round::Up)])
}

/// Runs an expression with `M` and `FTZ` for the modes.
macro_rules! modes {
    ($round:expr, $ftz:expr, |$M:ident, $FTZ:ident| $e:expr) => {{
        macro_rules! with {
            ($mode:ty) => {{
                type $M = $mode;
                if $ftz {
                    const $FTZ: bool = true;
                    $e
                } else {
                    const $FTZ: bool = false;
                    $e
                }
            }};
        }
        match $round {
            Round::Near => with!(Near),
            Round::Zero => with!(Zero),
            Round::Down => with!(Down),
            Round::Up => with!(Up),
        }
    }};
}

#[inline(always)]
fn f<const FTZ: bool>(x: f32) -> f32 {
    if FTZ { ftz(x) } else { x }
}

/// Everything on f32 and f64.
pub(super) fn decode(d: &mut Dec) -> Result<()> {
    if matches!(d.types.last(), Some(Type::F16 | Type::F16x2 | Type::Bf16 | Type::Bf16x2)) {
        return super::half::decode(d);
    }
    match d.base {
        "testp" => testp(d),
        "copysign" => match d.ty()? {
            Type::F32 => d.bin(|a: f32, b: f32| b.copysign(a)),
            Type::F64 => d.bin(|a: f64, b: f64| b.copysign(a)),
            _ => Err(d.unsupported("this type")),
        },
        _ => match d.ty()? {
            Type::F32 => single(d),
            Type::F64 => double(d),
            _ => Err(d.unsupported("this type")),
        },
    }
}

/// `.sat` as a helper after the instruction.
fn saturate(d: &mut Dec) {
    if d.flag("sat") {
        let to = d.inst.ops[0];
        let mut helper = Inst::new(Kind::Plain, lanes::un(|a: f32| sat(a)));
        (helper.ops[0], helper.ops[1]) = (to, to);
        d.after(helper, vec![to], vec![to]);
    }
}

fn single(d: &mut Dec) -> Result<()> {
    let round = rounding(d);
    let flush = d.flag("ftz");
    let near = round.unwrap_or(Round::Near);
    let sources = match d.base {
        "add" | "sub" | "mul" | "div" | "min" | "max" => 2,
        "fma" | "mad" => 3,
        _ => 1,
    };
    d.arity(sources + 1)?;
    for k in 1..=sources {
        d.src::<f32>(k, k)?;
    }
    d.dst::<f32>(0, 0)?;
    let exec = match d.base {
        "add" => {
            saturate(d);
            modes!(near, flush, |M, FTZ| lanes::bin(|a: f32, b: f32| {
                f::<FTZ>(canon(round::add::<M>(f::<FTZ>(a), f::<FTZ>(b))))
            }))
        }
        "sub" => {
            saturate(d);
            modes!(near, flush, |M, FTZ| lanes::bin(|a: f32, b: f32| {
                f::<FTZ>(canon(round::add::<M>(f::<FTZ>(a), -f::<FTZ>(b))))
            }))
        }
        "mul" => {
            saturate(d);
            modes!(near, flush, |M, FTZ| lanes::bin(|a: f32, b: f32| {
                f::<FTZ>(canon(round::mul::<M>(f::<FTZ>(a), f::<FTZ>(b))))
            }))
        }
        "fma" | "mad" => {
            if round.is_none() {
                return Err(d.unsupported("without a rounding mode"));
            }
            saturate(d);
            modes!(near, flush, |M, FTZ| lanes::ter(|a: f32, b: f32, c: f32| {
                f::<FTZ>(canon(round::fma::<M>(f::<FTZ>(a), f::<FTZ>(b), f::<FTZ>(c))))
            }))
        }
        "div" => {
            if round.is_none() {
                d.need("a rounding mode, .approx or .full", &[("approx", ()), ("full", ())])?;
            }
            modes!(near, flush, |M, FTZ| lanes::bin(|a: f32, b: f32| {
                f::<FTZ>(canon(round::div::<M>(f::<FTZ>(a), f::<FTZ>(b))))
            }))
        }
        "rcp" => {
            if round.is_none() {
                d.need("a rounding mode or .approx", &[("approx", ())])?;
            }
            modes!(near, flush, |M, FTZ| lanes::un(|a: f32| {
                f::<FTZ>(canon(round::div::<M>(1.0, f::<FTZ>(a))))
            }))
        }
        "sqrt" => {
            if round.is_none() {
                d.need("a rounding mode or .approx", &[("approx", ())])?;
            }
            modes!(near, flush, |M, FTZ| lanes::un(|a: f32| f::<FTZ>(canon(round::sqrt::<M>(f::<FTZ>(a))))))
        }
        "min" | "max" => return min_max(d, flush),
        "abs" if flush => lanes::un(|a: f32| ftz(a).abs()),
        "abs" => lanes::un(|a: f32| a.abs()),
        "neg" if flush => lanes::un(|a: f32| -ftz(a)),
        "neg" => lanes::un(|a: f32| -a),
        "rsqrt" | "ex2" | "lg2" | "sin" | "cos" | "tanh" => {
            d.need(".approx", &[("approx", ())])?;
            // Without .ftz the results of these are those of subnormal operands too.
            match (d.base, flush) {
                ("rsqrt", true) => lanes::un(|a: f32| ftz(f32s::rsqrt(ftz(a)))),
                ("rsqrt", false) => lanes::un(|a: f32| f32s::rsqrt(a)),
                ("ex2", true) => lanes::un(|a: f32| ftz(f32s::ex2(ftz(a)))),
                ("ex2", false) => lanes::un(|a: f32| f32s::ex2(a)),
                ("lg2", true) => lanes::un(|a: f32| ftz(f32s::lg2(ftz(a)))),
                ("lg2", false) => lanes::un(|a: f32| f32s::lg2(a)),
                ("sin", true) => lanes::un(|a: f32| ftz(f32s::sin(ftz(a)))),
                ("sin", false) => lanes::un(|a: f32| f32s::sin(a)),
                ("cos", true) => lanes::un(|a: f32| ftz(f32s::cos(ftz(a)))),
                ("cos", false) => lanes::un(|a: f32| f32s::cos(a)),
                (_, false) => lanes::un(|a: f32| f32s::tanh(a)),
                _ => return Err(d.unsupported(".ftz")),
            }
        }
        _ => return Err(d.unsupported("")),
    };
    d.emit(Kind::Plain, exec)
}

fn min_max(d: &mut Dec, flush: bool) -> Result<()> {
    let nan = d.flag("NaN");
    let (x, a) = (d.flag("xorsign"), d.flag("abs"));
    if x != a {
        return Err(d.unsupported(".xorsign and .abs go together"));
    }
    macro_rules! of {
        ($f:expr) => {
            match (flush, x) {
                (false, false) => lanes::bin(|a: f32, b: f32| $f(a, b)),
                (true, false) => lanes::bin(|a: f32, b: f32| $f(ftz(a), ftz(b))),
                (false, true) => lanes::bin(|a: f32, b: f32| xorsign($f, a, b)),
                (true, true) => lanes::bin(|a: f32, b: f32| xorsign($f, ftz(a), ftz(b))),
            }
        };
    }
    let exec = match (d.base, nan) {
        ("min", false) => of!(min),
        ("min", true) => of!(min_nan),
        (_, false) => of!(max),
        (_, true) => of!(max_nan),
    };
    d.emit(Kind::Plain, exec)
}

fn double(d: &mut Dec) -> Result<()> {
    let round = rounding(d);
    let near = round.unwrap_or(Round::Near);
    macro_rules! by {
        (|$M:ident| $e:expr) => {
            match near {
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
    match d.base {
        "add" => by!(|M| d.bin(|a: f64, b: f64| exact::add::<M>(a, b))),
        "sub" => by!(|M| d.bin(|a: f64, b: f64| exact::add::<M>(a, -b))),
        "mul" => by!(|M| d.bin(|a: f64, b: f64| exact::mul::<M>(a, b))),
        "fma" | "mad" if round.is_some() => by!(|M| d.ter(|a: f64, b: f64, c: f64| exact::fma::<M>(a, b, c))),
        "div" if round.is_some() => by!(|M| d.bin(|a: f64, b: f64| exact::div::<M>(a, b))),
        "rcp" if round.is_some() => by!(|M| d.un(|a: f64| exact::div::<M>(1.0, a))),
        "sqrt" if round.is_some() => by!(|M| d.un(|a: f64| exact::sqrt::<M>(a))),
        "min" => d.bin(|a: f64, b: f64| min64(a, b)),
        "max" => d.bin(|a: f64, b: f64| max64(a, b)),
        "abs" => d.un(|a: f64| a.abs()),
        "neg" => d.un(|a: f64| -a),
        // Hardware reads and gives the upper 32 bits; programs refine it.
        "rcp" | "rsqrt" => {
            d.need(".approx", &[("approx", ())])?;
            let flush = d.flag("ftz");
            match (d.base, flush) {
                ("rcp", true) => d.un(|a: f64| upper(flush64(1.0 / flush64(upper(a))))),
                ("rsqrt", true) => d.un(|a: f64| upper(rsqrt64(flush64(upper(a))))),
                ("rsqrt", false) => d.un(|a: f64| upper(rsqrt64(upper(a)))),
                _ => Err(d.unsupported("without .ftz")),
            }
        }
        _ => Err(d.unsupported("this form")),
    }
}

fn upper(x: f64) -> f64 {
    f64::from_bits(x.to_bits() & 0xffff_ffff_0000_0000)
}

fn flush64(x: f64) -> f64 {
    if x.is_subnormal() { 0f64.copysign(x) } else { x }
}

fn rsqrt64(x: f64) -> f64 {
    if x == 0.0 { f64::INFINITY.copysign(x) } else { 1.0 / x.sqrt() }
}

fn min64(a: f64, b: f64) -> f64 {
    if a.is_nan() {
        b
    } else if b.is_nan() || a < b || (a == b && a.is_sign_negative()) {
        a
    } else {
        b
    }
}

fn max64(a: f64, b: f64) -> f64 {
    if a.is_nan() {
        b
    } else if b.is_nan() || a > b || (a == b && a.is_sign_positive()) {
        a
    } else {
        b
    }
}

fn testp(d: &mut Dec) -> Result<()> {
    let ty = d.ty()?;
    d.arity(2)?;
    d.inst.ops[1] = d.read(d.operand(1)?, ty)?;
    d.inst.ops[2] = d.inst.ops[1];
    let what = d.need(
        "a property",
        &[("finite", 0), ("infinite", 1), ("number", 2), ("notanumber", 3), ("normal", 4), ("subnormal", 5)],
    )?;
    macro_rules! of {
        ($t:ty) => {
            match what {
                0 => lanes::cmp(|a: $t, _: $t| a.is_finite()),
                1 => lanes::cmp(|a: $t, _: $t| a.is_infinite()),
                2 => lanes::cmp(|a: $t, _: $t| !a.is_nan()),
                3 => lanes::cmp(|a: $t, _: $t| a.is_nan()),
                4 => lanes::cmp(|a: $t, _: $t| a.is_normal()),
                _ => lanes::cmp(|a: $t, _: $t| a.is_subnormal()),
            }
        };
    }
    let exec = match ty {
        Type::F32 => of!(f32),
        Type::F64 => of!(f64),
        _ => return Err(d.unsupported("this type")),
    };
    d.inst.ops[0] = d.write(d.operand(0)?, Type::Pred)?;
    d.emit(Kind::Plain, exec)
}
