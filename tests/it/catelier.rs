//! Runs the binary with an empty environment in a folder of its own.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A private folder in which the command runs.
pub(crate) struct Studio(tempfile::TempDir);

/// What a run printed and how it ended.
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Studio {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
        path
    }

    pub(crate) fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_catelier"));
        command.args(line.split_whitespace()).current_dir(self.0.path()).env_clear();
        command
    }

    pub(crate) fn run(&self, line: &str) -> Ran {
        Ran::from(self.command(line).output().unwrap(), self.0.path())
    }

    /// Copies an adapter file with another header.
    pub(crate) fn with_header(&self, from: &str, to: &str, header: &[(&str, &str)]) {
        let bytes = std::fs::read(self.path(from)).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let header = header.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
        self.write(to, safetensors::serialize(tensors.tensors(), Some(header)).unwrap());
    }

    /// Runs and demands success.
    pub(crate) fn done(&self, line: &str) -> Ran {
        let ran = self.run(line);
        assert_eq!(ran.code, Some(0), "`{line}` failed:\n{}", ran.stderr);
        ran
    }
}

impl Ran {
    pub(crate) fn from(output: Output, folder: &Path) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap().replace(&*folder.to_string_lossy(), "[FOLDER]");
        Self { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    /// The lines that start with error, cause or hint.
    pub(crate) fn message(&self) -> String {
        let told = ["error: ", "cause: ", "hint: "];
        let lines = self.stderr.lines().filter(|line| told.iter().any(|start| line.starts_with(start)));
        lines.collect::<Vec<_>>().join("\n")
    }
}
