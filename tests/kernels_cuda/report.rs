//! What every kernel takes at the sizes of the published models, counted by the simulated GPU, against the table in
//! `benches/kernels_cuda.txt`: counters exactly, modelled times within [`MODEL`]. To write the table anew:
//!
//! `QWENVL_WRITE_REPORT=1 cudasim env cargo test --features cuda --test kernels_cuda report`

use std::cell::RefCell;
use std::fmt::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use cudarc::driver::CudaStream;
use serde_json::Value;

use crate::common;
use crate::gpu::{gpu, stream};
use crate::shapes::{Case, Shapes};
use qwenvl::kernels::cuda::{IMAGES, NVCC, PTXAS};

const TABLE: &str = "benches/kernels_cuda.txt";
/// The parts of the cases, by what is run of them.
const PARTS: [Option<&str>; 4] = [None, Some("8"), Some("2"), Some("first:2")];
/// A modelled time may differ so much from the table's before somebody has to look: a change of the model's constants by
/// a hundredth is none of a kernel.
const MODEL: f64 = 0.02;
/// Best read bandwidth seen on an A100 80 GB, and its dense 16-bit peak.
const BYTES_PER_US: f64 = 1.80e6;
const FLOPS_PER_US: f64 = 312e6;
/// Between kernels of a graph.
const GAP_US: f64 = 1.3;
/// Of the column of names.
const WIDTH: usize = 51;

/// The cases that are sampled so, launched or not.
fn cases(sample: Option<&str>, launch: bool) -> Vec<Case> {
    let found = RefCell::new(Vec::new());
    let wanted = |case: &Case| {
        if case.sample == sample {
            found.borrow_mut().push(case.clone());
        }
        case.sample == sample && launch
    };
    let mut run = |_: &Case, go: &dyn Fn(&CudaStream)| {
        go(&stream());
        stream().synchronize().unwrap();
    };
    Shapes { kernels: &gpu().kernels, wanted: &wanted, run: &mut run, keeps_memory: true }.all();
    found.into_inner()
}

#[test]
#[ignore = "run by the test below"]
fn launches_of_a_part() {
    cases(std::env::var("CUDASIM_SAMPLE").ok().as_deref(), true);
}

fn start(sample: Option<&str>, file: &Path) -> Child {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command
        .args(["--exact", "report::launches_of_a_part", "--ignored", "--test-threads=1"])
        .env("CUDASIM_REPORT", file)
        .env("CUDASIM_DEVICE", "a100-80g")
        .env("CUDASIM_CHECKS", "none")
        .env("CUDASIM_THREADS", "1")
        .env_remove("CUDASIM_FATAL_REPORTS")
        .stdout(Stdio::null());
    match sample {
        Some(sample) => command.env("CUDASIM_SAMPLE", sample),
        None => command.env_remove("CUDASIM_SAMPLE"),
    };
    command.spawn().expect("the tests")
}

fn number(value: &Value, path: &str) -> f64 {
    value.pointer(path).and_then(Value::as_f64).unwrap_or_else(|| panic!("no {path}"))
}

/// A row of the table: counters, and the modelled time apart from them.
#[derive(PartialEq)]
struct Row {
    counters: String,
    time_us: f64,
    text: String,
}

fn row(case: &Case, launch: &Value) -> Row {
    let kernel = launch["kernel"].as_str().expect("a kernel");
    let resources =
        IMAGES.iter().flat_map(|image| image.resources).find(|r| r.kernel == kernel && r.arch == 80);
    let (registers, spills) = resources.map_or((0, 0), |r| (r.registers, r.spilled_bytes));
    let shared_bytes = number(launch, "/static_shared_bytes") + number(launch, "/dynamic_shared_bytes");
    let grid: Vec<f64> = (0..3).map(|i| number(launch, &format!("/grid/{i}"))).collect();
    let block = number(launch, "/block/0");
    let warps = number(launch, "/prediction/occupancy/ctas_per_sm") * block / 32.0;
    let share = |a: f64, b: f64| if b > 0.0 { a / b } else { 0.0 };
    let sectors = share(number(launch, "/global/sectors"), number(launch, "/global/requests"));
    let over = share(number(launch, "/global/sectors"), number(launch, "/global/ideal_sectors"));
    let (waves, ideal) = (number(launch, "/shared/wavefronts"), number(launch, "/shared/ideal_wavefronts"));
    let conflicts = 100.0 * share(waves - ideal, ideal);
    let sampled = !launch["sampled_ctas"].is_null();
    let moved = number(launch, "/unique_read_bytes") + number(launch, "/unique_written_bytes");
    let dash = || "-".to_string();
    let bytes = if sampled { dash() } else { format!("{:.3}", moved / case.bytes) };
    let machine = number(launch, "/prediction/machine_instructions");
    let (weights, per) = if case.weights > 0.0 {
        let fetched = if sampled {
            dash()
        } else {
            format!("{:.3}", (number(launch, "/unique_read_bytes") - case.other_bytes) / case.weight_bytes)
        };
        (fetched, format!("{:.2}", machine * 32.0 / case.weights))
    } else {
        (dash(), dash())
    };
    let mma = number(launch, "/mma_count");
    let per_mma = if mma > 0.0 { format!("{:.2}", machine / mma) } else { dash() };
    let imbalance = case.imbalance.filter(|_| sampled).unwrap_or(1.0);
    let time_us =
        (number(launch, "/prediction/time_us") - number(launch, "/prediction/launch_gap_us")) * imbalance;
    let bound_us = bound_us(case);
    let grid = grid.iter().product::<f64>();
    let counters = format!(
        "{:<WIDTH$} {kernel:<26} {grid:>6} {block:>4} {registers:>3} {spills:>2} {:>6.1} {warps:>2} {sectors:>5.2} {over:>5.3} \
         {conflicts:>5.2} {weights:>6} {bytes:>6} {per:>6} {per_mma:>6}",
        case.name,
        shared_bytes / 1024.0,
    );
    let limiter = launch["prediction"]["limiter"].as_str().unwrap_or("?");
    let text =
        format!("{counters} {time_us:>9.1} {bound_us:>9.1} {:>6.1} {limiter}", 100.0 * bound_us / time_us);
    Row { counters, time_us, text }
}

/// The row of a case of several launches.
fn total(case: &Case, parts: &[Row]) -> Row {
    let time_us = parts.iter().map(|part| part.time_us).sum::<f64>() + GAP_US * (parts.len() - 1) as f64;
    let counters = format!("{:<WIDTH$} {} launches, {GAP_US} us between them:", case.name, parts.len());
    let counters = format!("{counters:<width$}", width = parts[0].counters.len());
    let bound_us = bound_us(case);
    let text = format!("{counters} {time_us:>9.1} {bound_us:>9.1} {:>6.1} -", 100.0 * bound_us / time_us);
    Row { counters, time_us, text }
}

/// The least time on an A100 80 GB.
fn bound_us(case: &Case) -> f64 {
    (case.bytes / BYTES_PER_US).max(case.flops / FLOPS_PER_US)
}

fn header() -> String {
    format!(
        "\
# Every kernel at the sizes of the models on a simulated A100 80 GB (modelled: no GPU was used), nvcc {}.{}, ptxas {}.{}.
# Written by QWENVL_WRITE_REPORT=1 cudasim env cargo test --features cuda --test kernels_cuda report
# reg registers; sp bytes spilled; KiB of shared memory; wp warps that fit a multiprocessor; s/r sectors of 32 bytes per
# request of global memory; over: sectors over those that the bytes asked for would fill; conf: % of wavefronts of
# shared memory that bank conflicts add; w: bytes read of weights over their size; byt: distinct bytes read and written
# over the least; i/w machine instructions of a lane per weight; i/mma of a warp per mma; us: modelled time of the kernel
# alone, beside which a graph takes 1.3 us between kernels; bound: the least bytes at 1.80 TB/s or the least operations
# at 312 TFLOP/s; %: bound over us; what limits it. A dash where only some blocks were run; then us is longer by how much
# more the busiest block has to do, where blocks are known to differ.
{:<WIDTH$} {:<26} {:>6} {:>4} {:>3} {:>2} {:>6} {:>2} {:>5} {:>5} {:>5} {:>6} {:>6} {:>6} {:>6} {:>9} {:>9} {:>6} limit
",
        NVCC.0,
        NVCC.1,
        PTXAS.0,
        PTXAS.1,
        "# case",
        "kernel",
        "grid",
        "blk",
        "reg",
        "sp",
        "KiB",
        "wp",
        "s/r",
        "over",
        "conf",
        "w",
        "byt",
        "i/w",
        "i/mma",
        "us",
        "bound",
        "%",
    )
}

#[test]
fn large_report_of_kernels_at_the_sizes_of_the_models() {
    if !gpu().is_simulated() {
        return; // `cargo bench` measures there
    }
    let folder = tempfile::tempdir().expect("a folder");
    let parts = PARTS.map(|sample| {
        let file = folder.path().join(format!("{}.json", sample.unwrap_or("whole")));
        (sample, start(sample, &file), file)
    });
    let mut rows: Vec<Row> = Vec::new();
    for (sample, mut child, file) in parts {
        assert!(child.wait().expect("the tests").success(), "launching failed");
        let run: Value =
            serde_json::from_str(&std::fs::read_to_string(file).expect("a report")).expect("JSON");
        let mut launches = run["launches"].as_array().expect("launches").iter();
        for case in cases(sample, false) {
            let mut next = |case: &Case| row(case, launches.next().expect("a launch of each case"));
            if case.parts.is_empty() {
                rows.push(next(&case));
                continue;
            }
            let parts: Vec<Row> = case.parts.iter().map(next).collect();
            rows.push(total(&case, &parts));
            rows.extend(parts);
        }
        assert!(launches.next().is_none(), "more launches than cases");
    }
    let mut text = header();
    for row in &rows {
        writeln!(text, "{}", row.text).unwrap();
    }
    let path = common::path(TABLE);
    if std::env::var_os("QWENVL_WRITE_REPORT").is_some() {
        std::fs::write(&path, text).expect("writing the table");
        return;
    }
    let stored = std::fs::read_to_string(&path).unwrap_or_default();
    let compiler = |text: &str| text.lines().next().map(str::to_string);
    if compiler(&stored) != compiler(&text) {
        eprintln!("{TABLE} is of another compiler than this build: not compared");
        return;
    }
    let old: Vec<&str> = stored.lines().filter(|line| !line.starts_with('#')).collect();
    let mut differences = Vec::new();
    if old.len() != rows.len() {
        differences.push(format!("{} rows, the table has {}", rows.len(), old.len()));
    }
    for (row, old) in rows.iter().zip(old) {
        let counters = old.get(..row.counters.len()).unwrap_or_default();
        let time: Option<f64> =
            old.get(row.counters.len()..).and_then(|rest| rest.split_whitespace().next()?.parse().ok());
        let same_time = time.is_some_and(|t| (row.time_us - t).abs() <= MODEL * t + 0.1);
        if counters != row.counters || !same_time {
            differences.push(format!("- {old}\n+ {}", row.text));
        }
    }
    assert!(
        differences.is_empty(),
        "{TABLE} says otherwise; if that is meant, write it anew: QWENVL_WRITE_REPORT=1 cudasim env cargo test \
         --features cuda --test kernels_cuda report\n{}",
        differences.join("\n")
    );
}

#[test]
fn the_table_of_kernels_keeps_its_promises() {
    let mut rows = 0;
    for line in common::text(TABLE).lines().filter(|line| !line.starts_with('#')) {
        let (name, rest) = line.split_at(WIDTH);
        if rest.contains(" launches, ") {
            continue;
        }
        let columns: Vec<&str> = rest.split_whitespace().collect();
        let [_, _, _, _, spills, _, _, _, _, conflicts, weights, ..] = columns[..] else { panic!("{line}") };
        assert_eq!(spills, "0", "{name}");
        // How bytes of a picture fall on the banks of the table is up to the picture, and into which bins ids to them.
        let by_data = ["patchify", "sample"].iter().any(|kernel| name.starts_with(kernel));
        assert!(conflicts == "0.00" || by_data, "{name}: {conflicts} % of conflicts");
        let weights: Option<f64> = weights.parse().ok();
        assert!(weights.is_none_or(|w| w <= 1.03), "{name}: weights are read {weights:?} times");
        rows += 1;
    }
    assert!(rows > 100);
}
