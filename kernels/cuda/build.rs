// Part of build.rs: `kernels/cuda/*.cu` to one fatbin each, `abi.h` to Rust.
//
// A fatbin holds a cubin for each of QWENVL_CUDA_ARCHS (80,86,89,90 unless set) and PTX, compressed, with line numbers:
// for compute_80, and with 86, 89, 120 or 121 also for compute_86, whose kernels keep within 99 KiB of shared memory.
// nvcc makes PTX, which is written down as the oldest version that has its instructions; an assembler that may be older
// than nvcc (PTXAS) makes machine code of it, and of the assembler's version is the oldest driver.
// Images are kept in `cuda-kernels` of the target folder under a hash of what they are made from, so that only what
// changed is compiled, whatever the profile. Files are compiled side by side. A kernel that spills on one of those four,
// or keeps an array in local memory, fails the build. Beside each image lies the PTX for compute_80 as text, which tests
// take apart.

use std::collections::hash_map::DefaultHasher;
use std::env;
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
const NVCC_FLAGS: [&str; 5] = ["-std=c++17", "-O3", "-fmad=false", "-lineinfo", "-ptx"];
const PTXAS_FLAGS: [&str; 4] = ["-m64", "-O3", "-v", "--generate-line-info"];
/// What PTX is written down as: all that the kernels use is in that of CUDA 12.0. Architectures from 100 on are not.
const PTX_VERSION: &str = "8.0";
const PTX_VERSION_100: &str = "8.8";

pub fn build() {
    for name in ["QWENVL_CUDA_ARCHS", "CUDA_HOME", "CUDA_PATH", "PTXAS", "PATH", "LIBCLANG_PATH"] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    println!("cargo:rerun-if-changed={FOLDER}");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    // target/<profile>/build/<package>/out
    let kept = out.ancestors().nth(4).expect("cargo's layout").join("cuda-kernels");
    fs::create_dir_all(&kept).unwrap_or_else(|e| fail(&format!("{}: {e}", kept.display())));
    let archs = archs();
    let tools = Tools::find();

    let mut sources = Vec::new();
    let mut shared = DefaultHasher::new();
    (&archs, tools.nvcc_version, tools.ptxas_version).hash(&mut shared);
    (NVCC_FLAGS, PTXAS_FLAGS, PTX_VERSION, PTX_VERSION_100).hash(&mut shared);
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
                    compile(&tools, source, &out, &kept, &archs, shared);
                }
            });
        }
    });
    fs::write(out.join("images.rs"), images(&sources, &out, &archs, &tools)).expect("writing images.rs");
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

/// The programs of a CUDA toolkit, and the versions of two of them.
struct Tools {
    nvcc: PathBuf,
    nvcc_version: (u32, u32),
    ptxas: PathBuf,
    ptxas_version: (u32, u32),
    fatbinary: PathBuf,
}

impl Tools {
    /// nvcc by CUDA_HOME and CUDA_PATH, then on PATH, then where tools/cuda-toolchain puts it; the assembler by PTXAS, else
    /// beside it.
    fn find() -> Tools {
        let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(env::var_os);
        let mut places: Vec<PathBuf> = homes.map(|home| Path::new(&home).join("bin")).collect();
        places.extend(env::split_paths(&env::var_os("PATH").unwrap_or_default()));
        let own = toolchain().join("nvidia/cu13/bin");
        places.push(own.clone());
        let Some(bin) = places.into_iter().find(|place| place.join("nvcc").is_file()) else {
            fail(
                "The feature `cuda` needs nvcc, found neither by CUDA_HOME nor on PATH nor under target/cuda.\n\
                 Install a CUDA toolkit (12.0 or newer), or run tools/cuda-toolchain: it brings nvcc from PyPI.\n\
                 Without the feature nothing of CUDA is needed.",
            )
        };
        let ptxas = match env::var_os("PTXAS") {
            Some(ptxas) => ptxas.into(),
            None if bin == own => toolchain().join("nvidia/cuda_nvcc/bin/ptxas"),
            None => bin.join("ptxas"),
        };
        let nvcc = bin.join("nvcc");
        Tools {
            nvcc_version: release(&nvcc),
            ptxas_version: release(&ptxas),
            fatbinary: bin.join("fatbinary"),
            nvcc,
            ptxas,
        }
    }
}

fn toolchain() -> PathBuf {
    Path::new(&env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it")).join("target/cuda/wheels")
}

/// (13, 0) from "... release 13.0, V13.0.88".
fn release(program: &Path) -> (u32, u32) {
    let text = run(Command::new(program).arg("--version"));
    let release = text.split("release ").nth(1).and_then(|rest| rest.split(',').next());
    let numbers = release.and_then(|r| r.split_once('.'));
    match numbers.and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?))) {
        Some(version) => version,
        None => fail(&format!("{} --version says nothing of a release:\n{text}", program.display())),
    }
}

/// What a program says on both of its outputs.
fn run(command: &mut Command) -> String {
    let program = Path::new(command.get_program()).display().to_string();
    let output = match command.output() {
        Ok(output) => output,
        Err(e) => fail(&format!("{program}: {e}")),
    };
    let text =
        [output.stdout, output.stderr].map(|part| String::from_utf8_lossy(&part).into_owned()).concat();
    if !output.status.success() {
        let args: Vec<_> = command.get_args().map(|a| a.to_string_lossy()).collect();
        fail(&format!("{program} {}:\n{text}", args.join(" ")));
    }
    for line in text.lines().filter(|line| line.contains("warning")) {
        println!("cargo:warning={line}");
    }
    text
}

fn compile(tools: &Tools, source: &Path, out: &Path, kept: &Path, archs: &[String], shared: u64) {
    let name = stem(source);
    let mut hasher = DefaultHasher::new();
    (shared, fs::read(source).expect("a source")).hash(&mut hasher);
    let key = format!("{name}-{:016x}", hasher.finish());
    let [image, ptx, log] = ["fatbin", "ptx", "ptxas"].map(|suffix| kept.join(format!("{key}.{suffix}")));
    // The log is written last.
    if !(image.is_file() && ptx.is_file() && log.is_file()) {
        let between = kept.join(format!("{key}.{}", std::process::id()));
        fs::create_dir_all(&between).unwrap_or_else(|e| fail(&format!("{}: {e}", between.display())));
        let text = make_image(tools, source, &image, &between, archs);
        let made = between.join(format!("{PTX_ARCH}.ptx"));
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
fn make_image(tools: &Tools, source: &Path, image: &Path, between: &Path, archs: &[String]) -> String {
    let small = archs.iter().any(|arch| SMALL_ARCHS.contains(&arch.as_str()));
    let in_ptx = [Some(PTX_ARCH), small.then_some(SMALL_PTX_ARCH)];
    let in_ptx: Vec<&str> = in_ptx.into_iter().flatten().collect();
    let mut all: Vec<&str> = archs.iter().map(String::as_str).chain(in_ptx.iter().copied()).collect();
    all.sort_unstable();
    all.dedup();
    let (mut said, mut parts) = (String::new(), Vec::new());
    for arch in all {
        let file = |suffix: &str| between.join(format!("{arch}.{suffix}"));
        let (ptx, cubin) = (file("ptx"), file("cubin"));
        let mut nvcc = Command::new(&tools.nvcc);
        run(nvcc.args(NVCC_FLAGS).arg(format!("-arch=compute_{arch}")).arg("-o").arg(&ptx).arg(source));
        write_down(&ptx, arch);
        if in_ptx.contains(&arch) {
            parts.push(format!("--image3=kind=ptx,sm={arch},file={}", ptx.display()));
        }
        if archs.iter().any(|own| own == arch) {
            let mut ptxas = Command::new(&tools.ptxas);
            ptxas.args(PTXAS_FLAGS).arg(format!("-arch=sm_{arch}")).arg("-o").arg(&cubin).arg(&ptx);
            said.push_str(&run(&mut ptxas));
            parts.push(format!("--image3=kind=elf,sm={arch},file={}", cubin.display()));
        }
    }
    let mut fatbinary = Command::new(&tools.fatbinary);
    fatbinary.arg(format!("--create={}", image.display())).args(["-64", "--compress-all"]);
    if tools.nvcc_version.0 >= 13 {
        fatbinary.arg("--compress-mode=speed"); // the one that older drivers know
    }
    run(fatbinary.args(parts));
    said
}

/// Writes PTX down as an older version: no instruction of it is new, nor anything else but a remark on unused bytes.
fn write_down(ptx: &Path, arch: &str) {
    let text = fs::read_to_string(ptx).unwrap_or_else(|e| fail(&format!("{}: {e}", ptx.display())));
    let version = if arch.len() > 2 { PTX_VERSION_100 } else { PTX_VERSION };
    let older = text.lines().filter(|line| !line.contains(".pragma \"used_bytes_mask")).map(|line| {
        let is_version = line.starts_with(".version ");
        if is_version { format!(".version {version}\n") } else { format!("{line}\n") }
    });
    let older: String = older.collect();
    fs::write(ptx, older).unwrap_or_else(|e| fail(&format!("{}: {e}", ptx.display())));
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
fn images(sources: &[PathBuf], out: &Path, archs: &[String], tools: &Tools) -> String {
    let Tools { nvcc_version, ptxas_version, .. } = tools;
    let mut text = format!(
        "/// Version of the compiler.\npub const NVCC: (u32, u32) = {nvcc_version:?};\n\
         /// Version of the assembler.\npub const PTXAS: (u32, u32) = {ptxas_version:?};\n\
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
