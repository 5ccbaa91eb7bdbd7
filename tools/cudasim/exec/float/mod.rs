//! Floating-point arithmetic as PTX defines it.

pub(crate) mod convert;
pub(crate) mod exact;
pub(crate) mod f32s;
pub(crate) mod half;
pub(crate) mod round;
