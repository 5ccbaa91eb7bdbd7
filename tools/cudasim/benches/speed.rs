//! How fast kernels execute, with checks as in the driver's default and without.
//!
//! `cargo bench -p cudasim`: elements are thread instructions, for the GEMM floating-point operations. Times are those
//! that the process spent on processors, summed over its threads: rates are per core, also on a machine that others
//! use.

#[path = "../tests/common/mod.rs"]
mod common;

use std::time::Duration;

use criterion::measurement::{Measurement, ValueFormatter, WallTime};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use cudasim::check::Checks;
use cudasim::decode::Module;
use cudasim::exec::{self, ExecOptions, GlobalAddresses, Launch, Outcome};
use cudasim::memory::GlobalMemory;

struct Case {
    name: &'static str,
    module: &'static str,
    kernel: &'static str,
    grid: [u32; 3],
    block: u32,
    shared: u32,
    /// Buffers in bytes, then 32-bit numbers.
    buffers: &'static [usize],
    numbers: &'static [i32],
    /// Floating-point operations, when these are counted instead of instructions.
    flops: Option<u64>,
}

const CASES: [Case; 6] = [
    Case {
        name: "add_f32",
        module: "vector.nvcc13.O3",
        kernel: "add_f32",
        grid: [1024, 1, 1],
        block: 256,
        shared: 0,
        buffers: &[1 << 22, 1 << 22, 1 << 22],
        numbers: &[1 << 20],
        flops: None,
    },
    Case {
        name: "softmax_rows",
        module: "softmax.nvcc13.O3",
        kernel: "softmax_rows",
        grid: [256, 1, 1],
        block: 128,
        shared: 0,
        buffers: &[1 << 22, 1 << 22],
        numbers: &[1024, 1000],
        flops: None,
    },
    Case {
        name: "gemv_int4",
        module: "int4.nvcc13.O3",
        kernel: "gemv_int4",
        grid: [512, 1, 1],
        block: 128,
        shared: 0,
        buffers: &[4 << 20, 1 << 17, 1 << 13, 1 << 13],
        numbers: &[2048, 4096],
        flops: None,
    },
    Case {
        name: "pipeline4",
        module: "pipeline.nvcc13.O3",
        kernel: "pipeline4",
        grid: [256, 1, 1],
        block: 128,
        shared: 0,
        buffers: &[256 * 16 * 2048, 256 * 2048],
        numbers: &[16],
        flops: None,
    },
    Case {
        name: "gemm_f16",
        module: "gemm.nvcc13.O3",
        kernel: "gemm_f16",
        grid: [8, 8, 1],
        block: 128,
        shared: 16384,
        buffers: &[512 * 512 * 2, 512 * 512 * 2, 512 * 512 * 4],
        numbers: &[512, 512, 512],
        flops: Some(2 * 512 * 512 * 512),
    },
    Case {
        name: "mma_f16",
        module: MMA,
        kernel: "products",
        grid: [16, 1, 1],
        block: 128,
        shared: 0,
        buffers: &[16 * 128 * 4],
        numbers: &[],
        flops: Some(16 * 4 * 200 * 8 * 2 * 16 * 8 * 16),
    },
];

/// The module that is nothing but products: see [`products`].
const MMA: &str = "";

/// 200 rounds of eight independent `mma`, which a main loop of a GEMM has between its loads.
fn products() -> String {
    let mma = |i: u32| {
        format!(
            "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {{%c{0},%c{1},%c{2},%c{3}}}, {{%a0,%a1,%a2,%a3}}, \
             {{%b0,%b1}}, {{%c{0},%c{1},%c{2},%c{3}}};\n",
            4 * i,
            4 * i + 1,
            4 * i + 2,
            4 * i + 3
        )
    };
    let set = |name: &str, n: u32, value: &str| -> String {
        (0..n).map(|i| format!("mov.b32 %{name}{i}, {value};\n")).collect()
    };
    format!(
        ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry products(.param .u64 out) {{\n\
         .reg .b32 %a<4>, %b<2>, %n, %t; .reg .f32 %c<32>; .reg .pred %p; .reg .b64 %q;\n{}{}{}\
         mov.u32 %n, 0;\nL: {}add.u32 %n, %n, 1; setp.lt.u32 %p, %n, 200; @%p bra L;\n\
         mov.u32 %n, %ctaid.x; mov.u32 %t, %tid.x; mad.lo.u32 %n, %n, 128, %t;\n\
         ld.param.u64 %q, [out]; mad.wide.u32 %q, %n, 4, %q; st.global.f32 [%q], %c0; ret; }}\n",
        set("a", 4, "0x2c002c00"),
        set("b", 2, "0x2c002c00"),
        set("c", 32, "0f00000000"),
        (0..8).map(mma).collect::<String>()
    )
}

struct Loaded {
    memory: GlobalMemory,
    module: Module,
    globals: GlobalAddresses,
    params: Vec<u8>,
}

fn load(case: &Case) -> Loaded {
    let memory = GlobalMemory::new(1 << 30).expect("address space");
    let text = if case.module == MMA { products() } else { common::ptx(case.module) };
    let module = Module::parse(&text).expect("PTX");
    let globals = GlobalAddresses::place(&module, &memory).expect("memory");
    let mut params = Vec::new();
    for &bytes in case.buffers {
        let address = memory.alloc(bytes as u64).expect("memory");
        memory.write(address, &vec![0x11; bytes]).expect("in bounds");
        params.extend(address.to_le_bytes());
    }
    case.numbers.iter().for_each(|number| params.extend(number.to_le_bytes()));
    Loaded { memory, module, globals, params }
}

fn run(case: &Case, loaded: &Loaded, options: &ExecOptions) -> Outcome {
    let launch = Launch {
        kernel: loaded.module.kernel(case.kernel).expect("kernel"),
        grid: case.grid,
        block: [case.block, 1, 1],
        dynamic_shared_bytes: case.shared,
        params: &loaded.params,
        cooperative: false,
        globals: &loaded.globals,
    };
    exec::run(&launch, &loaded.memory, options)
}

/// Processor time of this process.
struct CpuTime;

impl Measurement for CpuTime {
    type Intermediate = Duration;
    type Value = Duration;

    fn start(&self) -> Duration {
        let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: `now` has room for the time.
        let failed = unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut now) };
        assert_eq!(failed, 0, "the process has a clock");
        Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
    }

    fn end(&self, start: Duration) -> Duration {
        self.start() - start
    }

    fn add(&self, a: &Duration, b: &Duration) -> Duration {
        *a + *b
    }

    fn zero(&self) -> Duration {
        Duration::ZERO
    }

    fn to_f64(&self, value: &Duration) -> f64 {
        WallTime.to_f64(value)
    }

    fn formatter(&self) -> &dyn ValueFormatter {
        WallTime.formatter()
    }
}

fn speed(c: &mut Criterion<CpuTime>) {
    for (name, checks) in [("hardware checks", Checks::NONE), ("all checks", Checks::ALL)] {
        let mut group = c.benchmark_group(name);
        group.sample_size(10).warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(2));
        for case in &CASES {
            let loaded = load(case);
            for threads in [1, 2] {
                let options = ExecOptions { threads, checks, ..ExecOptions::default() };
                let outcome = run(case, &loaded, &options);
                assert!(outcome.fatal.is_none(), "{:?}", outcome.fatal);
                let work = case.flops.unwrap_or(outcome.counters.thread_instructions());
                group.throughput(Throughput::Elements(work));
                group.bench_function(format!("{} x {threads}", case.name), |b| {
                    b.iter(|| run(case, &loaded, &options))
                });
            }
        }
        group.finish();
    }
}

criterion_group!(name = benches; config = Criterion::default().with_measurement(CpuTime); targets = speed);
criterion_main!(benches);
