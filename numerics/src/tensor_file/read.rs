//! Reading tensor files.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use memmap2::Mmap;

use super::header::{Entry, FileError, Header};
use crate::{Error, Result};

/// Files of at least this size are mapped into memory instead of read.
const MAP_FROM_BYTES: u64 = 16 << 20;

/// An open tensor file whose header has been checked completely.
#[derive(Debug)]
pub struct TensorFile {
    name: String,
    bytes: Bytes,
    header: Header,
}

#[derive(Debug)]
enum Bytes {
    Owned(Vec<u8>),
    Mapped(Mmap),
}

impl Bytes {
    fn as_slice(&self) -> &[u8] {
        match self {
            Self::Owned(bytes) => bytes,
            Self::Mapped(map) => map,
        }
    }
}

impl TensorFile {
    /// Opens a file; a large file is mapped, so that only the requested tensors are read.
    ///
    /// # Errors
    /// [`Error::TensorFile`] with the path and a [`FileError`] as its cause.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let name = path.display().to_string();
        match load(path) {
            Ok(bytes) => Self::parse(name, bytes),
            Err(source) => Err(Error::TensorFile { name, source }),
        }
    }

    /// Checks a file that is already in memory; error messages use `name`.
    ///
    /// # Errors
    /// As for [`TensorFile::open`].
    pub fn from_bytes(name: impl Into<String>, bytes: Vec<u8>) -> Result<Self> {
        Self::parse(name.into(), Bytes::Owned(bytes))
    }

    fn parse(name: String, bytes: Bytes) -> Result<Self> {
        match Header::parse(bytes.as_slice()) {
            Ok(header) => Ok(Self { name, bytes, header }),
            Err(source) => Err(Error::TensorFile { name, source }),
        }
    }

    /// The whole file, header included.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.as_slice()
    }

    /// Names of all tensors, sorted.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.header.entries.keys().map(String::as_str)
    }

    /// Whether the file has a tensor of that name.
    pub fn contains(&self, name: &str) -> bool {
        self.header.entries.contains_key(name)
    }

    /// Shape of a tensor.
    ///
    /// # Errors
    /// [`FileError::NoSuchTensor`].
    pub fn shape(&self, name: &str) -> Result<&[usize]> {
        Ok(&self.entry(name)?.shape)
    }

    /// Element type of a tensor; `BOOL` reads as `U8`.
    ///
    /// # Errors
    /// [`FileError::NoSuchTensor`], [`FileError::Unsupported`].
    pub fn dtype(&self, name: &str) -> Result<DType> {
        let entry = self.entry(name)?;
        entry.element.dtype.ok_or_else(|| self.unsupported(name, entry))
    }

    /// Copies a tensor to `device`, in the element type of the file.
    ///
    /// # Errors
    /// [`FileError::NoSuchTensor`], [`FileError::Unsupported`], [`FileError::Device`].
    pub fn tensor(&self, name: &str, device: &Device) -> Result<Tensor> {
        let entry = self.entry(name)?;
        let dtype = self.dtype(name)?;
        let bytes = &self.bytes.as_slice()[entry.range.clone()];
        Tensor::from_raw_buffer(bytes, dtype, &entry.shape, device)
            .map_err(|source| self.error(FileError::Device { tensor: name.into(), source }))
    }

    /// The file's metadata.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.header.metadata
    }

    fn entry(&self, name: &str) -> Result<&Entry> {
        let entry = self.header.entries.get(name);
        entry.ok_or_else(|| self.error(FileError::NoSuchTensor { tensor: name.into() }))
    }

    fn unsupported(&self, name: &str, entry: &Entry) -> Error {
        self.error(FileError::Unsupported { tensor: name.into(), element: entry.element.name })
    }

    fn error(&self, source: FileError) -> Error {
        Error::TensorFile { name: self.name.clone(), source }
    }
}

fn load(path: &Path) -> std::result::Result<Bytes, FileError> {
    // Checked before opening, because opening a pipe waits for its writer.
    let metadata = std::fs::metadata(path).map_err(FileError::Io)?;
    if !metadata.is_file() {
        return Err(FileError::NotAFile);
    }
    let mut file = File::open(path).map_err(FileError::Io)?;
    if metadata.len() >= MAP_FROM_BYTES {
        return map(&file).map(Bytes::Mapped).map_err(FileError::Io);
    }
    let mut bytes = Vec::with_capacity(metadata.len() as usize);
    file.read_to_end(&mut bytes).map_err(FileError::Io)?;
    Ok(Bytes::Owned(bytes))
}

#[expect(
    unsafe_code,
    reason = "a mapped file is only as constant as its owner leaves it; model files are not edited in place"
)]
fn map(file: &File) -> std::io::Result<Mmap> {
    // SAFETY: the map is read-only and private to this process's view. If another process truncates the file while it
    // is mapped, the system stops this process with SIGBUS; this workspace's writers never truncate, they rename
    // complete files into place.
    unsafe { Mmap::map(file) }
}
