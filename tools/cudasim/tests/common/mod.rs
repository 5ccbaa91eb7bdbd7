//! Files of `tests/kernels/ptx`.
#![allow(dead_code, reason = "no test uses all of it")]

use std::io::Read;
use std::path::PathBuf;

/// A file of `tests/kernels/ptx`, uncompressed.
pub fn file(name: &str) -> Vec<u8> {
    let path =
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/kernels/ptx").join(format!("{name}.zst"));
    let packed = std::fs::read(&path)
        .unwrap_or_else(|error| panic!("{}: {error}; tests/kernels/regenerate makes it", path.display()));
    let mut decoder = ruzstd::decoding::StreamingDecoder::new(&packed[..]).unwrap();
    let mut plain = Vec::new();
    decoder.read_to_end(&mut plain).unwrap();
    plain
}

/// PTX text of `tests/kernels/ptx`, such as `vector.nvcc13.O3`.
pub fn ptx(name: &str) -> String {
    String::from_utf8(file(&format!("{name}.ptx"))).unwrap()
}
