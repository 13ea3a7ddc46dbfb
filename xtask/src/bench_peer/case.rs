//! One thing to measure, as either program is asked for it.

use std::fmt;

use clap::ValueEnum;

/// What is repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Work {
    /// One forward pass of the UNet
    Unet,
    /// One optimizer step of plain LoRA
    Lora,
    /// One optimizer step of CAT
    Cat,
    /// A picture from a prompt
    Generate,
    /// A picture to latents and back
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

/// Work on one shape, size and precision.
#[derive(Debug, Clone)]
pub(super) struct Case {
    pub(super) work: Work,
    pub(super) shape: String,
    pub(super) latent: usize,
    pub(super) dtype: Dtype,
    pub(super) steps: usize,
    pub(super) threads: usize,
    pub(super) repeat: usize,
    pub(super) warmup: usize,
}

impl Work {
    pub(super) fn has_latents(self) -> bool {
        self != Self::Text
    }
}

impl Case {
    /// The arguments of `catelier`.
    pub(super) fn ours(&self) -> String {
        let work = match self.work {
            Work::Unet => "step --loss none".to_string(),
            Work::Lora => "step --loss lora".to_string(),
            Work::Cat => "step --loss cat".to_string(),
            Work::Generate => format!("generate --steps {}", self.steps),
            Work::Vae => "vae".to_string(),
            Work::Text => "text".to_string(),
        };
        let latent = if self.work.has_latents() { format!(" --latent {}", self.latent) } else { String::new() };
        format!("bench {work}{latent}{} --json", self.shared())
    }

    /// The arguments of `recipe/bench_peer.py`.
    pub(super) fn theirs(&self) -> String {
        let steps = if self.work == Work::Generate { format!(" --steps {}", self.steps) } else { String::new() };
        let latent = if self.work.has_latents() { format!(" --latent {}", self.latent) } else { String::new() };
        format!("{}{steps}{latent}{}", self.work, self.shared())
    }

    fn shared(&self) -> String {
        let Self { shape, dtype, threads, repeat, warmup, .. } = self;
        format!(" --shape {shape} --dtype {dtype} --threads {threads} --repeat {repeat} --warmup {warmup}")
    }
}

impl fmt::Display for Case {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} of {}, {}", self.work, self.shape, self.dtype)?;
        if self.work.has_latents() { write!(out, ", latent {}", self.latent) } else { Ok(()) }
    }
}

impl fmt::Display for Work {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Unet => "unet",
            Self::Lora => "lora",
            Self::Cat => "cat",
            Self::Generate => "generate",
            Self::Vae => "vae",
            Self::Text => "text",
        })
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::F32 => "f32",
            Self::Mixed => "mixed",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case(work: Work) -> Case {
        Case { work, shape: "sd15".into(), latent: 32, dtype: Dtype::F32, steps: 4, threads: 1, repeat: 2, warmup: 1 }
    }

    #[test]
    fn both_programs_are_asked_for_the_same() {
        let shared = "--shape sd15 --dtype f32 --threads 1 --repeat 2 --warmup 1";
        assert_eq!(case(Work::Cat).ours(), format!("bench step --loss cat --latent 32 {shared} --json"));
        assert_eq!(case(Work::Cat).theirs(), format!("cat --latent 32 {shared}"));
        assert_eq!(case(Work::Generate).ours(), format!("bench generate --steps 4 --latent 32 {shared} --json"));
        assert_eq!(case(Work::Generate).theirs(), format!("generate --steps 4 --latent 32 {shared}"));
        assert_eq!(case(Work::Text).ours(), format!("bench text {shared} --json"));
        assert_eq!(case(Work::Text).theirs(), format!("text {shared}"));
    }
}
