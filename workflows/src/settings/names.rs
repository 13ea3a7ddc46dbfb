//! Flags whose values are the names that serde gives the variants of an enum.

use clap::builder::{PossibleValuesParser, TypedValueParser};
use serde::Deserializer;
use serde::de::value::{Error, StrDeserializer};
use serde::de::{DeserializeOwned, Error as _, IntoDeserializer, Visitor};
use serde::forward_to_deserialize_any;

/// A parser of the names of `T`'s variants, which lists them in the help and refuses other names.
pub fn named<T>() -> impl TypedValueParser<Value = T>
where
    T: DeserializeOwned + Clone + Send + Sync + 'static,
{
    // A variant with fields has no name that stands alone; it is written in a run file.
    let names = names::<T>().iter().filter(|name| parse::<T>(name).is_ok());
    PossibleValuesParser::new(names).try_map(|name| parse::<T>(&name))
}

fn parse<T: DeserializeOwned>(name: &str) -> Result<T, Error> {
    let name: StrDeserializer<'_, Error> = name.into_deserializer();
    T::deserialize(name)
}

/// The names of the variants of `T`.
fn names<T: DeserializeOwned>() -> &'static [&'static str] {
    let mut names: &'static [&'static str] = &[];
    // The deserializer asks for the names and then has no value, which is the error that is dropped here.
    let _ = T::deserialize(NamesOf(&mut names));
    names
}

/// A deserializer that notes the names which an enum asks for.
struct NamesOf<'a>(&'a mut &'static [&'static str]);

impl<'de> Deserializer<'de> for NamesOf<'_> {
    type Error = Error;

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        variants: &'static [&'static str],
        _visitor: V,
    ) -> Result<V::Value, Error> {
        *self.0 = variants;
        Err(Error::custom("there is no value"))
    }

    fn deserialize_any<V: Visitor<'de>>(self, _visitor: V) -> Result<V::Value, Error> {
        Err(Error::custom("not an enum"))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str string bytes byte_buf option unit unit_struct newtype_struct
        seq tuple tuple_struct map struct identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use catelier_adapters::file::Format;
    use catelier_pipelines::training::LossKind;

    use super::*;

    #[test]
    fn names_are_those_of_serde() {
        assert_eq!(names::<LossKind>(), ["cat", "lora", "dreambooth"]);
        assert_eq!(parse::<Format>("diffusers").unwrap(), Format::Diffusers);
        assert!(parse::<LossKind>("best").is_err());
    }
}
