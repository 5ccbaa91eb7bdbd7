//! `cudasim`: runs a kernel from the command line, shows what a run recorded, says how to put the stand-in driver in
//! front of a program.

mod cli;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// A simulated CUDA GPU: executes PTX on the CPU, checks it and counts.
#[derive(Parser)]
#[command(version)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run one kernel of a PTX file or fatbinary
    Run(cli::run::Args),
    /// Show the file that CUDASIM_REPORT wrote
    Report(cli::report::Args),
    /// Say how a program finds the stand-in driver, or run one with it
    Env(cli::env::Args),
}

fn main() -> ExitCode {
    let result = match Args::parse().command {
        Command::Run(args) => cli::run::run(&args),
        Command::Report(args) => cli::report::run(&args),
        Command::Env(args) => cli::env::run(&args),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("cudasim: {error:#}");
            ExitCode::from(2)
        }
    }
}
