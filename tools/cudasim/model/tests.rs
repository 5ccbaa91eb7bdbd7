use super::*;
use crate::counters::{Class, InstructionCount, MemoryCount, WarpChain};

/// A kernel that reads `bytes` once, 16 bytes a lane, with `instructions` per warp and request beside the load.
fn streaming(ctas: u64, bytes: u64, instructions: u64) -> Counters {
    let requests = bytes / 512;
    let load = MemoryCount {
        requests,
        bytes_asked: bytes,
        sectors: bytes / 32,
        ideal_sectors: bytes / 32,
        passes: 4 * requests,
        ..MemoryCount::default()
    };
    Counters {
        block: [256, 1, 1],
        grid: [ctas as u32, 1, 1],
        ctas,
        instructions: vec![
            InstructionCount {
                text: "ld.global.nc.v4.u32".into(),
                class: Class::LoadGlobal,
                warp_execs: requests,
                thread_execs: 32 * requests,
                memory: Some(load),
                ..InstructionCount::default()
            },
            InstructionCount {
                text: "fma.rn.f16x2".into(),
                class: Class::Half,
                warp_execs: requests * instructions,
                ..InstructionCount::default()
            },
        ],
        unique_read_sectors: bytes / 32,
        read_bytes_asked: bytes,
        l2_read_sectors: bytes / 32,
        ..Counters::default()
    }
}

fn facts() -> KernelFacts {
    KernelFacts { registers: 32, ..KernelFacts::default() }
}

fn predict_cold(counters: &Counters) -> Prediction {
    let device = DeviceSpec::default();
    predict(&device, counters, &facts(), LaunchKind::Graph, &mut L2State::new(&device))
}

#[test]
fn a_large_stream_runs_at_the_bandwidth_of_dram() {
    let p = predict_cold(&streaming(108 * 8, 4 << 30, 8));
    assert_eq!(p.limiter, Bound::Dram);
    let achieved = (4u64 << 30) as f64 / p.time_us / 1e6;
    assert!((1.7..1.80).contains(&achieved), "{achieved} TB/s");
    assert!((p.bound_us - (4u64 << 30) as f64 / 2.039e6).abs() < 1.0);
    assert!((0.83..0.88).contains(&p.fraction_of_bound()));
}

#[test]
fn too_many_instructions_make_it_issue_bound() {
    let p = predict_cold(&streaming(108 * 8, 1 << 30, 300));
    assert_eq!(p.limiter, Bound::Issue);
    let q = predict_cold(&streaming(108 * 8, 1 << 30, 150));
    assert!(p.time_us > 1.5 * q.time_us);
}

#[test]
fn few_loads_in_flight_cannot_fill_the_bus() {
    let mut c = streaming(108, 1 << 30, 1);
    // One 512-byte request per round and warp: 108 CTAs of 8 warps hold 442 KB.
    c.global_rounds = (1 << 30) / 512;
    let slow = predict_cold(&c);
    c.global_rounds /= 8;
    let fast = predict_cold(&c);
    assert!(slow.terms.dram_us > 1.3 * fast.terms.dram_us);
    // The same through a cp.async pipeline of depth 8.
    c.global_rounds *= 8;
    c.async_waits = c.global_rounds;
    c.async_groups_at_wait = 8 * c.async_waits;
    assert_eq!(predict_cold(&c).terms.dram_us, fast.terms.dram_us);
}

#[test]
fn a_tiny_kernel_is_all_launch() {
    let p = predict_cold(&streaming(8, 32 << 10, 4));
    assert_eq!(p.limiter, Bound::Launch);
    assert!((2.0..2.6).contains(&p.time_us), "{}", p.time_us);
    // A kernel that touches no memory costs the gap alone.
    assert_eq!(predict_cold(&Counters::default()).time_us, constants::GAP_GRAPH_US.value);
}

#[test]
fn a_chain_of_loads_is_latency_bound() {
    let mut c = streaming(108, 1 << 20, 1);
    c.longest_warp = WarpChain { instructions: 1000, global_rounds: 100, ..WarpChain::default() };
    let p = predict_cold(&c);
    assert_eq!(p.limiter, Bound::Latency);
    assert!((35.0..45.0).contains(&p.terms.chain_us), "{}", p.terms.chain_us);
    // A second wave of CTAs waits for the first.
    c.ctas = 108 * 8 + 1;
    c.grid[0] = 108 * 8 + 1;
    assert!((predict_cold(&c).terms.chain_us / p.terms.chain_us - 2.0).abs() < 1e-9);
}

#[test]
fn dense_mma_reaches_the_share_of_peak_that_good_kernels_reach() {
    // 512 k-steps of m16n8k16 x 16 in 4 warps of 2 CTAs an SM, nothing else.
    let mut c = streaming(216, 1 << 20, 0);
    c.block = [128, 1, 1];
    let count = 216 * 4 * 512 * 16;
    c.instructions.push(InstructionCount {
        text: "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32".into(),
        class: Class::Mma,
        warp_execs: count,
        ..InstructionCount::default()
    });
    let p = predict_cold(&c);
    assert_eq!(p.limiter, Bound::TensorCores);
    let flops = count as f64 * 2.0 * 2048.0 / (p.time_us * 1e-6);
    assert!((0.75..0.90).contains(&(flops / 312e12)), "{}", flops / 312e12);
    assert!((p.bound_us - count as f64 * 8.0 / (4.0 * 108.0 * 1410.0)).abs() < 1e-6);
}

#[test]
fn the_busiest_sm_decides() {
    // 512 equal CTAs on 108 SMs: five on the busiest, 4.74 on average.
    let mut c = streaming(512, 1 << 20, 1);
    assert!((balance(&c, 108) - 5.0 * 108.0 / 512.0).abs() < 1e-12);
    c.cta_warp_instructions = vec![10; 512];
    assert!((balance(&c, 108) - 5.0 * 108.0 / 512.0).abs() < 1e-12);
    // One CTA with all the work.
    c.cta_warp_instructions = vec![0; 512];
    c.cta_warp_instructions[0] = 1;
    assert_eq!(balance(&c, 108), 108.0);
    // Half of one wave idles half of the card.
    assert_eq!(balance(&streaming(54, 1 << 20, 1), 108), 2.0);
}

#[test]
fn a_cubin_replaces_the_default_instruction_ratio() {
    let c = streaming(864, 1 << 30, 50);
    let device = DeviceSpec::default();
    let with = |ratio| {
        let facts = KernelFacts { sass_per_ptx: ratio, ..facts() };
        predict(&device, &c, &facts, LaunchKind::Graph, &mut L2State::new(&device)).machine_instructions
    };
    let ptx = c.warp_instructions() as f64;
    assert_eq!(with(None), ptx);
    assert_eq!(with(Some(0.8)), ptx * 0.8);
    // Unrolled code is not believed to run three times the instructions.
    assert_eq!(with(Some(3.0)), ptx * 1.5);
}

#[test]
fn empty_counters_give_finite_numbers() {
    for preset in DeviceSpec::PRESETS {
        let device = DeviceSpec::preset(preset).unwrap();
        let c = Counters::default();
        let p = predict(&device, &c, &KernelFacts::default(), LaunchKind::Stream, &mut L2State::new(&device));
        assert!(p.time_us.is_finite() && p.bound_us == 0.0 && p.limiter == Bound::Launch);
    }
}

#[test]
fn copies_cost_what_the_bus_allows() {
    assert!((host_copy_us(25_000_000) - 1004.0).abs() < 1e-6);
    let device = DeviceSpec::default();
    assert!(device_copy_us(&device, 1 << 30, true) > 1.9 * device_copy_us(&device, 1 << 30, false));
}
