//! How a command ends when it does not succeed: which exit code, and what a person reads.

use std::process::ExitCode;

use catelier_workflows::Error;

use crate::terminal;

/// The work failed, or a required score was not reached.
const FAILED: u8 = 1;
/// The user must change the request.
const USER_ERROR: u8 = 2;
/// A fault in this program.
pub(crate) const BUG: u8 = 70;
/// Ctrl-C or SIGTERM, as shells number it.
pub(crate) const INTERRUPTED: u8 = 130;

/// Why a command did not succeed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The request is wrong, the work failed or was cancelled.
    Work(Error),
    /// Everything worked, and the answer is no. The result is already printed.
    NotReached(String),
    /// The reader of stdout went away, which is no failure.
    BrokenPipe,
}

/// The outcome of a command.
pub(crate) type Outcome<T> = Result<T, Failure>;

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Work(error)
    }
}

impl Failure {
    /// Prints the failure to stderr and gives the exit code.
    pub(crate) fn report(&self) -> ExitCode {
        let code = match self {
            Self::Work(Error::Cancelled) => {
                terminal::say("stopped");
                INTERRUPTED
            }
            Self::Work(error) => {
                terminal::error(error);
                if error.is_user_error() { USER_ERROR } else { FAILED }
            }
            Self::NotReached(what) => {
                terminal::say(&format!("not reached: {what}"));
                FAILED
            }
            Self::BrokenPipe => 0,
        };
        ExitCode::from(code)
    }
}
