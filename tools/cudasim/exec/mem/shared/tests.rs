//! What the race check says of sequences of accesses.

use super::*;

fn by(warp: usize, lane: u8, clock: u32, sync: u16, pc: u32) -> Accessor {
    Accessor { warp, lane, clock, sync, pc, floor: 0 }
}

fn memory(warps: usize) -> (SharedMemory, Vec<Warp>) {
    let mut s = SharedMemory::new(64, 4, warps);
    s.reset(true, true, 0, 0);
    let mut all: Vec<Warp> = (0..warps).map(|_| Warp::new(0)).collect();
    for w in &mut all {
        w.reset(u32::MAX, 1);
    }
    (s, all)
}

fn barrier(s: &mut SharedMemory, warps: &mut [Warp], who: &[usize]) {
    let mut clocks = Vec::new();
    for &w in who {
        s.arrives(w, warps, &mut clocks);
    }
    for &w in who {
        s.knows(w, &clocks);
    }
}

#[test]
fn a_barrier_orders_and_its_absence_is_seen_both_ways() {
    let (mut s, mut w) = memory(2);
    assert_eq!(s.write(0, 4, &by(0, 0, 1, 0, 10), false), None);
    assert_eq!(s.read(0, 4, &by(1, 3, 1, 0, 11)), Some(Conflict::ReadAfterWrite(10, 0, 0)));
    barrier(&mut s, &mut w, &[0, 1]);
    assert_eq!(s.read(0, 4, &by(1, 3, 2, 1, 12)), None);
    assert_eq!(s.write(0, 4, &by(0, 0, 2, 1, 13), false), Some(Conflict::WriteAfterRead(12, 1)));
    barrier(&mut s, &mut w, &[0, 1]);
    assert_eq!(s.write(0, 4, &by(1, 0, 3, 2, 14), false), None);
    assert_eq!(s.write(0, 4, &by(0, 0, 3, 2, 15), true), None);
    assert_eq!(s.write(0, 4, &by(1, 0, 3, 2, 16), false), Some(Conflict::WriteAfterWrite(15, 0, 0)));
}

#[test]
fn a_named_barrier_orders_only_those_who_take_part() {
    let (mut s, mut w) = memory(3);
    assert_eq!(s.read(4, 4, &by(2, 0, 1, 0, 1)), None);
    assert_eq!(s.write(0, 4, &by(0, 0, 1, 0, 2), false), None);
    barrier(&mut s, &mut w, &[0, 1]);
    assert_eq!(s.read(0, 4, &by(1, 0, 2, 1, 3)), None);
    assert_eq!(s.read(0, 4, &by(2, 0, 1, 0, 4)), Some(Conflict::ReadAfterWrite(2, 0, 0)));
    // Readers with different clocks are all remembered.
    assert_eq!(s.read(4, 4, &by(1, 0, 2, 1, 5)), None);
    assert_eq!(s.write(4, 4, &by(1, 0, 2, 1, 6), false), Some(Conflict::WriteAfterRead(1, 2)));
    // What warp 1 learns at a barrier with 0 it passes on to 2.
    barrier(&mut s, &mut w, &[1, 2]);
    assert_eq!(s.read(0, 4, &by(2, 0, 2, 1, 7)), None);
}

#[test]
fn lanes_of_a_warp_are_ordered_by_warp_syncs() {
    let (mut s, _) = memory(1);
    assert_eq!(s.write(0, 4, &by(0, 0, 1, 0, 1), false), None);
    assert_eq!(s.read(0, 4, &by(0, 0, 1, 0, 2)), None);
    assert_eq!(s.read(0, 4, &by(0, 1, 1, 0, 2)), Some(Conflict::ReadAfterWrite(1, 0, 0)));
    assert_eq!(s.write(0, 4, &by(0, 0, 1, 0, 3), false), Some(Conflict::WriteAfterRead(2, 0)));
    assert_eq!(s.read(0, 4, &by(0, 1, 1, 1, 4)), None);
}

#[test]
fn copies_are_pending_until_they_land() {
    let (mut s, _) = memory(2);
    assert_eq!(s.issue_copy(0, 16, &by(0, 0, 1, 0, 1)), None);
    assert_eq!(s.read(8, 4, &by(0, 0, 1, 0, 2)), Some(Conflict::Pending(1)));
    s.land_copy(0, 16, &by(0, 0, 1, 0, 3));
    assert_eq!(s.read(8, 4, &by(0, 0, 1, 0, 4)), None);
    assert_eq!(s.read(8, 4, &by(1, 0, 1, 0, 5)), Some(Conflict::ReadAfterWrite(1, 0, 0)));
}

#[test]
fn a_copy_that_another_warp_issues_without_a_barrier_is_a_race() {
    let (mut s, _) = memory(2);
    assert_eq!(s.issue_copy(0, 16, &by(0, 0, 1, 0, 1)), None);
    assert_eq!(s.read(0, 4, &by(1, 0, 1, 0, 2)), Some(Conflict::ReadAfterWrite(1, 0, 0)));
    let (mut s, mut w) = memory(2);
    assert_eq!(s.issue_copy(0, 16, &by(0, 0, 1, 0, 1)), None);
    barrier(&mut s, &mut w, &[0, 1]);
    assert_eq!(s.read(0, 4, &by(1, 0, 2, 1, 2)), Some(Conflict::Pending(1)));
}

#[test]
fn atomics_race_with_plain_accesses_only() {
    let (mut s, mut w) = memory(2);
    assert_eq!(s.ordered(0, 4, &by(0, 0, 1, 0, 1), true), None);
    assert_eq!(s.ordered(0, 4, &by(1, 0, 1, 0, 2), true), None);
    assert_eq!(s.read(0, 4, &by(0, 0, 1, 0, 3)), Some(Conflict::ReadAfterWrite(2, 1, 0)));
    assert_eq!(s.ordered(0, 4, &by(1, 0, 1, 0, 4), true), Some(Conflict::WriteAfterRead(3, 0)));
    barrier(&mut s, &mut w, &[0, 1]);
    assert_eq!(s.read(0, 4, &by(0, 0, 2, 1, 5)), None);
    assert_eq!(s.write(4, 4, &by(0, 0, 2, 1, 6), false), None);
    assert_eq!(s.ordered(4, 4, &by(1, 0, 2, 1, 7), false), Some(Conflict::ReadAfterWrite(6, 0, 0)));
    assert_eq!(s.ordered(4, 4, &by(1, 0, 2, 1, 8), true), Some(Conflict::WriteAfterWrite(6, 0, 0)));
}

#[test]
fn nothing_of_an_earlier_cta_conflicts() {
    let (mut s, _) = memory(2);
    assert_eq!(s.write(0, 4, &by(1, 1, 7, 0, 10), false), None);
    assert_eq!(s.read(4, 4, &by(1, 1, 7, 0, 11)), None);
    assert_eq!(s.issue_copy(16, 16, &by(1, 0, 7, 0, 12)), None);
    s.land_copy(16, 16, &by(1, 0, 7, 0, 13));
    s.reset(true, true, 0, 7);
    let clock = s.first_clock();
    assert_eq!(clock, 8);
    assert_eq!(s.read(0, 4, &by(0, 0, clock, 0, 1)), None);
    assert_eq!(s.read(0, 4, &by(1, 0, clock, 0, 1)), None);
    assert_eq!(s.write(4, 4, &by(0, 0, clock, 0, 2), false), None);
    assert_eq!(s.read(16, 4, &by(0, 0, clock, 0, 3)), None);
    assert_eq!(s.write(4, 4, &by(1, 0, clock, 0, 4), false), Some(Conflict::WriteAfterWrite(2, 0, 0)));
    // A copy that never landed does not hold up the next CTA either.
    assert_eq!(s.issue_copy(32, 16, &by(0, 0, clock, 0, 5)), None);
    s.reset(true, true, 0, clock);
    assert_eq!(s.read(32, 4, &by(0, 0, s.first_clock(), 0, 6)), None);
}

#[test]
fn initialised_bytes() {
    let (mut s, _) = memory(1);
    s.mark(60, 8);
    assert!(s.marked(60, 4) && s.marked(64, 4) && s.marked(60, 8) && !s.marked(59, 2));
}
