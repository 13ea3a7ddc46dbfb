//! One value on a line.

use maud::{Markup, html};

use super::Tone;
use crate::Estimate;

/// An estimate on a line from 0 to 1: a bar for the interval, a mark for the value, and a thin line at `reference`, the
/// value that it is compared with. Values outside are drawn at the nearer end. Hidden from screen readers: the page says
/// the value in words beside it.
pub fn strip(tone: Tone, estimate: Estimate, reference: Option<f64>) -> Markup {
    let percent = |value: f64| format!("{:.1}%", 100.0 * value.clamp(0.0, 1.0));
    let (low, value, high) = (percent(estimate.low), percent(estimate.value), percent(estimate.high));
    html! {
        span class=(format!("strip {}", tone.class())) aria-hidden="true"
            style=(format!("--low:{low};--mean:{value};--high:{high}")) {
            @if let Some(reference) = reference { u style=(format!("left:{}", percent(reference))) {} }
            i {}
            b {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_outside_the_line_are_drawn_at_its_ends() {
        let estimate = Estimate { value: 0.5, low: -0.2, high: 1.3 };
        let html = strip(Tone::Series(1), estimate, Some(0.25)).into_string();
        assert!(html.contains("--low:0.0%;--mean:50.0%;--high:100.0%"), "{html}");
        assert!(html.contains("strip tone-2") && html.contains("left:25.0%"), "{html}");
    }
}
