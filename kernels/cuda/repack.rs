//! repack: launcher of the kernels that turn weights of a checkpoint into the records of `linear.cuh`.

use std::ffi::c_void;
use std::ptr;

use cudarc::driver::CudaStream;
use qwenvl_graph::DType;

use super::linear::{GROUP, RowOrder, WeightKind};
use super::{Address, Half, Kernels, Result, abi, check, name};

/// A place along k without an input.
pub const NO_INPUT: u32 = abi::QWENVL_NO_INPUT;

/// How a checkpoint stores a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// 4 bits as AutoAWQ packs them.
    Awq4,
    /// 4 bits as GPTQ packs them.
    Gptq4 {
        /// Added to stored zero points: 1 in the usual format, 0 in the second.
        zero_offset: u32,
    },
    /// 8 bits as GPTQ packs them.
    Gptq8 {
        /// As of 4 bits.
        zero_offset: u32,
    },
    /// `[n, k]` of f32, f16 or bf16.
    Dense(DType),
}

/// One of the matrices stacked along the outputs.
#[derive(Clone, Copy, Debug, Default)]
pub struct Source {
    /// Codes, or the matrix itself.
    pub codes: Address,
    /// Zero points; 0 for dense ones, and for 8 bits around 128.
    pub zeros: Address,
    /// `[groups, n]` f16; 0 for dense ones.
    pub scales: Address,
    /// Of codes: the row of `zeros` and `scales` for each [`WeightKind::group`] places, u32.
    pub groups: Address,
    /// Outputs.
    pub n: usize,
}

/// A matrix to repack.
#[derive(Clone, Copy, Debug)]
pub struct Repack<'a> {
    /// How it is stored.
    pub format: Format,
    /// The records it becomes: of the same width.
    pub kind: WeightKind,
    /// The type of dense records.
    pub half: Half,
    /// Its parts.
    pub sources: &'a [Source],
    /// Inputs of a dense matrix; places along k of codes.
    pub k: usize,
    /// The order of rows.
    pub order: RowOrder,
    /// Of codes: `[k]` u32, the input at each place, or [`NO_INPUT`]; in order if there is none.
    pub inputs: Option<Address>,
    /// [`WeightKind::matrix_bytes`].
    pub out: Address,
}

impl Kernels {
    /// Writes the records of a matrix.
    ///
    /// # Errors
    /// [`super::Error::Shape`] for sizes that the kernel does not take, [`super::Error::Driver`] from the driver.
    ///
    /// # Safety
    /// Addresses name memory of this device of the sizes that the format and the shapes give; inputs and groups are
    /// there.
    pub unsafe fn repack(&self, stream: &CudaStream, r: &Repack) -> Result<()> {
        let kernel = "repack";
        let Repack { sources, k, .. } = *r;
        check(kernel, (1..=3).contains(&sources.len()), || format!("{} matrices", sources.len()))?;
        let n: usize = sources.iter().map(|s| s.n).sum();
        let is_dense = matches!(r.format, Format::Dense(_));
        check(kernel, is_dense || sources.iter().all(|s| s.n % 8 == 0), || {
            "outputs of integer weights must be multiples of 8".into()
        })?;
        check(kernel, k % 8 == 0 && k < 1 << 31 && n < 1 << 31, || format!("{n} outputs, {k} inputs"))?;
        let rows = r.order.half();
        check(kernel, rows == 0 || (rows % 8 == 0 && n % (2 * rows as usize) == 0), || {
            format!("{n} outputs in heads of 2 · {rows}")
        })?;
        let (bits, name, kind, zero_offset) = match r.format {
            Format::Awq4 => (4, name!("repack_awq4"), abi::QWENVL_AWQ4, 0),
            Format::Gptq4 { zero_offset } => (4, name!("repack_gptq4"), abi::QWENVL_GPTQ4, zero_offset),
            Format::Gptq8 { zero_offset } => (8, name!("repack_gptq8"), abi::QWENVL_GPTQ8, zero_offset),
            Format::Dense(dtype) => {
                let kind = match dtype {
                    DType::BF16 => abi::QWENVL_BF16,
                    DType::F16 => abi::QWENVL_F16,
                    DType::F32 => abi::QWENVL_F32,
                    DType::I32 => return check(kernel, false, || "weights of i32".into()),
                };
                (16, name!("repack_dense_{}", r.half.name()), kind, 0)
            }
        };
        check(kernel, bits == r.kind.bits(), || format!("{:?} as {:?}", r.format, r.kind))?;
        let mut p = abi::QwenvlRepack {
            out: r.out as *mut c_void,
            n_sources: sources.len() as u32,
            n: n as u32,
            k: k as u32,
            half: rows,
            kind,
            zero_offset,
            inputs: r.inputs.map_or(ptr::null(), |i| i as *const u32),
            group: r.kind.group() as u32,
            zeros: u32::from(r.kind == WeightKind::Int8G32),
            ..Default::default()
        };
        for (to, from) in p.sources.iter_mut().zip(sources) {
            to.codes = from.codes as *const c_void;
            to.zeros = from.zeros as *const c_void;
            to.scales = from.scales as *const c_void;
            to.groups = from.groups as *const u32;
            to.n = from.n as u32;
        }
        let grid = (k.div_ceil(GROUP) as u32, n.div_ceil(128) as u32, 1);
        // SAFETY: the caller's promise.
        unsafe { self.launch(stream, &name, grid, 256, &p) }
    }
}
