//! `cudasim run`: one launch of one kernel.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail};
use cudasim::cubin::KernelResources;
use cudasim::decode;
use cudasim::device::{DeviceSpec, Resources};
use cudasim::driver::Config;
use cudasim::exec::{self, ExecOptions, GlobalAddresses, Launch, Outcome};
use cudasim::fatbin;
use cudasim::memory::GlobalMemory;
use cudasim::model::{self, KernelFacts, LaunchKind};
use cudasim::report::{LaunchReport, Report};

use super::argument::{Argument, Buffer, Output};

/// Runs one kernel of a PTX file or fatbinary and prints what it did
///
/// Settings such as CUDASIM_DEVICE, CUDASIM_CHECKS and CUDASIM_THREADS are those of the stand-in driver. Ends with 1 when
/// something was reported.
#[derive(clap::Args)]
pub struct Args {
    /// PTX, fatbinary, or object file of nvcc
    file: PathBuf,
    /// Name of the kernel; not needed when there is only one
    #[arg(long)]
    kernel: Option<String>,
    /// CTAs: X, X,Y or X,Y,Z
    #[arg(long, default_value = "1", value_parser = dimensions)]
    grid: Dimensions,
    /// Threads per CTA: X, X,Y or X,Y,Z
    #[arg(long, default_value = "32", value_parser = dimensions)]
    block: Dimensions,
    /// Dynamic shared memory in bytes per CTA
    #[arg(long, default_value_t = 0)]
    shared: u32,
    /// An argument of the kernel: TYPE:VALUE, or TYPE[COUNT] with =zero, =random, =index, =VALUE or =file:PATH for what
    /// is in it and >PATH or >- for where it goes
    #[arg(long = "arg", value_name = "ARG", allow_hyphen_values = true)]
    arguments: Vec<Argument>,
    /// All of them at once
    #[arg(long = "args", value_name = "ARGS", num_args = 1.., allow_hyphen_values = true)]
    more: Vec<Argument>,
    /// CTAs must all be resident at once
    #[arg(long)]
    cooperative: bool,
    /// Seed of random buffers
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Counts per source line too
    #[arg(long)]
    lines: bool,
    /// Writes the report as JSON
    #[arg(long)]
    json: Option<PathBuf>,
}

#[derive(Clone, Copy)]
struct Dimensions([u32; 3]);

fn dimensions(text: &str) -> Result<Dimensions> {
    let mut all = [1; 3];
    let parts: Vec<&str> = text.split(',').collect();
    if parts.len() > 3 {
        bail!("more than three dimensions");
    }
    for (dimension, part) in all.iter_mut().zip(parts) {
        *dimension = part.trim().parse().context("a dimension is a number")?;
    }
    Ok(Dimensions(all))
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let config = Config::from_process().map_err(|error| anyhow!(error))?;
    let mut spec = config.device_spec().map_err(|error| anyhow!(error))?;
    if let Some(bytes) = config.memory_bytes {
        spec.memory_bytes = bytes;
    }
    let options = config.exec_options().map_err(|error| anyhow!(error))?;
    let (module, resources) = load(args)?;
    let kernel = choose(args, &module)?;
    let own = resources.iter().find(|own| own.name == kernel.name);

    let memory = GlobalMemory::new(spec.memory_bytes).context("device memory")?;
    let globals =
        GlobalAddresses::place(&module, &memory).context("no memory for the variables of the module")?;
    let arguments: Vec<Argument> = args.arguments.iter().chain(&args.more).cloned().collect();
    let (params, buffers) = params(args, kernel, &arguments, &memory)?;
    let registers = own.map_or(kernel.registers_estimate, |own| own.registers);
    let launch = Launch {
        kernel,
        grid: args.grid.0,
        block: args.block.0,
        dynamic_shared_bytes: args.shared,
        params: &params,
        cooperative: args.cooperative,
        globals: &globals,
    };
    let outcome = execute(&launch, &spec, registers, &memory, &options)?;

    for (buffer, address) in buffers {
        output(buffer, address, &memory)?;
    }
    let faults: Vec<String> =
        outcome.reports.iter().chain(&outcome.fatal).map(|report| report.to_string()).collect();
    let facts = KernelFacts {
        registers,
        registers_estimated: own.is_none(),
        local_bytes: own.map(|own| own.local_bytes),
        sass_per_ptx: own.map(|own| {
            f64::from(own.machine_instructions) / outcome.counters.instructions.len().max(1) as f64
        }),
    };
    let kind = LaunchKind::Stream;
    let mut cold = model::L2State::new(&spec);
    let prediction = model::predict(&spec, &outcome.counters, &facts, kind, &mut cold);
    let mut report = Report::new(&spec);
    report.launches.push(LaunchReport::new(&outcome.counters, &facts, kind, prediction));
    print!("{}", report.table(args.lines));
    for fault in &faults {
        println!("{fault}");
    }
    let failed = !faults.is_empty();
    if let Some(path) = &args.json {
        let text = cudasim::driver::Run { report, faults }.to_json()?;
        std::fs::write(path, text).with_context(|| path.display().to_string())?;
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// The PTX of the file, and what a cubin beside it says.
fn load(args: &Args) -> Result<(Arc<decode::Module>, Vec<KernelResources>)> {
    let name = || args.file.display().to_string();
    let bytes = std::fs::read(&args.file).with_context(name)?;
    let images = fatbin::images(&bytes).with_context(name)?;
    let newest = |kind| images.iter().filter(|image| image.kind == kind).max_by_key(|image| image.arch);
    let ptx = newest(fatbin::Kind::Ptx)
        .ok_or_else(|| anyhow!("{}: holds machine code only; PTX is what can be executed", name()))?;
    let text = std::str::from_utf8(&ptx.bytes).with_context(name)?;
    let module = decode::Module::parse(text).map_err(|error| anyhow!("{}:{error}", name()))?;
    let resources = match newest(fatbin::Kind::Cubin) {
        Some(cubin) => cudasim::cubin::kernels(&cubin.bytes).with_context(name)?,
        None => Vec::new(),
    };
    Ok((Arc::new(module), resources))
}

fn choose<'m>(args: &Args, module: &'m decode::Module) -> Result<&'m decode::Kernel> {
    let names = || module.kernels().map(|kernel| kernel.name.as_str()).collect::<Vec<_>>().join(", ");
    match &args.kernel {
        Some(name) => module.kernel(name).ok_or_else(|| anyhow!("no kernel {name}; there are {}", names())),
        None => {
            let mut kernels = module.kernels();
            match (kernels.next(), kernels.next()) {
                (Some(only), None) => Ok(only),
                (None, _) => bail!("{} has no kernel", args.file.display()),
                _ => bail!("which kernel? --kernel with one of {}", names()),
            }
        }
    }
}

/// Buffers with their addresses.
type Placed<'a> = Vec<(&'a Buffer, u64)>;

/// The parameter buffer, and where the buffers lie.
fn params<'a>(
    args: &Args,
    kernel: &decode::Kernel,
    arguments: &'a [Argument],
    memory: &GlobalMemory,
) -> Result<(Vec<u8>, Placed<'a>)> {
    if arguments.len() != kernel.params.len() {
        bail!("{} takes {} arguments, not {}", kernel.name, kernel.params.len(), arguments.len());
    }
    let mut params = vec![0; kernel.param_bytes as usize];
    let mut buffers = Vec::new();
    let mut seed = args.seed;
    for (index, (argument, param)) in arguments.iter().zip(&kernel.params).enumerate() {
        let value = match argument {
            Argument::Value(bytes) => bytes.clone(),
            Argument::Buffer(buffer) => {
                let bytes = buffer.count as u64 * buffer.kind.bytes() as u64;
                let address = memory
                    .alloc(bytes)
                    .ok_or_else(|| anyhow!("argument {index}: {bytes} bytes do not fit the device"))?;
                if let Some(initial) = buffer.bytes(&mut seed)? {
                    memory.write(address, &initial)?;
                }
                buffers.push((buffer, address));
                address.to_le_bytes().to_vec()
            }
        };
        if value.len() != param.size as usize {
            bail!("argument {index} has {} bytes, the kernel's parameter {}", value.len(), param.size);
        }
        params[param.offset as usize..][..value.len()].copy_from_slice(&value);
    }
    Ok((params, buffers))
}

fn execute(
    launch: &Launch<'_>,
    spec: &DeviceSpec,
    registers: u32,
    memory: &GlobalMemory,
    options: &ExecOptions,
) -> Result<Outcome> {
    let threads = launch.block.iter().map(|n| u64::from(*n)).product::<u64>();
    let threads =
        u32::try_from(threads).ok().filter(|n| *n <= 1024).context("a CTA has at most 1024 threads")?;
    let shared_bytes = launch.kernel.static_shared_bytes + launch.dynamic_shared_bytes;
    let per_sm = spec.occupancy(&Resources { threads, registers, shared_bytes }).ctas_per_sm;
    if per_sm == 0 {
        bail!(
            "no CTA of {threads} threads with {registers} registers and {shared_bytes} bytes of shared memory fits"
        );
    }
    let resident = per_sm.saturating_mul(spec.sms);
    let ctas = launch.grid.iter().map(|n| u64::from(*n)).product::<u64>();
    if launch.cooperative && ctas > u64::from(resident) {
        bail!("{ctas} CTAs are too many for a cooperative launch: {resident} are resident at once");
    }
    let options = ExecOptions { max_resident_ctas: resident, sms: spec.sms, ..options.clone() };
    Ok(exec::run(launch, memory, &options))
}

/// Elements that are printed of a buffer.
const SHOWN: usize = 64;

fn output(buffer: &Buffer, address: u64, memory: &GlobalMemory) -> Result<()> {
    let Some(output) = &buffer.output else { return Ok(()) };
    let mut bytes = vec![0; buffer.count * buffer.kind.bytes()];
    memory.read(address, &mut bytes)?;
    match output {
        Output::File(path) => std::fs::write(path, bytes).with_context(|| path.display().to_string()),
        Output::Print => {
            let all =
                bytes.chunks(buffer.kind.bytes()).take(SHOWN).map(|element| buffer.kind.decode(element));
            let more = if buffer.count > SHOWN { " ..." } else { "" };
            println!("{}{more}", all.collect::<Vec<_>>().join(" "));
            Ok(())
        }
    }
}
