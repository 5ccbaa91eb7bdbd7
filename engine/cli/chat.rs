//! `qwenvl chat`: a conversation.

use std::fmt;
use std::io::{BufReader, IsTerminal, Write};
use std::process::ExitCode;

use anyhow::Context;
use qwenvl::prompt::{Message, Part};
use qwenvl::{Engine, EngineOptions, Request};

use super::input::Lines;
use super::model::{ModelArgs, SamplingArgs};
use super::output;

/// Arguments of `qwenvl chat`.
#[derive(clap::Args)]
pub struct Args {
    /// What the model is told to be.
    #[arg(long)]
    system: Option<String>,
    /// Room for this many tokens, the whole conversation with its pictures [default: the model's longest context, if
    /// that fits].
    #[arg(long, value_name = "N")]
    context: Option<usize>,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
}

const HELP: &str = "\
/image PATH   show a picture with the next question (path, URL or data: URI)
/clear        forget the conversation
/help         this text
/exit         leave (also Ctrl-D)";

/// Runs the command. Where no person is watching, a question that failed makes the exit code 1.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let (checkpoint, frontend) = args.model.open()?;
    let options = EngineOptions { context_tokens: args.context, ..EngineOptions::default() };
    let mut engine = args.model.load(checkpoint, frontend, options)?;
    let interactive = std::io::stdin().is_terminal();
    if interactive {
        output::note(HELP);
    }
    let opening: Vec<Message> = args.system.as_deref().map(Message::system).into_iter().collect();
    let mut history = opening.clone();
    let mut pictures: Vec<Part> = Vec::new();
    let mut lines = Lines::new(BufReader::new(std::io::stdin()));
    let mut failed = false;
    let mut fail = |problem: &dyn fmt::Display| {
        failed = true;
        output::note(format_args!("error: {problem}"));
    };
    loop {
        if interactive {
            let _ = write!(std::io::stderr(), "> ");
        }
        let Some(line) = lines.next().context("standard input")? else { break };
        let line = match &line {
            Ok(line) => line.trim(),
            Err(problem) => {
                fail(problem);
                continue;
            }
        };
        match line.split_once(' ').unwrap_or((line, "")) {
            ("", _) => {}
            ("/exit", _) => break,
            ("/help", _) => output::note(HELP),
            ("/clear", _) => {
                history = opening.clone();
                pictures.clear();
            }
            ("/image", path) if !path.trim().is_empty() => pictures.push(Part::image(path.trim())),
            (command, _) if command.starts_with('/') && command[1..].chars().all(char::is_alphabetic) => {
                fail(&format_args!("unknown command {command}\n{HELP}"));
            }
            _ => {
                let mut parts = std::mem::take(&mut pictures);
                parts.push(Part::text(line));
                history.push(Message::user(parts));
                match answer(&mut engine, &args.sampling, &history)? {
                    Ok(text) => history.push(Message::assistant(text)),
                    // The conversation goes on without the question that failed, and its pictures.
                    Err(error) => {
                        history.pop();
                        fail(&error);
                    }
                }
            }
        }
    }
    Ok(if failed && !interactive { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Prints the answer as it comes. The inner error is that of the question, the outer one of standard
/// output.
fn answer(
    engine: &mut Engine,
    sampling: &SamplingArgs,
    history: &[Message],
) -> anyhow::Result<qwenvl::Result<String>> {
    let mut request = Request::new(history.to_vec());
    sampling.apply(&mut request);
    let tokens = match engine.generate(&request) {
        Ok(tokens) => tokens,
        Err(error) => return Ok(Err(error)),
    };
    let mut stdout = output::stdout();
    let mut text = String::new();
    for token in tokens {
        match token {
            Ok(token) => {
                stdout.write_all(token.text.as_bytes())?;
                stdout.flush()?;
                text.push_str(&token.text);
            }
            Err(error) => {
                writeln!(stdout)?;
                return Ok(Err(error));
            }
        }
    }
    writeln!(stdout)?;
    stdout.flush()?;
    Ok(Ok(text))
}
