//! Style against preservation: one mark for each adapter, with its uncertainty.

use maud::{Markup, html};

use super::Tone;
use super::axis::{Axis, Scale};
use super::frame::{Frame, units};
use super::label::{self, Label};
use crate::report::number;
use crate::score::Score;

const HEIGHT: f64 = 280.0;
const RADIUS: f64 = 5.0;

/// One adapter.
#[derive(Debug, Clone)]
pub struct ScatterPoint {
    /// Its name, written beside the mark.
    pub label: String,
    /// Which sort of training made it.
    pub tone: Tone,
    /// Its place across, with interval.
    pub x: Score,
    /// Its place upwards, with interval.
    pub y: Score,
}

/// Marks with error bars in both directions.
#[derive(Debug, Clone)]
pub struct ScatterChart<'a> {
    /// What the chart shows, for who cannot see it; a page puts its own heading above.
    pub title: &'a str,
    /// What to see in it, in a sentence.
    pub caption: &'a str,
    /// The horizontal axis.
    pub x_title: &'a str,
    /// The vertical axis.
    pub y_title: &'a str,
    /// The marks.
    pub points: Vec<ScatterPoint>,
}

impl ScatterChart<'_> {
    /// The chart as HTML, or nothing where there is no mark to show.
    #[must_use]
    pub fn html(&self) -> Option<String> {
        self.render().map(Markup::into_string)
    }

    pub(in crate::report) fn render(&self) -> Option<Markup> {
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
        let ends = |score: &Score| [score.low, score.mean, score.high];
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
        let placed = |point: &ScatterPoint| frame.place(point.x.mean, point.y.mean);
        let marks: Vec<(f64, f64, &str)> =
            self.points.iter().filter_map(|point| placed(point).map(|(x, y)| (x, y, point.label.as_str()))).collect();
        let bars = self.points.iter().flat_map(|point| bars(frame, point)).flatten();
        let bars: Vec<_> = bars.map(|(start, end)| (start.0, end.1, end.0, start.1)).collect();
        label::arrange(&marks, &bars, frame.area())
    }

    fn description(&self) -> String {
        let points = self.points.iter().map(|point| {
            let (x, y) = (number::score(point.x.mean), number::score(point.y.mean));
            format!("{} at {x} across and {y} upwards", point.label)
        });
        format!("{}: {}", self.title, points.collect::<Vec<_>>().join("; "))
    }
}

fn mark(frame: &Frame<'_>, point: &ScatterPoint) -> Markup {
    html! {
        @if let Some((x, y)) = frame.place(point.x.mean, point.y.mean) {
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

/// Lower and upper end of the bar across and of the bar upwards.
fn bars(frame: &Frame<'_>, point: &ScatterPoint) -> [Option<(Place, Place)>; 2] {
    let (x, y) = (&point.x, &point.y);
    [
        frame.place(x.low, y.mean).zip(frame.place(x.high, y.mean)),
        frame.place(x.mean, y.low).zip(frame.place(x.mean, y.high)),
    ]
}

fn shape(tone: Tone, x: f64, y: f64) -> Markup {
    let side = 2.0 * RADIUS - 1.0;
    html! {
        @match tone {
            Tone::Cat | Tone::Adapter => circle.mark cx=(units(x)) cy=(units(y)) r=(RADIUS) {},
            Tone::Lora => rect.mark x=(units(x - side / 2.0)) y=(units(y - side / 2.0)) width=(side) height=(side) {},
            Tone::Base => rect.mark x=(units(x - side / 2.0)) y=(units(y - side / 2.0)) width=(side) height=(side)
                transform=(format!("rotate(45 {} {})", units(x), units(y))) {},
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(label: &str, x: f64, y: f64) -> ScatterPoint {
        let score = |mean: f64| Score { mean, low: mean - 0.05, high: mean + 0.05, n: 9 };
        ScatterPoint { label: label.to_owned(), tone: Tone::Cat, x: score(x), y: score(y) }
    }

    fn chart(points: Vec<ScatterPoint>) -> ScatterChart<'static> {
        ScatterChart { title: "Trade", caption: "", x_title: "kept", y_title: "style", points }
    }

    #[test]
    fn every_point_has_a_mark_two_bars_and_a_label() {
        let html = chart(vec![point("a", 0.5, 0.6), point("b", 0.7, 0.8)]).html().unwrap();
        assert_eq!(html.matches("class=\"mark\"").count(), 2);
        assert_eq!(html.matches("class=\"error-bar\"").count(), 4);
        assert_eq!(html.matches("class=\"label\"").count(), 2);
        assert!(html.contains("a at 0.50 across and 0.60 upwards"));
    }

    #[test]
    fn no_points_give_no_chart() {
        assert!(chart(vec![]).html().is_none());
    }
}
