//! Kernels for CUDA GPUs: images with machine code, and a typed launcher beside each `.cu`.
//!
//! Launchers take device addresses, shapes and a stream; they know no plan, request or file. All are `unsafe`: the
//! shapes are checked, the memory behind an address cannot be.

// Checks of sizes read as the formulas in the kernels' headers.
#![allow(clippy::manual_is_multiple_of)]

pub mod attention;
pub mod decode_layers;
pub mod linear;
pub mod norm;
pub mod pointwise;
pub mod repack;
pub mod sample;
mod tiles;

use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::mem::ManuallyDrop;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cudarc::driver::sys::{CUdevice_attribute_enum as Capability, CUfunction_attribute_enum as Attribute};
use cudarc::driver::{CudaContext, CudaStream, DriverError, result, sys};

/// Parameter structs of the kernels, from `abi.h`.
#[allow(missing_docs, non_camel_case_types, non_upper_case_globals, non_snake_case, dead_code)]
#[allow(clippy::undocumented_unsafe_blocks, clippy::missing_safety_doc)]
pub mod abi {
    include!(concat!(env!("OUT_DIR"), "/abi.rs"));
}

include!(concat!(env!("OUT_DIR"), "/images.rs"));

/// As fatbins want to lie in memory.
#[repr(C, align(16))]
struct Aligned<T>(T);

/// The kernels of one `.cu`.
#[derive(Debug)]
pub struct Image {
    /// Stem of the file.
    pub name: &'static str,
    /// Fatbin: a cubin for each of [`ARCHS`], and PTX for compute_80, with 86, 89, 120 or 121 among them also for
    /// compute_86.
    pub bytes: &'static [u8],
    /// What the assembler says of each kernel on each architecture.
    pub resources: &'static [Resources],
}

/// What a kernel takes on one architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resources {
    /// The entry point.
    pub kernel: &'static str,
    /// 80 for sm_80.
    pub arch: u32,
    /// Of a thread.
    pub registers: u32,
    /// Bytes stored and loaded by spills, in the code.
    pub spilled_bytes: u32,
    /// Static shared memory of a block.
    pub shared_bytes: u32,
}

/// An address on the device.
pub type Address = u64;

/// A 16-bit type of activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Half {
    /// bfloat16.
    BF16,
    /// IEEE 754 binary16.
    F16,
}

impl Half {
    /// As in the names of kernels.
    pub const fn name(self) -> &'static str {
        match self {
            Half::BF16 => "bf16",
            Half::F16 => "f16",
        }
    }
}

/// Why a kernel could not be loaded or launched.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The driver said no.
    #[error("{what}: {source}")]
    Driver {
        /// What was tried.
        what: String,
        /// The driver's error.
        source: DriverError,
    },
    /// The driver or the device is not one that this build runs on.
    #[error("{what}: {help}")]
    Unsupported {
        /// What was found.
        what: String,
        /// What is needed.
        help: String,
    },
    /// Sizes that the kernel does not take.
    #[error("{kernel}: {what}")]
    Shape {
        /// The kernel.
        kernel: &'static str,
        /// Which rule is broken.
        what: String,
    },
}

/// The result of this module.
pub type Result<T> = std::result::Result<T, Error>;

/// The name of a kernel, put together without the heap: nothing is allocated for a launch.
struct Name {
    bytes: [u8; 48],
    len: usize,
}

impl Name {
    fn new(parts: std::fmt::Arguments) -> Name {
        let mut name = Name { bytes: [0; 48], len: 0 };
        std::fmt::Write::write_fmt(&mut name, parts).expect("names are short");
        name
    }
}

impl std::fmt::Write for Name {
    fn write_str(&mut self, part: &str) -> std::fmt::Result {
        let place = self.bytes.get_mut(self.len..self.len + part.len()).ok_or(std::fmt::Error)?;
        place.copy_from_slice(part.as_bytes());
        self.len += part.len();
        Ok(())
    }
}

impl std::ops::Deref for Name {
    type Target = str;

    fn deref(&self) -> &str {
        std::str::from_utf8(&self.bytes[..self.len]).expect("made of text")
    }
}

/// As `format!`, a [`Name`].
macro_rules! name {
    ($($parts:tt)*) => { $crate::kernels::cuda::Name::new(format_args!($($parts)*)) };
}
use name;

fn driver<T>(what: impl Into<String>, result: std::result::Result<T, DriverError>) -> Result<T> {
    result.map_err(|source| Error::Driver { what: what.into(), source })
}

/// Fails with [`Error::Shape`] unless `holds`.
fn check(kernel: &'static str, holds: bool, what: impl FnOnce() -> String) -> Result<()> {
    if holds { Ok(()) } else { Err(Error::Shape { kernel, what: what() }) }
}

#[derive(Clone, Copy)]
struct Function {
    handle: sys::CUfunction,
    /// Dynamic shared memory of a block, and the rows it works on, where the kernel's file says so.
    config: [u32; 2],
}

/// The kernels, loaded on one device.
pub struct Kernels {
    context: Arc<CudaContext>,
    modules: Vec<sys::CUmodule>,
    functions: HashMap<&'static str, Function>,
    sm_count: u32,
}

// SAFETY: module and function handles belong to a context, not to a thread; the driver's calls on them are thread-safe.
unsafe impl Send for Kernels {}
// SAFETY: as above; nothing is changed after loading.
unsafe impl Sync for Kernels {}

/// The lowest driver, as the CUDA version it reports, for cubins: minor versions of one major are compatible.
pub const DRIVER_FLOOR: (u32, u32) = (PTXAS.0, 0);
/// The lowest for architectures without a cubin: that of the PTX, 8.0.
pub const DRIVER_FLOOR_PTX: (u32, u32) = (12, 0);

impl Kernels {
    /// Loads every image.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a device below compute capability 8.0, with less shared memory than the kernels of
    /// this build take, or with a driver older than the compiler,
    /// [`Error::Driver`] for what the driver refuses.
    pub fn load(context: &Arc<CudaContext>) -> Result<Kernels> {
        Kernels::load_images(context, IMAGES)
    }

    /// Loads some images, in place of those of the build: for tests. Bytes may also be PTX that ends with a zero.
    ///
    /// # Errors
    /// As [`Kernels::load`].
    pub fn load_images(context: &Arc<CudaContext>, images: &[Image]) -> Result<Kernels> {
        driver("making the context current", context.bind_to_thread())?;
        let capability = driver("asking for the compute capability", context.compute_capability())?;
        let arch = (capability.0 * 10 + capability.1) as u32;
        supports(arch)?;
        let sm_count = driver(
            "asking for the multiprocessors",
            context.attribute(Capability::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT),
        )? as u32;
        let most_shared = driver(
            "asking for the shared memory of a block",
            context.attribute(Capability::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN),
        )? as u32;
        let mut kernels =
            Kernels { context: context.clone(), modules: Vec::new(), functions: HashMap::new(), sm_count };
        for image in images {
            kernels.load_image(image, arch, most_shared)?;
        }
        Ok(kernels)
    }

    fn load_image(&mut self, image: &Image, arch: u32, most_shared: u32) -> Result<()> {
        // SAFETY: the image is a whole fatbin, made by the build, and static.
        let module = driver(format!("loading {}", image.name), unsafe {
            result::module::load_data(image.bytes.as_ptr().cast())
        })?;
        self.modules.push(module);
        for resources in
            image.resources.iter().filter(|r| Some(r.arch) == image.resources.first().map(|f| f.arch))
        {
            let name = resources.kernel;
            let c_name = |suffix: &str| CString::new(format!("{name}{suffix}")).expect("a name without NUL");
            // SAFETY: the module was just loaded.
            let handle = driver(format!("finding {name}"), unsafe {
                result::module::get_function(module, c_name(""))
            })?;
            // SAFETY: as above.
            let config = match unsafe { config(module, &c_name("_config")) } {
                Ok(config) => config,
                Err(source) => return driver(format!("reading {name}_config"), Err(source)),
            };
            if config[0] > most_shared {
                return Err(Error::Unsupported {
                    what: format!(
                        "a device with {most_shared} bytes of shared memory for a block, {name} takes {}",
                        config[0]
                    ),
                    help: format!(
                        "this build has kernels for {ARCHS:?}: build with QWENVL_CUDA_ARCHS={arch}"
                    ),
                });
            }
            if config[0] > 48 << 10 {
                // SAFETY: the handle is that of a loaded function.
                driver(format!("{} bytes of shared memory for {name}", config[0]), unsafe {
                    result::function::set_function_attribute(
                        handle,
                        Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                        config[0] as i32,
                    )
                })?;
            }
            if config[0] > 0 {
                // SAFETY: as above. A preference, so that several blocks fit: a driver may ignore it.
                let _ = unsafe {
                    result::function::set_function_attribute(
                        handle,
                        Attribute::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT,
                        100,
                    )
                };
            }
            self.functions.insert(name, Function { handle, config });
        }
        Ok(())
    }

    /// Multiprocessors of the device.
    pub fn sm_count(&self) -> u32 {
        self.sm_count
    }

    /// The context that the kernels are loaded in.
    pub fn context(&self) -> &Arc<CudaContext> {
        &self.context
    }

    fn function(&self, name: &str) -> Function {
        *self.functions.get(name).unwrap_or_else(|| panic!("no kernel {name} in this build"))
    }

    /// Launches `name` with one parameter struct.
    ///
    /// # Safety
    /// The struct is the kernel's, and what its addresses name is as the kernel needs it until the stream has run it.
    unsafe fn launch<P>(
        &self,
        stream: &CudaStream,
        name: &str,
        grid: (u32, u32, u32),
        block: u32,
        parameters: &P,
    ) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.launch_by(result::launch_kernel, stream, name, grid, block, parameters) }
    }

    /// The same for a kernel whose blocks wait for each other: all are on the device at once, or none.
    ///
    /// # Safety
    /// As [`Kernels::launch`].
    unsafe fn launch_cooperative<P>(
        &self,
        stream: &CudaStream,
        name: &str,
        grid: u32,
        block: u32,
        parameters: &P,
    ) -> Result<()> {
        let grid = (grid, 1, 1);
        // SAFETY: the caller's promise.
        unsafe { self.launch_by(result::launch_cooperative_kernel, stream, name, grid, block, parameters) }
    }

    /// # Safety
    /// As [`Kernels::launch`].
    unsafe fn launch_by<P>(
        &self,
        launch: LaunchCall,
        stream: &CudaStream,
        name: &str,
        grid: (u32, u32, u32),
        block: u32,
        parameters: &P,
    ) -> Result<()> {
        let function = self.function(name);
        let mut arguments = [(parameters as *const P).cast_mut().cast::<c_void>()];
        let (block, shared_bytes) = ((block, 1, 1), function.config[0]);
        // SAFETY: the caller's promise; the driver copies the parameters before it returns.
        let launched =
            unsafe { launch(function.handle, grid, block, shared_bytes, stream.cu_stream(), &mut arguments) };
        launched.map_err(|source| Error::Driver { what: format!("launching {name}"), source })
    }
}

/// A launch of the driver: function, grid, block, bytes of shared memory, stream, arguments.
type LaunchCall = unsafe fn(
    sys::CUfunction,
    (u32, u32, u32),
    (u32, u32, u32),
    u32,
    sys::CUstream,
    &mut [*mut c_void],
) -> std::result::Result<(), DriverError>;

/// Nobody else in this process captures a stream, or unloads kernels, while this is held. Unloading waits for all streams
/// of a device, which ends the capture of one by another thread with an error.
pub fn capturing() -> MutexGuard<'static, ()> {
    static CAPTURING: Mutex<()> = Mutex::new(());
    CAPTURING.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Kernels {
    fn drop(&mut self) {
        let _alone = capturing();
        let modules = ManuallyDrop::new(std::mem::take(&mut self.modules));
        if self.context.bind_to_thread().is_ok() {
            for &module in modules.iter() {
                // SAFETY: loaded by this value, and no launcher is left to use it. Nothing can be done about an error.
                let _ = unsafe { result::module::unload(module) };
            }
        }
    }
}

/// The kernel's `[shared bytes, rows]`, zero if it has none.
///
/// # Safety
/// The module is loaded in the current context.
unsafe fn config(module: sys::CUmodule, name: &CString) -> std::result::Result<[u32; 2], DriverError> {
    let (mut address, mut bytes) = (0, 0);
    // SAFETY: the out-parameters are valid, the module is the caller's promise.
    let found = unsafe { sys::cuModuleGetGlobal_v2(&mut address, &mut bytes, module, name.as_ptr()) };
    if found == sys::cudaError_enum::CUDA_ERROR_NOT_FOUND {
        return Ok([0; 2]);
    }
    found.result()?;
    let mut config = [0u32; 2];
    assert_eq!(bytes, size_of_val(&config), "{name:?}");
    // SAFETY: the address and its 8 bytes are those of the module's variable.
    unsafe { result::memcpy_dtoh_sync(&mut config, address)? };
    Ok(config)
}

/// The architecture of device `ordinal`, 80 for 8.0. Makes no context.
///
/// # Errors
/// [`Error::Driver`] if the driver does not answer.
pub fn arch(ordinal: usize) -> Result<u32> {
    driver("asking for the compute capability", {
        result::init().and_then(|()| result::device::get(ordinal as i32)).and_then(|device| {
            // SAFETY: the device is one that the driver gave.
            let of = |attribute| unsafe { result::device::get_attribute(device, attribute) };
            let major = of(Capability::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
            let minor = of(Capability::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
            Ok((major * 10 + minor) as u32)
        })
    })
}

/// The architecture whose machine code an `arch` runs: its own, or an older one of the same major number, except on
/// Jetson boards, which are families of their own. `None`: the driver compiles PTX.
pub fn machine_code(arch: u32) -> Option<u32> {
    let runs = |&code: &u32| code == arch || (code / 10 == arch / 10 && code < arch && arch != 87);
    ARCHS.iter().copied().filter(runs).max()
}

/// Whether this build's kernels run on such an architecture with the driver that is here.
///
/// # Errors
/// [`Error::Unsupported`] if not, [`Error::Driver`] if the driver does not answer.
pub fn supports(arch: u32) -> Result<()> {
    if arch < 80 {
        return Err(Error::Unsupported {
            what: format!("a device of compute capability {}.{}", arch / 10, arch % 10),
            help: "the kernels need 8.0 (Ampere) or newer".into(),
        });
    }
    let version = driver_version()?;
    let floor = if machine_code(arch).is_some() { DRIVER_FLOOR } else { DRIVER_FLOOR_PTX };
    if version < floor {
        return Err(Error::Unsupported {
            what: format!("a driver for CUDA {}.{}", version.0, version.1),
            help: format!(
                "this build's kernels for sm_{arch} need CUDA {}.{} (driver {}): update the driver",
                floor.0,
                floor.1,
                linux_driver(floor)
            ),
        });
    }
    Ok(())
}

/// (13, 0) for a driver of CUDA 13.0.
///
/// # Errors
/// [`Error::Driver`] if the driver does not answer.
pub fn driver_version() -> Result<(u32, u32)> {
    let mut version = 0;
    // SAFETY: the out-parameter is valid.
    driver("asking for the driver's version", unsafe { sys::cuDriverGetVersion(&mut version) }.result())?;
    Ok((version as u32 / 1000, version as u32 % 1000 / 10))
}

/// The first Linux driver for a CUDA version, as in the release notes of the toolkits.
pub fn linux_driver((major, minor): (u32, u32)) -> &'static str {
    match (major, minor) {
        (12, 0) => "525",
        (12, 1) => "530",
        (12, 2) => "535",
        (12, 3) => "545",
        (12, 4) => "550",
        (12, 5) => "555",
        (12, 6) => "560",
        (12, 7) => "565",
        (12, 8) => "570",
        (12, 9) => "575",
        (13, 0) => "580",
        _ => "of that CUDA version",
    }
}
