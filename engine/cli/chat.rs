//! `qwenvl chat`: a conversation.

use std::fmt;
use std::io::{BufReader, IsTerminal, Write};
use std::process::ExitCode;

use anyhow::Context;
use qwenvl::prompt::{Message, Part};
use qwenvl::{Engine, EngineOptions, Error, Request};

use super::input::Lines;
use super::model::{ModelArgs, PictureArgs, SamplingArgs};
use super::output::{self, Waiting};

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
    /// Number the pictures and videos in the prompt: "Picture 1: ".
    #[arg(long)]
    add_vision_id: bool,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    pictures: PictureArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
}

const HELP: &str = "\
/image PATH   show a picture with the next question (path, URL or data: URI)
/video PATH   show a video file with it
/clear        forget the conversation
/help         this text
/exit         leave (also Ctrl-D)";

/// What helps when the context is full.
const CLEAR: &str = "/clear forgets the conversation, and --context N makes more room";

/// Runs the command. Where no person is watching, a question that failed makes the exit code 1.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let (checkpoint, mut frontend) = args.model.open()?;
    args.pictures.apply(frontend.processor_mut())?;
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
        let (command, path) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        match (command, path.trim()) {
            ("", _) => {}
            ("/exit", _) => break,
            ("/help", _) => output::note(HELP),
            ("/clear", _) => {
                history = opening.clone();
                pictures.clear();
            }
            ("/image" | "/video", "") => fail(&format_args!("{command} needs a path: {command} PATH")),
            ("/image", path) => pictures.push(Part::image(path)),
            ("/video", path) => pictures.push(Part::video(path)),
            (command, _) if command.starts_with('/') && command[1..].chars().all(char::is_alphabetic) => {
                fail(&format_args!("unknown command {command}\n{HELP}"));
            }
            _ => {
                let mut parts = std::mem::take(&mut pictures);
                parts.push(Part::text(line));
                history.push(Message::user(parts));
                match answer(&mut engine, &args, &history)? {
                    Ok(text) => history.push(Message::assistant(text)),
                    // The conversation goes on without the question that failed, and its pictures.
                    Err(error) => {
                        history.pop();
                        match error {
                            Error::Context { .. } => fail(&format_args!("{error}; {CLEAR}")),
                            error => fail(&error),
                        }
                    }
                }
            }
        }
    }
    Ok(if failed && !interactive { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Prints the answer as it comes. The inner error is that of the question, the outer one of standard
/// output.
fn answer(engine: &mut Engine, args: &Args, history: &[Message]) -> anyhow::Result<qwenvl::Result<String>> {
    let mut request = Request::new(history.to_vec());
    request.add_vision_id = args.add_vision_id;
    args.sampling.apply(&mut request);
    let waiting = Waiting::on("reading the question");
    let mut tokens = match engine.generate(&request) {
        Ok(tokens) => tokens,
        Err(error) => return Ok(Err(error)),
    };
    let first = tokens.next();
    drop(waiting);
    let mut stdout = output::stdout();
    let mut text = String::new();
    for token in first.into_iter().chain(&mut tokens) {
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
    if let Some(answer) = tokens.answer() {
        output::tell_cut(answer, request.max_tokens, CLEAR);
    }
    Ok(Ok(text))
}
