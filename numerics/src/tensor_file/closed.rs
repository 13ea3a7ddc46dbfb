//! Tensor files that are not held open: many at a time, each read by range.

use std::ops::Range;

use candle_core::{DType, Device, Tensor};

use super::element::Element;
use super::header::{Entry, FileError};
use super::read::{Content, Data, OnDisk, TensorFile};
use crate::{Error, Result};

/// A tensor file whose header has been checked, without the header and without a handle: a hundred bytes or so.
///
/// A process may hold thousands. What [`TensorPlace`]s say is what is left of the header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClosedFile {
    on_disk: OnDisk,
    data_start: u64,
}

/// The type, the shape and the place of one tensor of a file, counted from the end of the header, so that files of one
/// structure have equal places.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorPlace {
    element: Element,
    shape: Vec<usize>,
    /// Bytes after the header.
    range: Range<u64>,
}

/// A [`ClosedFile`] that is open again.
#[derive(Debug)]
pub struct ReopenedFile {
    data: Data,
    data_start: u64,
}

impl TensorFile {
    /// The file to close and reopen later; `None` for one in memory.
    pub fn closed(&self) -> Option<ClosedFile> {
        match &self.data.content {
            Content::Memory(_) => None,
            Content::Disk(_, on_disk) => {
                Some(ClosedFile { on_disk: on_disk.clone(), data_start: self.header.data_start })
            }
        }
    }

    /// Where a tensor is.
    ///
    /// # Errors
    /// [`FileError::NoSuchTensor`].
    pub fn place(&self, name: &str) -> Result<TensorPlace> {
        let Entry { element, shape, range } = self.entry(name)?.clone();
        let start = self.header.data_start;
        Ok(TensorPlace { element, shape, range: range.start - start..range.end - start })
    }
}

impl ClosedFile {
    /// Opens the file again.
    ///
    /// # Errors
    /// [`FileError::Changed`] if its size or its time is another; [`FileError::Io`], [`FileError::NotAFile`].
    pub fn reopen(&self) -> Result<ReopenedFile> {
        let name = self.on_disk.path.display().to_string();
        match Content::open(&self.on_disk.path) {
            Ok(content) if matches!(&content, Content::Disk(_, found) if *found == self.on_disk) => {
                Ok(ReopenedFile { data: Data { name, content }, data_start: self.data_start })
            }
            Ok(_) => Err(Error::TensorFile { name, source: FileError::Changed }),
            Err(source) => Err(Error::TensorFile { name, source }),
        }
    }
}

impl TensorPlace {
    /// Element type; `None` for one that cannot be read.
    pub fn dtype(&self) -> Option<DType> {
        self.element.dtype
    }

    /// Shape of the tensor.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }
}

impl ReopenedFile {
    /// Reads the tensor at a place of this file to `device`, in the element type of the file; `name` is its name in errors.
    ///
    /// # Errors
    /// [`FileError::Unsupported`], [`FileError::Io`], [`FileError::Truncated`], [`FileError::Device`].
    pub fn tensor(&self, name: &str, place: &TensorPlace, device: &Device) -> Result<Tensor> {
        self.data.tensor(name, &self.entry(place), device)
    }

    /// As [`tensor`](Self::tensor), for floating-point numbers, converted to f32 on the CPU on the way.
    ///
    /// # Errors
    /// As for [`tensor`](Self::tensor).
    pub fn tensor_f32(&self, name: &str, place: &TensorPlace) -> Result<Tensor> {
        self.data.tensor_f32(name, &self.entry(place))
    }

    fn entry(&self, place: &TensorPlace) -> Entry {
        let TensorPlace { element, shape, range } = place.clone();
        Entry { element, shape, range: range.start + self.data_start..range.end + self.data_start }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;

    use super::*;
    use crate::tensor_file::write;

    fn tensors(values: &[f32]) -> BTreeMap<String, Tensor> {
        BTreeMap::from([
            ("a".to_owned(), Tensor::new(&[7f64], &Device::Cpu).unwrap()),
            ("w".to_owned(), Tensor::new(values, &Device::Cpu).unwrap()),
        ])
    }

    #[test]
    fn a_closed_file_gives_the_tensors_of_the_open_one_and_equal_structures_have_equal_places() {
        let folder = tempfile::tempdir().unwrap();
        let paths = ["one", "two"].map(|name| folder.path().join(name));
        let longer = BTreeMap::from([("note".to_owned(), "longer".to_owned())]);
        write(&paths[0], &tensors(&[1.0, 2.0]), &BTreeMap::new()).unwrap();
        write(&paths[1], &tensors(&[3.0, 4.0]), &longer).unwrap();
        let [one, two] = paths.map(|path| TensorFile::open(path).unwrap());
        assert_eq!(one.place("w").unwrap(), two.place("w").unwrap());
        for (file, expected) in [(one, [1.0, 2.0]), (two, [3.0, 4.0])] {
            let (closed, place) = (file.closed().unwrap(), file.place("w").unwrap());
            let open = closed.reopen().unwrap();
            assert_eq!((place.dtype(), place.shape()), (Some(DType::F32), &[2][..]));
            assert_eq!(open.tensor_f32("w", &place).unwrap().to_vec1::<f32>().unwrap(), expected);
            let number = open.tensor("a", &file.place("a").unwrap(), &Device::Cpu).unwrap();
            assert_eq!(number.to_vec1::<f64>().unwrap(), [7.0]);
        }
    }

    #[test]
    fn a_file_that_was_changed_or_removed_meanwhile_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.safetensors");
        write(&path, &tensors(&[1.0, 2.0]), &BTreeMap::new()).unwrap();
        let closed = TensorFile::open(&path).unwrap().closed().unwrap();
        write(&path, &tensors(&[1.0, 2.0, 3.0]), &BTreeMap::new()).unwrap();
        let refused = |expected: &str| {
            let error = closed.reopen().unwrap_err();
            let cause = std::error::Error::source(&error).unwrap().to_string();
            assert!(error.to_string().contains("state.safetensors") && cause.contains(expected), "{error}: {cause}");
        };
        refused("was changed");
        fs::remove_file(&path).unwrap();
        refused("cannot be read");
    }
}
