//! The device, memory on it, and 16-bit numbers.

use std::sync::{Arc, OnceLock};

use cudarc::driver::{CudaContext, CudaStream, result};
use qwenvl::kernels::cuda::{Address, Half, Kernels};

pub struct Gpu {
    pub kernels: Kernels,
    context: Arc<CudaContext>,
}

static GPU: OnceLock<Gpu> = OnceLock::new();

/// The first device. The tests are for machines that have one, or `cudasim`.
pub fn gpu() -> &'static Gpu {
    GPU.get_or_init(|| {
        let context = CudaContext::new(0).expect("a CUDA device, or `cudasim env`");
        // SAFETY: the tests order their work on one stream each.
        unsafe { context.disable_event_tracking() };
        let kernels = Kernels::load(&context).unwrap_or_else(|e| panic!("{e}"));
        Gpu { kernels, context }
    })
}

impl Gpu {
    pub fn stream(&self) -> Arc<CudaStream> {
        self.context.bind_to_thread().unwrap();
        self.context.new_stream().unwrap()
    }
}

/// Memory on the device, exactly as long as asked for, so that a checker sees what is beyond.
pub struct Buffer {
    pub at: Address,
    bytes: usize,
}

impl Buffer {
    fn new(bytes: usize) -> Buffer {
        gpu().context.bind_to_thread().unwrap();
        // SAFETY: freed by `drop`.
        Buffer { at: unsafe { result::malloc_sync(bytes) }.unwrap(), bytes }
    }

    pub fn of<T: bytemuck::Pod>(values: &[T]) -> Buffer {
        let buffer = Buffer::new(size_of_val(values));
        // SAFETY: the memory was just allocated.
        unsafe { result::memcpy_htod_sync(buffer.at, values) }.unwrap();
        buffer
    }

    /// NaN in every type.
    pub fn poisoned(bytes: usize) -> Buffer {
        let buffer = Buffer::new(bytes);
        buffer.fill(0xff);
        buffer
    }

    pub fn zeroed(bytes: usize) -> Buffer {
        let buffer = Buffer::new(bytes);
        buffer.fill(0);
        buffer
    }

    fn fill(&self, byte: u8) {
        // SAFETY: the memory was just allocated.
        unsafe { result::memset_d8_sync(self.at, byte, self.bytes) }.unwrap();
    }

    /// Waits for `stream`, then reads all.
    pub fn read<T: bytemuck::Pod>(&self, stream: &CudaStream) -> Vec<T> {
        stream.synchronize().unwrap();
        let mut out = vec![T::zeroed(); self.bytes / size_of::<T>()];
        // SAFETY: the memory is alive.
        unsafe { result::memcpy_dtoh_sync(&mut out, self.at) }.unwrap();
        out
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if gpu().context.bind_to_thread().is_ok() {
            // SAFETY: allocated by `new`; tests wait for their streams before they drop.
            let _ = unsafe { result::free_sync(self.at) };
        }
    }
}

pub const HALVES: [Half; 2] = [Half::BF16, Half::F16];

/// The bits of `x` rounded.
pub fn round_to(half: Half, x: f32) -> u16 {
    match half {
        Half::BF16 => half::bf16::from_f32(x).to_bits(),
        Half::F16 => half::f16::from_f32(x).to_bits(),
    }
}

pub fn value(half: Half, bits: u16) -> f64 {
    match half {
        Half::BF16 => half::bf16::from_bits(bits).to_f64(),
        Half::F16 => half::f16::from_bits(bits).to_f64(),
    }
}

pub fn values(half: Half, bits: &[u16]) -> Vec<f64> {
    bits.iter().map(|b| value(half, *b)).collect()
}

/// Half a unit in the last place, relative; and for F16 half the smallest step, absolute.
pub fn rounding(half: Half) -> (f64, f64) {
    match half {
        Half::BF16 => (1.0 / 256.0, 0.0),
        Half::F16 => (1.0 / 2048.0, 0.5f64.powi(25)),
    }
}

/// About normal numbers, rounded.
pub fn normals(rng: &mut crate::common::rng::Rng, half: Half, n: usize) -> Vec<u16> {
    rng.normals(n).into_iter().map(|x| round_to(half, x)).collect()
}
