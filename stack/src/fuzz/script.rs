//! A fuzzer's input, consumed from its front.

/// The remaining bytes of a script. Reads beyond its end return zeros.
#[derive(Debug)]
pub struct Script<'a>(&'a [u8]);

impl<'a> Script<'a> {
    /// A script at its first byte.
    pub fn new(input: &'a [u8]) -> Self {
        Self(input)
    }

    /// True when all bytes were taken.
    pub fn is_over(&self) -> bool {
        self.0.is_empty()
    }

    /// The next byte.
    pub fn u8(&mut self) -> u8 {
        self.bytes(1).first().copied().unwrap_or(0)
    }

    /// The next two bytes, in network order.
    pub fn u16(&mut self) -> u16 {
        u16::from_be_bytes([self.u8(), self.u8()])
    }

    /// The next four bytes, in network order.
    pub fn u32(&mut self) -> u32 {
        u32::from(self.u16()) << 16 | u32::from(self.u16())
    }

    /// Takes at most `n` bytes.
    pub fn bytes(&mut self, n: usize) -> &'a [u8] {
        let (front, rest) = self.0.split_at(n.min(self.0.len()));
        self.0 = rest;
        front
    }

    /// A number in `0..n`, from one byte.
    pub fn below(&mut self, n: u8) -> u8 {
        self.u8() % n
    }

    /// One of the values, by one byte.
    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[usize::from(self.u8()) % of.len()]
    }

    /// A number equal or near to `it`, or any.
    pub fn near(&mut self, it: u32) -> u32 {
        match self.below(8) {
            0..=3 => it,
            4 => it.wrapping_add_signed(i32::from(self.u8().cast_signed())),
            5 | 6 => it.wrapping_add_signed(i32::from(self.u16().cast_signed())),
            _ => self.u32(),
        }
    }
}
