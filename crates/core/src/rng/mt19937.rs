//! The Mersenne Twister (Matsumoto and Nishimura 1998).

const N: usize = 624;
const M: usize = 397;

/// MT19937: 32-bit words with period `2^19937 - 1`.
#[derive(Clone)]
pub struct Mt19937 {
    state: [u32; N],
    next: usize,
}

impl Mt19937 {
    /// Seeded by the authors' 2002 initialisation.
    pub fn new(seed: u32) -> Self {
        let mut state = [seed; N];
        for i in 1..N {
            let previous = state[i - 1];
            state[i] = 1_812_433_253_u32.wrapping_mul(previous ^ (previous >> 30)).wrapping_add(i as u32);
        }
        Self { state, next: N }
    }

    fn twist(&mut self) {
        let s = &mut self.state;
        for i in 0..N {
            let y = (s[i] & 0x8000_0000) | (s[(i + 1) % N] & 0x7fff_ffff);
            s[i] = s[(i + M) % N] ^ (y >> 1) ^ if y & 1 == 1 { 0x9908_b0df } else { 0 };
        }
        self.next = 0;
    }

    /// The next word.
    pub fn next_u32(&mut self) -> u32 {
        if self.next == N {
            self.twist();
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    /// Two words; the first is the high one.
    pub fn next_u64(&mut self) -> u64 {
        let high = u64::from(self.next_u32());
        (high << 32) | u64::from(self.next_u32())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The C++ standard's requirement on `std::mt19937` (rand.predef): from the default seed, 5489, the 10000th word.
    #[test]
    fn ten_thousandth_word() {
        let mut mt = Mt19937::new(5489);
        let word = (0..10_000).map(|_| mt.next_u32()).last();
        assert_eq!(word, Some(4_123_659_995));
    }
}
