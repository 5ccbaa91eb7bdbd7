//! One GPU: context, stream, memory blocks, transfers. Addresses are plain numbers; who owns what is said by
//! the [`Block`]s.

use std::cell::Cell;
use std::fmt;
use std::sync::Arc;

use cudarc::driver::sys::CUresult::{self, *};
use cudarc::driver::{
    CudaContext, CudaEvent, CudaStream, DeviceRepr, DriverError, PinnedHostSlice, result, sys,
};
use qwenvl_graph::{Device, DeviceKind};

use crate::error::{Error, Result};
use crate::kernels::cuda as kernels;

/// A device with one stream on which everything runs in order.
pub struct Gpu {
    ordinal: usize,
    pub(super) context: Arc<CudaContext>,
    pub(super) stream: Arc<CudaStream>,
    /// The first and the last that was launched since the host last waited: one of these failed where the driver
    /// says only that something has.
    under_way: Cell<Option<[Place; 2]>>,
}

/// A step of a program, or what is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) program: &'static str,
    pub(super) step: Option<usize>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.program)?;
        self.step.map_or(Ok(()), |step| write!(f, " step {step}"))
    }
}

/// Device memory, freed when dropped.
pub(super) struct Block {
    context: Arc<CudaContext>,
    address: u64,
    bytes: u64,
}

/// Pinned host memory through which data go to the device, in two halves that take turns.
pub(super) struct Staging {
    halves: [Half; 2],
    next: usize,
}

struct Half {
    memory: PinnedHostSlice<u8>,
    /// Comes when the last copy from here is done.
    copied: CudaEvent,
}

/// Bytes of half a [`Staging`].
const STAGING_BYTES: usize = 8 << 20;
/// What a plan leaves free: the driver's part of kernels and graphs, rounding, and what repacking takes meanwhile.
const RESERVED_BYTES: u64 = 512 << 20;

/// An error of the driver at `step`, before anything was launched.
pub(super) fn failed(step: &str) -> impl FnOnce(DriverError) -> Error {
    move |error| Error::Cuda { step: step.to_string(), problem: error.to_string() }
}

/// Whether an error is that of a kernel that ran behind the calls, or of the device under it: the context is lost.
pub(super) fn is_of_kernel(error: DriverError) -> bool {
    const LOST: [CUresult; 11] = [
        CUDA_ERROR_ILLEGAL_ADDRESS,
        CUDA_ERROR_ILLEGAL_INSTRUCTION,
        CUDA_ERROR_MISALIGNED_ADDRESS,
        CUDA_ERROR_INVALID_ADDRESS_SPACE,
        CUDA_ERROR_INVALID_PC,
        CUDA_ERROR_ASSERT,
        CUDA_ERROR_LAUNCH_FAILED,
        CUDA_ERROR_LAUNCH_TIMEOUT,
        CUDA_ERROR_HARDWARE_STACK_ERROR,
        CUDA_ERROR_ECC_UNCORRECTABLE,
        CUDA_ERROR_CONTAINED,
    ];
    LOST.contains(&error.0)
}

/// Whether the user wants every launch waited for, so that an error is that of the step it comes with.
pub(super) fn waits_for_launches() -> bool {
    std::env::var("CUDA_LAUNCH_BLOCKING").is_ok_and(|v| v == "1")
}

/// Loads the driver library: the first call does, and its absence is a panic of cudarc.
pub(super) fn find_driver(what: &str) -> Result<()> {
    // SAFETY: loads the driver, whose initialisers are sound.
    if unsafe { cudarc::driver::sys::is_culib_present() } {
        return Ok(());
    }
    let help = "no CUDA driver (libcuda.so.1) was found; use --device cpu";
    Err(Error::Unsupported { what: what.into(), help: help.into() })
}

/// How many GPUs the driver offers to this process: none is not an error.
pub(super) fn device_count(step: &str) -> Result<usize> {
    match CudaContext::device_count() {
        Ok(n) => Ok(n as usize),
        Err(DriverError(CUDA_ERROR_NO_DEVICE)) => Ok(0),
        Err(error) => Err(failed(step)(error)),
    }
}

/// Whether there is a GPU `ordinal`; an error if there is one that this build's kernels do not run on, or whose driver is
/// too old for them. Makes no context, which would take a while.
pub(super) fn is_usable(ordinal: usize) -> Result<bool> {
    if find_driver("CUDA").is_err() || ordinal >= device_count("counting devices")? {
        return Ok(false);
    }
    match kernels::arch(ordinal).and_then(kernels::supports) {
        Ok(()) => Ok(true),
        Err(kernels::Error::Unsupported { what, help }) => Err(Error::Unsupported { what, help }),
        Err(error) => Err(Error::Cuda { step: format!("asking cuda:{ordinal}"), problem: error.to_string() }),
    }
}

impl Gpu {
    /// Opens device `ordinal`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] without a driver or such a device, [`Error::Cuda`] if the driver does not answer.
    pub fn open(ordinal: usize) -> Result<Gpu> {
        find_driver(&format!("device cuda:{ordinal}"))?;
        let step = format!("opening cuda:{ordinal}");
        let n = device_count(&step)?;
        if ordinal >= n {
            let help = match n {
                0 => "the driver finds no GPU; use --device cpu".to_string(),
                1 => "this machine has one GPU, cuda:0".to_string(),
                n => format!("this machine has {n} GPUs, cuda:0 to cuda:{}", n - 1),
            };
            return Err(Error::Unsupported { what: format!("device cuda:{ordinal}"), help });
        }
        let context = CudaContext::new(ordinal).map_err(failed(&step))?;
        // SAFETY: all work is on one stream, so that no slice needs events.
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream().map_err(failed(&step))?;
        Ok(Gpu { ordinal, context, stream, under_way: Cell::new(None) })
    }

    /// The device as plans need to know it: name, memory that a plan may take, rates of the named device it is, or
    /// zeros.
    ///
    /// # Errors
    /// [`Error::Cuda`] if the driver does not answer.
    pub fn device(&self) -> Result<Device> {
        let step = format!("asking cuda:{}", self.ordinal);
        let attribute = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
        let name = self.context.name().map_err(failed(&step))?;
        let (free, _) = self.memory()?;
        let multiprocessors = self.context.attribute(attribute).map_err(failed(&step))? as usize;
        let known = Device::gpu_by_product_name(&name);
        Ok(Device {
            name: format!("cuda:{} ({name})", self.ordinal),
            kind: DeviceKind::Cuda { multiprocessors },
            memory_bytes: free.saturating_sub(RESERVED_BYTES),
            read_bytes_per_s: known.as_ref().map_or(0.0, |d| d.read_bytes_per_s),
            flops_per_s: known.as_ref().map_or(0.0, |d| d.flops_per_s),
            peak_flops_per_s: known.as_ref().map_or(0.0, |d| d.peak_flops_per_s),
        })
    }

    /// Free and total bytes of the device's memory.
    ///
    /// # Errors
    /// As [`Gpu::device`].
    pub fn memory(&self) -> Result<(u64, u64)> {
        let step = format!("asking cuda:{}", self.ordinal);
        let (free, total) = self.context.mem_get_info().map_err(failed(&step))?;
        Ok((free as u64, total as u64))
    }

    /// Compute capability.
    ///
    /// # Errors
    /// As [`Gpu::device`].
    pub fn capability(&self) -> Result<(u32, u32)> {
        let step = format!("asking cuda:{}", self.ordinal);
        let (major, minor) = self.context.compute_capability().map_err(failed(&step))?;
        Ok((major as u32, minor as u32))
    }

    /// Notes what is launched from here on.
    pub(super) fn launched(&self, program: &'static str, step: Option<usize>) {
        let place = Place { program, step };
        let first = self.under_way.get().map_or(place, |[first, _]| first);
        self.under_way.set(Some([first, place]));
    }

    /// Nothing is under way: the host has waited, or launches were only captured.
    pub(super) fn idle(&self) {
        self.under_way.set(None);
    }

    /// An error of the driver at `step`.
    pub(super) fn failed(&self, step: &str) -> impl FnOnce(DriverError) -> Error {
        move |error| Error::Cuda { step: step.to_string(), problem: self.problem(error) }
    }

    /// An error of a launcher at `step`.
    pub(super) fn kernel_error(&self, step: &str, error: kernels::Error) -> Error {
        let problem = match error {
            kernels::Error::Unsupported { what, help } => return Error::Unsupported { what, help },
            kernels::Error::Driver { what, source } => format!("{what}: {}", self.problem(source)),
            other => other.to_string(),
        };
        Error::Cuda { step: step.to_string(), problem }
    }

    /// What the driver says, and of which steps where kernels that ran behind the calls may have failed.
    fn problem(&self, error: DriverError) -> String {
        if error.0 == CUDA_ERROR_OUT_OF_MEMORY {
            let free = self.context.mem_get_info().map_or(0, |(free, _)| free);
            return format!(
                "{error}, {free} bytes are free: the plan did fit when it was made, so other programs or engines have \
                 taken memory since; end them, or load with a smaller context"
            );
        }
        if !is_of_kernel(error) {
            return error.to_string();
        }
        let place = match self.under_way.get() {
            None => String::new(),
            Some([first, last]) if first == last => format!(", hit by {last}"),
            Some([first, last]) => format!(
                ", hit by one of the steps launched since the last wait, {first} to {last} (with \
                 CUDA_LAUNCH_BLOCKING=1 it is named)"
            ),
        };
        format!("{error}{place}: the device takes no more work from this process, start it anew")
    }

    /// Takes `bytes` of device memory, uninitialised. Not from the driver's pool, which would keep it when it is freed.
    pub(super) fn block(&self, what: &str, bytes: u64) -> Result<Block> {
        let step = format!("allocating {bytes} bytes for {what}");
        let failed = |error| self.failed(&step)(error);
        self.context.bind_to_thread().map_err(failed)?;
        // SAFETY: steps read only what steps or uploads have written: the plan orders them. At least a byte, as the
        // driver gives no fewer.
        let address = unsafe { result::malloc_sync(bytes.max(1) as usize) }.map_err(failed)?;
        Ok(Block { context: Arc::clone(&self.context), address, bytes })
    }

    /// Fills a range with zeros.
    pub(super) fn zero(&self, step: &str, address: u64, bytes: u64) -> Result<()> {
        // SAFETY: callers pass ranges within their blocks.
        unsafe { result::memset_d8_async(address, 0, bytes as usize, self.stream.cu_stream()) }
            .map_err(self.failed(step))
    }

    /// Copies within the device.
    pub(super) fn copy(&self, step: &str, to: u64, from: u64, bytes: usize) -> Result<()> {
        // SAFETY: callers pass ranges within their blocks that do not overlap.
        unsafe { result::memcpy_dtod_async(to, from, bytes, self.stream.cu_stream()) }
            .map_err(self.failed(step))
    }

    /// Copies to the host once everything before is done, and waits for it.
    pub(super) fn read<T: DeviceRepr>(&self, step: &str, from: u64, to: &mut [T]) -> Result<()> {
        self.context.bind_to_thread().map_err(self.failed(step))?;
        // SAFETY: callers pass ranges within their blocks, and `to` is used after the wait.
        unsafe { result::memcpy_dtoh_async(to, from, self.stream.cu_stream()) }.map_err(self.failed(step))?;
        self.wait(step)
    }

    /// Waits for everything.
    pub(super) fn wait(&self, step: &str) -> Result<()> {
        self.stream.synchronize().map_err(self.failed(step))?;
        self.idle();
        Ok(())
    }
}

impl Block {
    /// Where it starts.
    pub(super) fn address(&self) -> u64 {
        self.address
    }

    /// Bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        if self.context.bind_to_thread().is_ok() {
            // SAFETY: allocated by `Gpu::block`; the driver waits for what still uses it. Nothing can be done about an
            // error.
            let _ = unsafe { result::free_sync(self.address) };
        }
    }
}

impl Staging {
    pub(super) fn new(gpu: &Gpu) -> Result<Staging> {
        let half = || -> Result<Half, DriverError> {
            // SAFETY: every byte is written before the copy that reads it.
            let memory = unsafe { gpu.context.alloc_pinned::<u8>(STAGING_BYTES) }?;
            Ok(Half { memory, copied: gpu.context.new_event(None)? })
        };
        let step = "allocating pinned memory";
        Ok(Staging {
            halves: [half().map_err(gpu.failed(step))?, half().map_err(gpu.failed(step))?],
            next: 0,
        })
    }

    /// Copies `bytes` to `address`; they may change afterwards. Waits only for the half it writes.
    pub(super) fn upload(&mut self, gpu: &Gpu, step: &str, address: u64, bytes: &[u8]) -> Result<()> {
        let mut at = address;
        for piece in bytes.chunks(STAGING_BYTES) {
            let half = &mut self.halves[self.next];
            self.next = 1 - self.next;
            half.send(gpu, at, piece).map_err(gpu.failed(step))?;
            at += piece.len() as u64;
        }
        Ok(())
    }
}

impl Half {
    fn send(&mut self, gpu: &Gpu, address: u64, piece: &[u8]) -> Result<(), DriverError> {
        self.copied.synchronize()?;
        let pinned = &mut self.memory.as_mut_slice()?[..piece.len()];
        pinned.copy_from_slice(piece);
        // SAFETY: the caller's range is within its block, and nothing writes the half before its event has
        // come.
        unsafe { result::memcpy_htod_async(address, pinned, gpu.stream.cu_stream()) }?;
        self.copied.record(&gpu.stream)
    }
}

impl Drop for Half {
    fn drop(&mut self) {
        // A copy may still read the memory. Nothing can be done about an error.
        let _ = self.copied.synchronize();
    }
}
