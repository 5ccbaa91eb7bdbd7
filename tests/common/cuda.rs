//! A CUDA device for tests: a real one, or the simulated one of `cudasim env`.
#![allow(dead_code)]

use std::sync::{Arc, LazyLock};

use cudarc::driver::{CudaContext, CudaSlice, CudaStream, DevicePtr, DeviceRepr};
use half::{bf16, f16};
use qwenvl::kernels::cuda::{Half, Kernels};

/// All kernels on device 0.
pub static KERNELS: LazyLock<Kernels> = LazyLock::new(|| {
    let context = CudaContext::new(0).expect("device 0: a GPU, or the simulated one of `cudasim env`");
    // SAFETY: every test has one stream, so that nothing has to be ordered by events.
    unsafe { context.disable_event_tracking() };
    Kernels::load(&context).expect("the kernels")
});

/// Both activation types.
pub const HALVES: [Half; 2] = [Half::BF16, Half::F16];

/// A stream with its kernels.
pub struct Rig {
    pub kernels: &'static Kernels,
    pub stream: Arc<CudaStream>,
}

impl Rig {
    pub fn new() -> Rig {
        let kernels = &*KERNELS;
        Rig { kernels, stream: kernels.context().new_stream().expect("a stream") }
    }

    /// A copy in device memory. Never empty, so that it has an address.
    pub fn upload<T: DeviceRepr + Clone + Default>(&self, data: &[T]) -> Buffer<T> {
        let data = if data.is_empty() { vec![T::default()] } else { data.to_vec() };
        Buffer { data: self.stream.clone_htod(&data).expect("device memory"), stream: self.stream.clone() }
    }

    /// Zero bytes, set on the device.
    pub fn zeroed(&self, bytes: usize) -> Buffer<u8> {
        Buffer { data: self.stream.alloc_zeros(bytes).expect("device memory"), stream: self.stream.clone() }
    }

    /// `len` copies of one value.
    pub fn filled<T: DeviceRepr + Clone + Default>(&self, value: T, len: usize) -> Buffer<T> {
        self.upload(&vec![value; len])
    }
}

/// Device memory.
pub struct Buffer<T> {
    data: CudaSlice<T>,
    stream: Arc<CudaStream>,
}

impl<T: DeviceRepr> Buffer<T> {
    /// Where it is.
    pub fn address(&self) -> u64 {
        self.data.device_ptr(&self.stream).0
    }

    /// What it holds once the stream has run.
    pub fn read(&self) -> Vec<T> {
        let data = self.stream.clone_dtoh(&self.data).expect("a copy");
        self.stream.synchronize().expect("the stream");
        data
    }
}

impl Buffer<u8> {
    /// Sets all bytes to zero, on the stream.
    pub fn zero(&mut self) {
        self.stream.memset_zeros(&mut self.data).expect("a memset");
    }
}

/// 16-bit numbers, rounded.
pub fn encode(half: Half, data: &[f32]) -> Vec<u16> {
    let bits = |x: &f32| match half {
        Half::BF16 => bf16::from_f32(*x).to_bits(),
        Half::F16 => f16::from_f32(*x).to_bits(),
    };
    data.iter().map(bits).collect()
}

/// 16-bit numbers, exactly.
pub fn decode(half: Half, data: &[u16]) -> Vec<f64> {
    let number = |x: &u16| match half {
        Half::BF16 => bf16::from_bits(*x).to_f64(),
        Half::F16 => f16::from_bits(*x).to_f64(),
    };
    data.iter().map(number).collect()
}

/// Not a number in both types.
pub const POISON: u16 = 0x7fff;

/// Largest relative error of rounding to a type.
pub fn roundoff(half: Half) -> f64 {
    match half {
        Half::BF16 => 1.0 / 256.0,
        Half::F16 => 1.0 / 2048.0,
    }
}
