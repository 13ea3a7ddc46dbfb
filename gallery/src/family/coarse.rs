//! Values on every second pixel of the canvas, both ways: distances and glows, which are smooth anyway.

use crate::styles::field::twice_smeared;

/// Width of the grid; a step is two canvas units.
const GRID: usize = 128;

/// One value for each point of the grid.
pub(super) struct Coarse(Vec<f32>);

impl Coarse {
    fn from_fn(value: impl Fn(i32, i32) -> f32) -> Self {
        Self((0..GRID * GRID).map(|place| value(2 * (place % GRID) as i32, 2 * (place / GRID) as i32)).collect())
    }

    /// The distance in canvas units from the nearest pixel that is `inside`: the two-pass chamfer transform of Borgefors
    /// (1986).
    pub(super) fn distance(inside: impl Fn(i32, i32) -> bool) -> Self {
        const SLANTED: f32 = 2.0 * std::f32::consts::SQRT_2;
        let mut field = Self::from_fn(|x, y| if inside(x, y) { 0.0 } else { 1e6 });
        // In reading order, the neighbours before a place are these numbers of places away; in reverse, those after it.
        let neighbours = [(1, 2.0), (GRID - 1, SLANTED), (GRID, 2.0), (GRID + 1, SLANTED)];
        let inner = |place: &usize| (1..GRID - 1).contains(&(place % GRID));
        for place in (GRID..GRID * GRID).filter(inner) {
            let nearest = neighbours.iter().map(|&(away, step)| field.0[place - away] + step);
            field.0[place] = nearest.fold(field.0[place], f32::min);
        }
        for place in (0..GRID * (GRID - 1)).rev().filter(inner) {
            let nearest = neighbours.iter().map(|&(away, step)| field.0[place + away] + step);
            field.0[place] = nearest.fold(field.0[place], f32::min);
        }
        field.0.chunks_exact_mut(GRID).for_each(|row| (row[0], row[GRID - 1]) = (row[1], row[GRID - 2]));
        field
    }

    /// How much of the surroundings is `lit`, 0 to 1: the mean over about `reach` canvas units around each point.
    pub(super) fn glow(lit: impl Fn(i32, i32) -> bool, reach: f32) -> Self {
        let steps = (reach / 4.0) as usize;
        let field = Self::from_fn(|x, y| if lit(x, y) { 1.0 } else { 0.0 });
        Self(twice_smeared(&field.0, GRID, steps))
    }

    /// The value at a point of the canvas, between the points of the grid.
    pub(super) fn at(&self, (x, y): (f32, f32)) -> f32 {
        let most = (GRID - 1) as f32 - 0.001;
        let (u, v) = ((x / 2.0).clamp(0.0, most), (y / 2.0).clamp(0.0, most));
        let (column, row) = (u as usize, v as usize);
        let (right, down) = (u - column as f32, v - row as f32);
        let place = row * GRID + column;
        let along = |place: usize| self.0[place] + (self.0[place + 1] - self.0[place]) * right;
        let (top, bottom) = (along(place), along(place + GRID));
        top + (bottom - top) * down
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distance_is_in_canvas_units() {
        let field = Coarse::distance(|x, y| x == 100 && y == 100);
        assert_eq!((field.at((100.0, 100.0)), field.at((110.0, 100.0)), field.at((100.0, 60.0))), (0.0, 10.0, 40.0));
        assert!((field.at((113.0, 107.0)) - 14.8).abs() < 1.5);
    }

    #[test]
    fn glow_keeps_its_light_and_spreads_it() {
        let field = Coarse::glow(|x, y| (x - 128).abs() < 20 && (y - 128).abs() < 20, 16.0);
        let light: f32 = field.0.iter().sum();
        assert!((light - 19.0 * 19.0).abs() < 2.0, "{light}");
        assert!(field.at((128.0, 128.0)) > 0.9);
        assert!((0.02..0.5).contains(&field.at((152.0, 128.0))));
        assert!(field.at((220.0, 128.0)) < 1e-3);
    }
}
