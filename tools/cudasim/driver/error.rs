//! Result codes of the driver API, with the names and sentences that `cuGetErrorName` and `cuGetErrorString` give.

use std::ffi::{CStr, c_char};
use std::fmt;

/// A result code other than success.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Error(pub u32);

/// What the functions behind the entry points return.
pub type Result<T = ()> = std::result::Result<T, Error>;

macro_rules! codes {
    ($($constant:ident = $value:literal $text:literal)*) => {
        impl Error {
            $(#[doc = $text] pub const $constant: Error = Error($value);)*
        }

        /// Name and sentence of a code, each ending with a NUL.
        fn describe(code: u32) -> Option<(&'static str, &'static str)> {
            match code {
                0 => Some(("CUDA_SUCCESS\0", "no error\0")),
                $($value => {
                    Some((concat!("CUDA_ERROR_", stringify!($constant), "\0"), concat!($text, "\0")))
                })*
                _ => None,
            }
        }
    };
}

codes! {
    INVALID_VALUE = 1 "invalid argument"
    OUT_OF_MEMORY = 2 "out of memory"
    NOT_INITIALIZED = 3 "initialization error"
    DEINITIALIZED = 4 "driver shutting down"
    DEVICE_UNAVAILABLE = 46 "CUDA-capable device(s) is/are busy or unavailable"
    NO_DEVICE = 100 "no CUDA-capable device is detected"
    INVALID_DEVICE = 101 "invalid device ordinal"
    INVALID_IMAGE = 200 "device kernel image is invalid"
    INVALID_CONTEXT = 201 "invalid device context"
    NO_BINARY_FOR_GPU = 209 "no kernel image is available for execution on the device"
    ECC_UNCORRECTABLE = 214 "uncorrectable ECC error encountered"
    UNSUPPORTED_LIMIT = 215 "limit is not supported on this architecture"
    PEER_ACCESS_UNSUPPORTED = 217 "peer access is not supported between these two devices"
    INVALID_PTX = 218 "a PTX JIT compilation failed"
    UNSUPPORTED_PTX_VERSION = 222 "the provided PTX was compiled with an unsupported toolchain."
    INVALID_SOURCE = 300 "device kernel image is invalid"
    FILE_NOT_FOUND = 301 "file not found"
    OPERATING_SYSTEM = 304 "OS call failed or operation not supported on this OS"
    INVALID_HANDLE = 400 "invalid resource handle"
    ILLEGAL_STATE = 401 "the operation cannot be performed in the present state"
    NOT_FOUND = 500 "named symbol not found"
    NOT_READY = 600 "device not ready"
    ILLEGAL_ADDRESS = 700 "an illegal memory access was encountered"
    LAUNCH_OUT_OF_RESOURCES = 701 "too many resources requested for launch"
    LAUNCH_TIMEOUT = 702 "the launch timed out and was terminated"
    PEER_ACCESS_NOT_ENABLED = 705 "peer access has not been enabled"
    PRIMARY_CONTEXT_ACTIVE = 708 "cannot set while device is active in this process"
    CONTEXT_IS_DESTROYED = 709 "context is destroyed"
    ASSERT = 710 "device-side assert triggered"
    HOST_MEMORY_ALREADY_REGISTERED = 712 "part or all of the requested memory range is already mapped"
    HOST_MEMORY_NOT_REGISTERED = 713 "pointer does not correspond to a registered memory region"
    ILLEGAL_INSTRUCTION = 715 "an illegal instruction was encountered"
    MISALIGNED_ADDRESS = 716 "misaligned address"
    INVALID_ADDRESS_SPACE = 717 "operation not supported on global/shared address space"
    INVALID_PC = 718 "invalid program counter"
    LAUNCH_FAILED = 719 "unspecified launch failure"
    COOPERATIVE_LAUNCH_TOO_LARGE = 720 "too many blocks in cooperative launch"
    NOT_PERMITTED = 800 "operation not permitted"
    NOT_SUPPORTED = 801 "operation not supported"
    SYSTEM_NOT_READY = 802 "system not yet initialized"
    STREAM_CAPTURE_UNSUPPORTED = 900 "operation not permitted when stream is capturing"
    STREAM_CAPTURE_INVALIDATED = 901 "operation failed due to a previous error during capture"
    STREAM_CAPTURE_MERGE = 902 "operation would result in a merge of separate capture sequences"
    STREAM_CAPTURE_UNMATCHED = 903 "capture was not ended in the same stream as it began"
    STREAM_CAPTURE_UNJOINED = 904 "capturing stream has unjoined work"
    STREAM_CAPTURE_ISOLATION = 905 "dependency created on uncaptured work in another stream"
    STREAM_CAPTURE_IMPLICIT = 906 "operation would make the legacy stream depend on a capturing blocking stream"
    CAPTURED_EVENT = 907 "operation not permitted on an event last recorded in a capturing stream"
    STREAM_CAPTURE_WRONG_THREAD = 908 "attempt to terminate a thread-local capture sequence from another thread"
    GRAPH_EXEC_UPDATE_FAILURE = 910 "the graph update was not performed because it included changes which violated constraints specific to instantiated graph update"
    UNKNOWN = 999 "unknown error"
}

impl Error {
    /// `CUDA_ERROR_...`, or the number of a code that this list lacks.
    pub fn name(self) -> String {
        match describe(self.0) {
            Some((name, _)) => name.trim_end_matches('\0').to_owned(),
            None => format!("CUDA error {}", self.0),
        }
    }

    /// Turns a result into the number that crosses the C interface.
    pub fn code(result: Result) -> u32 {
        match result {
            Ok(()) => 0,
            Err(error) => error.0,
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name(), self.0)
    }
}

/// The name of a code as a C string.
pub(super) fn c_name(code: u32) -> Option<*const c_char> {
    describe(code).map(|(name, _)| c_string(name))
}

/// The sentence of a code as a C string.
pub(super) fn c_text(code: u32) -> Option<*const c_char> {
    describe(code).map(|(_, text)| c_string(text))
}

fn c_string(text: &'static str) -> *const c_char {
    // `describe` ends every string with its only NUL.
    CStr::from_bytes_with_nul(text.as_bytes()).unwrap_or_default().as_ptr()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_a_name_and_a_sentence_that_c_can_read() {
        for code in (0..=1000).filter(|&code| describe(code).is_some()) {
            let (name, text) = describe(code).unwrap();
            assert!(CStr::from_bytes_with_nul(name.as_bytes()).is_ok());
            assert!(CStr::from_bytes_with_nul(text.as_bytes()).is_ok());
        }
        assert_eq!(format!("{:?}", Error::ILLEGAL_ADDRESS), "CUDA_ERROR_ILLEGAL_ADDRESS (700)");
        assert_eq!(Error(4242).name(), "CUDA error 4242");
    }
}
