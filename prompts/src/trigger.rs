//! The trigger of an adapter, and captions with and without it.
//!
//! CAT compares a caption with the same caption without its trigger. A trigger that is left behind (in the middle of a
//! sentence, before a full stop, inside `<…>`) would hold the prediction *for the trigger* to the base model's. The
//! trigger is therefore found in the text that the tokenizer sees: in NFC, in lower case, with all whitespace equal.
//! Only whole matches count, which no letter and no digit touches: `shs` is in `<shs>`, `SHS.` and `shs_style`, not in
//! `shs2`.

mod find;
mod removal;

use std::fmt;

use crate::{Error, Result};

/// One or several words that call the style or subject of an adapter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trigger {
    word: String,
    seen: String,
}

/// A caption that holds the trigger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inserted {
    /// The caption, with the trigger somewhere in it.
    pub caption: String,
    /// Whether the trigger was put in front.
    pub added: bool,
}

impl Trigger {
    /// A trigger of one word or several. Commas, dashes and whitespace around it and doubled whitespace inside are
    /// dropped.
    ///
    /// # Errors
    /// [`Error::EmptyTrigger`]; [`Error::PunctuationTrigger`] if `word` has no letter and no digit.
    pub fn new(word: &str) -> Result<Self> {
        let given = word.trim();
        if given.is_empty() {
            return Err(Error::EmptyTrigger);
        }
        if !given.contains(char::is_alphanumeric) {
            return Err(Error::PunctuationTrigger { trigger: given.to_owned() });
        }
        let words: Vec<&str> = removal::trim_separators(given).split_whitespace().collect();
        let word = words.join(" ");
        let seen = find::as_seen(&word).get().to_owned();
        Ok(Self { word, seen })
    }

    /// The trigger as given.
    pub fn word(&self) -> &str {
        &self.word
    }

    /// Whether the caption holds the trigger as a whole word.
    pub fn is_in(&self, caption: &str) -> bool {
        !find::spans(caption, &self.seen).is_empty()
    }

    /// The unchanged caption if it holds the trigger, otherwise `trigger, caption`.
    pub fn insert(&self, caption: &str) -> Inserted {
        let caption = caption.trim();
        if self.is_in(caption) {
            return Inserted { caption: caption.to_owned(), added: false };
        }
        let caption = match caption {
            "" => self.word.clone(),
            rest => format!("{}, {rest}", self.word),
        };
        Inserted { caption, added: true }
    }

    /// The caption without any occurrence of the trigger; commas, brackets and spaces around the gap are tidied:
    /// `shs, a dog` and `a <shs> dog` become `a dog`. A caption that is only the trigger becomes empty.
    pub fn remove(&self, caption: &str) -> String {
        let mut rest = caption.trim().to_owned();
        // One at a time, since closing a gap moves the other matches and can join two parts into a new one.
        while let Some(span) = find::spans(&rest, &self.seen).into_iter().next() {
            rest = removal::without(&rest, span);
        }
        rest
    }

    /// The letters and digits of a trigger such as `<shs>`; `None` if it has no other signs.
    pub(crate) fn bare(&self) -> Option<Self> {
        let bare: String = self.word.chars().map(|c| if c.is_alphanumeric() { c } else { ' ' }).collect();
        Self::new(&bare).ok().filter(|bare| bare != self)
    }
}

impl fmt::Display for Trigger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.word)
    }
}

/// Whether both texts are the same to the tokenizer.
pub(crate) fn same_text(one: &str, other: &str) -> bool {
    let words = |text: &str| {
        let seen = find::as_seen(text);
        let words: Vec<String> = seen.get().split_whitespace().map(str::to_owned).collect();
        words
    };
    words(one) == words(other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn shs() -> Trigger {
        Trigger::new("shs").unwrap()
    }

    #[test]
    fn trigger_is_found_as_a_whole_word_in_any_case() {
        for caption in [
            "shs",
            "a shs dog",
            "SHS, a dog",
            "a dog by Shs.",
            "<shs>, a dog",
            "(shs:1.2)",
            "shs's dog",
            "shs_style",
            "a\nshs\tdog",
            "\"shs\"",
        ] {
            assert!(shs().is_in(caption), "{caption}");
        }
        for caption in ["", "a dog", "shsh", "ashs", "shs2", "2shs", "éshs", "s h s"] {
            assert!(!shs().is_in(caption), "{caption}");
        }
    }

    #[test]
    fn trigger_is_inserted_in_front_only_when_absent() {
        let inserted = shs().insert(" a dog\n");
        assert_eq!(inserted.caption, "shs, a dog");
        assert!(inserted.added);
        let kept = shs().insert("a photo of <SHS> dog");
        assert_eq!(kept.caption, "a photo of <SHS> dog");
        assert!(!kept.added);
        assert_eq!(shs().insert("").caption, "shs");
    }

    #[test]
    fn trigger_is_removed_cleanly_everywhere() {
        for (caption, expected) in [
            ("a photo of shs dog", "a photo of dog"),
            ("shs, a dog", "a dog"),
            ("<shs>, a dog", "a dog"),
            ("a dog, shs", "a dog"),
            ("a dog, shs, in a field", "a dog, in a field"),
            ("a dog, shs.", "a dog."),
            ("a dog. Shs.", "a dog."),
            ("A dog. shs, running", "A dog. running"),
            ("shs. A dog.", "A dog."),
            ("a dog in the style of shs, on grass", "a dog in the style of, on grass"),
            ("a SHS dog and a shs cat", "a dog and a cat"),
            ("shs shs shs", ""),
            ("shs", ""),
            ("<shs>", ""),
            ("a ( shs ) dog", "a dog"),
            ("a (shs dog)", "a (dog)"),
            ("a (red shs) dog", "a (red) dog"),
            ("a \"shs\" dog", "a dog"),
            ("“shs” dog", "dog"),
            ("shs's dog", "dog"),
            ("shs’s dog", "dog"),
            ("a shs-dog", "a dog"),
            ("dog-shs in grass", "dog in grass"),
            ("my-shs-dog", "my-dog"),
            ("shs_style, a dog", "style, a dog"),
            ("shs: a dog", "a dog"),
            ("shs - a dog", "a dog"),
            ("a dog - shs", "a dog"),
            ("a dog by shs!", "a dog by!"),
            ("a dog,shs,grass", "a dog,grass"),
            ("a dog", "a dog"),
            ("a   dog , on  grass", "a   dog , on  grass"),
            ("", ""),
        ] {
            assert_eq!(shs().remove(caption), expected, "{caption}");
        }
    }

    #[test]
    fn several_words_make_one_trigger() {
        let trigger = Trigger::new("  red \t shs style ").unwrap();
        assert_eq!(trigger.word(), "red shs style");
        assert_eq!(Trigger::new("shs, ").unwrap(), shs());
        assert!(trigger.is_in("a dog, Red  SHS\nstyle."));
        assert!(!trigger.is_in("a dog, red shs"));
        assert_eq!(trigger.remove("a dog, Red  SHS\nstyle."), "a dog.");
    }

    #[test]
    fn removing_one_occurrence_uncovers_the_next() {
        let trigger = Trigger::new("shs style").unwrap();
        assert_eq!(trigger.remove("a shs shs style style dog"), "a dog");
    }

    #[test]
    fn trigger_with_brackets_matches_itself() {
        let trigger = Trigger::new("<shs>").unwrap();
        assert!(trigger.is_in("a <shs> dog"));
        assert!(trigger.is_in("a<shs>dog"));
        assert!(!trigger.is_in("a shs dog"));
        assert_eq!(trigger.remove("<shs>, a dog"), "a dog");
        assert_eq!(trigger.bare().unwrap().word(), "shs");
        assert!(shs().bare().is_none());
    }

    #[test]
    fn accents_match_in_either_normal_form() {
        let trigger = Trigger::new("caf\u{e9}").unwrap();
        assert_eq!(trigger.remove("a cafe\u{301} dog"), "a dog");
        assert_eq!(trigger.remove("CAFE\u{301}"), "");
        let decomposed = Trigger::new("cafe\u{301}").unwrap();
        assert_eq!(decomposed.remove("a caf\u{e9}, dog"), "a, dog");
        assert_eq!(Trigger::new("日本").unwrap().remove("a 日本 dog"), "a dog");
    }

    #[test]
    fn useless_triggers_are_refused() {
        assert_eq!(Trigger::new("").unwrap_err().to_string(), "the trigger is empty");
        assert_eq!(Trigger::new(" \n").unwrap_err().to_string(), "the trigger is empty");
        assert_eq!(
            Trigger::new("<>").unwrap_err().to_string(),
            "the trigger `<>` is only punctuation, expected at least one letter or digit"
        );
    }

    const CAPTION: &str = "([a-cSsHh]{1,4}|shs|SHS|sks dog|é|[ ,.;:!<>()_'’\"-]|\u{301}|İ|\n){0,14}";

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn removed_trigger_is_gone_and_stays_gone(caption in CAPTION, word in "(shs|sks dog|<shs>|é)") {
            let trigger = Trigger::new(&word).unwrap();
            let rest = trigger.remove(&caption);
            prop_assert!(!trigger.is_in(&rest), "{rest:?}");
            prop_assert_eq!(&trigger.remove(&rest), &rest);
        }

        #[test]
        fn inserted_trigger_is_there_once(caption in CAPTION, word in "(shs|sks dog|<shs>|é)") {
            let trigger = Trigger::new(&word).unwrap();
            let inserted = trigger.insert(&caption);
            prop_assert!(trigger.is_in(&inserted.caption));
            prop_assert!(!trigger.insert(&inserted.caption).added);
            prop_assert_eq!(inserted.added, !trigger.is_in(&caption));
        }

        #[test]
        fn inserting_then_removing_gives_plain_captions_back(caption in "[a-c]{1,4}( [a-c]{1,4}){0,4}") {
            let inserted = shs().insert(&caption);
            prop_assert_eq!(shs().remove(&inserted.caption), caption);
        }
    }
}
