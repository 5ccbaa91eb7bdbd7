//! decode_layers: launcher of all layers of the decoder in one kernel, for a few new tokens.

use cudarc::driver::CudaStream;
use cudarc::driver::sys::CUdevice_attribute_enum as Capability;

use super::attention::PagedAttention;
use super::linear::{GROUP, Linear, Normalised, Regime, STRIP, WeightKind};
use super::norm::MAX_RMS_COLS;
use super::{Address, Half, Kernels, Name, Result, abi, check, name};

/// Bytes of a step on the device; they start at a multiple of 16.
pub const STEP_BYTES: usize = size_of::<abi::QwenvlDecodeStep>();
const _: () = assert!(STEP_BYTES == qwenvl_graph::cuda::DECODE_STEP_BYTES);

const KERNEL: &str = "decode_layers";

/// A linear layer of few rows, and what comes before it: the same bits as launched one by one.
#[derive(Clone, Copy, Debug)]
pub struct DecodeStep {
    /// Attention, whose results the layer may read.
    pub attention: Option<PagedAttention>,
    /// Its norm: then `linear.x` is f32.
    pub norm: Option<Normalised>,
    /// The layer.
    pub linear: Linear,
}

/// The steps of a launch, on the device.
#[derive(Clone, Copy, Debug)]
pub struct DecodeLayers {
    /// How all their weights are stored.
    pub kind: WeightKind,
    /// The type of activations.
    pub half: Half,
    /// `[n_steps]`, as [`Kernels::decode_steps`] gives them.
    pub steps: Address,
    /// How many.
    pub n_steps: usize,
    /// A u32: zero before the first launch, and after each.
    pub arrived: Address,
}

fn kernel_name(kind: WeightKind, half: Half) -> Option<Name> {
    let kind = match kind {
        WeightKind::Int4 => "int4",
        WeightKind::Int8 => "int8",
        WeightKind::Dense => "dense",
        WeightKind::Int4G64 | WeightKind::Int4G32 | WeightKind::Int8G32 | WeightKind::Cast => return None,
    };
    Some(name!("{KERNEL}_{kind}_{}", half.name()))
}

impl Kernels {
    /// Rows that [`Kernels::decode_layers`] takes: none where the weights or the device are not for it.
    pub fn decode_layers_rows(&self, kind: WeightKind, half: Half) -> usize {
        let cooperates = self.context.attribute(Capability::CU_DEVICE_ATTRIBUTE_COOPERATIVE_LAUNCH);
        match kernel_name(kind, half) {
            Some(name) if cooperates.is_ok_and(|yes| yes != 0) => self.function(&name).config[1] as usize,
            _ => 0,
        }
    }

    /// The steps of a launch as the device takes them.
    ///
    /// # Errors
    /// [`super::Error::Shape`] if the kernel does not take one of them.
    pub fn decode_steps(&self, steps: &[DecodeStep]) -> Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(steps.len() * STEP_BYTES);
        for step in steps {
            let encoded = self.decode_step(step)?;
            // SAFETY: the struct has no padding, which the sizes of its fields show; see `abi.h`.
            let raw = unsafe { std::slice::from_raw_parts((&raw const encoded).cast::<u8>(), STEP_BYTES) };
            bytes.extend_from_slice(raw);
        }
        Ok(bytes)
    }

    fn decode_step(&self, step: &DecodeStep) -> Result<abi::QwenvlDecodeStep> {
        let (l, blocks) = (&step.linear, self.sm_count as usize);
        let rows = self.decode_layers_rows(l.kind, l.half);
        check(KERNEL, l.regime == Regime::SmallM && (1..=rows).contains(&l.m), || {
            format!("{} rows of {:?} weights, expected at most {rows}", l.m, l.kind)
        })?;
        check(KERNEL, l.n_runs <= blocks, || format!("{} runs, expected at most {blocks}", l.n_runs))?;
        let groups = l.k.div_ceil(GROUP);
        let in_run = (l.n.div_ceil(STRIP) * groups).div_ceil(l.n_runs).min(groups);
        let most = abi::QWENVL_DECODE_GROUPS as usize;
        match step.norm {
            Some(_) => check(KERNEL, l.k <= MAX_RMS_COLS, || {
                format!("a norm of {} inputs, expected at most {MAX_RMS_COLS}", l.k)
            })?,
            None => check(KERNEL, in_run <= most, || {
                format!("runs of {in_run} groups of inputs, expected at most {most}")
            })?,
        }
        let attention = match &step.attention {
            Some(attention) => {
                let pairs = attention.n_seqs * attention.kv.heads.n_kv_heads;
                check(KERNEL, pairs <= blocks, || {
                    format!("{pairs} heads of sequences, expected at most {blocks}")
                })?;
                attention.parameters()?
            }
            None => abi::QwenvlDecodeAttention::default(),
        };
        Ok(abi::QwenvlDecodeStep { attention, linear: l.parameters(step.norm.as_ref())? })
    }

    /// Launches all steps.
    ///
    /// # Errors
    /// [`super::Error::Shape`] for weights that it does not take, [`super::Error::Driver`] from the driver.
    ///
    /// # Safety
    /// The steps are those of [`Kernels::decode_steps`], of layers of this kind, and addresses in them are as
    /// [`Kernels::linear`] and [`Kernels::paged_attention`] need it.
    pub unsafe fn decode_layers(&self, stream: &CudaStream, layers: &DecodeLayers) -> Result<()> {
        let rows = self.decode_layers_rows(layers.kind, layers.half);
        check(KERNEL, rows > 0, || format!("no kernel for {:?} weights on this device", layers.kind))?;
        let name = kernel_name(layers.kind, layers.half).expect("one that takes rows");
        let p = abi::QwenvlDecodeLayers {
            steps: layers.steps as *const abi::QwenvlDecodeStep,
            arrived: layers.arrived as *mut u32,
            n_steps: layers.n_steps as u32,
            unused: 0,
        };
        // SAFETY: the caller's promise.
        unsafe { self.launch_cooperative(stream, &name, self.sm_count, 256, &p) }
    }
}
