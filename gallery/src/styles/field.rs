//! Values over the canvas: distances, blurs, smooth noise and line rulings.

use super::view::WIDTH;
use crate::rng::Rng;

/// One value for each pixel of the canvas.
pub(super) struct Field(Vec<f32>);

impl Field {
    pub(super) fn from_fn(mut value: impl FnMut(i32, i32) -> f32) -> Self {
        Self((0..WIDTH * WIDTH).map(|place| value((place % WIDTH) as i32, (place / WIDTH) as i32)).collect())
    }

    /// The value at a pixel; outside the canvas, the value of the nearest pixel.
    pub(super) fn at(&self, x: i32, y: i32) -> f32 {
        let last = WIDTH as i32 - 1;
        self.0[y.clamp(0, last) as usize * WIDTH + x.clamp(0, last) as usize]
    }

    /// The distance from the nearest pixel that is `inside`: the two-pass chamfer transform of Borgefors (1986).
    pub(super) fn distance(inside: impl Fn(i32, i32) -> bool) -> Self {
        let mut field = Self::from_fn(|x, y| if inside(x, y) { 0.0 } else { 1e6 });
        let last = WIDTH as i32 - 1;
        for place in 0..(WIDTH * WIDTH) as i32 {
            field.relax(place % WIDTH as i32, place / WIDTH as i32, -1);
        }
        for place in 0..(WIDTH * WIDTH) as i32 {
            field.relax(last - place % WIDTH as i32, last - place / WIDTH as i32, 1);
        }
        field
    }

    /// Shortens the distance at a pixel by the neighbours that were visited before, which lie towards `side`.
    fn relax(&mut self, x: i32, y: i32, side: i32) {
        let straight = self.at(x + side, y).min(self.at(x, y + side)) + 1.0;
        let slanted = self.at(x - 1, y + side).min(self.at(x + 1, y + side)) + std::f32::consts::SQRT_2;
        let place = y as usize * WIDTH + x as usize;
        self.0[place] = self.0[place].min(straight).min(slanted);
    }

    /// The field after two passes of a mean over the square of side `2 * reach + 1` around each pixel.
    pub(super) fn blurred(&self, reach: i32) -> Self {
        Self(twice_smeared(&self.0, WIDTH, reach as usize))
    }
}

/// The values of a square grid after two passes of a mean over the square of side `2 * reach + 1` around each place;
/// outside the grid, the nearest value counts.
pub(crate) fn twice_smeared(values: &[f32], side: usize, reach: usize) -> Vec<f32> {
    let once = |values: &[f32]| smeared(&smeared(values, side, reach, 1), side, reach, side);
    once(&once(values))
}

/// The mean of `2 * reach + 1` neighbours along the rows (`stride` 1) or the columns (`stride` `side`).
fn smeared(values: &[f32], side: usize, reach: usize, stride: usize) -> Vec<f32> {
    let mut means = vec![0.0; values.len()];
    let across = if stride == 1 { side } else { 1 };
    for line in 0..side {
        let start = line * across;
        let value = |place: usize| values[start + stride * place.min(side - 1)];
        let mut sum: f32 = (0..2 * reach + 1).map(|place| value(place.saturating_sub(reach))).sum();
        for place in 0..side {
            means[start + stride * place] = sum / (2 * reach + 1) as f32;
            sum += value(place + reach + 1) - value(place.saturating_sub(reach));
        }
    }
    means
}

/// A share of the way, 0 to 1, with a slow start and end.
pub(crate) fn ease(share: f32) -> f32 {
    share * share * (3.0 - 2.0 * share)
}

/// Smooth noise between -1 and 1.
pub(super) struct Cloud {
    cell: f32,
    across: usize,
    knots: Vec<f32>,
}

impl Cloud {
    /// Noise whose hills are about `cell` canvas units apart.
    pub(super) fn new(rng: &mut Rng, cell: f32) -> Self {
        let across = (WIDTH as f32 / cell) as usize + 3;
        Self { cell, across, knots: (0..across * across).map(|_| rng.jitter(1.0)).collect() }
    }

    /// The noise at a point of the canvas.
    pub(super) fn at(&self, x: f32, y: f32) -> f32 {
        let most = (self.across - 2) as f32;
        let (u, v) = ((x / self.cell).clamp(0.0, most), (y / self.cell).clamp(0.0, most));
        let (column, row) = ((u as usize).min(self.across - 2), (v as usize).min(self.across - 2));
        let (right, down) = (ease(u - column as f32), ease(v - row as f32));
        let knot = |column: usize, row: usize| self.knots[row * self.across + column];
        let top = knot(column, row) * (1.0 - right) + knot(column + 1, row) * right;
        let bottom = knot(column, row + 1) * (1.0 - right) + knot(column + 1, row + 1) * right;
        top * (1.0 - down) + bottom * down
    }
}

/// Evenly ruled parallel lines.
#[derive(Clone, Copy)]
pub(super) struct Ruling {
    across: (f32, f32),
    pitch: f32,
}

impl Ruling {
    /// Lines that run at `degrees` (0 is level) with one every `pitch` canvas units.
    pub(super) fn new(degrees: f32, pitch: f32) -> Self {
        let angle = degrees.to_radians();
        Self { across: (-libm::sinf(angle), libm::cosf(angle)), pitch }
    }

    /// Position of a point between two lines, 0 to 1.
    pub(super) fn phase(&self, point: (f32, f32)) -> f32 {
        self.place(point).rem_euclid(1.0)
    }

    /// Position of a point across the lines, in units of the pitch: the integer part counts lines from the corner.
    pub(super) fn place(&self, (x, y): (f32, f32)) -> f32 {
        (x * self.across.0 + y * self.across.1) / self.pitch
    }

    /// Position of a point along its line, in canvas units.
    pub(super) fn along(&self, (x, y): (f32, f32)) -> f32 {
        x * self.across.1 - y * self.across.0
    }

    /// Whether a point lies on a line that covers `share` (0 to 1) of the pitch.
    pub(super) fn covers(&self, point: (f32, f32), share: f32) -> bool {
        self.phase(point) < share
    }
}

/// A screen of round dots on a turned square grid.
#[derive(Clone, Copy)]
pub(super) struct Dots(Ruling, Ruling);

impl Dots {
    pub(super) fn new(degrees: f32, pitch: f32) -> Self {
        Self(Ruling::new(degrees, pitch), Ruling::new(degrees + 90.0, pitch))
    }

    /// Whether a point lies on a dot, where dots cover `share` (0 to 1) of the paper.
    pub(super) fn covers(&self, point: (f32, f32), share: f32) -> bool {
        let (across, down) = (self.0.phase(point) - 0.5, self.1.phase(point) - 0.5);
        across * across + down * down < share / std::f32::consts::PI
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distance_counts_pixels_from_the_nearest_inside() {
        let field = Field::distance(|x, y| x == 100 && y == 100);
        assert_eq!((field.at(100, 100), field.at(110, 100), field.at(100, 60)), (0.0, 10.0, 40.0));
        assert!((field.at(103, 103) - 3.0 * std::f32::consts::SQRT_2).abs() < 1e-4);
    }

    #[test]
    fn blur_keeps_a_constant_and_the_total_of_a_spot() {
        assert!((Field::from_fn(|_, _| 3.0).blurred(5).at(0, 255) - 3.0).abs() < 1e-4);
        let spot = Field::from_fn(|x, y| if x == 128 && y == 128 { 1.0 } else { 0.0 }).blurred(4);
        let total: f32 = spot.0.iter().sum();
        assert!((total - 1.0).abs() < 1e-4, "{total}");
    }

    #[test]
    fn cloud_stays_between_its_bounds_and_is_smooth() {
        let cloud = Cloud::new(&mut Rng::new(3, "cloud"), 20.0);
        for place in 0..2000 {
            let (x, y) = ((place % 50) as f32 * 5.3, (place / 50) as f32 * 6.5);
            assert!(cloud.at(x, y).abs() <= 1.0);
            assert!((cloud.at(x, y) - cloud.at(x + 0.5, y)).abs() < 0.12);
        }
    }

    #[test]
    fn dots_cover_the_share_they_are_told() {
        let screen = Dots::new(30.0, 17.0);
        let covered = Field::from_fn(|x, y| f32::from(u8::from(screen.covers((x as f32, y as f32), 0.3))));
        let share = covered.0.iter().sum::<f32>() / covered.0.len() as f32;
        assert!((share - 0.3).abs() < 0.01, "{share}");
    }
}
