//! Records the commit, so that `qwenvl --version` and reports can name it. With the feature `cuda`, compiles the
//! CUDA kernels.

use std::process::Command;

#[cfg(feature = "cuda")]
#[path = "kernels/cuda/build.rs"]
mod cuda;

fn main() {
    println!("cargo:rerun-if-changed=.git/HEAD");
    let output = Command::new("git").args(["rev-parse", "--short=12", "HEAD"]).output();
    let commit = output.ok().filter(|o| o.status.success()).and_then(|o| String::from_utf8(o.stdout).ok());
    println!("cargo:rustc-env=QWENVL_COMMIT={}", commit.as_deref().map_or("unknown", str::trim));
    #[cfg(feature = "cuda")]
    cuda::build();
}
