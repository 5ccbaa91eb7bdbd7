//! The commands, one file each.

pub mod argument;
pub mod env;
pub mod report;
pub mod run;
