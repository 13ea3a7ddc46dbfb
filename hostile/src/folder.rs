//! A folder for each thread, in which inputs lie as files.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

const PREFIX: &str = "catelier-hostile-";

/// The input at work, for the case that it ends the process.
const INPUT: &str = "input";

thread_local! {
    static FOLDER: TempDir = tempfile::Builder::new().prefix(PREFIX).tempdir_in(place()).unwrap();
}

/// Memory where the system offers it as a folder: our writers sync every file, and a disk would take its time.
fn place() -> PathBuf {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() }
}

/// Runs `work` in this thread's folder.
pub(crate) fn with<R>(work: impl FnOnce(&Path) -> R) -> R {
    FOLDER.with(|folder| work(folder.path()))
}

/// Notes the input at work.
pub(crate) fn note(input: &[u8]) {
    with(|folder| fs::write(folder.join(INPUT), input).unwrap());
}

/// Where the notes of all threads are.
pub(crate) fn notes() -> String {
    place().join(format!("{PREFIX}*")).join(INPUT).display().to_string()
}

/// Runs `work` on a file of this name with these bytes in a subfolder `part`, which may have other files.
pub(crate) fn with_file<R>(part: &str, name: &str, bytes: &[u8], work: impl FnOnce(&Path) -> R) -> R {
    with(|folder| {
        let path = folder.join(part).join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        work(&path)
    })
}

/// Copies a folder with everything in it.
pub(crate) fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// A file's name in the input's first line, and the rest as its bytes. Other first lines choose among `names` by a byte
/// of the input, so that every input is some file.
pub(crate) fn named<'i>(input: &'i [u8], names: &[&'static str]) -> (&'static str, &'i [u8]) {
    let end = input.iter().position(|byte| *byte == b'\n');
    let (first, rest) = end.map_or((&[][..], input), |end| (&input[..end], &input[end + 1..]));
    match names.iter().find(|name| name.as_bytes() == first) {
        Some(name) => (name, rest),
        None => (names[usize::from(input.first().copied().unwrap_or(0)) % names.len()], input),
    }
}
