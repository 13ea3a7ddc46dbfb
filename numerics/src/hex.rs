//! Bytes as text.

/// `bytes` as two lower-case hexadecimal digits each: a SHA-256 sum becomes 64 digits.
pub fn encode(bytes: impl AsRef<[u8]>) -> String {
    bytes.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_byte_has_two_digits() {
        assert_eq!(super::encode([0x00, 0x0a, 0xff, 0x5c]), "000aff5c");
        assert_eq!(super::encode([]), "");
    }
}
