//! The device, memory on it, and 16-bit numbers.

use std::marker::PhantomData;
use std::sync::{Arc, OnceLock};

use bytemuck::Pod;
use cudarc::driver::{CudaContext, CudaStream, result};
use qwenvl::kernels::cuda::{Address, Half, IMAGES, Image, Kernels};

use crate::common::rng::Rng;

pub struct Gpu {
    pub kernels: Kernels,
    context: Arc<CudaContext>,
}

static GPU: OnceLock<Gpu> = OnceLock::new();

/// `name=FILE`: the image of that name is the PTX in the file. Then the process ends at the first failure; see
/// `mutations.rs`.
pub const MUTANT: &str = "QWENVL_TEST_MUTANT";

/// The first device. The tests are for machines that have one, or `cudasim`.
pub fn gpu() -> &'static Gpu {
    GPU.get_or_init(|| {
        let context = CudaContext::new(0).expect("a CUDA device, or `cudasim env`");
        // SAFETY: the tests order their work on one stream each.
        unsafe { context.disable_event_tracking() };
        let kernels = match std::env::var(MUTANT) {
            Err(_) => Kernels::load(&context),
            Ok(mutant) => {
                std::panic::set_hook(Box::new(|_| std::process::exit(101)));
                let (name, file) = mutant.split_once('=').expect("name=FILE");
                let mut ptx = std::fs::read(file).expect("PTX");
                ptx.push(0);
                let ptx: &'static [u8] = ptx.leak();
                // The linears are large, and of others none is tested, but for one beside the kernel of all layers.
                let beside = if name == "decode_layers" { "int4_gemm" } else { name };
                let wanted = IMAGES.iter().filter(|image| image.name == beside || !is_linear(image.name));
                let images: Vec<Image> = wanted
                    .map(|&Image { name: own, bytes, resources }| Image {
                        name: own,
                        bytes: if own == name { ptx } else { bytes },
                        resources,
                    })
                    .collect();
                Kernels::load_images(&context, &images)
            }
        };
        Gpu { kernels: kernels.unwrap_or_else(|e| panic!("{e}")), context }
    })
}

fn is_linear(image: &str) -> bool {
    image.ends_with("_gemm")
}

/// Whether a mutant is tested.
pub fn is_mutant() -> bool {
    std::env::var(MUTANT).is_ok()
}

/// Whether the linears of an image are tested: of mutants of one, those.
pub fn is_tested(image: &str) -> bool {
    let mutant = std::env::var(MUTANT).ok();
    let name = mutant.as_ref().and_then(|m| m.split_once('=')).map(|(name, _)| name);
    name.is_none_or(|name| if is_linear(name) { name == image } else { false })
}

impl Gpu {
    /// Whether this is `cudasim`.
    pub fn is_simulated(&self) -> bool {
        self.context.name().expect("a name").contains("simulated")
    }
}

/// The stream of this test.
pub fn stream() -> Arc<CudaStream> {
    thread_local! {
        static STREAM: Arc<CudaStream> = {
            gpu().context.bind_to_thread().unwrap();
            gpu().context.new_stream().unwrap()
        };
    }
    STREAM.with(Arc::clone)
}

/// Memory on the device, exactly as long as asked for, so that a checker sees what is beyond.
pub struct Buffer<T> {
    pub at: Address,
    len: usize,
    of: PhantomData<T>,
}

impl<T: Pod> Buffer<T> {
    fn new(len: usize) -> Buffer<T> {
        gpu().context.bind_to_thread().unwrap();
        // Never empty, so that it has an address.
        let bytes = (len * size_of::<T>()).max(1);
        // SAFETY: freed by `drop`.
        Buffer { at: unsafe { result::malloc_sync(bytes) }.unwrap(), len, of: PhantomData }
    }

    pub fn of(values: &[T]) -> Buffer<T> {
        let buffer = Buffer::new(values.len());
        if !values.is_empty() {
            // SAFETY: the memory was just allocated.
            unsafe { result::memcpy_htod_sync(buffer.at, values) }.unwrap();
            settle();
        }
        buffer
    }

    pub fn filled(value: T, len: usize) -> Buffer<T> {
        Buffer::of(&vec![value; len])
    }

    /// NaN in every type, [`POISON`] in 16 bits.
    pub fn poisoned(len: usize) -> Buffer<T> {
        let buffer = Buffer::new(len);
        buffer.fill(0xff);
        buffer
    }

    /// Memory that a kernel must write before it reads it: poisoned, or not written at all where a simulated GPU sees to
    /// that.
    pub fn scratch(len: usize) -> Buffer<T> {
        if gpu().is_simulated() { Buffer::new(len) } else { Buffer::poisoned(len) }
    }

    pub fn zeroed(len: usize) -> Buffer<T> {
        let buffer = Buffer::new(len);
        buffer.fill(0);
        buffer
    }

    fn fill(&self, byte: u8) {
        // SAFETY: the memory was just allocated.
        unsafe { result::memset_d8_sync(self.at, byte, self.len * size_of::<T>()) }.unwrap();
        settle();
    }

    /// Waits for the test's stream, then reads all.
    pub fn read(&self) -> Vec<T> {
        stream().synchronize().unwrap();
        let mut out = vec![T::zeroed(); self.len];
        // SAFETY: the memory is alive.
        unsafe { result::memcpy_dtoh_sync(&mut out, self.at) }.unwrap();
        out
    }
}

impl<T> Drop for Buffer<T> {
    fn drop(&mut self) {
        if gpu().context.bind_to_thread().is_ok() {
            // SAFETY: allocated by `new`; tests wait for their streams before they drop.
            let _ = unsafe { result::free_sync(self.at) };
        }
    }
}

/// Waits for what was sent or filled: calls named synchronous return before the device is done, and the streams of tests
/// do not wait for them.
fn settle() {
    // SAFETY: the default stream.
    unsafe { result::stream::synchronize(std::ptr::null_mut()) }.unwrap();
}

/// Structs of `abi.h` as words.
pub fn words<T: Copy>(data: &[T]) -> Buffer<u32> {
    assert_eq!(size_of::<T>() % 4, 0);
    // SAFETY: the structs are of u32 only, without padding.
    Buffer::of(unsafe { std::slice::from_raw_parts(data.as_ptr().cast::<u32>(), size_of_val(data) / 4) })
}

pub const HALVES: [Half; 2] = [Half::BF16, Half::F16];

/// Not a number in both types.
pub const POISON: u16 = 0xffff;

/// The bits of numbers, rounded.
pub fn encode(half: Half, numbers: &[f32]) -> Vec<u16> {
    numbers.iter().map(|x| round_to(half, *x)).collect()
}

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

/// About normal numbers, rounded.
pub fn normals(rng: &mut Rng, half: Half, n: usize) -> Vec<u16> {
    encode(half, &rng.normals(n))
}

/// Angles `[positions, columns]` of (cos, sin), as f32, and the angles themselves.
pub fn angle_table(rng: &mut Rng, positions: usize, columns: usize) -> (Vec<f32>, Vec<f64>) {
    let angles: Vec<f64> = (0..positions * columns).map(|_| f64::from(rng.unit()) * 7.0).collect();
    (angles.iter().flat_map(|a| [a.cos() as f32, a.sin() as f32]).collect(), angles)
}

// ---- tolerances ----

/// Unit roundoff of a 16-bit type.
pub fn roundoff(half: Half) -> f64 {
    match half {
        Half::BF16 => 1.0 / 256.0,
        Half::F16 => 1.0 / 2048.0,
    }
}

/// The largest absolute error of rounding to a 16-bit type below its normal numbers.
pub fn underflow(half: Half) -> f64 {
    match half {
        Half::BF16 => 0.0,
        Half::F16 => 0.5f64.powi(25),
    }
}

/// `found` is `exact`, which may be off by `error`, rounded to `half`.
#[track_caller]
pub fn check_rounded(half: Half, found: u16, exact: f64, error: f64, what: &dyn Fn() -> String) {
    let off = (value(half, found) - exact).abs();
    let bound = roundoff(half) * (exact.abs() + error) + underflow(half) + error;
    assert!(off <= bound, "{}: {} {exact}: {off:e} > {bound:e}", what(), value(half, found));
}

/// `found` is within `bound` of `exact`.
#[track_caller]
pub fn assert_within(what: &dyn Fn() -> String, found: f64, exact: f64, bound: f64) {
    let error = (found - exact).abs();
    assert!(error <= bound, "{}: {found} is {error:e} from {exact}, bound {bound:e}", what());
}
