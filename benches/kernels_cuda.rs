//! Every CUDA kernel at the shapes of the published models: time, bytes and FLOP against the bounds of an A100 80 GB.
//!
//! `cargo bench --features cuda --bench kernels_cuda [FILTER]` on a GPU: medians, L2 flushed before each launch. Under
//! `cudasim env` times are modelled: set CUDASIM_CHECKS=none CUDASIM_SAMPLE=8, and CUDASIM_REPORT for the counters.

#[cfg(not(feature = "cuda"))]
fn main() {}

#[cfg(feature = "cuda")]
fn main() {
    cuda::main();
}

#[cfg(feature = "cuda")]
mod cuda {
    use std::sync::Arc;

    use cudarc::driver::{CudaContext, CudaStream, result, sys};
    use qwenvl::kernels::cuda::attention::{
        self, FlashAttention, Keys, PagedAttention, Sequence, arrivals_len, partials_bytes,
    };
    use qwenvl::kernels::cuda::linear::{
        self, Finish, Kv, Linear, Regime, Rope, RopePairs, RowOrder, WeightKind, Workspace,
    };
    use qwenvl::kernels::cuda::{Address, Half, Kernels};
    use qwenvl_graph::Activation;
    use qwenvl_graph::op::{Heads, VisionRope};

    /// Best read bandwidth seen on an A100 80 GB, and its dense 16-bit peak.
    const BYTES_PER_S: f64 = 1.80e12;
    const FLOPS: f64 = 312e12;
    const FLUSH_BYTES: usize = 96 << 20;

    struct Rig {
        kernels: Kernels,
        stream: Arc<CudaStream>,
        simulated: bool,
        filter: Option<String>,
        flush: Address,
    }

    /// Device memory of any content, kept until the process ends.
    fn memory(bytes: usize) -> Address {
        // SAFETY: never freed.
        unsafe { result::malloc_sync(bytes) }.expect("device memory")
    }

    fn zeroed(bytes: usize) -> Address {
        let at = memory(bytes);
        // SAFETY: just allocated.
        unsafe { result::memset_d8_sync(at, 0, bytes) }.expect("memset");
        at
    }

    fn of(words: &[u32]) -> Address {
        let at = memory(words.len() * 4);
        // SAFETY: just allocated.
        unsafe { result::memcpy_htod_sync(at, words) }.expect("copy");
        at
    }

    impl Rig {
        fn time(&self, name: &str, bytes: f64, flops: f64, launch: impl Fn(&CudaStream)) {
            if self.filter.as_ref().is_some_and(|f| !name.contains(f.as_str())) {
                return;
            }
            let repeats = if self.simulated { 1 } else { 21 };
            let mut times = Vec::new();
            for _ in 0..repeats {
                if !self.simulated {
                    // SAFETY: the memory is that long.
                    unsafe { result::memset_d8_async(self.flush, 0, FLUSH_BYTES, self.stream.cu_stream()) }
                        .expect("flush");
                }
                let flags = Some(sys::CUevent_flags::CU_EVENT_DEFAULT);
                let start = self.stream.record_event(flags).expect("event");
                launch(&self.stream);
                let end = self.stream.record_event(flags).expect("event");
                self.stream.synchronize().expect("launch");
                times.push(f64::from(start.elapsed_ms(&end).expect("time")) * 1e3);
            }
            times.sort_by(f64::total_cmp);
            let us = times[times.len() / 2];
            let bound = (bytes / BYTES_PER_S).max(flops / FLOPS) * 1e6;
            println!(
                "{name:<44} {us:>9.1} us {:>7.0} GB/s {:>6.1} TFLOP/s  bound {bound:>8.1} us {:>5.1} %",
                bytes / us * 1e-3,
                flops / us * 1e-6,
                100.0 * bound / us
            );
        }

        fn linear(
            &self,
            name: &str,
            kind: WeightKind,
            regime: Regime,
            m: usize,
            n: usize,
            k: usize,
            what: What,
        ) {
            if self.filter.as_ref().is_some_and(|f| !name.contains(f.as_str())) {
                return;
            }
            let n_runs = linear::runs(n, k, 108);
            let order = match what {
                What::Residual | What::Gelu | What::Logits => RowOrder::Plain,
                What::SwiGlu => RowOrder::Paired { half: n / 2 },
                What::Rope => RowOrder::Paired { half: 40 },
            };
            let out = memory(m * n * 4);
            let l = Linear {
                kind,
                half: Half::BF16,
                regime,
                x: memory(m * k * 2),
                ldx: k,
                w: memory(kind.matrix_bytes(n, k)),
                order,
                bias: None,
                out,
                m,
                n,
                k,
                n_runs,
                finish: match what {
                    What::Residual => Finish::AddResidual(out),
                    What::Gelu => Finish::Activate(Activation::QuickGelu),
                    What::Logits => Finish::StoreF32,
                    What::SwiGlu => Finish::SwiGlu,
                    What::Rope => Finish::VisionRope(Rope {
                        angles: zeroed(20 * 8),
                        positions: zeroed(m * 8),
                        pairs: RopePairs::Vision(VisionRope { n_heads: 16, head_dim: 80 }),
                    }),
                },
                workspace: Workspace {
                    partials: memory(linear::workspace_bytes(m.min(64), n_runs)),
                    arrivals: zeroed(n.div_ceil(256) * 4),
                },
            };
            let bits = kind.record_bytes() as f64 / (128.0 * 128.0);
            let bytes = n as f64 * k as f64 * bits + (m * (2 * k + 2 * n)) as f64;
            let label = format!("{name} {n}x{k} m={m}");
            self.time(&label, bytes, 2.0 * (m * n) as f64 * k as f64, |stream| {
                // SAFETY: memory is as long as the shapes say.
                unsafe { self.kernels.linear(stream, &l) }.expect("launch");
            });
            for at in [l.x, l.w, l.out, l.workspace.partials, l.workspace.arrivals] {
                // SAFETY: allocated above, and the stream is done.
                unsafe { result::free_sync(at) }.expect("free");
            }
        }
    }

    #[derive(Clone, Copy)]
    enum What {
        Residual,
        Gelu,
        Logits,
        SwiGlu,
        Rope,
    }

    pub fn main() {
        let context = CudaContext::new(0).expect("a CUDA device, or `cudasim env`");
        let name = context.name().expect("a name");
        let rig = Rig {
            kernels: Kernels::load(&context).unwrap_or_else(|e| panic!("{e}")),
            stream: context.new_stream().expect("a stream"),
            simulated: name.contains("simulated"),
            filter: std::env::args().skip(1).find(|a| !a.starts_with('-')),
            flush: memory(FLUSH_BYTES),
        };
        println!("{name}{}", if rig.simulated { ": times are modelled" } else { "" });
        use Regime::{Prefill, SmallM};
        use WeightKind::{Dense, Int4, Int8};
        for m in [1, 16] {
            for (model, h, kv, f) in
                [("72b", 8192, 1024, 29696), ("7b", 3584, 512, 18944), ("2b", 1536, 256, 8960)]
            {
                for (kind, bits) in [(Int4, "int4"), (Int8, "int8"), (Dense, "bf16")] {
                    if model == "72b" && kind != Int4 {
                        continue;
                    }
                    let go = |what: &str, n, k, finish| {
                        rig.linear(&format!("decode {model} {bits} {what}"), kind, SmallM, m, n, k, finish);
                    };
                    go("qkv", h + 2 * kv, h, What::Logits);
                    go("o", h, h, What::Residual);
                    go("gate_up", 2 * f, h, What::SwiGlu);
                    go("down", h, f, What::Residual);
                }
            }
            rig.linear("decode 2b bf16 head", Dense, SmallM, m, 151_936, 1536, What::Logits);
        }
        for (what, n, k, finish) in [
            ("qkv", 10240, 8192, What::Logits),
            ("o", 8192, 8192, What::Residual),
            ("gate_up", 59392, 8192, What::SwiGlu),
            ("down", 8192, 29696, What::Residual),
        ] {
            rig.linear(&format!("prefill 72b int4 {what}"), Int4, Prefill, 2048, n, k, finish);
        }
        for (what, n, k, finish) in [
            ("qkv", 3840, 1280, What::Rope),
            ("proj", 1280, 1280, What::Residual),
            ("fc1", 5120, 1280, What::Gelu),
            ("fc2", 1280, 5120, What::Residual),
        ] {
            rig.linear(&format!("vision {what}"), Dense, Prefill, 16384, n, k, finish);
        }
        vision_attention(&rig, 16384);
        let heads = Heads { n_heads: 64, n_kv_heads: 8, head_dim: 128 };
        for tokens in [512, 6144] {
            prefill_attention(&rig, heads, tokens);
        }
        for keys in [256, 6144, 14336, 30720] {
            decode_attention(&rig, heads, keys);
        }
    }

    fn sequences(s: &[Sequence]) -> Address {
        of(&s.iter().flat_map(|s| [s.first, s.rows, s.past, s.pages]).collect::<Vec<u32>>())
    }

    fn tiles(s: &[Sequence], heads: usize, group: usize) -> (Address, usize) {
        let tiles = attention::tiles(s, heads, group);
        let words: Vec<u32> = tiles.iter().flat_map(|t| [t.sequence, t.head, t.first_row]).collect();
        (of(&words), tiles.len())
    }

    fn vision_attention(rig: &Rig, patches: usize) {
        let sequence = [Sequence { first: 0, rows: patches as u32, past: 0, pages: 0 }];
        let (tiles, n_tiles) = tiles(&sequence, 16, 1);
        let a = FlashAttention {
            half: Half::BF16,
            keys: Keys::Vision { qkv: memory(patches * 3840 * 2), n_heads: 16 },
            sequences: sequences(&sequence),
            tiles,
            n_tiles,
            out: memory(patches * 1280 * 2),
        };
        let flops = 4.0 * 1280.0 * (patches as f64).powi(2);
        rig.time(&format!("vision attention {patches}"), (patches * 5120 * 2) as f64, flops, |stream| {
            // SAFETY: memory is as long as the shapes say.
            unsafe { rig.kernels.flash_attention(stream, &a) }.expect("launch");
        });
    }

    fn pages(heads: Heads, tokens: usize) -> (Kv, Address) {
        let stride = 2 * heads.n_kv_heads * 64 * 128;
        let count = tokens.div_ceil(64);
        let kv = Kv { pages: memory(count * stride * 2), page_stride: stride as u64, heads };
        (kv, of(&(0..count as u32).collect::<Vec<u32>>()))
    }

    fn prefill_attention(rig: &Rig, heads: Heads, tokens: usize) {
        let sequence = [Sequence { first: 0, rows: tokens as u32, past: 0, pages: 0 }];
        let (tiles, n_tiles) = tiles(&sequence, heads.n_kv_heads, heads.n_heads / heads.n_kv_heads);
        let (kv, page_table) = pages(heads, tokens);
        let width = heads.n_heads * 128;
        let a = FlashAttention {
            half: Half::BF16,
            keys: Keys::Paged { q: memory(tokens * width * 2), kv, page_table },
            sequences: sequences(&sequence),
            tiles,
            n_tiles,
            out: memory(tokens * width * 2),
        };
        let flops = 2.0 * width as f64 * (tokens as f64) * (tokens as f64 + 1.0);
        rig.time(&format!("prefill attention 72b {tokens}"), (tokens * width * 4) as f64, flops, |stream| {
            // SAFETY: memory is as long as the shapes say.
            unsafe { rig.kernels.flash_attention(stream, &a) }.expect("launch");
        });
    }

    fn decode_attention(rig: &Rig, heads: Heads, keys: usize) {
        let (kv, page_table) = pages(heads, keys);
        let width = heads.n_heads * 128;
        let a = PagedAttention {
            half: Half::BF16,
            q: zeroed(width * 2),
            out: memory(width * 2),
            kv,
            sequences: sequences(&[Sequence { first: 0, rows: 1, past: keys as u32 - 1, pages: 0 }]),
            n_seqs: 1,
            page_table,
            max_keys: keys,
            chunk_tokens: 256,
            partials: memory(partials_bytes(1, heads.n_heads, keys, 256)),
            arrivals: zeroed(4 * arrivals_len(1, heads.n_kv_heads, keys, 256)),
        };
        let bytes = (keys * heads.n_kv_heads * 128 * 4) as f64;
        rig.time(&format!("decode attention 72b {keys}"), bytes, bytes * 2.0 * 8.0 / 2.0, |stream| {
            // SAFETY: memory is as long as the shapes say.
            unsafe { rig.kernels.paged_attention(stream, &a) }.expect("launch");
        });
    }
}
