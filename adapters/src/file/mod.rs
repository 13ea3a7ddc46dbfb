//! Adapter files in three formats: kohya, diffusers and PEFT.
//!
//! Reading is strict: a file is refused unless every tensor belongs to a module of the base model, and the report lists
//! the matches. Nothing is guessed: names are looked up in the list of the base's modules. Writing is deterministic:
//! the same adapter and metadata give the same bytes.

mod blocks;
mod config;
mod contents;
mod hash;
mod inspect;
mod key;
mod metadata;
mod names;
mod privacy;
mod read;
mod report;
mod stored;
mod write;

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

pub use hash::Integrity;
pub use inspect::{InspectedModule, Inspection, inspect};
pub use metadata::{FORMAT_VERSION, Metadata, TrainedOn};
pub use privacy::Disclosure;
pub use read::{LoadedAdapter, UnmatchedKeys, open, read, read_with};
pub use report::{MatchReport, Matched};
pub use stored::{AdapterFile, OpenedAdapter, StoredUpdate};
pub use write::{PEFT_CONFIG, PEFT_FILE, peft_files, write};

use crate::error::{Error, Result};
pub use crate::kind::AdapterKind;
use crate::module::ModuleInfo;

/// The format of an adapter file, which determines the names of its tensors.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// `lora_unet_….lora_down.weight` with an alpha tensor for each module: read by A1111, Forge, ComfyUI,
    /// stable-diffusion.cpp and diffusers. For SDXL, blocks are numbered as in the original code. diffusers 0.42
    /// ignores alphas that differ between modules in this format; write such an adapter for diffusers in
    /// [`Format::Diffusers`].
    #[default]
    Kohya,
    /// `unet.….lora.down.weight`, as written by diffusers' training scripts; alphas are in the header.
    Diffusers,
    /// `base_model.model.….lora_A.weight` beside an `adapter_config.json`.
    Peft,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kohya => "kohya",
            Self::Diffusers => "diffusers",
            Self::Peft => "peft",
        })
    }
}

impl FromStr for Format {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "kohya" => Ok(Self::Kohya),
            "diffusers" => Ok(Self::Diffusers),
            "peft" => Ok(Self::Peft),
            _ => Err(Error::UnknownFormat { name: name.to_owned() }),
        }
    }
}

/// Reads a file for the base with these modules and writes it in another format. The metadata is kept, except for local
/// paths.
///
/// # Errors
/// As [`read`] and [`write()`].
pub fn convert(from: &Path, to: &Path, format: Format, modules: &[ModuleInfo]) -> Result<MatchReport> {
    let loaded = read_to_convert(from, modules)?;
    write(to, &loaded.adapter, format, &loaded.metadata)?;
    Ok(loaded.report)
}

/// As [`read`], with the family of the base where the file does not name one: names of another format may depend on it.
///
/// # Errors
/// As [`read`].
pub fn read_to_convert(from: &Path, modules: &[ModuleInfo]) -> Result<LoadedAdapter> {
    let mut loaded = read(from, modules)?;
    let base = &mut loaded.metadata.base;
    base.family = base.family.or(crate::family::BaseFamily::of_modules(modules));
    Ok(loaded)
}
