//! Wraps a few instructions in a kernel and runs them.

use cudasim::check::{Checks, Report};
use cudasim::counters::Counters;
use cudasim::decode::Module;
use cudasim::exec::{self, ExecOptions, GlobalAddresses, Launch};
use cudasim::memory::GlobalMemory;

/// Threads of a CTA in the element-wise kernels.
const BLOCK: usize = 256;

/// A type that travels between Rust and a register.
pub trait Element: Copy {
    const BYTES: usize;
    /// Type of the register that holds it.
    const REGISTER: &'static str;
    /// Type of loads and stores.
    const MEMORY: &'static str;
    fn put(self, out: &mut Vec<u8>);
    fn get(bytes: &[u8]) -> Self;
}

macro_rules! elements {
    ($($t:ty, $register:literal, $memory:literal;)*) => {$(
        impl Element for $t {
            const BYTES: usize = size_of::<$t>();
            const REGISTER: &'static str = $register;
            const MEMORY: &'static str = $memory;
            fn put(self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }
            fn get(bytes: &[u8]) -> Self {
                <$t>::from_le_bytes(bytes.try_into().unwrap())
            }
        }
    )*};
}

elements! {
    u8, "b16", "u8"; i8, "b16", "s8"; u16, "b16", "u16"; i16, "b16", "s16";
    u32, "b32", "u32"; i32, "b32", "s32"; u64, "b64", "u64"; i64, "b64", "s64";
    f32, "f32", "f32"; f64, "f64", "f64";
}

/// What a run left behind.
pub struct Run {
    pub buffers: Vec<Vec<u8>>,
    pub counters: Counters,
    pub reports: Vec<Report>,
}

/// A kernel text for sm_80 or sm_90 with parameters `p0`, `p1`, ... of 64 bits.
pub fn kernel(buffers: usize, body: &str) -> String {
    let params: Vec<String> = (0..buffers).map(|i| format!(".param .u64 p{i}")).collect();
    format!(
        ".version 8.6\n.target sm_90\n.address_size 64\n.visible .entry k({})\n{{\n{body}\nret;\n}}\n",
        params.join(", ")
    )
}

/// What a launch needs beside the kernel and its buffers.
#[derive(Clone, Copy)]
pub struct Config {
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub dynamic_shared_bytes: u32,
    pub checks: Checks,
    pub cooperative: bool,
}

impl Config {
    pub fn new(grid: u32, block: u32) -> Config {
        Config {
            grid: [grid, 1, 1],
            block: [block, 1, 1],
            dynamic_shared_bytes: 0,
            checks: Checks::ALL,
            cooperative: false,
        }
    }
}

/// Runs the kernel `k` of `text` on copies of `buffers`; fails when it does not parse or stops with a fault.
pub fn run(text: &str, config: Config, buffers: &[Vec<u8>]) -> Run {
    run_with(text, config, buffers, &[])
}

/// The same with further bytes of parameters behind the addresses of the buffers.
pub fn run_with(text: &str, config: Config, buffers: &[Vec<u8>], more: &[u8]) -> Run {
    let module = Module::parse(text).unwrap_or_else(|e| panic!("{e}\n{}", numbered(text)));
    let kernel = module.kernel("k").expect("the kernel k");
    let total: usize = buffers.iter().map(Vec::len).sum();
    let memory = GlobalMemory::new(total as u64 + (2 << 20)).unwrap();
    let addresses: Vec<u64> = buffers.iter().map(|b| memory.alloc(b.len().max(1) as u64).unwrap()).collect();
    let mut params = Vec::new();
    for (address, bytes) in addresses.iter().zip(buffers) {
        memory.write(*address, bytes).unwrap();
        params.extend_from_slice(&address.to_le_bytes());
    }
    params.extend_from_slice(more);
    let globals = GlobalAddresses::place(&module, &memory).unwrap();
    let launch = Launch {
        kernel,
        grid: config.grid,
        block: config.block,
        dynamic_shared_bytes: config.dynamic_shared_bytes,
        params: &params,
        cooperative: config.cooperative,
        globals: &globals,
    };
    let options = ExecOptions { threads: 1, checks: config.checks, ..ExecOptions::default() };
    let outcome = exec::run(&launch, &memory, &options);
    if let Some(fatal) = outcome.fatal {
        panic!("{fatal}\n{}", numbered(text));
    }
    let buffers = addresses
        .iter()
        .zip(buffers)
        .map(|(address, bytes)| {
            let mut out = vec![0; bytes.len()];
            memory.read(*address, &mut out).unwrap();
            out
        })
        .collect();
    Run { buffers, counters: outcome.counters, reports: outcome.reports }
}

/// The same, where nothing must be reported.
pub fn run_clean(text: &str, config: Config, buffers: &[Vec<u8>]) -> Run {
    let out = run(text, config, buffers);
    if let Some(report) = out.reports.first() {
        panic!("{report}\n{}", numbered(text));
    }
    out
}

fn numbered(text: &str) -> String {
    text.lines().enumerate().map(|(i, line)| format!("{:4} {line}\n", i + 1)).collect()
}

/// Little-endian bytes of elements.
pub fn bytes_of<T: Element>(values: &[T]) -> Vec<u8> {
    let mut out = Vec::with_capacity(values.len() * T::BYTES);
    for &v in values {
        v.put(&mut out);
    }
    out
}

/// Elements from little-endian bytes.
pub fn values_of<T: Element>(bytes: &[u8]) -> Vec<T> {
    bytes.chunks_exact(T::BYTES).map(T::get).collect()
}

/// One input array: how to declare, where to find.
struct Input {
    bytes: Vec<u8>,
    size: usize,
    register: &'static str,
    memory: &'static str,
}

fn input<T: Element>(values: &[T], padded: usize) -> Input {
    let mut all = values.to_vec();
    all.resize(padded, values[0]);
    Input { bytes: bytes_of(&all), size: T::BYTES, register: T::REGISTER, memory: T::MEMORY }
}

/// Executes `instruction` for every index; it reads `%a`, `%b`, `%c`, `%d` and writes `%o`.
fn elementwise<O: Element>(instruction: &str, inputs: Vec<Input>, n: usize, padded: usize) -> Vec<O> {
    let mut body = String::from(
        ".reg .b32 %i, %j; .reg .b64 %q, %x;\nmov.u32 %i, %tid.x;\nmov.u32 %j, %ctaid.x;\nmad.lo.u32 %i, %j, 256, %i;\n",
    );
    let mut buffers = Vec::new();
    for (k, (input, name)) in inputs.into_iter().zip(["%a", "%b", "%c", "%d"]).enumerate() {
        let (size, register, memory) = (input.size, input.register, input.memory);
        body += &format!(
            ".reg .{register} {name};\nld.param.u64 %q, [p{k}];\nmul.wide.u32 %x, %i, {size};\nadd.s64 %q, %q, %x;\nld.global.{memory} {name}, [%q];\n"
        );
        buffers.push(input.bytes);
    }
    let k = buffers.len();
    body += &format!(
        ".reg .{} %o;\n{{\n{instruction}\n}}\nld.param.u64 %q, [p{k}];\nmul.wide.u32 %x, %i, {};\nadd.s64 %q, %q, %x;\nst.global.{} [%q], %o;\n",
        O::REGISTER,
        O::BYTES,
        O::MEMORY
    );
    buffers.push(vec![0; padded * O::BYTES]);
    let text = kernel(k + 1, &body);
    let out = run_clean(&text, Config::new((padded / BLOCK) as u32, BLOCK as u32), &buffers);
    let mut values = values_of(&out.buffers[k]);
    values.truncate(n);
    values
}

/// `%o` for each `%a`.
pub fn map1<A: Element, O: Element>(instruction: &str, a: &[A]) -> Vec<O> {
    let padded = a.len().next_multiple_of(BLOCK);
    elementwise(instruction, vec![input(a, padded)], a.len(), padded)
}

/// `%o` for each `%a`, `%b`.
pub fn map2<A: Element, B: Element, O: Element>(instruction: &str, a: &[A], b: &[B]) -> Vec<O> {
    assert_eq!(a.len(), b.len());
    let padded = a.len().next_multiple_of(BLOCK);
    elementwise(instruction, vec![input(a, padded), input(b, padded)], a.len(), padded)
}

/// `%o` for each `%a`, `%b`, `%c`.
pub fn map3<A: Element, B: Element, C: Element, O: Element>(
    instruction: &str,
    a: &[A],
    b: &[B],
    c: &[C],
) -> Vec<O> {
    assert!(a.len() == b.len() && a.len() == c.len());
    let padded = a.len().next_multiple_of(BLOCK);
    elementwise(instruction, vec![input(a, padded), input(b, padded), input(c, padded)], a.len(), padded)
}

/// `%o` for each `%a`, `%b`, `%c`, `%d`.
pub fn map4<A: Element, B: Element, C: Element, D: Element, O: Element>(
    instruction: &str,
    a: &[A],
    b: &[B],
    c: &[C],
    d: &[D],
) -> Vec<O> {
    assert!(a.len() == b.len() && a.len() == c.len() && a.len() == d.len());
    let padded = a.len().next_multiple_of(BLOCK);
    let inputs = vec![input(a, padded), input(b, padded), input(c, padded), input(d, padded)];
    elementwise(instruction, inputs, a.len(), padded)
}

/// Compares an instruction with plain Rust; the message names the first operands that differ.
pub fn check1<A: Element + std::fmt::Debug, O: Element + PartialEq + std::fmt::LowerHex>(
    instruction: &str,
    a: &[A],
    expected: impl Fn(A) -> O,
) {
    let found: Vec<O> = map1(instruction, a);
    for (&a, &found) in a.iter().zip(&found) {
        let wanted = expected(a);
        assert!(found == wanted, "{instruction}: {a:x?} gives {found:#x}, not {wanted:#x}");
    }
}

/// The same for two operands.
pub fn check2<A, B, O>(instruction: &str, a: &[A], b: &[B], expected: impl Fn(A, B) -> O)
where
    A: Element + std::fmt::Debug,
    B: Element + std::fmt::Debug,
    O: Element + PartialEq + std::fmt::LowerHex,
{
    let found: Vec<O> = map2(instruction, a, b);
    for ((&a, &b), &found) in a.iter().zip(b).zip(&found) {
        let wanted = expected(a, b);
        assert!(found == wanted, "{instruction}: {a:x?}, {b:x?} gives {found:#x}, not {wanted:#x}");
    }
}

/// The same for three operands.
pub fn check3<A, B, C, O>(instruction: &str, a: &[A], b: &[B], c: &[C], expected: impl Fn(A, B, C) -> O)
where
    A: Element + std::fmt::Debug,
    B: Element + std::fmt::Debug,
    C: Element + std::fmt::Debug,
    O: Element + PartialEq + std::fmt::LowerHex,
{
    let found: Vec<O> = map3(instruction, a, b, c);
    for (((&a, &b), &c), &found) in a.iter().zip(b).zip(c).zip(&found) {
        let wanted = expected(a, b, c);
        assert!(found == wanted, "{instruction}: {a:x?}, {b:x?}, {c:x?} gives {found:#x}, not {wanted:#x}");
    }
}
