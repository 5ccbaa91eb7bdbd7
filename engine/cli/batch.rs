//! `qwenvl batch`: many requests from a file.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, anyhow, bail};
use qwenvl::{Engine, EngineOptions, Event, Frontend, Prepared, Request, RequestId};
use serde_json::{Value, json};
use xxhash_rust::xxh3::xxh3_64;

use super::input::{Lines, MAX_LINE_BYTES};
use super::model::{ModelArgs, PictureArgs, directory_of};
use super::output;

/// Requests that are made ready at the same time, beyond those that are answered.
const PREPARERS: usize = 4;

/// Answers that may wait behind a slow one, for each request that is worked on.
const WAITING_PER_REQUEST: usize = 4;

/// How the lines of an output file begin: their keys are sorted.
const ANSWER_STARTS: [&[u8]; 2] = [b"{\"boxes\":", b"{\"custom_id\":"];

/// Arguments of `qwenvl batch`.
#[derive(clap::Args)]
#[command(after_help = FORMAT)]
pub struct Args {
    /// A file with one JSON object per line; - for standard input.
    requests: PathBuf,
    /// Write the answers to this file instead of standard output. One that holds something is refused, unless
    /// --resume or --overwrite says what to do with it.
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Go on with an output file that an earlier run left: requests that it answers, errors included, are
    /// not asked again. They must be the same as then.
    #[arg(long, requires = "output", conflicts_with = "overwrite")]
    resume: bool,
    /// Ask requests again that failed in the earlier run. These may have been changed since.
    #[arg(long, requires = "resume")]
    retry_errors: bool,
    /// Begin anew, whatever the output file holds.
    #[arg(long, requires = "output")]
    overwrite: bool,
    /// Requests to work on at the same time.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=4096))]
    parallel: u16,
    /// Room for this many tokens in each request, prompt and answer together [default: the model's longest context, if
    /// that fits].
    #[arg(long, value_name = "N")]
    context: Option<usize>,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    pictures: PictureArgs,
}

const FORMAT: &str = "\
A line:
  {\"custom_id\": \"a\", \"messages\": [{\"role\": \"user\", \"content\": [
     {\"type\": \"image\", \"image\": \"cat.jpg\"}, {\"type\": \"text\", \"text\": \"What is this?\"}]}],
   \"max_tokens\": 64, \"temperature\": 0}
Also: top_k, top_p, repetition_penalty, seed, stop, add_vision_id, keep_special_tokens.
Relative paths start at the directory of the file. Answers come in the order of the lines:
  {\"custom_id\", \"request\", \"text\", \"token_ids\", \"finish_reason\", \"usage\", \"timings\", \"visuals\"}
where request has the number of the line, blank ones not counted, and a hash of it for --resume.
A line that fails gives {\"custom_id\", \"request\", \"error\"}, the others go on, and the exit code is 1.

Parts of a message, in the Qwen or the OpenAI format:
  {\"type\": \"text\", \"text\": ...}
  {\"type\": \"image\", \"image\": PATH|URL|data:}   also min_pixels, max_pixels, resized_height and
  {\"type\": \"image_url\", \"image_url\": {\"url\": ...}}   resized_width, exif_orientation
  {\"type\": \"video\", \"video\": PATH|URL|data: or [frames]}   also fps or nframes, min_frames,
  {\"type\": \"video_url\", \"video_url\": {\"url\": ...}}   max_frames, video_start, video_end, total_pixels";

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let (checkpoint, mut frontend) = args.model.open()?;
    args.pictures.apply(frontend.processor_mut())?;
    let (file, done) = match &args.output {
        Some(path) => {
            let (file, done) =
                OutputFile::find(path, &args).with_context(|| format!("--output {}", path.display()))?;
            (Some(file), done)
        }
        None => (None, Done::default()),
    };
    let kept_errors = if args.retry_errors { 0 } else { done.failed() };
    let sort = args.retry_errors || done.disordered;
    let (requests, base_dir) = Requests::open(&args.requests, done, args.retry_errors)?;
    let mut requests = requests.peekable();
    // Requests that are not those of the output are told before the engine loads, most of them.
    if let Some(Err(error)) = requests.next_if(Result::is_err) {
        return Err(error);
    }
    if kept_errors > 0 {
        output::note(format_args!(
            "note: {kept_errors} requests failed before and are not asked again, see --retry-errors"
        ));
    }
    let parallel = usize::from(args.parallel);
    let engine = match requests.peek() {
        Some(_) => {
            let options = EngineOptions {
                context_tokens: args.context,
                max_seqs: parallel,
                ..EngineOptions::default()
            };
            Some(args.model.load(checkpoint, frontend, options)?)
        }
        None => None,
    };
    let out: Box<dyn Write> = match file {
        Some(file) => Box::new(file.open()?),
        None => Box::new(output::stdout()),
    };
    let mut results = InOrder::new(out, args.output.clone());
    if let Some(mut engine) = engine {
        answer_all(&mut engine, requests, &base_dir, parallel, &mut results)?;
    }
    if let Some(path) = args.output.filter(|_| sort) {
        put_in_order(&path).with_context(|| format!("cannot put {} in order", path.display()))?;
    }
    Ok(if results.failed + kept_errors == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Keeps the engine supplied with `parallel` requests until there are no more.
fn answer_all(
    engine: &mut Engine,
    mut requests: impl Iterator<Item = anyhow::Result<(Key, Result<String, String>)>>,
    base_dir: &Path,
    parallel: usize,
    results: &mut InOrder,
) -> anyhow::Result<()> {
    let mut preparers = Preparers::start(engine.frontend(), base_dir);
    let mut running: HashMap<RequestId, Job> = HashMap::new();
    let (mut events, mut is_over) = (Vec::new(), false);
    loop {
        while !is_over
            && running.len() + preparers.under_way < parallel + PREPARERS
            && results.waiting.len() < WAITING_PER_REQUEST * parallel
        {
            let Some((key, text)) = requests.next().transpose()? else {
                is_over = true;
                break;
            };
            let parsed = text.map_err(|problem| anyhow!(problem)).and_then(|text| {
                serde_json::from_str(&text).map_err(|error| anyhow!("the line is not JSON: {error}"))
            });
            match parsed {
                Ok(value) => preparers.send(results.begin(key, output::custom_id(&value)), value),
                Err(error) => {
                    let job = results.begin(key, Value::Null);
                    results.fail(job, &output::describe(&error))?;
                }
            }
        }
        while running.len() < parallel
            && let Some((job, prepared)) = preparers.next(running.is_empty())
        {
            match prepared.and_then(|p| Ok(engine.submit(p)?)) {
                Ok(id) => {
                    running.insert(id, job);
                }
                Err(error) => results.fail(job, &output::describe(&error))?,
            }
        }
        if running.is_empty() {
            if is_over && preparers.under_way == 0 {
                return Ok(());
            }
            continue; // whatever was ready has failed
        }
        engine.step(&mut events)?;
        for event in events.drain(..) {
            match event {
                Event::Token(..) => {}
                Event::Done(id, _, answer) => {
                    let Some(job) = running.remove(&id) else { continue };
                    results.put(job, output::answer(&answer))?;
                }
                Event::Failed(id, error) => {
                    let Some(job) = running.remove(&id) else { continue };
                    results.fail(job, &error.to_string())?;
                }
            }
        }
    }
}

/// Threads that make requests ready while others are answered: a slow download holds up nobody else.
struct Preparers {
    requests: Sender<(Job, Value)>,
    ready: Receiver<(Job, anyhow::Result<Prepared>)>,
    /// Requests sent and not received.
    under_way: usize,
}

impl Preparers {
    fn start(frontend: &Arc<Frontend>, base_dir: &Path) -> Preparers {
        let (requests, waiting) = mpsc::channel::<(Job, Value)>();
        let (done, ready) = mpsc::channel();
        let waiting = Arc::new(Mutex::new(waiting));
        for _ in 0..PREPARERS {
            let (frontend, base_dir) = (Arc::clone(frontend), base_dir.to_path_buf());
            let (waiting, done) = (Arc::clone(&waiting), done.clone());
            std::thread::spawn(move || {
                let next = || waiting.lock().unwrap_or_else(PoisonError::into_inner).recv();
                while let Ok((job, value)) = next() {
                    let prepare =
                        || Request::from_json(&value, base_dir.clone()).and_then(|r| frontend.prepare(&r));
                    // A request that is lost would be waited for.
                    let prepared = std::panic::catch_unwind(AssertUnwindSafe(prepare));
                    let prepared = match prepared {
                        Ok(prepared) => prepared.map_err(Into::into),
                        Err(_) => Err(anyhow!("it could not be prepared, see the message above")),
                    };
                    if done.send((job, prepared)).is_err() {
                        return;
                    }
                }
            });
        }
        Preparers { requests, ready, under_way: 0 }
    }

    fn send(&mut self, job: Job, request: Value) {
        self.requests.send((job, request)).expect("the threads go on as long as there are requests");
        self.under_way += 1;
    }

    /// The next that is ready; `waits` for it if none is.
    fn next(&mut self, waits: bool) -> Option<(Job, anyhow::Result<Prepared>)> {
        if self.under_way == 0 {
            return None;
        }
        let next = if waits { self.ready.recv().ok() } else { self.ready.try_recv().ok() };
        self.under_way -= usize::from(next.is_some());
        next
    }
}

/// Which request an answer is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Key {
    /// From 1, among the lines that are not blank.
    number: usize,
    /// Of the line, so that another one in its place is noticed.
    hash: u64,
}

impl Key {
    /// `line` is the request, or what is wrong with it.
    fn new(number: usize, line: &Result<String, String>) -> Key {
        let (Ok(text) | Err(text)) = line;
        Key { number, hash: xxh3_64(text.trim().as_bytes()) }
    }

    fn to_json(self) -> Value {
        json!({ "number": self.number, "xxh3": format!("{:016x}", self.hash) })
    }

    fn from_json(value: &Value) -> Option<Key> {
        let number = usize::try_from(value.get("number")?.as_u64()?).ok()?;
        let hash = u64::from_str_radix(value.get("xxh3")?.as_str()?, 16).ok()?;
        Some(Key { number, hash })
    }
}

/// The lines of the request file that are to be answered: blank ones and those that an earlier run has answered are
/// passed over, the latter after checking that they are the same.
struct Requests {
    lines: Lines,
    name: String,
    read: usize,
    done: Done,
    retry_errors: bool,
}

impl Requests {
    /// Also the directory where relative paths in the requests start.
    fn open(path: &Path, done: Done, retry_errors: bool) -> anyhow::Result<(Requests, PathBuf)> {
        let (lines, name, base_dir) = if path.as_os_str() == "-" {
            (Lines::new(BufReader::new(std::io::stdin())), "standard input".into(), PathBuf::new())
        } else {
            let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
            (Lines::new(BufReader::new(file)), path.display().to_string(), directory_of(path))
        };
        Ok((Requests { lines, name, read: 0, done, retry_errors }, base_dir))
    }

    fn next_open(&mut self) -> anyhow::Result<Option<(Key, Result<String, String>)>> {
        loop {
            let line = self.lines.next().with_context(|| format!("cannot read {}", self.name))?;
            let Some(line) = line else {
                let last = self.done.answers.keys().next_back().copied().unwrap_or(0);
                if last > self.read {
                    bail!(
                        "the output answers request {last} but there are {}: they are not the same",
                        self.read
                    );
                }
                return Ok(None);
            };
            if line.as_ref().is_ok_and(|l| l.trim().is_empty()) {
                continue;
            }
            self.read += 1;
            let key = Key::new(self.read, &line);
            match self.done.answers.get(&key.number) {
                Some(found) if !(found.failed && self.retry_errors) => found.check(key, &line)?,
                _ => return Ok(Some((key, line))),
            }
        }
    }
}

impl Iterator for Requests {
    type Item = anyhow::Result<(Key, Result<String, String>)>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_open().transpose()
    }
}

/// What an output file holds.
#[derive(Default)]
struct Done {
    /// By the number of the request. Of several answers to one, the last: an earlier one is an error that was asked
    /// again.
    answers: BTreeMap<usize, Found>,
    /// Whether they stand in another order than this, or with gaps.
    disordered: bool,
    /// Bytes of whole lines.
    bytes: u64,
}

/// An answer in an output file.
struct Found {
    key: Key,
    custom_id: Value,
    failed: bool,
    /// Where its line is.
    start: u64,
    bytes: u64,
}

impl Done {
    /// Reads an output file. A last line that was cut short does not count.
    fn read(path: &Path) -> anyhow::Result<Done> {
        let mut reader = BufReader::new(File::open(path)?);
        let mut done = Done::default();
        let mut line = Vec::new();
        for number in 1.. {
            line.clear();
            let bytes = (&mut reader).take(MAX_LINE_BYTES).read_until(b'\n', &mut line)? as u64;
            let ends = !line.ends_with(b"\n");
            let found = if ends { None } else { Found::from_line(&line, done.bytes) };
            let Some(found) = found else {
                let begun = ANSWER_STARTS.iter().any(|s| line.starts_with(s) || s.starts_with(&line));
                if ends && begun && bytes < MAX_LINE_BYTES {
                    break;
                }
                bail!("line {number} is no answer of this command: give another --output, or no --resume");
            };
            done.disordered |= found.key.number != number;
            done.bytes += bytes;
            done.answers.insert(found.key.number, found);
        }
        Ok(done)
    }

    fn failed(&self) -> usize {
        self.answers.values().filter(|found| found.failed).count()
    }
}

impl Found {
    fn from_line(line: &[u8], start: u64) -> Option<Found> {
        let value: Value = serde_json::from_slice(line).ok()?;
        let failed = value.get("error").is_some();
        let key = value.get("request").filter(|_| failed || value.get("text").is_some());
        let key = key.and_then(Key::from_json)?;
        Some(Found { key, custom_id: output::custom_id(&value), failed, start, bytes: line.len() as u64 })
    }

    /// Whether it answers this request.
    fn check(&self, key: Key, line: &Result<String, String>) -> anyhow::Result<()> {
        if self.key == key {
            return Ok(());
        }
        let value: Value = line.as_ref().ok().and_then(|l| serde_json::from_str(l).ok()).unwrap_or_default();
        let (number, id, expected) = (key.number, output::custom_id(&value), &self.custom_id);
        if id != *expected {
            bail!("request {number} is {id} but the output answers {expected}: they are not the same");
        }
        let help = if self.failed { "; to ask requests again that failed, pass --retry-errors" } else { "" };
        bail!("request {number} is another than the one that the output answers{help}");
    }
}

/// Where answers go: a file that is looked at before the engine loads, and changed only after.
struct OutputFile {
    path: PathBuf,
    /// If it is there already.
    file: Option<File>,
    /// Bytes of it that stay.
    kept: u64,
}

impl OutputFile {
    fn find(path: &Path, args: &Args) -> anyhow::Result<(OutputFile, Done)> {
        let file = output::writable(path).context("cannot write it")?;
        let held = match &file {
            Some(file) => Some(file.metadata()?).filter(std::fs::Metadata::is_file).map_or(0, |m| m.len()),
            None => 0,
        };
        if file.is_some() && is_same(path, &args.requests) {
            bail!("these are the requests; name another file");
        }
        if held > 0 && !(args.resume || args.overwrite) {
            bail!(
                "it holds {held} bytes already; pass --resume to go on with it, --overwrite to begin anew, or \
                 name another file"
            );
        }
        let done = if held > 0 && args.resume { Done::read(path)? } else { Done::default() };
        Ok((OutputFile { path: path.to_path_buf(), file, kept: done.bytes }, done))
    }

    /// Opens it for what is missing.
    fn open(self) -> anyhow::Result<File> {
        let open = || -> std::io::Result<File> {
            let mut file = match self.file {
                Some(file) => file,
                None => File::create_new(&self.path)?,
            };
            if file.metadata()?.is_file() {
                file.set_len(self.kept)?;
                file.seek(SeekFrom::End(0))?;
            }
            Ok(file)
        };
        open().with_context(|| format!("cannot write {}", self.path.display()))
    }
}

/// Whether both are one file, by whatever names.
#[cfg(unix)]
fn is_same(output: &Path, requests: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let requests = if requests.as_os_str() == "-" { Path::new("/dev/stdin") } else { requests };
    let id = |path: &Path| path.metadata().ok().filter(|m| m.is_file()).map(|m| (m.dev(), m.ino()));
    id(output).is_some_and(|output| id(requests) == Some(output))
}

#[cfg(not(unix))]
fn is_same(output: &Path, requests: &Path) -> bool {
    output.canonicalize().is_ok_and(|output| requests.canonicalize().is_ok_and(|r| r == output))
}

/// Puts the answers of a file in the order of their requests, the last one for each, and the new file in place of the
/// old.
fn put_in_order(path: &Path) -> anyhow::Result<()> {
    // Of a link, the file it leads to.
    let path = path.canonicalize()?;
    let done = Done::read(&path)?;
    if !done.disordered {
        return Ok(());
    }
    let mut file = File::open(&path)?;
    let mut sorted = tempfile::NamedTempFile::new_in(directory_of(&path))?;
    for found in done.answers.values() {
        file.seek(SeekFrom::Start(found.start))?;
        std::io::copy(&mut (&mut file).take(found.bytes), &mut sorted)?;
    }
    sorted.as_file().set_permissions(file.metadata()?.permissions())?;
    sorted.as_file().sync_all()?;
    sorted.persist(&path)?;
    Ok(())
}

/// A request that is worked on.
struct Job {
    /// Its answer's place in the output.
    place: usize,
    key: Key,
    custom_id: Value,
}

/// Writes results in the order of the requests, each as soon as those before it are written.
struct InOrder {
    out: Box<dyn Write>,
    /// What `out` is, unless it is standard output.
    file: Option<PathBuf>,
    begun: usize,
    written: usize,
    /// Lines that others have to precede, by their place.
    waiting: BTreeMap<usize, String>,
    failed: usize,
}

impl InOrder {
    fn new(out: Box<dyn Write>, file: Option<PathBuf>) -> InOrder {
        InOrder { out, file, begun: 0, written: 0, waiting: BTreeMap::new(), failed: 0 }
    }

    fn begin(&mut self, key: Key, custom_id: Value) -> Job {
        self.begun += 1;
        Job { place: self.begun - 1, key, custom_id }
    }

    fn put(&mut self, job: Job, mut object: Value) -> anyhow::Result<()> {
        object["custom_id"] = job.custom_id;
        object["request"] = job.key.to_json();
        self.waiting.insert(job.place, format!("{object}\n"));
        let written = self.write_ready();
        match &self.file {
            Some(path) => written.with_context(|| format!("cannot write {}", path.display())),
            None => Ok(written?),
        }
    }

    /// Lines whole, so that a run that is killed leaves whole lines.
    fn write_ready(&mut self) -> std::io::Result<()> {
        while let Some(line) = self.waiting.remove(&self.written) {
            self.out.write_all(line.as_bytes())?;
            self.written += 1;
        }
        self.out.flush()
    }

    fn fail(&mut self, job: Job, error: &str) -> anyhow::Result<()> {
        self.failed += 1;
        output::note(format_args!("error: request {}: {error}", job.key.number));
        self.put(job, json!({ "error": error }))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// Keeps what single calls write.
    #[derive(Clone, Default)]
    struct Calls(Arc<Mutex<Vec<String>>>);

    impl Write for Calls {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().push(String::from_utf8(bytes.to_vec()).unwrap());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn every_answer_is_written_at_once_and_in_its_place() {
        let calls = Calls::default();
        let mut results = InOrder::new(Box::new(calls.clone()), None);
        let jobs: Vec<Job> =
            (1..=3).map(|number| results.begin(Key { number, hash: 0xab }, json!(number))).collect();
        for job in jobs.into_iter().rev() {
            results.put(job, json!({ "text": "b\n" })).unwrap();
        }
        let line = |n: usize| {
            let request = format!("{{\"number\":{n},\"xxh3\":\"00000000000000ab\"}}");
            format!("{{\"custom_id\":{n},\"request\":{request},\"text\":\"b\\n\"}}\n")
        };
        assert_eq!(*calls.0.lock().unwrap(), [1, 2, 3].map(line));
    }
}
