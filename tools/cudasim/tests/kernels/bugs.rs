//! Every planted bug is reported as what it is, at a line of its source.

use cudasim::check::{FaultKind, Report};

use crate::device::{Arg, Device, Random, grid};

/// The kinds that a run reported, the fatal one first; each must name the source file.
#[track_caller]
fn kinds(device: &Device, file: &str, kernel: &str, ctas: u32, block: u32, args: &[Arg]) -> Vec<FaultKind> {
    let shared = if kernel.starts_with("gemm") { 4 * 4096 } else { 0 };
    let outcome = device.launch(kernel, grid(ctas), block, shared, args);
    let all: Vec<&Report> = outcome.fatal.iter().chain(&outcome.reports).collect();
    for report in &all {
        assert_eq!(report.kernel, kernel);
        assert_eq!(report.file.as_deref(), Some(file), "{report}");
        assert!(report.line > 0, "{report}");
    }
    all.iter().map(|report| report.kind).collect()
}

fn vector(bug: &str, kernel: &str) -> Vec<FaultKind> {
    let device = Device::new(&format!("vector.{bug}"));
    let n = 256;
    match kernel {
        "add_f32" => {
            let a = device.upload(&Random(1).floats(n));
            let c = device.buffer::<f32>(n);
            kinds(&device, "vector.cu", kernel, 2, 64, &[a, a, c, Arg::I32(n as i32)])
        }
        "axpy_f16" => {
            let half = vec![0x3c00u16; n];
            let (x, y) = (device.upload(&half), device.upload(&half));
            kinds(&device, "vector.cu", kernel, 1, 32, &[Arg::U16(0x3c00), x, y, Arg::I32(n as i32)])
        }
        _ => kinds(&device, "vector.cu", kernel, 8, 32, &[device.buffer::<u32>(n), Arg::I32(n as i32 / 8)]),
    }
}

fn reduction(bug: &str, kernel: &str) -> Vec<FaultKind> {
    let device = Device::new(&format!("reduction.{bug}"));
    if kernel == "sum_rows" {
        let data = device.upload(&Random(1).floats(2 * 500));
        kinds(&device, "reduction.cu", kernel, 2, 256, &[data, device.buffer::<f32>(2), Arg::I32(500)])
    } else {
        let data = device.upload(&Random(1).ints(2 * 3 * 128));
        kinds(&device, "reduction.cu", kernel, 2, 128, &[data, device.buffer::<i32>(2), Arg::I32(3)])
    }
}

fn pipeline(bug: &str) -> Vec<FaultKind> {
    let device = Device::new(&format!("pipeline.{bug}"));
    let mut all = Vec::new();
    for depth in 2..=5 {
        let data = device.upload(&Random(1).floats(6 * 512));
        let args = [data, device.buffer::<f32>(512), Arg::I32(6)];
        let found = kinds(&device, "pipeline.cu", &format!("pipeline{depth}"), 1, 128, &args);
        assert!(!found.is_empty(), "depth {depth}");
        all.extend(found);
    }
    all
}

fn gemm(bug: &str) -> Vec<FaultKind> {
    let device = Device::new(&format!("gemm.{bug}"));
    let half = device.upload(&vec![0x3c00u16; 64 * 128]);
    let args = [half, half, device.buffer::<f32>(64 * 64), Arg::I32(64), Arg::I32(64), Arg::I32(128)];
    kinds(&device, "gemm.cu", "gemm_f16", 1, 128, &args)
}

#[test]
fn one_element_beyond_global_memory_is_out_of_bounds() {
    assert_eq!(vector("BUG_OUT_OF_BOUNDS_GLOBAL", "add_f32")[0], FaultKind::OutOfBounds);
}

#[test]
fn one_element_beyond_shared_memory_is_out_of_bounds() {
    assert_eq!(reduction("BUG_OUT_OF_BOUNDS_SHARED", "sum_rows")[0], FaultKind::OutOfBounds);
}

#[test]
fn a_vector_access_at_four_bytes_is_misaligned() {
    assert_eq!(vector("BUG_MISALIGNED", "axpy_f16")[0], FaultKind::Misaligned);
}

#[test]
fn reads_of_what_nobody_wrote_are_reported() {
    assert_eq!(vector("BUG_UNINITIALISED_GLOBAL", "add_f32"), [FaultKind::UninitialisedGlobal]);
    assert_eq!(reduction("BUG_UNINITIALISED_SHARED", "sum_rows"), [FaultKind::UninitialisedShared]);
}

#[test]
fn a_missing_barrier_before_reading_is_a_race() {
    let found = reduction("BUG_NO_BARRIER_BEFORE", "sum_rows");
    assert!(found.contains(&FaultKind::SharedRace), "{found:?}");
    let found = gemm("BUG_NO_BARRIER_BEFORE");
    assert!(
        found.contains(&FaultKind::SharedRace) || found.contains(&FaultKind::MissingAsyncWait),
        "{found:?}"
    );
}

#[test]
fn a_missing_barrier_before_overwriting_is_a_race() {
    let found = reduction("BUG_NO_BARRIER_AFTER", "sum_tiles");
    assert!(found.iter().all(|kind| *kind == FaultKind::SharedRace) && !found.is_empty(), "{found:?}");
    let found = gemm("BUG_NO_BARRIER_AFTER");
    assert!(found.iter().all(|kind| *kind == FaultKind::SharedRace) && !found.is_empty(), "{found:?}");
}

#[test]
fn a_missing_wait_for_cp_async_is_named() {
    let found = pipeline("BUG_NO_WAIT");
    assert!(found.contains(&FaultKind::MissingAsyncWait), "{found:?}");
}

#[test]
fn a_missing_barrier_in_a_pipeline_is_a_race() {
    let found = pipeline("BUG_NO_BARRIER");
    assert!(found.contains(&FaultKind::SharedRace), "{found:?}");
    // A warp that runs ahead also finds words that no other warp has filled.
    let all = [FaultKind::SharedRace, FaultKind::UninitialisedShared, FaultKind::MissingAsyncWait];
    assert!(found.iter().all(|kind| all.contains(kind)), "{found:?}");
}

#[test]
fn a_barrier_that_one_thread_misses_is_divergent() {
    let found = reduction("BUG_DIVERGENT_BARRIER", "sum_rows");
    assert!(found.contains(&FaultKind::DivergentBarrier), "{found:?}");
}

#[test]
fn two_ctas_writing_one_word_are_reported() {
    assert_eq!(vector("BUG_TWO_WRITERS", "fill_parts"), [FaultKind::WriteConflict]);
}

#[test]
fn a_shuffle_from_lanes_that_do_not_take_part_is_reported() {
    let device = Device::new("softmax.BUG_INACTIVE_LANE");
    let data = device.upload(&Random(1).ints(64));
    let args = [data, device.buffer::<i32>(64), device.buffer::<u32>(2)];
    let found = kinds(&device, "softmax.cu", "scan_warps", 1, 64, &args);
    assert!(found.contains(&FaultKind::InactiveLane), "{found:?}");
}

#[test]
fn a_deadlock_is_reported_as_one_and_ends() {
    let device = Device::new("between_ctas.BUG_DEADLOCK");
    let args = [device.upload(&[0u32]), device.upload(&[0u32; 6])];
    assert_eq!(kinds(&device, "between_ctas.cu", "hand_over", 6, 32, &args)[0], FaultKind::Deadlock);
}
