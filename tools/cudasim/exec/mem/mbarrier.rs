//! `mbarrier`: barriers in shared memory that count arrivals in phases.
//!
//! The 64-bit object holds, from the low end: arrivals still pending (20 bits), expected arrivals (20 bits) and the
//! number of the phase (24 bits). A state token is a copy of the object from before the arrival.

use super::super::cx::Cx;
use super::super::inst::Inst;
use super::{Access, addresses, copies, resolve};
use crate::check::FaultKind;

const COUNT: u64 = (1 << 20) - 1;

/// Operations, `aux[2]`.
pub(crate) mod op {
    pub(crate) const INIT: u8 = 0;
    pub(crate) const INVAL: u8 = 1;
    pub(crate) const ARRIVE: u8 = 2;
    pub(crate) const ARRIVE_DROP: u8 = 3;
    pub(crate) const ARRIVE_NO_COMPLETE: u8 = 4;
    pub(crate) const ARRIVE_DROP_NO_COMPLETE: u8 = 5;
    pub(crate) const TEST_WAIT: u8 = 6;
    pub(crate) const TEST_WAIT_PARITY: u8 = 7;
    /// `cp.async.mbarrier.arrive`
    pub(crate) const COPY_ARRIVE: u8 = 8;
    /// `cp.async.mbarrier.arrive.noinc`
    pub(crate) const COPY_ARRIVE_NO_INC: u8 = 9;
}

/// `ops`: address, destination (64-bit token or predicate), count or token or parity; `aux[3]`: 1 when there is a
/// destination, 2 when there is a count.
pub(crate) unsafe fn mbarrier(cx: &mut Cx, i: &Inst, mask: u32) {
    let what = i.aux[2];
    if matches!(what, op::COPY_ARRIVE | op::COPY_ARRIVE_NO_INC) {
        // The copies are complete at some time from now on; the arrival follows, so that whoever waits sees them.
        copies::land(cx, mask, None);
        if what == op::COPY_ARRIVE {
            // The pending count rises by one now and falls by one at the arrival.
            return;
        }
    }
    // SAFETY: the decoder placed an address.
    let addr = unsafe { addresses(cx, i) };
    let access = if matches!(what, op::INIT | op::INVAL) { Access::Store } else { Access::Atomic };
    if !resolve(cx, i, mask, &addr, 8, access) {
        return;
    }
    cx.unwritten = false;
    let mut tokens = [0u64; 32];
    let mut done = 0u32;
    for l in (0..32).filter(|&l| mask >> l & 1 != 0) {
        let p = cx.ptrs[l] as *mut u64;
        // SAFETY: resolved above; only this host thread touches the CTA's shared memory.
        let old = unsafe { p.read() };
        let (pending, expected, phase) = (old & COUNT, old >> 20 & COUNT, old >> 40);
        // SAFETY: the decoder placed rows of these classes.
        let count =
            |cx: &Cx| unsafe { if i.aux[3] & 2 != 0 { u64::from(cx.row::<u32>(i.ops[2])[l]) } else { 1 } };
        let new = match what {
            op::INIT => {
                let n = count(cx);
                if n == 0 || n > COUNT {
                    cx.fail(
                        FaultKind::IllegalInstruction,
                        l as u32,
                        Some(addr[l]),
                        format!("a count of {n}"),
                    );
                    return;
                }
                n | n << 20
            }
            op::INVAL => u64::MAX,
            op::TEST_WAIT => {
                // SAFETY: the token is a 64-bit row.
                let token = unsafe { cx.row::<u64>(i.ops[2])[l] };
                done |= u32::from(token >> 40 != phase) << l;
                continue;
            }
            op::TEST_WAIT_PARITY => {
                // SAFETY: the parity is a 32-bit row.
                let parity = unsafe { cx.row::<u32>(i.ops[2])[l] };
                done |= u32::from(u64::from(parity & 1) != phase & 1) << l;
                continue;
            }
            _ => {
                let n = count(cx);
                let drop = matches!(what, op::ARRIVE_DROP | op::ARRIVE_DROP_NO_COMPLETE);
                let no_complete = matches!(what, op::ARRIVE_NO_COMPLETE | op::ARRIVE_DROP_NO_COMPLETE);
                if n == 0 || n > pending || (no_complete && n == pending) {
                    let message = format!("an arrival of {n} at a barrier that waits for {pending}");
                    cx.fail(FaultKind::IllegalInstruction, l as u32, Some(addr[l]), message);
                    return;
                }
                tokens[l] = old;
                let expected = if drop { expected - n.min(expected) } else { expected };
                if pending == n {
                    expected | expected << 20 | (phase + 1) << 40
                } else {
                    (pending - n) | expected << 20 | phase << 40
                }
            }
        };
        // SAFETY: as for the read.
        unsafe { p.write(new) };
    }
    // SAFETY: the destination is of the class that the operation has.
    unsafe {
        match what {
            op::TEST_WAIT | op::TEST_WAIT_PARITY => {
                cx.put_pred(i.ops[1], done, mask);
                cx.poll(mask, &addr, |l| u64::from(done >> l & 1));
            }
            _ if i.aux[3] & 1 != 0 => cx.put::<u64>(i.ops[1], &tokens, mask),
            _ => {}
        }
    }
}

/// `mbarrier.pending_count`: arrivals that were pending in a token.
pub(crate) fn pending_count(token: u64) -> u32 {
    (token & COUNT) as u32
}
