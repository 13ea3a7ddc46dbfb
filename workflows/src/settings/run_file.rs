//! Settings on disk: TOML with the keys of the settings and a version.

use std::path::Path;

use catelier_numerics::bounded;
use serde::{Deserialize, Serialize};
use toml::de::DeTable;

use super::Settings;
use crate::error::{Context, Error, Result};
use crate::output;

/// Version of the form in which settings are saved; it rises when a key changes its meaning.
pub const VERSION: u32 = 1;

/// Largest run file; those that are saved have a few kilobytes.
const LARGEST_FILE: u64 = 1 << 20;

/// Least similarity (Jaro and Winkler, 0..=1) of a key that is offered in place of an unknown one.
const SIMILAR: f64 = 0.8;

/// Reads the settings in a run file, of this version or of one before versions were written.
///
/// # Errors
/// [`Error::User`] for a file that cannot be read, a later version, an unknown key or a value that is none of its key.
pub fn read<S: Settings>(path: &Path) -> Result<S> {
    parse_file(path, &read_text(path)?)
}

/// As [`read`], for the settings of a run to go on with: a file that [`save`] wrote must be as it was saved. One of a
/// program that saved no checksum is read as it is.
///
/// # Errors
/// As [`read`], and [`Error::User`] for a file that was changed.
pub(crate) fn read_saved<S: Settings>(path: &Path) -> Result<S> {
    let text = read_text(path)?;
    let settings = parse_file(path, &text)?;
    if output::sum_of_text(&text) == Some(false) {
        return Err(Error::user(
            format!("run file `{}` is not as it was saved: its checksum does not hold", path.display()),
            "restore it; if the change is meant, remove the last line, or give changed settings as flags",
        ));
    }
    Ok(settings)
}

/// Saves resolved settings in the form that [`read`] reads, with a checksum in the last line.
///
/// # Errors
/// [`Error::Failed`] when the file cannot be written.
pub(crate) fn save(path: &Path, settings: &impl Serialize) -> Result<()> {
    save_with_note(path, "", settings)
}

/// [`save`], below `note`, lines of comments.
///
/// # Errors
/// Those of [`save`].
pub(crate) fn save_with_note(path: &Path, note: &str, settings: &impl Serialize) -> Result<()> {
    let text = toml::to_string(settings).failed("cannot write the settings as TOML")?;
    output::write_text(path, &output::with_sum(&format!("{note}{text}")))
}

fn read_text(path: &Path) -> Result<String> {
    bounded::read_text(path, LARGEST_FILE).user_error(format!("cannot read run file `{}`", path.display()))
}

fn parse_file<S: Settings>(path: &Path, text: &str) -> Result<S> {
    parse(text).user_error(format!("run file `{}` cannot be used", path.display()))
}

fn parse<S: Settings>(text: &str) -> Result<S> {
    let table = DeTable::parse(text).map_err(|error| wrong(text, &error))?;
    refuse_later_version(text)?;
    for key in table.get_ref().keys() {
        let name = key.get_ref().as_ref();
        if !S::KEYS.contains(&name) && !S::OLD_KEYS.contains(&name) {
            return Err(unknown_key::<S>(key.get_ref(), line_of(text, key.span().start)));
        }
    }
    toml::from_str(text).map_err(|error| wrong(text, &error))
}

fn refuse_later_version(text: &str) -> Result<()> {
    #[derive(Deserialize)]
    struct Head {
        version: Option<u32>,
    }
    let head: Head = toml::from_str(text).map_err(|error| wrong(text, &error))?;
    match head.version {
        Some(version) if version > VERSION => Err(Error::user(
            format!("it has version {version}, and this program reads versions up to {VERSION}"),
            "use the program that saved it or a newer one, or write the settings anew without `version`",
        )),
        _ => Ok(()),
    }
}

fn unknown_key<S: Settings>(key: &str, line: usize) -> Error {
    let similarity = |known: &&&str| strsim::jaro_winkler(key, known);
    let nearest = S::KEYS.iter().max_by(|one, other| similarity(one).total_cmp(&similarity(other)));
    let hint = match nearest {
        Some(known) if similarity(&known) >= SIMILAR => format!("the key may be `{known}`"),
        _ => format!("the keys are {}", S::KEYS.join(", ")),
    };
    Error::user(format!("line {line}: unknown key `{key}`"), hint)
}

/// What TOML or a value's type has against the text, with its line.
fn wrong(text: &str, error: &toml::de::Error) -> Error {
    let line = error.span().map_or(1, |span| line_of(text, span.start));
    let found = text.lines().nth(line - 1).unwrap_or_default().trim();
    Error::user(format!("line {line}, `{found}`: {}", error.message()), "correct the line, or leave it out")
}

/// The line of a byte, counted from 1.
fn line_of(text: &str, byte: usize) -> usize {
    text.as_bytes().iter().take(byte).filter(|byte| **byte == b'\n').count() + 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::{BaseDefaults, TrainSettings};

    fn refused(text: &str) -> (String, String) {
        let error = parse::<TrainSettings>(text).unwrap_err();
        (error.to_string(), error.hint().unwrap())
    }

    fn complete() -> TrainSettings {
        TrainSettings { images: Some("art".into()), trigger: Some("shs".into()), ..TrainSettings::default() }
    }

    #[test]
    fn resolved_settings_are_read_back_as_they_were_saved() {
        let base = BaseDefaults { is_embedded: true, resolution: 64 };
        let resolved = complete().resolve(&base).unwrap();
        let text = toml::to_string(&resolved).unwrap();
        assert!(text.starts_with("version = 1\n"), "{text}");
        assert_eq!(toml::from_str::<crate::settings::ResolvedTrain>(&text).unwrap(), resolved);
        let other_base = BaseDefaults { is_embedded: false, resolution: 512 };
        assert_eq!(parse::<TrainSettings>(&text).unwrap().resolve(&other_base).unwrap(), resolved);
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line_and_the_nearest_known_one() {
        let (message, hint) = refused("images = \"art\"\n\nlearing_rate = 1.0\n");
        assert_eq!(
            (message.as_str(), hint.as_str()),
            ("line 3: unknown key `learing_rate`", "the key may be `learning_rate`")
        );
        let (_, hint) = refused("zzz = 1");
        assert!(hint.contains("min_snr_gamma, kind, rank") && !hint.contains("cat_bank"), "{hint}");
    }

    #[test]
    fn a_value_that_is_none_of_its_key_is_named_with_its_line() {
        let (message, _) = refused("rank = 4\nloss = \"best\"\n");
        assert!(message.starts_with("line 2, `loss = \"best\"`: unknown variant `best`"), "{message}");
        let (message, _) = refused("rank = [1\n");
        assert!(message.starts_with("line "), "{message}");
    }

    #[test]
    fn a_later_version_is_refused_with_what_to_do() {
        let (message, hint) = refused("version = 2\nsome_new_key = 1\n");
        assert!(message.contains("version 2") && message.contains("up to 1"), "{message}");
        assert!(hint.contains("newer"), "{hint}");
    }

    #[test]
    fn files_without_a_version_and_with_old_names_are_read() {
        let old = "images = \"art\"\ntrigger = \"shs\"\ncat_bank = 2\nclass_pictures = 3\ncrop = \"center\"\nmemory_limit = \"auto\"\ndevice = \"cpu\"\n";
        let settings: TrainSettings = parse(old).unwrap();
        assert_eq!((settings.cat_cached_draws, settings.class_images), (Some(2), Some(3)));
    }
}
