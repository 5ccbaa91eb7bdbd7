//! Which lines of a file are to be answered, and making them ready.

use std::fs::File;
use std::io::BufReader;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, anyhow, bail};
use qwenvl::{Frontend, Prepared, Request};
use serde_json::{Value, json};
use xxhash_rust::xxh3::xxh3_64;

use super::answers::{Done, Job};
use crate::cli::input::Lines;
use crate::cli::model::directory_of;

/// Requests that are made ready at the same time, beyond those that are answered.
pub(super) const PREPARERS: usize = 4;

/// Which request an answer is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Key {
    /// From 1, among the lines that are not blank.
    pub(super) number: usize,
    /// Of the line, so that another one in its place is noticed.
    pub(super) hash: u64,
}

impl Key {
    /// `line` is the request, or what is wrong with it.
    pub(super) fn new(number: usize, line: &Result<String, String>) -> Key {
        let (Ok(text) | Err(text)) = line;
        Key { number, hash: xxh3_64(text.trim().as_bytes()) }
    }

    pub(super) fn to_json(self) -> Value {
        json!({ "number": self.number, "xxh3": format!("{:016x}", self.hash) })
    }

    pub(super) fn from_json(value: &Value) -> Option<Key> {
        let number = usize::try_from(value.get("number")?.as_u64()?).ok()?;
        let hash = u64::from_str_radix(value.get("xxh3")?.as_str()?, 16).ok()?;
        Some(Key { number, hash })
    }
}

/// The lines of the request file that are to be answered: blank ones and those that an earlier run has answered are
/// passed over, the latter after checking that they are the same.
pub(super) struct Requests {
    lines: Lines,
    name: String,
    read: usize,
    done: Done,
    retry_errors: bool,
}

impl Requests {
    /// Also the directory where relative paths in the requests start.
    pub(super) fn open(path: &Path, done: Done, retry_errors: bool) -> anyhow::Result<(Requests, PathBuf)> {
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

/// Threads that make requests ready while others are answered: a slow download holds up nobody else.
pub(super) struct Preparers {
    requests: Sender<(Job, Value)>,
    ready: Receiver<(Job, anyhow::Result<Prepared>)>,
    /// Requests sent and not received.
    pub(super) under_way: usize,
}

impl Preparers {
    pub(super) fn start(frontend: &Arc<Frontend>, base_dir: &Path) -> Preparers {
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

    pub(super) fn send(&mut self, job: Job, request: Value) {
        self.requests.send((job, request)).expect("the threads go on as long as there are requests");
        self.under_way += 1;
    }

    /// The next that is ready; `waits` for it if none is.
    pub(super) fn next(&mut self, waits: bool) -> Option<(Job, anyhow::Result<Prepared>)> {
        if self.under_way == 0 {
            return None;
        }
        let next = if waits { self.ready.recv().ok() } else { self.ready.try_recv().ok() };
        self.under_way -= usize::from(next.is_some());
        next
    }
}
