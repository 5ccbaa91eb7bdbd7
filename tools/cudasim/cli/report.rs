//! `cudasim report`: what a run recorded.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use cudasim::driver::Run;

/// Shows the file that CUDASIM_REPORT wrote
#[derive(clap::Args)]
pub struct Args {
    /// The file
    file: PathBuf,
    /// Only launches of kernels whose name contains this
    #[arg(long)]
    kernel: Option<String>,
    /// Counts per source line too
    #[arg(long)]
    lines: bool,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let name = || args.file.display().to_string();
    let text = std::fs::read_to_string(&args.file).with_context(name)?;
    let mut run = Run::from_json(&text).with_context(name)?;
    if let Some(part) = &args.kernel {
        run.report.launches.retain(|launch| launch.kernel.contains(part.as_str()));
        run.faults.retain(|fault| fault.contains(part.as_str()));
    }
    print!("{}", run.report.table(args.lines));
    for fault in &run.faults {
        println!("{fault}");
    }
    Ok(if run.faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
