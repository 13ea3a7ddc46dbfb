//! Folders that workflows write into, and the one rule for them: what catelier did not make is never deleted or replaced.
//!
//! A folder that a command made has a marker, [`MARKER`], with the command's name and whether it finished. Only a marked
//! folder is written anew by the same command, and only where every file in the way is one that the command makes.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Context, Error, Result};

/// Name of the marker file.
pub const MARKER: &str = ".catelier.json";

const FORMAT: &str = "catelier-output";
const VERSION: u32 = 1;

/// What a marker says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marker {
    format: String,
    version: u32,
    /// The command that made the folder, such as `demo`.
    pub command: String,
    /// Whether the command came to its end.
    pub finished: bool,
}

/// A folder that one command writes, alone.
#[derive(Debug, Clone)]
pub struct OutputFolder {
    path: PathBuf,
    command: &'static str,
}

impl OutputFolder {
    /// Makes the folder for `command`, or takes over one that an earlier run of the same command made.
    ///
    /// # Errors
    /// [`Error::User`] for a folder that holds something else, by name.
    pub fn claim(path: &Path, command: &'static str) -> Result<Self> {
        let folder = Self { path: path.to_path_buf(), command };
        match Marker::read(path)? {
            Some(marker) if marker.command != command => {
                return Err(Error::user(
                    format!("`{}` holds the output of `catelier {}`", path.display(), marker.command),
                    "choose another `--out`",
                ));
            }
            Some(_) => {}
            None => folder.refuse_content()?,
        }
        folder.mark(false)?;
        Ok(folder)
    }

    /// The folder for `command`, beside whatever is there; it has no marker before [`begin`](Self::begin), so that a
    /// request that is refused later marks nothing.
    ///
    /// # Errors
    /// [`Error::User`] for a folder of another command, or one that cannot be made.
    pub(crate) fn at(path: &Path, command: &'static str) -> Result<Self> {
        if let Some(marker) = Marker::read(path)?.filter(|marker| marker.command != command) {
            return Err(Error::user(
                format!("`{}` holds the output of `catelier {}`", path.display(), marker.command),
                "choose another `--out`",
            ));
        }
        make_folder(path)?;
        Ok(Self { path: path.to_path_buf(), command })
    }

    /// Marks the folder: the command writes here from now on.
    ///
    /// # Errors
    /// [`Error::Failed`] when the marker cannot be written.
    pub(crate) fn begin(&self) -> Result<()> {
        self.mark(false)
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Notes that the command came to its end.
    ///
    /// # Errors
    /// [`Error::Failed`] when the marker cannot be written.
    pub fn finish(&self) -> Result<()> {
        self.mark(true)
    }

    /// Deletes what an earlier run left in the folder `part`, where `made` knows every file below it by its path in it.
    ///
    /// # Errors
    /// [`Error::User`] names a file that `made` does not know, and then nothing is deleted.
    pub(crate) fn clear(&self, part: &Path, made: &dyn Fn(&Path) -> bool) -> Result<()> {
        let part = self.path.join(part);
        let files = files_below(&part).failed(format!("cannot read `{}`", part.display()))?;
        if let Some(foreign) = files.iter().find(|file| !made(file)) {
            return Err(self.not_ours(&part.join(foreign)));
        }
        match fs::remove_dir_all(&part) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).failed(format!("cannot replace `{}`", part.display()))
            }
            _ => Ok(()),
        }
    }

    fn refuse_content(&self) -> Result<()> {
        let files = files_below(&self.path).user_error(format!("cannot read `{}`", self.path.display()))?;
        files.first().map_or(Ok(()), |file| Err(self.not_ours(&self.path.join(file))))
    }

    fn not_ours(&self, file: &Path) -> Error {
        Error::user(
            format!("`{}` is in the way, and `catelier {}` did not make it", file.display(), self.command),
            "choose another `--out`, or move the file away",
        )
    }

    fn mark(&self, finished: bool) -> Result<()> {
        make_folder(&self.path)?;
        let marker = Marker { format: FORMAT.into(), version: VERSION, command: self.command.into(), finished };
        let text = serde_json::to_string(&marker).failed("cannot write a marker")?;
        write_text(&self.path.join(MARKER), &(text + "\n"))
    }
}

impl Marker {
    /// The marker of `folder`; `None` where there is none.
    ///
    /// # Errors
    /// [`Error::User`] for a marker that this version cannot read.
    pub fn read(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join(MARKER);
        let text = match fs::read_to_string(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            text => text.user_error(format!("cannot read `{}`", path.display()))?,
        };
        let marker: Self = serde_json::from_str(&text).user_error(format!("`{}` is no marker", path.display()))?;
        if marker.format == FORMAT && marker.version <= VERSION {
            return Ok(Some(marker));
        }
        let (format, version) = (&marker.format, marker.version);
        Err(Error::user(
            format!("`{}` is a `{format}` of version {version}", path.display()),
            "a newer program made this folder: use that one, or choose another `--out`",
        ))
    }
}

/// Paths of all files below `folder`, relative to it and sorted; links are files here, and not followed.
fn files_below(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut files = Vec::new();
    for entry in entries {
        let entry = entry?;
        let name = PathBuf::from(entry.file_name());
        match entry.file_type()?.is_dir() {
            true => files.extend(files_below(&entry.path())?.into_iter().map(|file| name.join(file))),
            false => files.push(name),
        }
    }
    files.sort();
    Ok(files)
}

/// Makes a folder for results, so that a wrong path fails before the work and not after it.
pub(crate) fn make_folder(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).user_error(format!("cannot make the folder `{}`", folder.display()))
}

/// Writes a text file whole or not at all.
pub(crate) fn write_text(path: &Path, text: &str) -> Result<()> {
    catelier_numerics::atomic::write(path, |file| file.write_all(text.as_bytes()))
        .failed(format!("cannot write `{}`", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused<T: std::fmt::Debug>(result: Result<T>) -> String {
        let error = result.unwrap_err();
        assert!(error.is_user_error());
        error.to_string()
    }

    #[test]
    fn a_folder_belongs_to_the_command_that_made_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new");
        OutputFolder::claim(&path, "demo").unwrap().finish().unwrap();
        assert!(Marker::read(&path).unwrap().unwrap().finished);
        OutputFolder::claim(&path, "demo").unwrap();
        assert!(!Marker::read(&path).unwrap().unwrap().finished);
        assert!(refused(OutputFolder::claim(&path, "train")).contains("the output of `catelier demo`"));
    }

    #[test]
    fn content_of_others_is_refused_by_name_and_kept() {
        let folder = tempfile::tempdir().unwrap();
        let own = folder.path().join("images/sunset.png");
        make_folder(own.parent().unwrap()).unwrap();
        write_text(&own, "precious").unwrap();
        assert!(refused(OutputFolder::claim(folder.path(), "demo")).contains("images/sunset.png"));
        let shared = OutputFolder::at(folder.path(), "demo").unwrap();
        assert!(Marker::read(folder.path()).unwrap().is_none());
        shared.begin().unwrap();
        assert!(refused(OutputFolder::at(folder.path(), "train")).contains("the output of `catelier demo`"));
        let numbered = |file: &Path| file.to_string_lossy().starts_with('0');
        assert!(refused(shared.clear(Path::new("images"), &numbered)).contains("images/sunset.png"));
        assert_eq!(fs::read_to_string(&own).unwrap(), "precious");
        fs::rename(&own, own.with_file_name("0001.png")).unwrap();
        shared.clear(Path::new("images"), &numbered).unwrap();
        shared.clear(Path::new("images"), &numbered).unwrap();
        assert!(!own.parent().unwrap().exists());
    }

    #[test]
    fn a_marker_of_a_later_version_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let marker = r#"{"format":"catelier-output","version":2,"command":"demo","finished":true}"#;
        write_text(&folder.path().join(MARKER), marker).unwrap();
        assert!(refused(OutputFolder::claim(folder.path(), "demo")).contains("version 2"));
    }
}
