//! Errors before the measurement.

use catelier_pipelines::training::TrainError;
use catelier_pipelines::training::plan::DoesNotFit;

/// The result type of functions that load a model.
pub type Result<T> = std::result::Result<T, Error>;

/// The reason why the work could not be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An error of the model, the adapter or a size.
    #[error(transparent)]
    Train(#[from] TrainError),
    /// A training step needs more memory than its limit.
    #[error(transparent)]
    DoesNotFit(#[from] DoesNotFit),
}

impl From<catelier_pipelines::Error> for Error {
    fn from(source: catelier_pipelines::Error) -> Self {
        Self::Train(source.into())
    }
}

impl Error {
    /// What the user can do about the error, if that is known.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Train(source) => source.hint(),
            Self::DoesNotFit(_) => None,
        }
    }
}
