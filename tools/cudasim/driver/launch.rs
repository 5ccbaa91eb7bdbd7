//! Kernel launches: what the driver checks before, and the run itself.

use std::sync::Arc;

use super::entry::{In, Out, api};
use super::error::{Error, Result};
use super::fault::Kind;
use super::function::limits;
use super::module::Function;
use super::op::Op;
use super::state::{Context, Driver, driver, lock};
use super::stream::{open, submit};
use crate::check::FaultKind;
use crate::device::Resources;
use crate::exec::{self, ExecOptions};
use crate::model::{self, KernelFacts, LaunchKind};
use crate::report::LaunchReport;

/// A kernel with everything that it runs with.
pub(super) struct Launch {
    pub function: Arc<Function>,
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub dynamic_shared: u32,
    /// The parameter buffer as the kernel sees it.
    pub params: Vec<u8>,
    pub cooperative: bool,
}

/// What a program passes to describe a launch.
#[derive(Clone, Copy)]
pub(super) struct Asked {
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub dynamic_shared: u32,
    /// `void **`: a pointer to each parameter.
    pub params: usize,
    /// `void **`: pairs of option and value instead.
    pub extra: usize,
    pub cooperative: bool,
}

const MAX_GRID: [u32; 3] = [i32::MAX as u32, 65535, 65535];
const MAX_BLOCK: [u32; 3] = [1024, 1024, 64];
const MAX_THREADS: u64 = 1024;

impl Launch {
    /// Checks a launch as `cuLaunchKernel` does and copies its parameters.
    pub fn new(context: &Context, function: Arc<Function>, asked: &Asked) -> Result<Launch> {
        let kernel = function.kernel()?;
        for axis in 0..3 {
            if !(1..=MAX_GRID[axis]).contains(&asked.grid[axis])
                || !(1..=MAX_BLOCK[axis]).contains(&asked.block[axis])
            {
                return Err(Error::INVALID_VALUE);
            }
        }
        let threads = asked.block.iter().map(|n| u64::from(*n)).product::<u64>();
        let bound = kernel.max_threads.map_or(MAX_THREADS, |n| n.iter().map(|n| u64::from(*n)).product());
        if threads > MAX_THREADS.min(bound) || kernel.req_threads.is_some_and(|wanted| wanted != asked.block)
        {
            return Err(Error::INVALID_VALUE);
        }
        let spec = &context.device.spec;
        let limits = limits(&function, spec)?;
        if asked.dynamic_shared > limits.max_dynamic {
            return Err(Error::INVALID_VALUE);
        }
        let resources = Resources {
            threads: threads as u32,
            registers: limits.registers,
            shared_bytes: limits.static_shared + asked.dynamic_shared,
        };
        let per_sm = spec.occupancy(&resources).ctas_per_sm;
        if per_sm == 0 {
            return Err(Error::LAUNCH_OUT_OF_RESOURCES);
        }
        let ctas = asked.grid.iter().map(|n| u64::from(*n)).product::<u64>();
        if asked.cooperative && ctas > u64::from(per_sm) * u64::from(spec.sms) {
            return Err(Error::COOPERATIVE_LAUNCH_TOO_LARGE);
        }
        let params = parameters(&function, asked)?;
        Ok(Launch {
            function,
            grid: asked.grid,
            block: asked.block,
            dynamic_shared: asked.dynamic_shared,
            params,
            cooperative: asked.cooperative,
        })
    }

    /// Executes the kernel and returns its modelled time in ns. A failure spoils the context.
    pub fn run(&self, driver: &Driver, context: &Context, in_graph: bool) -> f64 {
        let device = &context.device;
        let index = device.next_launch();
        if let Some(error) = driver.faults.count(Kind::Sticky) {
            driver.journal.note(format_args!("launch {index} of {} fails as asked for", self.function.name));
            context.fail(error);
            return 0.0;
        }
        let Ok(kernel) = self.function.kernel() else { return 0.0 };
        let Ok(limits) = limits(&self.function, &device.spec) else { return 0.0 };
        let resources = Resources {
            threads: self.block.iter().product(),
            registers: limits.registers,
            shared_bytes: limits.static_shared + self.dynamic_shared,
        };
        let per_sm = device.spec.occupancy(&resources).ctas_per_sm.max(1);
        let launch = exec::Launch {
            kernel,
            grid: self.grid,
            block: self.block,
            dynamic_shared_bytes: self.dynamic_shared,
            params: &self.params,
            cooperative: self.cooperative,
            globals: &self.function.module.addresses,
        };
        let options = ExecOptions {
            max_resident_ctas: per_sm.saturating_mul(device.spec.sms),
            sms: device.spec.sms,
            ..driver.options.clone()
        };
        let outcome = exec::run(&launch, &device.memory, &options);
        driver.journal.reports(&outcome.reports);
        if let Some(fatal) = &outcome.fatal {
            driver.journal.reports(std::slice::from_ref(fatal));
            context.fail(code(fatal.kind));
        } else if !outcome.reports.is_empty() && driver.config.fatal_reports {
            context.fail(Error::LAUNCH_FAILED);
        }
        if !driver.config.counters {
            return 0.0;
        }
        let kind = if in_graph { LaunchKind::Graph } else { LaunchKind::Stream };
        let facts = KernelFacts {
            registers: limits.registers,
            registers_estimated: !limits.from_cubin,
            local_bytes: limits.from_cubin.then_some(limits.local),
            sass_per_ptx: limits
                .machine_instructions
                .map(|machine| f64::from(machine) / outcome.counters.instructions.len().max(1) as f64),
        };
        let prediction = model::predict(&device.spec, &outcome.counters, &facts, kind, &mut lock(&device.l2));
        let ns = prediction.time_us * 1e3;
        if driver.journal.keeps_launches() {
            driver.journal.launch(LaunchReport::new(&outcome.counters, &facts, kind, prediction));
        }
        ns
    }
}

/// The code that hardware gives for a fault.
fn code(kind: FaultKind) -> Error {
    match kind {
        FaultKind::Misaligned => Error::MISALIGNED_ADDRESS,
        FaultKind::OutOfBounds => Error::ILLEGAL_ADDRESS,
        FaultKind::IllegalInstruction => Error::ILLEGAL_INSTRUCTION,
        FaultKind::Deadlock | FaultKind::Watchdog => Error::LAUNCH_TIMEOUT,
        FaultKind::Assert => Error::ASSERT,
        FaultKind::StackOverflow => Error::ILLEGAL_ADDRESS,
        _ => Error::LAUNCH_FAILED,
    }
}

/// The parameter buffer from `kernelParams` or `extra`.
fn parameters(function: &Function, asked: &Asked) -> Result<Vec<u8>> {
    let kernel = function.kernel()?;
    let mut buffer = vec![0u8; kernel.param_bytes as usize];
    if asked.extra != 0 {
        if asked.params != 0 {
            return Err(Error::INVALID_VALUE);
        }
        let (data, bytes) = packed(asked.extra)?;
        if bytes < buffer.len() {
            return Err(Error::INVALID_VALUE);
        }
        let packed = In::<u8>::at(data).get_all(buffer.len())?;
        buffer.copy_from_slice(&packed);
        return Ok(buffer);
    }
    if kernel.params.is_empty() {
        return Ok(buffer);
    }
    let pointers = In::<usize>::at(asked.params).get_all(kernel.params.len())?;
    for (param, pointer) in kernel.params.iter().zip(pointers) {
        let value = In::<u8>::at(pointer).get_all(param.size as usize)?;
        let at = param.offset as usize;
        buffer.get_mut(at..at + value.len()).ok_or(Error::INVALID_IMAGE)?.copy_from_slice(&value);
    }
    Ok(buffer)
}

// Options of `extra`, a list of pairs that ends with 0.
const PARAM_BUFFER_POINTER: usize = 1;
const PARAM_BUFFER_SIZE: usize = 2;

fn packed(extra: usize) -> Result<(usize, usize)> {
    let (mut data, mut bytes) = (0, None);
    for pair in 0..4 {
        let option = In::<usize>::at(extra + pair * 16).get()?;
        if option == 0 {
            return bytes.filter(|_| data != 0).map(|bytes| (data, bytes)).ok_or(Error::INVALID_VALUE);
        }
        let value = In::<usize>::at(extra + pair * 16 + 8).get()?;
        match option {
            PARAM_BUFFER_POINTER => data = value,
            PARAM_BUFFER_SIZE => bytes = Some(In::<usize>::at(value).get()?),
            _ => return Err(Error::INVALID_VALUE),
        }
    }
    Err(Error::INVALID_VALUE)
}

fn launch(function: usize, stream: usize, asked: &Asked) -> Result {
    let (driver, context, stream) = open(stream)?;
    let function = driver.functions.get(function)?;
    if function.module.context != context.handle {
        return Err(Error::INVALID_HANDLE);
    }
    let launch = Launch::new(&context, function, asked)?;
    if stream.capture().is_none() {
        driver.inject(Kind::Launch, &context.device)?;
    }
    submit(driver, &context, &stream, Op::Kernel(Arc::new(launch)))
}

/// `CUlaunchConfig`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Config {
    grid: [u32; 3],
    block: [u32; 3],
    shared: u32,
    stream: usize,
    attributes: usize,
    count: u32,
}

/// `CUlaunchAttribute`: 64 bytes of value after the number.
#[repr(C)]
#[derive(Clone, Copy)]
struct Attribute {
    id: u32,
    _pad: u32,
    value: [u32; 16],
}

const ATTRIBUTE_COOPERATIVE: u32 = 2;
const ATTRIBUTE_CLUSTER_DIMENSION: u32 = 4;

api! {
    fn cuLaunchKernel(
        function: usize,
        grid_x: u32,
        grid_y: u32,
        grid_z: u32,
        block_x: u32,
        block_y: u32,
        block_z: u32,
        shared: u32,
        stream: usize,
        params: usize,
        extra: usize,
    ) {
        launch(function, stream, &Asked {
            grid: [grid_x, grid_y, grid_z],
            block: [block_x, block_y, block_z],
            dynamic_shared: shared,
            params,
            extra,
            cooperative: false,
        })
    }

    fn cuLaunchCooperativeKernel(
        function: usize,
        grid_x: u32,
        grid_y: u32,
        grid_z: u32,
        block_x: u32,
        block_y: u32,
        block_z: u32,
        shared: u32,
        stream: usize,
        params: usize,
    ) {
        launch(function, stream, &Asked {
            grid: [grid_x, grid_y, grid_z],
            block: [block_x, block_y, block_z],
            dynamic_shared: shared,
            params,
            extra: 0,
            cooperative: true,
        })
    }

    fn cuLaunchKernelEx(config: In<Config>, function: usize, params: usize, extra: usize) {
        driver()?;
        let config = config.get()?;
        let mut cooperative = false;
        for attribute in In::<Attribute>::at(config.attributes).get_all(config.count as usize)? {
            match attribute.id {
                ATTRIBUTE_COOPERATIVE => cooperative = attribute.value[0] != 0,
                ATTRIBUTE_CLUSTER_DIMENSION if attribute.value[..3] != [1, 1, 1] => {
                    return Err(Error::NOT_SUPPORTED);
                }
                // The others are hints or about work in other streams.
                _ => {}
            }
        }
        launch(function, config.stream, &Asked {
            grid: config.grid,
            block: config.block,
            dynamic_shared: config.shared,
            params,
            extra,
            cooperative,
        })
    }

    fn cuFuncGetName(name: Out<usize>, function: usize) {
        name.check()?;
        let function = driver()?.functions.get(function)?;
        name.set(super::function::c_name(&function) as usize)
    }
}
