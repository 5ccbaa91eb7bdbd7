//! The output: what it holds already, and its lines in the order of the requests.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde_json::{Value, json};

use super::Args;
use super::requests::Key;
use crate::cli::input::MAX_LINE_BYTES;
use crate::cli::model::directory_of;
use crate::cli::output;

/// How the lines of an output file begin: their keys are sorted.
const ANSWER_STARTS: [&[u8]; 2] = [b"{\"boxes\":", b"{\"custom_id\":"];

/// What an output file holds.
#[derive(Default)]
pub(super) struct Done {
    /// By the number of the request. Of several answers to one, the last: an earlier one is an error that was asked
    /// again.
    pub(super) answers: BTreeMap<usize, Found>,
    /// Whether they stand in another order than this, or with gaps.
    pub(super) disordered: bool,
    /// Bytes of whole lines.
    bytes: u64,
}

/// An answer in an output file.
pub(super) struct Found {
    key: Key,
    custom_id: Value,
    pub(super) failed: bool,
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

    pub(super) fn failed(&self) -> usize {
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
    pub(super) fn check(&self, key: Key, line: &Result<String, String>) -> anyhow::Result<()> {
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
pub(super) struct OutputFile {
    path: PathBuf,
    /// If it is there already.
    file: Option<File>,
    /// Bytes of it that stay.
    kept: u64,
}

impl OutputFile {
    pub(super) fn find(path: &Path, args: &Args) -> anyhow::Result<(OutputFile, Done)> {
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
    pub(super) fn open(self) -> anyhow::Result<File> {
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
pub(super) fn put_in_order(path: &Path) -> anyhow::Result<()> {
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
pub(super) struct Job {
    /// Its answer's place in the output.
    place: usize,
    key: Key,
    custom_id: Value,
}

/// Writes results in the order of the requests, each as soon as those before it are written.
pub(super) struct InOrder {
    out: Box<dyn Write>,
    /// What `out` is, unless it is standard output.
    file: Option<PathBuf>,
    begun: usize,
    written: usize,
    /// Lines that others have to precede, by their place.
    pub(super) waiting: BTreeMap<usize, String>,
    pub(super) failed: usize,
}

impl InOrder {
    pub(super) fn new(out: Box<dyn Write>, file: Option<PathBuf>) -> InOrder {
        InOrder { out, file, begun: 0, written: 0, waiting: BTreeMap::new(), failed: 0 }
    }

    pub(super) fn begin(&mut self, key: Key, custom_id: Value) -> Job {
        self.begun += 1;
        Job { place: self.begun - 1, key, custom_id }
    }

    pub(super) fn put(&mut self, job: Job, mut object: Value) -> anyhow::Result<()> {
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

    pub(super) fn fail(&mut self, job: Job, error: &str) -> anyhow::Result<()> {
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
