//! The weights of one component as stored in files: names, types and shapes from the headers, elements on demand.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use safetensors::Dtype;
use safetensors::tensor::Metadata;

use crate::error::{Error, Result};

/// One tensor of a weights file; only its entry in the file's header has been read.
#[derive(Debug, Clone)]
pub struct StoredTensor {
    /// Its name in the file.
    pub name: String,
    /// Its type in the file.
    pub dtype: Dtype,
    /// Its shape.
    pub shape: Vec<usize>,
    file: Rc<WeightsFile>,
    /// Position of its first element in the file, in bytes.
    offset: u64,
}

/// A safetensors file: eight bytes with the length of the header, the header, and the elements.
#[derive(Debug)]
pub(super) struct WeightsFile {
    /// For messages.
    path: String,
    content: Content,
    bytes: u64,
}

#[derive(Debug)]
enum Content {
    File(PathBuf, File),
    Embedded(&'static [u8]),
}

const LENGTH_BYTES: u64 = 8;
/// The limit of the reference implementation.
const MOST_HEADER_BYTES: u64 = 100_000_000;

impl StoredTensor {
    /// Number of elements.
    pub fn element_count(&self) -> usize {
        self.shape.iter().product()
    }

    /// The bytes of the `elements`, in memory order. Reads nothing else from the file.
    ///
    /// # Errors
    /// [`Error::ReadFile`], and [`Error::UnreadableWeights`] for a range past the last element.
    pub fn read(&self, elements: Range<usize>) -> Result<Vec<u8>> {
        if elements.start > elements.end || elements.end > self.element_count() {
            return Err(self.file.unreadable(format!("`{}` has no elements {elements:?}", self.name)));
        }
        let bits = self.dtype.bitsize();
        let start = self.offset + (elements.start * bits / 8) as u64;
        self.file.read(start, elements.len() * bits / 8)
    }
}

impl WeightsFile {
    /// Opens a file on disk.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let failed = |source| Error::ReadFile { path: path.to_owned(), source };
        let file = File::open(path).map_err(failed)?;
        let bytes = file.metadata().map_err(failed)?.len();
        Ok(Self { path: path.display().to_string(), content: Content::File(path.to_owned(), file), bytes })
    }

    /// Opens a file embedded in the binary.
    pub(super) fn embedded(component: &str, bytes: &'static [u8]) -> Self {
        Self { path: component.into(), content: Content::Embedded(bytes), bytes: bytes.len() as u64 }
    }

    /// The tensors listed in the header.
    pub(super) fn tensors(self) -> Result<Vec<StoredTensor>> {
        let length = self.read(0, LENGTH_BYTES as usize)?;
        let header_bytes = length.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte));
        if header_bytes > MOST_HEADER_BYTES {
            return Err(self.unreadable(format!("its header would have {header_bytes} bytes")));
        }
        let header = self.read(LENGTH_BYTES, header_bytes as usize)?;
        let header: Metadata = serde_json::from_slice(&header).map_err(|error| self.unreadable(error))?;
        let data = LENGTH_BYTES + header_bytes;
        if data + header.data_len() as u64 != self.bytes {
            let expected = data + header.data_len() as u64;
            return Err(self.unreadable(format!("it should have {expected} bytes and has {}", self.bytes)));
        }
        let file = Rc::new(self);
        let stored = |(name, info): (String, &safetensors::tensor::TensorInfo)| StoredTensor {
            name,
            dtype: info.dtype,
            shape: info.shape.clone(),
            file: file.clone(),
            offset: data + info.data_offsets.0 as u64,
        };
        Ok(header.tensors().into_iter().map(stored).collect())
    }

    fn read(&self, start: u64, bytes: usize) -> Result<Vec<u8>> {
        if start + bytes as u64 > self.bytes {
            return Err(self.unreadable("it is cut short"));
        }
        match &self.content {
            Content::Embedded(file) => Ok(file[start as usize..][..bytes].to_vec()),
            Content::File(path, file) => {
                read_at(file, start, bytes).map_err(|source| Error::ReadFile { path: path.clone(), source })
            }
        }
    }

    fn unreadable(&self, problem: impl std::fmt::Display) -> Error {
        Error::UnreadableWeights { path: self.path.clone(), source: candle_core::Error::msg(problem) }
    }
}

fn read_at(mut file: &File, start: u64, bytes: usize) -> std::io::Result<Vec<u8>> {
    let mut content = vec![0; bytes];
    file.seek(SeekFrom::Start(start))?;
    file.read_exact(&mut content)?;
    Ok(content)
}
