//! Why a workflow did not succeed: whose turn it is, the chain of causes, and what to do next.

use catelier_pipelines::training::TrainError;

/// This crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The cause of an error.
type Source = Box<dyn std::error::Error + Send + Sync>;

/// Why a workflow did not succeed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The request cannot be carried out as written: the user must change something.
    #[error("{message}")]
    User {
        /// What cannot be done.
        message: String,
        /// What to do instead, where no cause says it.
        hint: Option<String>,
        /// Why.
        source: Option<Source>,
    },
    /// The work itself failed.
    #[error("{message}")]
    Failed {
        /// What was attempted.
        message: String,
        /// Why.
        source: Source,
    },
    /// The caller's [`Cancel`](crate::Cancel) token stopped the work.
    #[error("cancelled")]
    Cancelled,
}

impl Error {
    /// A request that is wrong in itself, and what to do instead.
    pub fn user(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::User { message: message.into(), hint: Some(hint.into()), source: None }
    }

    /// Whether the user must change the request; otherwise the work failed or was cancelled.
    pub fn is_user_error(&self) -> bool {
        matches!(self, Self::User { .. })
    }

    /// The first hint that this error or one of its causes offers.
    pub fn hint(&self) -> Option<String> {
        chain(self).find_map(hint_of)
    }
}

/// Says what was attempted, and whether the user or the work is at fault.
pub trait Context<T> {
    /// The request was wrong; `attempt` says what could not be done. Where the disk is at fault, the work failed: what was
    /// asked for can be right.
    ///
    /// # Errors
    /// [`Error::User`] or, for the disk, [`Error::Failed`] with the cause, or [`Error::Cancelled`].
    fn user_error(self, attempt: impl Into<String>) -> Result<T>;

    /// The work failed; `attempt` says what could not be done.
    ///
    /// # Errors
    /// [`Error::Failed`] with the cause, or [`Error::Cancelled`].
    fn failed(self, attempt: impl Into<String>) -> Result<T>;
}

impl<T, E: std::error::Error + Send + Sync + 'static> Context<T> for std::result::Result<T, E> {
    fn user_error(self, attempt: impl Into<String>) -> Result<T> {
        self.map_err(|error| user_error(attempt, None, error))
    }

    fn failed(self, attempt: impl Into<String>) -> Result<T> {
        let wrap = |source| Error::Failed { message: attempt.into(), source };
        self.map_err(|error| unless_cancelled(error, wrap))
    }
}

/// As [`Context::user_error`], with what the user can do about it.
pub(crate) fn user_error<E>(attempt: impl Into<String>, hint: Option<String>, error: E) -> Error
where
    E: std::error::Error + Send + Sync + 'static,
{
    unless_cancelled(error, |source| {
        let is_disk_failure = chain(&*source).any(is_disk_failure);
        match is_disk_failure {
            true => Error::Failed { message: attempt.into(), source },
            false => Error::User { message: attempt.into(), hint, source: Some(source) },
        }
    })
}

/// A cancelled part cancels the whole, however deep it lies.
fn unless_cancelled<E>(error: E, wrap: impl FnOnce(Source) -> Error) -> Error
where
    E: std::error::Error + Send + Sync + 'static,
{
    if chain(&error).any(is_cancelled) { Error::Cancelled } else { wrap(Box::new(error)) }
}

fn is_cancelled(error: &(dyn std::error::Error + 'static)) -> bool {
    use catelier_pipelines::Error as Pipeline;
    matches!(error.downcast_ref(), Some(Error::Cancelled))
        || matches!(
            error.downcast_ref(),
            Some(catelier_evaluation::Error::Features(catelier_features::Error::Cancelled))
        )
        || matches!(error.downcast_ref(), Some(catelier_gallery::Error::Cancelled))
        || matches!(error.downcast_ref(), Some(catelier_style::Error::Cancelled))
        || matches!(error.downcast_ref(), Some(Pipeline::Cancelled))
        || matches!(error.downcast_ref(), Some(TrainError::Pipeline(Pipeline::Cancelled)))
}

/// Whether the disk is full, broken or read-only, or a file could not be written to its end.
fn is_disk_failure(error: &(dyn std::error::Error + 'static)) -> bool {
    use std::io::ErrorKind::{FileTooLarge, QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    // `EIO`, for which the library has no name.
    const INPUT_OUTPUT: i32 = 5;
    // Whether a file can be written is tried before the work, and refused there.
    if matches!(error.downcast_ref(), Some(catelier_numerics::Error::Write { .. })) {
        return true;
    }
    error.downcast_ref::<std::io::Error>().is_some_and(|error| match error.kind() {
        // Without a number of the system's, it is a limit of ours on a file that is read.
        FileTooLarge => error.raw_os_error().is_some(),
        QuotaExceeded | ReadOnlyFilesystem | StorageFull => true,
        _ => cfg!(unix) && error.raw_os_error() == Some(INPUT_OUTPUT),
    })
}

/// An error and its causes, outermost first.
pub fn chain<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
    std::iter::successors(Some(error), |error| error.source())
}

fn hint_of(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    if let Some(Error::User { hint, .. }) = error.downcast_ref() {
        return hint.clone();
    }
    macro_rules! ask {
        ($($error:ty),+) => { $(if let Some(error) = error.downcast_ref::<$error>() { return error.hint(); })+ };
    }
    ask!(
        catelier_adapters::Error,
        catelier_evaluation::Error,
        catelier_features::Error,
        catelier_federation::Error,
        catelier_gallery::Error,
        catelier_numerics::Error,
        catelier_pipelines::Error,
        catelier_pipelines::models::hub::HubError,
        TrainError,
        catelier_prompts::Error,
        catelier_rounds::Error,
        catelier_style::Error
    );
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overflow() -> catelier_pipelines::Error {
        catelier_pipelines::Error::ImageNotFinite { prompt: "a house".into(), seed: 1, step: 2, steps: 3 }
    }

    #[test]
    fn a_failure_inside_training_keeps_its_chain_and_its_hint() {
        let preview = Err::<(), _>(overflow()).failed("cannot generate images").unwrap_err();
        let training = Err::<(), _>(TrainError::observer(preview)).failed("training stopped").unwrap_err();
        let told: Vec<String> = chain(&training).map(ToString::to_string).collect();
        assert_eq!(told[..3], ["training stopped", "cannot report on the run", "cannot generate images"]);
        assert!(told[3].contains("a house") && !training.is_user_error(), "{told:?}");
        assert_eq!(training.hint(), overflow().hint());
    }

    #[test]
    fn a_disk_at_fault_is_no_mistake_of_the_user() {
        let on_disk = |kind: std::io::ErrorKind| {
            let path = std::path::PathBuf::from("images");
            let error = catelier_gallery::Error::Folder { path, source: kind.into() };
            Err::<(), _>(error).user_error("cannot draw the images").unwrap_err()
        };
        use std::io::ErrorKind::{NotFound, PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull};
        for kind in [StorageFull, ReadOnlyFilesystem, QuotaExceeded] {
            let error = on_disk(kind);
            assert!(!error.is_user_error() && error.to_string() == "cannot draw the images", "{error:?}");
        }
        for kind in [NotFound, PermissionDenied] {
            assert!(on_disk(kind).is_user_error());
        }
        let broken = Err::<(), _>(std::io::Error::from_raw_os_error(5)).user_error("cannot read").unwrap_err();
        assert_eq!(broken.is_user_error(), !cfg!(unix));
    }

    #[test]
    fn a_file_above_a_limit_is_the_users_to_change_and_a_disk_that_takes_no_larger_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("run.toml");
        std::fs::write(&file, "steps = 1").unwrap();
        let above = catelier_numerics::bounded::read(&file, 3).user_error("cannot read the run file").unwrap_err();
        assert!(above.is_user_error(), "{above:?}");
        /// `EFBIG`.
        const TOO_LARGE: i32 = 27;
        let disk = Err::<(), _>(std::io::Error::from_raw_os_error(TOO_LARGE)).user_error("cannot write").unwrap_err();
        assert_eq!(disk.is_user_error(), !cfg!(unix));
    }

    #[test]
    fn what_was_cancelled_inside_is_cancelled_outside() {
        let deep = TrainError::from(catelier_pipelines::Error::Cancelled);
        assert!(matches!(Err::<(), _>(deep).user_error("cannot encode"), Err(Error::Cancelled)));
        let observer = TrainError::observer(Error::Cancelled);
        assert!(matches!(Err::<(), _>(observer).failed("training stopped"), Err(Error::Cancelled)));
    }
}
