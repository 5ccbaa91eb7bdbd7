//! Weights in the layout of their kernels.

use std::sync::Arc;

use qwenvl_graph::config::Quantization;
use qwenvl_graph::op::LinearPart;
use qwenvl_graph::weights::{Linear, WeightFormat};
use qwenvl_graph::{DType, Graph, Op, Weight, WeightId, WeightKind};

use super::repack_cache::{RepackCache, StoredPlanes};
use crate::checkpoint::{Checkpoint, TensorHandle, to_f32_vec};
use crate::error::{Error, Result};
use crate::kernels::cpu::Pool;
use crate::kernels::cpu::dense::DenseMatrix;
use crate::kernels::cpu::grouped::{Codes, GroupedMatrix, Packing, Source};
use crate::kernels::cpu::int4::Int4Matrix;
use crate::kernels::cpu::int8::Int8Matrix;
use crate::kernels::cpu::linear::{MAX_PARTS, Matrix, Part, reserve};
use crate::kernels::cpu::order::InputOrder;
use crate::kernels::cpu::rounded::QuantizedRows;

/// The weights of one graph, by [`WeightId`].
pub(super) struct Weights(Vec<Bound>);

enum Bound {
    /// In its mapping.
    Dense { tensor: TensorHandle, dtype: DType, n: usize, k: usize },
    /// Repacked, with a bias that only the file knows of.
    Int4(Int4Matrix, Option<Vec<f32>>),
    /// Likewise.
    Int8(Int8Matrix, Option<Vec<f32>>),
    /// Converted.
    Vector(Vec<f32>),
}

impl Weights {
    pub(super) fn bind(
        graph: &Graph,
        checkpoint: &Checkpoint,
        pool: &mut Pool,
        mut cache: Option<&mut RepackCache>,
        advance: &mut dyn FnMut(u64),
    ) -> Result<Weights> {
        let mut orders = Vec::new();
        let bound = graph.weights.iter().map(|weight| {
            let bound = bind(weight, checkpoint, pool, cache.as_deref_mut(), &mut orders)?;
            advance(weight.bytes());
            Ok(bound)
        });
        Ok(Weights(bound.collect::<Result<_>>()?))
    }

    /// The matrices of a linear layer with their biases; what is behind the last is the first again.
    pub(super) fn parts<'a>(
        &'a self,
        parts: &[LinearPart],
        checkpoint: &'a Checkpoint,
    ) -> [Part<'a>; MAX_PARTS] {
        std::array::from_fn(|i| {
            let LinearPart { weight, bias, .. } = *parts.get(i).unwrap_or(&parts[0]);
            let (matrix, extra) = match &self.0[weight.0] {
                Bound::Int4(matrix, extra) => (Matrix::Int4(matrix), extra.as_deref()),
                Bound::Int8(matrix, extra) => (Matrix::Int8(matrix), extra.as_deref()),
                _ => (Matrix::Dense(self.dense(weight, checkpoint)), None),
            };
            Part { matrix, bias: bias.map(|b| self.vector(b)).or(extra) }
        })
    }

    pub(super) fn dense<'a>(&self, id: WeightId, checkpoint: &'a Checkpoint) -> DenseMatrix<'a> {
        match &self.0[id.0] {
            Bound::Dense { tensor, dtype, n, k } => {
                DenseMatrix::new(checkpoint.bytes(tensor), *dtype, *n, *k)
            }
            _ => unreachable!("the graph names a dense matrix"),
        }
    }

    pub(super) fn vector(&self, id: WeightId) -> &[f32] {
        match &self.0[id.0] {
            Bound::Vector(values) => values,
            _ => unreachable!("the graph names a vector"),
        }
    }

    /// Makes room for the rounded inputs of every linear layer of `graph` with up to `m` rows.
    pub(super) fn reserve_rounded(
        &self,
        graph: &Graph,
        checkpoint: &Checkpoint,
        m: usize,
        rounded: &mut [QuantizedRows; MAX_PARTS],
    ) {
        for node in &graph.nodes {
            if let Op::Linear { parts, .. } = &node.op {
                reserve(rounded, &self.parts(parts, checkpoint)[..parts.len()], m);
            }
        }
    }

    /// The repacked matrices, in the order of the graph, for a cache.
    pub(super) fn repacked<'a>(&'a self, graph: &'a Graph) -> Vec<(&'a str, StoredPlanes<'a>)> {
        let names = graph.weights.iter().map(|w| w.name.as_str());
        let stored = names.zip(&self.0).filter_map(|(name, bound)| match bound {
            Bound::Int4(matrix, _) => Some((name, StoredPlanes::from(matrix))),
            Bound::Int8(matrix, _) => Some((name, StoredPlanes::from(matrix))),
            _ => None,
        });
        stored.collect()
    }

    /// The bytes of the largest dense matrix, for measuring bandwidth.
    pub(super) fn largest_bytes<'a>(&self, checkpoint: &'a Checkpoint) -> &'a [u8] {
        let dense = self.0.iter().filter_map(|w| match w {
            Bound::Dense { tensor, .. } => Some(checkpoint.bytes(tensor)),
            _ => None,
        });
        dense.max_by_key(|b| b.len()).unwrap_or(&[])
    }
}

/// `orders` holds the orders of inputs of the layers just bound: layers with equal ones share one, and
/// with it the rounded inputs.
fn bind(
    weight: &Weight,
    checkpoint: &Checkpoint,
    pool: &mut Pool,
    cache: Option<&mut RepackCache>,
    orders: &mut Vec<Arc<InputOrder>>,
) -> Result<Bound> {
    let (n, k, format) = match weight.kind {
        WeightKind::Vector { .. } => {
            let tensor = checkpoint.tensor(&weight.name)?;
            let values = to_f32_vec(&tensor)?;
            checkpoint.release(&tensor);
            return Ok(Bound::Vector(values));
        }
        WeightKind::Matrix { n, k, format } => (n, k, format),
    };
    let linear = Linear { name: weight.name.clone(), n, k, bias: false, format };
    match format {
        WeightFormat::Dense(_) => {
            let tensor = checkpoint.tensor(&format!("{}.weight", weight.name))?;
            Ok(Bound::Dense { tensor: tensor.handle(), dtype: tensor.dtype, n, k })
        }
        WeightFormat::Int4 { group } => {
            let matrix = pack(&linear, group, checkpoint, pool, cache, orders)?;
            Ok(Bound::Int4(matrix, checkpoint.extra_bias(&linear.name, n)?))
        }
        WeightFormat::Int8 { group } => {
            let matrix = pack(&linear, group, checkpoint, pool, cache, orders)?;
            Ok(Bound::Int8(matrix, checkpoint.extra_bias(&linear.name, n)?))
        }
    }
}

/// Repacks a quantised matrix into groups of `group`.
fn pack<C: Codes>(
    linear: &Linear,
    group: usize,
    checkpoint: &Checkpoint,
    pool: &mut Pool,
    cache: Option<&mut RepackCache>,
    orders: &mut Vec<Arc<InputOrder>>,
) -> Result<GroupedMatrix<C>> {
    let (n, k) = (linear.n, linear.k);
    if let Some(mut matrix) = cache.and_then(|c| c.matrix(&linear.name, (n, k, group))) {
        matrix.share_order(|order| shared(order, orders));
        return Ok(matrix);
    }
    if group > C::MAX_GROUP {
        return Err(Error::Unsupported {
            what: format!("group_size {group} of {}", linear.name),
            help: format!("this build runs groups of up to {} inputs", C::MAX_GROUP),
        });
    }
    // Reading the layer checks the shapes and types that the packer relies on.
    let source = match checkpoint.config.quantization {
        Quantization::Gptq { v2, .. } => {
            let stored = checkpoint.gptq_linear(linear)?;
            let file_group = checkpoint.config.quantization.group(k);
            let in_order = stored.g_idx.iter().enumerate().all(|(k, &g)| g as usize == k / file_group);
            let order = (!in_order || !k.is_multiple_of(group)).then(|| {
                let order = InputOrder::new(&stored.g_idx, k.div_ceil(file_group), group);
                shared(Arc::new(order), orders)
            });
            let (qweight, qzeros, scales) = (stored.qweight, stored.qzeros, stored.scales);
            Source { packing: Packing::Gptq { v2 }, qweight, qzeros, scales, n, k, group: file_group, order }
        }
        _ => {
            let stored = checkpoint.awq_linear(linear)?;
            let (qweight, qzeros, scales) = (stored.qweight, stored.qzeros, stored.scales);
            Source { packing: Packing::Awq, qweight, qzeros, scales, n, k, group: stored.group, order: None }
        }
    };
    let packed = GroupedMatrix::pack(pool, &source, group);
    // The packed copy replaces the stored one in memory.
    for part in ["qweight", "qzeros", "scales"] {
        checkpoint.release(&checkpoint.tensor(&format!("{}.{part}", linear.name))?);
    }
    Ok(packed)
}

/// An equal order that is there already, or the new one, which is remembered.
fn shared(order: Arc<InputOrder>, orders: &mut Vec<Arc<InputOrder>>) -> Arc<InputOrder> {
    /// Layers of one decoder layer; only those can share an input.
    const REMEMBERED: usize = 7;
    if let Some(found) = orders.iter().find(|o| **o == order) {
        return Arc::clone(found);
    }
    if orders.len() == REMEMBERED {
        orders.remove(0);
    }
    orders.push(Arc::clone(&order));
    order
}
