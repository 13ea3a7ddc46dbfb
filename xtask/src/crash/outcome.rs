//! What became of one killed command, and of all kills of it.

use serde::Serialize;

/// How a killed command went on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WentOn {
    /// By `--resume`.
    Resumed,
    /// From its beginning.
    Anew,
    /// Not at all: no line that a user would try comes to its end.
    Stuck,
}

/// The row of one command.
#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct Row {
    pub(super) command: &'static str,
    /// Kills that landed, a second one in the run that went on included.
    pub(super) kills: usize,
    /// Of these, before a system call that writes.
    pub(super) at_calls: usize,
    /// System calls that write, of the thread that makes most of them.
    pub(super) calls: usize,
    /// Ended by `--resume`.
    pub(super) resumed: usize,
    /// Ended from the beginning.
    pub(super) anew: usize,
    /// Runs that left files with other bytes than an undisturbed run, or lacked some.
    pub(super) differing: usize,
    /// Runs whose metrics lack a step or have one twice.
    pub(super) metrics: usize,
    /// Runs that left files which an undisturbed run does not.
    pub(super) left_over: usize,
    /// Runs that could not go on.
    pub(super) stuck: usize,
    /// What went wrong, in words.
    pub(super) troubles: Vec<String>,
}

impl Row {
    /// The row of a command that does not work undisturbed.
    pub(super) fn failed(command: &'static str, error: &anyhow::Error) -> Self {
        let told = error.chain().map(ToString::to_string).collect::<Vec<_>>().join("; ");
        Self { command, troubles: vec![told.replace('\n', "; ")], ..Self::default() }
    }

    pub(super) fn count(&mut self, went_on: WentOn) {
        match went_on {
            WentOn::Resumed => self.resumed += 1,
            WentOn::Anew => self.anew += 1,
            WentOn::Stuck => self.stuck += 1,
        }
    }

    pub(super) fn is_clean(&self) -> bool {
        self.troubles.is_empty()
    }
}
