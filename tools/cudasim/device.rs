//! The simulated cards: what `cuDeviceGetAttribute` answers and what the time model calculates with.
//!
//! Values follow NVIDIA's data sheets, the tables of compute capabilities in the CUDA C++ Programming Guide and the
//! output of `deviceQuery` as it is commonly published. Clocks are the boost clocks of the data sheets, which a card
//! at its power limit may not hold.

mod attributes;
mod occupancy;

use serde::{Deserialize, Serialize};

pub(crate) use occupancy::SUB_CORES;
pub use occupancy::{Limiter, Occupancy, Resources};

/// Threads in a warp.
pub const WARP_SIZE: u32 = 32;

/// One kind of card.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceSpec {
    /// Name as `cuDeviceGetName` gives it; it says that the card is simulated.
    pub name: String,
    /// Compute capability, major and minor.
    pub compute_capability: [u32; 2],
    /// Streaming multiprocessors.
    pub sms: u32,
    /// Boost clock of the SMs.
    pub clock_khz: u32,
    /// Clock of the memory; data moves at both edges.
    pub memory_clock_khz: u32,
    /// Width of the memory bus.
    pub memory_bus_bits: u32,
    /// Device memory that programs can use.
    pub memory_bytes: u64,
    /// L2 cache.
    pub l2_bytes: u64,
    /// Resident threads per SM.
    pub max_threads_per_sm: u32,
    /// Resident CTAs per SM.
    pub max_ctas_per_sm: u32,
    /// 32-bit registers per SM, which is also the limit of one CTA.
    pub registers_per_sm: u32,
    /// Shared memory per SM at the largest carve-out.
    pub shared_bytes_per_sm: u32,
    /// Shared memory that a CTA may have after opting in.
    pub shared_bytes_per_cta_optin: u32,
    /// Dense f16 and bf16 tensor-core multiply-accumulates per clock and SM with f32 accumulation through
    /// `mma.sync`.
    pub mma_f16_macs_per_clock: u32,
    /// f32 fused multiply-adds per clock and SM.
    pub fp32_lanes: u32,
    /// 32-bit integer operations per clock and SM.
    pub int32_lanes: u32,
    /// f64 fused multiply-adds per clock and SM.
    pub fp64_lanes: u32,
    /// f16x2 fused multiply-adds (two halves each) per clock and SM.
    pub half2_lanes: u32,
    /// Peak bandwidth of L2 in bytes per clock of the SMs.
    pub l2_bytes_per_clock: u32,
}

/// Why a device description was refused.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// No preset has the name.
    #[error("there is no device {0:?}; known are {list}", list = DeviceSpec::PRESETS.join(", "))]
    Unknown(String),
    /// The text is no JSON object of the expected form.
    #[error("device description: {0}")]
    Json(#[from] serde_json::Error),
    /// A value is outside what the simulator accepts.
    #[error("device description: {field} is {value}, which is not between {min} and {max}")]
    OutOfRange {
        /// Name of the field.
        field: &'static str,
        /// Its value.
        value: u64,
        /// Least value accepted.
        min: u64,
        /// Largest value accepted.
        max: u64,
    },
}

impl Default for DeviceSpec {
    /// An A100 with 80 GB, the SXM module.
    fn default() -> DeviceSpec {
        a100("80GB", 1_593_000, 85_198_045_184)
    }
}

impl DeviceSpec {
    /// Names that [`DeviceSpec::preset`] knows.
    pub const PRESETS: [&'static str; 4] = ["a100-80g", "a100-40g", "h100", "rtx4090"];

    /// The card with one of the names in [`DeviceSpec::PRESETS`], in any case.
    ///
    /// # Errors
    ///
    /// [`DeviceError::Unknown`] for another name.
    pub fn preset(name: &str) -> Result<DeviceSpec, DeviceError> {
        Ok(match name.to_ascii_lowercase().as_str() {
            "a100-80g" => DeviceSpec::default(),
            "a100-40g" => a100("40GB", 1_215_000, 42_505_273_344),
            "h100" => h100(),
            "rtx4090" => rtx4090(),
            _ => return Err(DeviceError::Unknown(name.into())),
        })
    }

    /// A card from a JSON object: `base` names a preset (the A100 80 GB without it), the other fields replace values
    /// of it, as in `{"base": "h100", "memory_bytes": 1073741824}`.
    ///
    /// # Errors
    ///
    /// When the text is no such object, names a field that does not exist, or a value makes no sense.
    pub fn from_json(text: &str) -> Result<DeviceSpec, DeviceError> {
        let mut changes: serde_json::Map<String, serde_json::Value> = serde_json::from_str(text)?;
        let base = match changes.remove("base") {
            Some(serde_json::Value::String(name)) => DeviceSpec::preset(&name)?,
            Some(other) => return Err(DeviceError::Unknown(other.to_string())),
            None => DeviceSpec::default(),
        };
        let mut value = serde_json::to_value(base)?;
        if let Some(fields) = value.as_object_mut() {
            fields.extend(changes);
        }
        let spec: DeviceSpec = serde_json::from_value(value)?;
        spec.check()?;
        Ok(spec)
    }

    fn check(&self) -> Result<(), DeviceError> {
        let in_range = |field, value, min, max| {
            if (min..=max).contains(&value) {
                Ok(())
            } else {
                Err(DeviceError::OutOfRange { field, value, min, max })
            }
        };
        in_range("compute_capability", u64::from(self.compute_capability[0]), 8, 9)?;
        in_range("memory_bytes", self.memory_bytes, 1 << 20, 1 << 40)?;
        in_range("l2_bytes", self.l2_bytes, 1 << 16, 1 << 32)?;
        in_range("max_threads_per_sm", u64::from(self.max_threads_per_sm), 1024, 2048)?;
        in_range("shared_bytes_per_cta_optin", self.shared_bytes_per_cta_optin.into(), 48 << 10, 1 << 20)?;
        for (field, value, max) in [
            ("sms", self.sms, 1 << 12),
            ("clock_khz", self.clock_khz, 10_000_000),
            ("memory_clock_khz", self.memory_clock_khz, 100_000_000),
            ("memory_bus_bits", self.memory_bus_bits, 1 << 16),
            ("max_ctas_per_sm", self.max_ctas_per_sm, 64),
            ("registers_per_sm", self.registers_per_sm, 1 << 20),
            ("shared_bytes_per_sm", self.shared_bytes_per_sm, 1 << 20),
            ("mma_f16_macs_per_clock", self.mma_f16_macs_per_clock, 1 << 16),
            ("fp32_lanes", self.fp32_lanes, 1 << 12),
            ("int32_lanes", self.int32_lanes, 1 << 12),
            ("fp64_lanes", self.fp64_lanes, 1 << 12),
            ("half2_lanes", self.half2_lanes, 1 << 12),
            ("l2_bytes_per_clock", self.l2_bytes_per_clock, 1 << 20),
        ] {
            in_range(field, value.into(), 1, max)?;
        }
        Ok(())
    }

    /// Peak bandwidth of device memory in bytes per second: two transfers per clock over the whole bus.
    pub fn dram_bytes_per_second(&self) -> f64 {
        f64::from(self.memory_clock_khz) * 1e3 * 2.0 * f64::from(self.memory_bus_bits) / 8.0
    }

    /// SM clock in Hz.
    pub fn clock_hz(&self) -> f64 {
        f64::from(self.clock_khz) * 1e3
    }

    /// Peak of dense f16 and bf16 through `mma.sync` in FLOP/s.
    pub fn tensor_flops(&self) -> f64 {
        2.0 * f64::from(self.mma_f16_macs_per_clock) * f64::from(self.sms) * self.clock_hz()
    }

    /// Shared memory of one CTA without opting in.
    pub fn shared_bytes_per_cta(&self) -> u32 {
        48 << 10
    }

    /// Warps that fit on one SM.
    pub fn max_warps_per_sm(&self) -> u32 {
        self.max_threads_per_sm / WARP_SIZE
    }
}

fn a100(size: &str, memory_clock_khz: u32, memory_bytes: u64) -> DeviceSpec {
    DeviceSpec {
        name: format!("NVIDIA A100-SXM4-{size} (simulated)"),
        compute_capability: [8, 0],
        sms: 108,
        clock_khz: 1_410_000,
        memory_clock_khz,
        memory_bus_bits: 5120,
        memory_bytes,
        l2_bytes: 40 << 20,
        max_threads_per_sm: 2048,
        max_ctas_per_sm: 32,
        registers_per_sm: 65536,
        shared_bytes_per_sm: 164 << 10,
        shared_bytes_per_cta_optin: 163 << 10,
        mma_f16_macs_per_clock: 1024,
        fp32_lanes: 64,
        int32_lanes: 64,
        fp64_lanes: 32,
        half2_lanes: 128,
        l2_bytes_per_clock: 5120,
    }
}

fn h100() -> DeviceSpec {
    DeviceSpec {
        name: "NVIDIA H100 80GB HBM3 (simulated)".into(),
        compute_capability: [9, 0],
        sms: 132,
        clock_khz: 1_830_000,
        memory_clock_khz: 2_619_000,
        memory_bus_bits: 5120,
        memory_bytes: 85_029_158_912,
        l2_bytes: 50 << 20,
        max_threads_per_sm: 2048,
        max_ctas_per_sm: 32,
        registers_per_sm: 65536,
        shared_bytes_per_sm: 228 << 10,
        shared_bytes_per_cta_optin: 227 << 10,
        // 2048 through wgmma; mma.sync reaches about 62 % of that.
        mma_f16_macs_per_clock: 1270,
        fp32_lanes: 128,
        int32_lanes: 64,
        fp64_lanes: 64,
        half2_lanes: 128,
        l2_bytes_per_clock: 5120,
    }
}

fn rtx4090() -> DeviceSpec {
    DeviceSpec {
        name: "NVIDIA GeForce RTX 4090 (simulated)".into(),
        compute_capability: [8, 9],
        sms: 128,
        clock_khz: 2_520_000,
        memory_clock_khz: 10_501_000,
        memory_bus_bits: 384,
        memory_bytes: 25_386_352_640,
        l2_bytes: 72 << 20,
        max_threads_per_sm: 1536,
        max_ctas_per_sm: 24,
        registers_per_sm: 65536,
        shared_bytes_per_sm: 100 << 10,
        shared_bytes_per_cta_optin: 99 << 10,
        mma_f16_macs_per_clock: 256,
        fp32_lanes: 128,
        int32_lanes: 64,
        fp64_lanes: 2,
        half2_lanes: 128,
        l2_bytes_per_clock: 2048,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bandwidth_and_peak_are_those_of_the_data_sheets() {
        for (name, gb_per_s, tflops) in [
            ("a100-80g", 2039.0, 312.0),
            ("a100-40g", 1555.0, 312.0),
            ("h100", 3352.0, 613.0),
            ("rtx4090", 1008.0, 165.2),
        ] {
            let d = DeviceSpec::preset(name).unwrap();
            assert!((d.dram_bytes_per_second() / 1e9 - gb_per_s).abs() < 1.0, "{name}");
            assert!((d.tensor_flops() / 1e12 - tflops).abs() < 1.0, "{name}: {}", d.tensor_flops() / 1e12);
            assert!(d.name.contains("simulated"));
            d.check().unwrap();
        }
    }

    #[test]
    fn a_description_changes_a_preset() {
        let d = DeviceSpec::from_json(r#"{"base": "H100", "sms": 114, "memory_bytes": 2097152}"#).unwrap();
        assert_eq!((d.sms, d.memory_bytes, d.compute_capability), (114, 2 << 20, [9, 0]));
        assert_eq!(DeviceSpec::from_json("{}").unwrap(), DeviceSpec::default());
    }

    #[test]
    fn senseless_descriptions_are_refused() {
        for (text, reason) in [
            ("", "EOF"),
            ("[]", "expected a map"),
            (r#"{"base": "gtx1"}"#, "known are a100-80g"),
            (r#"{"base": 3}"#, "no device"),
            (r#"{"smz": 1}"#, "unknown field"),
            (r#"{"sms": 0}"#, "sms is 0"),
            (r#"{"sms": "many"}"#, "invalid type"),
            (r#"{"memory_bytes": 18446744073709551615}"#, "memory_bytes"),
            (r#"{"compute_capability": [7, 0]}"#, "compute_capability"),
        ] {
            let error = DeviceSpec::from_json(text).unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }
}
