//! A launch: its description, what its host threads share, reports.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::stats::Stats;
use crate::check::{Checks, FaultKind, Report};
use crate::counters::Counters;
use crate::decode::program::Program;
use crate::decode::{Kernel, Module};
use crate::memory::{AllocationTable, GlobalMemory};

/// Where the variables of a module lie in device memory.
#[derive(Clone, Debug, Default)]
pub struct GlobalAddresses {
    by_name: HashMap<String, u64>,
}

impl GlobalAddresses {
    /// Notes the address of a variable.
    pub fn insert(&mut self, name: &str, address: u64) {
        self.by_name.insert(name.to_owned(), address);
    }

    /// The address of a variable.
    pub fn get(&self, name: &str) -> Option<u64> {
        self.by_name.get(name).copied()
    }

    /// Allocates the variables of a module in device memory and writes their initial values, as the driver does when
    /// it loads a module. `None` when the memory does not suffice.
    pub fn place(module: &Module, memory: &GlobalMemory) -> Option<GlobalAddresses> {
        let mut out = GlobalAddresses::default();
        for v in module.globals() {
            out.insert(&v.name, memory.alloc_variable(&v.name, v.bytes.max(1))?);
        }
        for v in module.globals() {
            memory.write(out.get(&v.name)?, &v.initial_bytes(&out)).ok()?;
        }
        Some(out)
    }
}

/// What to run.
#[derive(Clone, Copy)]
pub struct Launch<'a> {
    /// The kernel.
    pub kernel: &'a Kernel,
    /// Grid dimensions in CTAs.
    pub grid: [u32; 3],
    /// Block dimensions in threads.
    pub block: [u32; 3],
    /// Shared memory beside what the kernel declares, bytes per CTA.
    pub dynamic_shared_bytes: u32,
    /// The parameters as the kernel sees them.
    pub params: &'a [u8],
    /// All CTAs have to be resident together.
    pub cooperative: bool,
    /// Where the variables of the module lie.
    pub globals: &'a GlobalAddresses,
}

/// Which CTAs of a large grid to run; counters are scaled to the whole grid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sampling {
    /// About this many CTAs, evenly spread over the grid, with the first and the last.
    Even(u64),
    /// The first so many: of kernels whose CTAs wait for earlier ones.
    First(u64),
}

/// How to run it.
#[derive(Clone, Debug)]
pub struct ExecOptions {
    /// Host threads.
    pub threads: usize,
    /// Which checks to make.
    pub checks: Checks,
    /// Whether to count memory traffic (instructions are always counted).
    pub counters: bool,
    /// CTAs that are resident on the device at once.
    pub max_resident_ctas: u32,
    /// Stops a kernel that runs longer.
    pub watchdog: Option<Duration>,
    /// Most distinct reports to keep.
    pub max_reports: usize,
    /// Run only some CTAs.
    pub sample: Option<Sampling>,
    /// Multiprocessors of the device, for `%nsmid` and `%smid`.
    pub sms: u32,
}

impl Default for ExecOptions {
    fn default() -> ExecOptions {
        ExecOptions {
            threads: std::thread::available_parallelism().map_or(1, |n| n.get()),
            checks: Checks::default(),
            counters: true,
            max_resident_ctas: 108 * 8,
            watchdog: None,
            max_reports: 100,
            sample: None,
            sms: 108,
        }
    }
}

/// What a launch did.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Counters, also of a kernel that was stopped.
    pub counters: Counters,
    /// Faults that do not stop a kernel, each once with how often it happened.
    pub reports: Vec<Report>,
    /// The fault that stopped the kernel.
    pub fatal: Option<Report>,
}

/// The parameters, aligned as kernels may assume.
pub(crate) struct Params {
    words: Vec<u128>,
    bytes: u64,
}

impl Params {
    pub(crate) fn new(bytes: &[u8]) -> Params {
        let mut words = vec![0u128; bytes.len().div_ceil(16).max(1)];
        for (w, chunk) in words.iter_mut().zip(bytes.chunks(16)) {
            let mut full = [0; 16];
            full[..chunk.len()].copy_from_slice(chunk);
            *w = u128::from_ne_bytes(full);
        }
        Params { words, bytes: bytes.len() as u64 }
    }

    pub(crate) fn address(&self) -> u64 {
        self.words.as_ptr() as u64
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// A stretch of plain stores of one CTA.
struct Segment {
    cta: u64,
    /// When the CTA published it; 0 when it did not yet.
    closed: u64,
}

/// How often each fault was found, by kind and instructions, and the first of them.
type Reports = HashMap<(FaultKind, u32, u32), (u64, Report)>;

/// What the host threads of a launch share.
pub(crate) struct Launching<'l> {
    pub(crate) launch: &'l Launch<'l>,
    pub(crate) kernel: &'l Kernel,
    pub(crate) program: &'l Program,
    pub(crate) memory: &'l GlobalMemory,
    pub(crate) table: Arc<AllocationTable>,
    pub(crate) options: &'l ExecOptions,
    pub(crate) params: Params,
    pub(crate) shared_bytes: u32,
    /// Offset of the dynamic part.
    pub(crate) dynamic_base: u32,
    /// Address of the workspace of a cooperative launch.
    pub(crate) workspace: Option<u64>,
    /// Constant rows as every CTA starts with them.
    pub(crate) consts: Vec<u32>,
    /// Set when all must stop.
    pub(crate) stop: AtomicBool,
    pub(crate) next: AtomicU64,
    pub(crate) resident: AtomicU32,
    /// Rises when a CTA ends or a poll sees something new.
    pub(crate) progress: AtomicU64,
    pub(crate) fatal: Mutex<Option<(u64, Report)>>,
    reports: Mutex<Reports>,
    segments: Mutex<Vec<Segment>>,
    serial: AtomicU64,
    pub(crate) started: std::time::Instant,
}

/// Where a fault happened.
pub(crate) struct Place {
    pub(crate) kind: FaultKind,
    pub(crate) pc: u32,
    pub(crate) block: [u32; 3],
    pub(crate) linear: u64,
    pub(crate) thread: [u32; 3],
    pub(crate) address: Option<u64>,
    /// The other instruction of a pair.
    pub(crate) other: u32,
}

fn lock<T>(m: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    m.lock().unwrap_or_else(|e| e.into_inner())
}

impl<'l> Launching<'l> {
    pub(crate) fn new(
        launch: &'l Launch<'l>,
        memory: &'l GlobalMemory,
        options: &'l ExecOptions,
        shared_bytes: u32,
        dynamic_base: u32,
        workspace: Option<u64>,
    ) -> Launching<'l> {
        let mut out = Launching {
            launch,
            kernel: launch.kernel,
            program: &launch.kernel.program,
            memory,
            table: memory.table(),
            options,
            params: Params::new(launch.params),
            shared_bytes,
            dynamic_base,
            workspace,
            consts: Vec::new(),
            stop: AtomicBool::new(false),
            next: AtomicU64::new(0),
            resident: AtomicU32::new(0),
            progress: AtomicU64::new(0),
            fatal: Mutex::new(None),
            reports: Mutex::default(),
            segments: Mutex::default(),
            serial: AtomicU64::new(1),
            started: std::time::Instant::now(),
        };
        out.consts = super::consts::template(&out);
        out
    }

    /// CTAs in the grid.
    pub(crate) fn ctas(&self) -> u64 {
        self.launch.grid.iter().map(|&n| u64::from(n)).product()
    }

    /// `%ctaid` of a CTA.
    pub(crate) fn block_of(&self, linear: u64) -> [u32; 3] {
        let [x, y, _] = self.launch.grid.map(u64::from);
        [(linear % x) as u32, (linear / x % y) as u32, (linear / (x * y)) as u32]
    }

    /// File and line of an instruction, for messages.
    pub(crate) fn place_of(&self, pc: u32) -> String {
        let Some(meta) = self.program.meta.get(pc as usize) else { return "?".into() };
        match meta.source {
            Some((file, line)) => {
                let name = self.kernel.files.get(file as usize).map_or("?", |f| f.as_str());
                format!("{}:{line}", name.rsplit('/').next().unwrap_or(name))
            }
            None => format!("ptx:{}", meta.ptx_line),
        }
    }

    /// A report without how often it happened.
    pub(crate) fn make_report(&self, place: &Place, message: String) -> Report {
        let meta = self.program.meta.get(place.pc as usize);
        let source = meta.and_then(|m| m.source);
        Report {
            kind: place.kind,
            kernel: self.kernel.name.clone(),
            file: source.and_then(|(f, _)| self.kernel.files.get(f as usize).cloned()),
            line: source.map_or(meta.map_or(0, |m| m.ptx_line), |(_, line)| line),
            instruction: meta.map_or(String::new(), |m| m.text.to_string()),
            pc: place.pc,
            block: place.block,
            thread: place.thread,
            address: place.address,
            message,
            count: 1,
        }
    }

    /// Notes a fault that does not stop the kernel. The report of the first CTA in launch order is kept.
    pub(crate) fn report(&self, stats: &mut Stats, place: Place, message: impl FnOnce() -> String) {
        let key = (place.kind, place.pc, place.other);
        *stats.seen.entry(key).or_insert(0) += 1;
        let mut reports = lock(&self.reports);
        match reports.get(&key) {
            Some((linear, _)) if *linear <= place.linear => return,
            None if reports.len() >= self.options.max_reports => return,
            _ => {}
        }
        let report = self.make_report(&place, message());
        reports.insert(key, (place.linear, report));
    }

    /// All reports, with the counts of the threads.
    pub(crate) fn take_reports(&self, seen: &HashMap<(FaultKind, u32, u32), u64>) -> Vec<Report> {
        let mut out: Vec<Report> = Vec::new();
        for (key, (_, mut report)) in std::mem::take(&mut *lock(&self.reports)) {
            report.count = seen.get(&key).copied().unwrap_or(1);
            out.push(report);
        }
        out.sort_by(|a, b| (a.pc, a.kind, &a.message).cmp(&(b.pc, b.kind, &b.message)));
        out
    }

    // ---- who published what ----

    /// A new stretch of stores of a CTA.
    pub(crate) fn new_segment(&self, cta: u64) -> u32 {
        let mut segments = lock(&self.segments);
        segments.push(Segment { cta, closed: 0 });
        segments.len() as u32 - 1
    }

    /// The CTA publishes a stretch.
    pub(crate) fn close_segment(&self, segment: u32) {
        let mut segments = lock(&self.segments);
        if let Some(s) = segments.get_mut(segment as usize) {
            s.closed = self.serial.fetch_add(1, Ordering::SeqCst) + 1;
        }
    }

    /// How much was published until now.
    pub(crate) fn published(&self) -> u64 {
        self.serial.load(Ordering::SeqCst)
    }

    /// The CTA of a stretch of stores, when it is another one and did not publish it before `acquired`.
    pub(crate) fn unordered_writer(&self, segment: u32, cta: u64, acquired: u64) -> Option<u64> {
        let segments = lock(&self.segments);
        let s = segments.get(segment as usize)?;
        (s.cta != cta && (s.closed == 0 || s.closed > acquired)).then_some(s.cta)
    }
}

/// A set of lanes for messages: `0-3, 7`.
pub(crate) fn lanes(mask: u32) -> String {
    let mut out = String::new();
    let mut l = 0;
    while l < 32 {
        if mask >> l & 1 == 0 {
            l += 1;
            continue;
        }
        let mut end = l;
        while end < 31 && mask >> (end + 1) & 1 == 1 {
            end += 1;
        }
        if !out.is_empty() {
            out.push_str(", ");
        }
        out.push_str(&if end > l { format!("{l}-{end}") } else { l.to_string() });
        l = end + 1;
    }
    out
}
