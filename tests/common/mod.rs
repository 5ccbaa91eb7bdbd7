//! What several test files share.
#![allow(dead_code)]

pub mod reference;
pub mod rng;
pub mod tolerance;
