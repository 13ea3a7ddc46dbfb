//! Folders that workflows write into, and the one rule for them: what catelier did not make is never deleted or replaced,
//! nor, without `force`, added to.
//!
//! An output folder is new, empty, or marked as the output of the same command by a small file, [`MARKER`]: format, version,
//! command, whether the command finished, and who writes there now. Any other folder is refused by the name of the first
//! file in it. `force` writes beside such files; a file that the command would have to delete or replace is refused even
//! then. While a command writes, its folder is locked, and a second process is refused.

mod lock;
mod sums;

use std::cell::Cell;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use catelier_numerics::{atomic, bounded};
use serde::{Deserialize, Serialize};

use crate::error::{Context, Error, Result};
use crate::session::Session;
use lock::FolderLock;
pub(crate) use sums::{line_with_sum, split_line, sum_of_text, with_sum};

/// Name of the marker file.
pub const MARKER: &str = ".catelier.json";

const FORMAT: &str = "catelier-output";
const VERSION: u32 = 1;

/// Largest marker.
const LARGEST_MARKER: u64 = 64 << 10;

/// What a marker says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marker {
    format: String,
    version: u32,
    /// The command that made the folder, such as `demo`.
    pub command: String,
    /// Whether the command came to its end.
    pub finished: bool,
    /// The process that writes there; `None` where none does. One that was killed leaves its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub writer: Option<Writer>,
    /// SHA-256 of the marker without this entry; older markers have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sha256: Option<String>,
}

/// A process that writes into a folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Writer {
    /// Its number.
    pub process: u32,
    /// When it began, in seconds since 1970.
    pub since: u64,
}

/// A folder that one command writes, alone: it is locked until this is dropped.
///
/// Dropped before [`begin`](Self::begin), or before there is a file, it leaves the folder as it was found.
#[derive(Debug)]
pub struct OutputFolder {
    path: PathBuf,
    command: &'static str,
    force: bool,
    _lock: FolderLock,
    /// The folders that were not there: this one, then those around it.
    new_folders: Vec<PathBuf>,
    /// The marker that was found.
    before: Option<Marker>,
    /// Whether files of the names that the command writes are its own.
    is_own: bool,
    stage: Cell<Stage>,
}

/// How far a command is with its folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The folder is locked, and nothing is written.
    Locked,
    /// The marker names this process.
    Announced,
    /// The command writes its files.
    Begun,
    /// The command came to its end.
    Finished,
}

impl OutputFolder {
    /// Makes the folder for `command`, or takes over one that an earlier run of the same command made. With `force`, the
    /// command may write beside files that it did not make.
    ///
    /// # Errors
    /// [`Error::User`] for a folder that holds something else, by name, and for one that another process writes;
    /// [`Error::Failed`] for a folder that cannot be written.
    pub fn claim(path: &Path, command: &'static str, force: bool, session: &Session<'_>) -> Result<Self> {
        let mut folder = Self::lock(path, command, force, session)?;
        let refusal = match folder.before {
            Some(_) => folder.of_another_command(),
            None => folder.first_file()?.map(|file| folder.in_the_way(&folder.path.join(file))),
        };
        folder.is_own = refusal.is_none();
        if let Some(error) = refusal.filter(|_| !force) {
            return Err(error);
        }
        folder.announce(session)?;
        Ok(folder)
    }

    /// The folder of a run to go on with. One without a marker was made before there were markers.
    ///
    /// # Errors
    /// [`Error::User`] for a folder of another command, and for one that another process writes.
    pub(crate) fn reopen(path: &Path, command: &'static str, session: &Session<'_>) -> Result<Self> {
        let mut folder = Self::lock(path, command, false, session)?;
        if let Some(error) = folder.of_another_command() {
            return Err(error);
        }
        folder.is_own = true;
        folder.announce(session)?;
        Ok(folder)
    }

    fn lock(path: &Path, command: &'static str, force: bool, session: &Session<'_>) -> Result<Self> {
        try_writing(path)?;
        let is_new = |folder: &&Path| !folder.as_os_str().is_empty() && !folder.exists();
        let new_folders = path.ancestors().take_while(is_new).map(Path::to_path_buf).collect();
        let _lock = FolderLock::take(path, session)?;
        let (before, stage) = (Marker::read(path)?, Cell::new(Stage::Locked));
        Ok(Self { path: path.to_path_buf(), command, force, _lock, new_folders, before, is_own: false, stage })
    }

    /// Names this process in the marker, so that a second one can be told.
    fn announce(&self, session: &Session<'_>) -> Result<()> {
        if let Err(error) = self.remove_leftovers() {
            session.warn(format!("leftovers in `{}` cannot be removed: {error}", self.path.display()));
        }
        let finished = self.before.as_ref().is_some_and(|marker| marker.finished);
        self.mark(finished, Some(Writer::this_process()))?;
        self.stage.set(Stage::Announced);
        Ok(())
    }

    /// Removes files that killed commands left half written: in all of an own folder, at the top of another one.
    fn remove_leftovers(&self) -> std::io::Result<()> {
        let files = if self.is_own { files_below(&self.path)? } else { Vec::new() };
        let partials = files.iter().filter(|file| atomic::is_partial(file));
        let folders: BTreeSet<PathBuf> = partials.filter_map(|file| Some(self.path.join(file.parent()?))).collect();
        folders.iter().chain([&self.path]).try_for_each(atomic::remove_leftovers)
    }

    /// Notes that the command writes its files from now on.
    ///
    /// # Errors
    /// [`Error::Failed`] when the marker cannot be written.
    pub fn begin(&self) -> Result<()> {
        if self.stage.replace(Stage::Begun) == Stage::Begun {
            return Ok(());
        }
        self.mark(false, Some(Writer::this_process()))
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the command had come to its end in this folder before.
    pub fn was_finished(&self) -> bool {
        self.is_own && self.before.as_ref().is_some_and(|marker| marker.finished)
    }

    /// Notes that the command came to its end.
    ///
    /// # Errors
    /// [`Error::Failed`] when the marker cannot be written.
    pub fn finish(&self) -> Result<()> {
        self.mark(true, None)?;
        self.stage.set(Stage::Finished);
        Ok(())
    }

    /// Refuses to write any of `names` where a file of that name is not known to be the command's.
    ///
    /// # Errors
    /// [`Error::User`] names the first file in the way.
    pub(crate) fn refuse_unknown(&self, names: &[&str]) -> Result<()> {
        if self.is_own { Ok(()) } else { self.refuse(names) }
    }

    /// Refuses to write any of `names` where there is such a file.
    ///
    /// # Errors
    /// [`Error::User`] names the first file in the way.
    pub(crate) fn refuse(&self, names: &[&str]) -> Result<()> {
        let found = names.iter().map(|name| self.path.join(name)).find(|path| exists(path));
        found.map_or(Ok(()), |path| Err(self.in_the_way(&path)))
    }

    /// Begins, and deletes what an earlier run left in the folder `part`, where `made` knows every file that the command
    /// makes by its path in it.
    ///
    /// # Errors
    /// Those of [`to_clear`](Self::to_clear), and then nothing is deleted; [`Error::Failed`] for a file that cannot be.
    pub(crate) fn clear(&self, part: &Path, made: &dyn Fn(&Path) -> bool) -> Result<()> {
        let paths = self.to_clear(part, made)?;
        self.begin()?;
        for path in paths {
            fs::remove_file(&path).failed(format!("cannot replace `{}`", path.display()))?;
            // Folders that are empty now go too; others stay.
            let emptied = path.ancestors().skip(1).take_while(|folder| **folder != *self.path);
            let _ = emptied.map(fs::remove_dir).take_while(std::result::Result::is_ok).count();
        }
        Ok(())
    }

    /// The files that [`clear`](Self::clear) deletes.
    ///
    /// # Errors
    /// [`Error::User`] names a file that `made` does not know, or one that the command may not have made.
    pub(crate) fn to_clear(&self, part: &Path, made: &dyn Fn(&Path) -> bool) -> Result<Vec<PathBuf>> {
        let root = self.path.join(part);
        let files = files_below(&root).failed(format!("cannot read `{}`", root.display()))?;
        let files: Vec<PathBuf> =
            files.into_iter().filter(|file| !is_ours_to_keep(&root.join(file), &self.path)).collect();
        let may_not = |file: &&PathBuf| if made(file) { !self.is_own } else { !self.force };
        match files.iter().find(may_not) {
            Some(file) => Err(self.in_the_way(&root.join(file))),
            None => Ok(files.iter().filter(|file| made(file)).map(|file| root.join(file)).collect()),
        }
    }

    /// The first file in the folder that no write of this program left.
    fn first_file(&self) -> Result<Option<PathBuf>> {
        let files = files_below(&self.path).user_error(format!("cannot read `{}`", self.path.display()))?;
        let is_content =
            |file: &PathBuf| !is_ours_to_keep(&self.path.join(file), &self.path) && !atomic::is_partial(file);
        Ok(files.into_iter().find(is_content))
    }

    /// The refusal of a folder with the marker of another command.
    fn of_another_command(&self) -> Option<Error> {
        let marker = self.before.as_ref().filter(|marker| marker.command != self.command)?;
        let message = format!("`{}` holds the output of `catelier {}`", self.path.display(), marker.command);
        Some(Error::user(message, "choose another `--out`"))
    }

    fn in_the_way(&self, file: &Path) -> Error {
        let beside = if self.force { "" } else { "; `--force` writes beside it, and never replaces it" };
        Error::user(
            format!("`{}` is in the way, and `catelier {}` did not make it", file.display(), self.command),
            format!("choose another `--out`, or move the file away{beside}"),
        )
    }

    /// Writes the marker, unless the folder has that of another command.
    fn mark(&self, finished: bool, writer: Option<Writer>) -> Result<()> {
        match &self.before {
            Some(marker) if marker.command != self.command => Ok(()),
            _ => Marker::new(self.command, finished, writer).write(&self.path),
        }
    }

    /// Leaves the folder as it was found.
    fn undo(&self) -> Result<()> {
        match &self.before {
            Some(marker) => self.mark(marker.finished, None),
            None => fs::remove_file(self.path.join(MARKER)).failed("cannot remove the marker"),
        }
    }
}

impl Drop for OutputFolder {
    fn drop(&mut self) {
        // Errors are ignored: a marker that names a process that is gone does no harm.
        let _ = match self.stage.get() {
            Stage::Locked | Stage::Finished => Ok(()),
            Stage::Announced => self.undo(),
            Stage::Begun if self.before.is_none() && matches!(self.first_file(), Ok(None)) => self.undo(),
            Stage::Begun => self.mark(false, None),
        };
        // Folders with a file in them stay.
        let _ = self.new_folders.iter().map(fs::remove_dir).take_while(std::result::Result::is_ok).count();
    }
}

impl Writer {
    fn this_process() -> Self {
        Self { process: std::process::id(), since: now() }
    }
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0, |elapsed| elapsed.as_secs())
}

impl Marker {
    fn new(command: &str, finished: bool, writer: Option<Writer>) -> Self {
        let marker =
            Self { format: FORMAT.into(), version: VERSION, command: command.into(), finished, writer, sha256: None };
        Self { sha256: marker.sum(), ..marker }
    }

    /// The marker of `folder`; `None` where there is none.
    ///
    /// # Errors
    /// [`Error::User`] for a marker that is damaged, or that this version cannot read.
    pub fn read(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join(MARKER);
        let text = match bounded::read_text(&path, LARGEST_MARKER) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            text => text.user_error(format!("cannot read `{}`", path.display()))?,
        };
        let marker: Self = serde_json::from_str(&text).user_error(format!("`{}` is no marker", path.display()))?;
        if marker.format != FORMAT || marker.version > VERSION {
            let (format, version) = (&marker.format, marker.version);
            return Err(Error::user(
                format!("`{}` is a `{format}` of version {version}", path.display()),
                "a newer program made this folder: use that one, or choose another folder",
            ));
        }
        if marker.sha256.is_some() && marker.sha256 != marker.sum() {
            return Err(Error::user(
                format!("`{}` is damaged: its checksum does not hold", path.display()),
                "choose another folder, or remove that file; a training run can be resumed without it",
            ));
        }
        Ok(Some(marker))
    }

    fn write(&self, folder: &Path) -> Result<()> {
        let text = serde_json::to_string(self).failed("cannot write a marker")?;
        write_text(&folder.join(MARKER), &(text + "\n"))
    }

    /// The checksum of what the marker says.
    fn sum(&self) -> Option<String> {
        let content = serde_json::to_string(&Self { sha256: None, ..self.clone() }).ok()?;
        Some(sums::sha256(&content))
    }
}

/// Whether a file is the marker or the lock of `folder`.
fn is_ours_to_keep(file: &Path, folder: &Path) -> bool {
    [MARKER, lock::FILE].iter().any(|name| *file == folder.join(name))
}

/// Whether there is something at `path`; a link counts wherever it leads.
fn exists(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
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

/// Prepares one file that a command writes, and that nothing else makes: a file that is there is replaced only by `force`.
///
/// # Errors
/// [`Error::User`] for a file that is there, for a folder in its place, and where there is no folder for it; those of
/// [`try_writing`].
pub(crate) fn new_file(path: &Path, force: bool) -> Result<()> {
    if path.is_dir() {
        return Err(Error::user(format!("`{}` is a folder", path.display()), "choose another `--out`"));
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !folder.is_dir() {
        return Err(Error::user(format!("there is no folder `{}`", folder.display()), "create the folder first"));
    }
    try_writing(folder)?;
    match exists(path) && !force {
        true => Err(Error::user(
            format!("`{}` exists already", path.display()),
            "choose another `--out`, or replace the file by `--force`",
        )),
        false => Ok(()),
    }
}

/// Makes a folder for results, so that a wrong path fails before the work and not after it.
pub(crate) fn make_folder(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).user_error(format!("cannot make the folder `{}`", folder.display()))
}

/// Writes a text file whole or not at all.
pub(crate) fn write_text(path: &Path, text: &str) -> Result<()> {
    atomic::write(path, |file| file.write_all(text.as_bytes())).failed(format!("cannot write `{}`", path.display()))
}

/// Tries whether `folder` can be made and written in, by [`atomic::try_writing`]. A folder that is not there yet is not
/// made, so that a request that is refused later leaves nothing.
///
/// # Errors
/// [`Error::User`] where the user may not write, [`Error::Failed`] for a disk that is full, read-only or broken.
fn try_writing(folder: &Path) -> Result<()> {
    // `a/b` in the current folder: the last ancestor is the empty path, which does not exist.
    let nearest = folder.ancestors().find(|path| path.exists()).unwrap_or(Path::new("."));
    // What killed commands left there, trials among it; a folder that cannot be listed has nothing of ours.
    let _ = atomic::remove_leftovers(nearest);
    atomic::try_writing(nearest).user_error(format!("cannot write in `{}`", folder.display()))
}

/// Refuses a path that the file `what`, which is text, could not name.
///
/// # Errors
/// [`Error::User`] for a path that is not UTF-8.
pub fn check_utf8(path: &Path, what: &str) -> Result<()> {
    match path.to_str() {
        Some(_) => Ok(()),
        None => Err(Error::user(
            format!("`{}` is not UTF-8, and {what} could not name it", path.display()),
            "rename the folder",
        )),
    }
}

#[cfg(test)]
mod tests;
