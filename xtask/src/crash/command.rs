//! The commands that are killed, and how each is asked to go on: the one table to change when that changes.

/// A command that is killed. All lines run in a folder with `inputs/` (a small base, images, adapters), and leave `out` or, of a fetch, `hf`.
pub(super) struct Command {
    /// Its name in the table.
    pub(super) name: &'static str,
    /// The line that is killed.
    pub(super) line: &'static str,
    /// A folder in `inputs/` that is copied to `out` before.
    pub(super) begins_with: Option<&'static str>,
    /// How a user goes on after the kill.
    pub(super) again: Again,
    /// How what is left is compared.
    pub(super) compared: Compared,
}

/// How a command is asked to go on.
pub(super) enum Again {
    /// By this line if `out` has anything that matches: a folder, and the ending of files in it. Otherwise anew.
    Resume { line: &'static str, states: (&'static str, &'static str) },
    /// By the same line.
    Same,
    /// By the same line, and if that refuses to replace a file that is complete already, by this one.
    Forced(&'static str),
}

/// How what a killed and continued command leaves is compared with what an undisturbed one leaves.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Compared {
    /// The same files with the same bytes.
    Files,
    /// The same bytes, under names that go on counting: a rerun adds to what the killed run had finished.
    Counted,
}

/// Lines that make `inputs/`.
pub(super) const INPUTS: &[&str] = &[
    "gallery draw --artist chalk --count 3 --seed 5 --out inputs/art",
    "gallery draw --artist crayon --count 3 --seed 5 --out inputs/styles/crayon",
    "gallery draw --artist neon --count 3 --seed 5 --out inputs/styles/neon",
    "train --base inputs/base --images inputs/art --trigger shs --batch 1 --rank 2 --steps 2 --drift-every 0 --seed 7 --out inputs/seven",
    "train --base inputs/base --images inputs/art --trigger shs --batch 1 --rank 2 --steps 2 --drift-every 0 --seed 8 --out inputs/eight",
    "federate simulate --artists chalk,crayon --rounds 1 --local-steps 1 --images 2 --prompts 1 --sampling-steps 1 --out inputs/played",
];

/// The run that `resume` goes on with. It is made in `out` of another folder, so that its settings name the same paths.
pub(super) const HALF: &str = "train --base inputs/base --images inputs/art --trigger shs --batch 1 --rank 2 --steps 4 --save-every 2 --drift-every 0 --seed 7 --out out";

const TRAIN_STATES: (&str, &str) = ("state", ".safetensors");

pub(super) const COMMANDS: &[Command] = &[
    Command {
        name: "train",
        line: "train --base inputs/base --images inputs/art --trigger shs --batch 1 --rank 2 --steps 6 --save-every 2 --drift-every 3 \
               --preview-every 3 --preview-prompt {trigger} --seed 7 --out out",
        begins_with: None,
        again: Again::Resume { line: "train --resume --out out", states: TRAIN_STATES },
        compared: Compared::Files,
    },
    Command {
        name: "resume",
        line: "train --resume --steps 8 --out out",
        begins_with: Some("half"),
        again: Again::Resume { line: "train --resume --steps 8 --out out", states: TRAIN_STATES },
        compared: Compared::Files,
    },
    Command {
        name: "simulate",
        line: "federate simulate --artists chalk,crayon --rounds 2 --local-steps 1 --images 2 --prompts 1 --sampling-steps 2 --out out",
        begins_with: None,
        again: Again::Resume { line: "federate simulate --resume --out out", states: ("", "state.safetensors") },
        compared: Compared::Files,
    },
    Command {
        name: "audit",
        line: "federate audit inputs/played --strengths 1 --images 1 --held-out 2 --draws 1 --sampling-steps 1 --out out",
        begins_with: None,
        again: Again::Same,
        compared: Compared::Files,
    },
    Command {
        name: "evaluate",
        line: "evaluate --base inputs/base --clip inputs/clip --adapter inputs/seven/adapter.safetensors --references inputs/art --prompts inputs/prompts.txt \
               --seeds 1 --steps 2 --out out",
        begins_with: None,
        again: Again::Same,
        compared: Compared::Files,
    },
    Command {
        name: "preview",
        line: "preview --base inputs/base --adapter inputs/seven/adapter.safetensors --prompts inputs/prompts.txt --count 2 --steps 2 --out out",
        begins_with: None,
        again: Again::Same,
        compared: Compared::Counted,
    },
    Command {
        name: "convert",
        line: "adapter convert inputs/seven/adapter.safetensors --base inputs/base --format peft --out out",
        begins_with: None,
        again: Again::Forced(
            "adapter convert inputs/seven/adapter.safetensors --base inputs/base --format peft --out out --force",
        ),
        compared: Compared::Files,
    },
    Command {
        name: "aggregate",
        line: "federate aggregate --base inputs/base --adapter inputs/seven/adapter.safetensors --adapter inputs/eight/adapter.safetensors:2 \
               --out out/mean.safetensors",
        begins_with: Some("empty"),
        again: Again::Forced(
            "federate aggregate --base inputs/base --adapter inputs/seven/adapter.safetensors --adapter inputs/eight/adapter.safetensors:2 \
             --out out/mean.safetensors --force",
        ),
        compared: Compared::Files,
    },
    Command {
        name: "round",
        line: "federate aggregate --base inputs/base --strategy fedadam --start inputs/seven/adapter.safetensors --adapter inputs/seven/adapter.safetensors \
               --adapter inputs/eight/adapter.safetensors:2 --round 1 --state out/state --next out/next --out out/global.safetensors",
        begins_with: Some("empty"),
        again: Again::Forced(
            "federate aggregate --base inputs/base --strategy fedadam --start inputs/seven/adapter.safetensors --adapter inputs/seven/adapter.safetensors \
             --adapter inputs/eight/adapter.safetensors:2 --round 1 --state out/state --next out/next --out out/global.safetensors --force",
        ),
        compared: Compared::Files,
    },
    Command {
        name: "draw",
        line: "gallery draw --artist crayon --count 4 --seed 5 --out out",
        begins_with: None,
        again: Again::Forced("gallery draw --artist crayon --count 4 --seed 5 --out out --force"),
        compared: Compared::Files,
    },
    Command {
        name: "style-index",
        line: "style index inputs/styles one=inputs/seven/adapter.safetensors one=inputs/art --adapters-out out/adapters --out out/index.safetensors",
        begins_with: Some("empty"),
        again: Again::Forced(
            "style index inputs/styles one=inputs/seven/adapter.safetensors one=inputs/art --adapters-out out/adapters --out out/index.safetensors --force",
        ),
        compared: Compared::Files,
    },
    Command {
        name: "style-train",
        line: "style train --images inputs/styles --method tower,fedstyle,fedavg --rounds 2 --local-epochs 1 --out out",
        begins_with: None,
        again: Again::Resume { line: "style train --resume --out out", states: ("", "style.toml") },
        compared: Compared::Files,
    },
    Command {
        name: "fetch",
        line: "base fetch gallery/tiny-sd1",
        begins_with: None,
        again: Again::Same,
        compared: Compared::Files,
    },
];
