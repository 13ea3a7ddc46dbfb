//! Errors of this crate, with advice.

mod problem;

use std::fmt;
use std::io;
use std::path::PathBuf;

use crate::captions::IMAGE_EXTENSIONS;
pub use problem::{ImageProblem, MetadataProblem};

/// The result of every fallible function of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// An error about text, or about a file that holds it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or folder could not be read.
    #[error("cannot read `{path}`")]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },

    // Tokenizer
    /// A tokenizer folder lacks its vocabulary or its merges.
    #[error("the tokenizer has no `{file}`{}", in_place(place))]
    TokenizerFileMissing {
        /// The missing file.
        file: &'static str,
        /// The folder or store that was searched; empty if the files came as bytes.
        place: String,
    },
    /// A tokenizer file does not parse.
    #[error("the tokenizer's `{file}` is broken: {reason}")]
    TokenizerFileBroken {
        /// The file.
        file: &'static str,
        /// The reason.
        reason: String,
    },
    /// A special token is not in the vocabulary.
    #[error("the tokenizer's {role} token `{token}` is not in its vocabulary of {vocabulary} entries")]
    SpecialTokenUnknown {
        /// `start`, `end`, `unknown` or `pad`.
        role: &'static str,
        /// The token as written.
        token: String,
        /// Number of entries in the vocabulary.
        vocabulary: usize,
    },
    /// The tokenizer failed on a text.
    #[error("cannot tokenize `{text}`: {reason}")]
    Tokenize {
        /// The text.
        text: String,
        /// The tokenizer's error.
        reason: String,
    },

    // Captions
    /// The folder of images does not exist.
    #[error("no such folder: `{path}`")]
    NoSuchFolder {
        /// The path as given.
        path: PathBuf,
    },
    /// The path names a file where a folder is needed.
    #[error("`{path}` is a file, expected a folder of images")]
    NotAFolder {
        /// The path as given.
        path: PathBuf,
    },
    /// The folder holds no image.
    #[error("no images in `{path}`: {}", found_instead(others, subfolders))]
    NoImages {
        /// The folder.
        path: PathBuf,
        /// Files that are there but are not images.
        others: Vec<String>,
        /// Subfolders that hold images but whose names do not start with a number.
        subfolders: Vec<String>,
    },
    /// Some images have no usable caption.
    #[error("{} of {total} images in `{folder}` cannot be used: {}", problems.len(), joined(problems))]
    Images {
        /// The folder.
        folder: PathBuf,
        /// Number of images in the folder.
        total: usize,
        /// One problem for each image that cannot be used.
        problems: Vec<ImageProblem>,
    },
    /// A `metadata.jsonl` has broken lines.
    #[error("`{path}` cannot be used: {}", joined(problems))]
    Metadata {
        /// The file.
        path: PathBuf,
        /// One problem for each line that cannot be used; at most the first 100.
        problems: Vec<MetadataProblem>,
    },
    /// The caption given for all images is empty.
    #[error("the caption given for all images is empty")]
    EmptySharedCaption,

    // Triggers
    /// The trigger is empty or only whitespace.
    #[error("the trigger is empty")]
    EmptyTrigger,
    /// The trigger has no letter and no digit.
    #[error("the trigger `{trigger}` is only punctuation, expected at least one letter or digit")]
    PunctuationTrigger {
        /// The trigger as given.
        trigger: String,
    },
    /// Captions are the same with and without the trigger.
    #[error(
        "{} with and without the trigger `{trigger}` for {}",
        if images.len() == 1 { "the caption is the same" } else { "the captions are the same" },
        quoted(images)
    )]
    TriggerNotInCaptions {
        /// The trigger.
        trigger: String,
        /// The images whose captions do not hold the trigger.
        images: Vec<String>,
    },
    /// The condition `class` needs a class prompt.
    #[error("the CAT condition `class` needs a class prompt, found none")]
    ClassMissing,
    /// No CAT condition has this name.
    #[error("unknown CAT condition `{name}`, expected `caption`, `class` or `empty`")]
    UnknownCatCondition {
        /// The name as given.
        name: String,
    },

    // Templates and sets
    /// A template names a placeholder that does not exist.
    #[error("unknown placeholder `{{{name}}}` in `{template}`, known are {}", quoted(crate::template::PLACEHOLDERS))]
    UnknownPlaceholder {
        /// The name between the braces.
        name: String,
        /// The whole template.
        template: String,
    },
    /// A brace is opened and never closed, or closed and never opened.
    #[error("unmatched `{brace}` in `{template}`")]
    UnmatchedBrace {
        /// The brace.
        brace: char,
        /// The whole template.
        template: String,
    },
    /// A template needs a value that was not given.
    #[error("`{template}` needs a value for `{placeholder}`, found none")]
    PlaceholderValueMissing {
        /// The placeholder as written.
        placeholder: &'static str,
        /// The whole template.
        template: String,
    },
    /// No built-in prompt set has this name.
    #[error("no prompt set is named `{name}`, built in are {}", quoted(known))]
    UnknownPromptSet {
        /// The name as given.
        name: String,
        /// The names that exist.
        known: Vec<&'static str>,
    },
    /// A prompt file is not valid TOML of the expected layout.
    #[error("the prompt set `{name}` is broken")]
    PromptSetBroken {
        /// The set or file.
        name: String,
        /// The parser's error, with line and column.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// A prompt file is not UTF-8 text.
    #[error("the prompt file `{path}` is not UTF-8 text")]
    PromptSetNotUtf8 {
        /// The file.
        path: PathBuf,
    },
    /// A prompt set has no prompt, or an empty one.
    #[error("the prompt set `{name}` has {}", empty_prompts(positions))]
    EmptyPrompts {
        /// The set or file.
        name: String,
        /// Places of the empty prompts, from 1; none when the whole set is empty.
        positions: Vec<usize>,
    },
}

impl Error {
    /// Advice on what to do next, where there is any.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::TokenizerFileMissing { .. } => {
                "a tokenizer folder holds `vocab.json` and `merges.txt`, or `tokenizer.json`".into()
            }
            Self::TokenizerFileBroken { .. } | Self::SpecialTokenUnknown { .. } => {
                "copy the tokenizer folder again from where the base model came".into()
            }
            Self::NotAFolder { path } => {
                format!("give the folder that holds it: `{}`", path.parent().unwrap_or(path).display())
            }
            Self::NoImages { subfolders, .. } => no_images_hint(subfolders),
            Self::Images { problems, .. } => images_hint(problems),
            Self::Metadata { .. } => "each line is like {\"file_name\": \"001.png\", \"text\": \"a caption\"}".into(),
            Self::EmptySharedCaption => "write a few words, such as `a photo of a dog`".into(),
            Self::EmptyTrigger | Self::PunctuationTrigger { .. } => {
                "choose a rare short word that the base model does not know, such as `shs`".into()
            }
            Self::TriggerNotInCaptions { trigger, .. } => {
                format!("write `{trigger}` into these captions, or let it be inserted in front")
            }
            Self::ClassMissing => {
                "give a class prompt, such as `a photo of a dog`, or use the condition `caption`".into()
            }
            Self::UnknownPlaceholder { .. } | Self::UnmatchedBrace { .. } => {
                "for a brace that is part of the text write it twice: `{{` or `}}`".into()
            }
            Self::PlaceholderValueMissing { placeholder, .. } => {
                format!("give the value, or remove `{placeholder}` from the text")
            }
            Self::UnknownPromptSet { .. } => {
                "use one of these names, or the path of a .toml or .txt file of prompts".into()
            }
            Self::EmptyPrompts { .. } => "write one prompt a line".into(),
            Self::PromptSetBroken { .. } => {
                "a set is a table `[prompts]` with the lists `same-class`, `unrelated` and `generic`".into()
            }
            Self::PromptSetNotUtf8 { .. } => "save it as UTF-8".into(),
            Self::Read { .. }
            | Self::Tokenize { .. }
            | Self::NoSuchFolder { .. }
            | Self::UnknownCatCondition { .. } => return None,
        };
        Some(hint)
    }
}

fn no_images_hint(subfolders: &[String]) -> String {
    match subfolders.first() {
        Some(first) => format!(
            "subfolders are read when their names start with how often to repeat them: rename `{first}` to `1_{first}`"
        ),
        None => "put the images directly into this folder".into(),
    }
}

fn images_hint(problems: &[ImageProblem]) -> String {
    match problems.first() {
        Some(ImageProblem::NotUtf8 { .. }) => "save the caption files as UTF-8".into(),
        Some(ImageProblem::EmptyCaption { .. }) => {
            "write the captions, or delete the empty files and give one caption for all with `--caption`".into()
        }
        _ => "write a .txt file of the same name beside each, or give one caption for all with `--caption`".into(),
    }
}

fn in_place(place: &str) -> String {
    match place {
        "" => String::new(),
        place => format!(" in `{place}`"),
    }
}

fn found_instead(others: &[String], subfolders: &[String]) -> String {
    let read = format!("files ending in {} are read", IMAGE_EXTENSIONS.join(", "));
    if !subfolders.is_empty() {
        return format!("{read}; there are images in the subfolders {}", quoted(subfolders));
    }
    match others {
        [] => format!("{read}; the folder is empty"),
        others => format!("{read}; found {}", first_few(others)),
    }
}

/// The first eight names and the number of the others.
fn first_few(names: &[String]) -> String {
    const SHOWN: usize = 8;
    match names.len().checked_sub(SHOWN) {
        Some(more @ 1..) => format!("{} and {more} more", quoted(&names[..SHOWN])),
        _ => quoted(names),
    }
}

fn empty_prompts(positions: &[usize]) -> String {
    match positions {
        [] => "no prompts".into(),
        [one] => format!("an empty prompt at place {one}"),
        many => {
            let places: Vec<String> = many.iter().map(ToString::to_string).collect();
            format!("empty prompts at places {}", places.join(", "))
        }
    }
}

fn joined<T: fmt::Display>(problems: &[T]) -> String {
    let texts: Vec<String> = problems.iter().map(ToString::to_string).collect();
    texts.join("; ")
}

fn quoted<T: AsRef<str>>(names: &[T]) -> String {
    let names: Vec<String> = names.iter().map(|name| format!("`{}`", name.as_ref())).collect();
    names.join(", ")
}
