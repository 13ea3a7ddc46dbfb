//! The part that all charts share: the plotting area, grid, ticks and axis titles.

use maud::{Markup, html};

use super::axis::Axis;
use crate::number;

/// Width of a chart in its own units; text is 12 units high.
pub(super) const WIDTH: f64 = 360.0;

const LEFT: f64 = 44.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 24.0;
const BOTTOM: f64 = 38.0;

/// Two axes and the height of the chart.
pub(super) struct Frame<'a> {
    pub(super) x: Axis,
    pub(super) y: Axis,
    pub(super) x_title: &'a str,
    pub(super) y_title: &'a str,
    pub(super) height: f64,
}

impl Frame<'_> {
    /// The chart's coordinates of a value; `None` if an axis cannot show it.
    pub(super) fn place(&self, x: f64, y: f64) -> Option<(f64, f64)> {
        Some((self.across(self.x.position(x)?), self.up(self.y.position(y)?)))
    }

    /// Left, top, right and bottom of the plotting area.
    pub(super) fn area(&self) -> (f64, f64, f64, f64) {
        (LEFT, TOP, WIDTH - RIGHT, self.height - BOTTOM)
    }

    /// An SVG with grid and axes behind `marks`, described by `description`.
    pub(super) fn draw(&self, description: &str, marks: &Markup) -> Markup {
        html! {
            svg.chart viewBox=(format!("0 0 {WIDTH} {}", self.height)) role="img" aria-label=(description) {
                (self.grid())
                (marks)
            }
        }
    }

    fn grid(&self) -> Markup {
        let (left, top, right, bottom) = self.area();
        html! {
            text.axis-title x="0" y="12" { (self.y_title) }
            text.axis-title x=(right) y=(self.height - 4.0) text-anchor="end" { (self.x_title) }
            @for (y, text) in self.ticks(&self.y, |position| self.up(position)) {
                line.grid x1=(left) x2=(right) y1=(units(y)) y2=(units(y)) {}
                text.tick x=(left - 6.0) y=(units(y + 4.0)) text-anchor="end" { (text) }
            }
            @for (x, text) in self.ticks(&self.x, |position| self.across(position)) {
                line.grid x1=(units(x)) x2=(units(x)) y1=(bottom) y2=(bottom + 4.0) {}
                text.tick x=(units(x)) y=(bottom + 17.0) text-anchor=(anchor(x, left, right)) { (text) }
            }
            line.axis x1=(left) x2=(right) y1=(bottom) y2=(bottom) {}
            line.axis x1=(left) x2=(left) y1=(top) y2=(bottom) {}
        }
    }

    fn ticks(&self, axis: &Axis, place: impl Fn(f64) -> f64) -> Vec<(f64, String)> {
        let texts = number::ticks(&axis.ticks, axis.step);
        let ticks = axis.ticks.iter().zip(texts);
        ticks.filter_map(|(tick, text)| Some((place(axis.position(*tick)?), text))).collect()
    }

    fn across(&self, position: f64) -> f64 {
        let (left, _, right, _) = self.area();
        left + position * (right - left)
    }

    fn up(&self, position: f64) -> f64 {
        let (_, top, _, bottom) = self.area();
        bottom - position * (bottom - top)
    }
}

/// The anchor of a tick's text, which keeps the text of the last tick inside the chart.
fn anchor(x: f64, left: f64, right: f64) -> &'static str {
    if x > right - 8.0 {
        "end"
    } else if x < left + 1.0 {
        "start"
    } else {
        "middle"
    }
}

/// A coordinate with one decimal, which is precise enough and short.
pub(super) fn units(value: f64) -> String {
    format!("{value:.1}")
}
