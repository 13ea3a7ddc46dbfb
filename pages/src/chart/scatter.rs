//! Marks in two dimensions, each with the intervals of its values.

use maud::{Markup, html};

use super::axis::{Axis, Scale};
use super::frame::{Frame, units};
use super::label::{self, Label};
use super::{LOOKS, Tone};
use crate::Estimate;
use crate::number;

const HEIGHT: f64 = 280.0;
const RADIUS: f64 = 5.0;

/// One mark.
#[derive(Debug, Clone)]
pub struct ScatterPoint {
    /// Its name, written beside the mark.
    pub label: String,
    /// Its look.
    pub tone: Tone,
    /// Its horizontal value, with interval.
    pub x: Estimate,
    /// Its vertical value, with interval.
    pub y: Estimate,
}

/// Marks with error bars in both directions.
#[derive(Debug, Clone)]
pub struct ScatterChart<'a> {
    /// Description for readers who cannot see the chart; a page puts its own heading above.
    pub title: &'a str,
    /// What the reader should notice, in one sentence.
    pub caption: &'a str,
    /// The horizontal axis.
    pub x_title: &'a str,
    /// The vertical axis.
    pub y_title: &'a str,
    /// The marks.
    pub points: Vec<ScatterPoint>,
}

impl ScatterChart<'_> {
    /// The chart; `None` if there is no mark to show.
    #[must_use]
    pub fn render(&self) -> Option<Markup> {
        let frame = self.frame()?;
        let marks = html! {
            @for point in &self.points {
                (mark(&frame, point))
            }
            @for label in self.labels(&frame) {
                text.label x=(units(label.x)) y=(units(label.y)) text-anchor=(label.anchor) { (label.text) }
            }
        };
        Some(html! {
            figure.chart-figure {
                (frame.draw(&self.description(), &marks))
                figcaption { (self.caption) }
            }
        })
    }

    fn frame(&self) -> Option<Frame<'_>> {
        let ends = |estimate: &Estimate| [estimate.low, estimate.value, estimate.high];
        let across = self.points.iter().flat_map(|point| ends(&point.x));
        let upwards = self.points.iter().flat_map(|point| ends(&point.y));
        Some(Frame {
            x: Axis::fit(across, Scale::Linear)?,
            y: Axis::fit(upwards, Scale::Linear)?,
            x_title: self.x_title,
            y_title: self.y_title,
            height: HEIGHT,
        })
    }

    fn labels(&self, frame: &Frame<'_>) -> Vec<Label<'_>> {
        let placed = |point: &ScatterPoint| frame.place(point.x.value, point.y.value);
        let marks: Vec<(f64, f64, &str)> =
            self.points.iter().filter_map(|point| placed(point).map(|(x, y)| (x, y, point.label.as_str()))).collect();
        let bars = self.points.iter().flat_map(|point| bars(frame, point)).flatten();
        let bars: Vec<_> = bars.map(|(start, end)| (start.0, end.1, end.0, start.1)).collect();
        label::arrange(&marks, &bars, frame.area())
    }

    fn description(&self) -> String {
        let points = self.points.iter().map(|point| {
            let (x, y) = (number::two_decimals(point.x.value), number::two_decimals(point.y.value));
            format!("{} at {x} across and {y} upwards", point.label)
        });
        format!("{}: {}", self.title, points.collect::<Vec<_>>().join("; "))
    }
}

fn mark(frame: &Frame<'_>, point: &ScatterPoint) -> Markup {
    html! {
        @if let Some((x, y)) = frame.place(point.x.value, point.y.value) {
            g class=(point.tone.class()) {
                (error_bars(frame, point))
                (shape(point.tone, x, y))
            }
        }
    }
}

fn error_bars(frame: &Frame<'_>, point: &ScatterPoint) -> Markup {
    html! {
        @for (start, end) in bars(frame, point).into_iter().flatten() {
            line.error-bar x1=(units(start.0)) y1=(units(start.1)) x2=(units(end.0)) y2=(units(end.1)) {}
        }
    }
}

type Place = (f64, f64);

/// The ends of the horizontal and of the vertical error bar.
fn bars(frame: &Frame<'_>, point: &ScatterPoint) -> [Option<(Place, Place)>; 2] {
    let (x, y) = (&point.x, &point.y);
    [
        frame.place(x.low, y.value).zip(frame.place(x.high, y.value)),
        frame.place(x.value, y.low).zip(frame.place(x.value, y.high)),
    ]
}

fn shape(tone: Tone, x: f64, y: f64) -> Markup {
    let side = 2.0 * RADIUS - 1.0;
    let square = |turn: Option<String>| {
        html! {
            rect.mark x=(units(x - side / 2.0)) y=(units(y - side / 2.0)) width=(side) height=(side) transform=[turn] {}
        }
    };
    match tone {
        Tone::Reference => square(Some(format!("rotate(45 {} {})", units(x), units(y)))),
        Tone::Series(index) => match index % LOOKS {
            0 => html! { circle.mark cx=(units(x)) cy=(units(y)) r=(RADIUS) {} },
            1 => square(None),
            2 => triangle(x, y, RADIUS),
            _ => triangle(x, y, -RADIUS),
        },
    }
}

/// A triangle around a point, pointing upwards for a positive `radius` and downwards for a negative one.
fn triangle(x: f64, y: f64, radius: f64) -> Markup {
    let (half, base, tip) = (1.1 * RADIUS, units(y + 0.8 * radius), units(y - radius));
    let path = format!("M{} {base}L{} {base}L{} {tip}Z", units(x - half), units(x + half), units(x));
    html! { path.mark d=(path) {} }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(label: &str, x: f64, y: f64) -> ScatterPoint {
        let estimate = |value: f64| Estimate { value, low: value - 0.05, high: value + 0.05 };
        ScatterPoint { label: label.to_owned(), tone: Tone::Series(0), x: estimate(x), y: estimate(y) }
    }

    fn chart(points: Vec<ScatterPoint>) -> ScatterChart<'static> {
        ScatterChart { title: "Trade", caption: "", x_title: "kept", y_title: "style", points }
    }

    #[test]
    fn every_point_has_a_mark_two_bars_and_a_label() {
        let html = chart(vec![point("a", 0.5, 0.6), point("b", 0.7, 0.8)]).render().unwrap().into_string();
        assert_eq!(html.matches("class=\"mark\"").count(), 2);
        assert_eq!(html.matches("class=\"error-bar\"").count(), 4);
        assert_eq!(html.matches("class=\"label\"").count(), 2);
        assert!(html.contains("a at 0.50 across and 0.60 upwards"));
    }

    #[test]
    fn every_look_has_a_shape_of_its_own() {
        let tones = (0..LOOKS).map(Tone::Series).chain([Tone::Reference]);
        let shapes: std::collections::BTreeSet<String> =
            tones.map(|tone| shape(tone, 1.0, 1.0).into_string()).collect();
        assert_eq!(shapes.len(), LOOKS + 1, "{shapes:?}");
        assert_eq!(shape(Tone::Series(LOOKS), 1.0, 1.0).into_string(), shape(Tone::Series(0), 1.0, 1.0).into_string());
    }

    #[test]
    fn no_points_give_no_chart() {
        assert!(chart(vec![]).render().is_none());
    }
}
