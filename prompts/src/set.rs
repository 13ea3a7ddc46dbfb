//! Prompt sets for evaluating an adapter: the same prompts, with and without its trigger, for base and adapted model.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::bounded;
use crate::template::{self, Values};
use crate::{Error, Result};

/// The built-in sets. The contents of a set never change; an improved set gets the next number.
const BUILT_IN: &[(&str, &str)] =
    &[("general-v1", include_str!("../sets/general-v1.toml")), ("gallery-v1", include_str!("../sets/gallery-v1.toml"))];

/// The relation of a prompt to the subject of an adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PromptKind {
    /// Prompts of the subject's class, where an adapter leaks first.
    SameClass,
    /// Prompts about other subjects.
    Unrelated,
    /// A few plain words.
    Generic,
}

/// Largest file of prompts: tens of thousands of them.
const LARGEST_FILE: u64 = 2 << 20;

/// One prompt of a set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prompt {
    /// The relation to the adapter's subject.
    pub kind: PromptKind,
    /// The text, a [template](crate::template) until it is rendered.
    pub text: String,
}

/// A named, versioned list of prompts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PromptSet {
    name: String,
    description: String,
    prompts: Vec<Prompt>,
}

/// A set with its placeholders filled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RenderedPrompts {
    /// The filled prompts, in the order of the set.
    pub prompts: Vec<Prompt>,
    /// Prompts that are left out because they need a class and there is none.
    pub without_class: Vec<String>,
}

/// The layout of a set's TOML file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SetFile {
    name: Option<String>,
    #[serde(default)]
    description: String,
    prompts: BTreeMap<PromptKind, Vec<String>>,
}

impl PromptSet {
    /// The names of the built-in sets.
    pub fn built_in_names() -> Vec<&'static str> {
        BUILT_IN.iter().map(|(name, _)| *name).collect()
    }

    /// A built-in set: `general-v1` for photographs and art, `gallery-v1` for the drawn gallery.
    ///
    /// # Errors
    /// [`Error::UnknownPromptSet`] names the built-in sets.
    pub fn builtin(name: &str) -> Result<Self> {
        let set = BUILT_IN.iter().find(|(known, _)| *known == name);
        let (_, text) =
            set.ok_or_else(|| Error::UnknownPromptSet { name: name.to_owned(), known: Self::built_in_names() })?;
        Self::from_toml(name, text)
    }

    /// A set from a file: TOML with the lists `same-class`, `unrelated` and `generic` in a table `[prompts]`, or any
    /// other file as plain text with one prompt a line (lines starting with `#` are comments; the kind is generic).
    ///
    /// # Errors
    /// [`Error::Read`], [`Error::PromptSetNotUtf8`], [`Error::PromptSetBroken`], [`Error::EmptyPrompts`]; also as
    /// [`template::placeholders`].
    pub fn from_file(path: &Path) -> Result<Self> {
        let bytes =
            bounded::read(path, LARGEST_FILE).map_err(|source| Error::Read { path: path.to_owned(), source })?;
        let text = String::from_utf8(bytes).map_err(|_| Error::PromptSetNotUtf8 { path: path.to_owned() })?;
        let text = text.trim_start_matches('\u{feff}');
        let name = path.file_stem().unwrap_or(path.as_os_str()).to_string_lossy();
        match path.extension() {
            Some(extension) if extension.eq_ignore_ascii_case("toml") => Self::from_toml(&name, text),
            _ => Self::from_lines(&name, text),
        }
    }

    /// A built-in set, or else the set in the file of this name.
    ///
    /// # Errors
    /// [`Error::UnknownPromptSet`] for a name that is neither a set nor a file; also as [`PromptSet::from_file`].
    pub fn named_or_file(name_or_path: &str) -> Result<Self> {
        match Self::builtin(name_or_path) {
            Err(Error::UnknownPromptSet { .. }) if Path::new(name_or_path).exists() => {
                Self::from_file(Path::new(name_or_path))
            }
            found => found,
        }
    }

    fn from_toml(name: &str, text: &str) -> Result<Self> {
        let file: SetFile = toml::from_str(text)
            .map_err(|source| Error::PromptSetBroken { name: name.to_owned(), source: Box::new(source) })?;
        let prompts =
            file.prompts.into_iter().flat_map(|(kind, texts)| texts.into_iter().map(move |text| Prompt { kind, text }));
        Self::new(file.name.unwrap_or_else(|| name.to_owned()), file.description, prompts.collect())
    }

    fn from_lines(name: &str, text: &str) -> Result<Self> {
        let lines = text.lines().map(str::trim);
        let prompts = lines
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .map(|line| Prompt { kind: PromptKind::Generic, text: line.to_owned() });
        Self::new(name.to_owned(), String::new(), prompts.collect())
    }

    fn new(name: String, description: String, prompts: Vec<Prompt>) -> Result<Self> {
        let numbered = (1..).zip(&prompts);
        let empty = numbered.filter(|(_, prompt)| prompt.text.trim().is_empty());
        let positions: Vec<usize> = empty.map(|(position, _)| position).collect();
        if prompts.is_empty() || !positions.is_empty() {
            return Err(Error::EmptyPrompts { name, positions });
        }
        for prompt in &prompts {
            template::placeholders(&prompt.text)?;
        }
        Ok(Self { name, description, prompts })
    }

    /// The set's name with its version, such as `general-v1`, or the name of its file.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// One sentence about the set.
    pub fn description(&self) -> &str {
        &self.description
    }

    /// The prompts as templates.
    pub fn prompts(&self) -> &[Prompt] {
        &self.prompts
    }

    /// Fills the placeholders. Without a class, prompts that need one go to [`RenderedPrompts::without_class`].
    ///
    /// # Errors
    /// [`Error::PlaceholderValueMissing`] if a prompt needs a trigger and there is none, or if every prompt needs a
    /// class and there is none.
    pub fn render(&self, values: Values<'_>) -> Result<RenderedPrompts> {
        let mut rendered = RenderedPrompts { prompts: Vec::new(), without_class: Vec::new() };
        let mut missing = None;
        for Prompt { kind, text } in &self.prompts {
            match template::render(text, values) {
                Ok(text) => rendered.prompts.push(Prompt { kind: *kind, text }),
                Err(error @ Error::PlaceholderValueMissing { placeholder: "{class}", .. }) => {
                    rendered.without_class.push(text.clone());
                    missing = Some(error);
                }
                Err(error) => return Err(error),
            }
        }
        match missing {
            Some(error) if rendered.prompts.is_empty() => Err(error),
            _ => Ok(rendered),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use std::collections::BTreeSet;

    const DOG: Values<'_> = Values { trigger: Some("shs"), class: Some("dog") };

    fn count(set: &PromptSet, kind: PromptKind) -> usize {
        set.prompts().iter().filter(|prompt| prompt.kind == kind).count()
    }

    #[test]
    fn built_in_sets_are_named_versioned_and_balanced() {
        for name in PromptSet::built_in_names() {
            let set = PromptSet::builtin(name).unwrap();
            assert_eq!(set.name(), name);
            assert!(!set.description().is_empty());
            for kind in [PromptKind::SameClass, PromptKind::Unrelated, PromptKind::Generic] {
                assert!(count(&set, kind) >= 6, "{name} has few {kind:?} prompts");
            }
            let distinct: BTreeSet<&str> = set.prompts().iter().map(|prompt| prompt.text.as_str()).collect();
            assert_eq!(distinct.len(), set.prompts().len(), "{name} repeats a prompt");
            assert!(set.prompts().iter().all(|prompt| !prompt.text.contains("trigger")));
            set.render(DOG).unwrap();
        }
    }

    #[test]
    fn gallery_prompts_speak_the_language_of_the_gallery() {
        let objects = ["house", "tree", "boat", "fish", "star", "flower", "mug", "cat", "mushroom", "umbrella"];
        let set = PromptSet::builtin("gallery-v1").unwrap();
        for object in objects {
            assert!(set.prompts().iter().any(|prompt| prompt.text.contains(object)), "no {object}");
        }
        for colour in ["red", "orange", "yellow", "green", "blue", "purple", "pink", "white"] {
            assert!(set.prompts().iter().any(|prompt| prompt.text.contains(colour)), "no {colour}");
        }
        for setting in ["in a field", "on the sea", "at night", "in the snow", "on a plain wall"] {
            assert!(set.prompts().iter().any(|prompt| prompt.text.ends_with(setting)), "no {setting}");
        }
        assert_eq!(set.prompts().len(), 24);
    }

    #[test]
    fn prompts_that_need_a_class_are_left_out_without_one_and_told() {
        let set = PromptSet::builtin("general-v1").unwrap();
        let with = set.render(DOG).unwrap();
        assert_eq!((with.prompts.len(), with.without_class.len()), (set.prompts().len(), 0));
        let without = set.render(Values::default()).unwrap();
        assert!(!without.without_class.is_empty());
        assert_eq!(without.prompts.len() + without.without_class.len(), set.prompts().len());
        assert!(without.prompts.iter().any(|prompt| prompt.kind == PromptKind::SameClass));
    }

    #[test]
    fn set_that_only_has_class_prompts_needs_a_class() {
        let set = PromptSet::from_lines("mine", "a {class}\n").unwrap();
        let error = set.render(Values::default()).unwrap_err();
        assert_eq!(error.to_string(), "`a {class}` needs a value for `{class}`, found none");
    }

    #[test]
    fn unknown_set_lists_the_known_ones() {
        let error = PromptSet::named_or_file("no-such-set").unwrap_err();
        assert_eq!(error.to_string(), "no prompt set is named `no-such-set`, built in are `general-v1`, `gallery-v1`");
    }

    #[test]
    fn files_hold_lines_or_toml() {
        let folder = tempfile::tempdir().unwrap();
        let lines = folder.path().join("mine.txt");
        fs::write(&lines, "\u{feff}# my prompts\na dog\n\n  a cat \n").unwrap();
        let set = PromptSet::named_or_file(lines.to_str().unwrap()).unwrap();
        assert_eq!(set.name(), "mine");
        let texts: Vec<&str> = set.prompts().iter().map(|prompt| prompt.text.as_str()).collect();
        assert_eq!(texts, ["a dog", "a cat"]);

        let table = folder.path().join("mine.toml");
        fs::write(&table, "[prompts]\ngeneric = [\"a cat\"]\nsame-class = [\"a dog\"]\n").unwrap();
        let set = PromptSet::from_file(&table).unwrap();
        assert_eq!(set.prompts()[0], Prompt { kind: PromptKind::SameClass, text: "a dog".into() });
        assert_eq!(set.prompts().len(), 2);
    }

    #[test]
    fn empty_and_broken_files_are_errors() {
        let text = |text| PromptSet::from_lines("mine", text).unwrap_err().to_string();
        assert_eq!(text("# nothing\n"), "the prompt set `mine` has no prompts");
        assert_eq!(
            text("a {style} dog"),
            "unknown placeholder `{style}` in `a {style} dog`, known are `{trigger}`, `{class}`, `[trigger]`"
        );
        let toml = |text| PromptSet::from_toml("mine", text).unwrap_err().to_string();
        assert_eq!(toml("prompts = 3"), "the prompt set `mine` is broken");
        assert_eq!(toml("[prompts]\nnearby = []"), "the prompt set `mine` is broken");
        assert_eq!(toml("[prompts]\ngeneric = [\"a\", \" \"]"), "the prompt set `mine` has an empty prompt at place 2");
    }
}
