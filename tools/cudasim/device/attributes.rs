//! `cuDeviceGetAttribute`: the numbers of `CUdevice_attribute` in `cuda.h` (CUDA 13.0) and their values.
//!
//! Capabilities that the stand-in does not have (managed memory, virtual memory management, clusters) are
//! reported as absent even where the card has them, so that a program does not try to use them.

use super::{DeviceSpec, WARP_SIZE};

impl DeviceSpec {
    /// The value of an attribute on the device with index `ordinal`; `None` for numbers that `cuda.h` does not define.
    pub fn attribute(&self, attribute: i32, ordinal: u32) -> Option<i32> {
        let [major, minor] = self.compute_capability;
        let value: u32 = match attribute {
            1..=3 => 1024,                    // threads per block, block x and y
            4 => 64,                          // block z
            5 => i32::MAX as u32,             // grid x
            6 | 7 => 65535,                   // grid y and z
            8 => self.shared_bytes_per_cta(), // without opting in
            9 => 64 << 10,                    // constant memory
            10 => WARP_SIZE,
            11 => i32::MAX as u32,            // pitch
            12 | 82 => self.registers_per_sm, // per block, per SM
            13 => self.clock_khz,
            14 | 30 => 512, // texture and surface alignment
            15 => 1,        // copies and kernels overlap
            16 => self.sms,
            17 | 18 => 0, // time-out, integrated
            19 => 1,      // host memory can be mapped
            20 => 0,      // compute mode: default
            21..=29 | 42..=49 | 52..=74 | 77 => self.texture_limit(attribute),
            31 => 1,                                   // concurrent kernels
            32 => u32::from(major != 8 || minor == 0), // ECC: on the data-centre cards
            33 => ordinal + 1,                         // PCI bus
            34 | 50 => 0,                              // PCI device, domain
            35 => 0,                                   // TCC driver (Windows)
            36 => self.memory_clock_khz,
            37 => self.memory_bus_bits,
            38 => u32::try_from(self.l2_bytes).unwrap_or(i32::MAX as u32),
            39 => self.max_threads_per_sm,
            40 => 3,  // copy engines
            41 => 1,  // unified addressing
            51 => 32, // texture pitch alignment
            75 => major,
            76 => minor,
            78 => 1,      // stream priorities
            79 | 80 => 1, // L1 caches global and local memory
            81 => self.shared_bytes_per_sm,
            83 => 0,      // managed memory
            84 | 85 => 0, // multi-GPU board
            86 => 0,      // native atomics over the bus
            87 => self.fp32_lanes / self.fp64_lanes.max(1),
            88 | 89 => 0,                  // pageable, concurrent managed access
            90 => 1,                       // compute pre-emption
            91 => 1,                       // registered host memory keeps its address
            92..=94 | 98 | 122 | 123 => 0, // stream memory operations
            95 => 1,                       // cooperative launch
            96 => 0,                       // cooperative launch over several devices
            97 => self.shared_bytes_per_cta_optin,
            99 => 1,        // host registration
            100..=105 => 0, // host page tables, VMM, shareable handles
            106 => self.max_ctas_per_sm,
            107..=110 => 0, // compression, persisting L2, access windows, RDMA
            111 => super::occupancy::RESERVED_SHARED_BYTES,
            112..=114 => 0, // sparse arrays, read-only registration, semaphores
            115 => 1,       // memory pools: cuMemAllocAsync
            116..=121 => 0, // RDMA, pool handles, clusters, deferred arrays
            124 | 125 => 0, // dma_buf, IPC events
            126 => 1,       // memory synchronisation domains
            127 | 128 => 0, // tensor maps, fabric handles
            129 => 0,       // unified function pointers
            130 => 0,       // NUMA: none
            131 | 134 => return Some(-1),
            132 | 133 => 0, // multicast, MPS
            135..=138 => 0, // CIG, decompression
            139 => match (major, minor) {
                (8, 0) => 0x20b2_10de,
                (8, _) => 0x2684_10de,
                _ => 0x2330_10de,
            },
            140..=147 => 0, // subsystem, host NUMA, host pools
            _ => return None,
        };
        Some(value.min(i32::MAX as u32) as i32)
    }

    /// Limits of textures and surfaces. The stand-in has neither, so that these are the card's, for display.
    fn texture_limit(&self, attribute: i32) -> u32 {
        match attribute {
            21 | 22 | 70 => 131_072, // 1D, 2D width, linear 2D width
            23 => 65_536,
            71 => 65_000,
            24..=26 => 16_384,      // 3D
            27 | 28 | 42 => 32_768, // layered
            29 | 43 => 2048,        // layers
            44 => 1,
            45 | 46 | 73 | 74 | 77 => 32_768,
            47 | 48 => 8192, // alternate 3D
            49 => 32_768,
            52 | 53 | 55 | 56 | 61 | 63 | 64 | 66 | 67 => 32_768,
            54 | 68 => 2046,
            57 => 65_536,
            58..=60 => 16_384,
            62 | 65 => 2048,
            69 => 1 << 28,   // 1D linear
            72 => 2_097_120, // pitch of a linear 2D texture
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_a100_answers_what_device_query_shows() {
        let d = DeviceSpec::default();
        for (attribute, value) in [
            (1, 1024),
            (4, 64),
            (5, 2_147_483_647),
            (7, 65535),
            (8, 49152),
            (10, 32),
            (12, 65536),
            (13, 1_410_000),
            (16, 108),
            (36, 1_593_000),
            (37, 5120),
            (38, 41_943_040),
            (39, 2048),
            (75, 8),
            (76, 0),
            (81, 167_936),
            (82, 65536),
            (87, 2),
            (97, 166_912),
            (106, 32),
            (111, 1024),
            (115, 1),
            (131, -1),
        ] {
            assert_eq!(d.attribute(attribute, 0), Some(value), "attribute {attribute}");
        }
    }

    #[test]
    fn every_attribute_of_the_header_has_a_value_and_no_other() {
        let d = DeviceSpec::default();
        for attribute in 1..=147 {
            assert!(d.attribute(attribute, 7).is_some(), "attribute {attribute}");
        }
        for attribute in [i32::MIN, -1, 0, 148, i32::MAX] {
            assert_eq!(d.attribute(attribute, 0), None);
        }
    }
}
