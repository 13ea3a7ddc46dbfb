//! Artists as a request names them: folders of pictures, and adapters.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use catelier_adapters::file;
use catelier_style::{ADAPTER_ENTRY, StyleEntry};

use crate::error::{Context, Error, Result};
use crate::{drawn, images};

/// A folder of pictures, a folder of such folders, or an adapter: `PATH` or `NAME=PATH` in text, where a name has no slash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArtistSource {
    /// The artist's name; `None` takes it from the path or the adapter.
    pub name: Option<String>,
    /// The folder or file.
    pub path: PathBuf,
}

impl FromStr for ArtistSource {
    type Err = Infallible;

    fn from_str(text: &str) -> std::result::Result<Self, Infallible> {
        Ok(match text.split_once('=') {
            Some((name, path)) if !name.is_empty() && !path.is_empty() && !name.contains(['/', '\\']) => {
                Self { name: Some(name.to_owned()), path: path.into() }
            }
            _ => Self { name: None, path: text.into() },
        })
    }
}

/// What is known of one artist.
#[derive(Debug, Default)]
pub(super) struct Known {
    pub(super) pictures: Vec<PathBuf>,
    pub(super) adapter: Option<AdapterFile>,
}

/// An adapter, and the prototypes in its header.
#[derive(Debug)]
pub(super) struct AdapterFile {
    pub(super) path: PathBuf,
    pub(super) hash: String,
    pub(super) entry: Option<StyleEntry>,
}

/// Artists by name.
pub(super) type Artists = BTreeMap<String, Known>;

/// Everything that the sources name. Sources of one name are one artist.
///
/// # Errors
/// [`Error::User`] for a path that is neither, two adapters of one artist, and an adapter that cannot be read.
pub(super) fn gather(sources: &[ArtistSource]) -> Result<Artists> {
    let mut artists = Artists::new();
    for source in sources {
        let ArtistSource { name, path } = source;
        match path.is_dir() && !is_adapter_folder(path) {
            true => gather_folder(&mut artists, name.as_deref(), path)?,
            false => gather_adapter(&mut artists, name.as_deref(), path)?,
        }
    }
    Ok(artists)
}

/// PEFT keeps an adapter in a folder.
fn is_adapter_folder(path: &Path) -> bool {
    path.join(file::PEFT_FILE).is_file()
}

fn gather_folder(artists: &mut Artists, name: Option<&str>, folder: &Path) -> Result<()> {
    drawn::refuse_part(folder)?;
    let pictures = images::paths(folder)?;
    if !pictures.is_empty() {
        let name = name.map_or_else(|| name_of(folder), |name| Ok(name.to_owned()))?;
        artists.entry(name).or_default().pictures.extend(pictures);
        return Ok(());
    }
    let folders = images::folders(folder)?;
    if folders.is_empty() || name.is_some() {
        return Err(Error::user(
            format!("there is no picture in `{}`", folder.display()),
            "give a folder with an artist's pictures, or a folder with a folder for each artist",
        ));
    }
    for folder in folders {
        drawn::refuse_part(&folder)?;
        let pictures = images::paths(&folder)?;
        if !pictures.is_empty() {
            artists.entry(name_of(&folder)?).or_default().pictures.extend(pictures);
        }
    }
    Ok(())
}

fn gather_adapter(artists: &mut Artists, name: Option<&str>, path: &Path) -> Result<()> {
    let inspection = file::inspect(path).user_error(format!("cannot read the adapter `{}`", path.display()))?;
    let entry = inspection.metadata.get(ADAPTER_ENTRY).map(|text| StyleEntry::from_text(text));
    let entry = entry.transpose().user_error(format!("cannot use the prototypes in `{}`", path.display()))?;
    let own_name = entry.as_ref().map(|entry| entry.artist.clone());
    let name = match name.map(str::to_owned).or(own_name) {
        Some(name) => name,
        None => name_of_adapter(path)?,
    };
    let artist = artists.entry(name.clone()).or_default();
    let adapter = AdapterFile { path: path.to_owned(), hash: inspection.model_hash, entry };
    match artist.adapter.replace(adapter) {
        None => Ok(()),
        Some(other) => Err(Error::user(
            format!("`{name}` has two adapters: `{}` and `{}`", other.path.display(), path.display()),
            "give one of them another name, as in `NAME=FILE`",
        )),
    }
}

/// The file's name, or that of its folder where a training gave the file its name.
fn name_of_adapter(path: &Path) -> Result<String> {
    let stem = path.file_stem().unwrap_or_default();
    let folder = path.parent().filter(|folder| folder.file_name().is_some());
    match folder.filter(|_| stem == "adapter") {
        Some(folder) => name_of(folder),
        None => text_of(Path::new(stem)),
    }
}

fn name_of(folder: &Path) -> Result<String> {
    let whole = folder.canonicalize().user_error(format!("cannot read the folder `{}`", folder.display()))?;
    text_of(Path::new(whole.file_name().unwrap_or_default()))
}

fn text_of(name: &Path) -> Result<String> {
    let text = name.to_str().filter(|text| !text.is_empty());
    let unnamed =
        || Error::user(format!("`{}` cannot be an artist's name", name.display()), "give a name, as in `NAME=PATH`");
    text.map(str::to_owned).ok_or_else(unnamed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_stands_before_the_first_sign_and_a_path_has_none() {
        let parsed = |text: &str| {
            let source: ArtistSource = text.parse().unwrap();
            (source.name.unwrap_or_default(), source.path.display().to_string())
        };
        assert_eq!(parsed("ada=works/ada"), ("ada".into(), "works/ada".into()));
        assert_eq!(parsed("works/ada"), (String::new(), "works/ada".into()));
        assert_eq!(parsed("ada=a=b"), ("ada".into(), "a=b".into()));
        assert_eq!(parsed("./a=b"), (String::new(), "./a=b".into()));
        assert_eq!(parsed("=b"), (String::new(), "=b".into()));
    }
}
