//! What every entry point has in common: the C signature, arguments that are checked for null, no unwinding across
//! the border, and the refusal of calls from host functions.

use std::cell::Cell;
use std::ffi::{CStr, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::error::{Error, Result};

/// Defines entry points: `extern "C"` functions with the driver's names that return a result code.
macro_rules! api {
    ($($(#[$attr:meta])* fn $name:ident($($arg:ident: $type:ty),* $(,)?) $body:block)*) => {$(
        #[doc = concat!("`", stringify!($name), "` of the driver API.")]
        $(#[$attr])*
        ///
        /// # Safety
        /// Pointers must be null or as the CUDA driver API documents for this function.
        #[unsafe(no_mangle)]
        #[allow(non_snake_case, clippy::too_many_arguments, reason = "names and arguments are the driver's")]
        pub unsafe extern "C" fn $name($($arg: $type),*) -> u32 {
            $crate::driver::entry::enter(stringify!($name), move || -> $crate::driver::error::Result { $body })
        }
    )*};
}
pub(super) use api;

thread_local! {
    static IN_CALLBACK: Cell<bool> = const { Cell::new(false) };
}

/// Runs the body of an entry point.
pub(super) fn enter(name: &str, body: impl FnOnce() -> Result) -> u32 {
    let run = || {
        if IN_CALLBACK.get() && !matches!(name, "cuGetErrorName" | "cuGetErrorString" | "cuDriverGetVersion")
        {
            return Err(Error::NOT_PERMITTED);
        }
        body()
    };
    let code = match catch_unwind(AssertUnwindSafe(run)) {
        Ok(result) => Error::code(result),
        Err(_) => {
            eprintln!("cudasim: {name} failed inside the simulator, which is a defect of cudasim");
            Error::UNKNOWN.0
        }
    };
    super::state::log(name, code);
    code
}

/// Runs a host function of the program; calls into the driver are refused meanwhile, as the driver does.
pub(super) fn in_callback(run: impl FnOnce()) {
    let before = IN_CALLBACK.replace(true);
    run();
    IN_CALLBACK.set(before);
}

/// A pointer argument for a result.
#[repr(transparent)]
pub struct Out<T>(*mut T);

impl<T> Clone for Out<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Out<T> {}

impl<T> Out<T> {
    /// A pointer that the caller passed as `void *`, and that points to a `T` by the interface of the function.
    pub(super) fn at(address: usize) -> Out<T> {
        Out(address as *mut T)
    }

    /// Refuses a null pointer before anything is done.
    pub(super) fn check(self) -> Result {
        if self.0.is_null() { Err(Error::INVALID_VALUE) } else { Ok(()) }
    }

    /// Stores the result.
    pub(super) fn set(self, value: T) -> Result {
        self.check()?;
        // SAFETY: not null, and the caller of the entry point promised a place for a `T`. Values are plain data, so
        // nothing is dropped and alignment is not relied on.
        unsafe { self.0.write_unaligned(value) };
        Ok(())
    }

    /// Stores the result if the caller wants it.
    pub(super) fn set_if_wanted(self, value: T) {
        let _ = self.set(value);
    }

    /// Stores `values` one after the other; the caller promised room for them.
    pub(super) fn set_all(self, values: impl IntoIterator<Item = T>) -> Result {
        self.check()?;
        for (index, value) in values.into_iter().enumerate() {
            // SAFETY: as in `set`; the caller of the entry point stated a count, which `values` does not exceed.
            unsafe { self.0.add(index).write_unaligned(value) };
        }
        Ok(())
    }

    /// Whether the caller passed null.
    pub(super) fn is_null(self) -> bool {
        self.0.is_null()
    }
}

impl<T: Copy> Out<T> {
    /// Reads an argument that is passed in and out.
    pub(super) fn get(self) -> Result<T> {
        In(self.0.cast_const()).get()
    }
}

/// A pointer argument to be read.
#[repr(transparent)]
pub struct In<T>(*const T);

impl<T> Clone for In<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for In<T> {}

impl<T: Copy> In<T> {
    /// A pointer that the caller passed as `void *`, and that points to a `T` by the interface of the function.
    pub(super) fn at(address: usize) -> In<T> {
        In(address as *const T)
    }

    /// The value pointed to.
    pub(super) fn get(self) -> Result<T> {
        if self.0.is_null() {
            return Err(Error::INVALID_VALUE);
        }
        // SAFETY: not null, and the caller of the entry point promised a `T` there.
        Ok(unsafe { self.0.read_unaligned() })
    }

    /// `count` values from there on; null is right when there are none.
    pub(super) fn get_all(self, count: usize) -> Result<Vec<T>> {
        if count > 0 && self.0.is_null() {
            return Err(Error::INVALID_VALUE);
        }
        // SAFETY: not null, and the caller of the entry point promised `count` values there.
        Ok((0..count).map(|index| unsafe { self.0.add(index).read_unaligned() }).collect())
    }

    /// The pointer itself.
    pub(super) fn pointer(self) -> *const T {
        self.0
    }
}

/// A C string argument.
pub(super) fn text(pointer: *const c_char) -> Result<String> {
    if pointer.is_null() {
        return Err(Error::INVALID_VALUE);
    }
    // SAFETY: not null, and the caller of the entry point promised a string that ends with NUL.
    Ok(unsafe { CStr::from_ptr(pointer) }.to_string_lossy().into_owned())
}

/// Writes `text` and a NUL to a buffer of `room` bytes, cut to what fits.
pub(super) fn put_text(to: *mut c_char, room: usize, text: &str) -> Result {
    if to.is_null() || room == 0 {
        return Err(Error::INVALID_VALUE);
    }
    let kept = text.len().min(room - 1);
    // SAFETY: not null, and the caller of the entry point promised `room` bytes there.
    unsafe {
        to.cast::<u8>().copy_from_nonoverlapping(text.as_ptr(), kept);
        to.add(kept).write(0);
    }
    Ok(())
}
