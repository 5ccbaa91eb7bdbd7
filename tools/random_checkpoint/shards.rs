//! Weight files: which tensors go where, headers, and streaming the data out.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;

use anyhow::Result;
use qwenvl_graph::weights::{StoredType, TensorSpec};
use qwenvl_graph::{DType, ModelConfig};
use serde_json::{Map, Value, json};

use crate::Options;
use crate::values::Fill;

/// Bytes generated and written at a time.
const CHUNK_BYTES: usize = 1 << 20;

/// A tensor with the type in which it is stored.
#[derive(Clone, Debug)]
pub struct Tensor {
    /// Name, shape and kind.
    pub spec: TensorSpec,
    /// Type of the elements.
    pub dtype: DType,
}

impl Tensor {
    /// Floats are stored as `float`, except that scales are always F16; codes are I32.
    pub fn new(spec: TensorSpec, float: DType) -> Self {
        let dtype = match spec.stored {
            StoredType::Packed => DType::I32,
            StoredType::Float if spec.name.ends_with(".scales") => DType::F16,
            StoredType::Float => float,
        };
        Tensor { spec, dtype }
    }

    /// Size of the data.
    pub fn bytes(&self) -> u64 {
        self.spec.shape.iter().product::<usize>() as u64 * self.dtype.size_bytes()
    }
}

/// The tensors of one weight file, in file order.
#[derive(Clone, Debug)]
pub struct Shard {
    /// The tensors.
    pub tensors: Vec<Tensor>,
}

/// Distributes tensors as the hub's tools do: in order, a new file when the next tensor would make
/// one larger than `max_bytes`. Within a file the wider types come first, then names decide.
pub fn plan_shards(tensors: Vec<Tensor>, max_bytes: u64) -> Vec<Shard> {
    let mut shards: Vec<Shard> = Vec::new();
    let mut filled = 0;
    for tensor in tensors {
        let bytes = tensor.bytes();
        match shards.last_mut() {
            Some(shard) if filled + bytes <= max_bytes => {
                shard.tensors.push(tensor);
                filled += bytes;
            }
            _ => {
                shards.push(Shard { tensors: vec![tensor] });
                filled = bytes;
            }
        }
    }
    for shard in &mut shards {
        shard.tensors.sort_by(|a, b| {
            b.dtype.size_bytes().cmp(&a.dtype.size_bytes()).then_with(|| a.spec.name.cmp(&b.spec.name))
        });
    }
    shards
}

impl Shard {
    /// Size of the data, without the header.
    pub fn data_bytes(&self) -> u64 {
        self.tensors.iter().map(Tensor::bytes).sum()
    }

    /// The header with its length in front, padded to a multiple of eight bytes.
    fn header(&self) -> Result<Vec<u8>> {
        let mut map = Map::new();
        map.insert("__metadata__".into(), json!({"format": "pt"}));
        let mut offset = 0;
        for tensor in &self.tensors {
            let end = offset + tensor.bytes();
            let info: Value = json!({
                "dtype": tensor.dtype.name().to_uppercase(),
                "shape": tensor.spec.shape,
                "data_offsets": [offset, end],
            });
            map.insert(tensor.spec.name.clone(), info);
            offset = end;
        }
        let mut text = serde_json::to_vec(&map)?;
        text.resize(text.len().next_multiple_of(8), b' ');
        let mut header = (text.len() as u64).to_le_bytes().to_vec();
        header.extend(text);
        Ok(header)
    }

    pub(crate) fn write(
        &self,
        path: &Path,
        config: &ModelConfig,
        options: &Options,
        progress: &mut dyn FnMut(u64),
    ) -> Result<()> {
        let mut file = File::create(path)?;
        let header = self.header()?;
        file.write_all(&header)?;
        // Makes the file sparse until data is written, and fails at once if it cannot be this large.
        file.set_len(header.len() as u64 + self.data_bytes())?;
        let mut buffer = vec![0; CHUNK_BYTES];
        for tensor in &self.tensors {
            let mut fill = Fill::new(tensor, config, options.seed);
            let bytes = tensor.bytes();
            if options.sparse && fill.is_matrix() {
                file.seek(SeekFrom::Current(i64::try_from(bytes)?))?;
                progress(bytes);
                continue;
            }
            let mut left = bytes;
            while left > 0 {
                let chunk = &mut buffer[..left.min(CHUNK_BYTES as u64) as usize];
                fill.next(chunk);
                file.write_all(chunk)?;
                left -= chunk.len() as u64;
                progress(chunk.len() as u64);
            }
        }
        Ok(())
    }
}
