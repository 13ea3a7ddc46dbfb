//! The weights of one component as stored in files: names, types and shapes from the headers, elements on demand.

use std::ops::Range;
use std::rc::Rc;

use candle_core::DType;
use catelier_numerics::tensor_file::TensorFile;

use crate::error::Result;

/// One tensor of a weights file; only its entry in the file's header has been read.
#[derive(Debug, Clone)]
pub struct StoredTensor {
    /// Its name in the file.
    pub name: String,
    /// Its type in the file; `None` for a type that cannot be loaded.
    pub dtype: Option<DType>,
    /// Its shape.
    pub shape: Vec<usize>,
    file: Rc<TensorFile>,
}

impl StoredTensor {
    /// All tensors of `file`.
    pub(super) fn all(file: TensorFile) -> Result<Vec<Self>> {
        let file = Rc::new(file);
        let stored = |name: &str| {
            let shape = file.shape(name)?.to_vec();
            Ok(Self { name: name.into(), dtype: file.dtype(name).ok(), shape, file: file.clone() })
        };
        file.names().map(stored).collect()
    }

    /// Number of elements.
    pub fn element_count(&self) -> usize {
        self.shape.iter().product()
    }

    /// The `elements` in row-major order, converted to f32. Reads nothing else from the file.
    ///
    /// # Errors
    /// [`Error::Numerics`](crate::Error::Numerics) for a type other than floating-point numbers, or a file that cannot
    /// be read.
    ///
    /// # Panics
    /// If the tensor has fewer elements.
    pub fn values(&self, elements: Range<usize>) -> Result<Vec<f32>> {
        Ok(self.file.values(&self.name, elements)?)
    }
}
