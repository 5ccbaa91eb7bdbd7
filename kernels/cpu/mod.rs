//! Kernels for the host's processor.
//!
//! Every kernel is written once, over the vectors of `simd::Simd`, and compiled for each
//! instruction set; [`Isa`] picks one at run time. All instruction sets give the same bits: sums
//! have a fixed order, written down where each kernel starts, and that order does not depend on how
//! many rows run together or on how many threads there are.

// Kernels take shapes and strides as plain numbers, and index registers by them.
#![allow(clippy::too_many_arguments, clippy::needless_range_loop)]

mod aligned;
pub mod attention;
pub mod dense;
pub mod embed;
pub mod grouped;
pub mod int4;
pub mod int8;
pub mod linear;
pub mod norm;
pub mod order;
pub mod peak;
pub mod pointwise;
pub mod pool;
pub mod resample;
pub mod rope;
pub mod rounded;
mod shared;
mod simd;

pub use aligned::{Aligned, Plane, SharedBytes, zeroed_bytes};
pub use pool::Pool;

/// An instruction set that this processor has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Isa(Level);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Level {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Isa {
    /// The best one.
    pub fn detect() -> Isa {
        static BEST: std::sync::OnceLock<Isa> = std::sync::OnceLock::new();
        *BEST.get_or_init(|| *Isa::available().last().expect("the portable one is always there"))
    }

    /// All of them, the best one last. The first is plain Rust.
    pub fn available() -> Vec<Isa> {
        #[allow(unused_mut)]
        let mut out = vec![Isa(Level::Portable)];
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c")
        {
            out.push(Isa(Level::Avx2));
            if is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512vnni")
            {
                out.push(Isa(Level::Avx512));
            }
        }
        out
    }

    /// Its name: `portable`, or `avx2` for AVX2 with FMA and F16C.
    pub fn name(self) -> &'static str {
        match self.0 {
            Level::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => "avx512",
        }
    }
}

/// Defines `fn $name(isa: Isa, args)`, which runs the generic `$body::<S>(args)` compiled for `isa`.
macro_rules! dispatch {
    ($(#[$meta:meta])* $vis:vis fn $name:ident => $body:ident ( $($arg:ident : $ty:ty),* $(,)? ) $(-> $ret:ty)?) => {
        $(#[$meta])*
        /// # Safety
        /// That of the generic body.
        #[allow(clippy::too_many_arguments)]
        $vis unsafe fn $name(isa: $crate::kernels::cpu::Isa, $($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            #[allow(clippy::too_many_arguments)]
            unsafe fn avx2($($arg: $ty),*) $(-> $ret)? {
                // SAFETY: the caller of the outer function upholds the contract of the body.
                unsafe { $body::<$crate::kernels::cpu::simd::Avx2>($($arg),*) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
            #[allow(clippy::too_many_arguments)]
            unsafe fn avx512($($arg: $ty),*) $(-> $ret)? {
                // SAFETY: the caller of the outer function upholds the contract of the body.
                unsafe { $body::<$crate::kernels::cpu::simd::Avx512>($($arg),*) }
            }
            match isa.0 {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: `Isa::available` made `isa` after it checked for the features; the rest
                // is the caller's contract.
                $crate::kernels::cpu::Level::Avx2 => unsafe { avx2($($arg),*) },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: as above.
                $crate::kernels::cpu::Level::Avx512 => unsafe { avx512($($arg),*) },
                // SAFETY: the caller's contract.
                $crate::kernels::cpu::Level::Portable => unsafe {
                    $body::<$crate::kernels::cpu::simd::Portable>($($arg),*)
                },
            }
        }
    };
}
pub(crate) use dispatch;
