//! Whether the tensors of a checkpoint are those its configuration asks for.

use std::fmt;

use qwenvl_graph::weights::{StoredType, TensorSpec, checkpoint_tensors, decoder_linears};
use qwenvl_graph::{DType, config::Quantization};

use super::{Checkpoint, check_finite, tensor};
use crate::error::{Error, Result};

/// Problems listed in one message.
const MAX_LISTED: usize = 10;

/// One thing that is wrong.
struct Problem {
    tensor: String,
    /// The weight file, for a tensor that exists.
    file: Option<usize>,
    found: String,
    expected: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: found {}, expected {}", self.tensor, self.found, self.expected)
    }
}

impl Checkpoint {
    /// Checks that the checkpoint can be loaded: every tensor is there with the right shape and type,
    /// no scale is NaN or infinite, and inputs of quantised layers are assigned to groups that exist.
    /// Reads the scales (under 3 % of a quantised checkpoint) and group indices, otherwise only
    /// headers. Tensors that the configuration does not ask for are ignored.
    ///
    /// # Errors
    /// [`Error::Tensor`] for a single
    /// problem; [`Error::Checkpoint`] listing the first problems if there are several or the cause
    /// is evident.
    pub fn validate(&self) -> Result<()> {
        let specs = checkpoint_tensors(&self.config)?;
        let problems: Vec<Problem> = specs.iter().filter_map(|spec| self.problem(spec)).collect();
        if !problems.is_empty() {
            return Err(self.report(problems));
        }
        self.check_scales()?;
        self.check_groups()
    }

    /// Checks the group of every input and the biases that AutoGPTQ adds, in a GPTQ checkpoint.
    fn check_groups(&self) -> Result<()> {
        if !matches!(self.config.quantization, Quantization::Gptq { .. }) {
            return Ok(());
        }
        for layer in 0..self.config.text.num_hidden_layers {
            for linear in decoder_linears(&self.config, layer)? {
                self.gptq_linear(&linear)?;
                if !linear.bias {
                    self.extra_bias(&linear.name, linear.n)?;
                }
            }
        }
        Ok(())
    }

    /// Checks the values of every scale of a quantised checkpoint.
    ///
    /// # Errors
    /// [`Error::Tensor`] with the tensor and the index of the first NaN or infinity.
    pub fn check_scales(&self) -> Result<()> {
        if self.config.quantization == Quantization::None {
            return Ok(());
        }
        for spec in checkpoint_tensors(&self.config)?.iter().filter(|s| is_scales(&s.name)) {
            let scales = self.tensor(&spec.name)?;
            check_finite(&scales)?;
            self.release(&scales);
        }
        Ok(())
    }

    fn problem(&self, spec: &TensorSpec) -> Option<Problem> {
        let accepted: &[DType] = match spec.stored {
            StoredType::Packed => &[DType::I32],
            // AutoAWQ and AutoGPTQ write f16, and the arithmetic rounds to f16; other types would have to be
            // rounded here, silently changing the model.
            StoredType::Float if is_scales(&spec.name) => &[DType::F16],
            StoredType::Float => &[DType::F32, DType::F16, DType::BF16],
        };
        let names: Vec<&str> = accepted.iter().map(|dtype| dtype.name()).collect();
        let expected = format!("{} {:?}", names.join(" or "), spec.shape);
        let tensor = spec.name.clone();
        let Some(location) = self.tensors.get(&spec.name) else {
            return Some(Problem { tensor, file: None, found: "nothing".into(), expected });
        };
        let dtype = tensor::dtype(location.dtype);
        if location.shape == spec.shape && dtype.is_some_and(|dtype| accepted.contains(&dtype)) {
            return None;
        }
        let found = dtype.map_or_else(|| location.dtype.to_string(), |dtype| dtype.name().into());
        let found = format!("{found} {:?}", location.shape);
        Some(Problem { tensor, file: Some(location.file), found, expected })
    }

    fn report(&self, mut problems: Vec<Problem>) -> Error {
        let cause = self.cause(&problems);
        let all_in = problems[0].file.filter(|file| problems.iter().all(|p| p.file == Some(*file)));
        let path = all_in.map_or(self.path(), |file| &self.files[file].path).to_path_buf();
        if problems.len() == 1 && cause.is_none() {
            let Problem { tensor, found, expected, .. } = problems.remove(0);
            return Error::Tensor { path, tensor, found, expected };
        }
        let found = format!("{} tensors are not what config.json asks for", problems.len());
        let mut help = cause.unwrap_or_else(|| {
            "config.json and the weight files must come from the same repository, download them again".into()
        });
        for problem in problems.iter().take(MAX_LISTED) {
            help += &format!("\n  {problem}");
        }
        if problems.len() > MAX_LISTED {
            help += &format!("\n  and {} more", problems.len() - MAX_LISTED);
        }
        Error::Checkpoint { path, problem: found, help }
    }

    /// The mistake behind a pattern of problems, if one is evident.
    fn cause(&self, problems: &[Problem]) -> Option<String> {
        let stored_as = |asked: &str, stored: &str| {
            problems.iter().any(|p| match p.tensor.strip_suffix(asked) {
                Some(linear) if p.file.is_none() => self.contains(&format!("{linear}{stored}")),
                _ => false,
            })
        };
        if stored_as(".weight", ".qweight") {
            return Some(
                "the weights are quantised but config.json has no quantization_config: use the config.json of the \
                 repository the weights are from"
                    .into(),
            );
        }
        if stored_as(".qweight", ".weight") {
            return Some(format!(
                "config.json declares {} but the weights are not quantised: use the config.json of the repository \
                 the weights are from",
                self.config.quantization.name()
            ));
        }
        if matches!(self.config.quantization, Quantization::Awq { .. })
            && problems.iter().any(|p| p.tensor.ends_with(".qweight"))
            && self.tensor_names().any(|name| name.ends_with(".g_idx"))
        {
            return Some(
                "config.json declares AWQ but the weights are packed as GPTQ (they have g_idx tensors)"
                    .into(),
            );
        }
        if matches!(self.config.quantization, Quantization::Gptq { .. })
            && problems.iter().any(|p| p.tensor.ends_with(".qweight"))
            && !self.tensor_names().any(|name| name.ends_with(".g_idx"))
        {
            return Some(
                "config.json declares GPTQ but the weights are packed as AWQ (they have no g_idx tensors)"
                    .into(),
            );
        }
        let declared = self.config.text.intermediate_size;
        let stored = self.stored_intermediate_size();
        if let Some(stored) = stored.filter(|stored| *stored != declared) {
            return Some(format!(
                "config.json says intermediate_size {declared} but the weights have {stored} (the quantised 72B \
                 models are padded from 29568 to 29696): use the config.json of the repository the weights are from"
            ));
        }
        if problems.iter().all(|p| p.file.is_none()) {
            return Some(format!(
                "the other {} tensors are there: the download is incomplete, or config.json is that of a larger model",
                self.tensors.len()
            ));
        }
        None
    }

    /// The MLP width by the shape of the first gate projection.
    fn stored_intermediate_size(&self) -> Option<usize> {
        let shape = |suffix: &str| {
            let location = self.tensors.get(&format!("model.layers.0.mlp.gate_proj.{suffix}"))?;
            Some(location.shape.as_slice())
        };
        match (shape("weight"), shape("scales")) {
            (Some([f, _]), _) | (None, Some([_, f])) => Some(*f),
            _ => None,
        }
    }
}

fn is_scales(name: &str) -> bool {
    name.ends_with(".scales")
}
