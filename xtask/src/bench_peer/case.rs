//! One thing to measure, as either program is asked for it.

use std::fmt;
use std::str::FromStr;

use clap::builder::RangedU64ValueParser;
use clap::{CommandFactory, Parser, ValueEnum};

/// What is repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Work {
    /// One forward pass of the UNet
    Unet,
    /// One optimizer step of plain LoRA
    Lora,
    /// One optimizer step of CAT
    Cat,
    /// An image from a prompt
    Generate,
    /// An image to latents and back
    Vae,
    /// A prompt through the text encoders
    Text,
}

/// What weights and activations are kept in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Dtype {
    /// Everything in f32
    F32,
    /// Frozen weights in bf16, the adapter in f32
    Mixed,
}

/// Work on one shape, size and precision, and how often it is measured.
#[derive(Debug, Clone, Parser)]
#[command(no_binary_name = true, disable_help_flag = true)]
pub(super) struct Case {
    /// What is repeated
    #[arg(value_enum)]
    pub(super) work: Work,
    /// The shape of the model
    #[arg(long, value_name = "NAME", default_value = "sd15", value_parser = ["sd15", "sd21", "sdxl", "embedded"])]
    pub(super) shape: String,
    /// Side of the latents; not of `text` [default: 32]
    #[arg(long, value_name = "N", value_parser = at_least_one())]
    latent: Option<usize>,
    /// Samples computed together
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = at_least_one())]
    batch: usize,
    /// Rank of the adapter of `lora` and `cat` [default: 8]
    #[arg(long, value_name = "N", value_parser = at_least_one())]
    rank: Option<usize>,
    /// Element types
    #[arg(long, value_enum, default_value_t = Dtype::F32)]
    pub(super) dtype: Dtype,
    /// Denoising steps of `generate` [default: 20]
    #[arg(long, value_name = "N", value_parser = at_least_one())]
    steps: Option<usize>,
    /// Copies of the weights that Python holds for `cat`; with 1 it switches the adapter off for the base [default: 2]
    #[arg(long, value_name = "1|2", value_parser = clap::value_parser!(u8).range(1..=2))]
    copies: Option<u8>,
    /// Memory that Catelier may take for a step of `lora` or `cat`, such as 3GB
    #[arg(long, value_name = "SIZE")]
    memory_limit: Option<String>,
    /// How often the two programs take turns
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = at_least_one())]
    pub(super) rounds: usize,
    /// Measured iterations of each turn
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = at_least_one())]
    repeat: usize,
    /// Iterations before them
    #[arg(long, value_name = "N", default_value_t = 1)]
    warmup: usize,
    /// What all of this was read from.
    #[arg(skip)]
    text: String,
}

/// The default side of the latents in both programs.
const LATENT: usize = 32;
const RANK: usize = 8;
const STEPS: usize = 20;

fn at_least_one() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..)
}

/// The help text of a case's flags.
pub(super) fn help() -> String {
    let text = Case::command().help_template("{all-args}").term_width(100).render_help().to_string();
    format!("A case is one of these works and its flags:\n\n{text}")
}

impl Work {
    fn trains(self) -> bool {
        matches!(self, Self::Lora | Self::Cat)
    }
}

impl Case {
    /// The side of the latents; `None` for work without latents.
    pub(super) fn latent(&self) -> Option<usize> {
        (self.work != Work::Text).then_some(self.latent.unwrap_or(LATENT))
    }

    /// The arguments of `catelier`.
    pub(super) fn ours(&self, threads: usize) -> String {
        let work = match self.work {
            Work::Unet => "step --loss none",
            Work::Lora => "step --loss lora",
            Work::Cat => "step --loss cat",
            Work::Generate => "generate",
            Work::Vae => "vae",
            Work::Text => "text",
        };
        let limit = flag("memory-limit", self.memory_limit.as_ref());
        format!("bench {work}{}{limit} --json", self.shared(threads))
    }

    /// The arguments of `recipe/bench_peer.py`.
    pub(super) fn theirs(&self, threads: usize) -> String {
        format!("{}{}{}", self.work, self.shared(threads), flag("copies", self.copies.as_ref()))
    }

    /// The arguments of both programs. Defaults are spelled out, since the two programs may have different ones.
    fn shared(&self, threads: usize) -> String {
        let Self { work, shape, batch, dtype, repeat, warmup, .. } = self;
        let latent = flag("latent", self.latent().as_ref());
        let rank = flag("rank", work.trains().then_some(self.rank.unwrap_or(RANK)).as_ref());
        let steps = flag("steps", (*work == Work::Generate).then_some(self.steps.unwrap_or(STEPS)).as_ref());
        let what = format!("--shape {shape}{latent} --batch {batch}{rank}{steps} --dtype {dtype}");
        format!(" {what} --device cpu --threads {threads} --repeat {repeat} --warmup {warmup}")
    }

    /// The work in words, with the settings in which it differs from other rows of the table.
    pub(super) fn what(&self) -> String {
        let unusual = |value: Option<usize>, usual| value.filter(|value| *value != usual);
        let parts = [
            Some(self.work.to_string()),
            unusual(Some(self.batch), 1).map(|batch| format!("batch {batch}")),
            unusual(self.rank, RANK).map(|rank| format!("rank {rank}")),
            (self.work == Work::Generate).then(|| format!("{} steps", self.steps.unwrap_or(STEPS))),
            (self.copies == Some(1)).then(|| "beside one copy of the weights".to_string()),
            self.memory_limit.as_ref().map(|limit| format!("within {limit}")),
        ];
        parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
    }

    /// A flag that does not apply to the work; the programs might ignore it silently.
    fn misplaced(&self) -> Option<String> {
        let Self { work, shape, latent, rank, steps, copies, memory_limit, .. } = self;
        let flags = [
            ("latent", latent.is_some() && *work == Work::Text),
            ("rank", rank.is_some() && !work.trains()),
            ("memory-limit", memory_limit.is_some() && !work.trains()),
            ("steps", steps.is_some() && *work != Work::Generate),
            ("copies", copies.is_some() && *work != Work::Cat),
        ];
        let flag = flags.iter().find(|(_, misplaced)| *misplaced);
        let flag = flag.map(|(name, _)| format!("`--{name}` says nothing about `{work}`"));
        let impossible = *work == Work::Generate && shape == "sdxl";
        flag.or_else(|| impossible.then(|| "the Python side cannot `generate` with `sdxl`".to_string()))
    }
}

/// ` --name value`, or nothing.
fn flag(name: &str, value: Option<&impl fmt::Display>) -> String {
    value.map(|value| format!(" --{name} {value}")).unwrap_or_default()
}

impl FromStr for Case {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let words: Vec<&str> = text.split_whitespace().collect();
        let case = Self::try_parse_from(&words).map_err(|error| reason(&error))?;
        case.misplaced().map_or_else(|| Ok(Self { text: words.join(" "), ..case }), Err)
    }
}

/// The first paragraph of an error; the caller puts the case's text in front.
fn reason(error: &clap::Error) -> String {
    let text = error.to_string();
    let text = text.split("\n\n").next().unwrap_or_default();
    text.trim_start_matches("error: ").trim_end().to_string()
}

/// The text that [`Case::from_str`] parses.
impl fmt::Display for Case {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.text)
    }
}

impl fmt::Display for Work {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_name(self, out)
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_name(self, out)
    }
}

/// Writes the value as on a command line.
fn write_name(value: &impl ValueEnum, out: &mut fmt::Formatter<'_>) -> fmt::Result {
    out.write_str(value.to_possible_value().as_ref().map_or("", |value| value.get_name()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case(text: &str) -> Case {
        text.parse().unwrap()
    }

    #[test]
    fn both_programs_are_asked_for_the_same() {
        let shared = "--dtype f32 --device cpu --threads 1 --repeat 1 --warmup 1";
        let cat = case("cat");
        let sizes = "--shape sd15 --latent 32 --batch 1 --rank 8";
        assert_eq!(cat.ours(1), format!("bench step --loss cat {sizes} {shared} --json"));
        assert_eq!(cat.theirs(1), format!("cat {sizes} {shared}"));
        let generate = case("generate --shape sd21 --latent 64 --steps 4 --batch 2");
        let sizes = "--shape sd21 --latent 64 --batch 2 --steps 4";
        assert_eq!(generate.ours(1), format!("bench generate {sizes} {shared} --json"));
        assert_eq!(generate.theirs(1), format!("generate {sizes} {shared}"));
        let text = case("text");
        assert_eq!(text.ours(1), format!("bench text --shape sd15 --batch 1 {shared} --json"));
        assert_eq!(text.theirs(1), format!("text --shape sd15 --batch 1 {shared}"));
    }

    #[test]
    fn everything_that_a_case_says_reaches_the_programs() {
        let text = "lora --shape embedded --latent 16 --batch 3 --rank 4 --dtype mixed --repeat 20 --warmup 0";
        let shared = "--shape embedded --latent 16 --batch 3 --rank 4 --dtype mixed --device cpu --threads 2";
        assert_eq!(case(text).ours(2), format!("bench step --loss lora {shared} --repeat 20 --warmup 0 --json"));
        assert_eq!(case(text).theirs(2), format!("lora {shared} --repeat 20 --warmup 0"));
        assert_eq!(case("cat --rounds 5").rounds, 5);
    }

    #[test]
    fn a_memory_limit_is_for_catelier_and_copies_are_for_python() {
        let limited = case("cat --memory-limit 3GB");
        assert!(limited.ours(1).ends_with(" --memory-limit 3GB --json"), "{}", limited.ours(1));
        assert_eq!(limited.theirs(1), case("cat").theirs(1));
        let shared = case("cat --copies 1");
        assert!(shared.theirs(1).ends_with(" --copies 1"), "{}", shared.theirs(1));
        assert_eq!(shared.ours(1), case("cat").ours(1));
    }

    #[test]
    fn the_table_tells_what_is_not_usual() {
        let rows = [
            ("cat", "cat"),
            ("cat --batch 1 --rank 8 --copies 2", "cat"),
            ("lora --batch 4 --rank 16", "lora, batch 4, rank 16"),
            ("cat --copies 1", "cat, beside one copy of the weights"),
            ("cat --memory-limit 3GB", "cat, within 3GB"),
            ("generate", "generate, 20 steps"),
        ];
        for (text, what) in rows {
            assert_eq!(case(text).what(), what);
        }
    }

    #[test]
    fn what_cannot_be_measured_is_refused() {
        let refused = [
            ("cat --side 3", "unexpected argument '--side'"),
            ("", "<WORK>"),
            ("dance", "invalid value 'dance' for '<WORK>'"),
            ("cat --shape sd9", "invalid value 'sd9' for '--shape <NAME>'"),
            ("cat --copies 3", "3 is not in 1..=2"),
            ("cat --rounds 0", "0 is not in 1.."),
            ("lora --copies 1", "`--copies` says nothing about `lora`"),
            ("unet --memory-limit 3GB", "`--memory-limit` says nothing about `unet`"),
            ("text --latent 8", "`--latent` says nothing about `text`"),
            ("generate --shape sdxl", "cannot `generate` with `sdxl`"),
        ];
        for (text, reason) in refused {
            let error = text.parse::<Case>().unwrap_err();
            assert!(error.contains(reason) && !error.contains("Usage"), "`{text}`: {error}");
        }
    }
}
