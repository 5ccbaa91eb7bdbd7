//! A graph: values, weights and the nodes that connect them, checked as it is built.

use std::collections::HashMap;

use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::op::{Epilogue, LinearPart, Op};
use crate::shape::{Rows, Shape};
use crate::weights::{Linear, WeightFormat};

/// Index of a value in [`Graph::values`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ValueId(pub usize);

/// Index of a weight in [`Graph::weights`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WeightId(pub usize);

/// A tensor that one node writes and others read.
#[derive(Clone, Debug, PartialEq)]
pub struct Value {
    /// A name for tables: `blocks.3.qkv`.
    pub name: String,
    /// Its shape.
    pub shape: Shape,
    /// Type of its elements.
    pub dtype: DType,
}

/// A tensor of the checkpoint, as the graph uses it.
#[derive(Clone, Debug, PartialEq)]
pub struct Weight {
    /// Module name for matrices (`model.layers.0.mlp.up_proj`), tensor name for vectors and tables.
    pub name: String,
    /// What it is.
    pub kind: WeightKind,
}

/// Shape and storage of a weight.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum WeightKind {
    /// A linear layer's `[n, k]`.
    Matrix {
        /// Outputs.
        n: usize,
        /// Inputs.
        k: usize,
        /// Storage.
        format: WeightFormat,
    },
    /// Norm weights and biases `[len]`.
    Vector {
        /// Elements.
        len: usize,
        /// Type in the checkpoint.
        dtype: DType,
    },
}

impl Weight {
    /// Bytes once loaded.
    pub fn bytes(&self) -> u64 {
        match self.kind {
            WeightKind::Matrix { n, k, format } => format.matrix_bytes(n, k),
            WeightKind::Vector { len, dtype } => len as u64 * dtype.size_bytes(),
        }
    }
}

/// One operation with its wiring.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// What is computed.
    pub op: Op,
    /// What is read, in the order the op names.
    pub inputs: Vec<ValueId>,
    /// What is written; `None` for an op that only writes the KV cache.
    pub output: Option<ValueId>,
}

/// Nodes in an order in which they can run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Graph {
    /// All values.
    pub values: Vec<Value>,
    /// All weights.
    pub weights: Vec<Weight>,
    /// All nodes.
    pub nodes: Vec<Node>,
    /// The value that the caller reads.
    pub result: Option<ValueId>,
    by_name: HashMap<String, WeightId>,
}

impl Graph {
    /// The value behind an id.
    pub fn value(&self, id: ValueId) -> &Value {
        &self.values[id.0]
    }

    /// The weight behind an id.
    pub fn weight(&self, id: WeightId) -> &Weight {
        &self.weights[id.0]
    }

    /// Adds a weight matrix. Asking twice for one name gives the same id (tied embeddings).
    pub fn matrix(&mut self, name: &str, n: usize, k: usize, format: WeightFormat) -> WeightId {
        self.add_weight(Weight { name: name.to_string(), kind: WeightKind::Matrix { n, k, format } })
    }

    /// Adds a vector: a norm weight or a bias.
    pub fn vector(&mut self, name: &str, len: usize, dtype: DType) -> WeightId {
        self.add_weight(Weight { name: name.to_string(), kind: WeightKind::Vector { len, dtype } })
    }

    fn add_weight(&mut self, weight: Weight) -> WeightId {
        let next = WeightId(self.weights.len());
        let id = *self.by_name.entry(weight.name.clone()).or_insert(next);
        if id == next {
            self.weights.push(weight);
        }
        id
    }

    /// Adds a linear layer of one part and its output.
    ///
    /// # Errors
    /// [`Error::Graph`] if the input's columns are not `k`.
    pub fn linear(&mut self, linear: &Linear, bias_dtype: DType, x: ValueId, out: DType) -> Result<ValueId> {
        let weight = self.matrix(&linear.name, linear.n, linear.k, linear.format);
        let bias = linear.bias.then(|| self.vector(&format!("{}.bias", linear.name), linear.n, bias_dtype));
        let part = LinearPart { weight, bias, n: linear.n };
        let op = Op::Linear { parts: vec![part], k: linear.k, epilogue: Epilogue::Store };
        self.apply(&linear.name, op, &[x], out)
    }

    /// Adds a node and the value it writes, whose shape follows from the op.
    ///
    /// # Errors
    /// [`Error::Graph`] if the inputs do not fit the op.
    pub fn apply(&mut self, name: &str, op: Op, inputs: &[ValueId], dtype: DType) -> Result<ValueId> {
        let shape = self.output_shape(&op, inputs)?.ok_or_else(|| graph_error(&op, "writes no value"))?;
        self.values.push(Value { name: name.to_string(), shape, dtype });
        let output = ValueId(self.values.len() - 1);
        self.nodes.push(Node { op, inputs: inputs.to_vec(), output: Some(output) });
        Ok(output)
    }

    /// Adds a node that writes no value.
    ///
    /// # Errors
    /// [`Error::Graph`] if the inputs do not fit the op.
    pub fn effect(&mut self, op: Op, inputs: &[ValueId]) -> Result<()> {
        if self.output_shape(&op, inputs)?.is_some() {
            return Err(graph_error(&op, "writes a value"));
        }
        self.nodes.push(Node { op, inputs: inputs.to_vec(), output: None });
        Ok(())
    }

    /// The shape rule of every op.
    fn output_shape(&self, op: &Op, inputs: &[ValueId]) -> Result<Option<Shape>> {
        let arity = match op {
            Op::Patchify | Op::Embed { .. } => 0,
            Op::SwiGlu | Op::Add | Op::WriteKv { .. } => 2,
            Op::Linear { epilogue: Epilogue::AddResidual, .. } => 2,
            _ => 1,
        };
        if inputs.len() != arity {
            return Err(graph_error(op, format!("{} inputs, expected {arity}", inputs.len())));
        }
        let shape = |i: usize| self.value(inputs[i]).shape;
        let expect = |found: usize, expected: usize| {
            if found == expected {
                Ok(())
            } else {
                Err(graph_error(op, format!("{found} columns, expected {expected}")))
            }
        };
        let out = match op {
            Op::Patchify | Op::Embed { .. } => return Err(graph_error(op, "is a source: use `source`")),
            Op::Linear { parts, k, epilogue } => {
                let x = shape(0);
                let rows = self.rows_read_as(op, x, *k)?;
                let n: usize = parts.iter().map(|p| p.n).sum();
                let cols = match epilogue {
                    Epilogue::SwiGlu | Epilogue::RopeWriteKv { .. } => parts[0].n,
                    _ => n,
                };
                let out = Shape { rows, cols };
                if *epilogue == Epilogue::AddResidual && shape(1) != out {
                    return Err(graph_error(op, format!("residual {} does not match {out}", shape(1))));
                }
                out
            }
            Op::SwiGlu | Op::Add => {
                if shape(0) != shape(1) {
                    return Err(graph_error(op, format!("{} does not match {}", shape(0), shape(1))));
                }
                shape(0)
            }
            Op::LayerNorm { weight, .. } | Op::RmsNorm { weight, .. } => {
                if let WeightKind::Vector { len, .. } = self.weight(*weight).kind {
                    expect(shape(0).cols, len)?;
                }
                shape(0)
            }
            Op::Activate(_) => shape(0),
            Op::RotateVision(rope) => {
                expect(shape(0).cols, 3 * rope.n_heads * rope.head_dim)?;
                shape(0)
            }
            Op::Rotate(rope) => {
                if shape(0).cols % rope.head_dim != 0 {
                    return Err(graph_error(op, format!("{} columns are no whole heads", shape(0).cols)));
                }
                shape(0)
            }
            Op::WriteKv { heads, .. } => {
                expect(shape(0).cols, heads.n_kv_heads * heads.head_dim)?;
                expect(shape(1).cols, heads.n_kv_heads * heads.head_dim)?;
                return Ok(None);
            }
            Op::VisionAttention { n_heads, head_dim } => {
                expect(shape(0).cols, 3 * n_heads * head_dim)?;
                Shape { rows: shape(0).rows, cols: n_heads * head_dim }
            }
            Op::PagedAttention { heads, .. } => {
                expect(shape(0).cols, heads.n_heads * heads.head_dim)?;
                shape(0)
            }
            Op::MergeRows { per } => {
                let x = shape(0);
                if x.rows != Rows::Patches {
                    return Err(graph_error(op, format!("rows are {}, expected patches", x.rows)));
                }
                Shape { rows: Rows::MergedPatches(*per), cols: x.cols * per }
            }
            Op::SelectRows => Shape { rows: Rows::LogitRows, cols: shape(0).cols },
        };
        Ok(Some(out))
    }

    /// Adds a node without inputs: `Patchify` or `Embed`.
    pub fn source(&mut self, name: &str, op: Op, shape: Shape, dtype: DType) -> ValueId {
        self.values.push(Value { name: name.to_string(), shape, dtype });
        let output = ValueId(self.values.len() - 1);
        self.nodes.push(Node { op, inputs: Vec::new(), output: Some(output) });
        output
    }

    fn rows_read_as(&self, op: &Op, x: Shape, k: usize) -> Result<Rows> {
        if x.cols == k {
            return Ok(x.rows);
        }
        match x.rows {
            Rows::Patches if k.is_multiple_of(x.cols) => Ok(Rows::MergedPatches(k / x.cols)),
            _ => Err(graph_error(op, format!("{} columns, expected {k}", x.cols))),
        }
    }
}

fn graph_error(op: &Op, reason: impl Into<String>) -> Error {
    Error::Graph { op: op.name().to_string(), reason: reason.into() }
}
