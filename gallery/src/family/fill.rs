//! How areas are filled: the pattern's mark at every point.

use super::choices::{Pattern, has_cells};
use super::lattice::{Lattice, floor};
use crate::geometry::Point;
use crate::rng::Rng;

/// What marks are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Marks {
    /// The area's colour on bare paper.
    OnPaper,
    /// A darker tone on the area's colour.
    Darker,
    /// A lighter tone on the area's colour.
    Lighter,
    /// The ink of the lines on paper that is tinted by the area's colour.
    Inked,
}

/// A pattern with its measures.
#[derive(Clone, Debug)]
pub(super) struct Fill {
    pub(super) pattern: Pattern,
    pub(super) marks: Marks,
    /// Sine and cosine of the angle.
    turn: (f32, f32),
    /// Distance of neighbouring marks in canvas units.
    pitch: f32,
    /// The share of an area that marks cover, 0 to 1.
    pub(super) share: f32,
    /// Whether darker colours get broader marks.
    by_tone: bool,
    /// The difference of light within the pattern, 0 to 1.
    pub(super) depth: f32,
    /// The share of the area's colour in the paper under ink, 0 to 1.
    pub(super) stain: f32,
    /// Whether rings follow the object's outline, rather than being round.
    echoing: bool,
}

/// A point to be filled, and what patterns ask about it.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) point: Point,
    /// Darkness of the area in the house style, 0 (white) to 1 (black).
    pub(super) darkness: f32,
    pub(super) centre: Point,
    /// The distance from the object, where it was measured.
    pub(super) gap: Option<f32>,
    pub(super) lattice: &'a Lattice,
    /// Where the scene's part of the lattice begins, in cells.
    pub(super) origin: Point,
}

impl Place<'_> {
    /// A point in cells, in the scene's part of the lattice.
    fn drifted(&self, (u, v): Point) -> Point {
        (u + self.origin.0, v + self.origin.1)
    }

    fn noise(&self, point: Point, channel: i32) -> f32 {
        self.lattice.noise(self.drifted(point), channel)
    }
}

/// What a pattern does at a point.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Mark {
    /// The point whose colour is taken: a stone has one colour.
    pub(super) at: Point,
    /// The share of the mark's colour, 0 to 1.
    pub(super) cover: f32,
    /// The change of light, -1 to 1.
    pub(super) light: f32,
}

/// The pitches of a pattern in canvas units, the least and the greatest; four units are one pixel of a 64-pixel image.
fn pitches(pattern: Pattern) -> (f32, f32) {
    match pattern {
        Pattern::Solid | Pattern::Hollow | Pattern::Graded => (256.0, 256.0),
        Pattern::Hatched | Pattern::Crosshatched => (15.0, 30.0),
        Pattern::Wavy | Pattern::Scribbled => (18.0, 32.0),
        Pattern::Striped | Pattern::Ringed => (22.0, 46.0),
        Pattern::Dotted => (18.0, 34.0),
        Pattern::Stippled => (13.0, 24.0),
        Pattern::Washed => (36.0, 60.0),
        Pattern::Brushed => (9.0, 16.0),
        Pattern::Grainy => (8.0, 13.0),
        Pattern::Faceted => (30.0, 54.0),
        Pattern::Cracked => (30.0, 52.0),
        Pattern::Tiled => (14.0, 24.0),
        Pattern::Bricked => (15.0, 26.0),
        Pattern::Checked => (16.0, 32.0),
        Pattern::Radiant => (10.0, 26.0),
    }
}

impl Fill {
    /// A fill for the object, or a quieter one for its surroundings.
    pub(super) fn draw(pattern: Pattern, is_object: bool, rng: &mut Rng) -> Self {
        let (least, most) = pitches(pattern);
        let level = matches!(pattern, Pattern::Striped | Pattern::Tiled | Pattern::Bricked | Pattern::Checked);
        let degrees = match pattern {
            Pattern::Striped => 90.0 * rng.below(2) as f32,
            Pattern::Wavy => rng.jitter(20.0),
            _ if level => 0.0,
            _ => rng.jitter(90.0),
        };
        let angle = f32::to_radians(degrees);
        let marks = match rng.below(10) {
            0..3 => Marks::OnPaper,
            3..6 => Marks::Darker,
            6..8 => Marks::Lighter,
            _ => Marks::Inked,
        };
        let size = match (is_object, has_cells(pattern)) {
            (true, true) => 0.72,
            (true, false) => 0.9,
            (false, _) => 1.0,
        };
        Self {
            pattern,
            marks,
            turn: (libm::sinf(angle), libm::cosf(angle)),
            pitch: rng.between(least, most) * size,
            share: if is_object { rng.between(0.42, 0.7) } else { rng.between(0.25, 0.55) },
            by_tone: rng.chance(0.5),
            depth: if is_object { rng.between(0.12, 0.24) } else { rng.between(0.07, 0.16) },
            stain: rng.between(0.1, 0.9),
            echoing: !is_object && rng.chance(0.5),
        }
    }

    /// A fill without a pattern.
    pub(super) fn solid() -> Self {
        let (pattern, marks) = (Pattern::Solid, Marks::Darker);
        Self {
            pattern,
            marks,
            turn: (0.0, 1.0),
            pitch: 1.0,
            share: 1.0,
            by_tone: false,
            depth: 0.0,
            stain: 1.0,
            echoing: false,
        }
    }

    /// The same fill, turned by some degrees.
    pub(super) fn turned(&self, degrees: f32) -> Self {
        let (sine, cosine) = (libm::sinf(degrees.to_radians()), libm::cosf(degrees.to_radians()));
        let turn = (self.turn.0 * cosine + self.turn.1 * sine, self.turn.1 * cosine - self.turn.0 * sine);
        Self { turn, ..self.clone() }
    }

    /// Whether the pattern leaves joints or gaps, rather than drawing marks on the area's colour.
    pub(super) fn has_cells(&self) -> bool {
        has_cells(self.pattern)
    }

    /// Whether the pattern changes light alone.
    pub(super) fn is_shading(&self) -> bool {
        use Pattern::{Brushed, Checked, Faceted, Graded, Grainy, Solid};
        matches!(self.pattern, Brushed | Checked | Faceted | Graded | Grainy | Solid)
    }

    /// About the share of an area that shows the marks' colour, 0 to 1.
    pub(super) fn covered(&self) -> f32 {
        match self.pattern {
            Pattern::Hollow => 0.0,
            Pattern::Striped | Pattern::Ringed | Pattern::Radiant => 0.5,
            Pattern::Washed | Pattern::Stippled | Pattern::Cracked | Pattern::Tiled | Pattern::Bricked => 0.75,
            _ if self.is_shading() => 1.0,
            _ => self.share,
        }
    }

    /// A point in the pattern's own directions, along and across, in pitches.
    fn place(&self, (x, y): Point) -> Point {
        let (sine, cosine) = self.turn;
        ((x * cosine + y * sine) / self.pitch, (y * cosine - x * sine) / self.pitch)
    }

    /// The pattern at a place.
    pub(super) fn mark(&self, place: Place<'_>) -> Mark {
        let at = place.point;
        match self.pattern {
            Pattern::Stippled | Pattern::Cracked => self.cell(place),
            Pattern::Tiled | Pattern::Bricked => self.stone(place),
            Pattern::Washed => self.wash(place),
            _ if self.is_shading() => Mark { at, cover: 1.0, light: self.depth * self.shade(place) },
            _ => Mark { at, cover: if self.is_inked(place) { 1.0 } else { 0.0 }, light: 0.0 },
        }
    }

    /// Whether a line, a dot, a ring or a ray lies at a place.
    fn is_inked(&self, place: Place<'_>) -> bool {
        let share = if self.by_tone { self.share * (0.55 + 0.9 * place.darkness) } else { self.share };
        let (along, across) = self.place(place.point);
        match self.pattern {
            Pattern::Hatched => fraction(across) < share,
            Pattern::Crosshatched => fraction(across) < 0.7 * share || fraction(along) < 0.7 * share,
            Pattern::Wavy => fraction(across + 0.28 * libm::sinf(3.4 * along)) < share,
            Pattern::Striped => fraction(across) < 0.5,
            Pattern::Scribbled => {
                let bend = 0.5 * place.noise((along * 0.4, across * 0.4), 0);
                fraction(across + bend) < share * (1.0 + 0.7 * place.noise((along * 0.3, across), 4))
            }
            Pattern::Dotted => {
                let (column, row) = (fraction(along + 0.5 * (floor(across) & 1) as f32) - 0.5, fraction(across) - 0.5);
                column * column + row * row < share.min(0.66) / std::f32::consts::PI
            }
            Pattern::Ringed => {
                let radius = || distance(place.point, place.centre);
                fraction(place.gap.filter(|_| self.echoing).unwrap_or_else(radius) / self.pitch) < 0.5
            }
            Pattern::Radiant => {
                let angle = libm::atan2f(place.point.1 - place.centre.1, place.point.0 - place.centre.0);
                fraction(angle / std::f32::consts::TAU * libm::roundf(180.0 / self.pitch)) < 0.5
            }
            _ => false,
        }
    }

    /// The light of a pattern that changes light alone, about -1 to 1.
    fn shade(&self, place: Place<'_>) -> f32 {
        let (along, across) = self.place(place.point);
        match self.pattern {
            Pattern::Brushed => place.noise((along * 0.16, across), 0),
            Pattern::Grainy => place.noise((along, across), 0),
            Pattern::Faceted => {
                let (u, v) = place.drifted((along - 0.5 * across, across));
                let upper = i32::from(fraction(u) + fraction(v) > 1.0);
                place.lattice.value(2 * floor(u) + upper, floor(v))
            }
            Pattern::Checked if (floor(along) + floor(across)) & 1 == 0 => 0.6,
            Pattern::Checked => -0.6,
            Pattern::Graded => 4.0 * (along * along + across * across).sqrt() - 2.2,
            _ => 0.0,
        }
    }

    /// Thin paint that pools, with dark rims.
    fn wash(&self, place: Place<'_>) -> Mark {
        let (along, across) = self.place(place.point);
        let rim = place.noise((1.7 * along, 1.7 * across), 2).abs() < 0.08;
        let cover = 0.74 + 0.26 * place.noise((along, across), 0);
        Mark { at: place.point, cover, light: if rim { -0.5 * self.depth } else { 0.0 } }
    }

    /// Dabs with gaps, or irregular cells with joints.
    fn cell(&self, place: Place<'_>) -> Mark {
        let (u, v) = place.drifted(self.place(place.point));
        let dabs = self.pattern == Pattern::Stippled;
        let (jitter, shift) = if dabs { (0.16, 0.5) } else { (0.4, 0.0) };
        let cell = place.lattice.cell((u, v), jitter, shift);
        let covered = if dabs { cell.distance < 0.58 } else { cell.margin * self.pitch > 2.2 };
        let (sine, cosine) = self.turn;
        let (right, down) = ((cell.middle.0 - u) * self.pitch, (cell.middle.1 - v) * self.pitch);
        let middle = (place.point.0 + right * cosine - down * sine, place.point.1 + right * sine + down * cosine);
        let at = if dabs { middle } else { place.point };
        Mark { at, cover: if covered { 1.0 } else { 0.0 }, light: cell.value * self.depth * 0.7 }
    }

    /// Square stones, or bricks twice as long as high in shifted rows.
    fn stone(&self, place: Place<'_>) -> Mark {
        let (along, across) = self.place(place.point);
        let row = floor(across);
        let (length, shift) = if self.pattern == Pattern::Bricked { (1.8, 0.5 * (row & 1) as f32) } else { (1.0, 0.0) };
        let column = along / length + shift;
        let joint = 3.4 / self.pitch;
        let covered = fraction(column) * length > joint && fraction(across) > joint;
        let x = place.point.0 + (0.5 - fraction(column)) * length * self.pitch;
        let y = place.point.1 + (0.5 - fraction(across)) * self.pitch;
        let value = place.lattice.value(floor(column), row);
        Mark { at: (x, y), cover: if covered { 1.0 } else { 0.0 }, light: value * self.depth * 0.6 }
    }
}

/// The part of a value above the integer below it.
fn fraction(value: f32) -> f32 {
    value - floor(value) as f32
}

fn distance(one: Point, other: Point) -> f32 {
    let (dx, dy) = (one.0 - other.0, one.1 - other.1);
    (dx * dx + dy * dy).sqrt()
}
