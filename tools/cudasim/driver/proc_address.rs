//! `cuGetProcAddress`: entry points by name and version, as the CUDA runtime looks them up.

use std::ffi::{CString, c_char};
use std::sync::OnceLock;

use super::entry::{Out, api, text};
use super::error::{Error, Result};

/// The address of an exported symbol of this library (or of the program that it is linked into).
fn symbol(name: &str) -> Option<usize> {
    static OWN: OnceLock<usize> = OnceLock::new();
    let own = *OWN.get_or_init(|| {
        // SAFETY: an all-zero `Dl_info` is valid, and `dladdr` fills it for any address.
        let mut info: libc::Dl_info = unsafe { std::mem::zeroed() };
        // SAFETY: as above; the path that it points to lives as long as the library.
        unsafe {
            if libc::dladdr(symbol as *const libc::c_void, &raw mut info) == 0 {
                return 0;
            }
            libc::dlopen(info.dli_fname, libc::RTLD_LAZY | libc::RTLD_NOLOAD) as usize
        }
    });
    let name = CString::new(name).ok()?;
    // SAFETY: `own` is a handle of `dlopen`, or null, which means the program itself.
    let found = unsafe { libc::dlsym(own as *mut libc::c_void, name.as_ptr()) };
    (!found.is_null()).then_some(found as usize)
}

// CUdriverProcAddressQueryResult.
const FOUND: u32 = 0;
const NOT_FOUND: u32 = 1;

/// Versions that a name may carry, the newest first. Which CUDA version brought which suffix is not kept here: the
/// newest is the one that current programs ask for.
const SUFFIXES: [&str; 5] = ["_v4", "_v3", "_v2", "", "_ptsz"];

fn find(name: *const c_char, out: Out<usize>, result: Out<u32>) -> Result {
    out.check()?;
    let name = text(name)?;
    let found = SUFFIXES.iter().find_map(|suffix| symbol(&format!("{name}{suffix}")));
    result.set_if_wanted(if found.is_some() { FOUND } else { NOT_FOUND });
    out.set(found.unwrap_or(0))?;
    found.map(|_| ()).ok_or(Error::NOT_FOUND)
}

api! {
    fn cuGetProcAddress(name: *const c_char, out: Out<usize>, _version: i32, _flags: u64) {
        find(name, out, Out::at(0))
    }

    fn cuGetProcAddress_v2(name: *const c_char, out: Out<usize>, _version: i32, _flags: u64, result: Out<u32>) {
        find(name, out, result)
    }
}
