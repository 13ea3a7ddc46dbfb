//! Adapter files in the three spellings of the trade: kohya, diffusers and PEFT.
//!
//! Reading is strict: every tensor finds its place in the base model or the file is refused, and
//! what matched is reported. Nothing is guessed: names are looked up in the list of the base's
//! modules. Writing is deterministic: the same adapter and metadata give the same bytes.

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
mod write;

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

pub use inspect::{InspectedModule, Inspection, inspect};
pub use metadata::{FORMAT_VERSION, Metadata, TrainedOn};
pub use privacy::Disclosure;
pub use read::{LoadedAdapter, UnmatchedKeys, read, read_with};
pub use report::{MatchReport, Matched};
pub use write::write;

use crate::error::{Error, Result};
pub use crate::kind::AdapterKind;
use crate::module::ModuleInfo;

/// How an adapter's tensors are named.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// `lora_unet_….lora_down.weight` with an alpha tensor for each module: read by A1111, Forge,
    /// ComfyUI, stable-diffusion.cpp and diffusers. For SDXL the blocks are counted as in the
    /// original code base. (diffusers 0.42 overlooks alphas that differ from module to module
    /// here; such an adapter is better given to it in its own spelling.)
    #[default]
    Kohya,
    /// `unet.….lora.down.weight`, as diffusers' training scripts write; alphas in the header.
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

/// Reads a file for the base with these modules and writes it in another format. What the file
/// says about itself is kept, except for local paths.
///
/// # Errors
/// As [`read`] and [`write()`].
pub fn convert(from: &Path, to: &Path, format: Format, modules: &[ModuleInfo]) -> Result<MatchReport> {
    let mut loaded = read(from, modules)?;
    let base = &mut loaded.metadata.base;
    base.family = base.family.or(crate::family::BaseFamily::of_modules(modules));
    write(to, &loaded.adapter, format, &loaded.metadata)?;
    Ok(loaded.report)
}
