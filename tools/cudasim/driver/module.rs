//! Modules: PTX from text, fatbinaries and files; their functions and variables.

use std::collections::HashMap;
use std::ffi::c_char;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, OnceLock};

use super::capture::refuse_unsafe;
use super::entry::{In, Out, api, put_text, text};
use super::error::{Error, Result};
use super::fault::Kind;
use super::state::{Context, Driver, current, driver, lock};
use super::{image, stream};
use crate::cubin::{self, KernelResources};
use crate::decode;
use crate::exec::GlobalAddresses;
use crate::fatbin;

/// A module in a context.
pub(super) struct Module {
    pub handle: usize,
    pub context: usize,
    pub code: Arc<decode::Module>,
    /// Where its variables lie.
    pub addresses: GlobalAddresses,
    /// Variables by name: address and size.
    variables: HashMap<String, (u64, u64)>,
    /// What the cubin beside the PTX says of its kernels.
    pub resources: HashMap<String, KernelResources>,
    functions: Mutex<HashMap<String, Arc<Function>>>,
}

impl Module {
    /// Lets go of the functions, which hold the module.
    pub fn forget(&self) {
        lock(&self.functions).clear();
    }
}

/// A kernel of a module.
pub(super) struct Function {
    pub handle: usize,
    pub module: Arc<Module>,
    pub name: String,
    /// `MAX_DYNAMIC_SHARED_SIZE_BYTES`, when it was set.
    pub max_dynamic: Mutex<Option<u32>>,
    pub carveout: Mutex<i32>,
    pub cache_config: Mutex<u32>,
}

impl Function {
    /// The kernel's code.
    pub fn kernel(&self) -> Result<&decode::Kernel> {
        self.module.code.kernel(&self.name).ok_or(Error::NOT_FOUND)
    }
}

/// Why a module could not be loaded: the code, and a sentence for the log.
struct Refused(Error, String);

/// Loads a module into the current context.
fn load(images: &[fatbin::Entry]) -> std::result::Result<Arc<Module>, Refused> {
    let plain = |error: Error| Refused(error, error.name());
    let (driver, context) = (driver().map_err(plain)?, current().map_err(plain)?);
    refuse_unsafe(driver).map_err(plain)?;
    driver.inject(Kind::Module, &context.device).map_err(plain)?;
    let [major, minor] = context.device.spec.compute_capability;
    let capability = major * 10 + minor;
    let best = images
        .iter()
        .filter(|image| image.kind == fatbin::Kind::Ptx && image.arch <= capability)
        .max_by_key(|image| image.arch);
    let Some(best) = best else {
        let found: Vec<String> =
            images.iter().map(|image| format!("{:?} for {}", image.kind, image.arch)).collect();
        let reason = format!(
            "no PTX for compute capability {major}.{minor} or lower, which is what can be executed here; found {}",
            found.join(", ")
        );
        return Err(Refused(Error::NO_BINARY_FOR_GPU, reason));
    };
    let text = std::str::from_utf8(&best.bytes)
        .map_err(|error| Refused(Error::INVALID_PTX, format!("PTX is not UTF-8: {error}")))?;
    if let Some((version, target)) = header(text) {
        if target > capability {
            let reason = format!("PTX for sm_{target} on a device of compute capability {major}.{minor}");
            return Err(Refused(Error::NO_BINARY_FOR_GPU, reason));
        }
        let newest = newest_ptx(driver.config.driver);
        if version > newest {
            let reason = format!(
                "PTX version {}.{} is newer than {}.{}, which a driver for CUDA {}.{} knows (CUDASIM_DRIVER)",
                version.0, version.1, newest.0, newest.1, driver.config.driver.0, driver.config.driver.1
            );
            return Err(Refused(Error::UNSUPPORTED_PTX_VERSION, reason));
        }
    }
    let code = parse(text).map_err(|error| Refused(Error::INVALID_PTX, error))?;
    let mut resources = HashMap::new();
    let matching = images.iter().filter(|image| {
        let same_major = image.arch / 10 == major;
        image.kind == fatbin::Kind::Cubin && same_major && image.arch <= capability
    });
    if let Some(cubin) = matching.max_by_key(|image| image.arch)
        && let Ok(kernels) = cubin::kernels(&cubin.bytes)
    {
        resources.extend(kernels.into_iter().map(|kernel| (kernel.name.clone(), kernel)));
    }
    place(driver, &context, code, resources)
}

/// Puts the variables of a module into device memory.
fn place(
    driver: &Driver,
    context: &Context,
    code: Arc<decode::Module>,
    resources: HashMap<String, KernelResources>,
) -> std::result::Result<Arc<Module>, Refused> {
    let memory = &context.device.memory;
    let mut variables = HashMap::new();
    let mut addresses = GlobalAddresses::default();
    for variable in code.globals() {
        let Some(addr) = memory.alloc_variable(&variable.name, variable.bytes.max(1)) else {
            for (addr, _) in variables.into_values() {
                memory.free(addr);
            }
            return Err(Refused(Error::OUT_OF_MEMORY, format!("no memory for variable {}", variable.name)));
        };
        lock(&context.owned).insert(addr, None);
        addresses.insert(&variable.name, addr);
        variables.insert(variable.name.clone(), (addr, variable.bytes));
    }
    for variable in code.globals() {
        let (addr, _) = variables[&variable.name];
        let bytes = variable.initial_bytes(&addresses);
        memory
            .write(addr, &bytes)
            .map_err(|error| Refused(Error::INVALID_IMAGE, format!("variable {}: {error}", variable.name)))?;
    }
    Ok(driver.modules.insert(|handle| Module {
        handle,
        context: context.handle,
        code,
        addresses,
        variables,
        resources,
        functions: Mutex::default(),
    }))
}

/// Parses a text once per process: several devices load the same modules.
fn parse(text: &str) -> std::result::Result<Arc<decode::Module>, String> {
    type Parsed = HashMap<u64, Vec<(Box<str>, Arc<decode::Module>)>>;
    static PARSED: OnceLock<Mutex<Parsed>> = OnceLock::new();
    let parsed = PARSED.get_or_init(Mutex::default);
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    let key = hasher.finish();
    if let Some(same) = lock(parsed).get(&key).and_then(|all| all.iter().find(|(own, _)| **own == *text)) {
        return Ok(same.1.clone());
    }
    let module = Arc::new(decode::Module::parse(text).map_err(|error| error.to_string())?);
    lock(parsed).entry(key).or_default().push((text.into(), module.clone()));
    Ok(module)
}

/// `.version` and the number of `.target sm_N` in the first lines.
fn header(text: &str) -> Option<((u32, u32), u32)> {
    let mut version = None;
    for line in text.lines().take(100) {
        let mut words = line.split_whitespace();
        match words.next() {
            Some(".version") => {
                let (major, minor) = words.next()?.split_once('.')?;
                version = Some((major.parse().ok()?, minor.parse().ok()?));
            }
            Some(".target") => {
                let target = words.next()?.strip_prefix("sm_")?;
                let digits: String = target.chars().take_while(char::is_ascii_digit).collect();
                return Some((version?, digits.parse().ok()?));
            }
            _ => {}
        }
    }
    None
}

/// The PTX version that came with a CUDA version (PTX ISA, release notes).
fn newest_ptx(driver: (u32, u32)) -> (u32, u32) {
    match driver {
        (11, minor) => (7, minor.min(8)),
        (12, minor) => (8, minor.min(8)),
        (major, minor) => (major - 4, minor),
    }
}

/// Tells why and gives the code.
fn loaded(result: std::result::Result<Arc<Module>, Refused>, module: Out<usize>) -> Result {
    match result {
        Ok(made) => module.set(made.handle),
        Err(Refused(error, reason)) => {
            eprintln!("cudasim: module not loaded: {reason}");
            Err(error)
        }
    }
}

// CUjit_option: buffers for the compiler's words.
const JIT_ERROR_LOG_BUFFER: u32 = 5;
const JIT_ERROR_LOG_BUFFER_SIZE_BYTES: u32 = 6;

fn load_with_log(module: Out<usize>, pointer: usize, options: &[u32], values: &[usize]) -> Result {
    module.check()?;
    current()?;
    let result = load(&image::read(pointer)?);
    if let Err(Refused(_, reason)) = &result {
        let value = |option| options.iter().position(|own| *own == option).map(|index| values[index]);
        if let Some((buffer, bytes)) = value(JIT_ERROR_LOG_BUFFER).zip(value(JIT_ERROR_LOG_BUFFER_SIZE_BYTES))
        {
            let _ = put_text(buffer as *mut c_char, bytes, reason);
        }
    }
    loaded(result, module)
}

api! {
    fn cuModuleLoadData(module: Out<usize>, image: usize) {
        module.check()?;
        current()?;
        loaded(load(&image::read(image)?), module)
    }

    fn cuModuleLoadDataEx(
        module: Out<usize>,
        image: usize,
        count: u32,
        options: In<u32>,
        values: In<usize>,
    ) {
        let (options, values) = (options.get_all(count as usize)?, values.get_all(count as usize)?);
        load_with_log(module, image, &options, &values)
    }

    fn cuModuleLoadFatBinary(module: Out<usize>, image: usize) {
        module.check()?;
        current()?;
        loaded(load(&image::read(image)?), module)
    }

    fn cuModuleLoad(module: Out<usize>, path: *const c_char) {
        module.check()?;
        current()?;
        let path = text(path)?;
        let bytes = std::fs::read(&path).map_err(|error| {
            eprintln!("cudasim: {path}: {error}");
            Error::FILE_NOT_FOUND
        })?;
        loaded(load(&image::images(&bytes)?), module)
    }

    fn cuModuleUnload(module: usize) {
        let (driver, context) = (driver()?, current()?);
        let module = driver.modules.get(module)?;
        // Kernels of it may still be queued.
        if module.context == context.handle {
            stream::synchronise(driver, &context)?;
        }
        driver.modules.remove(module.handle)?;
        module.forget();
        driver.functions.remove_where(|function| function.module.handle == module.handle);
        for (addr, _) in module.variables.values() {
            lock(&context.owned).remove(addr);
            context.device.memory.free(*addr);
        }
        Ok(())
    }

    fn cuModuleGetFunction(function: Out<usize>, module: usize, name: *const c_char) {
        function.check()?;
        let driver = driver()?;
        current()?;
        let module = driver.modules.get(module)?;
        let name = text(name)?;
        if module.code.kernel(&name).is_none() {
            return Err(Error::NOT_FOUND);
        }
        let mut functions = lock(&module.functions);
        let found = functions.entry(name.clone()).or_insert_with(|| {
            driver.functions.insert(|handle| Function {
                handle,
                module: module.clone(),
                name,
                max_dynamic: Mutex::default(),
                carveout: Mutex::new(-1),
                cache_config: Mutex::default(),
            })
        });
        function.set(found.handle)
    }

    fn cuModuleGetFunctionCount(count: Out<u32>, module: usize) {
        count.set(driver()?.modules.get(module)?.code.kernels().count() as u32)
    }

    fn cuModuleGetGlobal_v2(address: Out<u64>, bytes: Out<usize>, module: usize, name: *const c_char) {
        current()?;
        let module = driver()?.modules.get(module)?;
        let (addr, size) = *module.variables.get(&text(name)?).ok_or(Error::NOT_FOUND)?;
        address.set_if_wanted(addr);
        bytes.set_if_wanted(size as usize);
        Ok(())
    }

    fn cuModuleGetLoadingMode(mode: Out<u32>) {
        // CU_MODULE_EAGER_LOADING.
        mode.set(1)
    }
}
