//! How a command ends when it does not succeed: which exit code, and what a person reads.

use std::process::ExitCode;

use crate::terminal;

/// The work failed, or a required score was not reached.
pub(crate) const FAILED: u8 = 1;
/// The request cannot be carried out as written.
pub(crate) const REQUEST: u8 = 2;
/// A fault in this program.
pub(crate) const BUG: u8 = 70;

/// Why a command did not succeed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// What was asked for cannot be done: the user must change something.
    Request(anyhow::Error),
    /// The work itself failed.
    Run(anyhow::Error),
    /// Everything worked, and the answer is no. The result is already printed.
    NotReached(String),
    /// Whoever reads stdout went away, which is no failure.
    BrokenPipe,
}

/// The outcome of a command.
pub(crate) type Outcome<T> = Result<T, Failure>;

/// Says whose fault an error is.
pub(crate) trait Blame<T> {
    /// The request was wrong; `context` says what was attempted.
    fn request(self, context: impl std::fmt::Display + Send + Sync + 'static) -> Outcome<T>;
    /// The work failed; `context` says what was attempted.
    fn run(self, context: impl std::fmt::Display + Send + Sync + 'static) -> Outcome<T>;
}

impl<T, E: Into<anyhow::Error>> Blame<T> for Result<T, E> {
    fn request(self, context: impl std::fmt::Display + Send + Sync + 'static) -> Outcome<T> {
        self.map_err(|error| Failure::Request(error.into().context(context)))
    }

    fn run(self, context: impl std::fmt::Display + Send + Sync + 'static) -> Outcome<T> {
        self.map_err(|error| Failure::Run(error.into().context(context)))
    }
}

impl Failure {
    /// A request that is wrong in itself, with its remedy.
    pub(crate) fn request(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Request(Advice { message: message.into(), hint: hint.into() }.into())
    }

    /// The failure as an error to be wrapped by another.
    pub(crate) fn into_source(self) -> Box<dyn std::error::Error + Send + Sync> {
        match self {
            Self::Request(error) | Self::Run(error) => error.into(),
            Self::NotReached(what) => what.into(),
            Self::BrokenPipe => "stdout was closed".into(),
        }
    }

    /// Prints the failure to stderr and gives the exit code.
    pub(crate) fn report(&self) -> ExitCode {
        let code = match self {
            Self::Request(error) => {
                terminal::error(error);
                REQUEST
            }
            Self::Run(error) => {
                terminal::error(error);
                FAILED
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

/// An error of the command itself, which knows its own hint.
#[derive(Debug)]
pub(crate) struct Advice {
    message: String,
    hint: String,
}

impl std::fmt::Display for Advice {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.message)
    }
}

impl std::error::Error for Advice {}

/// The first hint that any error of the chain offers.
pub(crate) fn hint(error: &anyhow::Error) -> Option<String> {
    error.chain().find_map(hint_of)
}

fn hint_of(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    if let Some(advice) = error.downcast_ref::<Advice>() {
        return Some(advice.hint.clone());
    }
    macro_rules! ask {
        ($($error:ty),+) => { $(if let Some(error) = error.downcast_ref::<$error>() { return error.hint(); })+ };
    }
    ask!(
        catelier_adapters::Error,
        catelier_bench::Error,
        catelier_evaluation::Error,
        catelier_federation::Error,
        catelier_gallery::Error,
        catelier_numerics::Error,
        catelier_pipelines::Error,
        catelier_pipelines::train::TrainError,
        catelier_prompts::Error
    );
    None
}
