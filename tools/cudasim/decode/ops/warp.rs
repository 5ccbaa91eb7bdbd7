//! Barriers, and instructions in which lanes exchange values.

use super::super::builder::Result;
use super::super::dec::Dec;
use crate::exec::inst::Kind;
use crate::exec::{Vote, bar as bars, warp_ops};
use crate::ptx::ast::{Operand, Type};

/// `bar` and `barrier`
pub(super) fn bar(d: &mut Dec) -> Result<()> {
    if d.flag("warp") {
        d.need(".sync", &[("sync", ())])?;
        d.arity(1)?;
        member(d, 0)?;
        d.inst.aux[2] = warp_ops::WARP_SYNC;
        return d.emit(Kind::Collective, warp_ops::bar_warp_sync);
    }
    // `bar` is `barrier….aligned`.
    d.flag("cta");
    let aligned = d.flag("aligned") || d.base == "bar";
    let what = d.need(".sync, .arrive or .red", &[("sync", 0), ("arrive", 1), ("red", 2)])?;
    d.inst.aux[2] = u8::from(aligned);
    let n = d.ins.operands.len();
    match what {
        0 | 1 => {
            if !(1..=2).contains(&n) || (what == 1 && n != 2) {
                return Err(d.invalid("a number and perhaps a count are expected"));
            }
            d.inst.aux[0] = if what == 0 { bars::SYNC } else { bars::ARRIVE };
            d.inst.ops[1] = d.read(d.operand(0)?, Type::U32)?;
            if n == 2 {
                d.inst.ops[2] = d.read(d.operand(1)?, Type::U32)?;
                d.inst.aux[3] = 1;
            }
        }
        _ => {
            let op = d.need("an operation", &[("popc", bars::POPC), ("and", bars::AND), ("or", bars::OR)])?;
            if !(3..=4).contains(&n) {
                return Err(d.invalid("three or four operands are expected"));
            }
            let want = if op == bars::POPC { Type::U32 } else { Type::Pred };
            if d.ty()? != want {
                return Err(d.unsupported("this type"));
            }
            d.inst.aux[0] = op;
            d.inst.ops[1] = d.read(d.operand(1)?, Type::U32)?;
            if n == 4 {
                d.inst.ops[2] = d.read(d.operand(2)?, Type::U32)?;
                d.inst.aux[3] = 1;
            }
            d.inst.ops[3] = d.read(d.operand(n - 1)?, Type::Pred)?;
            d.inst.ops[0] = d.write(d.operand(0)?, want)?;
        }
    }
    d.emit(Kind::Barrier, crate::exec::inst::nothing)
}

/// The member mask, operand `k`.
fn member(d: &mut Dec, k: usize) -> Result<()> {
    d.inst.ops[4] = d.read(d.operand(k)?, Type::B32)?;
    d.inst.aux[3] = 1;
    Ok(())
}

/// `shfl vote match redux activemask elect`
pub(super) fn decode(d: &mut Dec) -> Result<()> {
    if d.base == "activemask" {
        d.arity(1)?;
        d.dst::<u32>(0, 0)?;
        return d.emit(Kind::Plain, warp_ops::activemask);
    }
    if !d.flag("sync") {
        return Err(d.unsupported("without .sync"));
    }
    match d.base {
        "shfl" => shfl(d),
        "vote" => vote(d),
        "match" => matching(d),
        "redux" => {
            d.arity(3)?;
            let ty = d.ty()?;
            let op = d.need(
                "an operation",
                &[
                    ("add", "add"),
                    ("min", "min"),
                    ("max", "max"),
                    ("and", "and"),
                    ("or", "or"),
                    ("xor", "xor"),
                ],
            )?;
            let fits = match op {
                "and" | "or" | "xor" => ty == Type::B32,
                _ => matches!(ty, Type::U32 | Type::S32),
            };
            let exec = warp_ops::redux(op, ty.signed()).filter(|_| fits);
            let exec = exec.ok_or_else(|| d.unsupported("this type"))?;
            d.src::<u32>(1, 1)?;
            member(d, 2)?;
            d.dst::<u32>(0, 0)?;
            d.emit(Kind::Collective, exec)
        }
        _ => {
            d.arity(2)?;
            member(d, 1)?;
            let Operand::Pair(leader, p) = d.operand(0)? else {
                return Err(d.invalid("two destinations are expected"));
            };
            d.inst.ops[0] = d.write(leader, Type::B32)?;
            d.inst.ops[1] = d.write(p, Type::Pred)?;
            d.emit(Kind::Collective, warp_ops::elect)
        }
    }
}

fn shfl(d: &mut Dec) -> Result<()> {
    use warp_ops::shuffle;
    d.arity(5)?;
    if d.ty()?.bits() != 32 {
        return Err(d.unsupported("this type"));
    }
    let modes =
        [("up", shuffle::UP), ("down", shuffle::DOWN), ("bfly", shuffle::BFLY), ("idx", shuffle::IDX)];
    d.inst.aux[0] = d.need("a mode", &modes)?;
    d.inst.ops[1] = d.read(d.operand(1)?, Type::B32)?;
    d.inst.ops[2] = d.read(d.operand(2)?, Type::B32)?;
    d.inst.ops[3] = d.read(d.operand(3)?, Type::B32)?;
    member(d, 4)?;
    with_pred(d)?;
    d.emit(Kind::Collective, warp_ops::shfl)
}

/// A destination of 32 bits, perhaps with a predicate: `d|p`.
fn with_pred(d: &mut Dec) -> Result<()> {
    match d.operand(0)? {
        Operand::Pair(value, p) => {
            d.inst.ops[0] = d.write(value, Type::B32)?;
            let p = d.write(p, Type::Pred)?;
            d.pool(&[p])?;
            d.inst.aux[1] = 1;
        }
        value => d.inst.ops[0] = d.write(value, Type::B32)?,
    }
    Ok(())
}

fn vote(d: &mut Dec) -> Result<()> {
    d.arity(3)?;
    let mode = d.need(
        "a mode",
        &[("all", Vote::All), ("any", Vote::Any), ("uni", Vote::Uni), ("ballot", Vote::Ballot)],
    )?;
    let ty = d.ty()?;
    if ty != if mode == Vote::Ballot { Type::B32 } else { Type::Pred } {
        return Err(d.unsupported("this type"));
    }
    d.inst.aux[0] = mode as u8;
    d.inst.ops[1] = d.read(d.operand(1)?, Type::Pred)?;
    member(d, 2)?;
    d.inst.ops[0] = d.write(d.operand(0)?, ty)?;
    d.emit(Kind::Collective, warp_ops::vote)
}

fn matching(d: &mut Dec) -> Result<()> {
    d.arity(3)?;
    let ty = d.ty()?;
    if !matches!(ty, Type::B32 | Type::B64) {
        return Err(d.unsupported("this type"));
    }
    let all = d.need(".any or .all", &[("any", false), ("all", true)])?;
    d.inst.ops[1] = d.read(d.operand(1)?, ty)?;
    member(d, 2)?;
    with_pred(d)?;
    if !all && d.inst.aux[1] != 0 {
        return Err(d.invalid(".any has no predicate"));
    }
    let exec = if all { warp_ops::match_all(ty.bits()) } else { warp_ops::match_any(ty.bits()) };
    d.emit(Kind::Collective, exec)
}
