//! One warp: groups of lanes that are at one instruction together, and where they meet again.
//!
//! Lanes that part at a branch become two groups with a [`Join`] at the branch's immediate post-dominator. A group
//! that arrives there waits for the others. Groups that wait for nothing run in turn, and each gives way when it only
//! polls memory, so that lanes of one warp may wait for each other.

use std::rc::Rc;

use super::inst::NONE;
use super::mem::copies::AsyncCopies;
use crate::counters::WarpChain;

/// Why a group does not run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// It can run.
    Ready,
    /// It waits at a barrier of the CTA.
    Barrier(u8),
    /// It waits for the other lanes of this mask at an instruction that needs them.
    Sync(u32),
}

/// A function call that a group is in.
#[derive(Debug)]
pub(crate) struct Frame {
    /// Where it returns to.
    pub(crate) back: u32,
    /// Routine of the caller.
    pub(crate) caller: u32,
    /// The call that the caller is in.
    pub(crate) up: Option<Rc<Frame>>,
    /// Tells calls apart.
    pub(crate) id: u32,
    /// Registers of the caller, when it may be called again meanwhile.
    pub(crate) saved: Option<Box<[u32]>>,
}

/// Lanes that are at one instruction.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    pub(crate) pc: u32,
    pub(crate) mask: u32,
    /// Index of the join that it runs towards, or [`NONE`].
    pub(crate) join: u32,
    pub(crate) frame: Option<Rc<Frame>>,
    pub(crate) routine: u32,
    pub(crate) state: State,
    /// It gave way while polling, and others should run before it.
    pub(crate) spun: bool,
    /// The missing lanes of its collective were reported: run it without them.
    pub(crate) force: bool,
}

/// Where groups meet again.
#[derive(Debug)]
pub(crate) struct Join {
    pub(crate) pc: u32,
    pub(crate) parent: u32,
    /// Lanes that will come.
    pub(crate) expected: u32,
    /// Lanes that came.
    pub(crate) arrived: u32,
    pub(crate) frame: Option<Rc<Frame>>,
    pub(crate) routine: u32,
    used: bool,
}

/// A polled location and what was read there.
/// Instructions from a poll to the next of the same wait, at most.
const POLL_INSTRUCTIONS: u64 = 64;

#[derive(Clone, Copy, Debug, Default)]
struct Poll {
    pc: u32,
    hash: u64,
}

/// The state of a warp beside its registers.
#[derive(Debug)]
pub(crate) struct Warp {
    /// First word of its registers in the CTA's.
    pub(crate) registers: usize,
    /// Lanes that have not exited.
    pub(crate) alive: u32,
    pub(crate) groups: Vec<Group>,
    pub(crate) joins: Vec<Join>,
    pub(crate) copies: AsyncCopies,
    pub(crate) chain: WarpChain,
    /// A load from global memory was issued since the last one was waited for.
    pub(crate) global_pending: bool,
    pub(crate) shared_pending: bool,
    /// Length of the chain of `mma` by accumulator row.
    pub(crate) mma_depth: Vec<(u32, u32)>,
    polls: [Poll; 4],
    /// The last poll, and what the warp had done by then.
    last_poll: (u32, WarpChain),
    /// What polls did beyond the first of each wait: waiting for others, no work of its own.
    repeated: WarpChain,
    /// Polls in a row that saw nothing new.
    pub(crate) spins: u32,
    /// Polls that saw something new.
    pub(crate) news: u32,
    /// Addresses that atomics of this warp changed lately.
    changed: [u64; 4],
    changed_next: usize,
    /// The last poll of a group saw a location that this warp changed.
    pub(crate) own_lock: bool,
    /// Barriers passed: the warp's clock in the race check.
    pub(crate) clock: u32,
    /// `bar.warp.sync`s passed.
    pub(crate) syncs: u32,
    pub(crate) next_frame: u32,
}

impl Warp {
    pub(crate) fn new(registers: usize) -> Warp {
        Warp {
            registers,
            alive: 0,
            groups: Vec::new(),
            joins: Vec::new(),
            copies: AsyncCopies::default(),
            chain: WarpChain::default(),
            global_pending: false,
            shared_pending: false,
            mma_depth: Vec::new(),
            polls: [Poll::default(); 4],
            last_poll: (NONE, WarpChain::default()),
            repeated: WarpChain::default(),
            spins: 0,
            news: 0,
            changed: [0; 4],
            changed_next: 0,
            own_lock: false,
            clock: 0,
            syncs: 0,
            next_frame: 1,
        }
    }

    /// Makes it ready to run a CTA from the start, with this clock in the race check.
    pub(crate) fn reset(&mut self, threads: u32, clock: u32) {
        *self = Warp {
            groups: std::mem::take(&mut self.groups),
            joins: std::mem::take(&mut self.joins),
            copies: std::mem::take(&mut self.copies),
            mma_depth: std::mem::take(&mut self.mma_depth),
            alive: threads,
            clock,
            ..Warp::new(self.registers)
        };
        self.joins.clear();
        self.groups.clear();
        self.mma_depth.clear();
        self.copies.clear();
        if threads != 0 {
            self.groups.push(Group {
                pc: 0,
                mask: threads,
                join: NONE,
                frame: None,
                routine: 0,
                state: State::Ready,
                spun: false,
                force: false,
            });
        }
    }

    /// A new join, or the place of one that is done.
    pub(crate) fn new_join(&mut self, pc: u32, expected: u32, group: &Group) -> u32 {
        let join = Join {
            pc,
            parent: group.join,
            expected,
            arrived: 0,
            frame: group.frame.clone(),
            routine: group.routine,
            used: true,
        };
        match self.joins.iter().position(|j| !j.used) {
            Some(i) => {
                self.joins[i] = join;
                i as u32
            }
            None => {
                self.joins.push(join);
                self.joins.len() as u32 - 1
            }
        }
    }

    /// The instruction at which a group stops to wait at its join; [`NONE`] while it is in another function.
    pub(crate) fn join_pc(&self, group: &Group) -> u32 {
        match self.joins.get(group.join as usize) {
            Some(j) if frame_id(&j.frame) == frame_id(&group.frame) => j.pc,
            _ => NONE,
        }
    }

    /// Lanes of a group arrive at a join.
    pub(crate) fn arrive(&mut self, join: u32, lanes: u32) {
        self.joins[join as usize].arrived |= lanes;
        self.release_if_complete(join);
    }

    fn release_if_complete(&mut self, join: u32) {
        let j = &mut self.joins[join as usize];
        if !j.used || j.arrived != j.expected {
            return;
        }
        j.used = false;
        if j.arrived != 0 {
            let group = Self::released(j, j.arrived);
            j.frame = None;
            self.groups.push(group);
        } else {
            j.frame = None;
        }
    }

    fn released(j: &Join, mask: u32) -> Group {
        Group {
            pc: j.pc,
            mask,
            join: j.parent,
            frame: j.frame.clone(),
            routine: j.routine,
            state: State::Ready,
            spun: false,
            force: false,
        }
    }

    /// Lanes of a group exit: nobody waits for them any more.
    pub(crate) fn exit(&mut self, lanes: u32, join: u32) {
        self.alive &= !lanes;
        let mut join = join;
        while join != NONE {
            let j = &mut self.joins[join as usize];
            j.expected &= !lanes;
            let parent = j.parent;
            self.release_if_complete(join);
            join = parent;
        }
    }

    /// Lets the lanes that wait at the innermost join go on without the others; whether there were any.
    pub(crate) fn release_waiting(&mut self) -> bool {
        let Some(i) = self.joins.iter().rposition(|j| j.used && j.arrived != 0) else { return false };
        let j = &mut self.joins[i];
        let mask = j.arrived;
        j.expected &= !mask;
        j.arrived = 0;
        let group = Self::released(j, mask);
        if j.expected == 0 {
            j.used = false;
        }
        self.groups.push(group);
        true
    }

    /// Whether some lanes wait at a join.
    pub(crate) fn lanes_at_joins(&self) -> u32 {
        self.joins.iter().filter(|j| j.used).fold(0, |m, j| m | j.arrived)
    }

    /// Groups that wait for lanes at one instruction become one group; whether one of them can run now.
    pub(crate) fn meet(&mut self) -> bool {
        let mut any = false;
        let mut i = 0;
        while i < self.groups.len() {
            if let State::Sync(member) = self.groups[i].state {
                let mut k = i + 1;
                while k < self.groups.len() {
                    let (a, b) = (&self.groups[i], &self.groups[k]);
                    if b.state == State::Sync(member)
                        && a.pc == b.pc
                        && a.join == b.join
                        && frame_id(&a.frame) == frame_id(&b.frame)
                    {
                        let gone = self.groups.remove(k);
                        self.groups[i].mask |= gone.mask;
                    } else {
                        k += 1;
                    }
                }
                if member & self.alive & !self.groups[i].mask == 0 {
                    self.groups[i].state = State::Ready;
                    any = true;
                }
            }
            i += 1;
        }
        any || self.meet_across_joins()
    }

    /// The same for groups that run towards different joins: lanes that a spinning group let go earlier. They keep
    /// their joins by a common one right after the instruction.
    fn meet_across_joins(&mut self) -> bool {
        for i in 0..self.groups.len() {
            let State::Sync(member) = self.groups[i].state else { continue };
            let same: Vec<usize> = (i..self.groups.len())
                .filter(|&k| {
                    let (a, b) = (&self.groups[i], &self.groups[k]);
                    b.state == State::Sync(member) && a.pc == b.pc && frame_id(&a.frame) == frame_id(&b.frame)
                })
                .collect();
            let lanes = same.iter().fold(0, |m, &k| m | self.groups[k].mask);
            if same.len() < 2 || member & self.alive & !lanes != 0 {
                continue;
            }
            // Lanes leave the joins that not all of them share; they stay together from here on.
            let keep = self.groups[i].join;
            for &k in same.iter().skip(1).rev() {
                let gone = self.groups.remove(k);
                self.groups[i].mask |= gone.mask;
                self.change_join(gone.mask, gone.join, keep);
            }
            self.groups[i].state = State::Ready;
            return true;
        }
        false
    }

    /// Lanes that ran towards the join `from` now run towards `to`.
    fn change_join(&mut self, lanes: u32, from: u32, to: u32) {
        let chain = |warp: &Warp, mut join: u32| {
            let mut out = Vec::new();
            while join != NONE {
                out.push(join);
                join = warp.joins[join as usize].parent;
            }
            out
        };
        let (old, new) = (chain(self, from), chain(self, to));
        for &j in new.iter().filter(|j| !old.contains(j)) {
            self.joins[j as usize].expected |= lanes;
        }
        for &j in old.iter().filter(|j| !new.contains(j)) {
            self.joins[j as usize].expected &= !lanes;
            self.release_if_complete(j);
        }
    }

    /// Notes what a poll saw. `hash` covers addresses and values.
    pub(crate) fn poll(&mut self, pc: u32, hash: u64, address: u64) {
        let (last_pc, last) = self.last_poll;
        let since = self.chain.minus(&last);
        if last_pc == pc && since.instructions <= POLL_INSTRUCTIONS && since.barriers == 0 {
            self.repeated.add(&since);
        }
        self.last_poll = (pc, self.chain);
        let slot = &mut self.polls[pc as usize % 4];
        if slot.pc == pc && slot.hash == hash {
            self.spins += 1;
            self.own_lock = self.changed.contains(&address);
        } else {
            *slot = Poll { pc, hash };
            self.spins = 0;
            self.news = self.news.wrapping_add(1);
            self.own_lock = false;
        }
    }

    /// What it did, each wait for others with one poll.
    pub(crate) fn own_chain(&self) -> WarpChain {
        self.chain.minus(&self.repeated)
    }

    /// Notes that an atomic of this warp changed a location.
    pub(crate) fn note_change(&mut self, address: u64) {
        if !self.changed.contains(&address) {
            self.changed[self.changed_next] = address;
            self.changed_next = (self.changed_next + 1) % self.changed.len();
        }
    }

    /// Whether all lanes are done.
    pub(crate) fn done(&self) -> bool {
        self.alive == 0
    }
}

/// The number of a call, 0 outside all.
pub(crate) fn frame_id(frame: &Option<Rc<Frame>>) -> u32 {
    frame.as_ref().map_or(0, |f| f.id)
}
