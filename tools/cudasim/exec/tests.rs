//! Whole programs in PTX through the executor: control flow, memory, order.

use super::*;
use crate::check::{Checks, FaultKind};
use crate::decode::Module;
use crate::memory::GlobalMemory;

/// A kernel with its memory, to run and look at.
struct Bench {
    module: Module,
    memory: GlobalMemory,
    options: ExecOptions,
}

const HEADER: &str = ".version 8.0\n.target sm_80\n.address_size 64\n";

impl Bench {
    fn new(text: &str) -> Bench {
        let module = Module::parse(&format!("{HEADER}{text}")).unwrap_or_else(|e| panic!("{e}"));
        let options = ExecOptions { threads: 1, ..ExecOptions::default() };
        Bench { module, memory: GlobalMemory::new(1 << 30).unwrap(), options }
    }

    /// A kernel `k(.param .u64 p)` with this body.
    fn kernel(body: &str) -> Bench {
        Bench::new(&format!(
            ".visible .entry k(.param .u64 p) {{ .reg .pred %p<10>; .reg .b16 %h<10>; .reg .b32 %r<40>;
             .reg .f32 %f<20>; .reg .b64 %rd<20>; .reg .f64 %fd<10>; .reg .b64 out; .reg .b32 lane;
             ld.param.u64 out, [p]; mov.u32 lane, %tid.x; {body} ret; }}"
        ))
    }

    fn alloc(&self, words: &[u32]) -> u64 {
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        let at = self.memory.alloc(bytes.len() as u64).unwrap();
        self.memory.write(at, &bytes).unwrap();
        at
    }

    fn read(&self, at: u64, words: usize) -> Vec<u32> {
        let mut bytes = vec![0; words * 4];
        self.memory.read(at, &mut bytes).unwrap();
        bytes.chunks(4).map(|c| u32::from_le_bytes(c.try_into().unwrap())).collect()
    }

    fn launch(&self, grid: u32, block: u32, dynamic: u32, params: &[u64]) -> Outcome {
        let bytes: Vec<u8> = params.iter().flat_map(|p| p.to_le_bytes()).collect();
        let globals = GlobalAddresses::place(&self.module, &self.memory).unwrap();
        let launch = Launch {
            kernel: self.module.kernel("k").unwrap(),
            grid: [grid, 1, 1],
            block: [block, 1, 1],
            dynamic_shared_bytes: dynamic,
            params: &bytes,
            cooperative: false,
            globals: &globals,
        };
        run(&launch, &self.memory, &self.options)
    }

    /// One CTA of `threads`, each of which writes one word to `out`.
    fn words(&self, threads: u32) -> Vec<u32> {
        let out = self.alloc(&vec![0xdead_beef; threads as usize]);
        let outcome = self.launch(1, threads, 0, &[out]);
        assert!(outcome.fatal.is_none(), "{}", outcome.fatal.unwrap());
        assert!(outcome.reports.is_empty(), "{}", outcome.reports[0]);
        self.read(out, threads as usize)
    }
}

/// Stores `%r0` at `out[tid]`.
const STORE: &str = "mad.wide.u32 %rd19, lane, 4, out; st.global.u32 [%rd19], %r0;";

fn kinds(outcome: &Outcome) -> Vec<FaultKind> {
    outcome.reports.iter().map(|r| r.kind).collect()
}

#[test]
fn lanes_part_and_meet_again() {
    let b = Bench::kernel(&format!(
        "mov.u32 %r0, 0; mov.u32 %r1, lane;
         LOOP: setp.eq.u32 %p1, %r1, 0; @%p1 bra DONE; add.u32 %r0, %r0, %r1; sub.u32 %r1, %r1, 1; bra LOOP;
         DONE: activemask.b32 %r2; popc.b32 %r2, %r2; mad.lo.u32 %r0, %r2, 1000, %r0; {STORE}"
    ));
    let want: Vec<u32> =
        (0..48).map(|l: u32| l * (l + 1) / 2 + if l < 32 { 32_000 } else { 16_000 }).collect();
    assert_eq!(b.words(48), want);
}

#[test]
fn lanes_that_exit_are_not_waited_for() {
    let b = Bench::kernel(&format!(
        "setp.ge.u32 %p1, lane, 20; mov.u32 %r0, 7; @%p1 bra A; bra B; A: {STORE} exit;
         B: activemask.b32 %r0; {STORE}"
    ));
    let out = b.words(32);
    assert!(out[..20].iter().all(|&m| m == 0xf_ffff) && out[20..].iter().all(|&v| v == 7), "{out:x?}");
}

#[test]
fn indexed_branches_and_predicates() {
    let b = Bench::kernel(&format!(
        "T: .branchtargets A, B, C; rem.u32 %r1, lane, 3; brx.idx %r1, T;
         A: mov.u32 %r0, 10; bra D; B: mov.u32 %r0, 11; bra D; C: mov.u32 %r0, 12;
         D: setp.lt.u32 %p1|%p2, lane, 5; @%p1 add.u32 %r0, %r0, 100; @!%p1 add.u32 %r0, %r0, 200; {STORE}"
    ));
    let want: Vec<u32> = (0..32).map(|l| 10 + l % 3 + if l < 5 { 100 } else { 200 }).collect();
    assert_eq!(b.words(32), want);
}

#[test]
fn calls_nest_recurse_and_go_through_addresses() {
    let b = Bench::new(
        ".func (.param .b32 r) fib(.param .b32 n);
         .func (.param .b32 r) twice(.param .b32 n) { .reg .b32 %a; ld.param.b32 %a, [n]; shl.b32 %a, %a, 1;
            st.param.b32 [r], %a; ret; }
         .func (.param .b32 r) fib(.param .b32 n) { .reg .b32 %a<5>; .reg .pred %p; ld.param.b32 %a0, [n];
            setp.lt.s32 %p, %a0, 2; @%p bra E; add.s32 %a1, %a0, -1;
            { .param .b32 x; st.param.b32 [x], %a1; .param .b32 y; call.uni (y), fib, (x); ld.param.b32 %a2, [y]; }
            add.s32 %a1, %a0, -2;
            { .param .b32 x; st.param.b32 [x], %a1; .param .b32 y; call.uni (y), fib, (x); ld.param.b32 %a3, [y]; }
            add.s32 %a0, %a2, %a3; E: st.param.b32 [r], %a0; ret; }
         .global .align 8 .u64 table[2] = {fib, twice};
         .visible .entry k(.param .u64 p) { .reg .b32 %r<9>; .reg .b64 %rd<9>;
            ld.param.u64 %rd1, [p]; mov.u32 %r1, %tid.x; and.b32 %r2, %r1, 1; mul.wide.u32 %rd2, %r2, 8;
            mov.u64 %rd3, table; add.s64 %rd3, %rd3, %rd2; ld.global.u64 %rd4, [%rd3];
            P: .callprototype (.param .b32 _) _ (.param .b32 _);
            { .param .b32 x; st.param.b32 [x], %r1; .param .b32 y; call (y), %rd4, (x), P; ld.param.b32 %r3, [y]; }
            mad.wide.u32 %rd5, %r1, 4, %rd1; st.global.u32 [%rd5], %r3; ret; }",
    );
    let fib = |n: u32| (0..n).fold((0u32, 1u32), |(a, b), _| (b, a + b)).0;
    let want: Vec<u32> = (0..16).map(|l| if l % 2 == 0 { fib(l) } else { 2 * l }).collect();
    assert_eq!(b.words(16), want);
}

#[test]
fn an_endless_recursion_is_a_stack_overflow() {
    let b = Bench::new(".func f() { call f; ret; } .visible .entry k(.param .u64 p) { call f; ret; }");
    assert_eq!(b.launch(1, 1, 0, &[0]).fatal.unwrap().kind, FaultKind::StackOverflow);
}

#[test]
fn lanes_of_a_warp_may_wait_for_each_other() {
    // A spin lock taken by each lane in turn; the holder leaves the loop before the others.
    let b = Bench::kernel(
        "add.u64 %rd1, out, 4;
         SPIN: atom.global.cas.b32 %r1, [out], 0, 1; setp.ne.u32 %p1, %r1, 0; @%p1 bra SPIN;
         ld.volatile.global.u32 %r2, [%rd1]; add.u32 %r2, %r2, 1; st.volatile.global.u32 [%rd1], %r2;
         membar.gl; atom.global.exch.b32 %r3, [out], 0;",
    );
    let out = b.alloc(&[0, 0]);
    let outcome = b.launch(1, 64, 0, &[out]);
    assert!(outcome.fatal.is_none(), "{}", outcome.fatal.unwrap());
    assert_eq!(b.read(out, 2), [0, 64]);
}

#[test]
fn ctas_hand_over_and_meet_at_a_grid_barrier() {
    let b = Bench::kernel(
        "mov.u32 %r9, %ctaid.x; mov.u32 %r8, %nctaid.x; setp.ne.u32 %p1, lane, 0; @%p1 bra W;
         membar.gl; atom.global.add.u32 %r1, [out], 1;
         SPIN: ld.acquire.gpu.global.u32 %r1, [out]; setp.lt.u32 %p2, %r1, %r8; @%p2 bra SPIN;
         W: bar.sync 0; ld.volatile.global.u32 %r2, [out]; mul.wide.u32 %rd1, %r9, 4; add.u64 %rd1, %rd1, out;
         @!%p1 st.global.u32 [%rd1+4], %r2;",
    );
    for threads in [1, 2, 3] {
        let mut b = Bench { ..Bench::new_from(&b) };
        b.options.threads = threads;
        let out = b.alloc(&[0; 41]);
        let outcome = b.launch(40, 64, 0, &[out]);
        assert!(outcome.fatal.is_none(), "{}", outcome.fatal.unwrap());
        assert_eq!(b.read(out, 41), [40; 41]);
    }
}

impl Bench {
    fn new_from(other: &Bench) -> Bench {
        Bench {
            module: other.module.clone(),
            memory: GlobalMemory::new(1 << 30).unwrap(),
            options: other.options.clone(),
        }
    }
}

#[test]
fn a_deadlock_is_reported_as_one() {
    // Warp 1 never reaches the barrier's second round.
    let b = Bench::kernel("setp.ge.u32 %p1, lane, 32; @%p1 bra A; bar.sync 1, 64; A: bar.sync 2, 64;");
    let fatal = b.launch(1, 64, 0, &[0]).fatal.unwrap();
    assert_eq!(fatal.kind, FaultKind::Deadlock);
    assert!(fatal.message.contains("barrier 1") && fatal.message.contains("barrier 2"), "{fatal}");
    // A CTA waits for one that is not resident.
    let mut b =
        Bench::kernel("SPIN: ld.volatile.global.u32 %r1, [out]; setp.eq.u32 %p1, %r1, 0; @%p1 bra SPIN;");
    b.options.max_resident_ctas = 2;
    let out = b.alloc(&[0]);
    assert_eq!(b.launch(4, 32, 0, &[out]).fatal.unwrap().kind, FaultKind::Deadlock);
    // An endless loop without memory ends by the watchdog.
    let mut b = Bench::kernel("L: bra L;");
    b.options.watchdog = Some(std::time::Duration::from_millis(50));
    assert_eq!(b.launch(1, 32, 0, &[0]).fatal.unwrap().kind, FaultKind::Watchdog);
}

#[test]
fn accesses_out_of_bounds_stop_the_kernel() {
    let b = Bench::kernel(&format!("mov.u32 %r0, 1; {STORE}"));
    let out = b.alloc(&[0; 31]);
    let fatal = b.launch(1, 32, 0, &[out]).fatal.unwrap();
    assert_eq!(
        (fatal.kind, fatal.thread, fatal.address),
        (FaultKind::OutOfBounds, [31, 0, 0], Some(out + 124))
    );
    assert!(fatal.message.contains("0 bytes after the end"), "{fatal}");
    let b = Bench::kernel("st.global.u32 [out+2], lane;");
    let out = b.alloc(&[0; 4]);
    assert_eq!(b.launch(1, 1, 0, &[out]).fatal.unwrap().kind, FaultKind::Misaligned);
    let b = Bench::kernel(
        ".shared .align 4 .b8 s[64]; mov.u32 %r1, s; mad.lo.u32 %r1, lane, 4, %r1; st.shared.u32 [%r1], lane;",
    );
    assert!(b.launch(1, 16, 0, &[0]).fatal.is_none());
    assert_eq!(b.launch(1, 17, 0, &[0]).fatal.unwrap().kind, FaultKind::OutOfBounds);
}

#[test]
fn what_nobody_wrote_is_poison_and_reported() {
    let b =
        Bench::kernel(&format!("mad.wide.u32 %rd1, lane, 4, out; ld.global.u32 %r0, [%rd1+128]; {STORE}"));
    let out = b.memory.alloc(256).unwrap();
    b.memory.write(out + 128, &[1; 64]).unwrap();
    let outcome = b.launch(1, 32, 0, &[out]);
    assert_eq!(kinds(&outcome), [FaultKind::UninitialisedGlobal]);
    let words = b.read(out, 32);
    assert!(words[..16].iter().all(|&w| w == 0x0101_0101) && words[16..].iter().all(|&w| w == u32::MAX));
    let b = Bench::kernel(&format!(".shared .b32 s[4]; ld.shared.u32 %r0, [s+4]; {STORE}"));
    let out = b.alloc(&[0]);
    assert_eq!(kinds(&b.launch(1, 1, 0, &[out])), [FaultKind::UninitialisedShared]);
    assert_eq!(b.read(out, 1), [u32::MAX]);
}

/// Each thread writes `s[tid]` and reads its neighbour's word.
fn neighbour(before: &str, after: &str) -> Bench {
    Bench::kernel(&format!(
        ".shared .align 16 .b32 s[64]; mov.u32 %r1, s; mad.lo.u32 %r1, lane, 4, %r1; mov.u32 %r9, 0; mov.u32 %r0, 0;
         L: add.u32 %r2, lane, %r9; st.shared.u32 [%r1], %r2; {before}
         xor.b32 %r3, lane, 32; mov.u32 %r4, s; mad.lo.u32 %r4, %r3, 4, %r4; ld.shared.u32 %r5, [%r4];
         add.u32 %r0, %r0, %r5; {after}
         add.u32 %r9, %r9, 1; setp.lt.u32 %p1, %r9, 3; @%p1 bra L; {STORE}"
    ))
}

#[test]
fn a_missing_barrier_is_a_race_before_and_after_reading() {
    assert_eq!(neighbour("bar.sync 0;", "bar.sync 0;").words(64).len(), 64);
    let run = |b: Bench| {
        let out = b.alloc(&[0; 64]);
        kinds(&b.launch(1, 64, 0, &[out]))
    };
    assert!(run(neighbour("", "bar.sync 0;")).contains(&FaultKind::SharedRace));
    assert!(run(neighbour("bar.sync 0;", "")).contains(&FaultKind::SharedRace));
}

#[test]
fn a_copy_is_visible_after_its_wait_and_to_others_after_a_barrier() {
    let copy = |wait: &str, barrier: &str, who: &str| {
        let b = Bench::kernel(&format!(
            ".shared .align 16 .b32 s[64]; mov.u32 %r1, s; mad.lo.u32 %r1, lane, 4, %r1; mad.wide.u32 %rd1, lane, 4, out;
             cp.async.ca.shared.global [%r1], [%rd1], 4; cp.async.commit_group; {wait} {barrier}
             xor.b32 %r3, lane, {who}; mov.u32 %r4, s; mad.lo.u32 %r4, %r3, 4, %r4; ld.shared.u32 %r0, [%r4];
             st.global.u32 [%rd1+256], %r0;"
        ));
        let data: Vec<u32> = (0..128).collect();
        let out = b.alloc(&data);
        let outcome = b.launch(1, 64, 0, &[out]);
        assert!(outcome.fatal.is_none());
        (kinds(&outcome), b.read(out + 256, 64))
    };
    let own: Vec<u32> = (0..64).collect();
    let other: Vec<u32> = (0..64).map(|l| l ^ 32).collect();
    assert_eq!(copy("cp.async.wait_group 0;", "", "0"), (vec![], own.clone()));
    assert_eq!(copy("cp.async.wait_all;", "bar.sync 0;", "32"), (vec![], other));
    assert!(copy("", "bar.sync 0;", "32").0.contains(&FaultKind::MissingAsyncWait));
    assert!(copy("cp.async.wait_group 1;", "", "0").0.contains(&FaultKind::MissingAsyncWait));
    assert!(copy("cp.async.wait_group 0;", "", "32").0.contains(&FaultKind::SharedRace));
}

#[test]
fn groups_of_copies_land_in_order() {
    // Three groups; two may stay in flight.
    let b = Bench::kernel(&format!(
        ".shared .align 16 .b8 s[48]; cp.async.cg.shared.global [s], [out], 16; cp.async.commit_group;
         cp.async.ca.shared.global [s+16], [out+4], 4; cp.async.commit_group;
         cp.async.ca.shared.global [s+32], [out], 8, 4; cp.async.commit_group;
         cp.async.wait_group 2; ld.shared.u32 %r0, [s]; cp.async.wait_group 1; ld.shared.u32 %r1, [s+16];
         cp.async.wait_group 0; ld.shared.v2.u32 {{%r2, %r3}}, [s+32];
         add.u32 %r0, %r0, %r1; add.u32 %r0, %r0, %r2; add.u32 %r0, %r0, %r3; {STORE}"
    ));
    let out = b.alloc(&[5, 70, 900, 1]);
    let outcome = b.launch(1, 1, 0, &[out]);
    assert!(outcome.fatal.is_none() && outcome.reports.is_empty());
    assert_eq!(b.read(out, 1), [80]);
}

#[test]
fn divergent_barriers_and_inactive_lanes_are_reported() {
    let b = Bench::kernel("setp.lt.u32 %p1, lane, 16; @%p1 bra A; bra B; A: bar.sync 0; B: bar.sync 0;");
    assert!(kinds(&b.launch(1, 32, 0, &[0])).contains(&FaultKind::DivergentBarrier));
    let b = Bench::kernel(
        "setp.lt.u32 %p1, lane, 16; @!%p1 bra B; shfl.sync.down.b32 %r1, lane, 8, 31, -1; B: exit;",
    );
    assert!(kinds(&b.launch(1, 32, 0, &[0])).contains(&FaultKind::InactiveLane));
    // Half a warp with the mask of that half is fine.
    let b = Bench::kernel(
        "setp.lt.u32 %p1, lane, 16; @!%p1 bra B; shfl.sync.bfly.b32 %r1, lane, 8, 31, 0xffff; B: bar.sync 0;",
    );
    let outcome = b.launch(1, 32, 0, &[0]);
    assert!(outcome.reports.is_empty() && outcome.fatal.is_none(), "{:?}", outcome.reports);
}

#[test]
fn two_ctas_that_write_one_word_conflict_unless_they_hand_over() {
    let b = Bench::kernel("st.global.u32 [out], lane;");
    let out = b.alloc(&[0]);
    assert_eq!(kinds(&b.launch(2, 1, 0, &[out])), [FaultKind::WriteConflict]);
    assert_eq!(kinds(&b.launch(1, 1, 0, &[out])), []);
    // CTA 1 waits until CTA 0 has published its write.
    let b = Bench::kernel(
        "mov.u32 %r1, %ctaid.x; setp.eq.u32 %p1, %r1, 0; @%p1 bra W;
         SPIN: ld.acquire.gpu.global.u32 %r2, [out+4]; setp.eq.u32 %p2, %r2, 0; @%p2 bra SPIN;
         W: st.global.u32 [out], %r1; membar.gl; st.release.gpu.global.u32 [out+4], 1;",
    );
    let out = b.alloc(&[0, 0]);
    let outcome = b.launch(2, 1, 0, &[out]);
    assert!(outcome.reports.is_empty() && outcome.fatal.is_none(), "{:?}", outcome.reports);
    assert_eq!(b.read(out, 1), [1]);
}

#[test]
fn generic_addresses_reach_every_space() {
    let b = Bench::kernel(&format!(
        ".shared .b32 s[2]; .local .align 4 .b8 l[16]; .reg .b64 a; .reg .b64 c;
         cvta.shared.u64 a, s; st.u32 [a+4], lane; ld.shared.u32 %r1, [s+4];
         mov.u64 c, l; cvta.local.u64 c, c; st.u32 [c+8], 5; ld.local.u32 %r2, [l+8];
         isspacep.shared %p1, a; selp.u32 %r3, 100, 0, %p1; cvta.to.shared.u64 a, a; cvt.u32.u64 %r4, a;
         mov.u32 %r5, s; sub.u32 %r4, %r4, %r5; mov.b64 %rd1, p; cvta.param.u64 %rd1, %rd1; ld.u64 %rd2, [%rd1];
         setp.eq.u64 %p2, %rd2, out; selp.u32 %r6, 1000, 0, %p2;
         add.u32 %r0, %r1, %r2; add.u32 %r0, %r0, %r3; add.u32 %r0, %r0, %r4; add.u32 %r0, %r0, %r6; {STORE}"
    ));
    let out = b.alloc(&[0; 1]);
    let outcome = b.launch(1, 1, 0, &[out]);
    assert!(outcome.fatal.is_none(), "{}", outcome.fatal.unwrap());
    assert_eq!(b.read(out, 1), [1105]);
}

#[test]
fn unknown_instructions_and_modifiers_are_refused_with_their_place() {
    let refused = |body: &str| {
        let text =
            format!("{HEADER}.visible .entry k() {{ .reg .b32 %r<4>; .reg .f32 %f<4>;\n{body} ret; }}");
        Module::parse(&text).unwrap_err().to_string()
    };
    assert!(refused("tex.2d.v4.f32.f32 %f1, %f2;").starts_with("5:1: not supported: tex.2d.v4.f32.f32"));
    assert!(refused("add.wrong.s32 %r1, %r2, %r3;").contains(".wrong is not understood"));
    assert!(refused("add.s32 %r1, %r9, %r3;").contains("`%r9` is not declared"));
    assert!(refused("fma.f32 %f1, %f2, %f3, %f1;").contains("rounding"));
    assert!(refused("mov.u32 %r1, %envreg3;").contains("%envreg3"));
    assert!(refused("bra NOWHERE;").contains("NOWHERE"));
    assert!(refused("alloca.u64 %r1, %r2;").contains("alloca"));
}

#[test]
fn counters_do_not_depend_on_host_threads() {
    let text = "mov.u32 %r1, %ctaid.x; mad.lo.u32 %r2, %r1, 64, lane; mad.wide.u32 %rd1, %r2, 4, out;
                ld.global.u32 %r3, [%rd1]; add.u32 %r3, %r3, 1; st.global.u32 [%rd1], %r3;";
    let mut seen = Vec::new();
    for threads in [1, 2, 4] {
        let mut b = Bench::kernel(text);
        b.options.threads = threads;
        let out = b.alloc(&vec![7; 64 * 50]);
        let outcome = b.launch(50, 64, 0, &[out]);
        assert!(b.read(out, 64 * 50).iter().all(|&w| w == 8));
        let mut c = outcome.counters;
        assert_eq!((c.unique_read_sectors, c.unique_written_sectors), (400, 400));
        assert_eq!(c.l2_read_sectors, 400);
        let load = c.instructions.iter().find(|i| i.text.starts_with("ld.global")).unwrap();
        let m = load.memory.unwrap();
        assert_eq!((m.requests, m.sectors, m.ideal_sectors, m.bytes_asked), (100, 400, 400, 12_800));
        c.chunks.clear();
        seen.push(c);
    }
    assert!(seen.windows(2).all(|w| w[0] == w[1]));
    assert!(Checks::default() == Checks::ALL);
}

#[test]
fn distinct_sectors_of_a_sample_are_those_of_the_whole_grid() {
    // CTAs have 256 bytes each of their own, and read all of a table of 1 KiB.
    let text = ".visible .entry k(.param .u64 out, .param .u64 table) {
        .reg .b32 %r<6>; .reg .b64 %rd<6>; .reg .pred %p1;
        ld.param.u64 %rd1, [out]; ld.param.u64 %rd2, [table]; mov.u32 %r1, %ctaid.x; mov.u32 %r2, %tid.x;
        mad.lo.u32 %r3, %r1, 64, %r2; mad.wide.u32 %rd3, %r3, 4, %rd1; mov.u32 %r4, 0;
        L: mad.lo.u32 %r5, %r4, 64, %r2; mad.wide.u32 %rd4, %r5, 4, %rd2; ld.global.u32 %r5, [%rd4];
        add.u32 %r4, %r4, 1; setp.lt.u32 %p1, %r4, 4; @%p1 bra L;
        st.global.u32 [%rd3], %r5; ret; }";
    let run = |sample| {
        let mut b = Bench::new(text);
        b.options.sample = sample;
        let (out, table) = (b.alloc(&vec![0; 64 * 3000]), b.alloc(&[1; 256]));
        let c = b.launch(3000, 64, 0, &[out, table]).counters;
        let touched: u32 = c.chunks.iter().map(|c| c.written_sectors).sum();
        assert_eq!(u64::from(touched), c.unique_written_sectors);
        (c.unique_read_sectors, c.unique_written_sectors, c.thread_instructions())
    };
    let whole = run(None);
    assert_eq!((whole.0, whole.1), (32, 3000 * 8));
    assert_eq!(run(Some(Sampling::Even(30))), whole);
    assert_eq!(run(Some(Sampling::First(30))), whole);
}
