//! Captions with and without their trigger.

use std::fmt;
use std::path::{Path, PathBuf};

use super::CaptionedImage;
use crate::template::fill_trigger;
use crate::trigger::same_text;
use crate::{Error, Result, Trigger};

/// The two captions of one image that CAT compares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaptionPair {
    /// The caption, with the trigger in it.
    pub with_trigger: String,
    /// The same caption, the trigger removed; empty when the caption is only the trigger.
    pub without_trigger: String,
    /// Whether the trigger was put in front of the caption.
    pub inserted: bool,
    /// Oddities that the user should check.
    pub notices: Vec<PairNotice>,
}

/// An oddity in a pair of captions that the user should check.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum PairNotice {
    /// The caption is only the trigger.
    NothingLeft,
    /// The trigger has brackets or other signs, and its bare word stays in the caption when the trigger is removed.
    BareWordLeft {
        /// The bare word.
        word: String,
    },
}

impl fmt::Display for PairNotice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NothingLeft => {
                f.write_str("the caption is only the trigger: without it the empty caption is kept like the base")
            }
            Self::BareWordLeft { word } => {
                write!(f, "`{word}` is left in the caption without the trigger")
            }
        }
    }
}

/// Makes the pair of each image. `{trigger}` and `[trigger]` in a caption are replaced by the trigger; then the trigger
/// is put in front of captions that lack it (`trigger, caption`), and [`CaptionPair::inserted`] is set.
///
/// # Errors
/// [`Error::TriggerNotInCaptions`] names all images whose captions are the same with and without the trigger.
pub fn pair(images: &[CaptionedImage], trigger: &Trigger) -> Result<Vec<CaptionPair>> {
    let pairs = images.iter().map(|image| pair_text(&image.caption, trigger)).collect();
    distinct(images, pairs, trigger)
}

/// Makes the pair of each image from the caption as written. A caption without the trigger is an error, since CAT would
/// hold the prediction for the very caption that is trained to the base model's.
///
/// # Errors
/// [`Error::TriggerNotInCaptions`] names all images whose captions are the same with and without the trigger.
pub fn pair_as_written(images: &[CaptionedImage], trigger: &Trigger) -> Result<Vec<CaptionPair>> {
    let pairs = images.iter().map(|image| {
        let caption = fill_trigger(&image.caption, trigger.word());
        make(caption, false, trigger)
    });
    distinct(images, pairs.collect(), trigger)
}

/// Makes the pair of one caption, the trigger put in front where it is missing.
pub fn pair_text(caption: &str, trigger: &Trigger) -> CaptionPair {
    let inserted = trigger.insert(&fill_trigger(caption, trigger.word()));
    make(inserted.caption, inserted.added, trigger)
}

fn make(with_trigger: String, inserted: bool, trigger: &Trigger) -> CaptionPair {
    let without_trigger = trigger.remove(&with_trigger);
    let mut notices = Vec::new();
    if without_trigger.is_empty() {
        notices.push(PairNotice::NothingLeft);
    }
    if let Some(bare) = trigger.bare().filter(|bare| bare.is_in(&without_trigger)) {
        notices.push(PairNotice::BareWordLeft { word: bare.word().to_owned() });
    }
    CaptionPair { with_trigger, without_trigger, inserted, notices }
}

fn distinct(images: &[CaptionedImage], pairs: Vec<CaptionPair>, trigger: &Trigger) -> Result<Vec<CaptionPair>> {
    let same = images
        .iter()
        .zip(&pairs)
        .filter(|(_, pair)| same_text(&pair.with_trigger, &pair.without_trigger))
        .map(|(image, _)| name(&image.path));
    let images: Vec<String> = same.collect();
    if images.is_empty() {
        return Ok(pairs);
    }
    Err(Error::TriggerNotInCaptions { trigger: trigger.word().to_owned(), images })
}

fn name(path: &Path) -> String {
    let name = path.file_name().map(PathBuf::from);
    name.as_deref().unwrap_or(path).display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::captions::CaptionSource;

    fn images(captions: &[&str]) -> Vec<CaptionedImage> {
        let image = |(index, caption): (usize, &&str)| CaptionedImage {
            path: format!("dogs/{index}.png").into(),
            caption: (*caption).to_owned(),
            source: CaptionSource::Shared,
            repeats: 1,
        };
        captions.iter().enumerate().map(image).collect()
    }

    fn shs() -> Trigger {
        Trigger::new("shs").unwrap()
    }

    #[test]
    fn trigger_in_angle_brackets_is_removed_with_them() {
        let pairs = pair(&images(&["<shs>, a dog on grass"]), &shs()).unwrap();
        assert_eq!(pairs[0].with_trigger, "<shs>, a dog on grass");
        assert_eq!(pairs[0].without_trigger, "a dog on grass");
        assert!(!pairs[0].inserted);
    }

    #[test]
    fn missing_trigger_is_inserted_and_said() {
        let pairs = pair(&images(&["a dog", "a dog, shs"]), &shs()).unwrap();
        assert_eq!(pairs[0].with_trigger, "shs, a dog");
        assert_eq!(pairs[0].without_trigger, "a dog");
        assert_eq!([pairs[0].inserted, pairs[1].inserted], [true, false]);
    }

    #[test]
    fn captions_without_the_trigger_are_an_error_when_taken_as_written() {
        let error = pair_as_written(&images(&["a dog", "a shs dog", "a shsx dog"]), &shs()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the captions are the same with and without the trigger `shs` for `0.png`, `2.png`"
        );
        assert_eq!(error.hint().unwrap(), "write `shs` into these captions, or let it be inserted in front");
        let error = pair_as_written(&images(&["a dog"]), &shs()).unwrap_err();
        assert_eq!(error.to_string(), "the caption is the same with and without the trigger `shs` for `0.png`");
    }

    #[test]
    fn caption_that_is_only_the_trigger_leaves_a_notice() {
        let pairs = pair_as_written(&images(&["<shs>"]), &shs()).unwrap();
        assert_eq!(pairs[0].without_trigger, "");
        assert_eq!(pairs[0].notices, [PairNotice::NothingLeft]);
    }

    #[test]
    fn bare_word_of_a_bracketed_trigger_leaves_a_notice() {
        let pair = pair_text("shs, a dog", &Trigger::new("<shs>").unwrap());
        assert_eq!(pair.with_trigger, "<shs>, shs, a dog");
        assert_eq!(pair.notices, [PairNotice::BareWordLeft { word: "shs".into() }]);
        assert_eq!(pair.notices[0].to_string(), "`shs` is left in the caption without the trigger");
    }

    #[test]
    fn placeholders_in_captions_become_the_trigger() {
        let pair = pair_text("a photo of [trigger] dog", &shs());
        assert_eq!(pair.with_trigger, "a photo of shs dog");
        assert_eq!(pair.without_trigger, "a photo of dog");
        assert!(!pair.inserted);
    }
}
