//! Trials of one command: a kill, what a user does then, and the comparison.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{self, Output};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::command::{Again, Command, Compared, HALF, INPUTS};
use super::kill::{self, Moment};
use super::outcome::{Row, WentOn};
use super::tree::{Difference, Tree};
use crate::release::repository;

/// Evaluation prompts; few, since every image takes time.
const PROMPTS: &str = "a red house\na boat\n";

/// The base of most commands: the smaller, the more kills in an hour.
pub(super) const BASE: &str = "golden/tiny-sd1";

/// The CLIP model that scores images of a base that draws no known world.
const CLIP: &str = "golden/tiny-clip";

/// Kills that come too late are tried again, up to so many times for each that is asked for.
const PATIENCE: usize = 3;

/// One run in so many is killed once more while it goes on.
const TWICE: usize = 4;

/// The program, its inputs and the folder in which trials are played; folders of kills that went wrong stay there.
pub(super) struct Ground {
    binary: PathBuf,
    endpoint: String,
    root: PathBuf,
}

impl Ground {
    /// Makes the inputs in `target/crash`, which is cleared before.
    pub(super) fn prepare(binary: PathBuf, endpoint: &str) -> Result<Self> {
        let root = repository().join("target/crash");
        if root.exists() {
            fs::remove_dir_all(&root).with_context(|| format!("cannot clear `{}`", root.display()))?;
        }
        fs::create_dir_all(root.join("inputs/empty"))?;
        let ground = Self { binary, endpoint: endpoint.to_owned(), root: root.canonicalize()? };
        write(&ground.root.join("inputs/prompts.txt"), PROMPTS)?;
        copy(&repository().join(BASE), &ground.root.join("inputs/base"))?;
        copy(&repository().join(CLIP), &ground.root.join("inputs/clip"))?;
        INPUTS.iter().try_for_each(|line| ground.done(&ground.root, line))?;
        let half = ground.folder("half", None)?;
        ground.done(&half, HALF)?;
        fs::rename(half.join("out"), ground.root.join("inputs/half"))?;
        Ok(ground)
    }

    /// A new folder for a run, with `inputs`, and with one of them as `out`.
    fn folder(&self, name: &str, begins_with: Option<&str>) -> Result<PathBuf> {
        let folder = self.root.join(name);
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        fs::create_dir_all(&folder)?;
        link(&self.root.join("inputs"), &folder.join("inputs"))?;
        if let Some(part) = begins_with {
            copy(&self.root.join("inputs").join(part), &folder.join("out"))?;
        }
        Ok(folder)
    }

    fn command(&self, folder: &Path, line: &str) -> process::Command {
        let mut command = process::Command::new(&self.binary);
        command.args(line.split_whitespace()).current_dir(folder).env_clear();
        command.env("HF_HOME", "hf").env("HF_ENDPOINT", &self.endpoint);
        command
    }

    fn run(&self, folder: &Path, line: &str) -> Result<Output> {
        self.command(folder, line).output().with_context(|| format!("cannot run `{}`", self.binary.display()))
    }

    fn done(&self, folder: &Path, line: &str) -> Result<()> {
        let output = self.run(folder, line)?;
        ensure!(output.status.success(), "`{line}` failed undisturbed:\n{}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }
}

/// A command with what it leaves when nothing disturbs it.
pub(super) struct Course<'a> {
    ground: &'a Ground,
    command: &'static Command,
    expected: Tree,
    takes: Duration,
    /// System calls at which it may be killed; 0 without strace.
    calls: usize,
}

impl<'a> Course<'a> {
    /// Runs the command undisturbed, twice: what differs between these runs could not be compared.
    pub(super) fn new(ground: &'a Ground, command: &'static Command, traced: bool) -> Result<Self> {
        let whole = ground.folder("whole", command.begins_with)?;
        let started = Instant::now();
        ground.done(&whole, command.line)?;
        let (takes, expected) = (started.elapsed(), Tree::of(&whole)?);
        let again = ground.folder("again", command.begins_with)?;
        let calls = if traced {
            kill::calls(&ground.command(&again, command.line), &ground.root.join("calls"))?
        } else {
            ground.done(&again, command.line)?;
            0
        };
        let difference = Tree::of(&again)?.against(&expected);
        ensure!(difference.is_none(), "`{}` leaves other files in two undisturbed runs: {difference:?}", command.name);
        Ok(Self { ground, command, expected, takes, calls })
    }

    /// Plays trials until `kills` have landed.
    pub(super) fn play(&self, kills: usize, seed: u64) -> Row {
        let mut row = Row { command: self.command.name, calls: self.calls, ..Row::default() };
        let mut rng = fastrand::Rng::with_seed(seed);
        for trial in 0..kills * PATIENCE {
            if row.kills >= kills {
                break;
            }
            let moment = self.moment(trial, &mut rng);
            if let Err(error) = self.trial(moment, &mut rng, &mut row) {
                row.troubles.push(format!("{moment:?}: {error:#}"));
            }
        }
        row
    }

    /// Every second kill is at a system call; the others are at any time. However many there are, their places spread
    /// evenly over all calls: each is a golden section of them further.
    fn moment(&self, trial: usize, rng: &mut fastrand::Rng) -> Moment {
        const GOLDEN: f64 = 0.618_033_988_749_895;
        if self.calls > 0 && trial.is_multiple_of(2) {
            let place = ((trial / 2 + 1) as f64 * GOLDEN).fract();
            return Moment::AtCall(1 + (place * self.calls as f64) as usize);
        }
        Moment::After(self.takes.mul_f64(rng.f64()))
    }

    fn trial(&self, moment: Moment, rng: &mut fastrand::Rng, row: &mut Row) -> Result<()> {
        let folder = self.ground.folder("trial", self.command.begins_with)?;
        if !kill::run_and_kill(&mut self.ground.command(&folder, self.command.line), moment)? {
            return Ok(());
        }
        row.kills += 1;
        row.at_calls += usize::from(matches!(moment, Moment::AtCall(_)));
        let mut runs = 2;
        if rng.usize(..TWICE) == 0 {
            let (line, _) = self.going_on(&folder)?;
            let moment = Moment::After(self.takes.mul_f64(rng.f64()));
            row.kills += usize::from(kill::run_and_kill(&mut self.ground.command(&folder, line), moment)?);
            runs += 1;
        }
        let (line, went_on) = self.going_on(&folder)?;
        let mut output = self.ground.run(&folder, line)?;
        if let (Again::Forced(line), false) = (&self.command.again, output.status.success()) {
            output = self.ground.run(&folder, line)?;
        }
        if !output.status.success() {
            row.count(WentOn::Stuck);
            let stderr = String::from_utf8_lossy(&output.stderr);
            let reason = stderr.lines().filter(|line| line.starts_with("error") || line.starts_with("cause"));
            let reason = reason.collect::<Vec<_>>().join("; ");
            return self.trouble(&folder, row, format!("{moment:?}: `{line}` exits with {}: {reason}", output.status));
        }
        row.count(went_on);
        self.compare(&folder, moment, runs, row)
    }

    /// The line by which a user goes on.
    fn going_on(&self, folder: &Path) -> Result<(&'static str, WentOn)> {
        Ok(match self.command.again {
            Again::Resume { line, states: (inside, ending) }
                if Tree::of(folder)?.has(&Path::new("out").join(inside), ending) =>
            {
                (line, WentOn::Resumed)
            }
            _ => (self.command.line, WentOn::Anew),
        })
    }

    fn compare(&self, folder: &Path, moment: Moment, runs: usize, row: &mut Row) -> Result<()> {
        let tree = Tree::of(folder)?;
        let difference = match self.command.compared {
            Compared::Files => tree.against(&self.expected),
            Compared::Counted => tree.against_contents(&self.expected, runs),
        };
        if difference.is_none() {
            return Ok(());
        }
        let Difference { differing, left_over, metrics } = &difference;
        row.differing += usize::from(!differing.is_empty());
        row.left_over += usize::from(!left_over.is_empty());
        row.metrics += usize::from(!metrics.is_empty());
        self.trouble(folder, row, format!("{moment:?}: {difference:?}"))
    }

    /// Notes what went wrong, and keeps the folder.
    fn trouble(&self, folder: &Path, row: &mut Row, what: String) -> Result<()> {
        row.troubles.push(what);
        let kept = self.ground.root.join(format!("trouble-{}-{}", self.command.name, row.troubles.len()));
        fs::rename(folder, kept).context("cannot keep the folder of a kill that went wrong")
    }
}

#[expect(clippy::disallowed_methods, reason = "an input of this chore, made anew in every run")]
fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write `{}`", path.display()))
}

#[cfg(unix)]
fn link(from: &Path, to: &Path) -> Result<()> {
    std::os::unix::fs::symlink(from, to).with_context(|| format!("cannot link `{}`", to.display()))
}

#[cfg(not(unix))]
fn link(from: &Path, to: &Path) -> Result<()> {
    copy(from, to)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        match entry.file_type()?.is_dir() {
            true => copy(&entry.path(), &target)?,
            false => drop(fs::copy(entry.path(), target)?),
        }
    }
    Ok(())
}
