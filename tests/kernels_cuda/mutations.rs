//! Mutations of our kernels: each barrier and each wait for copies is taken out of the PTX, each atomic and ordered access
//! is made a relaxed one, and each comparison is made to hold always and never, one at a time; each time the tests of that
//! kernel must fail, by a wrong result or by a report of the simulated GPU.
//!
//! The tests run in processes of their own, which end at the first failure. What a line of the source became is one
//! mutation where loops are unrolled. One activation type stands for both, and so do tiles of 64 rows in attention; of the
//! linears the kernels for 8 rows and for prefill: the others are the same lines of the source.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::gpu::{MUTANT, gpu};

/// A file of kernels, those of its kernels that are mutated, the tests that fail soonest, and all that may fail.
struct Target {
    image: &'static str,
    kernels: &'static [&'static str],
    soon: &'static [&'static str],
    all: &'static str,
}

const TARGETS: &[Target] = &[
    Target {
        image: "int4_gemm",
        kernels: &["int4_gemm_bf16_m8", "int4_gemm_bf16_prefill"],
        soon: LINEAR,
        all: "linear::",
    },
    Target {
        image: "int8_gemm",
        kernels: &["int8_gemm_bf16_m8", "int8_gemm_bf16_prefill"],
        soon: LINEAR,
        all: "linear::",
    },
    // Groups that are smaller than a stage.
    Target { image: "int4_g32_gemm", kernels: &["int4_g32_gemm_bf16_m8"], soon: LINEAR, all: "linear::" },
    Target {
        image: "dense_gemm",
        kernels: &["dense_gemm_bf16_m8", "dense_gemm_bf16_prefill"],
        soon: LINEAR,
        all: "linear::",
    },
    Target { image: "flash_attn", kernels: &["flash_attn_bf16_64"], soon: &[], all: "flash_attn::" },
    Target { image: "paged_prefill", kernels: &["paged_prefill_bf16_64"], soon: &[], all: "paged_prefill::" },
    Target { image: "paged_attn", kernels: &["paged_attn_bf16"], soon: &[], all: "paged_attn::" },
    Target {
        image: "decode_layers",
        kernels: &["decode_layers_int4_bf16"],
        soon: &[],
        all: "decode_layers::",
    },
    Target { image: "norm", kernels: &["rms_norm_bf16", "layer_norm_bf16"], soon: &[], all: "norm::" },
    Target { image: "embed", kernels: &["embed_bf16", "select_rows"], soon: &[], all: "embed::" },
    Target {
        image: "pointwise",
        kernels: &["swiglu_bf16", "quick_gelu_bf16", "gelu_bf16", "add_bf16", "select_columns"],
        soon: &[],
        all: "pointwise::",
    },
    Target { image: "rope", kernels: &["rope_bf16", "kv_write"], soon: &[], all: "rope::" },
    Target { image: "patchify", kernels: &["patchify_bf16"], soon: &[], all: "patchify::" },
    Target {
        image: "repack",
        kernels: &["repack_awq4", "repack_gptq4", "repack_gptq8", "repack_dense_bf16"],
        soon: &[],
        all: "repack::",
    },
    Target { image: "sample", kernels: &["argmax", "sample"], soon: &[], all: "sample::" },
];

const LINEAR: &[&str] = &[
    "linear::other_rows_of_nan_change_nothing",
    "linear::pointwise_epilogues_match_float64",
    "linear::swiglu_takes_gate_and_up_from_the_two_parts",
    "linear::qkv_is_turned_and_its_keys_and_values_go_to_their_slots",
];

/// Lines whose mutation changes nothing that a test could see: what is changed, a piece of the line, and the reason.
const UNSEEN: &[(&str, &str, &str)] = &[
    (
        "bar.sync",
        "// all of the block has written",
        "orders stores to global memory before an atomic of another thread; the simulator runs the threads of a block \
         in an order in which they are",
    ),
    (
        "bar.sync",
        "// the sums are there, and results of the tile before",
        "orders what another block has left after the word of one thread that it is there; the simulator runs blocks in \
         order, so that it is",
    ),
    (
        "bar.sync",
        "// all have read the sums of a call before",
        "rms_norm has one sum only; the linear layers have more",
    ),
    (
        "bar.warp.sync",
        "// what the first lane may see, all may",
        "orders loads of global memory by other lanes after the word of one; the simulator runs lanes together",
    ),
    (
        "bar.warp.sync",
        "// all lanes have their values",
        "the loads before it, of matrices, are of the whole warp at once",
    ),
    (
        "comparison holds",
        "if (t + 1 < n_tiles) {",
        "flash_attn: no rows are left to copy; paged_prefill is held to it",
    ),
    (
        "comparison fails",
        "for (; t < n_tiles; t++) {",
        "one tile more, which no row sees: it changes nothing",
    ),
    ("comparison fails", "const bool has_few =", "few keys are found digit by digit as well"),
    ("comparison holds", "while (high - low > 1) {", "a search among one slice finds it"),
    ("comparison fails", "if (tile >= p.n_tiles) {", "the first tile of a block is always there"),
    (
        "comparison fails",
        "if (first_key > work.sequence.past",
        "keys that no row of the warp sees: they change nothing",
    ),
    ("comparison fails", "if (tokens >= UNIT) {", "rows that are all there need no other way, but have it"),
    ("comparison fails", "if (tokens < UNIT) {", "where all tokens are there, none is hidden"),
    ("comparison fails", "if (next < end) {", "loads that nobody uses"),
    ("comparison fails", "for (u32 start = lane; start < slices;", FIRST_PASS),
    ("comparison fails", "i < 3 * 256; i += PATCHIFY_THREADS) {", FIRST_PASS),
    ("comparison fails", "word < (BYTES ? 4096 : 2048); word += THREADS) {", FIRST_PASS),
    ("comparison holds", "word < (BYTES ? 4096 : 2048); word += THREADS) {", FIRST_PASS),
    ("comparison fails", "i < p.cols; i += THREADS) {", FIRST_PASS),
    ("comparison fails", "for (u32 run = first; run <= last; run += AT_ONCE) {", FIRST_PASS),
    ("comparison holds", "for (; count > 0; count--) {", FIRST_PASS),
    // Of the early end of `sum_rows`.
    (
        "comparison fails",
        "sums[0] += __shfl_xor_sync(0xffffffffu, sums[0], lanes);",
        "rows that are none are summed for nothing",
    ),
    ("comparison fails", "if (!C::PREFILL && worker >= p.n_runs) {", AS_MANY),
    // That line, where the compiler puts it before others.
    ("comparison fails", "column_at = smem_at + C::SUMS_AT + (warp_m * NT * 8 + 2 * t) * 4;", AS_MANY),
    // Of `join`: whether a lane has rows.
    (
        "comparison fails",
        "u32 rows = smem_at + C::WEIGHT_BYTES + C::TAIL_BYTES + (warp_m",
        "sums of rows that are none are left in a place of their own, and added for nothing",
    ),
    ("comparison fails", "if (ahead.stage < ahead.end) {", "copies that nobody reads"),
    ("comparison fails", "if (tile + STEP < NT) {", "a place that nobody takes"),
    (
        "comparison fails",
        "if (at.stage < at.end) {",
        "16-bit weights take a segment in one go; the others are held to it by wrong sums",
    ),
    ("comparison holds", "run_start(run) < strip * groups ? 1 : 0", IN_ORDER),
    ("comparison fails", "run_start(run) < strip * groups ? 1 : 0", IN_ORDER),
    ("comparison fails", "bool value = n[0] >= p.n_rotated;", BEHIND),
    // Of that line in the epilogue of linear layers.
    ("comparison fails", "if (slot == QWENVL_NO_SLOT) {", BEHIND),
    ("comparison fails", "word < 8192; word += THREADS) {", FIRST_PASS),
    ("comparison fails", "i < COARSE; i += SAMPLE_THREADS) {", FIRST_PASS),
    // Of the loop over digits, taken out of the loop around it.
    ("comparison fails", "const u32 bin = s.cut.bin;", FIRST_PASS),
];

/// The same for the kernels of one image.
const UNSEEN_IN: &[(&str, &str, &str, &str)] = &[
    ("decode_layers", ACQ_REL, "", AGAIN),
    ("sample", ACQ_REL, "", AGAIN),
    ("decode_layers", "comparison fails", "i < VECTORS && i * THREADS < count * 16", NOT_THERE),
    ("decode_layers", "comparison fails", "row_sums[at / 16 * 2 + row] = sum;", NOT_THERE),
    ("decode_layers", "comparison fails", ": \"l\"(from)", NOT_THERE),
    ("decode_layers", "comparison fails", "for (; step < n_steps; step++) {", "copies that nobody waits for"),
    (
        "decode_layers",
        "comparison fails",
        "if (p.norm_weight",
        "more zeros, where rows come to lie after a barrier",
    ),
    ("decode_layers", "comparison fails", "while (at.stage < at.end) {", HAS_STAGES),
    ("decode_layers", "comparison fails", "for (; at.stage < at.end; at.stage++) {", HAS_STAGES),
    ("decode_layers", "comparison holds", "for (u32 row = 0; row < p.m; row++) {", "there always is a row"),
    (
        "decode_layers",
        "comparison fails",
        "if (at * 4 < (p.k + 127) / 128 * 128) {",
        "nobody reads beyond the inputs",
    ),
    (
        "decode_layers",
        "comparison fails",
        "auto used = [&](int i)",
        "of two rows all lanes are where the first are",
    ),
];

/// The order of counters by which blocks join their results.
const ACQ_REL: &str = "acq_rel";
const AGAIN: &str =
    "blocks publish once more before another looks, as the simulator runs them; held to in other images";
const NOT_THERE: &str = "inputs that are none are not loaded nor kept, whoever looks at them";
const HAS_STAGES: &str = "a block that comes here has stages";
const AS_MANY: &str = "there are as many blocks as runs";
const IN_ORDER: &str =
    "the simulator runs blocks in order: a run's first strip is joined before it stores its second";
const BEHIND: &str = "values follow keys in a page: as heads behind those of keys they are in the same place";
const FIRST_PASS: &str = "the compiler asks whether there is a first pass: there always is";

/// Only the kernels of these files, separated by commas.
const ONLY: &str = "QWENVL_TEST_MUTATE";

/// One change of a PTX text: these lines are replaced.
struct Mutation {
    target: usize,
    kernel: &'static str,
    /// File and line of the source.
    source: (String, usize),
    what: &'static str,
    lines: Vec<(usize, String)>,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    /// Barriers, waits, orders of memory.
    Order,
    /// Comparisons.
    Bounds,
}

fn ptx(image: &str) -> String {
    let path = Path::new(env!("OUT_DIR")).join(format!("{image}.ptx"));
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The mutations of one kernel.
fn mutations(target: usize, kernel: &'static str, text: &str, kind: Kind) -> Vec<Mutation> {
    let lines: Vec<&str> = text.lines().collect();
    let files: BTreeMap<&str, String> = lines
        .iter()
        .filter_map(|line| {
            let mut words = line.trim().strip_prefix(".file")?.split_whitespace();
            let number = words.next()?;
            let path = words.next()?.trim_matches(|c| c == '"' || c == ',');
            Some((number, Path::new(path.trim_matches('"')).file_name()?.to_string_lossy().into_owned()))
        })
        .collect();
    let entry = lines
        .iter()
        .position(|line| line.contains(".entry") && line.split(['(', ' ']).any(|word| word == kernel))
        .unwrap_or_else(|| panic!("no entry {kernel}"));
    let start = entry + lines[entry..].iter().position(|line| *line == "{").expect("a body");
    let end = start + lines[start..].iter().position(|line| *line == "}").expect("an end");
    let labels: BTreeMap<&str, usize> =
        (start..end).filter_map(|i| Some((lines[i].trim().strip_suffix(':')?, i))).collect();
    // The predicates of loops: to change them is to run for ever.
    let loops: Vec<&str> = (start..end)
        .filter_map(|i| {
            let words: Vec<&str> = lines[i].trim().trim_end_matches(';').split_whitespace().collect();
            let [predicate, branch, label] = words[..] else { return None };
            let backward = branch.starts_with("bra") && labels.get(label).is_some_and(|to| *to < i);
            backward.then(|| predicate.trim_start_matches(['@', '!']))
        })
        .collect();
    let mut out: Vec<Mutation> = Vec::new();
    let mut source = (String::new(), 0);
    for i in start..end {
        let line = lines[i].trim();
        if let Some(loc) = line.strip_prefix(".loc") {
            // Of functions of the compiler's headers the place where they are called.
            let place = |words: &str| {
                let mut words = words.split_whitespace();
                let file = words.next().and_then(|n| files.get(n)).cloned().unwrap_or_default();
                (file, words.next().and_then(|n| n.parse().ok()).unwrap_or(0))
            };
            let ours = |file: &str| file.ends_with(".cu") || file.ends_with(".cuh");
            let callers = loc.split_once("inlined_at ").map(|(_, caller)| place(caller));
            let places = [Some(place(loc)), callers];
            let of_ours = places.into_iter().flatten().find(|(file, line)| ours(file) && *line > 0);
            source = of_ours.unwrap_or(source);
            continue;
        }
        let order = ["bar.sync", "barrier.sync", "bar.warp.sync", "cp.async.wait"];
        if kind == Kind::Order && order.iter().any(|o| line.starts_with(o)) {
            let what = order.into_iter().find(|o| line.starts_with(o)).expect("one of them");
            out.push(Mutation {
                target,
                kernel,
                source: source.clone(),
                what,
                lines: vec![(i, String::new())],
            });
        }
        let orders = [ACQ_REL, "release", "acquire"];
        let named = |order: &&str| line.contains(&format!(".{order}."));
        if let Some(what) = orders.into_iter().find(|order| kind == Kind::Order && named(order)) {
            let lines = vec![(i, line.replace(what, "relaxed"))];
            out.push(Mutation { target, kernel, source: source.clone(), what, lines });
        }
        let Some(rest) = line.strip_prefix("setp.").filter(|_| kind == Kind::Bounds) else { continue };
        let ordered = ["lt", "le", "gt", "ge"].contains(&rest.split('.').next().unwrap_or_default());
        let predicate = rest.split_whitespace().nth(1).unwrap_or_default().trim_end_matches(',');
        if !ordered || rest.contains(".f32") || loops.contains(&predicate) {
            continue;
        }
        for (what, relation) in [("comparison holds", "lt"), ("comparison fails", "gt")] {
            let changed = format!("setp.{relation}.s32 {predicate}, 0, 1;");
            match out.iter_mut().find(|m| m.source == source && m.what == what) {
                Some(m) => m.lines.push((i, changed)),
                None => {
                    let lines = vec![(i, changed)];
                    out.push(Mutation { target, kernel, source: source.clone(), what, lines });
                }
            }
        }
    }
    out
}

/// Whether the tests end with a failure. A test that does not end fails as well.
fn fails(file: &Path, image: &str, filters: &[&str]) -> bool {
    let mut child = Command::new(std::env::current_exe().expect("this program"))
        .args(filters)
        .args(["--test-threads=1", "--skip", "large_"])
        .env(MUTANT, format!("{image}={}", file.display()))
        .env("CUDASIM_FATAL_REPORTS", "1")
        .env("CUDASIM_QUIET", "1")
        .env("CUDASIM_THREADS", "1")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the tests");
    !wait(&mut child, Duration::from_secs(300)).is_some_and(|status| status.success())
}

fn wait(child: &mut Child, most: Duration) -> Option<std::process::ExitStatus> {
    let start = Instant::now();
    let mut pause = Duration::from_millis(5);
    loop {
        if let Some(status) = child.try_wait().expect("waiting for the tests") {
            return Some(status);
        }
        if start.elapsed() > most {
            let _ = child.kill();
            let _ = child.wait();
            return None;
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(100));
    }
}

fn all_are_caught(kind: Kind) {
    if !gpu().is_simulated() {
        return; // a real one would hang or go wrong silently, which is why there is a simulated one
    }
    let texts: Vec<String> = TARGETS.iter().map(|t| ptx(t.image)).collect();
    let only = std::env::var(ONLY).ok();
    let wanted = |image: &str| only.as_ref().is_none_or(|only| only.split(',').any(|name| name == image));
    let mut all = Vec::new();
    for (i, target) in TARGETS.iter().enumerate().filter(|(_, t)| wanted(t.image)) {
        for kernel in target.kernels {
            all.extend(mutations(i, kernel, &texts[i], kind));
        }
    }
    let folder = tempfile::tempdir().expect("a folder");
    // Otherwise whatever fails would be a mutation that is noticed.
    for (target, text) in TARGETS.iter().zip(&texts).filter(|(t, _)| wanted(t.image)) {
        let file = folder.path().join("whole.ptx");
        std::fs::write(&file, text).expect("writing a file");
        assert!(!fails(&file, target.image, &[target.all]), "{} fails without a mutation", target.image);
    }
    let next = AtomicUsize::new(0);
    let survivors = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(mutation) = all.get(index) else { break };
                    let target = &TARGETS[mutation.target];
                    let (file, number) = &mutation.source;
                    let path = crate::common::path("kernels/cuda").join(file);
                    let line = std::fs::read_to_string(&path).unwrap_or_default();
                    let line =
                        line.lines().nth(number.saturating_sub(1)).unwrap_or_default().trim().to_string();
                    if UNSEEN.iter().any(|(what, piece, _)| mutation.what == *what && line.contains(piece)) {
                        continue;
                    }
                    let unseen = |(image, what, piece, _): &(&str, &str, &str, &str)| {
                        target.image == *image && mutation.what == *what && line.contains(piece)
                    };
                    if UNSEEN_IN.iter().any(unseen) {
                        continue;
                    }
                    let mut lines: Vec<&str> = texts[mutation.target].lines().collect();
                    for (at, text) in &mutation.lines {
                        lines[*at] = text;
                    }
                    let file: PathBuf = folder.path().join(format!("{index}.ptx"));
                    std::fs::write(&file, lines.join("\n")).expect("writing a mutant");
                    let caught = !target.soon.is_empty() && fails(&file, target.image, target.soon)
                        || fails(&file, target.image, &[target.all]);
                    let _ = std::fs::remove_file(&file);
                    if !caught {
                        let (name, number) = &mutation.source;
                        let text = format!("{} {name}:{number} {}: {line}", mutation.kernel, mutation.what);
                        eprintln!("survives: {text}");
                        survivors.lock().unwrap().push(text);
                    }
                }
            });
        }
    });
    assert!(!all.is_empty());
    println!("{} mutations", all.len());
    let survivors = survivors.into_inner().unwrap();
    assert!(survivors.is_empty(), "nobody noticed\n{}", survivors.join("\n"));
}

#[test]
fn large_every_missing_barrier_and_wait_is_noticed() {
    all_are_caught(Kind::Order);
}

#[test]
#[ignore = "half an hour: cargo test --features cuda --test kernels_cuda large_every -- --ignored"]
fn large_every_missing_bounds_check_is_noticed() {
    all_are_caught(Kind::Bounds);
}
