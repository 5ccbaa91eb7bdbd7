//! Speed of the executor on one host thread.
//!
//! `cargo bench -p cudasim`: elements per second are thread instructions per second in the first two groups and
//! floating-point operations per second in `mma`. The targets are 0.5 G and 10 G with counters on.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use cudasim::check::Checks;
use cudasim::exec::{ExecOptions, GlobalAddresses, Launch, Outcome, run};
use cudasim::memory::GlobalMemory;
use cudasim::ptx::Module;

const HEADER: &str = ".version 8.0\n.target sm_80\n.address_size 64\n";

/// A loop of integer, logic, single-precision and half instructions with a shuffle, as between loads of a kernel.
const ARITHMETIC: &str = "
.visible .entry k(.param .u64 out, .param .u32 n) {
    .reg .pred %p<3>; .reg .b32 %r<16>; .reg .f32 %f<8>; .reg .b64 %rd<4>;
    ld.param.u64 %rd1, [out]; ld.param.u32 %r1, [n];
    mov.u32 %r2, %tid.x; mov.u32 %r3, %ctaid.x; mov.u32 %r4, %ntid.x; mad.lo.s32 %r5, %r3, %r4, %r2;
    cvt.rn.f32.u32 %f1, %r5; mov.f32 %f2, 0f3F800000; mov.u32 %r6, 0x3c003c00; mov.u32 %r7, 0; mov.u32 %r12, 0;
L:
    add.s32 %r7, %r7, 1;
    fma.rn.f32 %f3, %f1, 0f3F000000, %f2;
    mul.f32 %f1, %f3, 0f3F7FF000;
    add.f32 %f2, %f2, 0f3C000000;
    lop3.b32 %r8, %r5, 0x000f000f, 0x64006400, 0xEA;
    fma.rn.f16x2 %r9, %r8, %r6, %r6;
    shr.u32 %r5, %r5, 4;
    xor.b32 %r5, %r5, %r9;
    shl.b32 %r10, %r7, 2;
    and.b32 %r10, %r10, 124;
    mad.lo.s32 %r12, %r10, 3, %r12;
    shfl.sync.bfly.b32 %r11, %r12, 1, 31, -1;
    max.s32 %r12, %r12, %r11;
    setp.lt.s32 %p1, %r7, %r1;
    @%p1 bra L;
    cvt.rzi.s32.f32 %r13, %f1; add.s32 %r13, %r13, %r12; add.s32 %r13, %r13, %r5;
    mad.lo.s32 %r14, %r3, %r4, %r2; mul.wide.u32 %rd2, %r14, 4; add.s64 %rd3, %rd1, %rd2;
    st.global.u32 [%rd3], %r13;
    ret;
}";

/// `out[i] = a[i] + b[i]` on 16-byte vectors.
const STREAM: &str = "
.visible .entry k(.param .u64 a, .param .u64 b, .param .u64 out, .param .u32 n) {
    .reg .pred %p<2>; .reg .b32 %r<6>; .reg .f32 %f<13>; .reg .b64 %rd<9>;
    ld.param.u64 %rd1, [a]; ld.param.u64 %rd2, [b]; ld.param.u64 %rd3, [out]; ld.param.u32 %r5, [n];
    mov.u32 %r1, %ctaid.x; mov.u32 %r2, %ntid.x; mov.u32 %r3, %tid.x; mad.lo.s32 %r4, %r1, %r2, %r3;
    setp.ge.u32 %p1, %r4, %r5;
    @%p1 bra E;
    cvta.to.global.u64 %rd1, %rd1; cvta.to.global.u64 %rd2, %rd2; cvta.to.global.u64 %rd3, %rd3;
    mul.wide.u32 %rd4, %r4, 16; add.s64 %rd5, %rd1, %rd4; add.s64 %rd6, %rd2, %rd4; add.s64 %rd7, %rd3, %rd4;
    ld.global.nc.v4.f32 {%f1, %f2, %f3, %f4}, [%rd5];
    ld.global.nc.v4.f32 {%f5, %f6, %f7, %f8}, [%rd6];
    add.f32 %f9, %f1, %f5; add.f32 %f10, %f2, %f6; add.f32 %f11, %f3, %f7; add.f32 %f12, %f4, %f8;
    st.global.v4.f32 [%rd7], {%f9, %f10, %f11, %f12};
E:  ret;
}";

/// Per iteration two `ldmatrix.x4` of A, one of B and four m16n8k16: 64 × the work of a warp tile of 32 × 16.
fn mma(ty: &str) -> String {
    let one = |a: usize, b: usize, c: usize| {
        let c: Vec<String> = (c..c + 4).map(|n| format!("%f{n}")).collect();
        let a: Vec<String> = (a..a + 4).map(|n| format!("%r{n}")).collect();
        format!(
            "mma.sync.aligned.m16n8k16.row.col.f32.{ty}.{ty}.f32 {{{c}}}, {{{a}}}, {{%r{b}, %r{}}}, {{{c}}};\n",
            b + 1,
            a = a.join(", "),
            c = c.join(", "),
        )
    };
    let zero: String = (0..16).map(|n| format!("mov.f32 %f{n}, 0f00000000; ")).collect();
    let stores: String = (0..16).map(|n| format!("st.global.f32 [%rd3+{}], %f{n}; ", 4 * n)).collect();
    let loads = [(10, 0), (14, 512), (18, 1024)].map(|(r, at)| {
        format!(
            "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {{%r{r}, %r{}, %r{}, %r{}}}, [%r6+{at}];\n",
            r + 1,
            r + 2,
            r + 3
        )
    });
    format!(
        ".visible .entry k(.param .u64 out, .param .u32 n) {{
    .reg .pred %p<3>; .reg .b32 %r<32>; .reg .f32 %f<16>; .reg .b64 %rd<4>; .shared .align 16 .b8 s[1536];
    ld.param.u64 %rd1, [out]; ld.param.u32 %r1, [n]; mov.u32 %r2, %tid.x; mov.u32 %r3, s;
    mad.lo.s32 %r4, %r2, 16, %r3;
    st.shared.v4.u32 [%r4], {{%r2, %r2, %r2, %r2}}; st.shared.v4.u32 [%r4+512], {{%r2, %r2, %r2, %r2}};
    st.shared.v4.u32 [%r4+1024], {{%r2, %r2, %r2, %r2}};
    bar.sync 0; mov.u32 %r6, %r4; mov.u32 %r7, 0; {zero}
L:
    {}{}{}{}
    add.s32 %r7, %r7, 1; setp.lt.s32 %p1, %r7, %r1; @%p1 bra L;
    mov.u32 %r8, %ctaid.x; mad.lo.s32 %r9, %r8, 32, %r2; mul.wide.u32 %rd2, %r9, 64; add.s64 %rd3, %rd1, %rd2;
    {stores} ret;
}}",
        loads.concat(),
        one(10, 18, 0),
        one(14, 18, 4),
        one(10, 20, 8) + &one(14, 20, 12),
    )
}

struct Bench {
    module: Module,
    memory: GlobalMemory,
    globals: GlobalAddresses,
    options: ExecOptions,
    params: Vec<u8>,
    grid: u32,
    block: u32,
}

impl Bench {
    fn new(text: &str, grid: u32, block: u32, checks: Checks) -> Bench {
        let module = Module::parse(&format!("{HEADER}{text}")).expect("the bench's PTX");
        let memory = GlobalMemory::new(1 << 30).expect("address space");
        let globals = GlobalAddresses::place(&module, &memory).expect("no variables");
        let options = ExecOptions { threads: 1, checks, ..ExecOptions::default() };
        Bench { module, memory, globals, options, params: Vec::new(), grid, block }
    }

    fn buffer(&mut self, bytes: usize) {
        let at = self.memory.alloc(bytes as u64).expect("memory");
        self.memory.write(at, &vec![0; bytes]).expect("inside");
        self.params.extend(at.to_le_bytes());
    }

    fn run(&self) -> Outcome {
        let launch = Launch {
            kernel: self.module.kernel("k").expect("the kernel"),
            grid: [self.grid, 1, 1],
            block: [self.block, 1, 1],
            dynamic_shared_bytes: 0,
            params: &self.params,
            cooperative: false,
            globals: &self.globals,
        };
        let outcome = run(&launch, &self.memory, &self.options);
        assert!(outcome.fatal.is_none() && outcome.reports.is_empty(), "{:?}{:?}", outcome.fatal, outcome.reports);
        outcome
    }
}

fn speed(c: &mut Criterion) {
    for (name, checks) in [("counters", Checks::NONE), ("counters and checks", Checks::ALL)] {
        let mut group = c.benchmark_group(name);
        group.sample_size(20);

        let mut b = Bench::new(ARITHMETIC, 16, 256, checks);
        b.buffer(16 * 256 * 4);
        b.params.extend(200u32.to_le_bytes());
        group.throughput(Throughput::Elements(b.run().counters.thread_instructions()));
        group.bench_function("arithmetic", |m| m.iter(|| b.run()));

        let mut b = Bench::new(STREAM, 256, 256, checks);
        for _ in 0..3 {
            b.buffer(256 * 256 * 16);
        }
        b.params.extend((256u32 * 256).to_le_bytes());
        group.throughput(Throughput::Elements(b.run().counters.thread_instructions()));
        group.bench_function("stream", |m| m.iter(|| b.run()));

        for ty in ["f16", "bf16"] {
            let mut b = Bench::new(&mma(ty), 16, 32, checks);
            b.buffer(16 * 32 * 64);
            b.params.extend(500u32.to_le_bytes());
            group.throughput(Throughput::Elements(16 * 500 * 4 * 2 * 16 * 8 * 16));
            group.bench_function(format!("mma {ty}"), |m| m.iter(|| b.run()));
        }
        group.finish();
    }
}

criterion_group!(benches, speed);
criterion_main!(benches);
