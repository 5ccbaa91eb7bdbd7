//! A process for each test, and a few shorthands.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaFunction, CudaModule, DriverError, LaunchConfig, sys::CUresult};
use cudarc::nvrtc::Ptx;

/// Set to the name of the test in the process that runs it.
const CHILD: &str = "DRIVER_TEST_CHILD";

/// Runs `body` in a process of its own with the stand-in in place of the driver. `name` is the path of the test.
pub fn on_device(name: &str, settings: &[(&str, &str)], body: impl FnOnce()) {
    if std::env::var(CHILD).is_ok_and(|own| own == name) {
        return body();
    }
    let output = child(name, settings);
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{name} failed in its process: {}\n{out}\n{err}", output.status);
    assert!(out.contains("1 passed"), "{name} did not run:\n{out}\n{err}");
}

/// The same for a test that looks at how its process ended: returns `None` in that process.
pub fn outcome(name: &str, settings: &[(&str, &str)], body: impl FnOnce()) -> Option<Output> {
    if std::env::var(CHILD).is_ok_and(|own| own == name) {
        body();
        return None;
    }
    Some(child(name, settings))
}

fn child(name: &str, settings: &[(&str, &str)]) -> Output {
    Command::new(std::env::current_exe().unwrap())
        .args([name, "--exact", "--nocapture", "--test-threads=1"])
        .env("LD_LIBRARY_PATH", library_folder())
        .env(CHILD, name)
        .envs(settings.iter().copied())
        .output()
        .unwrap()
}

/// A folder in which the stand-in has the driver's name.
fn library_folder() -> PathBuf {
    let built = std::env::current_exe().unwrap().with_file_name("libcudasim.so");
    assert!(built.exists(), "{} is not built", built.display());
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("libcuda-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let link = folder.join("libcuda.so.1");
    if !link.exists() {
        // Two tests may race for it; either link is right.
        let _ = std::os::unix::fs::symlink(&built, &link);
    }
    folder
}

/// A module of `tests/kernels/ptx`, compiled by nvcc 13 at -O3.
pub fn module(context: &Arc<CudaContext>, name: &str) -> Arc<CudaModule> {
    load(context, &crate::common::ptx(&format!("{name}.nvcc13.O3"))).unwrap()
}

/// A module from PTX text.
pub fn load(context: &Arc<CudaContext>, text: &str) -> Result<Arc<CudaModule>, DriverError> {
    context.load_module(Ptx::from_src(text))
}

/// A kernel of a module of `tests/kernels/ptx`.
pub fn kernel(context: &Arc<CudaContext>, module: &str, name: &str) -> CudaFunction {
    self::module(context, module).load_function(name).unwrap()
}

/// A launch of so many blocks of so many threads.
pub fn config(grid: u32, block: u32) -> LaunchConfig {
    LaunchConfig { grid_dim: (grid, 1, 1), block_dim: (block, 1, 1), shared_mem_bytes: 0 }
}

/// The code of a result that must be an error.
pub fn code<T>(result: Result<T, DriverError>) -> CUresult {
    match result {
        Ok(_) => panic!("this should fail"),
        Err(error) => error.0,
    }
}
