//! decode_layers: all layers in one launch have the bits of one launch after the other.

use qwenvl::kernels::cuda::Half;
use qwenvl::kernels::cuda::attention::{PagedAttention, Sequence, partials_bytes};
use qwenvl::kernels::cuda::decode_layers::{DecodeLayers, DecodeStep};
use qwenvl::kernels::cuda::linear::{
    self, Finish, Linear, Normalised, Regime, Rope, RopePairs, RowOrder, Workspace,
};
use qwenvl_graph::op::MRope;

use crate::common::rng::Rng;
use crate::gpu::*;
use crate::paged_attn::{D, PAGE, Pool};
use crate::repack::{AWQ4, GPTQ8, Packed, Stored, Weights, dense, pack};

const EPS: f64 = 1e-6;

/// A decoder's sizes, and the runs that its four linear layers are cut into.
struct Shape {
    hidden: usize,
    kv_heads: usize,
    group: usize,
    intermediate: usize,
    n_runs: [usize; 4],
    max_splits: usize,
}

struct Layer {
    norms: [Buffer<f32>; 2],
    bias: Buffer<f32>,
    /// qkv, o, gate and up, down.
    linears: [Packed; 4],
    pool: Pool,
}

impl Layer {
    fn new(rng: &mut Rng, format: Weights, half: Half, shape: &Shape, lengths: &[usize]) -> Layer {
        let (q, kv) = (shape.kv_heads * shape.group * D, shape.kv_heads * D);
        let mut stored = |n: usize, k: usize| Stored::random(rng, format, half, n, k);
        let qkv = [q, kv, kv].map(|n| stored(n, shape.hidden));
        let o = [stored(shape.hidden, q)];
        let gate_up = [0; 2].map(|_| stored(shape.intermediate, shape.hidden));
        let down = [stored(shape.hidden, shape.intermediate)];
        let linears = [
            pack(half, &qkv, RowOrder::Paired { half: D / 2 }),
            pack(half, &o, RowOrder::Plain),
            pack(half, &gate_up, RowOrder::Paired { half: shape.intermediate }),
            pack(half, &down, RowOrder::Plain),
        ];
        Layer {
            norms: [0; 2].map(|_| Buffer::of(&rng.normals(shape.hidden))),
            bias: Buffer::of(&rng.normals(q + 2 * kv)),
            linears,
            pool: Pool::new(rng, half, lengths, shape.kv_heads),
        }
    }
}

/// What a run works on: all of it poisoned or as before the token.
struct State {
    x: Buffer<f32>,
    between: Buffer<f32>,
    q: Buffer<u16>,
    attended: Buffer<u16>,
    activated: Buffer<u16>,
    pages: Vec<Buffer<u16>>,
}

impl State {
    fn new(shape: &Shape, layers: &[Layer], x: &[f32]) -> State {
        let m = x.len() / shape.hidden;
        let width = shape.kv_heads * shape.group * D;
        let pages = layers.iter().map(|layer| {
            let mut data = layer.pool.data.clone();
            for (sequence, (_, length)) in layer.pool.sequences.iter().enumerate() {
                layer.pool.forget(&mut data, sequence, length - 1);
            }
            Buffer::of(&data)
        });
        State {
            x: Buffer::of(x),
            between: Buffer::poisoned(m * shape.hidden),
            q: Buffer::poisoned(m * width),
            attended: Buffer::poisoned(m * width),
            activated: Buffer::poisoned(m * shape.intermediate),
            pages: pages.collect(),
        }
    }

    /// All bits that a token leaves.
    fn bits(&self) -> (Vec<u32>, Vec<Vec<u16>>) {
        (self.x.read().iter().map(|v| v.to_bits()).collect(), self.pages.iter().map(Buffer::read).collect())
    }
}

/// What is the same for all layers.
struct Inputs {
    angles: Buffer<f32>,
    positions: Buffer<u32>,
    sequences: Buffer<u32>,
    table: Vec<Buffer<u32>>,
    attention: Buffer<f32>,
    partials: Buffer<u8>,
    arrivals: Buffer<u32>,
    max_keys: usize,
}

impl Inputs {
    fn new(rng: &mut Rng, shape: &Shape, layers: &[Layer], m: usize) -> Inputs {
        let pool = &layers[0].pool;
        let lengths = &pool.sequences;
        // The last row is of no sequence if there are more rows than sequences.
        let mut sequences: Vec<Sequence> = lengths
            .iter()
            .map(|&(pages, n)| Sequence { first: 0, rows: 1, past: n as u32 - 1, pages: pages as u32 })
            .collect();
        sequences.resize(m, Sequence::default());
        let max_keys = lengths.iter().map(|(_, n)| *n).max().unwrap();
        let heads = shape.kv_heads * shape.group;
        let sm_count = gpu().kernels.sm_count() as usize;
        let outputs = (2 * shape.intermediate).max(3 * heads * D).max(shape.hidden);
        Inputs {
            angles: Buffer::of(&angle_table(rng, 90, D / 2).0),
            positions: Buffer::of(&(0..3 * m).map(|_| rng.below(90) as u32).collect::<Vec<u32>>()),
            sequences: words(&sequences),
            table: layers.iter().map(|layer| Buffer::of(&layer.pool.table)).collect(),
            attention: Buffer::scratch(partials_bytes(m, heads, max_keys, shape.max_splits) / 4),
            partials: Buffer::scratch(linear::workspace_bytes(sm_count)),
            arrivals: Buffer::zeroed(linear::arrivals(outputs, sm_count).max(m * shape.kv_heads)),
            max_keys,
        }
    }
}

/// The steps of all layers. Pages differ from layer to layer, and so do the slots of the new tokens.
fn steps(
    half: Half,
    shape: &Shape,
    layers: &[Layer],
    inputs: &Inputs,
    slots: &[Buffer<u32>],
    state: &State,
    m: usize,
) -> Vec<DecodeStep> {
    let mut steps = Vec::new();
    for (at, layer) in layers.iter().enumerate() {
        let kv = layer.pool.kv(&state.pages[at], shape.group);
        let rope = Rope {
            angles: inputs.angles.at,
            positions: inputs.positions.at,
            pairs: RopePairs::MRope(MRope { head_dim: D, sections: [16, 24, 24], theta: 1e6 }),
        };
        let attention = PagedAttention {
            half,
            q: state.q.at,
            out: state.attended.at,
            kv,
            sequences: inputs.sequences.at,
            n_seqs: m,
            page_table: inputs.table[at].at,
            max_keys: inputs.max_keys,
            max_splits: shape.max_splits,
            partials: inputs.attention.at,
            arrivals: inputs.arrivals.at,
        };
        let linear = |i: usize, x, out, bias, finish| {
            let Packed { n, k, .. } = layer.linears[i];
            Linear {
                kind: layer.linears[i].kind,
                half,
                regime: Regime::SmallM,
                x,
                ldx: k,
                w: layer.linears[i].records.at,
                order: layer.linears[i].order,
                bias,
                out,
                m,
                n,
                k,
                n_runs: shape.n_runs[i].min(linear::runs(n, k, gpu().kernels.sm_count() as usize)),
                finish,
                workspace: Workspace { partials: inputs.partials.at, arrivals: inputs.arrivals.at },
            }
        };
        let norm = |i: usize| Some(Normalised { weight: layer.norms[i].at, eps: EPS });
        let keep = Finish::RopeWriteKv { rope, kv, slots: slots[at].at };
        let (x, between) = (state.x.at, state.between.at);
        steps.extend([
            DecodeStep {
                attention: None,
                norm: norm(0),
                linear: linear(0, x, state.q.at, Some(layer.bias.at), keep),
            },
            DecodeStep {
                attention: Some(attention),
                norm: None,
                linear: linear(1, state.attended.at, between, None, Finish::AddResidual(x)),
            },
            DecodeStep {
                attention: None,
                norm: norm(1),
                linear: linear(2, between, state.activated.at, None, Finish::SwiGlu),
            },
            // In place: between is read and written.
            DecodeStep {
                attention: None,
                norm: None,
                linear: linear(3, state.activated.at, x, None, Finish::AddResidual(between)),
            },
        ]);
    }
    steps
}

fn one_by_one(steps: &[DecodeStep]) {
    let (kernels, stream) = (&gpu().kernels, stream());
    for step in steps {
        // SAFETY: buffers are as long as the shapes say and live until the stream is done.
        unsafe {
            if let Some(attention) = &step.attention {
                kernels.paged_attention(&stream, attention).unwrap();
            }
            match &step.norm {
                Some(norm) => kernels.linear_of_norm(&stream, &step.linear, norm).unwrap(),
                None => kernels.linear(&stream, &step.linear).unwrap(),
            }
        }
    }
    stream.synchronize().unwrap();
}

fn in_one(half: Half, steps: &[DecodeStep], arrived: &Buffer<u32>) {
    let kernels = &gpu().kernels;
    let list = kernels.decode_steps(steps).unwrap();
    let on_device = Buffer::of(&list.bytes);
    let kind = steps[0].linear.kind;
    let layers = DecodeLayers {
        kind,
        half,
        steps: on_device.at,
        n_steps: list.n_steps,
        blocks: list.blocks,
        arrived: arrived.at,
    };
    // SAFETY: as above.
    unsafe { kernels.decode_layers(&stream(), &layers) }.unwrap();
    stream().synchronize().unwrap();
}

fn formats(half: Half) -> impl Iterator<Item = Weights> {
    // Of a mutant only what was mutated.
    let all = if is_mutant() { vec![AWQ4] } else { vec![AWQ4, GPTQ8, dense(half)] };
    all.into_iter().filter(move |format| gpu().kernels.decode_layers_rows(format.kind, half) > 0)
}

#[test]
fn a_launch_may_begin_with_a_layer_that_has_no_norm() {
    let mut rng = Rng(22);
    let half = Half::BF16;
    for format in formats(half) {
        let shape =
            Shape { hidden: 384, kv_heads: 1, group: 2, intermediate: 264, n_runs: [2; 4], max_splits: 2 };
        let layers = [Layer::new(&mut rng, format, half, &shape, &[90])];
        let inputs = Inputs::new(&mut rng, &shape, &layers, 1);
        let slots = [Buffer::of(&[u32::MAX])];
        let x = rng.normals(shape.hidden);
        let attended = normals(&mut rng, half, shape.group * D);
        let run = |launch: &dyn Fn(&[DecodeStep])| {
            let state = State { attended: Buffer::of(&attended), ..State::new(&shape, &layers, &x) };
            let mut rest = steps(half, &shape, &layers, &inputs, &slots, &state, 1).split_off(1);
            rest[0].attention = None;
            launch(&rest);
            state.bits()
        };
        let arrived = Buffer::<u32>::zeroed(1);
        let found = run(&|steps| in_one(half, steps, &arrived));
        assert!(found == run(&one_by_one), "{format:?}");
    }
}

#[test]
fn layers_in_one_launch_have_the_bits_of_layers_one_by_one() {
    let mut rng = Rng(21);
    let all = usize::MAX;
    let shapes = [
        // Runs of many stages and of one; blocks without a run.
        Shape { hidden: 256, kv_heads: 1, group: 2, intermediate: 648, n_runs: [1, 2, 5, 3], max_splits: 3 },
        Shape { hidden: 640, kv_heads: 2, group: 7, intermediate: 1000, n_runs: [all; 4], max_splits: 54 },
        Shape {
            hidden: 384,
            kv_heads: 1,
            group: 6,
            intermediate: 2304,
            n_runs: [7, 4, 30, 9],
            max_splits: 1,
        },
        // More splits of two sequences than blocks or lanes, and blocks that have none; a run of as many inputs as fit.
        Shape {
            hidden: 256,
            kv_heads: 5,
            group: 2,
            intermediate: 72 * 128 - 8,
            n_runs: [all, all, all, 1],
            max_splits: 54,
        },
    ];
    for half in if is_mutant() { vec![Half::BF16] } else { HALVES.to_vec() } {
        for format in formats(half) {
            for (shape, lengths) in
                shapes.iter().zip([vec![700, 1], vec![66, 300], vec![65], vec![9000, 300]])
            {
                let layers: Vec<Layer> =
                    (0..3).map(|_| Layer::new(&mut rng, format, half, shape, &lengths)).collect();
                for m in 1..=gpu().kernels.decode_layers_rows(format.kind, half) {
                    if lengths.len() > m {
                        continue;
                    }
                    let what = format!("{format:?} {half:?}, hidden {}, {m} rows", shape.hidden);
                    let inputs = Inputs::new(&mut rng, shape, &layers, m);
                    let slots: Vec<Buffer<u32>> = layers
                        .iter()
                        .map(|layer| {
                            let of = |&(pages, n): &(usize, usize)| {
                                layer.pool.table[pages + (n - 1) / PAGE] * PAGE as u32
                                    + ((n - 1) % PAGE) as u32
                            };
                            let mut slots: Vec<u32> = layer.pool.sequences.iter().map(of).collect();
                            slots.resize(m, u32::MAX);
                            Buffer::of(&slots)
                        })
                        .collect();
                    let x = rng.normals(m * shape.hidden);
                    let list = |state: &State| steps(half, shape, &layers, &inputs, &slots, state, m);
                    let expected = State::new(shape, &layers, &x);
                    one_by_one(&list(&expected));
                    let expected = expected.bits();
                    assert!(expected.0.iter().all(|bits| f32::from_bits(*bits).is_finite()), "{what}");
                    let arrived = Buffer::<u32>::zeroed(1);
                    for _ in 0..2 {
                        let state = State::new(shape, &layers, &x);
                        in_one(half, &list(&state), &arrived);
                        assert!(state.bits() == expected, "{what}");
                        assert_eq!(arrived.read(), [0], "{what}: the counter returns to zero");
                        assert!(inputs.arrivals.read().iter().all(|n| *n == 0), "{what}");
                    }
                }
            }
        }
    }
}
