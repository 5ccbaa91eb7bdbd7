//! `cudasim env`: how a program finds the stand-in driver.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

/// Prints the loader line, or runs a program with it
///
/// Without a program: a line for the shell, as in `eval "$(cudasim env)"`. With one: runs it, as in
/// `CUDASIM_DEVICE=h100 cudasim env ./program --option`.
#[derive(clap::Args)]
pub struct Args {
    /// Program and its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    program: Vec<String>,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let folder = library_folder()?;
    let mut path = folder.clone().into_os_string();
    if let Some(old) = std::env::var_os("LD_LIBRARY_PATH").filter(|old| !old.is_empty()) {
        path.push(":");
        path.push(old);
    }
    let Some((program, rest)) = args.program.split_first() else {
        let quoted = folder.display().to_string().replace('\'', r"'\''");
        println!("export LD_LIBRARY_PATH='{quoted}'${{LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}}");
        return Ok(ExitCode::SUCCESS);
    };
    let error = std::process::Command::new(program).args(rest).env("LD_LIBRARY_PATH", path).exec();
    Err(error).with_context(|| program.clone())
}

/// The folder, beside this program, in which the library has the driver's names.
fn library_folder() -> Result<PathBuf> {
    let own = std::env::current_exe().context("where this program lies")?;
    let library = own.with_file_name("libcudasim.so");
    if !library.exists() {
        bail!("{} does not exist; `cargo build --release -p cudasim` makes it", library.display());
    }
    let folder = own.with_file_name("libcuda");
    std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    // A driver's own files have both names, and programs ask for either first.
    for name in ["libcuda.so.1", "libcuda.so"] {
        let link = folder.join(name);
        if link.symlink_metadata().is_err() {
            std::os::unix::fs::symlink("../libcudasim.so", &link)
                .with_context(|| link.display().to_string())?;
        }
    }
    Ok(folder)
}
