//! Random values on a lattice that repeats: smooth noise and irregular cells at any scale, without new tables.

use crate::geometry::Point;
use crate::rng::Rng;
use crate::styles::field::ease;

/// Number of knots after which the lattice repeats, both ways.
const REPEAT: i32 = 32;

/// Random values between -1 and 1.
#[derive(Clone, Debug)]
pub(super) struct Lattice(Vec<f32>);

/// A cell around a knot that is a little off its place.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Cell {
    /// The middle, in cells.
    pub(super) middle: Point,
    /// The distance of the point that was asked for from the middle, in cells.
    pub(super) distance: f32,
    /// About how far the point is from the nearest other cell, in cells.
    pub(super) margin: f32,
    /// The cell's own random value between -1 and 1.
    pub(super) value: f32,
}

impl Lattice {
    pub(super) fn new(rng: &mut Rng) -> Self {
        Self((0..REPEAT * REPEAT).map(|_| rng.jitter(1.0)).collect())
    }

    /// The value of a knot; each `channel` has its own.
    fn knot(&self, column: i32, row: i32, channel: i32) -> f32 {
        let (column, row) = ((column + 13 * channel) & (REPEAT - 1), (row + 7 * channel) & (REPEAT - 1));
        self.0[(row * REPEAT + column) as usize]
    }

    /// The value of the square cell in `column` and `row`.
    pub(super) fn value(&self, column: i32, row: i32) -> f32 {
        self.knot(column, row, 3)
    }

    /// Smooth noise between -1 and 1 at a point in cells; each `channel` has its own.
    pub(super) fn noise(&self, (u, v): Point, channel: i32) -> f32 {
        let (column, row) = (floor(u), floor(v));
        let (right, down) = (ease(u - column as f32), ease(v - row as f32));
        let along = |row: i32| {
            let (left, next) = (self.knot(column, row, channel), self.knot(column + 1, row, channel));
            left + (next - left) * right
        };
        let (top, bottom) = (along(row), along(row + 1));
        top + (bottom - top) * down
    }

    /// The cell that holds a point in cells, where knots are up to `jitter` (0 to 0.5) off their places. Every second row
    /// is shifted by `shift` (0 for squares, 0.5 for honeycombs and bricks).
    pub(super) fn cell(&self, (u, v): Point, jitter: f32, shift: f32) -> Cell {
        let row = floor(v);
        let (mut nearest, mut second) =
            (Cell { middle: (u, v), distance: f32::MAX, margin: 0.0, value: 0.0 }, f32::MAX);
        for row in row - 1..=row + 1 {
            let start = if row & 1 == 0 { 0.0 } else { shift };
            let column = floor(u - start);
            for column in column - 1..=column + 1 {
                let x = column as f32 + 0.5 + start + jitter * self.knot(column, row, 1);
                let y = row as f32 + 0.5 + jitter * self.knot(column, row, 2);
                let distance = ((u - x) * (u - x) + (v - y) * (v - y)).sqrt();
                if distance < nearest.distance {
                    second = nearest.distance;
                    nearest = Cell { middle: (x, y), distance, margin: 0.0, value: self.value(column, row) };
                } else {
                    second = second.min(distance);
                }
            }
        }
        Cell { margin: 0.5 * (second - nearest.distance), ..nearest }
    }
}

/// The integer below a value, for values above -1,000.
pub(super) fn floor(value: f32) -> i32 {
    (value + 1_000.0) as i32 - 1_000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_is_smooth_and_bounded() {
        let lattice = Lattice::new(&mut Rng::new(3, "noise"));
        for place in 0..10_000 {
            let point = (place as f32 * 0.013 - 20.0, place as f32 * 0.007);
            let (here, beside) = (lattice.noise(point, 1), lattice.noise((point.0 + 0.01, point.1), 1));
            assert!(here.abs() <= 1.0 && (here - beside).abs() < 0.04, "{point:?}: {here}, {beside}");
        }
    }

    #[test]
    fn every_point_lies_in_the_cell_of_the_nearest_knot() {
        let lattice = Lattice::new(&mut Rng::new(4, "cells"));
        for place in 0..2_000 {
            let point = (place as f32 * 0.171 % 17.0 - 4.0, place as f32 * 0.093 % 13.0);
            let cell = lattice.cell(point, 0.3, 0.5);
            let at_its_middle = lattice.cell(cell.middle, 0.3, 0.5);
            assert_eq!(at_its_middle.value, cell.value);
            assert!(cell.distance < 1.3 && cell.margin >= 0.0, "{cell:?}");
        }
    }
}
