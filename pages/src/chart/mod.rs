//! Small charts as inline SVG: curves over steps, marks with error bars, one value on a line.
//!
//! A chart is drawn 360 units wide with 12-unit text and shown at about that size, so its words stay legible on a
//! phone. Colours come from the page's style sheet, and no two series differ by colour alone.

mod axis;
mod frame;
mod label;
mod line;
mod scatter;
mod strip;

pub use axis::Scale;
pub use line::{LineChart, Series, Smoothing};
pub use scatter::{ScatterChart, ScatterPoint};
pub use strip::strip;

/// Number of different looks of series.
const LOOKS: usize = 4;

/// How a series looks: its colour, dashes and shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Tone {
    /// The series with this index, from 0: solid line and disc, dashed line and square, dashes and dots with a triangle
    /// upwards, long dashes with a triangle downwards; then they repeat.
    Series(usize),
    /// The reference of the series: dotted line, diamond.
    Reference,
}

impl Tone {
    /// The style sheet's class, which sets the colour `--tone`.
    #[must_use]
    pub fn class(self) -> &'static str {
        match self {
            Self::Series(index) => ["tone-1", "tone-2", "tone-3", "tone-4"][index % LOOKS],
            Self::Reference => "tone-reference",
        }
    }
}
