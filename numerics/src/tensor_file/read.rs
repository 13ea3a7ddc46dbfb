//! Reading tensor files.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};

use super::header::{Entry, FileError, Header};
use crate::{Error, Result};

type FileResult<T> = std::result::Result<T, FileError>;

/// Bytes that are read at a time; a multiple of every element's size.
const CHUNK: u64 = 1 << 20;

/// An open tensor file whose header has been checked completely.
///
/// Only the header is kept in memory; elements are read when they are asked for. Nothing is mapped, so a file that
/// another program shortens meanwhile gives an error.
#[derive(Debug)]
pub struct TensorFile {
    pub(super) data: Data,
    pub(super) header: Header,
}

/// The bytes of a file, with its name in errors.
#[derive(Debug)]
pub(super) struct Data {
    pub(super) name: String,
    pub(super) content: Content,
}

#[derive(Debug)]
pub(super) enum Content {
    Memory(Cow<'static, [u8]>),
    Disk(Mutex<File>, OnDisk),
}

/// A file on disk, as it was when it was opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct OnDisk {
    pub(super) path: PathBuf,
    pub(super) byte_count: u64,
    /// `None` where the system does not say.
    pub(super) modified: Option<SystemTime>,
}

impl Content {
    pub(super) fn open(path: &Path) -> FileResult<Self> {
        // Checked before opening, because opening a pipe waits for its writer.
        let metadata = std::fs::metadata(path).map_err(FileError::Io)?;
        if !metadata.is_file() {
            return Err(FileError::NotAFile);
        }
        let (byte_count, modified) = (metadata.len(), metadata.modified().ok());
        let file = Mutex::new(File::open(path).map_err(FileError::Io)?);
        Ok(Self::Disk(file, OnDisk { path: path.to_path_buf(), byte_count, modified }))
    }

    fn byte_count(&self) -> u64 {
        match self {
            Self::Memory(bytes) => bytes.len() as u64,
            Self::Disk(_, on_disk) => on_disk.byte_count,
        }
    }

    /// Calls `take` with the bytes of `range`, piece by piece.
    fn each_chunk(&self, range: Range<u64>, mut take: impl FnMut(&[u8])) -> FileResult<()> {
        let (file, found) = match self {
            Self::Memory(bytes) => {
                take(&bytes[range.start as usize..range.end as usize]);
                return Ok(());
            }
            Self::Disk(file, on_disk) => (file, on_disk.byte_count),
        };
        let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
        file.seek(SeekFrom::Start(range.start)).map_err(FileError::Io)?;
        let mut chunk = vec![0; CHUNK.min(range.end - range.start) as usize];
        let mut left = range.end - range.start;
        while left > 0 {
            let bytes = &mut chunk[..CHUNK.min(left) as usize];
            file.read_exact(bytes).map_err(|error| shortened(error, found, &file))?;
            take(bytes);
            left -= bytes.len() as u64;
        }
        Ok(())
    }

    fn read(&self, range: Range<u64>) -> FileResult<Vec<u8>> {
        let mut bytes = Vec::with_capacity((range.end - range.start) as usize);
        self.each_chunk(range, |chunk| bytes.extend_from_slice(chunk))?;
        Ok(bytes)
    }

    /// The elements of `range`, `N` bytes each.
    fn elements<T, const N: usize>(&self, range: &Range<u64>, of: impl Fn([u8; N]) -> T) -> FileResult<Vec<T>> {
        let mut elements = Vec::with_capacity((range.end - range.start) as usize / N);
        self.each_chunk(range.clone(), |chunk| elements.extend(chunk.as_chunks().0.iter().map(|bytes| of(*bytes))))?;
        Ok(elements)
    }
}

impl Data {
    /// The tensor `name` that `entry` describes, in the element type of the file.
    pub(super) fn tensor(&self, name: &str, entry: &Entry, device: &Device) -> Result<Tensor> {
        macro_rules! read {
            ($number:ty) => {{
                let elements = self.content.elements(&entry.range, <$number>::from_le_bytes);
                let elements = elements.map_err(|source| self.error(source))?;
                Tensor::from_vec(elements, entry.shape.as_slice(), device)
            }};
        }
        let tensor = match entry.element.dtype.ok_or_else(|| self.unsupported(name, entry))? {
            DType::F64 => read!(f64),
            DType::F32 => read!(f32),
            DType::F16 => read!(f16),
            DType::BF16 => read!(bf16),
            DType::I64 => read!(i64),
            DType::I32 => read!(i32),
            DType::I16 => read!(i16),
            DType::U32 => read!(u32),
            DType::U8 => read!(u8),
            _ => return Err(self.unsupported(name, entry)),
        };
        tensor.map_err(|source| self.device_error(name, source))
    }

    /// The tensor `name` of floating-point numbers that `entry` describes, in f32 on the CPU.
    pub(super) fn tensor_f32(&self, name: &str, entry: &Entry) -> Result<Tensor> {
        let values = self.values_f32(name, entry, &entry.range)?;
        Tensor::from_vec(values, entry.shape.as_slice(), &Device::Cpu).map_err(|source| self.device_error(name, source))
    }

    /// The floating-point numbers in `range` of the file, converted to f32.
    fn values_f32(&self, name: &str, entry: &Entry, range: &Range<u64>) -> Result<Vec<f32>> {
        let values = match entry.element.dtype.ok_or_else(|| self.unsupported(name, entry))? {
            DType::F64 => self.content.elements(range, |bytes| f64::from_le_bytes(bytes) as f32),
            DType::F32 => self.content.elements(range, f32::from_le_bytes),
            DType::F16 => self.content.elements(range, |bytes| f16::from_le_bytes(bytes).to_f32()),
            DType::BF16 => self.content.elements(range, |bytes| bf16::from_le_bytes(bytes).to_f32()),
            _ => return Err(self.unsupported(name, entry)),
        };
        values.map_err(|source| self.error(source))
    }

    fn unsupported(&self, name: &str, entry: &Entry) -> Error {
        self.error(FileError::Unsupported { tensor: name.into(), element: entry.element.name })
    }

    fn device_error(&self, name: &str, source: candle_core::Error) -> Error {
        self.error(FileError::Device { tensor: name.into(), source })
    }

    pub(super) fn error(&self, source: FileError) -> Error {
        Error::TensorFile { name: self.name.clone(), source }
    }
}

/// The error of a read inside the file's `expected` bytes.
fn shortened(error: io::Error, expected: u64, file: &File) -> FileError {
    match (error.kind(), file.metadata()) {
        (io::ErrorKind::UnexpectedEof, Ok(metadata)) => FileError::Truncated { expected, found: metadata.len() },
        _ => FileError::Io(error),
    }
}

impl TensorFile {
    /// Opens a file and reads its header.
    ///
    /// # Errors
    /// [`Error::TensorFile`] with the path and a [`FileError`] as its cause.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let name = path.display().to_string();
        match Content::open(path) {
            Ok(content) => Self::parse(name, content),
            Err(source) => Err(Error::TensorFile { name, source }),
        }
    }

    /// Checks a file that is already in memory, or embedded in the program; error messages use `name`.
    ///
    /// # Errors
    /// As for [`TensorFile::open`].
    pub fn from_bytes(name: impl Into<String>, bytes: impl Into<Cow<'static, [u8]>>) -> Result<Self> {
        Self::parse(name.into(), Content::Memory(bytes.into()))
    }

    fn parse(name: String, content: Content) -> Result<Self> {
        match Header::read(content.byte_count(), |range| content.read(range)) {
            Ok(header) => Ok(Self { data: Data { name, content }, header }),
            Err(source) => Err(Error::TensorFile { name, source }),
        }
    }

    /// Size of the file in bytes, header included.
    pub fn byte_count(&self) -> u64 {
        self.data.content.byte_count()
    }

    /// Calls `take` with the bytes after the header, piece by piece and in order.
    ///
    /// # Errors
    /// [`FileError::Io`], [`FileError::Truncated`].
    pub(super) fn each_data_chunk(&self, take: impl FnMut(&[u8])) -> Result<()> {
        let data = self.header.data_start..self.byte_count();
        self.data.content.each_chunk(data, take).map_err(|source| self.data.error(source))
    }

    /// All bytes in front of the data: the length and the text of the header.
    pub(super) fn beginning(&self) -> Result<Vec<u8>> {
        self.data.content.read(0..self.header.data_start).map_err(|source| self.data.error(source))
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
        entry.element.dtype.ok_or_else(|| self.data.unsupported(name, entry))
    }

    /// Reads a tensor to `device`, in the element type of the file.
    ///
    /// # Errors
    /// [`FileError::NoSuchTensor`], [`FileError::Unsupported`], [`FileError::Io`], [`FileError::Truncated`],
    /// [`FileError::Device`].
    pub fn tensor(&self, name: &str, device: &Device) -> Result<Tensor> {
        self.data.tensor(name, self.entry(name)?, device)
    }

    /// Reads a tensor of floating-point numbers to the CPU and converts it to f32 on the way, so that it is never held
    /// twice.
    ///
    /// # Errors
    /// [`FileError::NoSuchTensor`], [`FileError::Unsupported`] for other numbers, [`FileError::Io`],
    /// [`FileError::Truncated`].
    pub fn tensor_f32(&self, name: &str) -> Result<Tensor> {
        self.data.tensor_f32(name, self.entry(name)?)
    }

    /// The `elements` of a tensor of floating-point numbers, in row-major order, converted to f32. Reads nothing else.
    ///
    /// # Errors
    /// As for [`tensor_f32`](Self::tensor_f32).
    ///
    /// # Panics
    /// If the tensor has fewer elements.
    pub fn values(&self, name: &str, elements: Range<usize>) -> Result<Vec<f32>> {
        let entry = self.entry(name)?;
        let size = (entry.element.bits / 8) as u64;
        let start = entry.range.start + elements.start as u64 * size;
        let range = start..start + elements.len() as u64 * size;
        assert!(
            elements.start <= elements.end && range.end <= entry.range.end,
            "`{name}` has no elements {elements:?}"
        );
        self.data.values_f32(name, entry, &range)
    }

    /// The file's metadata.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.header.metadata
    }

    pub(super) fn entry(&self, name: &str) -> Result<&Entry> {
        let entry = self.header.entries.get(name);
        entry.ok_or_else(|| self.data.error(FileError::NoSuchTensor { tensor: name.into() }))
    }
}
