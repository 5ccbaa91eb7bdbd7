// Part of build.rs: `kernels/cuda/*.cu` to one fatbin each, `abi.h` to Rust.
//
// A fatbin holds a cubin for each of QWENVL_CUDA_ARCHS (80,86,89,90 unless set) and PTX for compute_80, compressed,
// with line numbers. Images are kept in `cuda-kernels` of the target folder under a hash of what they are made from,
// so that only what changed is compiled, whatever the profile.

use std::collections::hash_map::DefaultHasher;
use std::env;
use std::ffi::OsString;
use std::fmt::Write;
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Command, exit};
use std::sync::atomic::{AtomicUsize, Ordering};

const FOLDER: &str = "kernels/cuda";
const ARCHS: &str = "80,86,89,90";
/// The lowest architecture: its PTX is what newer ones compile when they load it.
const PTX_ARCH: &str = "80";

pub fn build() {
    for name in ["QWENVL_CUDA_ARCHS", "CUDA_HOME", "CUDA_PATH", "PATH", "LIBCLANG_PATH"] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    println!("cargo:rerun-if-changed={FOLDER}");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    // target/<profile>/build/<package>/out
    let kept = out.ancestors().nth(4).expect("cargo's layout").join("cuda-kernels");
    fs::create_dir_all(&kept).unwrap_or_else(|e| fail(&format!("{}: {e}", kept.display())));
    let archs = archs();
    let nvcc = find_nvcc();
    let version = nvcc_version(&nvcc);

    let mut sources = Vec::new();
    let mut shared = DefaultHasher::new();
    (&archs, version, 1).hash(&mut shared);
    let mut files: Vec<PathBuf> = fs::read_dir(FOLDER)
        .unwrap_or_else(|e| fail(&format!("{FOLDER}: {e}")))
        .map(|entry| entry.expect("a folder's entry").path())
        .collect();
    files.sort();
    for path in files {
        match path.extension().and_then(|e| e.to_str()) {
            Some("cu") => sources.push(path),
            Some("cuh" | "h") => fs::read(&path).expect("a header").hash(&mut shared),
            _ => {}
        }
    }
    let shared = shared.finish();
    let jobs = env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(1usize);
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..jobs.min(sources.len()) {
            scope.spawn(|| {
                while let Some(source) = sources.get(next.fetch_add(1, Ordering::Relaxed)) {
                    compile(&nvcc, source, &out, &kept, &archs, shared);
                }
            });
        }
    });
    fs::write(out.join("images.rs"), images(&sources, &out, &archs, version)).expect("writing images.rs");
    bind_abi(&out);
}

fn fail(message: &str) -> ! {
    eprintln!("{message}");
    exit(1)
}

fn archs() -> Vec<String> {
    let list = env::var("QWENVL_CUDA_ARCHS").unwrap_or_else(|_| ARCHS.into());
    let archs: Vec<String> =
        list.split(',').map(|a| a.trim().trim_start_matches("sm_").to_string()).collect();
    for arch in &archs {
        if !arch.parse::<u32>().is_ok_and(|n| n >= 80) {
            fail(&format!("QWENVL_CUDA_ARCHS: {arch:?} is no architecture from 80 on; write e.g. 80,90"));
        }
    }
    archs
}

/// CUDA_HOME and CUDA_PATH, then PATH, then where tools/cuda-toolchain puts it.
fn find_nvcc() -> PathBuf {
    let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(env::var_os);
    let mut places: Vec<PathBuf> = homes.map(|home| Path::new(&home).join("bin")).collect();
    places.extend(env::split_paths(&env::var_os("PATH").unwrap_or_default()));
    places.push(toolchain().join("nvidia/cu13/bin"));
    match places.iter().map(|place| place.join("nvcc")).find(|nvcc| nvcc.is_file()) {
        Some(nvcc) => nvcc,
        None => fail(
            "The feature `cuda` needs nvcc, found neither by CUDA_HOME nor on PATH nor under target/cuda.\n\
             Install a CUDA toolkit (12.0 or newer), or run tools/cuda-toolchain: it brings nvcc from PyPI.\n\
             Without the feature nothing of CUDA is needed.",
        ),
    }
}

fn toolchain() -> PathBuf {
    Path::new(&env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it")).join("target/cuda/wheels")
}

/// (13, 0) from "... release 13.0, V13.0.88".
fn nvcc_version(nvcc: &Path) -> (u32, u32) {
    let output = Command::new(nvcc).arg("--version").output();
    let text = match output {
        Ok(output) => String::from_utf8_lossy(&output.stdout).into_owned(),
        Err(e) => fail(&format!("{}: {e}", nvcc.display())),
    };
    let release = text.split("release ").nth(1).and_then(|rest| rest.split(',').next());
    let numbers = release.and_then(|r| r.split_once('.'));
    match numbers.and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?))) {
        Some(version) => version,
        None => fail(&format!("{} --version says nothing of a release:\n{text}", nvcc.display())),
    }
}

fn compile(nvcc: &Path, source: &Path, out: &Path, kept: &Path, archs: &[String], shared: u64) {
    let name = stem(source);
    let mut hasher = DefaultHasher::new();
    (shared, fs::read(source).expect("a source")).hash(&mut hasher);
    let key = format!("{name}-{:016x}", hasher.finish());
    let [image, log] = ["fatbin", "ptxas"].map(|suffix| kept.join(format!("{key}.{suffix}")));
    // The log is written last.
    if !(image.is_file() && log.is_file()) {
        run_nvcc(nvcc, source, &image, &log, archs);
    }
    for (from, suffix) in [(image, "fatbin"), (log, "ptxas")] {
        let to = out.join(format!("{name}.{suffix}"));
        fs::copy(&from, &to).unwrap_or_else(|e| fail(&format!("{}: {e}", to.display())));
    }
}

fn run_nvcc(nvcc: &Path, source: &Path, image: &Path, log: &Path, archs: &[String]) {
    let mut args: Vec<OsString> =
        ["-std=c++17", "-O3", "-lineinfo", "-Xptxas", "-v", "--fatbin", "-o"].map(OsString::from).to_vec();
    args.extend([image.into(), source.into()]);
    for arch in archs {
        args.extend(["-gencode".into(), format!("arch=compute_{arch},code=sm_{arch}").into()]);
    }
    args.extend(["-gencode".into(), format!("arch=compute_{PTX_ARCH},code=compute_{PTX_ARCH}").into()]);
    let output = match Command::new(nvcc).args(&args).output() {
        Ok(output) => output,
        Err(e) => fail(&format!("{}: {e}", nvcc.display())),
    };
    let text = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        fail(&format!("nvcc {}:\n{text}", source.display()));
    }
    for line in text.lines().filter(|line| line.contains("warning")) {
        println!("cargo:warning={line}");
    }
    fs::write(log, &*text).expect("writing to the target folder");
}

fn stem(path: &Path) -> String {
    path.file_stem().expect("a file").to_string_lossy().into_owned()
}

/// The images, and what ptxas says of each kernel on each architecture.
fn images(sources: &[PathBuf], out: &Path, archs: &[String], version: (u32, u32)) -> String {
    let mut text = format!(
        "/// Version of the compiler.\npub const NVCC: (u32, u32) = {version:?};\n\
         /// Architectures with machine code.\npub const ARCHS: &[u32] = &[{}];\n\
         /// One for each file of kernels.\npub static IMAGES: &[Image] = &[\n",
        archs.join(", ")
    );
    for source in sources {
        let name = stem(source);
        let log = fs::read_to_string(out.join(format!("{name}.ptxas"))).expect("written before");
        let image = out.join(format!("{name}.fatbin"));
        writeln!(text, "Image {{ name: {name:?}, bytes: include_bytes!({image:?}), resources: &[").unwrap();
        let (mut kernel, mut arch, mut spilled) = (String::new(), 0, 0);
        for line in log.lines() {
            // Compiling entry function 'k' for 'sm_80'
            if let Some(rest) = line.split("Compiling entry function '").nth(1) {
                let mut parts = rest.split('\'');
                kernel = parts.next().unwrap_or_default().to_string();
                arch = parts.nth(1).and_then(|a| a.trim_start_matches("sm_").parse().ok()).unwrap_or(0);
            // 0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
            } else if line.contains("bytes spill stores") {
                let number = |part: &str| part.split_whitespace().next().and_then(|n| n.parse::<u32>().ok());
                spilled = line.split(',').skip(1).filter_map(number).sum();
            // Used 63 registers, used 1 barriers, 32 bytes smem, ...
            } else if let Some(rest) = line.split("Used ").nth(1) {
                let before = |unit: &str| {
                    let part = rest.split(',').find(|part| part.trim_end().ends_with(unit));
                    part.and_then(|p| p.split_whitespace().find_map(|w| w.parse::<u32>().ok())).unwrap_or(0)
                };
                let (registers, shared_bytes) = (before("registers"), before("bytes smem"));
                writeln!(
                    text,
                    "Resources {{ kernel: {kernel:?}, arch: {arch}, registers: {registers}, \
                     spilled_bytes: {spilled}, shared_bytes: {shared_bytes} }},"
                )
                .unwrap();
            }
        }
        text.push_str("] },\n");
    }
    text.push_str("];\n");
    text
}

fn bind_abi(out: &Path) {
    let wheel = toolchain().join("clang/native");
    if env::var_os("LIBCLANG_PATH").is_none() && wheel.is_dir() {
        // SAFETY: no other thread runs: those of the compilation have ended.
        unsafe { env::set_var("LIBCLANG_PATH", wheel) };
    }
    let bindings = bindgen::Builder::default()
        .header(format!("{FOLDER}/abi.h"))
        .default_enum_style(bindgen::EnumVariation::Consts)
        .prepend_enum_name(false)
        .derive_default(true)
        .generate();
    match bindings {
        Ok(bindings) => bindings.write_to_file(out.join("abi.rs")).expect("writing abi.rs"),
        Err(e) => fail(&format!(
            "bindgen on {FOLDER}/abi.h: {e}\nIt needs libclang: set LIBCLANG_PATH, or run tools/cuda-toolchain."
        )),
    }
}
