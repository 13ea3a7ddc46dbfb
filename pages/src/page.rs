//! The frame of every page: head, style sheet, footer; nothing is loaded from anywhere.

use maud::{DOCTYPE, Markup, PreEscaped, html};

const STYLE: &str = include_str!("style.css");

/// A whole HTML document in one file.
#[must_use]
pub fn document(title: &str, description: &str, body: &Markup) -> String {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                meta name="referrer" content="no-referrer";
                meta name="description" content=(description);
                title { (title) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                main { (body) }
                footer {
                    p { "Made by Catelier. This page is one file: it loads nothing, sends nothing and can be passed on as it is." }
                }
            }
        }
    };
    page.into_string()
}

/// The opening of a page: a small line, the title and the subject.
#[must_use]
pub fn opening(eyebrow: &str, title: &str, lede: &str) -> Markup {
    html! {
        header.opening {
            p.eyebrow { (eyebrow) }
            h1 { (title) }
            p.lede { (lede) }
        }
    }
}

/// A section with a heading and, under it, a hint for the reader.
#[must_use]
pub fn section(heading: &str, explanation: &str, body: &Markup) -> Markup {
    html! {
        section {
            h2 { (heading) }
            @if !explanation.is_empty() {
                p.explanation { (explanation) }
            }
            (body)
        }
    }
}

/// A remark that must not be overlooked.
#[must_use]
pub fn notice(text: &str) -> Markup {
    html! { aside.notice role="note" { p { (text) } } }
}

/// Names and values, one under the other.
#[must_use]
pub fn facts<N: AsRef<str>, V: AsRef<str>>(facts: &[(N, V)]) -> Markup {
    html! {
        dl.facts {
            @for (name, value) in facts {
                div { dt { (name.as_ref()) } dd { (value.as_ref()) } }
            }
        }
    }
}
