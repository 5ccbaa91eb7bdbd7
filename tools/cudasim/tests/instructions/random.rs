//! Reproducible inputs.

/// Reproducible random numbers (xorshift64*).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn u64(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn u32(&mut self) -> u32 {
        (self.u64() >> 32) as u32
    }

    pub fn below(&mut self, n: u32) -> u32 {
        ((u64::from(self.u32()) * u64::from(n)) >> 32) as u32
    }

    /// Half of the time any bit pattern, else a number near others in magnitude.
    pub fn f32(&mut self) -> f32 {
        let bits = self.u32();
        match self.below(4) {
            0 | 1 => f32::from_bits(bits),
            2 => f32::from_bits(bits & 0x807f_ffff | (120 + self.below(16)) << 23),
            _ => f32::from_bits(EDGES32[self.below(EDGES32.len() as u32) as usize]),
        }
    }

    pub fn f64(&mut self) -> f64 {
        let bits = self.u64();
        match self.below(4) {
            0 | 1 => f64::from_bits(bits),
            2 => f64::from_bits(bits & 0x800f_ffff_ffff_ffff | u64::from(1016 + self.below(16)) << 52),
            _ => f64::from_bits(EDGES64[self.below(EDGES64.len() as u32) as usize]),
        }
    }

    /// Any pattern, small numbers and edges of a signed or unsigned integer of `bits` bits.
    pub fn integer(&mut self, bits: u32) -> u64 {
        let mask = if bits == 64 { u64::MAX } else { (1 << bits) - 1 };
        let value = match self.below(6) {
            0 => u64::from(self.below(8)),
            1 => u64::from(self.below(8)).wrapping_neg(),
            2 => (1u64 << (bits - 1)).wrapping_add(u64::from(self.below(3))).wrapping_sub(1),
            3 => 1 << self.below(bits),
            4 => self.u64() & ((1u64 << self.below(bits)) - 1),
            _ => self.u64(),
        };
        value & mask
    }
}

/// Bit patterns of f32 where something changes: zeros, denormals, one, halves, largest, infinities, NaNs.
pub const EDGES32: [u32; 26] = [
    0,
    0x8000_0000,
    1,
    0x8000_0001,
    0x007f_ffff,
    0x807f_ffff,
    0x0080_0000,
    0x8080_0000,
    0x0080_0001,
    0x3f80_0000,
    0xbf80_0000,
    0x3f7f_ffff,
    0x3f80_0001,
    0x3f00_0000,
    0xbf00_0000,
    0x3fc0_0000,
    0x4020_0000,
    0x4b00_0000,
    0x4b7f_ffff,
    0x7f7f_ffff,
    0xff7f_ffff,
    0x7f80_0000,
    0xff80_0000,
    0x7fc0_0000,
    0xffc0_0001,
    0x7f80_0001,
];

/// The same for f64.
pub const EDGES64: [u64; 18] = [
    0,
    1 << 63,
    1,
    0x8000_0000_0000_0001,
    0x000f_ffff_ffff_ffff,
    0x0010_0000_0000_0000,
    0x8010_0000_0000_0000,
    0x3ff0_0000_0000_0000,
    0xbff0_0000_0000_0000,
    0x3fef_ffff_ffff_ffff,
    0x3fe0_0000_0000_0000,
    0x4330_0000_0000_0000,
    0x7fef_ffff_ffff_ffff,
    0xffef_ffff_ffff_ffff,
    0x7ff0_0000_0000_0000,
    0xfff0_0000_0000_0000,
    0x7ff8_0000_0000_0000,
    0x7ff0_0000_0000_0001,
];
