//! The header of a tensor file, with every claim checked.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;

use super::element::Element;
use super::json::{self, Object, Value};

/// Largest header. The headers of the largest models and of adapters with the tags of a whole dataset stay below it;
/// the format itself allows 100 MB, which would take a multiple of that in memory.
pub(super) const MAX_HEADER_BYTES: u64 = 16 << 20;
/// Bytes by which other formats are recognised.
const BEGINNING_BYTES: u64 = 32;
/// Bytes of the header length at the start of the file.
pub(super) const LENGTH_BYTES: usize = 8;
pub(super) const METADATA: &str = "__metadata__";

/// The reason why a file could not be read as a tensor file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// The system could not read the file.
    #[error("the file cannot be read")]
    Io(#[source] io::Error),
    /// The path is a folder, a pipe or a device.
    #[error("expected a regular file")]
    NotAFile,
    /// The file has no bytes.
    #[error("the file is empty (0 bytes)")]
    Empty,
    /// The file is a PyTorch checkpoint, which may run code when loaded.
    #[error("expected safetensors, found a PyTorch pickle checkpoint")]
    Pickle,
    /// The file is a Git LFS pointer: the download is missing.
    #[error("expected safetensors, found a Git LFS pointer instead of the file itself")]
    LfsPointer,
    /// The file is not the one whose header was checked.
    #[error("the file was changed while it was read")]
    Changed,
    /// The file has another format.
    #[error("expected safetensors, found something else: {problem}")]
    NotSafetensors {
        /// The first difference found.
        problem: String,
    },
    /// The header is longer than the format allows.
    #[error("expected a header of at most {MAX_HEADER_BYTES} bytes, found {bytes}")]
    HeaderTooLarge {
        /// Length of the header.
        bytes: u64,
    },
    /// The file ends inside its header or its data.
    #[error("the file is cut short: expected {expected} bytes, found {found}")]
    Truncated {
        /// Bytes that the header requires.
        expected: u64,
        /// Bytes of the file.
        found: u64,
    },
    /// Bytes follow the last tensor.
    #[error("expected the file to end after {expected} bytes, found {found}")]
    TrailingBytes {
        /// Bytes that the header accounts for.
        expected: u64,
        /// Bytes of the file.
        found: u64,
    },
    /// The header has a key twice, so that readers may disagree about its content.
    #[error("the header has the key `{key}` twice")]
    DuplicateKey {
        /// The key.
        key: String,
    },
    /// The header lists more than any model or adapter has.
    #[error("expected at most {most} keys in each object of the header, found more")]
    TooManyKeys {
        /// The limit.
        most: usize,
    },
    /// The header's description of a tensor is malformed.
    #[error("tensor `{tensor}`: {problem}")]
    Description {
        /// Name of the tensor.
        tensor: String,
        /// The reason.
        problem: String,
    },
    /// A tensor has more elements than memory can address.
    #[error("tensor `{tensor}`: shape {shape:?} has more elements than can be addressed")]
    AbsurdShape {
        /// Name of the tensor.
        tensor: String,
        /// Its shape in the header.
        shape: Vec<usize>,
    },
    /// Shape and number of bytes disagree.
    #[error("tensor `{tensor}`: expected {expected} bytes for its shape, found {found}")]
    WrongSize {
        /// Name of the tensor.
        tensor: String,
        /// Bytes that follow from shape and element type.
        expected: u64,
        /// Bytes between its offsets.
        found: u64,
    },
    /// Two tensors claim the same bytes.
    #[error("tensors `{first}` and `{second}` overlap")]
    Overlap {
        /// The one that begins first.
        first: String,
        /// The one that begins inside it.
        second: String,
    },
    /// Bytes that belong to no tensor, where data could hide.
    #[error("{bytes} bytes before tensor `{tensor}` belong to no tensor")]
    Gap {
        /// Name of the tensor after the gap.
        tensor: String,
        /// Size of the gap.
        bytes: u64,
    },
    /// Metadata is not a map from strings to strings.
    #[error("expected metadata to map texts to texts, found otherwise at `{key}`")]
    Metadata {
        /// The key whose value is not a string.
        key: String,
    },
    /// The file has no tensor of that name.
    #[error("no tensor `{tensor}`")]
    NoSuchTensor {
        /// The name.
        tensor: String,
    },
    /// A tensor has an element type that candle does not support.
    #[error("tensor `{tensor}`: element type `{element}` is not supported")]
    Unsupported {
        /// Name of the tensor.
        tensor: String,
        /// Name of the type.
        element: &'static str,
    },
    /// The bytes could not be placed on the device.
    #[error("tensor `{tensor}` cannot be placed on the device")]
    Device {
        /// Name of the tensor.
        tensor: String,
        /// The tensor library's error.
        #[source]
        source: candle_core::Error,
    },
}

impl FileError {
    /// Advice on how to fix the error, if there is any.
    pub fn hint(&self) -> Option<String> {
        let text = match self {
            Self::Io(error) if error.kind() == io::ErrorKind::NotFound => "check the path",
            Self::NotAFile => "name the .safetensors file itself",
            Self::Empty | Self::Truncated { .. } => "download or copy the file again; it is incomplete",
            Self::Pickle => {
                "convert it to safetensors first, in a place you trust: loading a pickle can run arbitrary code"
            }
            Self::LfsPointer => "fetch the real file with `git lfs pull`",
            Self::Overlap { .. }
            | Self::Gap { .. }
            | Self::AbsurdShape { .. }
            | Self::HeaderTooLarge { .. }
            | Self::DuplicateKey { .. }
            | Self::TooManyKeys { .. } => "no honest program writes such a file; do not trust its source",
            Self::Unsupported { .. } => "convert the tensor to f32, f16 or bf16",
            _ => return None,
        };
        Some(text.into())
    }
}

/// One tensor of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) element: Element,
    pub(super) shape: Vec<usize>,
    /// The tensor's bytes, counted from the start of the file.
    pub(super) range: Range<u64>,
}

/// The content of a checked header.
#[derive(Debug, Clone, Default)]
pub(super) struct Header {
    pub(super) entries: BTreeMap<String, Entry>,
    pub(super) metadata: BTreeMap<String, String>,
    /// The position of the first byte after the header.
    pub(super) data_start: u64,
}

impl Header {
    /// Reads and checks the header of a file of `bytes` bytes; `read` returns the bytes of a range within them.
    pub(super) fn read(bytes: u64, read: impl Fn(Range<u64>) -> Result<Vec<u8>, FileError>) -> Result<Self, FileError> {
        let beginning = read(0..bytes.min(BEGINNING_BYTES))?;
        refuse_other_formats(&beginning)?;
        let mut header = Self { data_start: data_start(&beginning, bytes)?, ..Self::default() };
        let mut has_metadata = false;
        json::each_entry(&read(LENGTH_BYTES as u64..header.data_start)?, |name, value| {
            if name != METADATA {
                let entry = parse_entry(&name, value, header.data_start)?;
                return json::insert(&mut header.entries, name, entry);
            }
            if std::mem::replace(&mut has_metadata, true) {
                return Err(FileError::DuplicateKey { key: name });
            }
            header.metadata = parse_metadata(value)?;
            Ok(())
        })?;
        header.check_coverage(bytes)?;
        Ok(header)
    }

    /// Checks that every byte of the data belongs to exactly one tensor.
    fn check_coverage(&self, found: u64) -> Result<(), FileError> {
        let mut entries: Vec<_> = self.entries.iter().collect();
        entries.sort_by_key(|(_, entry)| (entry.range.start, entry.range.end));
        let (mut end, mut last) = (self.data_start, "");
        for (name, entry) in entries {
            if entry.range.start < end {
                return Err(FileError::Overlap { first: last.into(), second: name.clone() });
            }
            if entry.range.start > end {
                return Err(FileError::Gap { tensor: name.clone(), bytes: entry.range.start - end });
            }
            (end, last) = (entry.range.end, name);
        }
        match end.cmp(&found) {
            std::cmp::Ordering::Greater => Err(FileError::Truncated { expected: end, found }),
            std::cmp::Ordering::Less => Err(FileError::TrailingBytes { expected: end, found }),
            std::cmp::Ordering::Equal => Ok(()),
        }
    }
}

/// Refuses other formats by the first bytes of a file.
fn refuse_other_formats(beginning: &[u8]) -> Result<(), FileError> {
    // A zip archive (torch.save since 1.6), or a pickle of protocol 2 to 5 (before).
    let pickle = beginning.starts_with(b"PK\x03\x04")
        || matches!(beginning, [0x80, 2..=5, rest @ ..] if rest.get(6) != Some(&b'{'));
    match beginning {
        [] => Err(FileError::Empty),
        _ if pickle => Err(FileError::Pickle),
        _ if beginning.starts_with(b"version https://git-lfs") => Err(FileError::LfsPointer),
        _ => Ok(()),
    }
}

/// Start of the data in a file of `found` bytes, if the header's length is plausible.
fn data_start(beginning: &[u8], found: u64) -> Result<u64, FileError> {
    let Some((length, rest)) = beginning.split_first_chunk::<LENGTH_BYTES>() else {
        return Err(FileError::Truncated { expected: LENGTH_BYTES as u64 + 2, found });
    };
    let bytes = u64::from_le_bytes(*length);
    match rest.first() {
        Some(b'{') => {}
        Some(other) => {
            let problem = format!("byte 8 is {other:#04x} where `{{` opens a header");
            return Err(FileError::NotSafetensors { problem });
        }
        None => return Err(FileError::Truncated { expected: bytes.saturating_add(8), found }),
    }
    if bytes > MAX_HEADER_BYTES {
        return Err(FileError::HeaderTooLarge { bytes });
    }
    let expected = bytes + LENGTH_BYTES as u64;
    if expected > found {
        return Err(FileError::Truncated { expected, found });
    }
    Ok(expected)
}

fn parse_metadata(value: Value) -> Result<BTreeMap<String, String>, FileError> {
    let Value::Object(pairs) = value else {
        return Err(FileError::Metadata { key: METADATA.into() });
    };
    let text = |(key, value)| match value {
        Value::Text(text) => Ok((key, text)),
        _ => Err(FileError::Metadata { key }),
    };
    pairs.into_iter().map(text).collect()
}

fn parse_entry(name: &str, value: Value, data_start: u64) -> Result<Entry, FileError> {
    let wrong = |problem: &str| FileError::Description { tensor: name.into(), problem: problem.into() };
    let mut fields = if let Value::Object(fields) = value { fields } else { Object::new() };
    let Some(Value::Text(dtype)) = fields.remove("dtype") else { return Err(wrong("expected a text `dtype`")) };
    let element = Element::parse(&dtype).ok_or_else(|| wrong(&format!("unknown dtype `{dtype}`")))?;
    let Some(Value::Numbers(shape)) = fields.remove("shape") else {
        return Err(wrong("expected `shape` to be a short list of sizes"));
    };
    let Some(&[start, end]) = numbers(fields.get("data_offsets")) else {
        return Err(wrong("expected `data_offsets` to be two positions"));
    };
    if start > end {
        return Err(wrong("its data ends before it begins"));
    }
    let [start, end] = [start as u64, end as u64];
    let (Some(first), Some(last)) = (data_start.checked_add(start), data_start.checked_add(end)) else {
        return Err(wrong("its data ends beyond any memory"));
    };
    check_size(name, element, &shape, end - start)?;
    Ok(Entry { element, shape, range: first..last })
}

fn numbers(value: Option<&Value>) -> Option<&[usize]> {
    if let Some(Value::Numbers(numbers)) = value { Some(numbers) } else { None }
}

fn check_size(name: &str, element: Element, shape: &[usize], found: u64) -> Result<(), FileError> {
    let count = shape.iter().try_fold(1usize, |product, size| product.checked_mul(*size));
    let bits = count.and_then(|count| count.checked_mul(element.bits));
    let Some(bits) = bits else {
        return Err(FileError::AbsurdShape { tensor: name.into(), shape: shape.to_vec() });
    };
    let expected = bits.div_ceil(8) as u64;
    if expected != found {
        return Err(FileError::WrongSize { tensor: name.into(), expected, found });
    }
    Ok(())
}
