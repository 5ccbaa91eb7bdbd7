//! How a launch ends before its time: faults and deadlocks, with where its warps are.

use super::cta::Cta;
use super::cx::Cx;
use super::inst::NONE;
use super::launch::{Launching, Place};
use super::warp::State;
use crate::check::{FaultKind, Report};

/// Makes the current fault the one that stops the kernel.
pub(super) fn fatal(cx: &mut Cx) {
    let Some(fault) = cx.fault.take() else { return };
    let place = Place {
        kind: fault.kind,
        pc: cx.pc,
        block: cx.cta.block,
        linear: cx.cta.linear,
        thread: cx.cta.thread_index(cx.warp, fault.lane),
        address: fault.address,
        other: NONE,
    };
    let report = cx.launch.make_report(&place, fault.message);
    keep_first(cx.launch, place.linear, report);
}

/// Of several host threads' faults the one of the first CTA is kept.
fn keep_first(l: &Launching, linear: u64, report: Report) {
    let mut slot = l.fatal.lock().unwrap_or_else(|e| e.into_inner());
    if slot.as_ref().is_none_or(|(first, _)| linear < *first) {
        *slot = Some((linear, report));
    }
}

pub(super) fn set_fatal(l: &Launching, cta: &Cta, warp: usize, kind: FaultKind, message: String) {
    let pc = cta.warps.get(warp).and_then(|w| w.groups.first()).map_or(0, |g| g.pc);
    let lane = cta.warps.get(warp).and_then(|w| w.groups.first()).map_or(0, |g| g.mask.trailing_zeros());
    let place = Place {
        kind,
        pc,
        block: cta.block,
        linear: cta.linear,
        thread: cta.thread_index(warp, lane),
        address: None,
        other: NONE,
    };
    keep_first(l, cta.linear, l.make_report(&place, message));
}

/// Where the warps of a CTA are.
pub(super) fn waiting(l: &Launching, cta: &Cta) -> String {
    let mut out: Vec<(String, Vec<usize>)> = Vec::new();
    for (w, warp) in cta.warps.iter().enumerate() {
        for g in &warp.groups {
            let what = match g.state {
                State::Ready => "runs at".to_owned(),
                State::Barrier(id) => format!("waits at barrier {id} at"),
                State::Sync(_) => "waits for its other lanes at".to_owned(),
            };
            let text = format!("{what} {}", l.place_of(g.pc));
            match out.iter_mut().find(|(t, _)| *t == text) {
                Some((_, warps)) => warps.push(w),
                None => out.push((text, vec![w])),
            }
        }
    }
    let shown: Vec<String> = out
        .iter()
        .map(|(text, warps)| {
            let all: Vec<String> = warps.iter().take(8).map(|w| w.to_string()).collect();
            let more = if warps.len() > 8 { ", …" } else { "" };
            format!("warp {}{more} {text}", all.join(", "))
        })
        .collect();
    shown.join("; ")
}

/// Reports a deadlock with every blocked warp's line.
#[cold]
pub(super) fn deadlock(cx: &mut Cx, ctas: &[Box<Cta>]) {
    let l = cx.launch;
    let Some(cta) = ctas.iter().min_by_key(|c| c.linear) else { return };
    let mut message = waiting(l, cta);
    if ctas.len() > 1 {
        message.push_str(&format!("; {} more blocks of this host thread wait too", ctas.len() - 1));
    }
    let warp = cta.warps.iter().position(|w| !w.done()).unwrap_or(0);
    set_fatal(l, cta, warp, FaultKind::Deadlock, message);
}
