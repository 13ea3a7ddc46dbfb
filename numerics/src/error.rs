//! The error type of this crate, with a hint for each error that the user can fix.

use std::io;
use std::path::PathBuf;

use crate::tensor_file::FileError;

/// The result of functions that return this crate's [`enum@Error`]; tensor operations return candle's.
pub type Result<T> = std::result::Result<T, Error>;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be written; an existing file at `path` is unchanged.
    #[error("cannot write `{path}`", path = path.display())]
    Write {
        /// The destination.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// A tensor file could not be read or is invalid.
    #[error("cannot read tensor file `{name}`")]
    TensorFile {
        /// Path of the file, or the name given with its bytes.
        name: String,
        /// The reason.
        #[source]
        source: FileError,
    },
    /// A tensor has an element type that tensor files cannot hold.
    #[error("tensor `{tensor}`: a tensor file cannot hold elements of type {dtype}")]
    UnsupportedElement {
        /// Name of the tensor.
        tensor: String,
        /// Its element type.
        dtype: String,
    },
    /// Trained parameters whose gradient is missing or contains NaN or infinity.
    #[error("{}", describe_gradients(missing, not_finite))]
    Gradients {
        /// Parameters on which the loss does not depend, in order.
        missing: Vec<String>,
        /// Parameters whose gradient contains NaN or infinity, in order.
        not_finite: Vec<String>,
    },
    /// Names or shapes of two sets of tensors differ.
    #[error("{what}: expected the names and shapes of the parameters, differing: {}", list(names))]
    Mismatch {
        /// Which set differs, for example `optimizer state`.
        what: &'static str,
        /// The names that are missing, unexpected or differently shaped.
        names: Vec<String>,
    },
    /// A value is outside its allowed range.
    #[error("{what}: expected {expected}, found `{found}`")]
    Number {
        /// Name of the value.
        what: &'static str,
        /// The allowed range.
        expected: &'static str,
        /// The value itself.
        found: f64,
    },
    /// A statistic of an empty list.
    #[error("{what} of no values")]
    NoValues {
        /// Name of the statistic.
        what: &'static str,
    },
    /// The factors given to a decomposition do not fit together.
    #[error("term {index}: {problem}")]
    Term {
        /// Position of the term in the list.
        index: usize,
        /// The reason.
        problem: String,
    },
    /// An iteration did not converge, which only extreme inputs cause.
    #[error("singular value decomposition did not converge on a {rows} by {columns} matrix")]
    NotConverged {
        /// Rows of the matrix.
        rows: usize,
        /// Columns of the matrix.
        columns: usize,
    },
    /// A tensor operation failed.
    #[error("{what}")]
    Tensor {
        /// The operation, for example `updating parameter`.
        what: String,
        /// The tensor library's error.
        #[source]
        source: candle_core::Error,
    },
}

impl Error {
    /// Advice on how to fix the error, if there is any.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Write { source, .. } => write_hint(source),
            Self::TensorFile { source, .. } => source.hint(),
            Self::UnsupportedElement { .. } => {
                Some("convert it to f32, f16, bf16, f64, u8, u32 or an integer type first".into())
            }
            Self::Gradients { missing, .. } if !missing.is_empty() => {
                Some("an operation between these parameters and the loss has no backward pass".into())
            }
            Self::Gradients { .. } => Some("lower the learning rate, or compute in f32 instead of f16".into()),
            Self::Mismatch { .. } => Some("use the state saved together with these very parameters".into()),
            _ => None,
        }
    }
}

fn write_hint(source: &io::Error) -> Option<String> {
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            Some("free some space; the previous file, if any, is still whole".into())
        }
        io::ErrorKind::NotFound => Some("create the folder first".into()),
        io::ErrorKind::PermissionDenied => Some("choose a folder you may write to".into()),
        _ => None,
    }
}

fn describe_gradients(missing: &[String], not_finite: &[String]) -> String {
    let mut parts = Vec::new();
    if !missing.is_empty() {
        parts.push(format!("{} without a gradient: {}", count(missing), list(missing)));
    }
    if !not_finite.is_empty() {
        let names = list(not_finite);
        parts.push(format!("{} with a gradient that is not finite: {names}", count(not_finite)));
    }
    parts.join("; ")
}

fn count(names: &[String]) -> String {
    match names.len() {
        1 => "1 trained parameter".into(),
        n => format!("{n} trained parameters"),
    }
}

/// All names in backticks; a list that is cut short would cost the user another run.
fn list(names: &[String]) -> String {
    let quoted: Vec<_> = names.iter().map(|name| format!("`{name}`")).collect();
    quoted.join(", ")
}

/// Adds the name of the operation to a tensor error.
pub(crate) trait During<T> {
    fn during(self, what: impl Into<String>) -> Result<T>;
}

impl<T> During<T> for candle_core::Result<T> {
    fn during(self, what: impl Into<String>) -> Result<T> {
        self.map_err(|source| Error::Tensor { what: what.into(), source })
    }
}
