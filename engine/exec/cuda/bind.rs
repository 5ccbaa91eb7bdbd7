//! Weights on the device: matrices in the records of the linear kernels, vectors in f32.

use std::collections::HashMap;

use qwenvl_graph::op::LinearPart;
use qwenvl_graph::weights::WeightFormat;
use qwenvl_graph::{DType, Epilogue, Graph, Op, WeightId, cuda};

use super::gpu::{Block, Gpu, Staging};
use super::layout::{Layout, Layouts};
use crate::checkpoint::{Checkpoint, to_f32_vec};
use crate::error::Result;
use crate::kernels::cuda::linear::{RowOrder, WeightKind};
use crate::kernels::cuda::norm::Table;
use crate::kernels::cuda::repack::{Format, Repack, Source};
use crate::kernels::cuda::{Half, Kernels};

/// A stacked linear layer on the device.
#[derive(Clone, Copy, Debug)]
pub(super) struct Matrix {
    pub(super) records: u64,
    /// f32 `[n]`.
    pub(super) bias: Option<u64>,
    pub(super) n: usize,
    /// Places along k.
    pub(super) k: usize,
    pub(super) kind: WeightKind,
    pub(super) order: RowOrder,
    /// `[k]` u32: which input comes at each place, or none, if not in order.
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
    /// Type of activations.
    pub(super) half: Half,
    /// The next free address of the weights' block, and its end.
    pub(super) at: u64,
    pub(super) end: u64,
    pub(super) advance: &'a mut dyn FnMut(u64),
}

impl Binder<'_> {
    /// Uploads and repacks the weights of `graph`, whose quantised layers are to lie as `layouts` says.
    pub(super) fn bind(&mut self, graph: &Graph, layouts: &Layouts) -> Result<Weights> {
        let mut weights = Weights::default();
        for node in &graph.nodes {
            match &node.op {
                Op::Linear { parts, k, epilogue } => {
                    let matrix = self.matrix(graph, parts, *k, epilogue, layouts.get(&parts[0].weight))?;
                    weights.matrices.insert(parts[0].weight, matrix);
                }
                Op::Embed { table } if !cuda::shares_table(graph, *table) => {
                    weights.table = Some(self.table(graph, *table)?);
                }
                _ => {}
            }
        }
        for node in &graph.nodes {
            if let (Op::Embed { table }, None) = (&node.op, weights.table) {
                let head = &weights.matrices[table];
                weights.table = Some((head.records, Table::Records(self.records_type(head.kind))));
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
        layout: Option<&Layout>,
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
        let (kind, k) = match layout {
            Some(layout) => (layout.kind, layout.k),
            None => (self.dense_kind(graph, parts[0].weight, format), k),
        };
        let records = self.take(kind.matrix_bytes(n, k) as u64);
        let inputs = match layout.and_then(|l| l.inputs.as_ref()) {
            Some(inputs) => {
                let address = self.take(4 * inputs.len() as u64);
                let step = format!("sending the order of inputs of {}", first.name);
                self.staging.upload(self.gpu, &step, address, bytemuck::cast_slice(inputs))?;
                Some(address)
            }
            None => None,
        };
        let matrix = Matrix { records, bias: None, n, k, kind, order, inputs };
        match layout {
            Some(layout) => self.repack_codes(graph, parts, layout, &matrix)?,
            None => self.repack_dense(graph, parts, &matrix)?,
        }
        (self.advance)(parts.iter().map(|p| graph.weight(p.weight).bytes()).sum());
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
        Ok(Matrix { bias, ..matrix })
    }

    /// The kind of a dense matrix. One that is also the embedding table keeps the type of its file.
    fn dense_kind(&self, graph: &Graph, weight: WeightId, format: WeightFormat) -> WeightKind {
        let is_table = graph.nodes.iter().any(|n| matches!(n.op, Op::Embed { table } if table == weight));
        match (format, self.half) {
            (WeightFormat::Dense(DType::F16), Half::BF16) | (WeightFormat::Dense(DType::BF16), Half::F16)
                if is_table =>
            {
                WeightKind::Cast
            }
            _ => WeightKind::Dense,
        }
    }

    /// The type of numbers in dense records.
    fn records_type(&self, kind: WeightKind) -> Half {
        match (kind, self.half) {
            (WeightKind::Cast, Half::BF16) => Half::F16,
            (WeightKind::Cast, Half::F16) => Half::BF16,
            _ => self.half,
        }
    }

    /// Sends the parts of a quantised layer as the checkpoint holds them and has the device reorder them.
    fn repack_codes(
        &mut self,
        graph: &Graph,
        parts: &[LinearPart],
        layout: &Layout,
        matrix: &Matrix,
    ) -> Result<()> {
        let name = &graph.weight(parts[0].weight).name;
        // What is sent lives until the device has read it.
        let (mut blocks, mut sources) = (Vec::new(), Vec::new());
        let mut groups = self.send(name, bytemuck::cast_slice(&layout.groups.concat()), &mut blocks)?;
        for (part, own) in parts.iter().zip(&layout.groups) {
            let module = &graph.weight(part.weight).name;
            let mut addresses = [0; 3];
            for (suffix, address) in ["qweight", "qzeros", "scales"].into_iter().zip(&mut addresses) {
                let tensor = self.checkpoint.tensor(&format!("{module}.{suffix}"))?;
                *address = self.send(name, tensor.bytes, &mut blocks)?;
                self.checkpoint.release(&tensor);
            }
            let [codes, zeros, scales] = addresses;
            sources.push(Source { codes, zeros, scales, groups, n: part.n });
            groups += size_of_val(&own[..]) as u64;
        }
        self.launch_repack(name, layout.format, matrix, &sources, matrix.records)
    }

    /// Likewise of a dense layer. A single matrix goes in slabs of whole strips.
    fn repack_dense(&mut self, graph: &Graph, parts: &[LinearPart], matrix: &Matrix) -> Result<()> {
        let name = &graph.weight(parts[0].weight).name;
        let (rows, k) = (matrix.n, matrix.k);
        let in_slabs = matrix.order == RowOrder::Plain && parts.len() == 1;
        let slab = if in_slabs { (SLAB_BYTES / (k * 4)).next_multiple_of(cuda::STRIP) } else { rows };
        for first in (0..rows).step_by(slab) {
            let (mut blocks, mut sources, mut dtype) = (Vec::new(), Vec::new(), DType::F32);
            for part in parts {
                let tensor = self.checkpoint.tensor(&format!("{}.weight", graph.weight(part.weight).name))?;
                let (from, n) = if in_slabs { (first, slab.min(rows - first)) } else { (0, part.n) };
                let row = tensor.bytes.len() / part.n;
                let codes = self.send(name, &tensor.bytes[from * row..][..n * row], &mut blocks)?;
                sources.push(Source { codes, n, ..Source::default() });
                dtype = tensor.dtype;
            }
            let out = matrix.records + matrix.kind.matrix_bytes(first, k) as u64;
            self.launch_repack(name, Format::Dense(dtype), matrix, &sources, out)?;
        }
        Ok(())
    }

    /// Has the device reorder `sources`, and waits for it.
    fn launch_repack(
        &self,
        name: &str,
        format: Format,
        matrix: &Matrix,
        sources: &[Source],
        out: u64,
    ) -> Result<()> {
        let step = format!("repacking {name}");
        let Matrix { kind, k, order, inputs, .. } = *matrix;
        let repack = Repack { format, kind, half: self.records_type(kind), sources, k, order, inputs, out };
        // SAFETY: sources and records are within their blocks; the sources live until the wait below.
        unsafe { self.kernels.repack(&self.gpu.stream, &repack) }
            .map_err(|error| self.gpu.kernel_error(&step, error))?;
        self.gpu.wait(&step)
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

/// About what a slab of a dense matrix has.
const SLAB_BYTES: usize = 128 << 20;
