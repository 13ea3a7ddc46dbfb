//! Labels of marks, placed so that they do not cover each other.

/// Rough width of a character of a label, in chart units.
const CHARACTER: f64 = 7.4;
const HEIGHT: f64 = 13.0;
const GAP: f64 = 9.0;

/// A text and where it starts, ends or centres.
pub(super) struct Label<'a> {
    pub(super) text: &'a str,
    pub(super) x: f64,
    pub(super) y: f64,
    pub(super) anchor: &'static str,
}

/// Left, top, right, bottom.
type Area = (f64, f64, f64, f64);

/// Costs of covering things: a label covers a thin bar rather than a word.
const COVERS_BAR: u32 = 1;
const COVERS_MARK: u32 = 3;
const COVERS_LABEL: u32 = 5;
const LEAVES_AREA: u32 = 1000;

/// Labels for marks at `(x, y, text)`. Each takes the place around its mark, inside `area`, that covers least of
/// `bars`, marks and labels placed before it.
pub(super) fn arrange<'a>(marks: &[(f64, f64, &'a str)], bars: &[Area], area: Area) -> Vec<Label<'a>> {
    let mut taken: Vec<(Area, u32)> = marks.iter().map(|(x, y, _)| (around(*x, *y), COVERS_MARK)).collect();
    taken.extend(bars.iter().map(|bar| (*bar, COVERS_BAR)));
    let mut labels = Vec::with_capacity(marks.len());
    for &(x, y, text) in marks {
        let harm = |label: &Label<'_>| {
            let covered = covered(label);
            let outside = if inside(covered, area) { 0 } else { LEAVES_AREA };
            let covers = taken.iter().filter(|(other, _)| overlap(covered, *other));
            outside + covers.map(|(_, harm)| harm).sum::<u32>()
        };
        labels.extend(candidates(x, y, text).into_iter().min_by_key(harm));
        taken.extend(labels.last().map(|label| (covered(label), COVERS_LABEL)));
    }
    labels
}

/// The places for a label, the most natural first.
fn candidates(x: f64, y: f64, text: &str) -> [Label<'_>; 8] {
    let at = |x, y, anchor| Label { text, x, y, anchor };
    let (above, below) = (y - GAP + 2.0, y + GAP + 8.0);
    let (far_above, far_below) = (y - 3.5 * GAP, y + 3.5 * GAP + 8.0);
    [
        at(x + GAP, above, "start"),
        at(x - GAP, above, "end"),
        at(x + GAP, below, "start"),
        at(x - GAP, below, "end"),
        at(x, far_above, "middle"),
        at(x, far_below, "middle"),
        at(x, far_above, "end"),
        at(x, far_below, "end"),
    ]
}

fn covered(label: &Label<'_>) -> Area {
    let width = CHARACTER * label.text.chars().count() as f64;
    let left = match label.anchor {
        "start" => label.x,
        "end" => label.x - width,
        _ => label.x - width / 2.0,
    };
    (left, label.y - HEIGHT + 3.0, left + width, label.y + 3.0)
}

fn around(x: f64, y: f64) -> Area {
    (x - 6.0, y - 6.0, x + 6.0, y + 6.0)
}

fn inside(inner: Area, outer: Area) -> bool {
    inner.0 >= outer.0 && inner.1 >= outer.1 && inner.2 <= outer.2 && inner.3 <= outer.3
}

fn overlap(left: Area, right: Area) -> bool {
    left.0 < right.2 && right.0 < left.2 && left.1 < right.3 && right.1 < left.3
}

#[cfg(test)]
mod tests {
    use super::*;

    const AREA: Area = (0.0, 0.0, 300.0, 200.0);

    #[test]
    fn labels_of_neighbours_do_not_cover_each_other() {
        let marks = [(100.0, 100.0, "first one"), (112.0, 104.0, "second one"), (95.0, 110.0, "third one")];
        let labels = arrange(&marks, &[], AREA);
        for (i, left) in labels.iter().enumerate() {
            for right in &labels[i + 1..] {
                assert!(!overlap(covered(left), covered(right)), "{} {}", left.text, right.text);
            }
        }
    }

    #[test]
    fn a_label_keeps_off_a_bar() {
        let bar = (105.0, 85.0, 200.0, 95.0);
        let labels = arrange(&[(100.0, 100.0, "one")], &[bar], AREA);
        assert!(!overlap(covered(&labels[0]), bar));
    }

    #[test]
    fn a_label_at_the_right_edge_goes_to_the_left() {
        let labels = arrange(&[(290.0, 100.0, "long enough")], &[], AREA);
        assert_eq!(labels[0].anchor, "end");
    }
}
