//! Writing tensor files.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;

use candle_core::{DType, Tensor};
use serde_json::{Map, Value, json};

use super::element::Element;
use super::header::{LENGTH_BYTES, METADATA};
use crate::finite::pieces;
use crate::{Error, Result, atomic};

/// Writes tensors and metadata atomically; equal content gives equal bytes.
///
/// The header lists metadata first, sorted. Tensors follow in the order of the reference implementation, wide element
/// types first, then by name, so that every tensor is aligned.
///
/// # Errors
/// [`Error::UnsupportedElement`] if the format has no such element type; [`Error::Write`] if the file could not be
/// written; an existing file is then unchanged.
pub fn write(
    path: impl AsRef<Path>,
    tensors: &BTreeMap<String, Tensor>,
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    let layout = Layout::of(tensors)?;
    atomic::write(path, |out| layout.write(metadata, out))
}

/// The bytes of the file that [`write()`] writes.
///
/// # Errors
/// As for [`write_to`].
pub fn to_bytes(tensors: &BTreeMap<String, Tensor>, metadata: &BTreeMap<String, String>) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    write_to(&mut bytes, tensors, metadata)?;
    Ok(bytes)
}

/// Passes the bytes of the file that [`write()`] writes to `out`, such as a hash, piece by piece.
///
/// # Errors
/// [`Error::UnsupportedElement`] as for [`write()`]; [`Error::Write`] if a tensor cannot be copied from its device, or
/// `out` fails.
pub fn write_to(
    out: &mut dyn Write,
    tensors: &BTreeMap<String, Tensor>,
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    let written = Layout::of(tensors)?.write(metadata, out);
    written.map_err(|source| Error::Write { path: "bytes in memory".into(), source })
}

/// The tensors in the order of the file.
pub(super) struct Layout<'a>(Vec<(&'a str, &'a Tensor, Element)>);

impl<'a> Layout<'a> {
    pub(super) fn of(tensors: &'a BTreeMap<String, Tensor>) -> Result<Self> {
        let describe = |(name, tensor): (&'a String, &'a Tensor)| match Element::of(tensor.dtype()) {
            Some(element) => Ok((name.as_str(), tensor, element)),
            None => Err(Error::UnsupportedElement { tensor: name.clone(), dtype: tensor.dtype().as_str().into() }),
        };
        let mut tensors = tensors.iter().map(describe).collect::<Result<Vec<_>>>()?;
        tensors.sort_by_key(|(name, _, element)| (std::cmp::Reverse(element.bits), *name));
        Ok(Self(tensors))
    }

    pub(super) fn write(&self, metadata: &BTreeMap<String, String>, out: &mut dyn Write) -> io::Result<()> {
        let mut header = self.header(metadata);
        while !header.len().is_multiple_of(LENGTH_BYTES) {
            header.push(' ');
        }
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(header.as_bytes())?;
        self.0.iter().try_for_each(|(_, tensor, _)| write_elements(tensor, out))
    }

    fn header(&self, metadata: &BTreeMap<String, String>) -> String {
        let mut header = Map::new();
        if !metadata.is_empty() {
            header.insert(METADATA.into(), json!(metadata));
        }
        let mut start = 0;
        for (name, tensor, element) in &self.0 {
            let end = start + tensor.elem_count() * element.bits / 8;
            let entry = json!({ "dtype": element.name, "shape": tensor.dims(), "data_offsets": [start, end] });
            header.insert((*name).into(), entry);
            start = end;
        }
        Value::Object(header).to_string()
    }
}

/// Elements that are copied and written at a time.
const PIECE: usize = 1 << 18;

/// Writes the elements in row-major order, piece by piece.
fn write_elements(tensor: &Tensor, out: &mut dyn Write) -> io::Result<()> {
    for piece in pieces(tensor, PIECE).map_err(io::Error::other)? {
        let piece = piece.map_err(io::Error::other)?;
        out.write_all(&little_endian(&piece).map_err(io::Error::other)?)?;
    }
    Ok(())
}

/// The bytes of a vector.
fn little_endian(vector: &Tensor) -> candle_core::Result<Vec<u8>> {
    macro_rules! bytes_of {
        ($values:expr) => {
            $values.map(|values| values.iter().flat_map(|value| value.to_le_bytes()).collect())
        };
    }
    match vector.dtype() {
        DType::U8 => vector.to_vec1::<u8>(),
        DType::U32 => bytes_of!(vector.to_vec1::<u32>()),
        DType::I16 => bytes_of!(vector.to_vec1::<i16>()),
        DType::I32 => bytes_of!(vector.to_vec1::<i32>()),
        DType::I64 => bytes_of!(vector.to_vec1::<i64>()),
        DType::BF16 => bytes_of!(vector.to_vec1::<half::bf16>()),
        DType::F16 => bytes_of!(vector.to_vec1::<half::f16>()),
        DType::F32 => bytes_of!(vector.to_vec1::<f32>()),
        DType::F64 => bytes_of!(vector.to_vec1::<f64>()),
        other => candle_core::bail!("no bytes for element type {other:?}"),
    }
}
