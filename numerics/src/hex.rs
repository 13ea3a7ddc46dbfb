//! Bytes as hexadecimal digits.

/// Two lower-case hexadecimal digits for each byte: a SHA-256 sum becomes 64 digits.
pub fn encode(bytes: impl AsRef<[u8]>) -> String {
    bytes.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The `N` bytes that [`encode`] made this text of; `None` for any other text, upper-case digits among them.
pub fn decode<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let mut bytes = [0; N];
    if pairs.len() != N || !rest.is_empty() {
        return None;
    }
    for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
        *byte = digit(*high)? << 4 | digit(*low)?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_byte_has_two_digits() {
        assert_eq!(super::encode([0x00, 0x0a, 0xff, 0x5c]), "000aff5c");
        assert_eq!(super::encode([]), "");
    }

    #[test]
    fn what_was_encoded_is_decoded_and_nothing_else_is() {
        let bytes = [0x00, 0x0a, 0xff, 0x5c];
        assert_eq!(super::decode(&super::encode(bytes)), Some(bytes));
        for other in ["", "000aff5", "000aff5c0", "000aff5c00", "000AFF5C", "000aff5g", "+00aff5c", "00é0ff5"] {
            assert_eq!(super::decode::<4>(other), None, "{other}");
        }
    }
}
