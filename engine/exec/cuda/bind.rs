//! Weights on the device: matrices in the records of the linear kernels, vectors in f32.

use std::borrow::Cow;
use std::collections::HashMap;

use qwenvl_graph::config::Quantization;
use qwenvl_graph::op::LinearPart;
use qwenvl_graph::weights::{Linear, WeightFormat};
use qwenvl_graph::{DType, Epilogue, Graph, Op, WeightId, cuda};

use super::gpu::{Block, Gpu, Staging};
use crate::checkpoint::{Checkpoint, TensorRef, to_f32_vec};
use crate::error::{Error, Result};
use crate::kernels::cuda::linear::{RowOrder, WeightKind};
use crate::kernels::cuda::norm::Table;
use crate::kernels::cuda::repack::{Format, Source};
use crate::kernels::cuda::{Half, Kernels};

/// A stacked linear layer on the device.
#[derive(Clone, Copy, Debug)]
pub(super) struct Matrix {
    pub(super) records: u64,
    /// f32 `[n]`.
    pub(super) bias: Option<u64>,
    pub(super) n: usize,
    pub(super) kind: WeightKind,
    pub(super) order: RowOrder,
    /// `[k]` u32: which input comes at each place, if not in order.
    pub(super) inputs: Option<u64>,
}

/// The weights of one graph.
#[derive(Default)]
pub(super) struct Weights {
    /// Linear layers by their first part.
    matrices: HashMap<WeightId, Matrix>,
    /// f32 vectors by id.
    vectors: HashMap<WeightId, u64>,
    /// The embedding table: its address and how it is stored.
    table: Option<(u64, Table)>,
}

impl Weights {
    pub(super) fn matrix(&self, parts: &[LinearPart]) -> Matrix {
        self.matrices[&parts[0].weight]
    }

    pub(super) fn vector(&self, id: WeightId) -> u64 {
        self.vectors[&id]
    }

    pub(super) fn table(&self) -> (u64, Table) {
        self.table.expect("a decoder embeds")
    }
}

/// What binding works with.
pub(super) struct Binder<'a> {
    pub(super) gpu: &'a Gpu,
    pub(super) kernels: &'a Kernels,
    pub(super) staging: &'a mut Staging,
    pub(super) checkpoint: &'a Checkpoint,
    /// Type of activations, and of dense records.
    pub(super) half: Half,
    /// The same.
    pub(super) activation: DType,
    /// The next free address of the weights' block, and its end.
    pub(super) at: u64,
    pub(super) end: u64,
    pub(super) advance: &'a mut dyn FnMut(u64),
}

impl Binder<'_> {
    /// Uploads and repacks the weights of `graph`.
    pub(super) fn bind(&mut self, graph: &Graph) -> Result<Weights> {
        let mut weights = Weights::default();
        for node in &graph.nodes {
            match &node.op {
                Op::Linear { parts, k, epilogue } => {
                    let matrix = self.matrix(graph, parts, *k, epilogue)?;
                    weights.matrices.insert(parts[0].weight, matrix);
                }
                Op::Embed { table } if !cuda::shares_table(graph, *table, self.activation) => {
                    weights.table = Some(self.table(graph, *table)?);
                }
                _ => {}
            }
        }
        for node in &graph.nodes {
            if let (Op::Embed { table }, None) = (&node.op, weights.table) {
                weights.table = Some((weights.matrices[table].records, Table::Records));
            }
        }
        for (id, weight) in graph.weights.iter().enumerate() {
            let qwenvl_graph::WeightKind::Vector { .. } = weight.kind else { continue };
            // Biases of linear layers are stacked with them.
            let is_bias = |part: &LinearPart| part.bias == Some(WeightId(id));
            let in_linear = |op: &Op| matches!(op, Op::Linear { parts, .. } if parts.iter().any(is_bias));
            if graph.nodes.iter().any(|n| in_linear(&n.op)) {
                continue;
            }
            let values = to_f32_vec(&self.checkpoint.tensor(&weight.name)?)?;
            let address = self.vector(&weight.name, &values)?;
            weights.vectors.insert(WeightId(id), address);
        }
        Ok(weights)
    }

    fn matrix(
        &mut self,
        graph: &Graph,
        parts: &[LinearPart],
        k: usize,
        epilogue: &Epilogue,
    ) -> Result<Matrix> {
        let first = graph.weight(parts[0].weight);
        let qwenvl_graph::WeightKind::Matrix { format, .. } = first.kind else {
            unreachable!("a linear part is a matrix")
        };
        let n: usize = parts.iter().map(|p| p.n).sum();
        let order = match epilogue {
            Epilogue::SwiGlu => RowOrder::Paired { half: parts[0].n },
            Epilogue::VisionRope(rope) => RowOrder::Paired { half: rope.head_dim / 2 },
            Epilogue::RopeWriteKv { heads, .. } => RowOrder::Paired { half: heads.head_dim / 2 },
            _ => RowOrder::Plain,
        };
        let records = self.take(cuda::matrix_bytes(n, k, format));
        let inputs = self.input_order(graph, parts, k, format)?;
        self.repack(graph, parts, k, format, (order, inputs), records)?;
        let mut stacked = Vec::with_capacity(parts.len());
        for part in parts {
            stacked.push(match part.bias {
                Some(id) => Some(to_f32_vec(&self.checkpoint.tensor(&graph.weight(id).name)?)?),
                // GPTQ files hold biases that the model does not have, nearly always zeros.
                None if matches!(format, WeightFormat::Dense(_)) => None,
                None => self.checkpoint.extra_bias(&graph.weight(part.weight).name, part.n)?,
            });
        }
        let mut bias = None;
        if stacked.iter().any(Option::is_some) {
            let mut values = Vec::with_capacity(n);
            for (part, own) in parts.iter().zip(stacked) {
                values.extend(own.unwrap_or_else(|| vec![0.0; part.n]));
            }
            bias = Some(self.vector(&format!("{}.bias", first.name), &values)?);
        }
        let kind = match format {
            WeightFormat::Dense(_) => WeightKind::Dense,
            WeightFormat::Int4 { .. } => WeightKind::Int4,
            WeightFormat::Int8 { .. } => WeightKind::Int8,
        };
        Ok(Matrix { records, bias, n, kind, order, inputs })
    }

    /// Sends the parts as the checkpoint holds them and has the device reorder them. A single dense matrix
    /// goes in slabs of whole strips.
    fn repack(
        &mut self,
        graph: &Graph,
        parts: &[LinearPart],
        k: usize,
        format: WeightFormat,
        (order, inputs): (RowOrder, Option<u64>),
        records: u64,
    ) -> Result<()> {
        let name = graph.weight(parts[0].weight).name.clone();
        let step = format!("repacking {name}");
        let rows: usize = parts.iter().map(|p| p.n).sum();
        let in_slabs =
            matches!(format, WeightFormat::Dense(_)) && order == RowOrder::Plain && parts.len() == 1;
        let slab = if in_slabs { (SLAB_BYTES / (k * 4)).next_multiple_of(cuda::STRIP) } else { rows };
        for first in (0..rows).step_by(slab) {
            let n = slab.min(rows - first);
            // What is sent lives until the device has read it.
            let (mut blocks, mut sources) = (Vec::new(), Vec::new());
            let mut stored = None;
            for part in parts {
                let module = &graph.weight(part.weight).name;
                let part_n = if parts.len() == 1 { n } else { part.n };
                let mut source = Source { n: part_n, ..Source::default() };
                stored = Some(match format {
                    WeightFormat::Dense(_) => {
                        let tensor = self.checkpoint.tensor(&format!("{module}.weight"))?;
                        let row = tensor.bytes.len() / part.n;
                        let from = if parts.len() == 1 { first } else { 0 };
                        source.codes =
                            self.send(&name, &tensor.bytes[from * row..][..part_n * row], &mut blocks)?;
                        Format::Dense(tensor.dtype)
                    }
                    WeightFormat::Int4 { .. } | WeightFormat::Int8 { .. } => {
                        let stored = self.quantised(module, part.n, k, format)?;
                        for (tensor, address) in [
                            ("qweight", &mut source.codes),
                            ("qzeros", &mut source.zeros),
                            ("scales", &mut source.scales),
                        ] {
                            let is_grouped = tensor != "qweight";
                            let tensor = self.checkpoint.tensor(&format!("{module}.{tensor}"))?;
                            let rows = if is_grouped {
                                by_records(&tensor, k, self.stored_group(k))
                            } else {
                                tensor.bytes.into()
                            };
                            *address = self.send(&name, &rows, &mut blocks)?;
                            self.checkpoint.release(&tensor);
                        }
                        stored
                    }
                });
                sources.push(source);
            }
            let stored = stored.expect("a layer has parts");
            let out = records + cuda::matrix_bytes(first, k, format);
            // SAFETY: sources and records are within their blocks; the sources live until the wait below.
            unsafe {
                self.kernels.repack(&self.gpu.stream, stored, self.half, &sources, k, order, inputs, out)
            }
            .map_err(|error| super::kernel_error(&step, error))?;
            self.gpu.wait(&step)?;
        }
        (self.advance)(parts.iter().map(|p| graph.weight(p.weight).bytes()).sum());
        Ok(())
    }

    /// The order of inputs that puts groups side by side, on the device, unless that is their own. Layers that are
    /// stacked have the same inputs and must have the same groups.
    fn input_order(
        &mut self,
        graph: &Graph,
        parts: &[LinearPart],
        k: usize,
        format: WeightFormat,
    ) -> Result<Option<u64>> {
        if matches!(format, WeightFormat::Dense(_))
            || !cuda::sorts_inputs(self.checkpoint.config.quantization)
        {
            return Ok(None);
        }
        let group = self.stored_group(k);
        let mut order: Option<Vec<u32>> = None;
        for part in parts {
            let name = &graph.weight(part.weight).name;
            let linear = Linear { name: name.clone(), n: part.n, k, bias: false, format };
            let groups = self.checkpoint.gptq_linear(&linear)?.g_idx;
            let mut own: Vec<u32> = (0..k as u32).collect();
            own.sort_by_key(|input| groups[*input as usize]);
            let is_even = own.iter().enumerate().all(|(at, i)| groups[*i as usize] as usize == at / group);
            if !is_even || order.as_ref().is_some_and(|first| *first != own) {
                let what =
                    if is_even { "other groups than the layers beside it" } else { "groups of unequal size" };
                return Err(Error::Unsupported {
                    what: format!("{what} of {name} on CUDA"),
                    help: "quantise with desc_act false, or use --device cpu".into(),
                });
            }
            order = Some(own);
        }
        let order = order.expect("a layer has parts");
        if order.is_sorted() {
            return Ok(None);
        }
        let address = self.take(4 * k as u64);
        let name = &graph.weight(parts[0].weight).name;
        let step = format!("sending {name}.g_idx");
        self.staging.upload(self.gpu, &step, address, bytemuck::cast_slice(&order))?;
        Ok(Some(address))
    }

    /// Inputs that share a scale in the files of a layer with `k`.
    fn stored_group(&self, k: usize) -> usize {
        match self.checkpoint.config.quantization {
            Quantization::Awq { group_size } => group_size,
            Quantization::Gptq { group_size, .. } => group_size.unwrap_or(k),
            Quantization::None => k,
        }
    }

    /// How a quantised matrix is stored, once its tensors have the shapes that the repacker relies on.
    fn quantised(&self, module: &str, n: usize, k: usize, format: WeightFormat) -> Result<Format> {
        let group = self.stored_group(k);
        if !k.is_multiple_of(cuda::RECORD) {
            return Err(Error::Unsupported {
                what: format!("{k} inputs of {module} on CUDA"),
                help: format!(
                    "the CUDA kernels take quantised layers by {} inputs; use --device cpu",
                    cuda::RECORD
                ),
            });
        }
        if !group.is_multiple_of(cuda::RECORD) {
            return Err(Error::Unsupported {
                what: format!("group_size {group} of {module} on CUDA"),
                help: format!(
                    "the CUDA kernels have a scale for every {0} inputs: quantise with group_size {0}, a multiple \
                     of it or -1, or use --device cpu",
                    cuda::RECORD
                ),
            });
        }
        let linear = Linear { name: module.to_string(), n, k, bias: false, format };
        let Quantization::Gptq { bits, v2, .. } = self.checkpoint.config.quantization else {
            self.checkpoint.awq_linear(&linear)?;
            return Ok(Format::Awq4);
        };
        let stored = self.checkpoint.gptq_linear(&linear)?;
        if bits == 4 {
            return Ok(Format::Gptq4 { zero_offset: u32::from(!v2) });
        }
        // 128 in the middle of 0..256, stored less one in the first version.
        let middle = if v2 { 128 } else { 127 };
        if stored.qzeros.iter().any(|zero| *zero != middle) {
            return Err(Error::Unsupported {
                what: format!("asymmetric zero points of {module} on CUDA"),
                help: "the CUDA kernels take 8-bit weights around 128: quantise with sym true, or use --device cpu"
                    .into(),
            });
        }
        Ok(Format::Gptq8)
    }

    fn table(&mut self, graph: &Graph, id: WeightId) -> Result<(u64, Table)> {
        let name = format!("{}.weight", graph.weight(id).name);
        let tensor = self.checkpoint.tensor(&name)?;
        let address = self.take(tensor.bytes.len() as u64);
        self.staging.upload(self.gpu, &format!("sending {name}"), address, tensor.bytes)?;
        (self.advance)(tensor.bytes.len() as u64);
        Ok((address, Table::Rows(tensor.dtype)))
    }

    fn vector(&mut self, name: &str, values: &[f32]) -> Result<u64> {
        let address = self.take(4 * values.len() as u64);
        self.staging.upload(self.gpu, &format!("sending {name}"), address, bytemuck::cast_slice(values))?;
        Ok(address)
    }

    /// The address of a copy of `bytes` on the device, in a block of its own.
    fn send(&mut self, name: &str, bytes: &[u8], blocks: &mut Vec<Block>) -> Result<u64> {
        let step = format!("sending {name}");
        let block = self.gpu.block(&step, bytes.len() as u64)?;
        self.staging.upload(self.gpu, &step, block.address(), bytes)?;
        let address = block.address();
        blocks.push(block);
        Ok(address)
    }

    fn take(&mut self, bytes: u64) -> u64 {
        let at = self.at;
        self.at = (at + bytes).next_multiple_of(16);
        assert!(self.at <= self.end, "the plan states the bytes of all weights");
        at
    }
}

/// Scales or zero points with a row for each record along `k`: a group may have several.
fn by_records<'a>(tensor: &TensorRef<'a>, k: usize, group: usize) -> Cow<'a, [u8]> {
    if group == cuda::RECORD {
        return tensor.bytes.into();
    }
    let row_bytes = tensor.bytes.len() / tensor.shape[0];
    let rows = (0..k).step_by(cuda::RECORD).map(|at| &tensor.bytes[at / group * row_bytes..][..row_bytes]);
    rows.flatten().copied().collect()
}

/// About what a slab of a dense matrix has.
const SLAB_BYTES: usize = 128 << 20;
