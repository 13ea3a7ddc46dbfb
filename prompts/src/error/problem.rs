//! What is wrong with single pictures and lines; an [`Error`](super::Error) collects them.

use std::fmt;

/// What is wrong with one picture's caption.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum PictureProblem {
    /// No source gives this picture a caption.
    NoCaption {
        /// The picture, relative to the folder.
        picture: String,
    },
    /// The caption is empty or only whitespace.
    EmptyCaption {
        /// The picture, relative to the folder.
        picture: String,
        /// The file that holds the empty caption.
        caption_file: String,
    },
    /// The caption file is not UTF-8 text.
    NotUtf8 {
        /// The picture, relative to the folder.
        picture: String,
        /// The caption file.
        caption_file: String,
        /// Number of leading bytes that are valid UTF-8.
        valid_bytes: usize,
    },
}

impl fmt::Display for PictureProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoCaption { picture } => write!(f, "`{picture}` has no caption"),
            Self::EmptyCaption { picture, caption_file } => {
                write!(f, "`{picture}` has an empty caption in `{caption_file}`")
            }
            Self::NotUtf8 { picture, caption_file, valid_bytes } => {
                write!(f, "`{picture}` has a caption in `{caption_file}` that is not UTF-8 after byte {valid_bytes}")
            }
        }
    }
}

/// What is wrong with one line of a `metadata.jsonl`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum MetadataProblem {
    /// The line is not a JSON object.
    NotAnObject {
        /// Line number, from 1.
        line: usize,
        /// What the JSON parser says, or what was found instead.
        reason: String,
    },
    /// A field that the line needs is absent or not text.
    MissingField {
        /// Line number, from 1.
        line: usize,
        /// The field, or the fields of which one is needed.
        field: &'static str,
    },
    /// The named picture does not exist.
    MissingFile {
        /// Line number, from 1.
        line: usize,
        /// The name as written.
        file_name: String,
    },
    /// The named file is not a picture of a kind that is read.
    NotAPicture {
        /// Line number, from 1.
        line: usize,
        /// The name as written.
        file_name: String,
    },
    /// The name leads out of the folder.
    OutsideFolder {
        /// Line number, from 1.
        line: usize,
        /// The name as written.
        file_name: String,
    },
    /// The same picture is named twice, with different texts.
    Repeated {
        /// Line number, from 1.
        line: usize,
        /// The name as written.
        file_name: String,
        /// The line that named it first.
        first: usize,
    },
}

impl fmt::Display for MetadataProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAnObject { line, reason } => {
                write!(f, "line {line} is not a JSON object ({reason})")
            }
            Self::MissingField { line, field } => write!(f, "line {line} has no text in {field}"),
            Self::MissingFile { line, file_name } => {
                write!(f, "line {line} names `{file_name}`, which does not exist")
            }
            Self::NotAPicture { line, file_name } => {
                write!(f, "line {line} names `{file_name}`, which is not a picture")
            }
            Self::OutsideFolder { line, file_name } => {
                write!(f, "line {line} names `{file_name}`, which lies outside the folder")
            }
            Self::Repeated { line, file_name, first } => {
                write!(f, "line {line} names `{file_name}` again with another text (first on line {first})")
            }
        }
    }
}
