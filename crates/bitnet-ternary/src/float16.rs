//! bf16 and f16 to and from f32, bit exact, round to nearest even.
//!
//! Invariant: widening is exact for every bit pattern; narrowing rounds to nearest even and keeps
//! NaN a NaN. Written out (and not taken from a crate) because this crate depends on nothing and
//! the loops must vectorize; the tests compare every one of the 65,536 patterns.

/// Widens a bfloat16 bit pattern; exact.
#[inline(always)]
pub fn bf16_to_f32(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// Narrows to bfloat16, round to nearest even; NaN stays NaN (quiet).
#[inline(always)]
pub fn f32_to_bf16(x: f32) -> u16 {
    let u = x.to_bits();
    if x.is_nan() {
        return ((u >> 16) | 0x40) as u16;
    }
    (u.wrapping_add(0x7fff).wrapping_add((u >> 16) & 1) >> 16) as u16
}

/// Widens an IEEE half bit pattern; exact.
#[inline(always)]
pub fn f16_to_f32(bits: u16) -> f32 {
    // shift exponent and mantissa into place, rebias by one exact multiplication with 2^112
    let magnitude = f32::from_bits(u32::from(bits & 0x7fff) << 13) * f32::from_bits(0x7780_0000);
    let magnitude = if bits & 0x7c00 == 0x7c00 {
        f32::from_bits(0x7f80_0000 | u32::from(bits & 0x3ff) << 13)
    } else {
        magnitude
    };
    f32::from_bits(magnitude.to_bits() | u32::from(bits & 0x8000) << 16)
}

/// Narrows to IEEE half, round to nearest even; overflow gives infinity, NaN stays NaN.
#[inline]
pub fn f32_to_f16(x: f32) -> u16 {
    // every case is computed and one is taken, so that loops over this are vectors
    let a = x.to_bits() & 0x7fff_ffff;
    // below 2^-14: halves are multiples of 2^-24, as are floats from 0.5 on, and the addition rounds
    let small = (f32::from_bits(a) + 0.5)
        .to_bits()
        .wrapping_sub(0.5f32.to_bits());
    // rebias, then round the 13 dropped bits to even; a carry may reach infinity
    let r = a.wrapping_sub(0x3800_0000);
    let normal = r.wrapping_add(0xfff).wrapping_add((r >> 13) & 1) >> 13;
    let nan = 0x7e00 | ((a >> 13) & 0x3ff);
    let below_65536 = if a < 0x3880_0000 { small } else { normal };
    let finite = if a < 0x4780_0000 { below_65536 } else { 0x7c00 };
    let magnitude = if a > 0x7f80_0000 { nan } else { finite };
    ((x.to_bits() >> 16) & 0x8000 | magnitude) as u16
}

/// Whether `x` survives a round trip through IEEE half unchanged (bits).
pub fn f32_is_f16_exact(x: f32) -> bool {
    f16_to_f32(f32_to_f16(x)).to_bits() == x.to_bits()
}

/// Whether `x` survives a round trip through bfloat16 unchanged (bits).
pub fn f32_is_bf16_exact(x: f32) -> bool {
    x.to_bits() & 0xffff == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::every;

    #[test]
    fn every_half_pattern_round_trips_and_is_what_its_fields_say() {
        for bits in (0..=u16::MAX).step_by(every(61)) {
            let x = f16_to_f32(bits);
            let (e, m) = (i32::from(bits >> 10 & 31), f64::from(bits & 1023));
            let sign = if bits >> 15 == 1 { -1.0 } else { 1.0 };
            if e == 31 {
                assert_eq!(x.is_nan(), m != 0.0);
                assert!(x.is_nan() || x == f32::INFINITY * sign as f32);
                continue;
            }
            let want = sign
                * if e == 0 {
                    m * 2f64.powi(-24)
                } else {
                    (1.0 + m / 1024.0) * 2f64.powi(e - 15)
                };
            assert_eq!(f64::from(x), want, "{bits:#06x}");
            assert_eq!(f32_to_f16(x), bits, "{bits:#06x}");
        }
    }

    #[test]
    fn narrowing_rounds_to_nearest_even_at_every_midpoint() {
        for bits in (0..0x7bffu16).step_by(every(61)) {
            let (low, high) = (f16_to_f32(bits), f16_to_f32(bits + 1));
            let mid = (low + high) / 2.0; // exact in f32
            let even = if bits & 1 == 0 { bits } else { bits + 1 };
            assert_eq!(f32_to_f16(mid), even, "{bits:#06x}");
            assert_eq!(
                f32_to_f16(f32::from_bits(mid.to_bits() + 1)),
                bits + 1,
                "{bits:#06x}"
            );
            assert_eq!(
                f32_to_f16(f32::from_bits(mid.to_bits() - 1)),
                bits,
                "{bits:#06x}"
            );
        }
        assert_eq!(f32_to_f16(65519.996), 0x7bff);
        assert_eq!(f32_to_f16(65520.0), 0x7c00);
        assert_eq!(f32_to_f16(f32::from_bits(0x3300_0000)), 0); // 2^-25
        assert_eq!(f32_to_f16(f32::from_bits(0x3300_0001)), 1);
    }

    #[test]
    fn bf16_rounds_to_nearest_even() {
        for bits in (0..0x7f7fu16).chain(0x8000..0xff7f).step_by(every(61)) {
            let x = bf16_to_f32(bits);
            assert_eq!(f32_to_bf16(x), bits);
            let mid = f32::from_bits(x.to_bits() + 0x8000);
            assert_eq!(
                f32_to_bf16(mid),
                if bits & 1 == 0 { bits } else { bits + 1 }
            );
        }
        assert!(bf16_to_f32(f32_to_bf16(f32::NAN)).is_nan());
    }
}
