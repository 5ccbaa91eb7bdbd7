//! What happened: reports on stderr as they come, and everything in a file at exit.

use std::collections::HashMap;
use std::fmt;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use super::config::Config;
use super::state::{driver, lock};
use crate::check;
use crate::device::DeviceSpec;
use crate::report::{LaunchReport, Report};

/// How many launches of one kernel keep their counts per source line.
const LAUNCHES_WITH_LINES: u64 = 4;

/// What is written to the file that `CUDASIM_REPORT` names: the launches, and beside them the faults.
#[derive(Debug, Serialize, Deserialize)]
pub struct Run {
    /// Launches with their counters and modelled times.
    #[serde(flatten)]
    pub report: Report,
    /// What the checks found, in the order of the launches.
    #[serde(default)]
    pub faults: Vec<String>,
}

impl Run {
    /// As JSON.
    ///
    /// # Errors
    /// When serialisation fails.
    pub fn to_json(&self) -> serde_json::Result<String> {
        serde_json::to_string_pretty(self)
    }

    /// Reads what [`Run::to_json`] wrote.
    ///
    /// # Errors
    /// When the text is no such JSON, or of another version.
    pub fn from_json(text: &str) -> serde_json::Result<Run> {
        Report::from_json(text)?;
        serde_json::from_str(text)
    }
}

/// The record of a process.
pub(super) struct Journal {
    quiet: bool,
    file: Option<PathBuf>,
    exit_code: Option<i32>,
    faults: AtomicU64,
    state: Mutex<State>,
}

struct State {
    run: Run,
    launches: HashMap<String, u64>,
}

impl Journal {
    /// An empty record.
    pub fn new(config: &Config, spec: &DeviceSpec) -> Journal {
        let run = Run { report: Report::new(spec), faults: Vec::new() };
        Journal {
            quiet: config.quiet,
            file: config.report.clone(),
            exit_code: config.exit_code,
            faults: AtomicU64::new(0),
            state: Mutex::new(State { run, launches: HashMap::new() }),
        }
    }

    /// Something that a program should know of, but that is no fault of a kernel.
    pub fn note(&self, text: fmt::Arguments<'_>) {
        self.fault(text.to_string());
    }

    fn fault(&self, text: String) {
        self.faults.fetch_add(1, Ordering::Relaxed);
        if !self.quiet {
            eprintln!("cudasim: {text}");
        }
        if self.file.is_some() {
            lock(&self.state).run.faults.push(text);
        }
    }

    /// What the checks found in one launch.
    pub fn reports(&self, reports: &[check::Report]) {
        for report in reports {
            self.fault(report.to_string());
        }
    }

    /// Whether launches are kept, so that making their reports is worth it.
    pub fn keeps_launches(&self) -> bool {
        self.file.is_some()
    }

    /// One launch that was executed.
    pub fn launch(&self, mut launch: LaunchReport) {
        let mut state = lock(&self.state);
        let seen = state.launches.entry(launch.kernel.clone()).or_default();
        *seen += 1;
        if *seen > LAUNCHES_WITH_LINES {
            launch.lines.clear();
        }
        state.run.report.launches.push(launch);
    }

    /// Writes the file; the code that the process should end with, if reports ask for one.
    fn finish(&self) -> Option<i32> {
        let faults = self.faults.load(Ordering::Relaxed);
        if let Some(path) = &self.file {
            let text = lock(&self.state).run.to_json();
            let written = text.map_err(std::io::Error::other).and_then(|text| std::fs::write(path, text));
            if let Err(error) = written {
                eprintln!("cudasim: CUDASIM_REPORT: {}: {error}", path.display());
            }
        }
        if faults > 0 && !self.quiet {
            eprintln!("cudasim: {faults} report{} in this run", if faults == 1 { "" } else { "s" });
        }
        self.exit_code.filter(|_| faults > 0)
    }
}

/// Arranges for the record to be written when the process ends.
pub(super) fn at_exit() {
    extern "C" fn finish() {
        let code = std::panic::catch_unwind(|| driver().ok().and_then(|driver| driver.journal.finish()));
        if let Ok(Some(code)) = code {
            let _ = std::io::stdout().flush();
            // SAFETY: flushes what C code has buffered, as the exit that is under way would have done; then ends the
            // process, which is where it was going.
            unsafe {
                libc::fflush(std::ptr::null_mut());
                libc::_exit(code);
            }
        }
    }
    // SAFETY: `finish` takes nothing, unwinds nowhere and lives as long as the library, which is never unloaded while
    // the driver is in use.
    unsafe { libc::atexit(finish) };
}
