//! Small files that are read whole, and lists in them, up to limits.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

/// The content of the file at `path`, which may also be a pipe; more than `most` bytes are an error of kind
/// [`io::ErrorKind::FileTooLarge`].
pub(crate) fn read(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(most.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        let reason = format!("expected at most {most} bytes, found more");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, reason));
    }
    Ok(bytes)
}

/// The entries of a list or a map, at most `MOST` of them.
#[derive(Debug)]
pub(crate) struct AtMost<T, const MOST: usize>(pub(crate) Vec<T>);

impl<T, const MOST: usize> AtMost<T, MOST> {
    fn push<E: serde::de::Error>(&mut self, entry: T) -> Result<(), E> {
        if self.0.len() == MOST {
            return Err(E::custom(format_args!("expected at most {MOST} entries, found more")));
        }
        self.0.push(entry);
        Ok(())
    }
}

impl<'de, T: Deserialize<'de>, const MOST: usize> Deserialize<'de> for AtMost<T, MOST> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(List(Self(Vec::new())))
    }
}

struct List<T, const MOST: usize>(AtMost<T, MOST>);

impl<'de, T: Deserialize<'de>, const MOST: usize> Visitor<'de> for List<T, MOST> {
    type Value = AtMost<T, MOST>;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut list: A) -> Result<Self::Value, A::Error> {
        while let Some(entry) = list.next_element()? {
            self.0.push(entry)?;
        }
        Ok(self.0)
    }
}

/// For `#[serde(deserialize_with)]`: the entries of a map whose keys are all different.
pub(crate) fn map<'de, V, D, const MOST: usize>(deserializer: D) -> Result<AtMost<(String, V), MOST>, D::Error>
where
    V: Deserialize<'de>,
    D: Deserializer<'de>,
{
    let entries = deserializer.deserialize_map(Map(AtMost(Vec::new())))?;
    let keys: std::collections::HashSet<&str> = entries.0.iter().map(|(key, _)| key.as_str()).collect();
    match keys.len() == entries.0.len() {
        true => Ok(entries),
        false => Err(D::Error::custom("a key occurs twice")),
    }
}

struct Map<V, const MOST: usize>(AtMost<(String, V), MOST>);

impl<'de, V: Deserialize<'de>, const MOST: usize> Visitor<'de> for Map<V, MOST> {
    type Value = AtMost<(String, V), MOST>;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a map")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<Self::Value, A::Error> {
        while let Some(entry) = map.next_entry()? {
            self.0.push(entry)?;
        }
        Ok(self.0)
    }
}
