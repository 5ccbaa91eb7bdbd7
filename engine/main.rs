//! The `qwenvl` command.
fn main() {}
