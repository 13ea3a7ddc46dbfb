//! Prompts with placeholders: `{trigger}`, `{class}`, and ai-toolkit's `[trigger]`.

use crate::{Error, Result};

/// Every placeholder that a template may hold.
pub const PLACEHOLDERS: &[&str] = &["{trigger}", "{class}", "[trigger]"];

const BRACKETED_TRIGGER: &str = "[trigger]";

/// The values of the placeholders.
#[derive(Debug, Clone, Copy, Default)]
pub struct Values<'a> {
    /// The value of `{trigger}` and `[trigger]`.
    pub trigger: Option<&'a str>,
    /// The value of `{class}`: the image's subject without article, such as `dog`.
    pub class: Option<&'a str>,
}

/// Fills the placeholders. `{{` and `}}` are literal braces, and other text in square brackets is kept. The article
/// before a placeholder is adapted to its value (`a {class}` becomes `an owl`).
///
/// # Errors
/// [`Error::UnknownPlaceholder`], [`Error::PlaceholderValueMissing`], [`Error::UnmatchedBrace`].
pub fn render(template: &str, values: Values<'_>) -> Result<String> {
    let mut text = String::with_capacity(template.len());
    let mut rest = template;
    while let Some(at) = rest.find(['{', '}', '[']) {
        text.push_str(&rest[..at]);
        rest = &rest[at..];
        let taken = next_gap(rest, template)?;
        match taken.gap {
            Gap::Plain(sign) => text.push(sign),
            Gap::Value(placeholder) => {
                push_value(&mut text, value(placeholder, values, template)?);
            }
        }
        rest = &rest[taken.length..];
    }
    text.push_str(rest);
    Ok(text)
}

/// A caption with `{trigger}` and `[trigger]` filled; all other brackets and braces are kept.
pub fn fill_trigger(caption: &str, trigger: &str) -> String {
    caption.replace("{trigger}", trigger).replace(BRACKETED_TRIGGER, trigger)
}

/// The placeholders that occur in a template, each once.
///
/// # Errors
/// [`Error::UnknownPlaceholder`], [`Error::UnmatchedBrace`].
pub fn placeholders(template: &str) -> Result<Vec<&'static str>> {
    let mut found = Vec::new();
    let mut rest = template;
    while let Some(at) = rest.find(['{', '}', '[']) {
        rest = &rest[at..];
        let taken = next_gap(rest, template)?;
        if let Gap::Value(placeholder) = taken.gap
            && !found.contains(&placeholder)
        {
            found.push(placeholder);
        }
        rest = &rest[taken.length..];
    }
    Ok(found)
}

/// A brace, a bracket or a placeholder at the start of the rest of a template.
enum Gap {
    Plain(char),
    Value(&'static str),
}

struct Taken {
    gap: Gap,
    length: usize,
}

fn next_gap(rest: &str, template: &str) -> Result<Taken> {
    let plain = |sign, length| Taken { gap: Gap::Plain(sign), length };
    if let Some(placeholder) = PLACEHOLDERS.iter().find(|known| rest.starts_with(**known)) {
        return Ok(Taken { gap: Gap::Value(placeholder), length: placeholder.len() });
    }
    let unmatched = |brace| Error::UnmatchedBrace { brace, template: template.to_owned() };
    match rest.as_bytes() {
        [b'{', b'{', ..] => Ok(plain('{', 2)),
        [b'}', b'}', ..] => Ok(plain('}', 2)),
        [b'[', ..] => Ok(plain('[', 1)),
        [b'}', ..] => Err(unmatched('}')),
        _ => match rest.split_once('}') {
            Some((name, _)) => {
                Err(Error::UnknownPlaceholder { name: name[1..].to_owned(), template: template.to_owned() })
            }
            None => Err(unmatched('{')),
        },
    }
}

fn value<'a>(placeholder: &'static str, values: Values<'a>, template: &str) -> Result<&'a str> {
    let value = match placeholder {
        "{class}" => values.class,
        _ => values.trigger,
    };
    value
        .map(str::trim)
        .filter(|value| !value.is_empty())
        .ok_or_else(|| Error::PlaceholderValueMissing { placeholder, template: template.to_owned() })
}

fn push_value(text: &mut String, value: &str) {
    let takes_an = value.starts_with(['a', 'e', 'i', 'o', 'u', 'A', 'E', 'I', 'O', 'U']);
    let after_article = text == "a " || text == "A " || text.ends_with(" a ") || text.ends_with(" A ");
    if takes_an && after_article {
        text.insert(text.len() - 1, 'n');
    }
    text.push_str(value);
}

#[cfg(test)]
mod tests {
    use super::*;

    const VALUES: Values<'_> = Values { trigger: Some("shs"), class: Some("owl") };

    #[test]
    fn placeholders_take_their_values() {
        for (template, expected) in [
            ("a photo of {trigger} {class}", "a photo of shs owl"),
            ("[trigger], a {class} at night", "shs, an owl at night"),
            ("A {class}, banana {class}", "An owl, banana owl"),
            ("a {{class}} [soft] light", "a {class} [soft] light"),
            ("plain", "plain"),
            ("", ""),
        ] {
            assert_eq!(render(template, VALUES).unwrap(), expected, "{template}");
        }
    }

    #[test]
    fn unknown_placeholder_lists_the_known_ones() {
        let error = render("a {style} of {class}", VALUES).unwrap_err();
        assert_eq!(
            error.to_string(),
            "unknown placeholder `{style}` in `a {style} of {class}`, known are `{trigger}`, `{class}`, `[trigger]`"
        );
        assert_eq!(error.hint().unwrap(), "for a brace that is part of the text write it twice: `{{` or `}}`");
    }

    #[test]
    fn lonely_braces_are_errors() {
        assert_eq!(render("a {dog", VALUES).unwrap_err().to_string(), "unmatched `{` in `a {dog`");
        assert_eq!(render("a dog}", VALUES).unwrap_err().to_string(), "unmatched `}` in `a dog}`");
    }

    #[test]
    fn placeholder_without_value_is_an_error() {
        for trigger in [None, Some(" ")] {
            let values = Values { trigger, class: None };
            let error = render("[trigger] dog", values).unwrap_err();
            assert_eq!(error.to_string(), "`[trigger] dog` needs a value for `[trigger]`, found none");
        }
    }

    #[test]
    fn occurring_placeholders_are_listed_once() {
        assert_eq!(placeholders("{class} and {class} by [trigger]").unwrap(), ["{class}", "[trigger]"]);
        assert_eq!(placeholders("{{class}}").unwrap(), [""; 0]);
    }

    #[test]
    fn captions_keep_their_own_braces() {
        assert_eq!(fill_trigger("[trigger] with {red|blue} [hat]", "shs"), "shs with {red|blue} [hat]");
    }
}
