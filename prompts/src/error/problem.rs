//! Problems of single images and lines; an [`Error`](super::Error) collects them.

use std::fmt;

/// A problem with one image's caption.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ImageProblem {
    /// No source gives this image a caption.
    NoCaption {
        /// The image, relative to the folder.
        image: String,
    },
    /// The caption is empty or only whitespace.
    EmptyCaption {
        /// The image, relative to the folder.
        image: String,
        /// The file that holds the empty caption.
        caption_file: String,
    },
    /// The caption file is not UTF-8 text.
    NotUtf8 {
        /// The image, relative to the folder.
        image: String,
        /// The caption file.
        caption_file: String,
        /// Number of leading bytes that are valid UTF-8.
        valid_bytes: usize,
    },
}

impl fmt::Display for ImageProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoCaption { image } => write!(f, "`{image}` has no caption"),
            Self::EmptyCaption { image, caption_file } => {
                write!(f, "`{image}` has an empty caption in `{caption_file}`")
            }
            Self::NotUtf8 { image, caption_file, valid_bytes } => {
                write!(f, "`{image}` has a caption in `{caption_file}` that is not UTF-8 after byte {valid_bytes}")
            }
        }
    }
}

/// A problem with one line of a `metadata.jsonl`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum MetadataProblem {
    /// The line is not a JSON object.
    NotAnObject {
        /// Line number, from 1.
        line: usize,
        /// The JSON parser's error.
        reason: String,
    },
    /// A field that the line needs is absent or not text.
    MissingField {
        /// Line number, from 1.
        line: usize,
        /// The field, or the fields of which one is needed.
        field: &'static str,
    },
    /// The named image does not exist.
    MissingFile {
        /// Line number, from 1.
        line: usize,
        /// The name as written.
        file_name: String,
    },
    /// The named file does not have the ending of an image file.
    NotAnImage {
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
    /// The same image is named twice, with different texts.
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
            Self::NotAnImage { line, file_name } => {
                write!(f, "line {line} names `{file_name}`, which is not an image")
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
