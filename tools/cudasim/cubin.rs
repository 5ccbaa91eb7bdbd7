//! What the assembler decided for each kernel, read from a cubin: registers, static shared memory, stack (spills and
//! local arrays) and the number of machine instructions. The code itself is not executed.
//!
//! A cubin is an ELF file. Kernel `k` has its code in section `.text.k`, its static shared memory in `.nv.shared.k`
//! and attributes in `.nv.info` (for all kernels, by symbol) and `.nv.info.k`. Offsets and sizes in the file are not
//! trusted.

use serde::{Deserialize, Serialize};

/// Resources of one kernel in a cubin.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelResources {
    /// Name of the kernel.
    pub name: String,
    /// Registers per thread.
    pub registers: u32,
    /// Static shared memory per CTA.
    pub static_shared_bytes: u32,
    /// Stack frame per thread: spills and arrays in local memory.
    pub local_bytes: u32,
    /// Bytes of parameters.
    pub param_bytes: Option<u32>,
    /// Threads per CTA that `__launch_bounds__` allows.
    pub max_threads: Option<[u32; 3]>,
    /// Machine instructions without the padding behind the code.
    pub machine_instructions: u32,
}

/// Why a cubin was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CubinError {
    /// It does not begin as a 64-bit little-endian ELF file.
    #[error("not a cubin: no 64-bit little-endian ELF header")]
    NotElf,
    /// It is an ELF file for another machine.
    #[error("not a cubin: an ELF file for machine {0}, CUDA is 190")]
    OtherMachine(u16),
    /// A part of the file lies outside it.
    #[error("the cubin is cut short or damaged: {0} is not inside the file")]
    Truncated(&'static str),
}

const MACHINE_CUDA: u16 = 190;
const SECTION_HEADER_BYTES: u64 = 64;
const SYMBOL_BYTES: usize = 24;
const TYPE_NOBITS: u32 = 8;
const INSTRUCTION_BYTES: usize = 16;
/// Low 16 bits of NOP with the always-true guard.
const NOP: u16 = 0x7918;

const FORMAT_SIZED: u8 = 4;
const ATTRIBUTE_MAX_THREADS: u8 = 0x05;
const ATTRIBUTE_FRAME_SIZE: u8 = 0x11;
const ATTRIBUTE_MIN_STACK_SIZE: u8 = 0x12;
const ATTRIBUTE_CBANK_PARAM_SIZE: u8 = 0x19;
const ATTRIBUTE_MAX_STACK_SIZE: u8 = 0x23;
const ATTRIBUTE_REGCOUNT: u8 = 0x2f;

#[derive(Clone, Copy)]
struct Section<'a> {
    name: &'a str,
    /// Empty for a section without bytes in the file.
    data: &'a [u8],
    bytes: u64,
    info: u32,
}

/// Resources of all kernels of a cubin, in the order of their code.
///
/// # Errors
///
/// When the bytes are no cubin or parts of it lie outside the file.
pub fn kernels(cubin: &[u8]) -> Result<Vec<KernelResources>, CubinError> {
    let sections = sections(cubin)?;
    let find = |name: &str| sections.iter().find(|s| s.name == name);
    let symbols = find(".symtab").map_or(&[][..], |s| s.data);
    let strings = find(".strtab").map_or(&[][..], |s| s.data);
    let mut kernels: Vec<KernelResources> = sections
        .iter()
        .filter_map(|s| Some((s.name.strip_prefix(".text.")?, s)))
        .map(|(name, text)| KernelResources {
            name: name.into(),
            // Older cubins have the registers here only.
            registers: text.info >> 24,
            machine_instructions: machine_instructions(text.data),
            ..KernelResources::default()
        })
        .collect();
    if let Some(info) = find(".nv.info") {
        for (attribute, value) in attributes(info.data) {
            let (Some(symbol), Some(number)) = (u32_at(value, 0), u32_at(value, 4)) else { continue };
            let Some(name) = symbol_name(symbols, strings, symbol) else { continue };
            let Some(kernel) = kernels.iter_mut().find(|k| k.name == name) else { continue };
            match attribute {
                ATTRIBUTE_REGCOUNT => kernel.registers = number,
                ATTRIBUTE_FRAME_SIZE | ATTRIBUTE_MIN_STACK_SIZE | ATTRIBUTE_MAX_STACK_SIZE => {
                    kernel.local_bytes = kernel.local_bytes.max(number);
                }
                _ => {}
            }
        }
    }
    for kernel in &mut kernels {
        if let Some(shared) = find(&format!(".nv.shared.{}", kernel.name)) {
            kernel.static_shared_bytes = u32::try_from(shared.bytes).unwrap_or(u32::MAX);
        }
        let Some(info) = find(&format!(".nv.info.{}", kernel.name)) else { continue };
        for (attribute, value) in attributes(info.data) {
            match attribute {
                ATTRIBUTE_CBANK_PARAM_SIZE => kernel.param_bytes = u16_at(value, 0).map(u32::from),
                ATTRIBUTE_MAX_THREADS => {
                    kernel.max_threads = match (u32_at(value, 0), u32_at(value, 4), u32_at(value, 8)) {
                        (Some(x), Some(y), Some(z)) => Some([x, y, z]),
                        _ => None,
                    };
                }
                _ => {}
            }
        }
    }
    Ok(kernels)
}

fn sections(file: &[u8]) -> Result<Vec<Section<'_>>, CubinError> {
    if file.get(..6) != Some(b"\x7fELF\x02\x01") {
        return Err(CubinError::NotElf);
    }
    let header = CubinError::Truncated("the ELF header");
    match u16_at(file, 18) {
        Some(MACHINE_CUDA) => {}
        Some(other) => return Err(CubinError::OtherMachine(other)),
        None => return Err(header),
    }
    let (Some(table), Some(count), Some(names)) = (u64_at(file, 40), u16_at(file, 60), u16_at(file, 62))
    else {
        return Err(header);
    };
    let entry = |i: u16| -> Result<&[u8], CubinError> {
        let at = table.checked_add(u64::from(i) * SECTION_HEADER_BYTES);
        at.and_then(|at| slice(file, at, SECTION_HEADER_BYTES))
            .ok_or(CubinError::Truncated("a section header"))
    };
    let data = |header: &[u8]| -> Result<(&[u8], u64), CubinError> {
        let (offset, bytes) = (u64_at(header, 24).unwrap_or(0), u64_at(header, 32).unwrap_or(0));
        if u32_at(header, 4) == Some(TYPE_NOBITS) {
            return Ok((&[], bytes));
        }
        Ok((slice(file, offset, bytes).ok_or(CubinError::Truncated("a section"))?, bytes))
    };
    if count == 0 {
        return Ok(Vec::new());
    }
    let (names, _) = data(entry(names)?)?;
    let mut out = Vec::with_capacity(count.into());
    for i in 0..count {
        let header = entry(i)?;
        let (data, bytes) = data(header)?;
        let name = u32_at(header, 0).and_then(|at| string_at(names, at)).unwrap_or("");
        out.push(Section { name, data, bytes, info: u32_at(header, 44).unwrap_or(0) });
    }
    Ok(out)
}

/// The records of an info section: attribute and value. A damaged rest is left out.
fn attributes(mut data: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    std::iter::from_fn(move || {
        let (format, attribute) = (*data.first()?, *data.get(1)?);
        let value = data.get(2..4)?;
        let (value, next) = if format == FORMAT_SIZED {
            let bytes = usize::from(u16_at(value, 0)?);
            (data.get(4..4 + bytes)?, 4 + bytes)
        } else {
            (value, 4)
        };
        data = &data[next..];
        Some((attribute, value))
    })
}

fn symbol_name<'a>(symbols: &[u8], strings: &'a [u8], index: u32) -> Option<&'a str> {
    let at = usize::try_from(index).ok()?.checked_mul(SYMBOL_BYTES)?;
    string_at(strings, u32_at(symbols, at)?)
}

fn machine_instructions(code: &[u8]) -> u32 {
    let real = code.chunks_exact(INSTRUCTION_BYTES).filter(|i| u16_at(i, 0) != Some(NOP)).count();
    u32::try_from(real).unwrap_or(u32::MAX)
}

fn string_at(table: &[u8], at: u32) -> Option<&str> {
    let rest = table.get(usize::try_from(at).ok()?..)?;
    let end = rest.iter().position(|&b| b == 0)?;
    std::str::from_utf8(&rest[..end]).ok()
}

fn slice(bytes: &[u8], at: u64, n: u64) -> Option<&[u8]> {
    let at = usize::try_from(at).ok()?;
    bytes.get(at..at.checked_add(usize::try_from(n).ok()?)?)
}

fn array_at<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    array_at(bytes, at).map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    array_at(bytes, at).map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    array_at(bytes, at).map(u64::from_le_bytes)
}

#[cfg(test)]
mod tests;
