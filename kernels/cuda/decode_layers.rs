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
const _: () = assert!(abi::QWENVL_DECODE_GROUPS as usize == qwenvl_graph::cuda::DECODE_LAYERS_GROUPS);

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
    /// Where [`StepList::bytes`] are.
    pub steps: Address,
    /// [`StepList::n_steps`].
    pub n_steps: usize,
    /// [`StepList::blocks`].
    pub blocks: usize,
    /// A u32: zero before the first launch, and after each.
    pub arrived: Address,
}

/// The steps of a launch as the device takes them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepList {
    /// [`STEP_BYTES`] for each.
    pub bytes: Vec<u8>,
    /// How many.
    pub n_steps: usize,
    /// Blocks that have something to do in one of them; more would only wait.
    pub blocks: usize,
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

    /// The list of steps for a launch.
    ///
    /// # Errors
    /// [`super::Error::Shape`] if the kernel does not take one of them.
    pub fn decode_steps(&self, steps: &[DecodeStep]) -> Result<StepList> {
        let mut list = StepList { bytes: Vec::new(), n_steps: steps.len(), blocks: 1 };
        list.bytes.reserve_exact(steps.len() * STEP_BYTES);
        for step in steps {
            let encoded = self.decode_step(step)?;
            let attention = &encoded.attention;
            let splits = (attention.n_seqs * attention.kv.kv_heads * attention.slots) as usize;
            list.blocks = list.blocks.max(step.linear.n_runs).max(splits.min(self.sm_count as usize));
            // SAFETY: the struct has no padding, which the sizes of its fields show; see `abi.h`.
            let raw = unsafe { std::slice::from_raw_parts((&raw const encoded).cast::<u8>(), STEP_BYTES) };
            list.bytes.extend_from_slice(raw);
        }
        Ok(list)
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
        check(KERNEL, (1..=self.sm_count as usize).contains(&layers.blocks), || {
            format!("{} blocks on {} multiprocessors", layers.blocks, self.sm_count)
        })?;
        let name = kernel_name(layers.kind, layers.half).expect("one that takes rows");
        let p = abi::QwenvlDecodeLayers {
            steps: layers.steps as *const abi::QwenvlDecodeStep,
            arrived: layers.arrived as *mut u32,
            n_steps: layers.n_steps as u32,
            unused: 0,
        };
        // SAFETY: the caller's promise.
        unsafe { self.launch_cooperative(stream, &name, layers.blocks as u32, 256, &p) }
    }
}
