//! A folder for each thread, in which inputs lie as files.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};

use catelier_testkit::golden::{Golden, copy_folder};
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

/// Runs `work` on a copy of the golden model of this name, in which the input replaces one of `files`: that of its first line.
pub(crate) fn with_model<R>(model: &str, files: &[&'static str], input: &[u8], work: impl FnOnce(&Path) -> R) -> R {
    let (name, bytes) = named(input, files);
    with_changed_model(model, name, bytes, work)
}

/// Runs `work` on a copy of the golden model of this name, in which a file has these bytes.
pub(crate) fn with_changed_model<R>(model: &str, name: &str, bytes: &[u8], work: impl FnOnce(&Path) -> R) -> R {
    with(|folder| {
        let copied = folder.join(model);
        if !copied.exists() {
            copy_folder(&Golden::open().model(model), &copied);
        }
        let path = copied.join(name);
        let whole = fs::read(&path).unwrap();
        fs::write(&path, bytes).unwrap();
        let result = catch_unwind(AssertUnwindSafe(|| work(&copied)));
        fs::write(&path, whole).unwrap();
        result.unwrap_or_else(|panic| resume_unwind(panic))
    })
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
