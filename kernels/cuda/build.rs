// Part of build.rs: `kernels/cuda/*.cu` to one fatbin each, `abi.h` to Rust.
//
// A fatbin holds a cubin for each of QWENVL_CUDA_ARCHS (80,86,89,90 unless set) and PTX, compressed, with line numbers:
// for compute_80, and with 86, 89, 120 or 121 also for compute_86, whose kernels keep within 99 KiB of shared memory.
// Images are kept in `cuda-kernels` of the target folder under a hash of what they are made from, so that only what
// changed is compiled, whatever the profile. Files are compiled side by side. A kernel that spills on one of those four,
// or keeps an array in local memory, fails the build. Beside each image lies the PTX for compute_80 as text, which tests
// take apart.

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
/// The lowest architecture: its PTX is what architectures without machine code compile when they load it.
const PTX_ARCH: &str = "80";
/// The lowest with little shared memory, and those that share its choices.
const SMALL_PTX_ARCH: &str = "86";
const SMALL_ARCHS: [&str; 4] = ["86", "89", "120", "121"];

/// No product is joined with a sum but where the source says so: which are would else be up to the compiler, from kernel
/// to kernel, where several promise the same bits.
const NVCC_FLAGS: [&str; 8] =
    ["-std=c++17", "-O3", "-fmad=false", "-lineinfo", "-Xptxas", "-v", "--fatbin", "--keep"];

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
    (&archs, version, NVCC_FLAGS).hash(&mut shared);
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
    let [image, ptx, log] = ["fatbin", "ptx", "ptxas"].map(|suffix| kept.join(format!("{key}.{suffix}")));
    // The log is written last.
    if !(image.is_file() && ptx.is_file() && log.is_file()) {
        let between = kept.join(format!("{key}.{}", std::process::id()));
        fs::create_dir_all(&between).unwrap_or_else(|e| fail(&format!("{}: {e}", between.display())));
        let text = run_nvcc(nvcc, source, &image, &between, archs);
        // As nvcc names it when there are several architectures, or one.
        let names = [format!("{name}.compute_{PTX_ARCH}.ptx"), format!("{name}.ptx")];
        let made = names.iter().map(|name| between.join(name)).find(|path| path.is_file());
        let made = made.unwrap_or_else(|| fail(&format!("nvcc left no PTX in {}", between.display())));
        fs::copy(made, &ptx).unwrap_or_else(|e| fail(&format!("{}: {e}", ptx.display())));
        let _ = fs::remove_dir_all(&between);
        for r in resources(&text).filter(|r| r.spilled_bytes + r.stack_bytes > 0) {
            let what = format!(
                "{}: {} on sm_{}: {} bytes of registers spill, stack of {}",
                source.display(),
                r.kernel,
                r.arch,
                r.spilled_bytes,
                r.stack_bytes
            );
            // Kernels are made to fit the registers of these; on others they run all the same.
            if ARCHS.split(',').any(|arch| arch.parse() == Ok(r.arch)) {
                fail(&what);
            }
            println!("cargo:warning={what}");
        }
        fs::write(&log, text).expect("writing to the target folder");
    }
    for (from, suffix) in [(image, "fatbin"), (ptx, "ptx"), (log, "ptxas")] {
        let to = out.join(format!("{name}.{suffix}"));
        fs::copy(&from, &to).unwrap_or_else(|e| fail(&format!("{}: {e}", to.display())));
    }
}

/// Makes the image, with what lies between in the folder `between`. What ptxas says.
fn run_nvcc(nvcc: &Path, source: &Path, image: &Path, between: &Path, archs: &[String]) -> String {
    let mut args: Vec<OsString> = NVCC_FLAGS.map(OsString::from).to_vec();
    args.extend(["--keep-dir".into(), between.into(), "-o".into(), image.into(), source.into()]);
    for arch in archs {
        args.extend(["-gencode".into(), format!("arch=compute_{arch},code=sm_{arch}").into()]);
    }
    let small = archs.iter().any(|arch| SMALL_ARCHS.contains(&arch.as_str()));
    for arch in [Some(PTX_ARCH), small.then_some(SMALL_PTX_ARCH)].into_iter().flatten() {
        args.extend(["-gencode".into(), format!("arch=compute_{arch},code=compute_{arch}").into()]);
    }
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
    text.into_owned()
}

/// What ptxas says of a kernel on an architecture.
#[derive(Default)]
struct Resources {
    kernel: String,
    arch: u32,
    registers: u32,
    stack_bytes: u32,
    spilled_bytes: u32,
    shared_bytes: u32,
}

fn resources(log: &str) -> impl Iterator<Item = Resources> + '_ {
    let mut r = Resources::default();
    log.lines().filter_map(move |line| {
        // Compiling entry function 'k' for 'sm_80'
        if let Some(rest) = line.split("Compiling entry function '").nth(1) {
            let mut parts = rest.split('\'');
            r = Resources { kernel: parts.next().unwrap_or_default().to_string(), ..Default::default() };
            r.arch = parts.nth(1).and_then(|a| a.trim_start_matches("sm_").parse().ok()).unwrap_or(0);
        // 0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
        } else if line.contains("bytes spill stores") {
            let number = |part: &str| part.split_whitespace().next().and_then(|n| n.parse::<u32>().ok());
            let numbers: Vec<u32> = line.split(',').filter_map(number).collect();
            r.stack_bytes = numbers.first().copied().unwrap_or(0);
            r.spilled_bytes = numbers.iter().skip(1).sum();
        // Used 63 registers, used 1 barriers, 32 bytes smem, ...
        } else if let Some(rest) = line.split("Used ").nth(1) {
            let before = |unit: &str| {
                let part = rest.split(',').find(|part| part.trim_end().ends_with(unit));
                part.and_then(|p| p.split_whitespace().find_map(|w| w.parse::<u32>().ok())).unwrap_or(0)
            };
            (r.registers, r.shared_bytes) = (before("registers"), before("bytes smem"));
            return Some(std::mem::take(&mut r));
        }
        None
    })
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
        writeln!(
            text,
            "Image {{ name: {name:?}, bytes: &Aligned(*include_bytes!({image:?})).0, resources: &["
        )
        .unwrap();
        for Resources { kernel, arch, registers, spilled_bytes, shared_bytes, .. } in resources(&log) {
            writeln!(
                text,
                "Resources {{ kernel: {kernel:?}, arch: {arch}, registers: {registers}, \
                 spilled_bytes: {spilled_bytes}, shared_bytes: {shared_bytes} }},"
            )
            .unwrap();
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
