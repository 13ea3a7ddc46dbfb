//! Curves over training steps.

use maud::{Markup, html};

use super::Tone;
use super::axis::{Axis, Scale};
use super::frame::{Frame, units};
use crate::number;

const HEIGHT: f64 = 220.0;

/// Largest number of points drawn of a curve; longer curves are averaged within bins.
const POINTS: usize = 160;

/// Smoothing of a curve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Smoothing {
    /// The values without smoothing.
    None,
    /// A moving mean, with the values faint behind it: for losses, which jump from step to step.
    Trend,
}

/// One curve.
#[derive(Debug, Clone)]
pub struct Series {
    /// Its name in the legend.
    pub name: String,
    /// Its look.
    pub tone: Tone,
    /// Step and value, in order of the steps.
    pub points: Vec<(f64, f64)>,
}

/// Curves that share their axes.
#[derive(Debug, Clone)]
pub struct LineChart<'a> {
    /// Title of the chart.
    pub title: &'a str,
    /// What the reader should notice, in one sentence.
    pub caption: &'a str,
    /// The horizontal axis.
    pub x_title: &'a str,
    /// The vertical axis.
    pub y_title: &'a str,
    /// The scale of the vertical axis.
    pub scale: Scale,
    /// Smoothing of every curve.
    pub smoothing: Smoothing,
    /// The curves; those without points are left out.
    pub series: Vec<Series>,
}

impl LineChart<'_> {
    /// The chart; `None` if there is no point to show.
    #[must_use]
    pub fn render(&self) -> Option<Markup> {
        let series: Vec<&Series> = self.series.iter().filter(|series| !series.points.is_empty()).collect();
        let frame = self.frame(&series)?;
        let marks = html! {
            @for series in &series {
                (curve(&frame, series, self.smoothing))
            }
        };
        Some(html! {
            figure.chart-figure {
                h3 { (self.title) }
                (legend(&series))
                (frame.draw(&self.description(&series), &marks))
                figcaption { (self.caption) }
            }
        })
    }

    fn frame(&self, series: &[&Series]) -> Option<Frame<'_>> {
        let points = || series.iter().flat_map(|series| &series.points);
        Some(Frame {
            x: Axis::fit(points().map(|(x, _)| *x), Scale::Linear)?,
            y: Axis::fit(points().map(|(_, y)| *y), self.scale)?,
            x_title: self.x_title,
            y_title: self.y_title,
            height: HEIGHT,
        })
    }

    /// First and last value of every curve, for readers who cannot see the chart.
    fn description(&self, series: &[&Series]) -> String {
        let ends = series.iter().filter_map(|series| {
            let (first, last) = (series.points.first()?, series.points.last()?);
            let value = |point: &(f64, f64)| number::plain(point.1);
            Some(format!("{} from {} to {}", series.name, value(first), value(last)))
        });
        format!("{}: {}", self.title, ends.collect::<Vec<_>>().join("; "))
    }
}

fn curve(frame: &Frame<'_>, series: &Series, smoothing: Smoothing) -> Markup {
    let values = binned(&series.points);
    html! {
        g class=(series.tone.class()) {
            @match smoothing {
                Smoothing::None => path.curve d=(path(frame, &values)) {},
                Smoothing::Trend => {
                    path.rough d=(path(frame, &values)) {}
                    path.curve d=(path(frame, &trend(&values))) {}
                }
            }
            @if let [(x, y)] = series.points[..] {
                @if let Some((x, y)) = frame.place(x, y) {
                    circle.mark cx=(units(x)) cy=(units(y)) r="4" {}
                }
            }
        }
    }
}

/// An SVG path through the points, interrupted at points that cannot be shown.
fn path(frame: &Frame<'_>, points: &[(f64, f64)]) -> String {
    let mut path = String::new();
    let mut pen = 'M';
    for (x, y) in points {
        let Some((x, y)) = frame.place(*x, *y) else {
            pen = 'M';
            continue;
        };
        path.push_str(&format!("{pen}{} {}", units(x), units(y)));
        pen = 'L';
    }
    path
}

/// Means of equal bins, at most [`POINTS`] of them.
fn binned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let size = points.len().div_ceil(POINTS).max(1);
    points.chunks(size).map(mean_point).collect()
}

/// A mean over a window of about a tenth of the curve, cut off at its ends.
fn trend(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let reach = points.len() / 20;
    let around = |centre: usize| {
        let window = &points[centre.saturating_sub(reach)..(centre + reach + 1).min(points.len())];
        (points[centre].0, mean_point(window).1)
    };
    (0..points.len()).map(around).collect()
}

fn mean_point(points: &[(f64, f64)]) -> (f64, f64) {
    let n = points.len() as f64;
    let (x, y) = points.iter().fold((0.0, 0.0), |(x, y), point| (x + point.0, y + point.1));
    (x / n, y / n)
}

/// The names of the curves beside a piece of each.
fn legend(series: &[&Series]) -> Markup {
    html! {
        ul.legend {
            @for series in series {
                li class=(series.tone.class()) {
                    svg viewBox="0 0 28 10" width="28" height="10" aria-hidden="true" {
                        path.curve d="M1 5L27 5" {}
                    }
                    (series.name)
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(points: Vec<(f64, f64)>) -> LineChart<'static> {
        LineChart {
            title: "Loss",
            caption: "It falls.",
            x_title: "step",
            y_title: "loss",
            scale: Scale::Linear,
            smoothing: Smoothing::None,
            series: vec![Series { name: "CAT <1>".into(), tone: Tone::Series(0), points }],
        }
    }

    #[test]
    fn a_curve_runs_from_the_lower_left_to_the_upper_right_when_it_rises() {
        let html = chart(vec![(0.0, 0.0), (10.0, 1.0)]).render().unwrap().into_string();
        assert!(html.contains("d=\"M44.0 182.0L348.0 24.0\""), "{html}");
    }

    #[test]
    fn names_are_escaped_and_ends_are_told() {
        let html = chart(vec![(0.0, 0.5), (10.0, 0.25)]).render().unwrap().into_string();
        assert!(html.contains("Loss: CAT &lt;1&gt; from 0.500 to 0.250"), "{html}");
    }

    #[test]
    fn a_chart_without_points_is_left_out() {
        assert!(chart(vec![]).render().is_none());
        assert!(chart(vec![(0.0, f64::NAN)]).render().is_none());
    }

    #[test]
    fn long_curves_are_averaged_and_keep_their_mean() {
        let points: Vec<(f64, f64)> = (0..1600).map(|i| (f64::from(i), f64::from(i % 10))).collect();
        let binned = binned(&points);
        assert_eq!(binned.len(), 160);
        assert!(binned.iter().all(|(_, y)| (y - 4.5).abs() < 1e-9));
    }

    #[test]
    fn a_trend_follows_a_straight_line_and_calms_a_jumping_one() {
        let straight: Vec<(f64, f64)> = (0..100).map(|i| (f64::from(i), 2.0 * f64::from(i))).collect();
        assert!(trend(&straight).iter().zip(&straight).skip(5).take(90).all(|(a, b)| (a.1 - b.1).abs() < 1e-9));
        let jumping: Vec<(f64, f64)> = (0..100).map(|i| (f64::from(i), f64::from(i % 2))).collect();
        assert!(trend(&jumping)[20..80].iter().all(|(_, y)| (y - 0.5).abs() < 0.1));
    }

    #[test]
    fn a_value_that_is_not_a_number_breaks_the_curve() {
        let html = chart(vec![(0.0, 0.0), (1.0, f64::NAN), (2.0, 1.0)]).render().unwrap().into_string();
        assert_eq!(html.matches("M44.0 182.0M348.0 24.0").count(), 1, "{html}");
    }
}
