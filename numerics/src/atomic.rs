//! Files that are either complete or absent.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::{Error, Result};

/// Writes a file through a temporary sibling, which is renamed when it is complete.
///
/// At every moment, even after a power loss, `path` holds either its old or its new content: file and folder are
/// synced. If `fill` fails or panics, the temporary file is removed and the old file stays. A symbolic link is
/// followed, not replaced.
///
/// # Errors
/// [`Error::Write`] with the path and the cause, such as a full disk or a missing folder.
pub fn write(path: impl AsRef<Path>, fill: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
    let path = path.as_ref();
    replace(path, fill).map_err(|source| Error::Write { path: path.to_path_buf(), source })
}

fn replace(path: &Path, fill: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    if target.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    let (sibling, file) = Sibling::create(&target)?;
    let mut writer = BufWriter::new(file);
    fill(&mut writer)?;
    // The file stays open, and so locked, until it has its name.
    let file = writer.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.sync_all()?;
    sibling.rename_to(&target)
}

/// Tries whether a file can be written in `folder`, by writing one and removing it: permissions alone do not tell.
///
/// # Errors
/// Those of the file system, such as a full disk.
pub fn try_writing(folder: impl AsRef<Path>) -> io::Result<()> {
    let (_sibling, mut file) = Sibling::create(&folder.as_ref().join("trial"))?;
    // As much as a disk gives out at once: an empty file fits on many a full disk.
    file.write_all(&[0; 4096])?;
    file.sync_data()
}

/// End of a temporary file's name: `.report.json.4711-0.partial`, with the process and a number.
const PARTIAL: &str = ".partial";

/// Removes from `folder` the temporary files that processes left there which ended while they wrote.
///
/// A process locks its temporary file, and the system releases the lock when the process ends, however that happens. So
/// a file that can be locked has no writer any more. Where the file system has no locks, nothing is removed.
///
/// # Errors
/// Those of listing the folder, and of removing a file.
pub fn remove_leftovers(folder: impl AsRef<Path>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if is_partial(&entry.path()) && entry.file_type()?.is_file() {
            remove_unless_written(&entry.path())?;
        }
    }
    Ok(())
}

/// Whether [`write()`] gives a temporary file a name of this form.
pub fn is_partial(path: &Path) -> bool {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let parts = name.strip_prefix('.').and_then(|name| name.strip_suffix(PARTIAL)?.rsplit_once('.'));
    let numbers = parts.filter(|(name, _)| !name.is_empty()).and_then(|(_, numbers)| numbers.split_once('-'));
    numbers.is_some_and(|(process, count)| is_number(process) && is_number(count))
}

fn remove_unless_written(path: &Path) -> io::Result<()> {
    // A file that cannot be opened belongs to somebody else, or is gone.
    let Ok(file) = OpenOptions::new().write(true).open(path) else { return Ok(()) };
    match file.try_lock() {
        Ok(()) => match fs::remove_file(path) {
            // Another process removed it, or its writer gave it its name.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        },
        Err(_) => Ok(()),
    }
}

/// Locks a new file, and says whether it still has its name. A file system without locks is no reason not to write.
fn hold(file: &File) -> io::Result<bool> {
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => Ok(false),
        _ => has_name(file),
    }
}

#[cfg(unix)]
fn has_name(file: &File) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    Ok(file.metadata()?.nlink() > 0)
}

#[cfg(not(unix))]
fn has_name(_file: &File) -> io::Result<bool> {
    Ok(true)
}

/// A temporary file that is removed on drop unless it was renamed.
struct Sibling {
    path: Option<PathBuf>,
}

impl Sibling {
    fn create(target: &Path) -> io::Result<(Self, File)> {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        let name = target.file_name().ok_or(io::ErrorKind::InvalidFilename)?.to_string_lossy();
        loop {
            let number = COUNTER.fetch_add(1, Ordering::Relaxed);
            let path = target.with_file_name(format!(".{name}.{}-{number}{PARTIAL}", process::id()));
            match OpenOptions::new().write(true).create_new(true).open(&path) {
                Ok(file) if hold(&file)? => return Ok((Self { path: Some(path) }, file)),
                // Another process took it for a leftover before it was locked.
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn rename_to(mut self, target: &Path) -> io::Result<()> {
        if let Some(path) = &self.path {
            fs::rename(path, target)?;
        }
        self.path = None;
        sync_folder(target)
    }
}

impl Drop for Sibling {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            // An error is ignored: nothing else can remove the temporary file.
            let _ = fs::remove_file(path);
        }
    }
}

/// Syncs the folder, so that the rename survives a power loss.
#[cfg(unix)]
fn sync_folder(target: &Path) -> io::Result<()> {
    let folder = target.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(not(unix))]
fn sync_folder(_target: &Path) -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(folder: &Path) -> Vec<String> {
        let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<_> = names.map(|name| name.into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_trial_leaves_nothing_and_tells_a_missing_folder() {
        let folder = tempfile::tempdir().unwrap();
        try_writing(folder.path()).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        let missing = try_writing(folder.path().join("missing")).unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_written_file_holds_the_bytes_and_nothing_else_appears() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("report.json");
        write(&path, |out| out.write_all(b"old")).unwrap();
        write(&path, |out| out.write_all(b"new content")).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new content");
        assert_eq!(entries(folder.path()), ["report.json"]);
    }

    #[test]
    fn a_failing_writer_leaves_the_old_file_and_no_litter() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("adapter.safetensors");
        write(&path, |out| out.write_all(b"precious")).unwrap();
        let error = write(&path, |out| {
            out.write_all(&[0; 100_000])?;
            Err(io::ErrorKind::StorageFull.into())
        })
        .unwrap_err();
        assert!(error.to_string().contains("adapter.safetensors"));
        assert!(error.hint().unwrap().contains("space"));
        assert_eq!(fs::read(&path).unwrap(), b"precious");
        assert_eq!(entries(folder.path()), ["adapter.safetensors"]);
    }

    #[test]
    fn a_panicking_writer_leaves_the_old_file_and_no_litter() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        write(&path, |out| out.write_all(b"precious")).unwrap();
        let outcome = std::panic::catch_unwind(|| write(&path, |_| panic!("bug in the caller")));
        assert!(outcome.is_err());
        assert_eq!(fs::read(&path).unwrap(), b"precious");
        assert_eq!(entries(folder.path()), ["state"]);
    }

    #[test]
    fn leftovers_are_removed_and_nothing_else_is() {
        let folder = tempfile::tempdir().unwrap();
        let kept = [".mine.partial", ".a.7-x.partial", "a.7-0.partial", ".7-0.partial", "notes.txt", ".a.7-0.partial~"];
        for name in kept.into_iter().chain([".state.safetensors.7-0.partial", ".run.toml.4294967295-12.partial"]) {
            write(folder.path().join(name), |out| out.write_all(b"half")).unwrap();
        }
        fs::create_dir(folder.path().join(".folder.7-0.partial")).unwrap();
        remove_leftovers(folder.path()).unwrap();
        let mut kept = kept.map(str::to_owned).to_vec();
        kept.push(".folder.7-0.partial".into());
        kept.sort();
        assert_eq!(entries(folder.path()), kept);
    }

    #[test]
    fn a_file_that_is_being_written_is_no_leftover() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("adapter.safetensors");
        write(&path, |out| {
            remove_leftovers(folder.path())?;
            out.write_all(b"whole")
        })
        .unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"whole");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_is_reported_with_the_path() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights");
        let error = write(&path, |_| {
            let mut full = OpenOptions::new().write(true).open("/dev/full")?;
            full.write_all(b"does not fit")
        })
        .unwrap_err();
        assert!(matches!(&error, Error::Write { path: reported, source }
            if *reported == path && source.kind() == io::ErrorKind::StorageFull));
        assert!(entries(folder.path()).is_empty());
    }

    #[test]
    fn impossible_targets_are_errors() {
        let folder = tempfile::tempdir().unwrap();
        let nowhere = folder.path().join("missing").join("file");
        assert!(write(&nowhere, |_| Ok(())).unwrap_err().hint().unwrap().contains("folder"));
        assert!(write(folder.path(), |_| Ok(())).is_err());
        assert!(write("/", |_| Ok(())).is_err());
    }

    #[cfg(unix)]
    #[test]
    fn a_link_keeps_pointing_at_the_rewritten_file() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("file"), folder.path().join("link"));
        write(&file, |out| out.write_all(b"one")).unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        write(&link, |out| out.write_all(b"two")).unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"two");
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    }
}
