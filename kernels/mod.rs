//! Kernels: leaves that know slices and shapes, not requests, plans or files.

pub mod cpu;
