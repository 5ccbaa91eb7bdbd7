//! The driver's objects: devices, contexts, and the tables of what a program has made.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use super::config::Config;
use super::error::{Error, Result};
use super::event::Event;
use super::fault::{Faults, Kind};
use super::graph::{Exec, Graph};
use super::handles::Table;
use super::journal::Journal;
use super::module::{Function, Module};
use super::pool::Pool;
use super::stream::Stream;
use crate::device::DeviceSpec;
use crate::exec::ExecOptions;
use crate::memory::GlobalMemory;
use crate::model::L2State;

static DRIVER: OnceLock<std::result::Result<Driver, Error>> = OnceLock::new();

thread_local! {
    /// The stack of current contexts of this thread; the last is current.
    static CURRENT: RefCell<Vec<Arc<Context>>> = const { RefCell::new(Vec::new()) };
    /// Mode of `cuThreadExchangeStreamCaptureMode`: 0 global, 1 thread-local, 2 relaxed.
    pub(super) static CAPTURE_MODE: Cell<u32> = const { Cell::new(0) };
}

/// The driver after `cuInit`.
pub(super) struct Driver {
    pub config: Config,
    pub faults: Faults,
    pub devices: Vec<Arc<Device>>,
    pub contexts: Table<Context>,
    pub modules: Table<Module>,
    pub functions: Table<Function>,
    pub streams: Table<Stream>,
    pub events: Table<Event>,
    pub graphs: Table<Graph>,
    pub execs: Table<Exec>,
    pub pools: Table<Pool>,
    /// Pinned host memory by address, and how many bytes.
    pub pinned: Mutex<HashMap<u64, Pinned>>,
    pub journal: Journal,
    /// How kernels are executed; a launch adds its own residency.
    pub options: ExecOptions,
}

/// One range of pinned host memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pinned {
    pub bytes: u64,
    /// Allocated here, rather than registered by the program.
    pub owned: bool,
    pub flags: u32,
}

/// One simulated card.
pub(super) struct Device {
    pub ordinal: usize,
    pub spec: DeviceSpec,
    pub memory: GlobalMemory,
    pub primary: Mutex<Primary>,
    pub default_pool: Arc<Pool>,
    pub pool: Mutex<Arc<Pool>>,
    /// Held while work of this device executes.
    pub busy: Mutex<()>,
    /// When the host last waited for the device, on the modelled clock: work enqueued later does not begin earlier.
    pub host_ns: Mutex<f64>,
    /// What earlier launches left in L2, for the time model.
    pub l2: Mutex<L2State>,
    lost: AtomicBool,
    launches: AtomicU64,
}

/// The primary context and how often it is retained.
#[derive(Default)]
pub(super) struct Primary {
    pub context: Option<Arc<Context>>,
    pub retained: u32,
    pub flags: u32,
}

/// A context: what owns streams, events, modules and memory, and what an error spoils.
pub(super) struct Context {
    pub handle: usize,
    pub device: Arc<Device>,
    pub primary: bool,
    pub flags: Mutex<u32>,
    pub cache_config: Mutex<u32>,
    pub limits: Mutex<HashMap<u32, usize>>,
    pub legacy: OnceLock<Arc<Stream>>,
    pub per_thread: Mutex<HashMap<std::thread::ThreadId, Arc<Stream>>>,
    /// Device memory of this context and the pool it came from.
    pub owned: Mutex<HashMap<u64, Option<Arc<Pool>>>>,
    health: Mutex<Health>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Health {
    Well,
    /// A kernel failed; nobody has been told.
    Failed(Error),
    /// Every call returns this.
    Sticky(Error),
    Destroyed,
}

/// Locks, also when a thread died holding it: the data is consistent between the driver's own steps.
pub(super) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `cuInit`: reads the settings and makes the devices, once.
pub(super) fn initialise() -> Result<&'static Driver> {
    let made = DRIVER.get_or_init(|| {
        Driver::new().map_err(|reason| {
            eprintln!("cudasim: {reason}");
            Error::SYSTEM_NOT_READY
        })
    });
    made.as_ref().map_err(|error| *error)
}

/// The driver, if `cuInit` was called.
pub(super) fn driver() -> Result<&'static Driver> {
    match DRIVER.get() {
        Some(made) => made.as_ref().map_err(|error| *error),
        None => Err(Error::NOT_INITIALIZED),
    }
}

/// With `CUDASIM_LOG=1`, a line on stderr for every call.
pub(super) fn log(name: &str, code: u32) {
    static WANTED: OnceLock<bool> = OnceLock::new();
    if *WANTED.get_or_init(|| std::env::var_os("CUDASIM_LOG").is_some_and(|value| value == "1")) {
        eprintln!("cudasim: {name} -> {code}");
    }
}

impl Driver {
    fn new() -> std::result::Result<Driver, String> {
        crate::exec::lanes::supported().map_err(|missing| format!("needs a machine with {missing}"))?;
        let config = Config::from_process()?;
        let mut spec = config.device_spec()?;
        if let Some(bytes) = config.memory_bytes {
            spec.memory_bytes = bytes;
        }
        let devices =
            (0..config.devices as usize).map(|ordinal| Device::new(ordinal, spec.clone()).map(Arc::new));
        let driver = Driver {
            faults: Faults::new(&config.faults),
            devices: devices.collect::<std::result::Result<_, _>>()?,
            journal: Journal::new(&config, &spec),
            options: config.exec_options()?,
            config,
            contexts: Table::default(),
            modules: Table::default(),
            functions: Table::default(),
            streams: Table::default(),
            events: Table::default(),
            graphs: Table::default(),
            execs: Table::default(),
            pools: Table::default(),
            pinned: Mutex::default(),
        };
        super::journal::at_exit();
        Ok(driver)
    }

    /// A device by ordinal.
    pub fn device(&self, ordinal: i32) -> Result<&Arc<Device>> {
        usize::try_from(ordinal).ok().and_then(|index| self.devices.get(index)).ok_or(Error::INVALID_DEVICE)
    }

    /// Which device's memory an address lies in.
    pub fn device_of(&self, addr: u64) -> Option<&Arc<Device>> {
        self.devices.iter().find(|device| device.memory.find(addr).is_some_and(|found| found.on_device()))
    }

    /// The pinned range that an address lies in, and its base.
    pub fn pinned_at(&self, addr: u64) -> Option<(u64, Pinned)> {
        let pinned = lock(&self.pinned);
        let found = pinned.iter().find(|(base, range)| addr >= **base && addr - **base < range.bytes);
        found.map(|(base, range)| (*base, *range))
    }

    /// Counts an operation for fault injection; the error that it should fail with, if any.
    pub fn inject(&self, kind: Kind, device: &Device) -> Result {
        if let Some(error) = self.faults.count(Kind::DeviceLost) {
            device.lost.store(true, Ordering::Relaxed);
            return Err(error);
        }
        self.faults.count(kind).map_or(Ok(()), Err)
    }
}

impl Device {
    fn new(ordinal: usize, spec: DeviceSpec) -> std::result::Result<Device, String> {
        let memory = GlobalMemory::new(spec.memory_bytes)
            .map_err(|error| format!("cannot reserve {} bytes of addresses: {error}", spec.memory_bytes))?;
        let default_pool = Arc::new(Pool::new(super::handles::fresh(), ordinal));
        let l2 = L2State::new(&spec);
        Ok(Device {
            ordinal,
            spec,
            memory,
            primary: Mutex::default(),
            pool: Mutex::new(default_pool.clone()),
            default_pool,
            busy: Mutex::default(),
            host_ns: Mutex::new(0.0),
            l2: Mutex::new(l2),
            lost: AtomicBool::new(false),
            launches: AtomicU64::new(0),
        })
    }

    /// Fails when fault injection made the device disappear.
    pub fn check(&self) -> Result {
        if self.lost.load(Ordering::Relaxed) { Err(Error::UNKNOWN) } else { Ok(()) }
    }

    /// Numbers launches from 1.
    pub fn next_launch(&self) -> u64 {
        self.launches.fetch_add(1, Ordering::Relaxed) + 1
    }
}

impl Context {
    /// A context on `device`, in the table.
    pub fn create(driver: &Driver, device: &Arc<Device>, primary: bool, flags: u32) -> Arc<Context> {
        let context = driver.contexts.insert(|handle| Context {
            handle,
            device: device.clone(),
            primary,
            flags: Mutex::new(flags),
            cache_config: Mutex::new(0),
            limits: Mutex::default(),
            legacy: OnceLock::new(),
            per_thread: Mutex::default(),
            owned: Mutex::default(),
            health: Mutex::new(Health::Well),
        });
        context.legacy.get_or_init(|| Arc::new(Stream::default_of(&context, true)));
        context
    }

    /// Fails when the context is destroyed or spoilt, or the device is gone.
    pub fn check(&self) -> Result {
        self.device.check()?;
        match *lock(&self.health) {
            Health::Sticky(error) => Err(error),
            Health::Destroyed => Err(Error::CONTEXT_IS_DESTROYED),
            Health::Well | Health::Failed(_) => Ok(()),
        }
    }

    /// What a synchronising call does: tells of a kernel that failed since, and from then on every call fails.
    pub fn check_work(&self) -> Result {
        {
            let mut health = lock(&self.health);
            if let Health::Failed(error) = *health {
                *health = Health::Sticky(error);
            }
        }
        self.check()
    }

    /// Whether work still executes: not after a failure.
    pub fn runs(&self) -> bool {
        *lock(&self.health) == Health::Well && self.device.check().is_ok()
    }

    /// Notes that a kernel failed; the program is told when it next waits.
    pub fn fail(&self, error: Error) {
        let mut health = lock(&self.health);
        if *health == Health::Well {
            *health = Health::Failed(error);
        }
    }

    /// Frees what the context owns. Handles of its objects are invalid from here on.
    pub fn destroy(&self, driver: &Driver) {
        *lock(&self.health) = Health::Destroyed;
        driver.streams.remove_where(|stream| stream.context == self.handle);
        driver.events.remove_where(|event| event.context == self.handle);
        driver.functions.remove_where(|function| function.module.context == self.handle);
        driver.modules.remove_where(|module| {
            let own = module.context == self.handle;
            if own {
                module.forget();
            }
            own
        });
        for (addr, pool) in lock(&self.owned).drain() {
            if self.device.memory.free(addr)
                && let Some(pool) = pool
            {
                pool.returned(addr);
            }
        }
        let _ = driver.contexts.remove(self.handle);
    }
}

/// The current context, which works.
pub(super) fn current() -> Result<Arc<Context>> {
    let context = current_any()?;
    context.check()?;
    Ok(context)
}

/// The current context, which may be spoilt.
pub(super) fn current_any() -> Result<Arc<Context>> {
    driver()?;
    CURRENT.with_borrow(|stack| stack.last().cloned()).ok_or(Error::INVALID_CONTEXT)
}

/// Makes `context` current in place of the one that is.
pub(super) fn set_current(context: Option<Arc<Context>>) {
    CURRENT.with_borrow_mut(|stack| {
        stack.pop();
        stack.extend(context);
    });
}

/// Makes `context` current above the one that is.
pub(super) fn push_current(context: Arc<Context>) {
    CURRENT.with_borrow_mut(|stack| stack.push(context));
}

/// Takes the current context off the stack.
pub(super) fn pop_current() -> Result<Arc<Context>> {
    CURRENT.with_borrow_mut(Vec::pop).ok_or(Error::INVALID_CONTEXT)
}
