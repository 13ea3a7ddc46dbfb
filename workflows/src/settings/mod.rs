//! The settings of workflows, in two layers.
//!
//! What a user states is optional in every part: flags are laid over a run file ([`TrainSettings`]). What a workflow uses
//! is complete ([`ResolvedTrain`]): [`defaults`] fills in the rest, and the result is saved beside the run.

pub mod defaults;
mod preset;
mod round;
mod run_file;
mod sampling;
mod simulate;
mod style;
pub(crate) mod train;

#[cfg(feature = "clap")]
mod names;

pub use defaults::BaseDefaults;
pub use preset::Preset;
pub use round::{ResolvedRound, RoundSettings};
pub use run_file::{VERSION, read};
pub(crate) use run_file::{read_saved, save, save_with_note};
pub use sampling::{ResolvedSampling, SamplingSettings, TileVae};
pub use simulate::{ResolvedSimulate, SimulateSettings};
pub use style::{ResolvedStyleTrain, StyleTrainSettings};
pub use train::{ResolvedTrain, TrainSettings};

#[cfg(feature = "clap")]
pub use names::named;

/// Settings as a user states them: each may be left out.
pub trait Settings: serde::de::DeserializeOwned {
    /// Every key of a run file.
    const KEYS: &'static [&'static str];
    /// Keys of earlier versions that are still read.
    const OLD_KEYS: &'static [&'static str];

    /// The keys that are stated.
    fn stated(&self) -> Vec<&'static str>;

    /// These settings, and those of `below` where these state nothing.
    #[must_use]
    fn over(self, below: Self) -> Self;
}

/// Declares settings once: as optional layer (flags and keys of a run file) and as resolved struct with the same keys.
macro_rules! settings {
    (
        $(#[doc $($doc:tt)*])*
        $optional:ident
        $(#[doc $($resolved_doc:tt)*])*
        $resolved:ident {
            $(
                $(#[doc $($field_doc:tt)*])*
                $(#[serde(alias = $alias:literal)])?
                #[arg($($arg:tt)*)]
                $name:ident: $type:ty => $resolved_type:ty,
            )+
        }
    ) => {
        $(#[doc $($doc)*])*
        #[derive(Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize)]
        #[cfg_attr(feature = "clap", derive(clap::Args))]
        #[serde(default, deny_unknown_fields)]
        pub struct $optional {
            /// Version of the run file that these settings were read from.
            #[cfg_attr(feature = "clap", arg(skip))]
            #[serde(skip_serializing_if = "Option::is_none")]
            pub version: Option<u32>,
            $(
                $(#[doc $($field_doc)*])*
                #[cfg_attr(feature = "clap", arg($($arg)*))]
                #[serde(skip_serializing_if = "Option::is_none", $(alias = $alias)?)]
                pub $name: Option<$type>,
            )+
        }

        $(#[doc $($resolved_doc)*])*
        #[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct $resolved {
            /// Version of the form in which the settings are saved.
            pub version: u32,
            $(
                $(#[doc $($field_doc)*])*
                pub $name: $resolved_type,
            )+
        }

        impl $crate::settings::Settings for $optional {
            const KEYS: &'static [&'static str] = &["version", $(stringify!($name),)+];
            const OLD_KEYS: &'static [&'static str] = &[$($($alias,)?)+];

            fn stated(&self) -> Vec<&'static str> {
                let mut stated = Vec::new();
                $(if self.$name.is_some() { stated.push(stringify!($name)); })+
                stated
            }

            fn over(self, below: Self) -> Self {
                Self { version: self.version.or(below.version), $($name: self.$name.or(below.$name),)+ }
            }
        }
    };
}
use settings;

/// The saved settings of a run to go on with; only settings in `free` may be stated anew.
///
/// # Errors
/// [`Error::User`](crate::Error::User) names the first setting that cannot change.
pub(crate) fn resume<S: Settings>(saved: S, asked: S, free: &[&str]) -> crate::Result<S> {
    match asked.stated().into_iter().find(|setting| !free.contains(setting)) {
        Some(setting) => Err(crate::Error::user(
            format!("`{setting}` cannot change when a run is resumed"),
            format!("leave it out, or start a new run; only {} may change", free.join(", ")),
        )),
        None => Ok(asked.over(saved)),
    }
}
