//! Adapter files: loaded for a base with a weight each, and converted.

use std::convert::Infallible;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use catelier_adapters::file::{self, Format, Integrity, LoadedAdapter, MatchReport};
use catelier_adapters::{AdapterSet, Error as AdapterError, Fingerprint};
use catelier_pipelines::models::base::BaseModel;
use catelier_prompts::Trigger;

use crate::base::{BaseSource, EMBEDDED};
use crate::error::{Context, Error, Result};
use crate::event::ArtefactKind;
use crate::output::{self, OutputFolder};
use crate::session::Session;

/// An adapter file and how strongly it is applied: `FILE` or `FILE:WEIGHT` in text, where a colon that no number follows
/// belongs to the file's name.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterSource {
    /// The safetensors file or PEFT folder.
    pub path: PathBuf,
    /// What the update is multiplied by.
    pub weight: f64,
}

impl AdapterSource {
    /// The adapter in `path` at weight 1.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), weight: 1.0 }
    }
}

impl FromStr for AdapterSource {
    type Err = Infallible;

    fn from_str(text: &str) -> std::result::Result<Self, Infallible> {
        let parts = text.rsplit_once(':').and_then(|(path, weight)| Some((path, weight.parse::<f64>().ok()?)));
        Ok(match parts {
            Some((path, weight)) if !path.is_empty() => Self { path: path.into(), weight },
            _ => Self::new(text),
        })
    }
}

impl fmt::Display for AdapterSource {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.path.display().fmt(out)
    }
}

/// The adapters of a request, in its order.
pub struct LoadedAdapters {
    /// All of them, each at its weight, where the base computes.
    pub set: AdapterSet,
    /// Each by itself.
    pub files: Vec<(AdapterSource, LoadedAdapter)>,
}

impl LoadedAdapters {
    /// Reads every file for `base` and notes what was matched.
    ///
    /// # Errors
    /// [`Error::User`] for a file that does not fit the base, or a weight that is not finite.
    pub fn read(sources: &[AdapterSource], base: &BaseModel, session: &Session<'_>) -> Result<Self> {
        let modules = base.modules();
        let mut loaded = Self { set: AdapterSet::base(), files: Vec::new() };
        for source in sources {
            if !source.weight.is_finite() {
                return Err(Error::user(format!("`{source}` has no finite weight"), "write it as `FILE:0.8`"));
            }
            let file = file::read(&source.path, &modules)
                .user_error(format!("cannot apply adapter `{source}` to base `{}`", base.name))?;
            session.note(format!("adapter: {source} ({}, weight {})", file.report, source.weight));
            warn_of_changes(source, file.integrity, session);
            check_base(source, &file, base, session)?;
            let adapter = file.adapter.to(base.device(), base.dtype());
            loaded.set.push(&adapter.failed("cannot move the adapter to the device")?, source.weight);
            loaded.files.push((source.clone(), file));
        }
        Ok(loaded)
    }

    /// The trigger that was given, or else the one that the first file names.
    ///
    /// # Errors
    /// [`Error::User`] for a word that cannot be a trigger.
    pub fn trigger(&self, given: Option<&str>) -> Result<Option<Trigger>> {
        let known = self.files.iter().find_map(|(_, file)| file.metadata.trigger.as_deref());
        let trigger = |word| Trigger::new(word).user_error(format!("cannot use the trigger `{word}`"));
        given.or(known).map(trigger).transpose()
    }

    /// The trigger of a request and those that the files name, each once.
    pub fn triggers(&self, requested: Option<&Trigger>) -> Vec<Trigger> {
        let mut triggers: Vec<Trigger> = requested.cloned().into_iter().collect();
        let named = self.files.iter().filter_map(|(_, file)| Trigger::new(file.metadata.trigger.as_deref()?).ok());
        for trigger in named {
            if !triggers.contains(&trigger) {
                triggers.push(trigger);
            }
        }
        triggers
    }

    /// Name and hash of every file, for the text of a PNG.
    pub fn names_and_hashes(&self) -> Vec<(String, String)> {
        let name_and_hash = |(source, file): &(AdapterSource, LoadedAdapter)| {
            let stem = source.path.file_stem().unwrap_or_default();
            (stem.to_string_lossy().into_owned(), file.model_hash.clone())
        };
        self.files.iter().map(name_and_hash).collect()
    }
}

/// Says what the hashes in a file's header have against it.
pub(crate) fn warn_of_changes(source: &AdapterSource, integrity: Integrity, session: &Session<'_>) {
    if let Some(remark) = integrity.remark() {
        session.warn(format!("`{source}`: {remark}"));
    }
}

/// Shapes can agree between bases that were trained apart; the fingerprint tells them apart.
///
/// An adapter may be of use on a model that was tuned from its own base, so that another base is only warned of. Versions of the
/// embedded base have nothing in common but their shapes.
fn check_base(source: &AdapterSource, file: &LoadedAdapter, base: &BaseModel, session: &Session<'_>) -> Result<()> {
    let trained_on = &file.metadata.base;
    let own = Fingerprint::parse(&base.fingerprint);
    if trained_on.fingerprint.as_ref().is_none_or(|fingerprint| Fingerprint::parse(fingerprint).agrees_with(own)) {
        return Ok(());
    }
    let name = trained_on.name.as_deref().unwrap_or("another base");
    if base.name == EMBEDDED && name == EMBEDDED {
        return Err(Error::user(
            format!(
                "`{source}` was trained on another version of the embedded base, whose fingerprint its header holds"
            ),
            "use it with the version of catelier that trained it, or train it anew",
        ));
    }
    session.warn(format!("`{source}` was trained on `{name}`, which is not `{}`", base.name));
    Ok(())
}

/// A conversion as it is asked for.
#[derive(Debug, Clone)]
pub struct ConvertRequest {
    /// The adapter file or PEFT folder.
    pub from: PathBuf,
    /// Whose key names to write.
    pub format: Format,
    /// The base that the adapter belongs to: `embedded`, a folder or a hub id.
    pub base: String,
    /// The new file; of PEFT, the new folder, or the file in it.
    pub out: PathBuf,
    /// Replace a file that is there; in a folder, write beside files that no conversion made.
    pub force: bool,
}

/// Writes an adapter under another program's key names.
///
/// # Errors
/// [`Error::User`] for a file that does not fit the base, and for a file in the way; [`Error::Failed`] when the disk fails.
pub fn convert(request: &ConvertRequest, session: &Session<'_>) -> Result<MatchReport> {
    let ConvertRequest { from, format, base, out, .. } = request;
    let folder = request.claim(session)?;
    let modules = BaseSource::parse(base)?.open(session)?.modules();
    let attempt = format!("cannot convert `{}`", from.display());
    let loaded = file::read_to_convert(from, &modules).user_error(&attempt)?;
    warn_of_changes(&AdapterSource::new(from), loaded.integrity, session);
    folder.iter().try_for_each(OutputFolder::begin)?;
    match file::write(out, &loaded.adapter, *format, &loaded.metadata) {
        Err(error @ (AdapterError::Numerics { .. } | AdapterError::Io { .. })) => Err(error).failed(attempt)?,
        // The adapter has something that the format cannot hold.
        written => written.user_error(attempt)?,
    }
    folder.iter().try_for_each(OutputFolder::finish)?;
    session.written(ArtefactKind::Adapter, out);
    Ok(loaded.report)
}

impl ConvertRequest {
    /// Makes sure that nothing of others is replaced; the folder, where one is written.
    fn claim(&self, session: &Session<'_>) -> Result<Option<OutputFolder>> {
        let (tensors, config) = file::peft_files(&self.out);
        if self.format != Format::Peft || tensors == self.out {
            output::new_file(&self.out, self.force)?;
            if self.format == Format::Peft {
                output::new_file(&config, self.force)?;
            }
            return Ok(None);
        }
        let folder = OutputFolder::claim(&self.out, "adapter convert", self.force, session)?;
        folder.refuse_unknown(&[file::PEFT_FILE, file::PEFT_CONFIG])?;
        Ok(Some(folder))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_weight_follows_the_last_colon() {
        let parsed = |text: &str| {
            let source: AdapterSource = text.parse().unwrap();
            (source.path.display().to_string(), source.weight)
        };
        assert_eq!(parsed("a.safetensors"), ("a.safetensors".into(), 1.0));
        assert_eq!(parsed("a.safetensors:0.5"), ("a.safetensors".into(), 0.5));
        assert_eq!(parsed("c:/a.safetensors"), ("c:/a.safetensors".into(), 1.0));
        assert_eq!(parsed("a:b:-1"), ("a:b".into(), -1.0));
    }
}
