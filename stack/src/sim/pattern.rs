//! The bytes of every simulated stream: a function of (stream, position), so that either end can make or check any
//! part of it without storing it.
//!
//! Every byte that arrives is compared with the byte expected at its position, which is stronger than a hash over the
//! stream: the first wrong byte is named. The table's length is prime, so that no power-of-two ring, chunk or segment
//! size can turn a misplaced block into an accidental match.

use std::sync::OnceLock;

use super::rng::Rng;

const PERIOD: usize = 65_521;

fn table() -> &'static [u8] {
    static TABLE: OnceLock<Vec<u8>> = OnceLock::new();
    TABLE.get_or_init(|| {
        let mut rng = Rng::new(0x5ee_d0f7);
        let mut one: Vec<u8> = (0..PERIOD).map(|_| (rng.next_u64() >> 24) as u8).collect();
        // Twice in a row: any PERIOD bytes from any start are one slice.
        one.extend_from_within(..);
        one
    })
}

/// One direction of one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pattern {
    start: usize,
}

impl Pattern {
    pub fn new(stream: u64) -> Self {
        Self { start: (stream.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 16) as usize % PERIOD }
    }

    /// What the guest sends to the server on `port`. Servers tell streams apart by port only, hence one port a
    /// connection wherever a mix-up between connections must be seen.
    pub fn from_guest(port: u16) -> Self {
        Self::new(u64::from(port) << 1)
    }

    /// What the server on `port` sends to the guest.
    pub fn from_host(port: u16) -> Self {
        Self::new(u64::from(port) << 1 | 1)
    }

    pub fn fill(self, position: u64, out: &mut [u8]) {
        self.pieces(position, out.len(), |at, piece| {
            out[at..at + piece.len()].copy_from_slice(piece);
            true
        });
    }

    /// Position of the first byte that is not what it should be.
    pub fn check(self, position: u64, data: &[u8]) -> Result<(), u64> {
        let mut wrong = None;
        self.pieces(position, data.len(), |at, piece| {
            let got = &data[at..at + piece.len()];
            if got != piece {
                let off = got.iter().zip(piece).take_while(|(a, b)| a == b).count();
                wrong = Some(position + (at + off) as u64);
            }
            wrong.is_none()
        });
        wrong.map_or(Ok(()), Err)
    }

    fn pieces(self, position: u64, len: usize, mut f: impl FnMut(usize, &'static [u8]) -> bool) {
        let mut at = 0;
        while at < len {
            let from = ((position + at as u64) % PERIOD as u64) as usize + self.start;
            let n = (len - at).min(PERIOD.min(2 * PERIOD - from));
            if !f(at, &table()[from..from + n]) {
                return;
            }
            at += n;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_the_same_however_it_is_cut() {
        let p = Pattern::from_guest(80);
        let mut whole = vec![0; 200_000];
        p.fill(12_345, &mut whole);
        let mut at = 0;
        for n in [1usize, 1459, 65_521, 70_000, 13] {
            let mut part = vec![0; n];
            p.fill(12_345 + at as u64, &mut part);
            assert_eq!(part, whole[at..at + n]);
            at += n;
        }
        assert_eq!(p.check(12_345, &whole), Ok(()));
    }

    #[test]
    fn the_first_wrong_byte_is_named() {
        let p = Pattern::from_host(80);
        let mut data = vec![0; 150_000];
        p.fill(10, &mut data);
        data[140_000] ^= 1;
        data[149_000] ^= 1;
        assert_eq!(p.check(10, &data), Err(140_010));
    }

    #[test]
    fn a_shift_by_one_or_by_a_page_is_seen() {
        let p = Pattern::from_guest(80);
        let mut data = vec![0; 4096];
        p.fill(0, &mut data);
        for shift in [1, 4032, 4096, 65_536] {
            assert!(p.check(shift, &data).is_err(), "{shift}");
        }
        assert!(Pattern::from_guest(81).check(0, &data).is_err());
        assert!(Pattern::from_host(80).check(0, &data).is_err());
    }
}
