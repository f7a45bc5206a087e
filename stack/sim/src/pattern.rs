//! The bytes of every simulated stream: a function of stream and position, so that either end can produce or check any
//! part without storing it.
//!
//! Every received byte is compared with the one expected at its position, which is stronger than a hash of the stream
//! because it names the first wrong byte. The table's length is prime, so that no power-of-two ring, chunk or segment
//! size lets a misplaced block match by accident.

use std::sync::OnceLock;

use skbudget_seed::Rng;

const PERIOD: usize = 65_521;

fn table() -> &'static [u8] {
    static TABLE: OnceLock<Vec<u8>> = OnceLock::new();
    TABLE.get_or_init(|| {
        let mut rng = Rng::new(0x5ee_d0f7);
        let mut one: Vec<u8> = (0..PERIOD).map(|_| (rng.next_u64() >> 24) as u8).collect();
        // Stored twice in a row, so that any PERIOD bytes from any start are one slice.
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
    /// The pattern of a stream.
    pub fn new(stream: u64) -> Self {
        Self { start: (stream.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 16) as usize % PERIOD }
    }

    /// The guest's bytes to the server on `port`. Servers distinguish streams by port only, so use one port per
    /// connection where a mix-up between connections must be detected.
    pub fn from_guest(port: u16) -> Self {
        Self::new(u64::from(port) << 1)
    }

    /// The bytes of the server on `port` to the guest.
    pub fn from_host(port: u16) -> Self {
        Self::new(u64::from(port) << 1 | 1)
    }

    /// Writes the stream's bytes from `position` on.
    pub fn fill(self, position: u64, out: &mut [u8]) {
        self.pieces(position, out.len(), |at, piece| {
            out[at..at + piece.len()].copy_from_slice(piece);
            true
        });
    }

    /// Compares `data` with the stream; the error is the position of the first wrong byte.
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
            // At most to the end of the doubled table.
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
