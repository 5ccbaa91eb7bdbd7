//! The fatbinary container: what `nvcc -fatbin` writes, what a host object carries in `.nv_fatbin`, and what
//! `cuModuleLoadData` is handed. Every length is checked; nothing here trusts the file.
//!
//! A container is a 16-byte header (magic, version, header length, payload length) and entries, each with a header
//! of its own (kind, lengths, architecture, flags) and a payload: PTX text or a cubin, plain or compressed with
//! LZ4 (`--compress-mode=speed`, all of CUDA 11) or zstd (the default of CUDA 13).

use std::io::Read;

use thiserror::Error;

/// First four bytes of a container, little-endian.
pub const MAGIC: u32 = 0xBA55_ED50;
/// First four bytes of the wrapper that a host program registers; it points to a container.
pub const WRAPPER_MAGIC: u32 = 0x4662_43B1;
/// First four bytes of an ELF file.
pub const ELF_MAGIC: u32 = u32::from_le_bytes(*b"\x7fELF");

const HEADER_BYTES: usize = 16;
const ENTRY_HEADER_BYTES: usize = 64;
const FLAG_LZ4: u64 = 0x2000;
const FLAG_ZSTD: u64 = 0x8000;
/// No entry of a real fatbinary comes near this; a corrupt length does.
const MAX_ENTRY_BYTES: u64 = 1 << 30;

/// What an entry holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// PTX text.
    Ptx,
    /// A cubin: ELF with machine code of one architecture.
    Cubin,
}

/// One image of a container, decompressed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// PTX or cubin.
    pub kind: Kind,
    /// Compute capability, 80 for `sm_80` or `compute_80`.
    pub arch: u32,
    /// The image itself. PTX ends before its first NUL.
    pub bytes: Vec<u8>,
}

/// Why a container was refused. Offsets count from its start.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum FatbinError {
    /// The bytes are none of the formats that are known.
    #[error("not a fatbinary, cubin or PTX image: starts with {0:#010x}")]
    Magic(u32),
    /// A length points past the end.
    #[error("truncated: {what} at offset {offset} needs {needed} bytes, {left} are left")]
    Truncated {
        /// The part that does not fit.
        what: &'static str,
        /// Where it starts.
        offset: usize,
        /// Its length.
        needed: u64,
        /// What there is.
        left: usize,
    },
    /// A field has a value that the format does not have.
    #[error("bad {what} {value:#x} at offset {offset}")]
    Field {
        /// Name of the field.
        what: &'static str,
        /// What it holds.
        value: u64,
        /// Where the entry or header starts.
        offset: usize,
    },
    /// The payload does not decompress to the length that its header states.
    #[error("corrupt {method} data at offset {offset}: {reason}")]
    Compression {
        /// `LZ4` or `zstd`.
        method: &'static str,
        /// Where the payload starts.
        offset: usize,
        /// What the decoder said.
        reason: String,
    },
}

/// All images in `bytes`, which may be a container (or several in a row), a cubin, a host object or program with an
/// `.nv_fatbin` section, or PTX text.
///
/// # Errors
/// When the bytes are none of these, or a length or compressed payload is corrupt.
pub fn images(bytes: &[u8]) -> Result<Vec<Entry>, FatbinError> {
    match word(bytes) {
        Some(MAGIC) => containers(bytes),
        Some(ELF_MAGIC) => match crate::elf::section(bytes, ".nv_fatbin") {
            Some(section) => containers(section),
            None => Ok(vec![Entry { kind: Kind::Cubin, arch: cubin_arch(bytes), bytes: bytes.to_vec() }]),
        },
        _ if looks_like_ptx(bytes) => {
            Ok(vec![Entry { kind: Kind::Ptx, arch: 0, bytes: until_nul(bytes).to_vec() }])
        }
        first => Err(FatbinError::Magic(first.unwrap_or_default())),
    }
}

/// The entries of the container at the start of `bytes`, and how many bytes it takes.
///
/// # Errors
/// When it is not one, or is corrupt.
pub fn container(bytes: &[u8]) -> Result<(Vec<Entry>, usize), FatbinError> {
    let total = container_bytes(bytes)?;
    let end = checked_end(bytes, "container", 0, total)?;
    let mut entries = Vec::new();
    let mut at = usize::from(u16_at(bytes, 6));
    while at < end {
        let (entry, next) = entry(&bytes[..end], at)?;
        entries.extend(entry);
        at = next;
    }
    Ok((entries, end))
}

/// Length of the container whose first 16 bytes are given, header included.
///
/// # Errors
/// When the header is short or not one.
pub fn container_bytes(bytes: &[u8]) -> Result<u64, FatbinError> {
    checked_end(bytes, "header", 0, HEADER_BYTES as u64)?;
    let magic = u32_at(bytes, 0);
    if magic != MAGIC {
        return Err(FatbinError::Magic(magic));
    }
    let header = u16_at(bytes, 6);
    if usize::from(header) < HEADER_BYTES {
        return Err(FatbinError::Field { what: "header length", value: header.into(), offset: 0 });
    }
    let payload = u64_at(bytes, 8);
    payload.checked_add(header.into()).ok_or(FatbinError::Field {
        what: "payload length",
        value: payload,
        offset: 0,
    })
}

fn containers(mut bytes: &[u8]) -> Result<Vec<Entry>, FatbinError> {
    let mut all = Vec::new();
    loop {
        let (entries, used) = container(bytes)?;
        all.extend(entries);
        // A section holds one container per translation unit, each aligned to 8 bytes.
        let rest = &bytes[used.next_multiple_of(8).min(bytes.len())..];
        match word(rest) {
            Some(MAGIC) => bytes = rest,
            _ => return Ok(all),
        }
    }
}

/// One entry, `None` for kinds other than PTX and cubin, and the offset of the next.
fn entry(bytes: &[u8], at: usize) -> Result<(Option<Entry>, usize), FatbinError> {
    checked_end(bytes, "entry header", at, ENTRY_HEADER_BYTES as u64)?;
    let header = u32_at(bytes, at + 4);
    if (header as usize) < ENTRY_HEADER_BYTES {
        return Err(FatbinError::Field { what: "entry header length", value: header.into(), offset: at });
    }
    let start = checked_end(bytes, "entry header", at, header.into())?;
    let stored = u64_at(bytes, at + 8);
    let end = checked_end(bytes, "entry", start, stored)?;
    if end == at {
        return Err(FatbinError::Field { what: "entry length", value: stored, offset: at });
    }
    let kind = match u16_at(bytes, at) {
        1 => Kind::Ptx,
        2 => Kind::Cubin,
        _ => return Ok((None, end)),
    };
    let (packed, arch, flags) = (u32_at(bytes, at + 16), u32_at(bytes, at + 28), u64_at(bytes, at + 40));
    let unpacked = u64_at(bytes, at + 56);
    let payload = if flags & (FLAG_LZ4 | FLAG_ZSTD) != 0 {
        if u64::from(packed) > stored {
            return Err(FatbinError::Field { what: "compressed length", value: packed.into(), offset: at });
        }
        if unpacked > MAX_ENTRY_BYTES {
            return Err(FatbinError::Field { what: "uncompressed length", value: unpacked, offset: at });
        }
        let data = &bytes[start..start + packed as usize];
        let method = if flags & FLAG_ZSTD != 0 { "zstd" } else { "LZ4" };
        let plain = if method == "zstd" { zstd(data, unpacked) } else { lz4(data, unpacked) };
        plain.map_err(|reason| FatbinError::Compression { method, offset: start, reason })?
    } else {
        bytes[start..end].to_vec()
    };
    let bytes = if kind == Kind::Ptx { until_nul(&payload).to_vec() } else { payload };
    Ok((Some(Entry { kind, arch, bytes }), end))
}

fn lz4(data: &[u8], unpacked: u64) -> Result<Vec<u8>, String> {
    // One LZ4 byte stands for at most 255 bytes: a longer claim is a lie, refused before memory is taken for it.
    if unpacked > data.len() as u64 * 255 + 64 {
        return Err(format!("{} bytes cannot hold {unpacked}", data.len()));
    }
    let plain = lz4_flex::block::decompress(data, unpacked as usize).map_err(|error| error.to_string())?;
    exactly(plain, unpacked)
}

fn zstd(data: &[u8], unpacked: u64) -> Result<Vec<u8>, String> {
    let decoder = ruzstd::decoding::StreamingDecoder::new(data).map_err(|error| error.to_string())?;
    let mut plain = Vec::new();
    decoder.take(unpacked + 1).read_to_end(&mut plain).map_err(|error| error.to_string())?;
    exactly(plain, unpacked)
}

fn exactly(plain: Vec<u8>, unpacked: u64) -> Result<Vec<u8>, String> {
    if plain.len() as u64 == unpacked {
        Ok(plain)
    } else {
        Err(format!("{} bytes instead of {unpacked}", plain.len()))
    }
}

/// PTX starts, after blanks and comments, with a directive.
fn looks_like_ptx(bytes: &[u8]) -> bool {
    let text = until_nul(bytes);
    let first = text.iter().find(|byte| !byte.is_ascii_whitespace());
    matches!(first, Some(b'.' | b'/')) && text.windows(8).any(|window| window == b".version")
}

/// The architecture in an ELF header's flags: the low byte up to CUDA 12, the second byte since ABI version 8.
fn cubin_arch(elf: &[u8]) -> u32 {
    let Some(flags) = elf.get(48..52) else { return 0 };
    let flags = u32::from_le_bytes([flags[0], flags[1], flags[2], flags[3]]);
    let abi = elf.get(8).copied().unwrap_or_default();
    if abi >= 8 { (flags >> 8) & 0xff } else { flags & 0xff }
}

fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|&byte| byte == 0).next().unwrap_or_default()
}

fn checked_end(bytes: &[u8], what: &'static str, offset: usize, needed: u64) -> Result<usize, FatbinError> {
    let left = bytes.len().saturating_sub(offset);
    if needed <= left as u64 {
        Ok(offset + needed as usize)
    } else {
        Err(FatbinError::Truncated { what, offset, needed, left })
    }
}

fn word(bytes: &[u8]) -> Option<u32> {
    bytes.get(..4).map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]]))
}

// The three readers are called below checked_end only.
fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}
