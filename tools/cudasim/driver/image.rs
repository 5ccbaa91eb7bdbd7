//! Module images as programs pass them: a pointer without a length.
//!
//! The length comes from the image itself, and a truncated image may claim more than there is. So bytes are copied
//! through the kernel, which says no where a plain read would end the process.

use std::sync::{Mutex, MutexGuard, OnceLock};

use super::error::{Error, Result};
use super::state::lock;
use crate::{elf, fatbin};

/// No image is longer.
const MAX_BYTES: u64 = 1 << 30;
const PAGE: usize = 4096;

/// The images behind `pointer`: PTX text up to its NUL, a cubin, a fatbinary, or the wrapper around one.
///
/// # Errors
/// The codes of `cuModuleLoadData`: 1 for null, 200 for what is no image, 218 for text that is no PTX.
pub(super) fn read(pointer: usize) -> Result<Vec<fatbin::Entry>> {
    if pointer == 0 {
        return Err(Error::INVALID_VALUE);
    }
    let head = copy(pointer, 4)?;
    let magic = u32::from_le_bytes([head[0], head[1], head[2], head[3]]);
    let bytes = match magic {
        fatbin::WRAPPER_MAGIC => {
            let wrapper = copy(pointer, 24)?;
            let data = wrapper[8..16].iter().rev().fold(0, |value, &byte| value << 8 | usize::from(byte));
            let head = copy(data, 4)?;
            if head != fatbin::MAGIC.to_le_bytes() {
                return Err(Error::INVALID_IMAGE);
            }
            fatbinary(data)?
        }
        fatbin::MAGIC => fatbinary(pointer)?,
        fatbin::ELF_MAGIC => {
            let header = copy(pointer, elf::HEADER_BYTES as u64)?;
            copy(pointer, elf::file_bytes(&header).ok_or(Error::INVALID_IMAGE)?)?
        }
        _ => text(pointer)?,
    };
    images(&bytes)
}

/// The images in a file's bytes.
pub(super) fn images(bytes: &[u8]) -> Result<Vec<fatbin::Entry>> {
    fatbin::images(bytes).map_err(|error| {
        eprintln!("cudasim: module not loaded: {error}");
        match error {
            // Whatever is no binary is taken for PTX.
            fatbin::FatbinError::Magic(_) if bytes.is_ascii() => Error::INVALID_PTX,
            _ => Error::INVALID_IMAGE,
        }
    })
}

fn fatbinary(pointer: usize) -> Result<Vec<u8>> {
    let header = copy(pointer, 16)?;
    copy(pointer, fatbin::container_bytes(&header).map_err(|_| Error::INVALID_IMAGE)?)
}

/// Bytes up to a NUL.
fn text(pointer: usize) -> Result<Vec<u8>> {
    let mut bytes: Vec<u8> = Vec::new();
    loop {
        let at = pointer + bytes.len();
        let step = PAGE - at % PAGE;
        let piece = copy(at, step as u64)?;
        match piece.iter().position(|&byte| byte == 0) {
            Some(end) => {
                bytes.extend_from_slice(&piece[..end]);
                return Ok(bytes);
            }
            None => bytes.extend_from_slice(&piece),
        }
        if bytes.len() as u64 > MAX_BYTES {
            return Err(Error::INVALID_IMAGE);
        }
    }
}

/// `bytes` bytes at `pointer`, if the process can read them.
fn copy(pointer: usize, bytes: u64) -> Result<Vec<u8>> {
    if bytes > MAX_BYTES || pointer.checked_add(bytes as usize).is_none() {
        return Err(Error::INVALID_IMAGE);
    }
    let pipe = pipe()?;
    // Room grows with what was found readable: a length that is a lie takes no memory.
    let mut copied = Vec::new();
    while copied.len() < bytes as usize {
        let at = pointer + copied.len();
        let step = (PAGE - at % PAGE).min(bytes as usize - copied.len());
        let mut page = [0u8; PAGE];
        // SAFETY: the kernel checks the source and answers EFAULT when it cannot be read; the destination has room for
        // `step` bytes, at most a page. What was written is taken out again, so that the pipe never fills.
        let done = unsafe {
            libc::write(pipe[1], at as *const libc::c_void, step) == step as isize
                && libc::read(pipe[0], page.as_mut_ptr().cast(), step) == step as isize
        };
        if !done {
            return Err(Error::INVALID_IMAGE);
        }
        copied.extend_from_slice(&page[..step]);
    }
    Ok(copied)
}

/// A pipe through which the kernel copies, for one caller at a time.
fn pipe() -> Result<MutexGuard<'static, [i32; 2]>> {
    static PIPE: OnceLock<Option<Mutex<[i32; 2]>>> = OnceLock::new();
    let pipe = PIPE.get_or_init(|| {
        let mut ends = [0; 2];
        // SAFETY: `ends` has room for the two descriptors.
        let made = unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC | libc::O_NONBLOCK) } == 0;
        made.then(|| Mutex::new(ends))
    });
    pipe.as_ref().map(lock).ok_or(Error::OPERATING_SYSTEM)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_cannot_be_read_is_refused_instead_of_a_crash() {
        assert_eq!(read(0).unwrap_err(), Error::INVALID_VALUE);
        assert_eq!(read(0x1000).unwrap_err(), Error::INVALID_IMAGE);
        let mut truncated = fatbin::MAGIC.to_le_bytes().to_vec();
        truncated.extend([1, 0, 16, 0]);
        truncated.extend(u64::MAX.to_le_bytes());
        assert_eq!(read(truncated.as_ptr() as usize).unwrap_err(), Error::INVALID_IMAGE);
        truncated.splice(8..16, (1u64 << 29).to_le_bytes());
        assert_eq!(read(truncated.as_ptr() as usize).unwrap_err(), Error::INVALID_IMAGE);
    }

    #[test]
    fn short_texts_among_other_memory_are_copied() {
        // What lies behind them on their pages may be anything, also the copy itself.
        for length in 0..200 {
            let text = std::ffi::CString::new("x".repeat(length)).unwrap();
            assert_eq!(super::text(text.as_ptr() as usize).unwrap(), text.as_bytes());
        }
    }

    #[test]
    fn text_ends_at_its_nul() {
        let ptx = b".version 8.0\n.target sm_80\n.address_size 64\n\0garbage";
        let entries = read(ptx.as_ptr() as usize).unwrap();
        assert_eq!(entries[0].bytes, &ptx[..ptx.len() - 8]);
        assert_eq!(read(c"this is not PTX".as_ptr() as usize).unwrap_err(), Error::INVALID_PTX);
    }
}
