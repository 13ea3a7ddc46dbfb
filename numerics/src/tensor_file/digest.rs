//! A checksum over a whole tensor file, in the file's own header.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use candle_core::Tensor;
use sha2::{Digest, Sha256};

use super::read::TensorFile;
use super::write::Layout;
use crate::{Error, Result, atomic, hex};

/// Entry of the metadata that holds the checksum: SHA-256 in hexadecimal digits over all bytes of the file, with a `0`
/// in the place of each of these digits.
pub const CHECKSUM: &str = "catelier.sha256";

/// Hexadecimal digits of a SHA-256 sum.
const DIGITS: usize = 64;

/// Whether a file is as it was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checksum {
    /// The file has no checksum.
    Absent,
    /// Every byte is as it was written.
    Holds,
    /// Some byte is not.
    Differs,
}

/// As [`write()`](super::write()), with the entry [`CHECKSUM`] added to the metadata.
///
/// # Errors
/// As for [`write()`](super::write()).
pub fn write_checked(
    path: impl AsRef<Path>,
    tensors: &BTreeMap<String, Tensor>,
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    let (path, layout) = (path.as_ref(), Layout::of(tensors)?);
    let metadata = with_checksum(path, &layout, metadata)?;
    atomic::write(path, |out| layout.write(&metadata, out))
}

/// The bytes of the file that [`write_checked`] writes.
///
/// # Errors
/// As for [`write_to`](super::write_to).
pub fn to_checked_bytes(tensors: &BTreeMap<String, Tensor>, metadata: &BTreeMap<String, String>) -> Result<Vec<u8>> {
    let (path, layout) = (Path::new("bytes in memory"), Layout::of(tensors)?);
    let metadata = with_checksum(path, &layout, metadata)?;
    let mut bytes = Vec::new();
    layout.write(&metadata, &mut bytes).map_err(|source| Error::Write { path: path.to_path_buf(), source })?;
    Ok(bytes)
}

/// The metadata with the checksum of the file that has them.
fn with_checksum(
    path: &Path,
    layout: &Layout<'_>,
    metadata: &BTreeMap<String, String>,
) -> Result<BTreeMap<String, String>> {
    let mut metadata = metadata.clone();
    metadata.insert(CHECKSUM.into(), "0".repeat(DIGITS));
    let mut sum = Sha256::new();
    layout.write(&metadata, &mut sum).map_err(|source| Error::Write { path: path.to_path_buf(), source })?;
    metadata.insert(CHECKSUM.into(), hex::encode(sum.finalize()));
    Ok(metadata)
}

impl TensorFile {
    /// Compares the whole file with its checksum.
    ///
    /// # Errors
    /// [`FileError::Io`](super::FileError::Io), [`FileError::Truncated`](super::FileError::Truncated).
    pub fn checksum(&self) -> Result<Checksum> {
        match self.metadata().get(CHECKSUM) {
            Some(_) => self.checksum_with(|_| {}),
            None => Ok(Checksum::Absent),
        }
    }

    /// As [`checksum`](Self::checksum); `take` gets the bytes after the header, so that they are read once for both.
    ///
    /// # Errors
    /// Those of [`checksum`](Self::checksum).
    pub fn checksum_with(&self, mut take: impl FnMut(&[u8])) -> Result<Checksum> {
        let stated = self.metadata().get(CHECKSUM);
        let mut sum = match stated {
            Some(stated) => self.sum_of_beginning(stated)?,
            None => None,
        };
        self.each_data_chunk(|bytes| {
            take(bytes);
            sum.iter_mut().for_each(|sum| sum.update(bytes));
        })?;
        let found = sum.map(|sum| hex::encode(sum.finalize()));
        Ok(match stated {
            None => Checksum::Absent,
            Some(stated) if found.as_ref() == Some(stated) => Checksum::Holds,
            Some(_) => Checksum::Differs,
        })
    }

    /// The sum of the header without the checksum `stated` in it; `None` if the header is not as it was written.
    fn sum_of_beginning(&self, stated: &str) -> Result<Option<Sha256>> {
        let mut beginning = self.beginning()?;
        let Some(digits) = place_of(stated, &beginning) else { return Ok(None) };
        beginning[digits].fill(b'0');
        Ok(Some(Sha256::new().chain_update(beginning)))
    }
}

/// Where the digits of the checksum `stated` stand; `None` if the header is not as it was written.
fn place_of(stated: &str, beginning: &[u8]) -> Option<Range<usize>> {
    let entry = format!("\"{CHECKSUM}\":\"{stated}\"");
    let place = beginning.windows(entry.len()).position(|window| window == entry.as_bytes())?;
    let end = place + entry.len() - 1;
    (stated.len() == DIGITS).then(|| end - DIGITS..end)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::tensor_file::to_bytes;

    fn written(values: &[f32]) -> Vec<u8> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.safetensors");
        let tensors = BTreeMap::from([("w".to_owned(), Tensor::new(values, &Device::Cpu).unwrap())]);
        let metadata = BTreeMap::from([("step".to_owned(), "12".to_owned()), ("z".to_owned(), "é\"".to_owned())]);
        write_checked(&path, &tensors, &metadata).unwrap();
        std::fs::read(path).unwrap()
    }

    fn checksum(bytes: Vec<u8>) -> Option<Checksum> {
        TensorFile::from_bytes("state", bytes).ok().map(|file| file.checksum().unwrap())
    }

    #[test]
    fn a_file_holds_its_checksum_and_every_flipped_bit_breaks_it() {
        let whole = written(&[1.0, -2.5]);
        assert_eq!(checksum(whole.clone()), Some(Checksum::Holds));
        for bit in 0..whole.len() * 8 {
            let mut flipped = whole.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let found = checksum(flipped);
            // A flip in the entry's own name leaves a file without a checksum, which its reader refuses.
            assert_ne!(found, Some(Checksum::Holds), "bit {bit}");
        }
    }

    #[test]
    fn bytes_in_memory_are_those_of_the_file() {
        let tensors = BTreeMap::from([("w".to_owned(), Tensor::new(&[1.0_f32, -2.5], &Device::Cpu).unwrap())]);
        let metadata = BTreeMap::from([("step".to_owned(), "12".to_owned()), ("z".to_owned(), "é\"".to_owned())]);
        assert_eq!(to_checked_bytes(&tensors, &metadata).unwrap(), written(&[1.0, -2.5]));
    }

    #[test]
    fn equal_content_has_equal_bytes_and_other_values_another_sum() {
        assert_eq!(written(&[1.0]), written(&[1.0]));
        let sum = |values: &[f32]| TensorFile::from_bytes("x", written(values)).unwrap().metadata()[CHECKSUM].clone();
        assert_ne!(sum(&[1.0]), sum(&[-1.0]));
        assert_eq!(sum(&[1.0]).len(), DIGITS);
    }

    #[test]
    fn files_without_a_checksum_and_with_an_odd_one_are_told_apart() {
        let with = |value: Option<&str>| {
            let metadata = value.map(|value| (CHECKSUM.to_owned(), value.to_owned())).into_iter().collect();
            checksum(to_bytes(&BTreeMap::new(), &metadata).unwrap()).unwrap()
        };
        assert_eq!(with(None), Checksum::Absent);
        for odd in ["", "0", &"0".repeat(DIGITS), &"é".repeat(DIGITS), &"f".repeat(DIGITS + 1)] {
            assert_eq!(with(Some(odd)), Checksum::Differs, "{odd}");
        }
    }
}
