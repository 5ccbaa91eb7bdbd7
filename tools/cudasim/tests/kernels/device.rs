//! A simulated device with buffers, and launches that are expected to be clean.

use cudasim::decode::Module;
use cudasim::exec::{self, ExecOptions, GlobalAddresses, Launch, Outcome};
use cudasim::memory::GlobalMemory;

use crate::common;

/// The six ways in which every kernel was compiled.
pub const VARIANTS: [&str; 6] =
    ["nvcc13.O3", "nvcc13.O0", "nvcc13.G", "nvrtc12.O3", "nvrtc12.O0", "nvrtc12.G"];

/// An argument of a kernel.
#[derive(Clone, Copy)]
pub enum Arg {
    Ptr(u64),
    I32(i32),
    U16(u16),
}

impl Arg {
    fn bytes(self) -> Vec<u8> {
        match self {
            Arg::Ptr(value) => value.to_le_bytes().to_vec(),
            Arg::I32(value) => value.to_le_bytes().to_vec(),
            Arg::U16(value) => value.to_le_bytes().to_vec(),
        }
    }
}

/// Numbers that go to a device and back as bytes.
pub trait Number: Copy {
    fn put(self, to: &mut Vec<u8>);
    fn take(from: &[u8]) -> Self;
}

macro_rules! numbers {
    ($($type:ty)*) => {$(
        impl Number for $type {
            fn put(self, to: &mut Vec<u8>) {
                to.extend(self.to_le_bytes());
            }
            fn take(from: &[u8]) -> Self {
                <$type>::from_le_bytes(from.try_into().unwrap())
            }
        }
    )*};
}
numbers!(u8 u16 i32 u32 i64 u64 f32 f64);

/// A device and a module on it.
pub struct Device {
    pub memory: GlobalMemory,
    pub options: ExecOptions,
    module: Module,
    globals: GlobalAddresses,
    name: String,
}

impl Device {
    /// With a module of `tests/kernels/ptx`.
    pub fn new(name: &str) -> Device {
        Device::with_text(name, &common::ptx(name))
    }

    /// With a module from text.
    pub fn with_text(name: &str, text: &str) -> Device {
        let memory = GlobalMemory::new(1 << 30).unwrap();
        let module = Module::parse(text).unwrap_or_else(|error| panic!("{name}: {error}"));
        let globals = GlobalAddresses::place(&module, &memory).unwrap();
        Device { memory, options: ExecOptions::default(), module, globals, name: name.to_owned() }
    }

    /// A buffer with these numbers.
    pub fn upload<T: Number>(&self, data: &[T]) -> Arg {
        let mut bytes = Vec::new();
        data.iter().for_each(|number| number.put(&mut bytes));
        let address = self.memory.alloc(bytes.len() as u64).unwrap();
        self.memory.write(address, &bytes).unwrap();
        Arg::Ptr(address)
    }

    /// A buffer of `count` numbers that nobody wrote.
    pub fn buffer<T: Number>(&self, count: usize) -> Arg {
        Arg::Ptr(self.memory.alloc((count * size_of::<T>()) as u64).unwrap())
    }

    /// The numbers in a buffer.
    pub fn download<T: Number>(&self, buffer: Arg, count: usize) -> Vec<T> {
        let Arg::Ptr(address) = buffer else { panic!("not a buffer") };
        let mut bytes = vec![0; count * size_of::<T>()];
        self.memory.read(address, &mut bytes).unwrap();
        bytes.chunks(size_of::<T>()).map(T::take).collect()
    }

    /// Runs a kernel.
    pub fn launch(&self, kernel: &str, grid: [u32; 3], block: u32, shared: u32, args: &[Arg]) -> Outcome {
        let kernel = self.module.kernel(kernel).unwrap_or_else(|| panic!("{} has no {kernel}", self.name));
        let mut params = vec![0; kernel.param_bytes as usize];
        assert_eq!(args.len(), kernel.params.len());
        for (arg, param) in args.iter().zip(&kernel.params) {
            params[param.offset as usize..][..param.size as usize].copy_from_slice(&arg.bytes());
        }
        let launch = Launch {
            kernel,
            grid,
            block: [block, 1, 1],
            dynamic_shared_bytes: shared,
            params: &params,
            cooperative: false,
            globals: &self.globals,
        };
        exec::run(&launch, &self.memory, &self.options)
    }

    /// Runs a kernel that nothing is to be said about.
    pub fn run(&self, kernel: &str, grid: [u32; 3], block: u32, shared: u32, args: &[Arg]) -> Outcome {
        let outcome = self.launch(kernel, grid, block, shared, args);
        let said: Vec<String> = outcome.fatal.iter().chain(&outcome.reports).map(|r| r.to_string()).collect();
        assert!(said.is_empty(), "{} {kernel}:\n{}", self.name, said.join("\n"));
        outcome
    }
}

/// A one-dimensional grid.
pub fn grid(ctas: u32) -> [u32; 3] {
    [ctas, 1, 1]
}

/// Random numbers: splitmix64.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From -1 to 1.
    pub fn float(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    pub fn floats(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.float()).collect()
    }

    pub fn ints(&mut self, n: usize) -> Vec<i32> {
        (0..n).map(|_| self.next() as i32).collect()
    }

    /// From 0 to `n` - 1.
    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

/// Fails unless every number is within `relative` of the expected one, or within `absolute`.
#[track_caller]
pub fn assert_close(what: &str, got: &[f32], want: &[f64], relative: f64, absolute: f64) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let error = (f64::from(*got) - want).abs();
        assert!(error <= absolute + relative * want.abs(), "{what}: element {i} is {got}, expected {want}");
    }
}
