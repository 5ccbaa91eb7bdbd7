//! Weights in the layout of their kernels.

use qwenvl_graph::weights::{Linear, WeightFormat};
use qwenvl_graph::{DType, Graph, Weight, WeightId, WeightKind};

use crate::checkpoint::{Checkpoint, TensorHandle, to_f32_vec};
use crate::error::{Error, Result};
use crate::kernels::cpu::Pool;
use crate::kernels::cpu::dense::DenseMatrix;
use crate::kernels::cpu::int4::{AwqSource, Int4Matrix, MAX_GROUP};
use crate::kernels::cpu::linear::Matrix;

/// The weights of one graph, by [`WeightId`].
pub(super) struct Weights(Vec<Bound>);

enum Bound {
    /// In its mapping.
    Dense { tensor: TensorHandle, dtype: DType, n: usize, k: usize },
    /// Repacked.
    Int4(Int4Matrix),
    /// Converted.
    Vector(Vec<f32>),
}

impl Weights {
    pub(super) fn bind(
        graph: &Graph,
        checkpoint: &Checkpoint,
        pool: &mut Pool,
        advance: &mut dyn FnMut(u64),
    ) -> Result<Weights> {
        let bound = graph.weights.iter().map(|weight| {
            let bound = bind(weight, checkpoint, pool)?;
            advance(weight.bytes());
            Ok(bound)
        });
        Ok(Weights(bound.collect::<Result<_>>()?))
    }

    pub(super) fn matrix<'a>(&'a self, id: WeightId, checkpoint: &'a Checkpoint) -> Matrix<'a> {
        match &self.0[id.0] {
            Bound::Int4(matrix) => Matrix::Int4(matrix),
            _ => Matrix::Dense(self.dense(id, checkpoint)),
        }
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

    /// The bytes of the largest dense matrix, for measuring bandwidth.
    pub(super) fn largest_bytes<'a>(&self, checkpoint: &'a Checkpoint) -> &'a [u8] {
        let dense = self.0.iter().filter_map(|w| match w {
            Bound::Dense { tensor, .. } => Some(checkpoint.bytes(tensor)),
            _ => None,
        });
        dense.max_by_key(|b| b.len()).unwrap_or(&[])
    }
}

fn bind(weight: &Weight, checkpoint: &Checkpoint, pool: &mut Pool) -> Result<Bound> {
    match weight.kind {
        WeightKind::Vector { .. } => {
            let tensor = checkpoint.tensor(&weight.name)?;
            let values = to_f32_vec(&tensor)?;
            checkpoint.release(&tensor);
            Ok(Bound::Vector(values))
        }
        WeightKind::Matrix { n, k, format: WeightFormat::Dense(_) } => {
            let tensor = checkpoint.tensor(&format!("{}.weight", weight.name))?;
            Ok(Bound::Dense { tensor: tensor.handle(), dtype: tensor.dtype, n, k })
        }
        WeightKind::Matrix { n, k, format: WeightFormat::Int4 { group } } => {
            if group > MAX_GROUP {
                return Err(Error::Unsupported {
                    what: format!("group_size {group} of {}", weight.name),
                    help: format!("this build runs groups of up to {MAX_GROUP} inputs"),
                });
            }
            let linear =
                Linear { name: weight.name.clone(), n, k, bias: false, format: WeightFormat::Int4 { group } };
            // Checks the shapes and types that the packer relies on.
            checkpoint.awq_linear(&linear)?;
            let [qweight, qzeros, scales] = ["qweight", "qzeros", "scales"]
                .map(|part| checkpoint.tensor(&format!("{}.{part}", weight.name)));
            let (qweight, qzeros, scales) = (qweight?, qzeros?, scales?);
            let source = AwqSource { qweight: qweight.bytes, qzeros: qzeros.bytes, scales: scales.bytes };
            let packed = Int4Matrix::from_awq(pool, &source, n, k, group);
            // The packed copy replaces the stored one in memory.
            [qweight, qzeros, scales].iter().for_each(|tensor| checkpoint.release(tensor));
            Ok(Bound::Int4(packed))
        }
        WeightKind::Matrix { format, .. } => Err(Error::Unsupported {
            what: format!("{} ({})", weight.name, format.name()),
            help: "this build loads BF16/F16/F32 and AWQ".into(),
        }),
    }
}
