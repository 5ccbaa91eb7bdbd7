//! One file per command.

// They panic where nobody reads: `output::stdout` and `output::note` do not.
#![deny(clippy::print_stdout, clippy::print_stderr, clippy::dbg_macro)]

mod batch;
mod bench;
mod boxes;
mod chat;
mod check;
mod input;
mod model;
mod output;
mod plan;
mod run;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Runs Qwen2-VL: pictures and text in, text out.
///
/// Without --model, a small trained Qwen2-VL that is part of this program answers. It knows coloured
/// shapes and short texts. For a real one, download a checkpoint directory from the hub
/// (Qwen/Qwen2-VL-2B-Instruct-AWQ and its siblings) and pass it with --model.
#[derive(Parser)]
#[command(name = "qwenvl", version = concat!(env!("CARGO_PKG_VERSION"), " (", env!("QWENVL_COMMIT"), ")"), after_help = EXAMPLES)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  qwenvl run --image photo.jpg \"Describe this image.\"
  qwenvl run --model Qwen2-VL-2B-Instruct-AWQ --image a.png --image b.png \"What changed?\"
  qwenvl chat --model Qwen2-VL-7B-Instruct
  qwenvl batch requests.jsonl --output answers.jsonl
  qwenvl bench --model Qwen2-VL-2B-Instruct-AWQ --input 1,6144 --output 256
  qwenvl plan --model Qwen2-VL-72B-Instruct-AWQ --device a100-80g --context 32768";

#[derive(Subcommand)]
enum Command {
    /// Answer one question, streamed.
    Run(Box<run::Args>),
    /// Hold a conversation.
    Chat(chat::Args),
    /// Answer many requests from a file, several at a time.
    Batch(batch::Args),
    /// Measure prefill and decoding at the model card's inputs, beside its numbers.
    ///
    /// Prompts are random tokens, answers have the length that is asked for. A row has the time of the prefill, the
    /// rate of decoding alone with the bytes that it reads, and, as the card's table, all tokens generated over the time
    /// of everything.
    Bench(bench::Args),
    /// Look for GPUs and test every kernel on each.
    Check(check::Args),
    /// Show what would run, what memory it needs, and how fast it could be at best.
    Plan(plan::Args),
}

/// Runs the command; the exit code is 0 if all went well.
pub fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    match cli.command {
        Command::Run(args) => run::run(*args),
        Command::Chat(args) => chat::run(args),
        Command::Batch(args) => batch::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Check(args) => check::run(args),
        Command::Plan(args) => plan::run(args),
    }
}

/// Tells why a command ended early. A reader of the output that has seen enough is no failure.
pub fn failure(error: &anyhow::Error) -> ExitCode {
    if output::is_closed(error) {
        return ExitCode::SUCCESS;
    }
    output::note(format_args!("error: {}", output::describe(error)));
    ExitCode::FAILURE
}
