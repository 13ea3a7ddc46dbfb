//! The condition of CAT's second prediction.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::captions::CaptionPair;
use crate::{Error, Result};

/// The condition of CAT's preservation term: the text for which the adapted prediction is held to the base model's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CatCondition {
    /// Each image's own caption without the trigger; the paper's condition without token.
    #[default]
    Caption,
    /// One class prompt for all images, such as `a photo of a dog`.
    Class,
    /// The empty prompt.
    Empty,
}

impl CatCondition {
    /// The text for one image; `class` is the class prompt, which only [`CatCondition::Class`] needs.
    ///
    /// # Errors
    /// [`Error::ClassMissing`] for [`CatCondition::Class`] without a class prompt or with a blank one.
    pub fn text<'a>(self, pair: &'a CaptionPair, class: Option<&'a str>) -> Result<&'a str> {
        match self {
            Self::Caption => Ok(&pair.without_trigger),
            Self::Class => class.map(str::trim).filter(|class| !class.is_empty()).ok_or(Error::ClassMissing),
            Self::Empty => Ok(""),
        }
    }
}

impl FromStr for CatCondition {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "caption" => Ok(Self::Caption),
            "class" => Ok(Self::Class),
            "empty" => Ok(Self::Empty),
            name => Err(Error::UnknownCatCondition { name: name.to_owned() }),
        }
    }
}

impl fmt::Display for CatCondition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Caption => "caption",
            Self::Class => "class",
            Self::Empty => "empty",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Trigger;
    use crate::captions::pair_text;

    #[test]
    fn each_condition_has_its_text() {
        let pair = pair_text("a photo of shs dog", &Trigger::new("shs").unwrap());
        let class = Some(" a photo of a dog ");
        assert_eq!(CatCondition::Caption.text(&pair, class).unwrap(), "a photo of dog");
        assert_eq!(CatCondition::Class.text(&pair, class).unwrap(), "a photo of a dog");
        assert_eq!(CatCondition::Empty.text(&pair, class).unwrap(), "");
    }

    #[test]
    fn class_condition_needs_a_class_prompt() {
        let pair = pair_text("shs", &Trigger::new("shs").unwrap());
        for class in [None, Some(" ")] {
            let error = CatCondition::Class.text(&pair, class).unwrap_err();
            assert_eq!(error.to_string(), "the CAT condition `class` needs a class prompt, found none");
        }
    }

    #[test]
    fn names_parse_and_print_alike() {
        for condition in [CatCondition::Caption, CatCondition::Class, CatCondition::Empty] {
            assert_eq!(condition.to_string().parse::<CatCondition>().unwrap(), condition);
        }
        assert_eq!(
            "Caption".parse::<CatCondition>().unwrap_err().to_string(),
            "unknown CAT condition `Caption`, expected `caption`, `class` or `empty`"
        );
    }
}
