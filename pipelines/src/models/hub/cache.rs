//! The folders of one model in the cache, in the layout of `huggingface_hub`.
//!
//! `blobs/<object id>` holds the content of a file, `snapshots/<commit>/<file>` is a relative link to it, and
//! `refs/<revision>` holds a commit. Whatever is written lies below the model's folder: every folder on the way is a plain
//! folder, and a link in the place of a file is replaced, not followed.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use catelier_numerics::{atomic, hex};
use hf_hub::{Cache, CacheRepo, Repo, RepoType};
use sha2::{Digest, Sha256};

use super::error::HubError;
use super::listing::Listed;
use super::oid::Oid;
use super::{CacheCheck, FetchEvent, HubId, Observer};
use crate::error::{Error, Result};

/// The ending of files that are not complete yet.
const PARTIAL: &str = "catelier-partial";

/// The time between two looks at a lock.
const LOOK: Duration = Duration::from_millis(200);

/// The folders of one model.
#[derive(Debug)]
pub(super) struct ModelCache {
    layout: CacheRepo,
    /// `models--org--name`.
    folder: PathBuf,
    cache: PathBuf,
    locks: PathBuf,
}

impl ModelCache {
    pub(super) fn new(id: &HubId, cache: &Path) -> Self {
        let repo = Repo::with_revision(id.repository().into(), RepoType::Model, id.revision().into());
        let name = repo.folder_name();
        Self {
            layout: Cache::new(cache.to_path_buf()).repo(repo),
            folder: cache.join(&name),
            cache: cache.to_path_buf(),
            locks: Path::new(".locks").join(name),
        }
    }

    /// The folder of a commit.
    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.layout.pointer_path(commit)
    }

    /// The commit that a branch or tag had at the last complete fetch.
    pub(super) fn commit_of(&self, revision: &str) -> Option<String> {
        let noted = fs::read_to_string(self.folder.join("refs").join(revision)).ok()?;
        let noted = noted.trim();
        (!noted.is_empty() && noted.bytes().all(|letter| letter.is_ascii_alphanumeric())).then(|| noted.into())
    }

    /// Keeps other processes from fetching this model until the file is dropped.
    pub(super) fn lock(&self, on_event: Observer<'_>) -> Result<File> {
        let folder = self.make_folders(&self.cache, &self.locks)?;
        let path = folder.join("catelier.lock");
        let file = open_plain(&path).map_err(|source| cannot_write(&path, source))?;
        loop {
            match file.try_lock() {
                Err(TryLockError::WouldBlock) if on_event(FetchEvent::Waiting).is_break() => {
                    return Err(Error::Cancelled);
                }
                Err(TryLockError::WouldBlock) => std::thread::sleep(LOOK),
                // Some network file systems have no locks; there the digests alone keep wrong bytes out.
                Ok(()) | Err(TryLockError::Error(_)) => return Ok(file),
            }
        }
    }

    /// The file that the content of `file` is received in, with what an interrupted fetch left in it.
    pub(super) fn open_partial(&self, commit: &str, file: &str) -> Result<(PathBuf, File)> {
        let blobs = self.make_folders(&self.folder, Path::new("blobs"))?;
        let key = hex::encode(Sha256::digest(format!("{commit}/{file}")));
        let path = blobs.join(format!("{}.{PARTIAL}", &key[..COMMIT_AND_FILE_DIGITS]));
        let open = open_plain(&path).map_err(|source| cannot_write(&path, source))?;
        Ok((path, open))
    }

    /// Whether the blob `oid` is there, whole and right.
    pub(super) fn has_blob(&self, oid: &Oid) -> bool {
        let blob = self.blob(oid);
        let is_file = fs::symlink_metadata(&blob).is_ok_and(|metadata| metadata.is_file());
        is_file && oid.of_file(&blob).is_ok_and(|found| found == *oid)
    }

    /// Turns a complete file into the blob `oid`.
    pub(super) fn keep(&self, partial: &Path, oid: &Oid) -> Result<()> {
        let blob = self.blob(oid);
        fs::rename(partial, &blob).map_err(|source| cannot_write(&blob, source))
    }

    /// Makes `file` of a commit a link to the blob `oid`; where links cannot be made, the blob itself is moved there.
    pub(super) fn link(&self, commit: &str, file: &str, oid: &Oid) -> Result<()> {
        let inside = Path::new("snapshots").join(commit).join(file);
        let folder = self.make_folders(&self.folder, inside.parent().unwrap_or(Path::new("snapshots")))?;
        let pointer = folder.join(inside.file_name().unwrap_or_default());
        let up: PathBuf =
            folder.strip_prefix(&self.folder).iter().flat_map(|inside| inside.iter()).map(|_| "..").collect();
        let target = up.join("blobs").join(oid.to_string());
        if fs::read_link(&pointer).is_ok_and(|found| found == target) {
            return Ok(());
        }
        let linked = remove_if_there(&pointer).and_then(|()| match symlink(&target, &pointer) {
            Err(_) => fs::rename(self.blob(oid), &pointer),
            linked => linked,
        });
        linked.map_err(|source| cannot_write(&pointer, source))
    }

    /// Records that `revision` is `commit`, all of whose files are there.
    pub(super) fn remember(&self, revision: &str, commit: &str) -> Result<()> {
        let inside = Path::new("refs").join(revision);
        let folder = self.make_folders(&self.folder, inside.parent().unwrap_or(Path::new("refs")))?;
        // What an interrupted fetch left there, and cannot be removed, only takes room.
        let _ = atomic::remove_leftovers(&folder);
        if self.commit_of(revision).is_some_and(|noted| noted == commit) {
            return Ok(());
        }
        let path = folder.join(inside.file_name().unwrap_or_default());
        remove_link(&path).map_err(|source| cannot_write(&path, source))?;
        atomic::write(&path, |out| out.write_all(commit.as_bytes()))?;
        Ok(())
    }

    /// Removes what interrupted fetches of this or of older commits left.
    pub(super) fn remove_partials(&self) {
        let entries = fs::read_dir(self.folder.join("blobs")).into_iter().flatten().flatten();
        for path in entries.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|it| it == PARTIAL)) {
            // What cannot be removed only takes room; the fetch itself succeeded.
            let _ = fs::remove_file(path);
        }
    }

    fn blob(&self, oid: &Oid) -> PathBuf {
        self.folder.join("blobs").join(oid.to_string())
    }

    /// Makes the folders `inside` of `base`, each a plain folder: a symbolic link could lead out of the cache.
    fn make_folders(&self, base: &Path, inside: &Path) -> Result<PathBuf> {
        let mut folder = base.to_path_buf();
        let made = fs::create_dir_all(base).and_then(|()| {
            for part in inside.components() {
                folder.push(part);
                make_plain_folder(&folder, part)?;
            }
            Ok(())
        });
        made.map_err(|source| cannot_write(&folder, source)).map(|()| folder.clone())
    }
}

/// Digits in the name of a partial file, enough to tell all files of all commits apart.
const COMMIT_AND_FILE_DIGITS: usize = 40;

/// Whether the cached file `pointer` is what the hub lists; by its link's name where the hub lists no object id.
pub(super) fn is_good(pointer: &Path, listed: &Listed, check: CacheCheck) -> bool {
    let Ok(metadata) = fs::metadata(pointer) else { return false };
    if !metadata.is_file() || listed.bytes.is_some_and(|bytes| bytes != metadata.len()) {
        return false;
    }
    match (check, listed.oid.clone().or_else(|| linked_oid(pointer))) {
        (CacheCheck::Digest, Some(oid)) => oid.of_file(pointer).is_ok_and(|found| found == oid),
        _ => true,
    }
}

/// The object id in the name of the blob that a link points to.
fn linked_oid(pointer: &Path) -> Option<Oid> {
    Oid::parse(fs::read_link(pointer).ok()?.file_name()?.to_str()?)
}

fn make_plain_folder(folder: &Path, part: Component<'_>) -> io::Result<()> {
    if !matches!(part, Component::Normal(_)) {
        return Err(io::ErrorKind::InvalidFilename.into());
    }
    match fs::create_dir(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    if fs::symlink_metadata(folder)?.is_dir() { Ok(()) } else { Err(io::ErrorKind::NotADirectory.into()) }
}

/// Opens a file to read and write, and makes it if need be; a link in its place is removed first.
fn open_plain(path: &Path) -> io::Result<File> {
    remove_link(path)?;
    OpenOptions::new().read(true).append(true).create(true).open(path)
}

fn remove_link(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_symlink() => fs::remove_file(path),
        _ => Ok(()),
    }
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(unix)]
fn symlink(target: &Path, pointer: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, pointer)
}

#[cfg(windows)]
fn symlink(target: &Path, pointer: &Path) -> io::Result<()> {
    std::os::windows::fs::symlink_file(target, pointer)
}

pub(super) fn cannot_write(path: &Path, source: io::Error) -> Error {
    HubError::Cache { path: path.to_path_buf(), source }.into()
}
