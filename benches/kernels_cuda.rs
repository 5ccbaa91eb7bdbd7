//! Every CUDA kernel at the shapes of the published models: time, bytes and FLOP against the bounds of an A100 80 GB.
//!
//! `cargo bench --features cuda --bench kernels_cuda [FILTER]` on a GPU: medians, L2 flushed before each launch. Under
//! `cudasim env` times are modelled: set CUDASIM_CHECKS=none CUDASIM_SAMPLE=8. The counters of the simulated GPU are in
//! `kernels_cuda.txt` beside this file.

#[cfg(not(feature = "cuda"))]
fn main() {}

#[cfg(feature = "cuda")]
#[path = "../tests/kernels_cuda/shapes/mod.rs"]
#[allow(dead_code)]
mod shapes;

#[cfg(feature = "cuda")]
fn main() {
    cuda::main();
}

#[cfg(feature = "cuda")]
mod cuda {
    use cudarc::driver::{CudaContext, CudaStream, result, sys};
    use qwenvl::kernels::cuda::Kernels;

    use crate::shapes::{Case, Shapes};

    /// Best read bandwidth seen on an A100 80 GB, and its dense 16-bit peak.
    const BYTES_PER_S: f64 = 1.80e12;
    const FLOPS: f64 = 312e12;
    const FLUSH_BYTES: usize = 96 << 20;

    pub fn main() {
        let context = CudaContext::new(0).expect("a CUDA device, or `cudasim env`");
        let name = context.name().expect("a name");
        let simulated = name.contains("simulated");
        let kernels = Kernels::load(&context).unwrap_or_else(|e| panic!("{e}"));
        let stream = context.new_stream().expect("a stream");
        // SAFETY: never freed.
        let flush = unsafe { result::malloc_sync(FLUSH_BYTES) }.expect("device memory");
        let filter = std::env::args().skip(1).find(|a| !a.starts_with('-'));
        println!("{name}{}", if simulated { ": times are modelled" } else { "" });
        let time = |launch: &dyn Fn(&CudaStream)| {
            if !simulated {
                // SAFETY: the memory is that long.
                unsafe { result::memset_d8_async(flush, 0, FLUSH_BYTES, stream.cu_stream()) }.expect("flush");
            }
            let flags = Some(sys::CUevent_flags::CU_EVENT_DEFAULT);
            let start = stream.record_event(flags).expect("event");
            launch(&stream);
            let end = stream.record_event(flags).expect("event");
            stream.synchronize().expect("launch");
            f64::from(start.elapsed_ms(&end).expect("time")) * 1e3
        };
        let mut run = |case: &Case, launch: &dyn Fn(&CudaStream)| {
            let mut times: Vec<f64> = (0..if simulated { 1 } else { 21 }).map(|_| time(launch)).collect();
            times.sort_by(f64::total_cmp);
            let us = times[times.len() / 2];
            let bound = (case.bytes / BYTES_PER_S).max(case.flops / FLOPS) * 1e6;
            println!(
                "{:<44} {us:>9.1} us {:>7.0} GB/s {:>6.1} TFLOP/s  bound {bound:>8.1} us {:>5.1} %",
                case.name,
                case.bytes / us * 1e-3,
                case.flops / us * 1e-6,
                100.0 * bound / us
            );
        };
        let wanted = |case: &Case| filter.as_ref().is_none_or(|f| case.name.contains(f.as_str()));
        Shapes { kernels: &kernels, wanted: &wanted, run: &mut run, keeps_memory: simulated }.all();
    }
}
