//! repack: launcher of the kernels that turn weights of a checkpoint into the records of `linear.cuh`.

use std::ffi::c_void;

use cudarc::driver::CudaStream;
use qwenvl_graph::DType;

use super::linear::{GROUP, RowOrder, WeightKind};
use super::{Address, Half, Kernels, Result, abi, check};

/// How a checkpoint stores a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// 4 bits as AutoAWQ packs them, groups of 128.
    Awq4,
    /// 4 bits as GPTQ packs them, groups of 128 in order.
    Gptq4 {
        /// Added to stored zero points: 1 in the usual format, 0 in the second.
        zero_offset: u32,
    },
    /// 8 bits as GPTQ packs them, groups of 128 in order, symmetric.
    Gptq8,
    /// `[n, k]` of f32, f16 or bf16.
    Dense(DType),
}

impl Format {
    /// The records it becomes.
    pub fn kind(self) -> WeightKind {
        match self {
            Format::Awq4 | Format::Gptq4 { .. } => WeightKind::Int4,
            Format::Gptq8 => WeightKind::Int8,
            Format::Dense(_) => WeightKind::Dense,
        }
    }
}

/// One of the matrices stacked along the outputs.
#[derive(Clone, Copy, Debug, Default)]
pub struct Source {
    /// Codes, or the matrix itself.
    pub codes: Address,
    /// Zero points; 0 for dense and 8-bit ones.
    pub zeros: Address,
    /// `[k / 128, n]` f16; 0 for dense ones.
    pub scales: Address,
    /// Outputs.
    pub n: usize,
}

impl Kernels {
    /// Writes the records of `sources`, stacked, to `out`: [`WeightKind::matrix_bytes`]. With `inputs`, `[k]` u32, of
    /// GPTQ's formats, place i along k is that of input `inputs[i]`; groups are of places.
    ///
    /// # Errors
    /// [`super::Error::Shape`] for sizes that the kernel does not take, [`super::Error::Driver`] from the driver.
    ///
    /// # Safety
    /// Addresses name memory of this device of the sizes that the format and the shapes give.
    #[allow(clippy::too_many_arguments)]
    pub unsafe fn repack(
        &self,
        stream: &CudaStream,
        format: Format,
        half: Half,
        sources: &[Source],
        k: usize,
        order: RowOrder,
        inputs: Option<Address>,
        out: Address,
    ) -> Result<()> {
        let kernel = "repack";
        check(kernel, (1..=3).contains(&sources.len()), || format!("{} matrices", sources.len()))?;
        let n: usize = sources.iter().map(|s| s.n).sum();
        let quantised = format.kind() != WeightKind::Dense;
        check(kernel, !quantised || (k % GROUP == 0 && sources.iter().all(|s| s.n % 8 == 0)), || {
            format!("{k} inputs must be whole groups of {GROUP}, outputs multiples of 8")
        })?;
        check(kernel, k % 8 == 0 && k < 1 << 31 && n < 1 << 31, || format!("{n} outputs, {k} inputs"))?;
        let rows = order.half();
        check(kernel, rows == 0 || (rows % 8 == 0 && n % (2 * rows as usize) == 0), || {
            format!("{n} outputs in heads of 2 · {rows}")
        })?;
        let (name, kind, zero_offset) = match format {
            Format::Awq4 => ("repack_awq4".into(), abi::QWENVL_AWQ4, 0),
            Format::Gptq4 { zero_offset } => ("repack_gptq4".into(), abi::QWENVL_GPTQ4, zero_offset),
            Format::Gptq8 => ("repack_gptq8".into(), abi::QWENVL_GPTQ8, 0),
            Format::Dense(dtype) => {
                let kind = match dtype {
                    DType::BF16 => abi::QWENVL_BF16,
                    DType::F16 => abi::QWENVL_F16,
                    DType::F32 => abi::QWENVL_F32,
                    DType::I32 => return check(kernel, false, || "weights of i32".into()),
                };
                (format!("repack_dense_{}", half.name()), kind, 0)
            }
        };
        let mut p = abi::QwenvlRepack {
            out: out as *mut c_void,
            n_sources: sources.len() as u32,
            n: n as u32,
            k: k as u32,
            half: rows,
            kind,
            zero_offset,
            inputs: inputs.map_or(std::ptr::null(), |i| i as *const u32),
            ..Default::default()
        };
        for (to, from) in p.sources.iter_mut().zip(sources) {
            to.codes = from.codes as *const c_void;
            to.zeros = from.zeros as *const c_void;
            to.scales = from.scales as *const c_void;
            to.n = from.n as u32;
        }
        let grid = (k.div_ceil(GROUP) as u32, n.div_ceil(128) as u32, 1);
        // SAFETY: the caller's promise.
        unsafe { self.launch(stream, &name, grid, 256, &p) }
    }
}
