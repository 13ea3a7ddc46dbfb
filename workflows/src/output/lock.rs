//! A lock that keeps a second process out of a folder, and that the system releases when the first one ends.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use super::{Marker, Writer, now};
use crate::error::{Context, Error, Result};
use crate::session::Session;

/// The file that is locked where folders cannot be.
pub(super) const FILE: &str = ".catelier.lock";

/// The lock of one folder; `None` where the file system has no locks.
#[derive(Debug)]
pub(super) struct FolderLock(#[expect(dead_code, reason = "the lock lives as long as the open file")] Option<File>);

impl FolderLock {
    /// Makes the folder where there is none, and locks it. A file system without locks is no reason not to write there, so
    /// it is only told.
    ///
    /// # Errors
    /// [`Error::User`] for a folder that another process has locked, and for one that cannot be made.
    pub(super) fn take(folder: &Path, session: &Session<'_>) -> Result<Self> {
        loop {
            super::make_folder(folder)?;
            let file = match open(folder) {
                // Its owner has just removed it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                file => file.user_error(format!("cannot open the folder `{}`", folder.display()))?,
            };
            match file.try_lock() {
                Ok(()) if is_at(&file, folder) => return Ok(Self(Some(file))),
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Err(in_use(folder)),
                Err(TryLockError::Error(error)) => {
                    let folder = folder.display();
                    session
                        .warn(format!("nothing keeps a second process out of `{folder}`: it has no locks ({error})"));
                    return Ok(Self(None));
                }
            }
        }
    }
}

/// On Unix, folders themselves can be locked, which leaves no file.
#[cfg(unix)]
fn open(folder: &Path) -> io::Result<File> {
    File::open(folder)
}

#[cfg(not(unix))]
fn open(folder: &Path) -> io::Result<File> {
    fs::OpenOptions::new().write(true).create(true).truncate(false).open(folder.join(FILE))
}

/// Whether the locked folder is still the one of this path: it may have been removed before it was locked.
#[cfg(unix)]
fn is_at(file: &File, folder: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let place = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
    matches!((file.metadata().map(place), fs::metadata(folder).map(place)), (Ok(one), Ok(other)) if one == other)
}

#[cfg(not(unix))]
fn is_at(_file: &File, _folder: &Path) -> bool {
    true
}

fn in_use(folder: &Path) -> Error {
    let who = match writer(folder) {
        Some((Writer { process, since }, command)) => {
            let for_so_long = spoken(now().saturating_sub(since));
            format!("process {process} (`catelier {command}`) has been writing there for {for_so_long}")
        }
        None => "another process writes there".to_owned(),
    };
    Error::user(
        format!("`{}` is in use: {who}", folder.display()),
        "wait until that process ends, or choose another `--out`",
    )
}

/// The process that has the lock, and its command. It writes its name right after it takes the lock.
fn writer(folder: &Path) -> Option<(Writer, String)> {
    const TRIES: usize = 20;
    (0..TRIES).find_map(|_| {
        let marker = Marker::read(folder).ok().flatten();
        let found = marker.and_then(|marker| Some((marker.writer?, marker.command)));
        if found.is_none() {
            sleep(Duration::from_millis(10));
        }
        found
    })
}

/// A time as a person says it.
fn spoken(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        _ => format!("{} h", seconds / 3600),
    }
}
