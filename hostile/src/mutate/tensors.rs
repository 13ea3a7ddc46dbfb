//! Mutations of safetensors files that keep the format valid, so that what reads the tensors is reached.

use fastrand::Rng;
use serde_json::{Map, Value, json};

use super::json;

const LENGTH_BYTES: usize = 8;
const METADATA: &str = "__metadata__";

/// Element types with their bits.
const ELEMENTS: &[(&str, usize)] = &[
    ("F32", 32),
    ("F16", 16),
    ("BF16", 16),
    ("F64", 64),
    ("I64", 64),
    ("I32", 32),
    ("U8", 8),
    ("BOOL", 8),
    ("F8_E4M3", 8),
    ("U64", 64),
    ("F4", 4),
];

/// Sizes of a side; a file of the largest still fits into an input.
const SIDES: &[usize] = &[0, 1, 2, 3, 4, 5, 7, 8, 31, 32, 33, 64, 320, 1000, 5000, 20_000];

/// Most elements of a tensor that a mutation makes.
const MOST_ELEMENTS: usize = 50_000;

/// Mutates a safetensors file in place; `false` if the input is none.
pub(super) fn mutate(rng: &mut Rng, input: &mut Vec<u8>) -> bool {
    let Some((mut header, data)) = parts(input) else { return false };
    match rng.u8(..10) {
        0 | 1 => json::mutate_value(rng, &mut header),
        2 => return data_value(rng, input, data),
        3 => return duplicate_key(rng, input, &header, data),
        4 => retype(rng, &mut header),
        5 => rename(rng, &mut header),
        6 | 7 => rank(rng, &mut header),
        8 => resize(rng, &mut header),
        _ => metadata(rng, &mut header),
    }
    let data = input.split_off(data);
    *input = file(header, &data, rng.u8(..8) != 0);
    true
}

/// The header, and where the data begins.
fn parts(input: &[u8]) -> Option<(Value, usize)> {
    let (length, rest) = input.split_first_chunk::<LENGTH_BYTES>()?;
    let length = usize::try_from(u64::from_le_bytes(*length)).ok().filter(|length| *length <= rest.len())?;
    let header: Value = serde_json::from_slice(&rest[..length]).ok()?;
    header.is_object().then_some((header, LENGTH_BYTES + length))
}

/// A file of this header and data; `relaid` gives every tensor its own bytes again.
fn file(mut header: Value, data: &[u8], relaid: bool) -> Vec<u8> {
    let data = match header.as_object_mut().filter(|_| relaid) {
        Some(entries) => relay(entries, data),
        None => data.to_vec(),
    };
    let header = header.to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.extend_from_slice(&data);
    file
}

/// New offsets for all tensors, in order; their bytes come along, cut or filled up with zeros.
fn relay(entries: &mut Map<String, Value>, data: &[u8]) -> Vec<u8> {
    let mut relaid = Vec::new();
    for (_, entry) in entries.iter_mut().filter(|(name, _)| *name != METADATA) {
        let Some(size) = byte_size(entry) else { continue };
        let old = entry.pointer("/data_offsets/0").and_then(Value::as_u64).map_or(0, |start| start as usize);
        let start = relaid.len();
        relaid.extend_from_slice(data.get(old..).map_or(&[][..], |rest| &rest[..rest.len().min(size)]));
        relaid.resize(start + size, 0);
        if let Some(entry) = entry.as_object_mut() {
            entry.insert("data_offsets".into(), json!([start, start + size]));
        }
    }
    relaid
}

fn byte_size(entry: &Value) -> Option<usize> {
    let bits = ELEMENTS.iter().find(|(name, _)| entry["dtype"] == *name)?.1;
    let mut sides = entry["shape"].as_array()?.iter().map(Value::as_u64);
    let count = sides.try_fold(1usize, |count, side| count.checked_mul(usize::try_from(side?).ok()?))?;
    (count <= MOST_ELEMENTS).then(|| (count * bits).div_ceil(8))
}

/// Other values of some elements: not finite, tiny, huge.
fn data_value(rng: &mut Rng, input: &mut [u8], data: usize) -> bool {
    let numbers = [f32::NAN, f32::INFINITY, f32::MAX, f32::MIN_POSITIVE, -0.0, 1e30, f32::from_bits(1)];
    let bytes = numbers[rng.usize(..numbers.len())].to_le_bytes();
    let places = (input.len() - data) / bytes.len();
    if places == 0 {
        return false;
    }
    let start = data + rng.usize(..places) * bytes.len();
    input[start..start + bytes.len()].copy_from_slice(&bytes);
    true
}

/// A header that names one tensor twice.
fn duplicate_key(rng: &mut Rng, input: &mut Vec<u8>, header: &Value, data: usize) -> bool {
    let Some((name, entry)) = pick(rng, header) else { return false };
    let twice = format!("{{{}:{entry},{}", json!(name), &header.to_string()[1..]);
    let data = input.split_off(data);
    input.clear();
    input.extend_from_slice(&(twice.len() as u64).to_le_bytes());
    input.extend_from_slice(twice.as_bytes());
    input.extend_from_slice(&data);
    true
}

fn pick<'h>(rng: &mut Rng, header: &'h Value) -> Option<(&'h String, &'h Value)> {
    let tensors: Vec<_> = header.as_object()?.iter().filter(|(name, _)| *name != METADATA).collect();
    tensors.get(rng.usize(..tensors.len().max(1))).copied()
}

fn pick_mut<'h>(rng: &mut Rng, header: &'h mut Value) -> Option<&'h mut Map<String, Value>> {
    let name = pick(rng, header)?.0.clone();
    header.get_mut(name)?.as_object_mut()
}

fn retype(rng: &mut Rng, header: &mut Value) {
    if let Some(entry) = pick_mut(rng, header) {
        entry.insert("dtype".into(), json!(ELEMENTS[rng.usize(..ELEMENTS.len())].0));
    }
}

/// Another name of a tensor: of another block, layer, component or format.
fn rename(rng: &mut Rng, header: &mut Value) {
    let Some(name) = pick(rng, header).map(|(name, _)| name.clone()) else { return };
    let renamed = match rng.u8(..6) {
        0 => name.replacen('0', "1", 1),
        1 => name.replace("lora_unet", "lora_te1").replace("unet.", "text_encoder."),
        2 => name.replace("lora_down", "hada_w1_a").replace("lora.down", "lora_A"),
        3 => name.replace("lora_down", "lora_A").replace("lora_up", "lora_B"),
        4 => name.rsplit_once('.').map_or_else(String::new, |(stem, _)| format!("{stem}.alpha")),
        _ => format!("base_model.model.{name}"),
    };
    if let Some(entries) = header.as_object_mut()
        && let Some(entry) = entries.remove(&name)
    {
        entries.insert(renamed, entry);
    }
}

/// Another rank of all tensors of one module, with sides that may be 1.
fn rank(rng: &mut Rng, header: &mut Value) {
    let Some(name) = pick(rng, header).map(|(name, _)| name.clone()) else { return };
    let (rank, side) = (SIDES[rng.usize(..SIDES.len())], if rng.bool() { 1 } else { SIDES[rng.usize(..12)] });
    let stem = name.split(".lora").next().unwrap_or(&name).to_owned();
    let Some(entries) = header.as_object_mut() else { return };
    for (name, entry) in entries.iter_mut().filter(|(name, _)| name.starts_with(&stem)) {
        let shape = match () {
            () if name.contains("down.weight") || name.contains("lora_A") => json!([rank, side]),
            () if name.contains("up.weight") || name.contains("lora_B") => json!([side, rank]),
            () => continue,
        };
        if let Some(entry) = entry.as_object_mut() {
            entry.insert("shape".into(), shape);
        }
    }
}

fn resize(rng: &mut Rng, header: &mut Value) {
    let shape = pick_mut(rng, header).and_then(|entry| entry.get_mut("shape")?.as_array_mut());
    let Some(shape) = shape else { return };
    let side = json!(SIDES[rng.usize(..SIDES.len())]);
    match rng.usize(..=shape.len()) {
        end if end == shape.len() => shape.push(side),
        at => shape[at] = side,
    }
}

/// An entry of the metadata changed; configurations in it are JSON in text.
fn metadata(rng: &mut Rng, header: &mut Value) {
    let entries = header.get_mut(METADATA).and_then(Value::as_object_mut).filter(|entries| !entries.is_empty());
    let Some(entries) = entries else { return };
    let count = entries.len();
    let text = entries.values_mut().nth(rng.usize(..count)).unwrap();
    let mut inner = text.as_str().unwrap_or_default().as_bytes().to_vec();
    if !json::mutate(rng, &mut inner) {
        super::text::mutate(rng, &mut inner);
    }
    *text = json!(String::from_utf8_lossy(&inner));
}
