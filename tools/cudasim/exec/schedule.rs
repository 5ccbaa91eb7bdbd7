//! Which CTA runs where and when.
//!
//! CTAs start in launch order, at most as many at once as the device holds. A host thread keeps to one CTA until all
//! its warps wait or only poll memory; then it looks after its other CTAs or starts a new one. When every host thread
//! has only CTAs that poll what nobody changes, the kernel is in a deadlock.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::consts;
use super::cta::{Barrier, Cta, Rows};
use super::cx::{Cx, Lately};
use super::ends::{deadlock, fatal, set_fatal, waiting};
use super::inst::NONE;
use super::launch::{ExecOptions, Launch, Launching, Outcome, Sampling};
use super::mem::shared::SharedMemory;
use super::run::{WarpStop, run_warp};
use super::stats::Stats;
use super::tally::counters;
use super::warp::{State, Warp};
use crate::check::{FaultKind, Report};
use crate::decode::program::LaneSpecial;
use crate::memory::GlobalMemory;

/// Turns without news of all CTAs of a host thread after which it counts as stalled.
const STALL_TURNS: u64 = 2000;
/// Turns that all host threads must have had while all were stalled.
const DEADLOCK_TURNS: u64 = 64;
/// Rounds over the warps of a CTA after which others have a turn.
const ROUNDS: u32 = 64;
/// Bytes of the workspace of a cooperative launch: the barrier of its grid.
const WORKSPACE_BYTES: u64 = 256;
/// Most shared memory that any device gives to a CTA.
const MAX_SHARED: u64 = 1 << 20;

/// Runs a launch to its end.
pub fn run(launch: &Launch, memory: &GlobalMemory, options: &ExecOptions) -> Outcome {
    let program = &launch.kernel.program;
    let dynamic_base = program.static_shared.next_multiple_of(program.dynamic_shared_align.max(1));
    let total = if launch.dynamic_shared_bytes == 0 && !launch.kernel.dynamic_shared {
        u64::from(program.static_shared)
    } else {
        u64::from(dynamic_base) + u64::from(launch.dynamic_shared_bytes)
    };
    let mut refused = refused(launch, total);
    let mut workspace = None;
    if refused.is_none() && launch.cooperative && program.uses_workspace {
        workspace = memory
            .alloc(WORKSPACE_BYTES)
            .filter(|&at| memory.write(at, &[0; WORKSPACE_BYTES as usize]).is_ok());
        if workspace.is_none() {
            refused = Some("no memory for the workspace of a cooperative launch".into());
        }
    }
    if let Some(message) = refused {
        let report = Report {
            kind: FaultKind::BadLaunch,
            kernel: launch.kernel.name.clone(),
            file: None,
            line: 0,
            instruction: String::new(),
            pc: NONE,
            block: [0; 3],
            thread: [0; 3],
            address: None,
            message,
            count: 1,
        };
        return Outcome { fatal: Some(report), ..Outcome::default() };
    }
    let l = Launching::new(launch, memory, options, total as u32, dynamic_base, workspace);
    memory.begin_launch();
    let ctas = l.ctas();
    let sample = options.sample.map(|(Sampling::Even(n) | Sampling::First(n))| n.clamp(1, ctas));
    let sample = sample.filter(|&n| n < ctas);
    let to_run = sample.unwrap_or(ctas);
    let threads = options.threads.clamp(1, 256).min(usize::try_from(to_run).unwrap_or(256));
    let turns: Vec<AtomicU64> = (0..threads).map(|_| AtomicU64::new(0)).collect();
    let ended: Vec<AtomicBool> = (0..threads).map(|_| AtomicBool::new(false)).collect();
    let shared = Workers { l: &l, to_run, ctas, turns: &turns, ended: &ended };
    let mut stats = Stats::new(program.insts.len(), options.counters);
    let mut per_cta: Vec<(u64, u32)> = Vec::new();
    let mut merge = |(s, c): (Stats, Vec<(u64, u32)>)| {
        stats.add(&s);
        for (key, n) in s.seen {
            *stats.seen.entry(key).or_insert(0) += n;
        }
        per_cta.extend(c);
    };
    if threads == 1 {
        merge(shared.work(0));
    } else {
        std::thread::scope(|scope| {
            let handles: Vec<_> = (0..threads).map(|t| scope.spawn(move || shared.work(t))).collect();
            for h in handles {
                match h.join() {
                    Ok(out) => merge(out),
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
        });
    }
    let fatal = l.fatal.lock().unwrap_or_else(|e| e.into_inner()).take().map(|f| f.1);
    let reports = l.take_reports(&stats.seen);
    let scale = |n: u64| match sample {
        Some(s) => (u128::from(n) * u128::from(ctas) / u128::from(s)) as u64,
        None => n,
    };
    let counters = counters(&l, &stats, sample, &mut per_cta, scale);
    if let Some(at) = workspace {
        memory.free(at);
    }
    Outcome { counters, reports, fatal }
}

/// Why a launch cannot run at all.
fn refused(launch: &Launch, shared: u64) -> Option<String> {
    let kernel = launch.kernel;
    let threads: u64 = launch.block.iter().map(|&n| u64::from(n)).product();
    if launch.grid.contains(&0) || threads == 0 {
        return Some("a grid or block without threads".into());
    }
    if launch.block.iter().any(|&n| n > 1024) || threads > 1024 {
        return Some(format!("{threads} threads per block, 1024 are possible"));
    }
    if launch.grid.iter().map(|&n| u128::from(n)).product::<u128>() > u128::from(u64::MAX >> 8) {
        return Some("too many blocks".into());
    }
    if (launch.params.len() as u64) < u64::from(kernel.param_bytes) {
        return Some(format!(
            "{} bytes of parameters, the kernel has {}",
            launch.params.len(),
            kernel.param_bytes
        ));
    }
    if shared > MAX_SHARED {
        return Some(format!("{shared} bytes of shared memory"));
    }
    None
}

#[derive(Clone, Copy)]
struct Workers<'a, 'l> {
    l: &'a Launching<'l>,
    to_run: u64,
    ctas: u64,
    turns: &'a [AtomicU64],
    ended: &'a [AtomicBool],
}

enum CtaStop {
    Done,
    /// Others should run; whether anything happened.
    Yield(bool),
    Fatal,
}

impl Workers<'_, '_> {
    /// Index in the grid of the k-th CTA to run.
    fn linear(&self, k: u64) -> u64 {
        if self.to_run < 2 || !matches!(self.l.options.sample, Some(Sampling::Even(_))) {
            return k;
        }
        (u128::from(k) * u128::from(self.ctas - 1) / u128::from(self.to_run - 1)) as u64
    }

    /// Takes the next CTA when the device has room for one more.
    fn take(&self) -> Option<u64> {
        let l = self.l;
        if l.next.load(Ordering::SeqCst) >= self.to_run {
            return None;
        }
        let limit = if l.launch.cooperative { u32::MAX } else { l.options.max_resident_ctas.max(1) };
        let room =
            l.resident.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| (n < limit).then_some(n + 1));
        room.ok()?;
        let k = l.next.fetch_add(1, Ordering::SeqCst);
        if k >= self.to_run {
            l.resident.fetch_sub(1, Ordering::SeqCst);
            return None;
        }
        Some(self.linear(k))
    }

    /// One host thread.
    fn work(&self, me: usize) -> (Stats, Vec<(u64, u32)>) {
        let l = self.l;
        let mut cx = Cx {
            bases: [std::ptr::null_mut(); 2],
            pool: l.program.pool.as_ptr(),
            launch: l,
            cta: Box::new(Cta::empty()),
            warp: 0,
            pc: 0,
            fault: None,
            yield_now: false,
            clock: 0,
            stats: Stats::new(l.program.insts.len(), l.options.counters),
            ptrs: [0; 32],
            allocation: std::ptr::null(),
            lately: [Lately::NONE; 16],
            unwritten: false,
            scratch: Box::new([0; 256]),
        };
        let mut resident: VecDeque<Box<Cta>> = VecDeque::new();
        let mut free: Vec<Box<Cta>> = Vec::new();
        let mut per_cta = Vec::new();
        // Turns without news since the last news.
        let mut idle = 0u64;
        let mut stalled: Option<Stall> = None;
        while !l.stop.load(Ordering::SeqCst) {
            let mut cta = None;
            if idle >= resident.len() as u64 {
                cta = self.take().map(|linear| {
                    let mut cta = free.pop().unwrap_or_else(|| Box::new(new_cta(l)));
                    start(l, &mut cta, linear);
                    cta
                });
            }
            let started = cta.is_some();
            let Some(mut cta) = cta.or_else(|| resident.pop_front()) else {
                if l.next.load(Ordering::SeqCst) >= self.to_run {
                    break;
                }
                // Others hold all places of the device.
                self.idle_turn(me, &mut idle, &mut stalled, &mut resident, &mut cx);
                std::thread::yield_now();
                continue;
            };
            std::mem::swap(&mut cx.cta, &mut cta);
            let stop = run_cta(&mut cx);
            std::mem::swap(&mut cx.cta, &mut cta);
            match stop {
                CtaStop::Done => {
                    per_cta.push((cta.linear, cta.instructions.min(u64::from(u32::MAX)) as u32));
                    free.push(cta);
                    l.resident.fetch_sub(1, Ordering::SeqCst);
                    self.news(&mut idle, &mut stalled);
                }
                CtaStop::Yield(true) => {
                    resident.push_back(cta);
                    self.news(&mut idle, &mut stalled);
                    // All the same others may wait for a CTA that has not started.
                    idle = resident.len() as u64;
                }
                CtaStop::Yield(false) => {
                    resident.push_back(cta);
                    if started {
                        self.news(&mut idle, &mut stalled);
                        idle = resident.len() as u64;
                    } else {
                        self.idle_turn(me, &mut idle, &mut stalled, &mut resident, &mut cx);
                    }
                }
                CtaStop::Fatal => l.stop.store(true, Ordering::SeqCst),
            }
        }
        self.ended[me].store(true, Ordering::SeqCst);
        (cx.stats, per_cta)
    }

    fn news(&self, idle: &mut u64, stalled: &mut Option<Stall>) {
        *idle = 0;
        *stalled = None;
        self.l.progress.fetch_add(1, Ordering::SeqCst);
    }

    /// A turn in which nothing happened. After many of them by everyone, lanes that wait at joins are let go; if
    /// there are none, that is a deadlock.
    fn idle_turn(
        &self,
        me: usize,
        idle: &mut u64,
        stalled: &mut Option<Stall>,
        resident: &mut VecDeque<Box<Cta>>,
        cx: &mut Cx,
    ) {
        *idle += 1;
        let per_pass = resident.len().max(1) as u64;
        if (*idle).is_multiple_of(per_pass) {
            self.turns[me].fetch_add(1, Ordering::SeqCst);
            if self.l.options.threads > 1 {
                std::thread::yield_now();
            }
        }
        if *idle < per_pass * STALL_TURNS {
            return;
        }
        let progress = self.l.progress.load(Ordering::SeqCst);
        let now: Vec<u64> = self.turns.iter().map(|t| t.load(Ordering::SeqCst)).collect();
        match stalled {
            Some(s) if s.progress == progress => {
                let all_had_turns = (0..now.len())
                    .all(|t| self.ended[t].load(Ordering::SeqCst) || now[t] >= s.turns[t] + DEADLOCK_TURNS);
                if all_had_turns {
                    let mut released = false;
                    for cta in resident.iter_mut() {
                        for w in &mut cta.warps {
                            if w.groups.iter().any(|g| g.state == State::Ready) {
                                released |= w.release_waiting();
                            }
                        }
                    }
                    if released {
                        self.news(idle, stalled);
                    } else if !resident.is_empty() {
                        deadlock(cx, resident.make_contiguous());
                        self.l.stop.store(true, Ordering::SeqCst);
                    }
                }
            }
            _ => *stalled = Some(Stall { progress, turns: now }),
        }
    }
}

/// Since when a host thread has been stalled.
struct Stall {
    progress: u64,
    turns: Vec<u64>,
}

/// A CTA with memory of the sizes that the launch needs.
fn new_cta(l: &Launching) -> Cta {
    let threads: u32 = l.launch.block.iter().product();
    let warps = threads.div_ceil(32) as usize;
    let words = (l.program.warp_words as usize).next_multiple_of(16);
    Cta {
        dims: l.launch.block,
        registers: Rows::new(words * warps),
        consts: Rows::new(l.consts.len()),
        shared: SharedMemory::new(l.shared_bytes, l.program.shared_granule, warps),
        local: Rows::new(l.program.local_bytes as usize / 4 * 32 * warps),
        local_bytes: l.program.local_bytes,
        warps: (0..warps).map(|w| Warp::new(w * words)).collect(),
        ..Cta::empty()
    }
}

/// Makes a CTA ready to run from the start.
fn start(l: &Launching, cta: &mut Cta, linear: u64) {
    let threads: u32 = l.launch.block.iter().product();
    cta.linear = linear;
    cta.block = l.block_of(linear);
    cta.alive = threads;
    cta.barriers = vec![Barrier::default(); 16];
    cta.l1.fill(0);
    cta.turns_without_news = 0;
    cta.segment = None;
    cta.fenced.clear();
    cta.acquired = 0;
    cta.observed = 0;
    cta.instructions = 0;
    let checks = l.options.checks;
    let last = cta.warps.iter().map(|w| w.clock).max().unwrap_or(0);
    cta.shared.reset(checks.races && l.shared_bytes > 0, checks.warp_races, l.program.reserved_shared, last);
    if cta.local_bytes > 0 {
        cta.local.words().fill(u32::MAX);
    }
    cta.consts.words()[..l.consts.len()].copy_from_slice(&l.consts);
    consts::set_cta(l, cta.consts.words(), cta.block, linear);
    for w in 0..cta.warps.len() {
        let first = w as u32 * 32;
        let count = (threads - first).min(32);
        cta.warps[w].reset(if count == 32 { u32::MAX } else { (1 << count) - 1 }, cta.shared.first_clock());
        let base = cta.warps[w].registers;
        let tids: [[u32; 3]; 32] = std::array::from_fn(|lane| cta.thread_index(w, lane as u32));
        let registers = cta.registers.words();
        for &(at, words) in &l.program.poison {
            let at = base + at as usize;
            registers[at..at + words as usize].fill(u32::MAX);
        }
        for &(at, special) in &l.program.specials {
            for lane in 0..32 {
                registers[base + at as usize + lane] = match special {
                    LaneSpecial::Tid(a) => tids[lane][usize::from(a)],
                    LaneSpecial::WarpId => w as u32,
                };
            }
        }
    }
}

/// Runs the current CTA until it is done, or until others should have a turn.
fn run_cta(cx: &mut Cx) -> CtaStop {
    let l = cx.launch;
    let mut news = false;
    for _ in 0..ROUNDS {
        let (mut spinning, mut slice, mut moved) = (false, false, false);
        for w in 0..cx.cta.warps.len() {
            let warp = &cx.cta.warps[w];
            if warp.done()
                || warp.groups.iter().all(|g| matches!(g.state, State::Barrier(_)))
                    && warp.lanes_at_joins() == 0
            {
                continue;
            }
            let before = (warp.chain.instructions, warp.news);
            let stop = run_warp(cx, w);
            let warp = &cx.cta.warps[w];
            let executed = warp.chain.instructions != before.0;
            match stop {
                WarpStop::Done => {
                    moved = true;
                    let chain = warp.own_chain();
                    cx.stats.longest_of(&chain);
                    cx.stats.global_rounds += chain.global_rounds;
                    cx.cta.instructions += chain.instructions;
                }
                WarpStop::Blocked => moved |= executed,
                WarpStop::Spinning => {
                    spinning = true;
                    moved |= warp.news != before.1;
                }
                WarpStop::Slice => slice = true,
                WarpStop::Fault => {
                    fatal(cx);
                    return CtaStop::Fatal;
                }
            }
        }
        if cx.cta.alive == 0 {
            return CtaStop::Done;
        }
        news |= moved || slice;
        if !moved && !slice {
            if spinning {
                return CtaStop::Yield(news);
            }
            let cta = std::mem::replace(&mut cx.cta, Box::new(Cta::empty()));
            deadlock(cx, &[cta]);
            return CtaStop::Fatal;
        }
        if l.stop.load(Ordering::Relaxed) {
            return CtaStop::Yield(true);
        }
        if let Some(limit) = l.options.watchdog
            && l.started.elapsed() > limit
        {
            let cta = std::mem::replace(&mut cx.cta, Box::new(Cta::empty()));
            let message = format!("the kernel runs for more than {limit:?}; {}", waiting(l, &cta));
            set_fatal(l, &cta, 0, FaultKind::Watchdog, message);
            return CtaStop::Fatal;
        }
    }
    CtaStop::Yield(true)
}
