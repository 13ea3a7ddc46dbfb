#![doc = include_str!("../README.md")]
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::print_stderr,
    reason = "everything here serves tests: a failure is a panic, and half files are written on purpose"
)]

mod folder;
mod guard;
pub mod mutate;
mod targets;

use std::collections::BTreeSet;
use std::error::Error;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use catelier_workflows::numerics::hex;
use sha2::{Digest, Sha256};

pub use targets::TARGETS;

/// One kind of file from outside, and what must hold when it is read.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its name, also of its corpus.
    pub name: &'static str,
    /// Reads the bytes as this kind of file, and panics if anything does not hold.
    pub(crate) read: fn(&[u8]) -> Verdict,
    /// Seeds that are made when they are needed, beside those in the corpus.
    pub(crate) seeds: fn() -> Vec<Vec<u8>>,
    /// Mutated inputs of an ordinary test run.
    pub inputs: u64,
    /// Bytes of memory that a reader may take beside twice the file's size.
    pub(crate) spare_bytes: u64,
}

/// What became of an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It was read, and what must hold then holds.
    Accepted,
    /// It was refused with an error that says something.
    Refused,
}

/// What came of many inputs.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Inputs that were read.
    pub accepted: u64,
    /// Inputs that were refused.
    pub refused: u64,
    /// Inputs that broke something: the file with the input, and the message. At most [`Report::MOST`].
    pub failures: Vec<(PathBuf, String)>,
}

impl Report {
    /// Failures after which a run ends.
    pub const MOST: usize = 5;
}

impl Target {
    /// The target called `name`.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn named(name: &str) -> &'static Self {
        TARGETS.iter().find(|target| target.name == name).unwrap_or_else(|| panic!("there is no target `{name}`"))
    }

    /// Reads one input.
    ///
    /// # Panics
    /// When something does not hold.
    pub fn check(&self, input: &[u8]) -> Verdict {
        guard::check(self, input)
    }

    /// The seeds, sorted: the files of the corpus and those that are made here.
    ///
    /// # Panics
    /// When the corpus cannot be read, or is empty and nothing is made.
    #[must_use]
    pub fn seeds(&self) -> Vec<Vec<u8>> {
        let folder = repository().join("fuzz/corpus").join(self.name);
        let files: BTreeSet<PathBuf> =
            fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().path()).collect();
        let mut seeds: Vec<Vec<u8>> = files.iter().map(|file| fs::read(file).unwrap()).collect();
        seeds.extend((self.seeds)());
        assert!(!seeds.is_empty(), "`{}` has no seeds", self.name);
        seeds
    }

    /// Reads every seed as it is, and then `inputs` mutations of them. Input number i is a function of (`seed`, i).
    pub fn run(&self, inputs: u64, seed: u64) -> Report {
        let seeds = self.seeds();
        let mut report = Report::default();
        for input in &seeds {
            self.try_one(input, &mut report);
        }
        for index in 0..inputs {
            if report.failures.len() >= Report::MOST {
                break;
            }
            self.try_one(&mutate::input(&seeds, seed, index), &mut report);
        }
        report
    }

    fn try_one(&self, input: &[u8], report: &mut Report) {
        match catch_unwind(AssertUnwindSafe(|| self.check(input))) {
            Ok(Verdict::Accepted) => report.accepted += 1,
            Ok(Verdict::Refused) => report.refused += 1,
            Err(panic) => report.failures.push((self.keep(input), message(&*panic))),
        }
    }

    /// Saves a failing input under a name that follows from its bytes.
    fn keep(&self, input: &[u8]) -> PathBuf {
        let folder = repository().join("fuzz/found").join(self.name);
        let path = folder.join(&sha256(input)[..16]);
        fs::create_dir_all(&folder).unwrap();
        fs::write(&path, input).unwrap();
        path
    }
}

fn message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("a panic without a message").to_owned()
}

/// SHA-256 in hexadecimal digits.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// The repository's root.
pub(crate) fn repository() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// A refusal; its whole chain must say something.
pub(crate) fn refused(error: &dyn Error) -> Verdict {
    let mut links = Some(error);
    while let Some(link) = links {
        assert!(!link.to_string().trim().is_empty(), "an error says nothing: {error:?}");
        links = link.source();
    }
    Verdict::Refused
}
