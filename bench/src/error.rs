//! What can go wrong before the work is measured.

use catelier_pipelines::training::TrainError;
use catelier_pipelines::training::plan::DoesNotFit;

/// The result of everything here that loads a model.
pub type Result<T> = std::result::Result<T, Error>;

/// Why the work could not be set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The model, the adapter or a size.
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
    /// Advice on what to do next, where there is any.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Train(source) => source.hint(),
            Self::DoesNotFit(_) => None,
        }
    }
}
