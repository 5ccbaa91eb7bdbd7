//! `qwenvl check`: what this build runs on here, and whether its kernels compute what they should.

use std::io::Write;
use std::process::ExitCode;

use qwenvl::host;
use qwenvl::kernels::cpu::Isa;
use serde_json::{Value, json};

use super::output;

/// Arguments of `qwenvl check`.
#[derive(clap::Args)]
pub struct Args {
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// Runs the command. The exit code is 1 if a device cannot be used or a kernel's results are wrong.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let mut out = output::stdout();
    let mut report = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "commit": env!("QWENVL_COMMIT"),
        "cpu": { "threads": host::threads(), "instruction_set": Isa::detect().name() },
    });
    if !args.json {
        writeln!(out, "qwenvl {} ({})", env!("CARGO_PKG_VERSION"), env!("QWENVL_COMMIT"))?;
        writeln!(out, "cpu     {} threads, {}", host::threads(), Isa::detect().name())?;
    }
    let passed = cuda(&mut report, (!args.json).then_some(&mut out))?;
    report["passed"] = passed.into();
    if args.json {
        writeln!(out, "{report}")?;
    }
    out.flush()?;
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[cfg(not(feature = "cuda"))]
fn cuda(report: &mut Value, out: Option<&mut impl Write>) -> std::io::Result<bool> {
    report["cuda"] = Value::Null;
    if let Some(out) = out {
        writeln!(out, "CUDA    not in this build: build with --features cuda")?;
    }
    Ok(true)
}

/// Lines as they come if there is an `out`; everything in `report`.
#[cfg(feature = "cuda")]
fn cuda(report: &mut Value, mut out: Option<&mut impl Write>) -> std::io::Result<bool> {
    use qwenvl::exec::cuda as exec;
    use qwenvl::kernels::cuda::{
        ARCHS, DRIVER_FLOOR, DRIVER_FLOOR_PTX, NVCC, PTXAS, linux_driver, machine_code,
    };

    macro_rules! say {
        ($($arg:tt)*) => {
            if let Some(out) = out.as_mut() {
                writeln!(out, $($arg)*)?;
                out.flush()?;
            }
        };
    }
    let version = |v: (u32, u32)| format!("{}.{}", v.0, v.1);
    let archs: Vec<String> = ARCHS.iter().map(|a| format!("sm_{a}")).collect();
    report["cuda"] = json!({
        "nvcc": version(NVCC),
        "ptxas": version(PTXAS),
        "architectures": archs,
        "ptx": "compute_80",
        "driver_floor": version(DRIVER_FLOOR),
        "driver_floor_ptx": version(DRIVER_FLOOR_PTX),
        "driver": null,
        "devices": [],
    });
    say!("CUDA    kernels of nvcc {} for {}, and PTX for newer ones", version(NVCC), archs.join(", "));
    let (n, driver) = match exec::driver() {
        Ok(found) => found,
        Err(error) => {
            report["cuda"]["error"] = error.to_string().into();
            say!("driver  none: {error}");
            // Without a driver there is no GPU that could fail; with one that fails there is.
            return Ok(matches!(error, qwenvl::Error::Unsupported { .. }));
        }
    };
    report["cuda"]["driver"] = version(driver).into();
    say!(
        "driver  CUDA {}; needed {} (Linux driver {})",
        version(driver),
        version(DRIVER_FLOOR),
        linux_driver(DRIVER_FLOOR)
    );
    if n == 0 {
        say!("no device");
    }
    let mut all_passed = true;
    for ordinal in 0..n {
        let mut device = json!({ "ordinal": ordinal });
        let asked =
            exec::Gpu::open(ordinal).and_then(|gpu| Ok((gpu.device()?, gpu.capability()?, gpu.memory()?)));
        match asked {
            Ok((found, (major, minor), (free, total))) => {
                device["name"] = found.name.clone().into();
                device["compute_capability"] = version((major, minor)).into();
                device["free_bytes"] = free.into();
                device["total_bytes"] = total.into();
                let code = machine_code(major * 10 + minor).map(|code| format!("sm_{code}"));
                device["runs"] = code.as_deref().unwrap_or("ptx").into();
                let gib = |bytes: u64| bytes as f64 / (1u64 << 30) as f64;
                say!(
                    "\n{}: sm_{major}{minor} ({}), {:.1} of {:.1} GiB free",
                    found.name,
                    match code {
                        Some(code) => format!("machine code for {code}"),
                        None => "compiled from PTX by the driver, at the first start".into(),
                    },
                    gib(free),
                    gib(total)
                );
                match exec::self_test(ordinal) {
                    Ok(tests) => {
                        for t in &tests {
                            let verdict = if t.passed() { "PASS" } else { "FAIL" };
                            let numbers = t.activation.name();
                            say!("{verdict}  {:<13} {numbers:<5} {:<42} {:.2}", t.kernel, t.job, t.worst);
                        }
                        let failed = tests.iter().filter(|t| !t.passed()).count();
                        say!(
                            "{} of {} uses of kernels are within what their roundings allow (1.00)",
                            tests.len() - failed,
                            tests.len()
                        );
                        all_passed &= failed == 0;
                        let object = |t: &exec::KernelTest| {
                            json!({
                                "kernel": t.kernel,
                                "job": t.job,
                                "activation": t.activation.name(),
                                "worst": if t.worst.is_finite() { t.worst.into() } else { Value::Null },
                                "passed": t.passed(),
                            })
                        };
                        device["tests"] = tests.iter().map(object).collect();
                    }
                    Err(error) => {
                        device["error"] = error.to_string().into();
                        say!("FAIL  {error}");
                        all_passed = false;
                    }
                }
            }
            Err(error) => {
                device["error"] = error.to_string().into();
                say!("\ncuda:{ordinal}: FAIL  {error}");
                all_passed = false;
            }
        }
        report["cuda"]["devices"].as_array_mut().expect("made above").push(device);
    }
    Ok(all_passed)
}
