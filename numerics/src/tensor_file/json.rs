//! The JSON of a header: no key may occur twice at any level, and nothing is kept but what a header can contain.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::header::FileError;

/// Most keys of one object. The largest adapters have a few thousand tensors.
const MOST_KEYS: usize = 100_000;
/// Most numbers of one list.
const MOST_NUMBERS: usize = 32;

/// A value, as far as a header can contain it.
pub(super) enum Value {
    Text(String),
    Number(usize),
    Numbers(Vec<usize>),
    Object(Object),
    Other,
}

pub(super) type Object = BTreeMap<String, Value>;

/// Calls `take` with each key and value of the JSON object `text`, in the order of the text.
pub(super) fn each_entry(
    text: &[u8],
    take: impl FnMut(String, Value) -> Result<(), FileError>,
) -> Result<(), FileError> {
    let refusal = RefCell::new(None);
    let mut json = serde_json::Deserializer::from_slice(text);
    let read = json.deserialize_map(Entries { take, refusal: &refusal }).and_then(|()| json.end());
    match (read, refusal.into_inner()) {
        (_, Some(refusal)) => Err(refusal),
        (Ok(()), None) => Ok(()),
        (Err(error), None) => {
            Err(FileError::NotSafetensors { problem: format!("its header is not a JSON object ({error})") })
        }
    }
}

/// The reason to stop in the middle of the text, which serde's errors cannot carry.
type Refusal<'r> = &'r RefCell<Option<FileError>>;

fn refuse<E: serde::de::Error>(refusal: Refusal<'_>, error: FileError) -> E {
    *refusal.borrow_mut() = Some(error);
    E::custom("refused")
}

/// The outermost object.
struct Entries<'r, F> {
    take: F,
    refusal: Refusal<'r>,
}

impl<'de, F: FnMut(String, Value) -> Result<(), FileError>> Visitor<'de> for Entries<'_, F> {
    type Value = ();

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key()? {
            let value = map.next_value_seed(Kept(self.refusal))?;
            (self.take)(key, value).map_err(|error| refuse(self.refusal, error))?;
        }
        Ok(())
    }
}

/// A value inside the outermost object.
#[derive(Clone, Copy)]
struct Kept<'r>(Refusal<'r>);

impl<'de> DeserializeSeed<'de> for Kept<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Kept<'_> {
    type Value = Value;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("any value")
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(Value::Text(text.to_owned()))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Value, E> {
        Ok(usize::try_from(number).map_or(Value::Other, Value::Number))
    }

    fn visit_i64<E>(self, _: i64) -> Result<Value, E> {
        Ok(Value::Other)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Value, E> {
        Ok(Value::Other)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Value, E> {
        Ok(Value::Other)
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Other)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut numbers = Vec::new();
        while let Some(value) = list.next_element_seed(self)? {
            match value {
                Value::Number(number) if numbers.len() < MOST_NUMBERS => numbers.push(number),
                _ => {
                    while list.next_element::<IgnoredAny>()?.is_some() {}
                    return Ok(Value::Other);
                }
            }
        }
        Ok(Value::Numbers(numbers))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut object = Object::new();
        while let Some(key) = map.next_key::<String>()? {
            insert(&mut object, key, map.next_value_seed(self)?).map_err(|error| refuse(self.0, error))?;
        }
        Ok(Value::Object(object))
    }
}

/// Adds an entry to an object that has no such key yet.
pub(super) fn insert<V>(object: &mut BTreeMap<String, V>, key: String, value: V) -> Result<(), FileError> {
    if object.len() == MOST_KEYS {
        return Err(FileError::TooManyKeys { most: MOST_KEYS });
    }
    if object.contains_key(&key) {
        return Err(FileError::DuplicateKey { key });
    }
    object.insert(key, value);
    Ok(())
}
