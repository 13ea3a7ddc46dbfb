//! Hashes that identify an adapter independently of its header.

use std::collections::BTreeMap;
use std::io::{self, Write};

use candle_core::Tensor;
use catelier_numerics::tensor_file::{self, Checksum, TensorFile};
use catelier_numerics::{Result, hex};
use sha2::{Digest, Sha256};

/// Entry of the header with [`Hashes::payload`], in the vocabulary of kohya's trainers.
pub(crate) const MODEL_HASH: &str = "sshs_model_hash";

/// Whether a file is as it was written, by the hashes in its header: our checksum over the whole file, and the hash of
/// the tensors alone that kohya's trainers write too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Integrity {
    /// The header has no hash.
    Unknown,
    /// The checksum over the whole file holds; if the file has none, the hash of its tensors does.
    Holds,
    /// The tensors are as they were written; the rest of the header was changed, as editors of metadata do.
    HeaderChanged,
    /// The tensors are not those of the hash in the header: the file is damaged, or a tool changed them and kept the header.
    TensorsChanged,
    /// This program wrote the file, and neither of its hashes holds.
    Damaged,
}

impl Integrity {
    /// By the checksum, and by whether the tensors have the hash in the header.
    fn of(checksum: Checksum, is_same: Option<bool>) -> Self {
        match (checksum, is_same) {
            (Checksum::Holds, _) | (Checksum::Absent, Some(true)) => Self::Holds,
            (Checksum::Absent, None) => Self::Unknown,
            (Checksum::Absent, Some(false)) => Self::TensorsChanged,
            (Checksum::Differs, Some(true)) => Self::HeaderChanged,
            (Checksum::Differs, _) => Self::Damaged,
        }
    }

    /// What a person should know about the file, if anything.
    pub fn remark(self) -> Option<&'static str> {
        match self {
            Self::Unknown | Self::Holds => None,
            Self::HeaderChanged => Some("its header was changed after it was written; its tensors were not"),
            Self::TensorsChanged => Some(
                "its tensors are not those of the hash in its header: it is damaged, or a tool changed them and kept the hash",
            ),
            Self::Damaged => Some("it is damaged: its checksum does not hold"),
        }
    }
}

/// Number of bytes of the length field in front of a safetensors header.
const LENGTH_BYTES: u64 = 8;

/// The range of the file, in bytes, that the legacy hash covers.
const LEGACY_WINDOW: std::ops::Range<u64> = 0x10_0000..0x11_0000;

/// The hashes of a file that is never held in memory as a whole.
#[derive(Debug, Default)]
pub(crate) struct Hashes {
    /// Bytes seen so far.
    at: u64,
    length: [u8; LENGTH_BYTES as usize],
    payload: Sha256,
    legacy: Sha256,
}

impl Hashes {
    /// The hashes of the file that holds these tensors and this metadata.
    pub(crate) fn of(tensors: &BTreeMap<String, Tensor>, metadata: &BTreeMap<String, String>) -> Result<Self> {
        let mut hashes = Self::default();
        tensor_file::write_to(&mut hashes, tensors, metadata)?;
        Ok(hashes)
    }

    /// SHA-256 of the bytes after the header, 64 hex digits: `sshs_model_hash`.
    pub(crate) fn payload(&self) -> String {
        hex::encode(self.payload.clone().finalize())
    }

    /// The first eight digits of the SHA-256 of 64 KiB at offset 1 MiB: `sshs_legacy_hash`. Files of 1 MiB or less all
    /// have the hash of no bytes, `e3b0c442`.
    pub(crate) fn legacy(&self) -> String {
        hex::encode(&self.legacy.clone().finalize()[..4])
    }

    fn add(&mut self, bytes: &[u8]) {
        let start = self.at;
        self.at += bytes.len() as u64;
        let from = |position: u64| (position.saturating_sub(start) as usize).min(bytes.len());
        let length = &bytes[..from(LENGTH_BYTES)];
        let known = start.min(LENGTH_BYTES) as usize;
        self.length[known..known + length.len()].copy_from_slice(length);
        let header_end = u64::from_le_bytes(self.length).saturating_add(LENGTH_BYTES);
        self.payload.update(&bytes[if self.at < LENGTH_BYTES { bytes.len() } else { from(header_end) }..]);
        self.legacy.update(&bytes[from(LEGACY_WINDOW.start)..from(LEGACY_WINDOW.end)]);
    }
}

impl Write for Hashes {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.add(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// [`Hashes::payload`] of a file on disk, and whether the file is as it was written.
pub(crate) fn payload_hash(file: &TensorFile) -> Result<(String, Integrity)> {
    let mut hash = Sha256::new();
    let checksum = file.checksum_with(|bytes| hash.update(bytes))?;
    let hash = hex::encode(hash.finalize());
    let is_same = file.metadata().get(MODEL_HASH).map(|stated| stated.eq_ignore_ascii_case(&hash));
    Ok((hash, Integrity::of(checksum, is_same)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    /// The hashes of a file that is written in pieces of `piece` bytes.
    fn hashes(file: &[u8], piece: usize) -> Hashes {
        let mut hashes = Hashes::default();
        file.chunks(piece).for_each(|piece| hashes.write_all(piece).unwrap());
        hashes
    }

    fn file(header: &[u8], data: &[u8]) -> Vec<u8> {
        [&(header.len() as u64).to_le_bytes(), header, data].concat()
    }

    #[test]
    fn the_payload_hash_leaves_the_header_out() {
        for piece in [1, 3, 7, 100] {
            let hash = hashes(&file(b"{}", b"abc"), piece).payload();
            assert_eq!(hash, hashes(&file(b"{\"a\": 1}", b"abc"), piece).payload());
            assert!(hash.starts_with("ba7816bf"), "{hash}");
        }
        let bytes = file(b"{\"x\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[0,3]}}", b"abc");
        assert!(payload_hash(&TensorFile::from_bytes("x", bytes).unwrap()).unwrap().0.starts_with("ba7816bf"));
    }

    #[test]
    fn small_files_have_the_hash_of_nothing() {
        assert_eq!(hashes(b"", 1).payload(), NOTHING);
        assert_eq!(hashes(&file(b"{}", b""), 4).payload(), NOTHING);
        assert_eq!(hashes(b"small", 2).legacy(), NOTHING[..8]);
    }

    #[test]
    fn the_legacy_hash_sees_its_window_alone() {
        let mut file = vec![0; 0x12_0000];
        let legacy = |file: &[u8], piece| hashes(file, piece).legacy();
        let hash = legacy(&file, file.len());
        assert_eq!(legacy(&file, 1000), hash);
        file[0x11_0000] = 1;
        assert_eq!(legacy(&file, 1000), hash);
        file[0x10_ffff] = 1;
        assert_ne!(legacy(&file, 1000), hash);
        assert_eq!(legacy(&file, 1000), legacy(&file, file.len()));
    }
}
