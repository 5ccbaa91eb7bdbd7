//! `qwenvl chat`: a conversation.

use std::io::{BufRead, IsTerminal, Write};
use std::process::ExitCode;

use qwenvl::prompt::{Message, Part};
use qwenvl::{DEFAULT_CONTEXT_TOKENS, Engine, EngineOptions, Request};

use super::model::{ModelArgs, SamplingArgs};

/// Arguments of `qwenvl chat`.
#[derive(clap::Args)]
pub struct Args {
    /// What the model is told to be.
    #[arg(long)]
    system: Option<String>,
    /// Room for this many tokens, the whole conversation with its pictures.
    #[arg(long, value_name = "N", default_value_t = DEFAULT_CONTEXT_TOKENS)]
    context: usize,
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

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let (checkpoint, frontend) = args.model.open()?;
    let options = EngineOptions { context_tokens: Some(args.context), ..EngineOptions::default() };
    let mut engine = args.model.load(checkpoint, frontend, options)?;
    let interactive = std::io::stdin().is_terminal();
    if interactive {
        eprintln!("{HELP}");
    }
    let opening: Vec<Message> = args.system.as_deref().map(Message::system).into_iter().collect();
    let mut history = opening.clone();
    let mut pictures: Vec<Part> = Vec::new();
    let mut lines = std::io::stdin().lock().lines();
    loop {
        if interactive {
            eprint!("> ");
        }
        let Some(line) = lines.next().transpose()? else { return Ok(ExitCode::SUCCESS) };
        let line = line.trim();
        match line.split_once(' ').unwrap_or((line, "")) {
            ("", _) => {}
            ("/exit", _) => return Ok(ExitCode::SUCCESS),
            ("/help", _) => eprintln!("{HELP}"),
            ("/clear", _) => {
                history = opening.clone();
                pictures.clear();
            }
            ("/image", path) if !path.trim().is_empty() => pictures.push(Part::image(path.trim())),
            (command, _) if command.starts_with('/') && command[1..].chars().all(char::is_alphabetic) => {
                eprintln!("unknown command {command}\n{HELP}");
            }
            _ => {
                let mut parts = pictures.clone();
                parts.push(Part::text(line));
                history.push(Message::user(parts));
                match answer(&mut engine, &args.sampling, &history) {
                    Ok(text) => {
                        history.push(Message::assistant(text));
                        pictures.clear();
                    }
                    // The conversation goes on without the question that failed.
                    Err(error) => {
                        history.pop();
                        eprintln!("error: {error:#}");
                    }
                }
            }
        }
    }
}

fn answer(engine: &mut Engine, sampling: &SamplingArgs, history: &[Message]) -> anyhow::Result<String> {
    let mut request = Request::new(history.to_vec());
    sampling.apply(&mut request);
    let mut stdout = std::io::stdout().lock();
    let mut text = String::new();
    for token in engine.generate(&request)? {
        let token = token?;
        stdout.write_all(token.text.as_bytes())?;
        stdout.flush()?;
        text.push_str(&token.text);
    }
    writeln!(stdout)?;
    Ok(text)
}
