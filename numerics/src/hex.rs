//! Bytes as hexadecimal digits.

/// Two lower-case hexadecimal digits for each byte: a SHA-256 sum becomes 64 digits.
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
