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

/// Versions that a name may carry, the newest first.
const SUFFIXES: [&str; 4] = ["_v4", "_v3", "_v2", ""];

/// From which CUDA version on a name means a form with other parameters (`cuda.h` and `cudaTypedefs.h` of 13.0). All
/// other suffixes are older than any CUDA that is asked for.
const SINCE: [(&str, i32); 16] = [
    ("cuCtxCreate_v3", 11040),
    ("cuCtxCreate_v4", 12050),
    ("cuEventElapsedTime_v2", 12080),
    ("cuGraphAddDependencies_v2", 12030),
    ("cuGraphAddKernelNode_v2", 12000),
    ("cuGraphExecKernelNodeSetParams_v2", 12000),
    ("cuGraphExecUpdate_v2", 12000),
    ("cuGraphGetEdges_v2", 12030),
    ("cuGraphKernelNodeGetParams_v2", 12000),
    ("cuGraphKernelNodeSetParams_v2", 12000),
    ("cuGraphNodeGetDependencies_v2", 12030),
    ("cuGraphNodeGetDependentNodes_v2", 12030),
    ("cuGraphRemoveDependencies_v2", 12030),
    ("cuStreamGetCaptureInfo_v3", 12030),
    ("cuStreamUpdateCaptureDependencies_v2", 12030),
    ("cuGetProcAddress_v2", 12000),
];

fn known(name: &str, version: i32) -> bool {
    SINCE.iter().find(|(own, _)| *own == name).is_none_or(|(_, since)| version >= *since)
}

fn find(name: *const c_char, out: Out<usize>, version: i32, result: Out<u32>) -> Result {
    out.check()?;
    let name = text(name)?;
    let mut names = SUFFIXES.iter().map(|suffix| format!("{name}{suffix}"));
    let found = names.find_map(|name| symbol(&name).filter(|_| known(&name, version)));
    result.set_if_wanted(if found.is_some() { FOUND } else { NOT_FOUND });
    out.set(found.unwrap_or(0))?;
    found.map(|_| ()).ok_or(Error::NOT_FOUND)
}

api! {
    fn cuGetProcAddress(name: *const c_char, out: Out<usize>, version: i32, _flags: u64) {
        find(name, out, version, Out::at(0))
    }

    fn cuGetProcAddress_v2(name: *const c_char, out: Out<usize>, version: i32, _flags: u64, result: Out<u32>) {
        find(name, out, version, result)
    }
}
