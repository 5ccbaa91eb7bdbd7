//! The loop that executes the instructions of a warp.

use std::rc::Rc;

use super::cx::Cx;
use super::inst::{Inst, Kind, NONE, flag};
use super::warp::{Frame, Group, State, Warp};
use crate::check::FaultKind;

/// Instructions that a warp runs before the next one has its turn.
const SLICE: u32 = 1 << 16;
/// Polls without news after which a group gives way.
const SPIN_LIMIT: u32 = 16;

/// Why a warp stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WarpStop {
    /// All lanes exited.
    Done,
    /// Its groups wait for other warps.
    Blocked,
    /// It only polls.
    Spinning,
    /// Its turn is over.
    Slice,
    /// The kernel must stop; see [`Cx::fault`].
    Fault,
}

enum Stop {
    Joined,
    Exited,
    Waiting,
    Spin,
    Slice,
    Fault,
}

/// Runs warp `w` of the current CTA until it has to wait.
pub(crate) fn run_warp(cx: &mut Cx, w: usize) -> WarpStop {
    cx.warp = w;
    // SAFETY: the registers of a warp lie inside those of the CTA.
    cx.bases[0] = unsafe { cx.cta.registers.as_mut_ptr().add(cx.cta.warps[w].registers) };
    cx.bases[1] = cx.cta.consts.as_mut_ptr();
    let mut budget = SLICE;
    for g in &mut cx.cta.warps[w].groups {
        g.spun = false;
    }
    loop {
        let warp = &mut cx.cta.warps[w];
        let next = warp.groups.iter().rposition(|g| g.state == State::Ready && !g.spun);
        let Some(next) = next else {
            if warp.alive == 0 {
                return WarpStop::Done;
            }
            if warp.groups.iter().any(|g| matches!(g.state, State::Sync(_))) && warp.meet() {
                continue;
            }
            if warp.groups.iter().any(|g| g.state == State::Ready) {
                // All that can run only poll. If they wait for a lock that lanes of this warp hold, which wait at a
                // join, those go first.
                if warp.own_lock && warp.lanes_at_joins() != 0 && warp.release_waiting() {
                    warp.own_lock = false;
                    continue;
                }
                return WarpStop::Spinning;
            }
            if resolve_missing(cx) {
                continue;
            }
            return WarpStop::Blocked;
        };
        let mut group = warp.groups.swap_remove(next);
        // SAFETY: the program's operands were placed for these registers, and its functions chosen for this machine.
        let stop = unsafe { execute(cx, &mut group, &mut budget) };
        let warp = &mut cx.cta.warps[w];
        match stop {
            Stop::Joined => warp.arrive(group.join, group.mask),
            Stop::Exited => {}
            Stop::Waiting => warp.groups.push(group),
            Stop::Spin => {
                group.spun = true;
                warp.groups.insert(0, group);
            }
            Stop::Slice => {
                warp.groups.insert(0, group);
                return WarpStop::Slice;
            }
            Stop::Fault => {
                warp.groups.push(group);
                return WarpStop::Fault;
            }
        }
    }
}

/// No group can run. When lanes wait at a join while a group needs them, they are let go (and the need reported);
/// whether that changed anything.
#[cold]
fn resolve_missing(cx: &mut Cx) -> bool {
    let w = cx.warp;
    let warp = &mut cx.cta.warps[w];
    let stuck = warp.groups.iter().position(|g| matches!(g.state, State::Sync(_)));
    let waiting = warp.lanes_at_joins();
    if let Some(k) = stuck {
        let State::Sync(member) = warp.groups[k].state else { return false };
        let (pc, mask) = (warp.groups[k].pc, warp.groups[k].mask);
        let missing = member & warp.alive & !mask;
        let lanes_in = |state: fn(&State) -> bool, warp: &Warp| {
            warp.groups.iter().filter(|g| state(&g.state)).fold(0, |m, g| m | g.mask)
        };
        // Lanes at a barrier may still come when other warps reach it.
        let at_barrier = lanes_in(|s| matches!(s, State::Barrier(_)), warp);
        if missing & !at_barrier == 0 {
            return false;
        }
        // `bar.warp.sync` may stand at several places, as long as the masks are the same.
        let insts = &cx.launch.program.insts;
        let warp_sync = |g: &&mut Group| {
            g.state == State::Sync(member) && insts[g.pc as usize].aux[2] == super::collective::WARP_SYNC
        };
        let together = warp.groups.iter_mut().filter(warp_sync).fold(0, |m, g| m | g.mask);
        if member & warp.alive & !together == 0 {
            for g in warp.groups.iter_mut().filter(warp_sync) {
                g.state = State::Ready;
                g.force = true;
            }
            return true;
        }
        warp.groups[k].state = State::Ready;
        warp.groups[k].force = true;
        cx.pc = pc;
        let divergent = cx.launch.program.insts[pc as usize].kind == Kind::Barrier;
        let kind = if divergent { FaultKind::DivergentBarrier } else { FaultKind::InactiveLane };
        if cx.launch.options.checks.divergence {
            cx.warn(kind, mask.trailing_zeros(), None, || {
                format!("lanes {} are not here", super::launch::lanes(missing))
            });
        }
        return true;
    }
    waiting != 0 && warp.release_waiting()
}

/// Executes a group until it stops.
///
/// # Safety
///
/// `cx.bases` points to the registers and constants of a warp that run the launch's program; the machine is
/// [supported](super::lanes::supported).
#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2,fma,f16c,bmi1,bmi2,lzcnt,popcnt"))]
unsafe fn execute(cx: &mut Cx, g: &mut Group, budget: &mut u32) -> Stop {
    let program = cx.launch.program;
    let insts: *const Inst = program.insts.as_ptr();
    let stats = cx.stats.insts.as_mut_ptr();
    let w = cx.warp;
    let mut pc = g.pc;
    let mut mask = g.mask;
    let mut join_pc = cx.cta.warps[w].join_pc(g);
    let mut executed = 0u32;
    macro_rules! stop {
        ($stop:expr) => {{
            g.pc = pc;
            g.mask = mask;
            cx.cta.warps[w].chain.instructions += u64::from(executed);
            *budget = budget.saturating_sub(executed);
            return $stop;
        }};
    }
    loop {
        // SAFETY: every path of a program ends in an exit or a return, and branch targets lie in it.
        let i = unsafe { &*insts.add(pc as usize) };
        if i.flags & flag::LEADER != 0 && pc == join_pc {
            stop!(Stop::Joined);
        }
        // SAFETY: guards are placed predicates.
        let m = mask & unsafe { *cx.ptr(i.guard) ^ i.guard_xor };
        // SAFETY: there is one counter for each instruction.
        unsafe {
            let s = &mut *stats.add(pc as usize);
            s.warp += 1;
            s.threads += u64::from(m.count_ones());
        }
        if i.flags & (flag::NEEDS_GLOBAL | flag::NEEDS_SHARED | flag::HIDDEN) != 0 {
            rounds(cx, i.flags);
            executed += u32::from(i.flags & flag::HIDDEN == 0);
        } else {
            executed += 1;
        }
        match i.kind {
            Kind::Plain => {
                if m != 0 {
                    // SAFETY: see the caller.
                    unsafe { (i.exec)(cx, i, m) };
                }
                pc += 1;
            }
            Kind::Memory => {
                if m != 0 {
                    cx.pc = pc;
                    // SAFETY: see the caller.
                    unsafe { (i.exec)(cx, i, m) };
                    if cx.fault.is_some() {
                        stop!(Stop::Fault);
                    }
                    if cx.yield_now {
                        cx.yield_now = false;
                        let warp = &cx.cta.warps[w];
                        if warp.spins >= SPIN_LIMIT {
                            pc += 1;
                            stop!(Stop::Spin);
                        }
                    }
                }
                pc += 1;
            }
            Kind::Branch => {
                let not = mask & !m;
                if not == 0 || m == 0 {
                    let to = if m != 0 { i.target } else { pc + 1 };
                    let back = to <= pc;
                    pc = to;
                    if back && executed >= *budget {
                        stop!(Stop::Slice);
                    }
                } else {
                    g.pc = pc;
                    g.mask = mask;
                    diverge(cx, g, i.reconverge, join_pc, [(i.target, m), (pc + 1, not)]);
                    (pc, mask) = (g.pc, g.mask);
                    if mask == 0 {
                        // Both sides went straight to the join.
                        stop!(Stop::Exited);
                    }
                    join_pc = cx.cta.warps[w].join_pc(g);
                }
            }
            Kind::BranchIndexed => {
                if m == 0 {
                    pc += 1;
                    continue;
                }
                let lane = m.trailing_zeros();
                // SAFETY: the index is a 32-bit row.
                let index = unsafe { cx.row::<u32>(i.ops[0]) };
                let first = index[lane as usize];
                let Some(&target) = program.tables[i.target as usize].get(first as usize) else {
                    cx.pc = pc;
                    cx.fail(FaultKind::IllegalInstruction, lane, None, format!("no branch target {first}"));
                    stop!(Stop::Fault);
                };
                let same =
                    (0..32).filter(|&l| m >> l & 1 != 0 && index[l] == first).fold(0, |b, l| b | 1 << l);
                // Lanes with another index come here again by themselves.
                let (others, skip) = (m & !same, mask & !m);
                g.pc = pc;
                g.mask = mask;
                if others == 0 && skip == 0 {
                    pc = target;
                    continue;
                }
                let sides = [(target, same), (if others != 0 { pc } else { pc + 1 }, others | skip)];
                diverge(cx, g, i.reconverge, join_pc, sides);
                (pc, mask) = (g.pc, g.mask);
                if mask == 0 {
                    stop!(Stop::Exited);
                }
                join_pc = cx.cta.warps[w].join_pc(g);
            }
            Kind::Call => {
                g.pc = pc;
                g.mask = mask;
                match call(cx, g, i, m, join_pc) {
                    Ok(()) => {}
                    Err(()) => stop!(Stop::Fault),
                }
                (pc, mask) = (g.pc, g.mask);
                if mask == 0 {
                    stop!(Stop::Exited);
                }
                join_pc = cx.cta.warps[w].join_pc(g);
            }
            Kind::Return => {
                let Some(frame) = g.frame.take() else { stop!(Stop::Exited) };
                if let Some(saved) = &frame.saved {
                    restore(cx, frame.caller, saved, mask);
                }
                pc = frame.back;
                g.routine = frame.caller;
                g.frame = frame.up.clone();
                join_pc = cx.cta.warps[w].join_pc(g);
            }
            Kind::Exit => {
                if m != 0 {
                    mask &= !m;
                    cx.cta.warps[w].exit(m, g.join);
                    cx.cta.threads_exited(m.count_ones(), &program.insts);
                }
                pc += 1;
                if mask == 0 {
                    stop!(Stop::Exited);
                }
            }
            Kind::Barrier => {
                if m == 0 {
                    pc += 1;
                    continue;
                }
                cx.pc = pc;
                if m != mask {
                    g.pc = pc;
                    g.mask = mask;
                    split_guarded(cx, g, m, join_pc);
                    mask = m;
                    join_pc = cx.cta.warps[w].join_pc(g);
                }
                let aligned = i.aux[2] != 0;
                let alive = cx.cta.warps[w].alive;
                if aligned && m & alive != alive && !g.force {
                    g.state = State::Sync(u32::MAX);
                    stop!(Stop::Waiting);
                }
                g.force = false;
                cx.cta.warps[w].chain.barriers += 1;
                // SAFETY: the operands are placed rows of their classes.
                let blocked = unsafe { super::cta::barrier(cx, i, m) };
                if cx.fault.is_some() {
                    stop!(Stop::Fault);
                }
                match blocked {
                    Some(id) => {
                        g.state = State::Barrier(id);
                        stop!(Stop::Waiting);
                    }
                    None => pc += 1,
                }
            }
            Kind::Collective => {
                if m == 0 {
                    pc += 1;
                    continue;
                }
                cx.pc = pc;
                let members = if i.aux[3] != 0 {
                    // SAFETY: the member mask is a 32-bit row.
                    unsafe { *cx.row::<u32>(i.ops[4]) }
                } else {
                    [u32::MAX; 32]
                };
                let wanted = any_member(&members, m);
                let alive = cx.cta.warps[w].alive;
                if wanted & alive & !m != 0 && !g.force {
                    if m != mask {
                        g.pc = pc;
                        g.mask = mask;
                        split_guarded(cx, g, m, join_pc);
                        mask = m;
                    }
                    g.state = State::Sync(wanted);
                    stop!(Stop::Waiting);
                }
                g.force = false;
                // Lanes with the same member mask execute it together: tiles of a warp each with their own.
                let mut left = m;
                while left != 0 {
                    let member = members[left.trailing_zeros() as usize];
                    let together = with_member(&members, left, member);
                    left &= !together;
                    if together & !member != 0 && cx.launch.options.checks.divergence {
                        cx.warn(FaultKind::InactiveLane, (together & !member).trailing_zeros(), None, || {
                            format!("the lane is not in its own member mask {member:#x}")
                        });
                    }
                    // SAFETY: see the caller.
                    unsafe { (i.exec)(cx, i, together) };
                    if cx.fault.is_some() {
                        stop!(Stop::Fault);
                    }
                }
                pc += 1;
            }
            Kind::Trap => {
                if m != 0 {
                    cx.pc = pc;
                    // SAFETY: see the caller.
                    unsafe { (i.exec)(cx, i, m) };
                    stop!(Stop::Fault);
                }
                pc += 1;
            }
        }
    }
}

/// All lanes that the lanes of `m` name as members.
#[inline]
fn any_member(members: &[u32; 32], m: u32) -> u32 {
    (0..32).fold(0, |all, l| if m >> l & 1 != 0 { all | members[l] } else { all })
}

/// The lanes of `m` whose member mask is `member`.
#[inline]
fn with_member(members: &[u32; 32], m: u32, member: u32) -> u32 {
    (0..32).fold(0, |all, l| all | u32::from(m >> l & 1 != 0 && members[l] == member) << l)
}

/// Counts where the warp waits for loads.
#[inline]
fn rounds(cx: &mut Cx, flags: u8) {
    let warp = &mut cx.cta.warps[cx.warp];
    if flags & flag::NEEDS_GLOBAL != 0 && warp.global_pending {
        warp.global_pending = false;
        warp.chain.global_rounds += 1;
    }
    if flags & flag::NEEDS_SHARED != 0 && warp.shared_pending {
        warp.shared_pending = false;
        warp.chain.shared_rounds += 1;
    }
}

/// Parts a group into two sides; `g` becomes the one that runs on, or empty when both wait at the join.
#[cold]
fn diverge(cx: &mut Cx, g: &mut Group, reconverge: u32, join_pc: u32, sides: [(u32, u32); 2]) {
    let warp = &mut cx.cta.warps[cx.warp];
    if reconverge != NONE && reconverge != join_pc {
        g.join = warp.new_join(reconverge, g.mask, g);
    }
    let [taken, not] = sides;
    let at_join = |side: (u32, u32)| side.0 == reconverge && reconverge != NONE;
    // The side that runs first: not the one that only waits, else the one that falls through.
    let (first, second) = if at_join(not) { (taken, not) } else { (not, taken) };
    if at_join(second) {
        let join = g.join;
        if at_join(first) {
            g.mask = 0;
            warp.arrive(join, first.1 | second.1);
            return;
        }
        warp.arrive(join, second.1);
    } else {
        warp.groups.push(Group { pc: second.0, mask: second.1, ..g.clone() });
    }
    (g.pc, g.mask) = first;
}

/// The lanes whose guard fails go on after the instruction; all meet again there.
#[cold]
fn split_guarded(cx: &mut Cx, g: &mut Group, taking_part: u32, join_pc: u32) {
    let after = g.pc + 1;
    let warp = &mut cx.cta.warps[cx.warp];
    let rest = g.mask & !taking_part;
    if join_pc != after {
        g.join = warp.new_join(after, g.mask, g);
    }
    // The instruction after is perhaps not the start of a block: the waiting lanes are put there by hand.
    warp.arrive(g.join, rest);
    g.mask = taking_part;
}

#[cold]
fn call(cx: &mut Cx, g: &mut Group, i: &Inst, m: u32, join_pc: u32) -> Result<(), ()> {
    if m == 0 {
        g.pc += 1;
        return Ok(());
    }
    let program = cx.launch.program;
    let mut taking = m;
    let routine = if i.aux[0] != 0 {
        // SAFETY: the function's address is a 64-bit row.
        let targets = unsafe { cx.row::<u64>(i.ops[0]) };
        let lane = m.trailing_zeros();
        let target = targets[lane as usize];
        taking = (0..32).filter(|&l| m >> l & 1 != 0 && targets[l] == target).fold(0, |b, l| b | 1 << l);
        let found = (1..program.routines.len())
            .find(|&r| crate::decode::function_address(program.routines[r].module_index) == target);
        match found {
            Some(r) => r as u32,
            None => {
                cx.pc = g.pc;
                cx.fail(FaultKind::IllegalInstruction, lane, Some(target), "a call of what is no function");
                return Err(());
            }
        }
    } else {
        i.target
    };
    if taking != g.mask {
        let (others, skip) = (m & !taking, g.mask & !m);
        let after = g.pc + 1;
        let pc = g.pc;
        diverge(cx, g, after, join_pc, [(pc, taking), (if others != 0 { pc } else { after }, others | skip)]);
        // `diverge` may have put the other side first; the lanes of `taking` come here again.
        if g.mask != taking || g.pc != pc {
            return Ok(());
        }
    }
    let (caller, callee) = (&program.routines[g.routine as usize], &program.routines[routine as usize]);
    // SAFETY: frame rows are 64-bit rows.
    let frames: [u64; 32] = unsafe {
        let base = cx.row::<u64>(caller.frame_row);
        std::array::from_fn(|l| base[l].wrapping_add(u64::from(caller.frame_bytes)))
    };
    let limit = u64::from(program.local_bytes);
    let deepest = (0..32).filter(|&l| taking >> l & 1 != 0).map(|l| frames[l]).max().unwrap_or(0);
    if deepest + u64::from(callee.frame_bytes) > limit || frame_depth(g) > 10_000 {
        cx.pc = g.pc;
        let lane = taking.trailing_zeros();
        cx.fail(
            FaultKind::StackOverflow,
            lane,
            None,
            format!("{limit} bytes of local memory per thread are used up"),
        );
        return Err(());
    }
    let saved = program.recursive.then(|| save(cx, g.routine));
    // SAFETY: as above.
    unsafe { cx.put::<u64>(callee.frame_row, &frames, taking) };
    let warp = &mut cx.cta.warps[cx.warp];
    let id = warp.next_frame;
    warp.next_frame = id.wrapping_add(1).max(1);
    g.frame = Some(Rc::new(Frame { back: g.pc + 1, caller: g.routine, up: g.frame.take(), id, saved }));
    g.routine = routine;
    g.pc = callee.entry;
    Ok(())
}

fn frame_depth(g: &Group) -> u32 {
    let mut n = 0;
    let mut frame = g.frame.as_ref();
    while let Some(f) = frame {
        n += 1;
        frame = f.up.as_ref();
    }
    n
}

/// All registers of a routine, with the base of its frame.
fn save(cx: &Cx, routine: u32) -> Box<[u32]> {
    let r = &cx.launch.program.routines[routine as usize];
    let region = &r.region;
    let mut out = Vec::new();
    let mut copy = |first: u32, words: u32| {
        // SAFETY: the region lies in the registers of the warp.
        out.extend_from_slice(unsafe {
            std::slice::from_raw_parts(cx.bases[0].add(first as usize), words as usize)
        });
    };
    copy(region.preds.0, region.preds.1);
    copy(region.w32.0, region.w32.1 * 32);
    copy(region.w64.0, region.w64.1 * 64);
    // SAFETY: the frame row is a 64-bit row.
    out.extend_from_slice(unsafe { std::slice::from_raw_parts(cx.ptr(r.frame_row), 64) });
    out.into()
}

/// Puts back what [`save`] kept, for the lanes of a mask.
fn restore(cx: &mut Cx, routine: u32, saved: &[u32], mask: u32) {
    let r = cx.launch.program.routines[routine as usize].clone();
    let mut at = 0;
    // SAFETY: the rows are those that were saved, of the same classes.
    unsafe {
        for p in 0..r.region.preds.1 {
            cx.put_pred(r.region.preds.0 + p, saved[at], mask);
            at += 1;
        }
        for row in 0..r.region.w32.1 {
            let values: [u32; 32] = std::array::from_fn(|l| saved[at + l]);
            cx.put::<u32>(r.region.w32.0 + row * 32, &values, mask);
            at += 32;
        }
        let wide = |at: usize| -> [u64; 32] {
            std::array::from_fn(|l| u64::from(saved[at + 2 * l]) | u64::from(saved[at + 2 * l + 1]) << 32)
        };
        for row in 0..r.region.w64.1 {
            cx.put::<u64>(r.region.w64.0 + row * 64, &wide(at), mask);
            at += 64;
        }
        if r.frame_row & super::inst::CONST == 0 {
            cx.put::<u64>(r.frame_row, &wide(at), mask);
        }
    }
}
