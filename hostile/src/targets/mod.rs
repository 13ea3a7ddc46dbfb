//! The targets, one file for each kind of input.

mod adapter_file;
mod base;
mod base_weights;
mod captions;
mod clip_folder;
mod federation_state;
mod hub;
mod image_file;
mod peft_config;
mod prompt_set;
mod prompt_text;
mod round_place;
mod sent_contribution;
mod settings_file;
mod style_entry;
mod style_index;
mod tokenizer;
mod train_state;

use crate::Target;

/// Memory beside twice the file's size.
const SPARE_BYTES: u64 = 64 << 20;

/// Every target.
pub const TARGETS: &[Target] = &[
    target("adapter_file", adapter_file::read, 400),
    target("peft_config", peft_config::read, 300),
    target("base", base::read, 300),
    Target { seeds: base_weights::seeds, ..target("base_weights", base_weights::read, 200) },
    Target { seeds: clip_folder::seeds, ..target("clip_folder", clip_folder::read, 400) },
    target("captions", captions::read, 800),
    target("settings_file", settings_file::read, 4000),
    target("prompt_set", prompt_set::read, 3000),
    target("prompt_text", prompt_text::read, 400),
    Target { seeds: tokenizer::seeds, ..target("tokenizer", tokenizer::read, 600) },
    Target { seeds: train_state::seeds, ..target("train_state", train_state::read, 1500) },
    Target { seeds: federation_state::seeds, ..target("federation_state", federation_state::read, 1500) },
    Target { seeds: sent_contribution::seeds, ..target("sent_contribution", sent_contribution::read, 400) },
    Target { seeds: style_index::seeds, ..target("style_index", style_index::read, 1500) },
    target("style_entry", style_entry::read, 3000),
    Target { seeds: round_place::seeds, ..target("round_place", round_place::read, 600) },
    Target { seeds: hub::seeds, ..target("hub", hub::read, 400) },
    // An image of the largest size that is accepted takes this much, however small its file.
    Target {
        seeds: image_file::seeds,
        spare_bytes: image_file::SPARE_BYTES,
        ..target("image_file", image_file::read, 3000)
    },
];

const fn target(name: &'static str, read: fn(&[u8]) -> crate::Verdict, inputs: u64) -> Target {
    Target { name, read, seeds: Vec::new, inputs, spare_bytes: SPARE_BYTES }
}
