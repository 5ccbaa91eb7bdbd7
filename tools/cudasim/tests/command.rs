//! The `cudasim` command.

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn cudasim(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_cudasim")).args(args).output().unwrap()
}

/// A file in the folder for tests.
fn scratch(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(name)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn run_executes_a_kernel_on_buffers_from_the_command_line() {
    let (ptx, input, output, json) =
        (scratch("vector.ptx"), scratch("in.bin"), scratch("out.bin"), scratch("run.json"));
    std::fs::write(&ptx, common::ptx("vector.nvcc13.O3")).unwrap();
    let a: Vec<u8> = (0..100).flat_map(|i| (i as f32).to_le_bytes()).collect();
    std::fs::write(&input, a).unwrap();
    let args = [
        "run",
        ptx.to_str().unwrap(),
        "--kernel",
        "add_f32",
        "--grid",
        "2",
        "--block",
        "64",
        "--json",
        json.to_str().unwrap(),
        "--arg",
        &format!("f32[100]=file:{}", input.display()),
        "--arg",
        "f32[100]=0.5",
        "--arg",
        &format!("f32[100]>{}", output.display()),
        "--arg",
        "i32:100",
    ];
    let ran = cudasim(&args);
    assert!(ran.status.success(), "{}{}", text(&ran.stdout), text(&ran.stderr));
    assert!(text(&ran.stdout).contains("add_f32") && text(&ran.stdout).contains("simulated"));
    let sums: Vec<f32> = std::fs::read(&output)
        .unwrap()
        .chunks(4)
        .map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()))
        .collect();
    assert!(sums.len() == 100 && sums.iter().enumerate().all(|(i, sum)| *sum == i as f32 + 0.5));

    let shown = cudasim(&["report", json.to_str().unwrap(), "--lines"]);
    assert!(shown.status.success());
    assert!(text(&shown.stdout).contains("vector.cu"), "{}", text(&shown.stdout));
}

#[test]
fn run_tells_what_is_wrong_and_ends_with_1() {
    let ptx = scratch("bug.ptx");
    std::fs::write(&ptx, common::ptx("vector.BUG_TWO_WRITERS")).unwrap();
    let ptx = ptx.to_str().unwrap();
    let ran = cudasim(&["run", ptx, "--kernel", "fill_parts", "--grid", "4", "--args", "u32[32]>-", "i32:8"]);
    assert_eq!(ran.status.code(), Some(1), "{}", text(&ran.stderr));
    let out = text(&ran.stdout);
    assert!(out.contains("two CTAs write the same bytes") && out.contains("vector.cu:"), "{out}");
    for (args, reason) in [
        (&["run", ptx][..], "which kernel?"),
        (&["run", ptx, "--kernel", "nothing"], "add_f32"),
        (&["run", ptx, "--kernel", "fill_parts"], "takes 2 arguments"),
        (&["run", ptx, "--kernel", "fill_parts", "--args", "i32:1", "i32:8"], "argument 0"),
        (&["run", "/nowhere"], "/nowhere"),
        (&["report", ptx], "bug.ptx"),
    ] {
        let refused = cudasim(args);
        assert_eq!(refused.status.code(), Some(2), "{args:?}");
        assert!(text(&refused.stderr).contains(reason), "{args:?}: {}", text(&refused.stderr));
    }
}

#[test]
fn run_takes_fatbinaries_and_reads_registers_from_the_cubin_in_them() {
    let path = scratch("run.fatbin");
    std::fs::write(&path, common::file("vector.size.fatbin")).unwrap();
    let args = ["run", path.to_str().unwrap(), "--kernel", "fill_parts", "--args", "u32[8]", "i32:8"];
    let ran = cudasim(&args);
    assert!(ran.status.success(), "{}{}", text(&ran.stdout), text(&ran.stderr));
    let cubin = scratch("run.cubin");
    std::fs::write(&cubin, common::file("vector.cubin")).unwrap();
    let refused = cudasim(&["run", cubin.to_str().unwrap()]);
    assert!(text(&refused.stderr).contains("PTX is what can be executed"), "{}", text(&refused.stderr));
}

#[test]
fn env_puts_the_library_in_front_of_a_program() {
    let line = cudasim(&["env"]);
    // `cargo test` need not put the library beside the program; then the command says what does.
    if !line.status.success() {
        assert!(text(&line.stderr).contains("cargo build"), "{}", text(&line.stderr));
        return;
    }
    let out = text(&line.stdout);
    let folder =
        out.strip_prefix("export LD_LIBRARY_PATH='").and_then(|rest| rest.split('\'').next()).unwrap();
    assert!(Path::new(folder).join("libcuda.so.1").exists());
    let inside = cudasim(&["env", "sh", "-c", "echo $LD_LIBRARY_PATH"]);
    assert!(text(&inside.stdout).starts_with(folder));
}
