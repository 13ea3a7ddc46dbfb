//! Errors of a training run.

use std::path::PathBuf;

use super::UnusableState;

/// A training run could not start, go on or be saved.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// A setting is outside its range.
    #[error("setting `{setting}` is {value}, it {rule}")]
    Setting {
        /// The setting's name, as in the run file.
        setting: &'static str,
        /// The value asked for.
        value: String,
        /// The rule for its values.
        rule: String,
    },
    /// The loss of some samples is NaN or infinite.
    #[error(
        "loss is not finite at step {step}: {}; last finite loss {last_finite}",
        samples.join(", ")
    )]
    LossNotFinite {
        /// The step, counted from 1.
        step: usize,
        /// Term, image, value and timestep of every sample whose loss is not finite.
        samples: Vec<String>,
        /// The loss of the step before.
        last_finite: f64,
    },
    /// There is no saved state to resume from.
    #[error("no saved state in `{}`", folder.display())]
    NothingToResume {
        /// The state folder.
        folder: PathBuf,
    },
    /// There are saved states, and the run can go on from none of them.
    #[error("no saved state in `{}` can be used: {}", folder.display(), told(states))]
    NoUsableState {
        /// The state folder.
        folder: PathBuf,
        /// Every state with its reason, the newest first.
        states: Vec<UnusableState>,
    },
    /// The state folder could not be listed or cleaned.
    #[error("cannot use the state folder `{}`", folder.display())]
    StateFolder {
        /// The state folder.
        folder: PathBuf,
        /// The operating system's reason.
        #[source]
        source: std::io::Error,
    },
    /// The start adapter adapts other modules than the targets select.
    #[error("the start adapter does not fit the targets `{targets}`: {}", unlike(missing, unselected))]
    StartMismatch {
        /// The run's targets.
        targets: String,
        /// Modules that the targets select but the adapter does not adapt.
        missing: Vec<String>,
        /// Modules that the adapter adapts but the targets do not select.
        unselected: Vec<String>,
    },
    /// All parameters of the start adapter are frozen.
    #[error("there is nothing to train: all parameters of the start adapter are frozen")]
    NothingToTrain,
    /// The run's settings could not be serialized, so its fingerprint is unknown.
    #[error("cannot write down the settings of the run")]
    Fingerprint(#[source] serde_json::Error),
    /// The DreamBooth loss has no images of the class.
    #[error("the dreambooth loss needs at least one image of the class")]
    NoClassImages,
    /// The observer of the run failed.
    #[error("cannot report on the run")]
    Observer(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// An error of the model or the images.
    #[error(transparent)]
    Pipeline(#[from] crate::Error),
    /// An error of the parameters, the optimizer or a file.
    #[error(transparent)]
    Numerics(#[from] catelier_numerics::Error),
    /// An error of the adapter.
    #[error(transparent)]
    Adapters(#[from] catelier_adapters::Error),
    /// A tensor operation failed.
    #[error("a tensor operation of the training step failed")]
    Tensor(#[from] candle_core::Error),
}

impl TrainError {
    /// An error of the run's observer; `error` is kept as the source.
    pub fn observer(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Observer(error.into())
    }

    pub(crate) fn setting(setting: &'static str, value: impl ToString, rule: impl Into<String>) -> Self {
        Self::Setting { setting, value: value.to_string(), rule: rule.into() }
    }

    /// What the user can do about the error, if that is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::LossNotFinite { .. } => {
                Some("the state before this step was saved; resume with a lower learning rate".into())
            }
            Self::NothingToResume { .. } => Some("start the run without `--resume`".into()),
            Self::NoUsableState { states, .. } => Some(match states.iter().any(|state| state.is_of_another_run) {
                true => "resume with the base, the images and the settings that the state was saved with".into(),
                false => "start the run again, in another folder".into(),
            }),
            Self::NoClassImages => Some("name the class, for example `--class \"a dog\"`".into()),
            Self::StartMismatch { .. } => Some(
                "choose targets that select the adapter's modules, and train the text encoders if it adapts them"
                    .into(),
            ),
            Self::Pipeline(error) => error.hint(),
            Self::Numerics(error) => error.hint(),
            Self::Adapters(error) => error.hint(),
            _ => None,
        }
    }
}

fn told(states: &[UnusableState]) -> String {
    states.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// The modules that only one side has; of many, the first few.
fn unlike(missing: &[String], unselected: &[String]) -> String {
    const SHOWN: usize = 3;
    let list = |what: &str, paths: &[String]| {
        let shown: Vec<String> = paths.iter().take(SHOWN).map(|path| format!("`{path}`")).collect();
        let more = paths.len().saturating_sub(SHOWN);
        let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
        format!("{what} {}{rest}", shown.join(", "))
    };
    let sides = [("it lacks", missing), ("it also adapts", unselected)];
    let told: Vec<String> =
        sides.iter().filter(|(_, paths)| !paths.is_empty()).map(|(what, paths)| list(what, paths)).collect();
    told.join("; ")
}
