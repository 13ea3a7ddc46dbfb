//! Mutations of JSON values.

use fastrand::Rng;
use serde_json::{Value, json};

use super::boundary;

/// Mutates a JSON document in place, after a first line with a file's name if there is one; `false` if the input is none.
pub(super) fn mutate(rng: &mut Rng, input: &mut Vec<u8>) -> bool {
    let start = match input.first() {
        Some(b'{' | b'[') => 0,
        _ => input.iter().position(|byte| *byte == b'\n').map_or(0, |end| end + 1),
    };
    let Ok(mut value) = serde_json::from_slice::<Value>(&input[start..]) else { return false };
    mutate_value(rng, &mut value);
    input.truncate(start);
    input.extend_from_slice(value.to_string().as_bytes());
    true
}

/// Changes one value somewhere inside.
pub(super) fn mutate_value(rng: &mut Rng, value: &mut Value) {
    let place = descend(rng, value);
    match rng.u8(..6) {
        0 => remove_child(rng, place),
        1 => double_child(rng, place),
        _ => *place = other(rng, place),
    }
}

/// A value inside; often a leaf.
fn descend<'v>(rng: &mut Rng, value: &'v mut Value) -> &'v mut Value {
    let children = match value {
        Value::Object(entries) => entries.len(),
        Value::Array(entries) => entries.len(),
        _ => 0,
    };
    if children == 0 || rng.u8(..8) == 0 {
        return value;
    }
    let child = rng.usize(..children);
    match value {
        Value::Object(entries) => descend(rng, entries.values_mut().nth(child).unwrap()),
        Value::Array(entries) => descend(rng, &mut entries[child]),
        _ => unreachable!("only objects and arrays have children"),
    }
}

fn remove_child(rng: &mut Rng, value: &mut Value) {
    match value {
        Value::Object(entries) if !entries.is_empty() => {
            let key = entries.keys().nth(rng.usize(..entries.len())).unwrap().clone();
            entries.remove(&key);
        }
        Value::Array(entries) if !entries.is_empty() => drop(entries.remove(rng.usize(..entries.len()))),
        _ => *value = Value::Null,
    }
}

fn double_child(rng: &mut Rng, value: &mut Value) {
    match value {
        Value::Object(entries) if !entries.is_empty() => {
            let (key, child) = entries.iter().nth(rng.usize(..entries.len())).unwrap();
            let (key, child) = (format!("{key}{}", ["", "_", ".", "2"][rng.usize(..4)]), child.clone());
            entries.insert(key, child);
        }
        Value::Array(entries) if !entries.is_empty() => {
            let child = entries[rng.usize(..entries.len())].clone();
            let times = [1, 3, 1000][rng.usize(..3)];
            entries.extend(std::iter::repeat_n(child, times));
        }
        _ => *value = json!([value.clone(), value.clone()]),
    }
}

/// A value of another type or size.
fn other(rng: &mut Rng, value: &Value) -> Value {
    let number: Value = serde_json::from_str(boundary(rng)).unwrap_or(Value::Null);
    match rng.u8(..12) {
        0..=5 => number,
        6 => Value::Null,
        7 => json!(rng.bool()),
        8 => json!(number.to_string()),
        9 => json!([value]),
        10 => json!({ "a": value }),
        _ => json!([[], {}, "", "a", -1.5])[rng.usize(..5)].take(),
    }
}
