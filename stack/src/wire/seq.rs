//! Sequence numbers modulo 2^32 (RFC 9293 section 3.4). Differences are signed and never panic, since the guest chooses
//! the numbers.

use std::fmt;

/// A TCP sequence number.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Seq(pub u32);

impl Seq {
    /// `self - other` as the signed distance on the circle of 2^32 numbers.
    pub(crate) fn diff(self, other: Self) -> i32 {
        self.0.wrapping_sub(other.0).cast_signed()
    }

    pub(crate) fn lt(self, other: Self) -> bool {
        self.diff(other) < 0
    }

    pub(crate) fn le(self, other: Self) -> bool {
        self.diff(other) <= 0
    }

    pub(crate) fn gt(self, other: Self) -> bool {
        self.diff(other) > 0
    }

    pub(crate) fn ge(self, other: Self) -> bool {
        self.diff(other) >= 0
    }

    /// The later of both.
    pub(crate) fn max(self, other: Self) -> Self {
        if self.ge(other) { self } else { other }
    }
}

impl std::ops::Add<u32> for Seq {
    type Output = Self;
    fn add(self, n: u32) -> Self {
        Self(self.0.wrapping_add(n))
    }
}

impl std::ops::Sub<u32> for Seq {
    type Output = Self;
    fn sub(self, n: u32) -> Self {
        Self(self.0.wrapping_sub(n))
    }
}

impl fmt::Debug for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::Seq;

    #[test]
    fn order_wraps() {
        let a = Seq(u32::MAX - 1);
        assert!(a.lt(a + 5) && (a + 5).gt(a) && a.le(a) && a.ge(a));
        assert_eq!((a + 5).diff(a), 5);
        assert_eq!(a.max(a + 5), a + 5);
    }
}
