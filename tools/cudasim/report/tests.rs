use super::*;
use crate::counters::InstructionCount;
use crate::model::{L2State, predict};

fn instruction(line: u32, text: &str, warps: u64, memory: Option<MemoryCount>) -> InstructionCount {
    InstructionCount {
        file: Some(0),
        line,
        text: text.into(),
        class: Class::of(text),
        warp_execs: warps,
        thread_execs: 16 * warps,
        memory,
    }
}

fn counters() -> Counters {
    let global = MemoryCount {
        requests: 100,
        bytes_asked: 12800,
        sectors: 3200,
        ideal_sectors: 400,
        passes: 800,
        ..Default::default()
    };
    let shared = MemoryCount { requests: 50, wavefronts: 100, ideal_wavefronts: 50, ..Default::default() };
    Counters {
        kernel: "strided".into(),
        grid: [10, 1, 1],
        block: [128, 1, 1],
        ctas: 10,
        files: vec!["/src/kernels/strided.cu".into()].into(),
        instructions: vec![
            instruction(7, "ld.global.f32", 100, Some(global)),
            instruction(9, "ld.shared.f32", 50, Some(shared)),
            instruction(7, "fma.rn.f32", 300, None),
            instruction(9, "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32", 10, None),
            instruction(11, "trap", 0, None),
        ],
        unique_read_sectors: 3200,
        read_bytes_asked: 12800,
        l2_read_sectors: 3200,
        ..Counters::default()
    }
}

fn report() -> Report {
    let device = DeviceSpec::default();
    let facts = KernelFacts { registers: 40, registers_estimated: true, ..KernelFacts::default() };
    let mut l2 = L2State::new(&device);
    let mut report = Report::new(&device);
    for _ in 0..2 {
        let c = counters();
        let p = predict(&device, &c, &facts, LaunchKind::Stream, &mut l2);
        report.launches.push(LaunchReport::new(&c, &facts, LaunchKind::Stream, p));
    }
    report
}

#[test]
fn a_launch_sums_its_instructions() {
    let l = &report().launches[0];
    assert_eq!(l.warp_instructions, 460);
    assert_eq!(l.active_lanes(), 0.5);
    assert_eq!(l.mix[0], (Class::Fp32, 300));
    assert_eq!((l.mma_count, l.mma_macs), (10, 20480));
    assert_eq!((l.global.sectors_per_request(), l.shared.bank_conflicts()), (32.0, 50));
}

#[test]
fn lines_gather_what_came_from_them() {
    let lines = &report().launches[0].lines;
    assert_eq!(lines.len(), 2);
    assert_eq!((lines[0].line, lines[0].warp_execs, lines[0].global.sectors), (7, 400, 3200));
    assert_eq!((lines[1].line, lines[1].shared.wavefronts), (9, 100));
    assert_eq!(lines[0].opcodes, [("ld.global.f32".to_string(), 100), ("fma.rn.f32".to_string(), 300)]);
}

#[test]
fn json_comes_back_as_it_was() {
    let report = report();
    let json = report.to_json().unwrap();
    assert_eq!(Report::from_json(&json).unwrap(), report);
    let value: serde_json::Value = serde_json::from_str(&json).unwrap();
    let launch = &value["launches"][0];
    assert_eq!(launch["global"]["sectors"], 3200);
    assert_eq!(launch["prediction"]["limiter"], "launch");
    assert_eq!(launch["mix"][0][0], "fp32");
    assert_eq!(launch["facts"]["registers_estimated"], true);
    for broken in
        ["", "{}", "[]", &json[..json.len() / 2], &json.replacen("\"version\": 1", "\"version\": 2", 1)]
    {
        assert!(Report::from_json(broken).is_err());
    }
}

#[test]
fn kernels_are_summed_over_their_launches() {
    let report = report();
    let kernels = report.kernels();
    assert_eq!(kernels.len(), 1);
    assert_eq!((kernels[0].launches, kernels[0].bank_conflicts), (2, 100));
    assert!((kernels[0].time_us - report.time_us()).abs() < 1e-9);
}

#[test]
fn the_table_says_what_matters() {
    let table = report().table(true);
    for part in [
        "simulated",
        "strided  grid 10x1x1  block 128x1x1",
        "limited by registers",
        "40 registers (estimated)",
        "32.00 sectors each (ideal 4.00)",
        "50 of them bank conflicts",
        "strided.cu:7",
        "TFLOP/s modelled",
        "50.0% of the lanes",
    ] {
        assert!(table.contains(part), "{part} is missing in\n{table}");
    }
}
