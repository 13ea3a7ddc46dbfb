//! Hashes that identify an adapter independently of its header.

use catelier_numerics::hex;
use sha2::{Digest, Sha256};

/// Number of bytes of the length field in front of a safetensors header.
const LENGTH_BYTES: usize = 8;

/// The range of the file, in bytes, that the legacy hash covers.
const LEGACY_WINDOW: std::ops::Range<usize> = 0x10_0000..0x11_0000;

/// SHA-256 of the bytes after the header, 64 hex digits: `sshs_model_hash`.
pub(crate) fn payload_hash(file: &[u8]) -> String {
    let length = file.first_chunk::<LENGTH_BYTES>().map_or(0, |b| u64::from_le_bytes(*b));
    let start = usize::try_from(length).unwrap_or(usize::MAX).saturating_add(LENGTH_BYTES);
    sha256(file.get(start..).unwrap_or_default())
}

/// The first eight digits of the SHA-256 of 64 KiB at offset 1 MiB: `sshs_legacy_hash`. Files of 1 MiB or less all have
/// the hash of no bytes, `e3b0c442`.
pub(crate) fn legacy_hash(file: &[u8]) -> String {
    let end = LEGACY_WINDOW.end.min(file.len());
    let mut digits = sha256(file.get(LEGACY_WINDOW.start..end).unwrap_or_default());
    digits.truncate(8);
    digits
}

fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn the_payload_hash_leaves_the_header_out() {
        let file = |header: &[u8]| {
            let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
            bytes.extend_from_slice(header);
            bytes.extend_from_slice(b"abc");
            bytes
        };
        let hash = payload_hash(&file(b"{}"));
        assert_eq!(hash, payload_hash(&file(b"{\"a\": 1}")));
        assert!(hash.starts_with("ba7816bf"), "{hash}");
    }

    #[test]
    fn small_and_broken_files_have_the_hash_of_nothing() {
        assert_eq!(payload_hash(b""), NOTHING);
        assert_eq!(payload_hash(&[0xff; 20]), NOTHING);
        assert_eq!(legacy_hash(b"small"), NOTHING[..8]);
    }

    #[test]
    fn the_legacy_hash_sees_its_window_alone() {
        let mut file = vec![0; 0x12_0000];
        let hash = legacy_hash(&file);
        file[0x11_0000] = 1;
        assert_eq!(legacy_hash(&file), hash);
        file[0x10_ffff] = 1;
        assert_ne!(legacy_hash(&file), hash);
    }
}
