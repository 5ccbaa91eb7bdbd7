//! Mutations of the PTX text: each barrier, each wait and each bounds check is taken out, one at a time, and each time
//! something must be reported.

use crate::common;
use crate::device::{Arg, Device, Random, grid};

/// The text without the `index`th line for which `cut` gives a replacement; `None` when there are fewer.
fn without(text: &str, index: usize, cut: impl Fn(&str) -> Option<String>) -> Option<String> {
    let mut seen = 0;
    let mut found = false;
    let lines: Vec<String> = text
        .lines()
        .map(|line| match cut(line) {
            Some(replacement) if !found => {
                seen += 1;
                if seen == index + 1 {
                    found = true;
                    replacement
                } else {
                    line.to_owned()
                }
            }
            _ => line.to_owned(),
        })
        .collect();
    found.then(|| lines.join("\n"))
}

/// Runs every mutation of every kernel of a module; `launch` runs all kernels of it. Returns how many there were.
#[track_caller]
fn all_are_caught(
    name: &str,
    what: &str,
    cut: impl Fn(&str) -> Option<String> + Copy,
    launch: impl Fn(&Device) -> usize,
) -> usize {
    all_but_are_caught(&[], name, what, cut, launch)
}

/// The same but for those in `idle`: barriers that guard nothing, which is proved, and so that nobody can notice.
#[track_caller]
fn all_but_are_caught(
    idle: &[usize],
    name: &str,
    what: &str,
    cut: impl Fn(&str) -> Option<String> + Copy,
    launch: impl Fn(&Device) -> usize,
) -> usize {
    let text = common::ptx(name);
    assert_eq!(launch(&Device::with_text(name, &text)), 0, "{name} as it is reports nothing");
    let mut count = 0;
    while let Some(mutant) = without(&text, count, cut) {
        let reports = launch(&Device::with_text(name, &mutant));
        let (at, line) =
            text.lines().enumerate().filter(|(_, line)| cut(line).is_some()).nth(count).unwrap_or_default();
        if idle.contains(&count) {
            assert_eq!(reports, 0, "{name}: {what} {count} ({line}) does guard something");
            assert!(guards_nothing(&text, at), "{name}: {what} {count} ({line}) is not proved to be idle");
        } else {
            assert!(reports > 0, "{name}: {what} {count} ({line}) was taken out and nobody noticed");
        }
        count += 1;
    }
    count
}

/// Whether no thread can see what others of its CTA do after the barrier in this line, or do before it: from there to
/// the end of the kernel it neither goes back, nor accesses shared memory, nor reads memory, nor waits again.
fn guards_nothing(text: &str, barrier: usize) -> bool {
    let after: Vec<&str> =
        text.lines().skip(barrier + 1).map(str::trim).take_while(|line| *line != "}").collect();
    let labels: Vec<&str> = after.iter().filter_map(|line| line.strip_suffix(':')).collect();
    after.iter().all(|line| {
        let sees = ["shared", "ld.", "atom", "red.", "bar", "call", "shfl", "cp.async"];
        let back = line
            .split_once("bra")
            .is_some_and(|(_, target)| !labels.iter().any(|label| target.contains(&format!("{label};"))));
        !back && !sees.iter().any(|word| line.contains(word))
    })
}

fn barrier(line: &str) -> Option<String> {
    line.trim_start().starts_with("bar.sync").then(String::new)
}

fn wait(line: &str) -> Option<String> {
    line.trim_start().starts_with("cp.async.wait_").then(String::new)
}

/// A comparison with a length, made to say that the index is in bounds: nvcc asks for `>=` where it jumps away, and
/// for `<` where it goes on.
fn bounds_check(line: &str) -> Option<String> {
    let line = line.trim_start();
    let rest = line.strip_prefix("setp.")?;
    let (operation, _) = rest.split_once('.')?;
    let (_, operands) = rest.split_once('\t').or_else(|| rest.split_once(' '))?;
    let predicate = operands.split(',').next()?.trim();
    match operation {
        "ge" | "gt" => Some(format!("setp.gt.s32 {predicate}, 0, 1;")),
        "le" | "lt" => Some(format!("setp.lt.s32 {predicate}, 0, 1;")),
        _ => None,
    }
}

fn reports(device: &Device, kernel: &str, grid: [u32; 3], block: u32, shared: u32, args: &[Arg]) -> usize {
    let outcome = device.launch(kernel, grid, block, shared, args);
    outcome.reports.len() + usize::from(outcome.fatal.is_some())
}

fn reductions(device: &Device) -> usize {
    let rows = device.upload(&Random(1).floats(2 * 500));
    // Loops are unrolled: several lengths, so that every copy of a line is reached.
    let tiles: usize = (1..=5)
        .map(|n| {
            let data = device.upload(&Random(1).ints(2 * n * 128));
            reports(
                device,
                "sum_tiles",
                grid(2),
                128,
                0,
                &[data, device.buffer::<i32>(2), Arg::I32(n as i32)],
            )
        })
        .sum();
    tiles + reports(device, "sum_rows", grid(2), 256, 0, &[rows, device.buffer::<f32>(2), Arg::I32(500)])
}

fn pipelines(device: &Device) -> usize {
    let data = device.upload(&Random(1).floats(9 * 512));
    let ragged = device.upload(&Random(1).floats(70));
    let pipes: usize = (2..=5)
        .flat_map(|depth| (1..=9).map(move |tiles| (depth, tiles)))
        .map(|(depth, tiles)| {
            let args = [data, device.buffer::<f32>(512), Arg::I32(tiles)];
            reports(device, &format!("pipeline{depth}"), grid(1), 128, 0, &args)
        })
        .sum();
    let out = device.buffer::<f32>(128);
    pipes + reports(device, "copy_ragged", grid(1), 32, 0, &[ragged, out, Arg::I32(70)])
}

fn gemms(device: &Device) -> usize {
    let half = device.upload(&vec![0x3c00u16; 70 * 160]);
    ["gemm_f16", "gemm_bf16"]
        .iter()
        .map(|kernel| {
            let args = [half, half, device.buffer::<f32>(70 * 70), Arg::I32(70), Arg::I32(70), Arg::I32(160)];
            reports(device, kernel, [2, 2, 1], 128, 4 * 4096, &args)
        })
        .sum()
}

fn histograms(device: &Device) -> usize {
    let data: Vec<u8> = (0..2000).map(|i| (i * 7) as u8).collect();
    reports(
        device,
        "histogram",
        grid(2),
        128,
        0,
        &[device.upload(&data), device.upload(&[0u32; 256]), Arg::I32(2000)],
    )
}

fn splits(device: &Device) -> usize {
    let data = device.upload(&Random(1).floats(64 * 200));
    let args = [
        data,
        device.buffer::<f32>(200),
        device.buffer::<f32>(4 * 200),
        device.upload(&[0u32; 2]),
        Arg::I32(64),
        Arg::I32(200),
    ];
    reports(device, "sum_columns_split", [2, 4, 1], 128, 0, &args)
}

/// Kernels whose buffers are exactly as long as they are told, in a grid that is larger.
fn vectors(device: &Device) -> usize {
    let n = 333;
    let floats = device.upload(&Random(1).floats(n));
    let halves = || device.upload(&vec![0x3c00u16; 336]);
    reports(
        device,
        "add_f32",
        grid(4),
        128,
        0,
        &[floats, floats, device.buffer::<f32>(n), Arg::I32(n as i32)],
    ) + reports(device, "axpy_f16", grid(1), 128, 0, &[Arg::U16(0x3c00), halves(), halves(), Arg::I32(336)])
        + reports(device, "fill_parts", grid(3), 32, 0, &[device.buffer::<u32>(3 * 13), Arg::I32(13)])
}

/// Number of the last barrier of a module.
fn last_barrier(name: &str) -> usize {
    common::ptx(name).lines().filter(|line| barrier(line).is_some()).count() - 1
}

#[test]
fn every_barrier_is_missed() {
    for variant in ["nvcc13.O3", "nvrtc12.O3"] {
        // The barrier after the last tile of `sum_tiles`, in the copy of the loop's body for an odd number of tiles:
        // no tile comes after it.
        let idle = [last_barrier(&format!("reduction.{variant}"))];
        let count =
            all_but_are_caught(&idle, &format!("reduction.{variant}"), "barrier", barrier, reductions);
        assert!(count >= 4, "{count}");
        assert!(all_are_caught(&format!("pipeline.{variant}"), "barrier", barrier, pipelines) >= 4);
        assert!(all_are_caught(&format!("gemm.{variant}"), "barrier", barrier, gemms) >= 4);
        assert!(all_are_caught(&format!("atomics.{variant}"), "barrier", barrier, histograms) >= 2);
    }
}

#[test]
fn every_wait_for_cp_async_is_missed() {
    for variant in ["nvcc13.O3", "nvrtc12.O3"] {
        assert!(all_are_caught(&format!("pipeline.{variant}"), "wait", wait, pipelines) >= 5);
        assert!(all_are_caught(&format!("gemm.{variant}"), "wait", wait, gemms) >= 4);
    }
}

#[test]
fn every_bounds_check_is_missed() {
    for variant in ["nvcc13.O3", "nvrtc12.O3"] {
        let count = all_are_caught(&format!("vector.{variant}"), "bounds check", bounds_check, vectors);
        assert!(count >= 2, "{count}");
    }
}

#[test]
fn barriers_of_the_last_arriver_are_missed() {
    let name = "between_ctas.nvcc13.O3";
    let only_split = |line: &str| barrier(line);
    let text = common::ptx(name);
    // The first kernel of the file ends where the next begins; its barriers come first.
    let start = text.find(".entry sum_columns_split").unwrap();
    let end = text[start..].find("\n}").unwrap() + start;
    let before = text[..start].lines().filter(|line| barrier(line).is_some()).count();
    let inside = text[start..end].lines().filter(|line| barrier(line).is_some()).count();
    assert_eq!(inside, 2);
    // Without the first barrier, threads may count themselves in before others of the CTA wrote: no race on shared
    // memory, and with the values of this order no wrong number either. The second guards the shared flag.
    let mutant = without(&text, before + 1, only_split).unwrap();
    assert!(splits(&Device::with_text(name, &mutant)) > 0);
}
