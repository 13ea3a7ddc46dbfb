#![doc = include_str!("../README.md")]
#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::disallowed_methods,
        reason = "a test may panic, and writes half files on purpose"
    )
)]

mod bounded;
pub mod captions;
mod condition;
mod error;
mod set;
pub mod template;
mod tokenizer;
mod trigger;

pub use condition::CatCondition;
pub use error::{Error, ImageProblem, MetadataProblem, Result};
pub use set::{Prompt, PromptKind, PromptSet, RenderedPrompts};
pub use tokenizer::{Tokenizer, Tokens};
pub use trigger::{Inserted, Trigger};
