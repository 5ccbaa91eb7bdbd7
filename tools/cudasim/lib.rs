//! A simulated CUDA GPU: a stand-in `libcuda.so.1` that executes the PTX of kernels on the CPU, checks what
//! hardware would not tell, and counts what a profiler would.

pub mod ptx;
