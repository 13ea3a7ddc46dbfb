//! Square 8-bit RGB images, the canvas, and the house style.

use std::io;
use std::ops::Range;
use std::path::Path;

use catelier_numerics::atomic;
use image::codecs::png::PngEncoder;
use image::{ColorType, ImageEncoder};
use tiny_skia::{Color, FillRule, LineCap, LineJoin, Paint, Pixmap, Stroke, Transform};

use crate::error::Result;
use crate::palette::{Rgb, WHITE};
use crate::scene::{CANVAS, Ink, SIDE, Scene, Shape};

/// A square image, 8-bit sRGB.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Image {
    side: usize,
    pixels: Vec<u8>,
}

impl Image {
    /// The image of `side` by `side` whose colour at (x, y) is `paint(x, y)`.
    pub fn from_fn(side: usize, mut paint: impl FnMut(usize, usize) -> Rgb) -> Self {
        let mut pixels = Vec::with_capacity(side * side * 3);
        for y in 0..side {
            for x in 0..side {
                pixels.extend_from_slice(&paint(x, y).0);
            }
        }
        Self { side, pixels }
    }

    /// Width and height in pixels.
    pub fn side(&self) -> usize {
        self.side
    }

    /// The bytes, `[side, side, 3]`, row by row from the top.
    pub fn pixels(&self) -> &[u8] {
        &self.pixels
    }

    /// The colour at (`x`, `y`), both below [`Image::side`].
    pub fn at(&self, x: usize, y: usize) -> Rgb {
        let start = (y * self.side + x) * 3;
        Rgb([self.pixels[start], self.pixels[start + 1], self.pixels[start + 2]])
    }

    /// The image at a smaller size: each new pixel is the mean of a square of old pixels.
    ///
    /// `side` must divide the current side; otherwise the next larger side that divides it is used.
    pub fn reduced(&self, side: usize) -> Self {
        let factor = (self.side / side.clamp(1, self.side)).max(1);
        let side = self.side / factor;
        Self::from_fn(side, |x, y| self.mean(x * factor..(x + 1) * factor, y * factor..(y + 1) * factor))
    }

    /// The image, slightly blurred: every pixel is the mean of the square of side `2 * reach + 1` around it.
    ///
    /// The part of a square beyond the edge is ignored. The time does not depend on `reach`, because sums slide along.
    pub(crate) fn bled(&self, reach: usize) -> Self {
        let (side, width) = (self.side, 3 * self.side);
        let mut columns = vec![0_u32; width];
        let row = |y: usize| &self.pixels[y * width..(y + 1) * width];
        (0..reach.min(side))
            .for_each(|y| columns.iter_mut().zip(row(y)).for_each(|(sum, &byte)| *sum += u32::from(byte)));
        let mut pixels = Vec::with_capacity(self.pixels.len());
        for y in 0..side {
            if y + reach < side {
                columns.iter_mut().zip(row(y + reach)).for_each(|(sum, &byte)| *sum += u32::from(byte));
            }
            if y > reach {
                columns.iter_mut().zip(row(y - reach - 1)).for_each(|(sum, &byte)| *sum -= u32::from(byte));
            }
            let rows = (y + reach + 1).min(side) - y.saturating_sub(reach);
            slide(&columns, reach, rows as u32, &mut pixels);
        }
        Self { side, pixels }
    }

    /// The mean colour of a rectangle, which must overlap the image; the part beyond the edge is ignored.
    pub(crate) fn mean(&self, columns: Range<usize>, rows: Range<usize>) -> Rgb {
        let (columns, rows) = (columns.start..columns.end.min(self.side), rows.start..rows.end.min(self.side));
        let area = (columns.len() * rows.len()) as u32;
        let mut sum = [area / 2; 3];
        for row in rows {
            let line = &self.pixels[row * self.side * 3..];
            for pixel in line[columns.start * 3..columns.end * 3].chunks_exact(3) {
                sum.iter_mut().zip(pixel).for_each(|(total, &byte)| *total += u32::from(byte));
            }
        }
        Rgb(sum.map(|total| (total / area.max(1)) as u8))
    }
}

impl Image {
    /// Writes the image as an 8-bit RGB PNG file, atomically.
    ///
    /// # Errors
    /// [`Error::Write`](crate::Error::Write).
    pub fn write_png(&self, path: &Path) -> Result<()> {
        let side = self.side as u32;
        atomic::write(path, |file| {
            PngEncoder::new(file)
                .write_image(&self.pixels, side, side, ColorType::Rgb8.into())
                .map_err(io::Error::other)
        })?;
        Ok(())
    }
}

/// Appends a row of means: `columns` holds a sum of `rows` bytes for each channel of each pixel.
fn slide(columns: &[u32], reach: usize, rows: u32, pixels: &mut Vec<u8>) {
    let side = columns.len() / 3;
    let column = |x: usize| [columns[3 * x], columns[3 * x + 1], columns[3 * x + 2]];
    let mut sum = [0_u32; 3];
    (0..reach.min(side)).for_each(|x| sum.iter_mut().zip(column(x)).for_each(|(total, part)| *total += part));
    for x in 0..side {
        if x + reach < side {
            sum.iter_mut().zip(column(x + reach)).for_each(|(total, part)| *total += part);
        }
        if x > reach {
            sum.iter_mut().zip(column(x - reach - 1)).for_each(|(total, part)| *total -= part);
        }
        let area = rows * ((x + reach + 1).min(side) - x.saturating_sub(reach)) as u32;
        pixels.extend(sum.map(|total| ((total + area / 2) / area) as u8));
    }
}

/// An opaque sheet of [`CANVAS`] by [`CANVAS`] pixels.
pub(crate) struct Canvas(Pixmap);

impl Canvas {
    pub(crate) fn new(background: Rgb) -> Self {
        let mut pixmap = Pixmap::new(CANVAS, CANVAS).expect("the canvas has a fixed size above zero");
        let [red, green, blue] = background.0;
        pixmap.fill(Color::from_rgba8(red, green, blue, 255));
        Self(pixmap)
    }

    pub(crate) fn fill(&mut self, path: &tiny_skia::Path, colour: Rgb) {
        self.0.fill_path(path, &paint(colour, 1.0), FillRule::Winding, Transform::identity(), None);
    }

    pub(crate) fn stroke(&mut self, path: &tiny_skia::Path, width: f32, colour: Rgb) {
        self.glaze_line(path, width, colour, 1.0);
    }

    /// Draws `path` as a translucent line; `opacity` is 0 to 1.
    pub(crate) fn glaze_line(&mut self, path: &tiny_skia::Path, width: f32, colour: Rgb, opacity: f32) {
        let stroke = Stroke { width, line_cap: LineCap::Round, line_join: LineJoin::Round, ..Stroke::default() };
        self.0.stroke_path(path, &paint(colour, opacity), &stroke, Transform::identity(), None);
    }

    /// Paints `shape` with its own ink in `colour`.
    pub(crate) fn shape(&mut self, shape: &Shape, colour: Rgb) {
        match shape.ink {
            Ink::Fill => self.fill(&shape.path, colour),
            Ink::Stroke { width } => self.stroke(&shape.path, width, colour),
        }
    }

    /// Fills `path` with a translucent colour; `opacity` is 0 to 1.
    pub(crate) fn glaze(&mut self, path: &tiny_skia::Path, colour: Rgb, opacity: f32) {
        self.0.fill_path(path, &paint(colour, opacity), FillRule::Winding, Transform::identity(), None);
    }

    pub(crate) fn into_image(self) -> Image {
        let pixels = self.0.data().chunks_exact(4).flat_map(|pixel| [pixel[0], pixel[1], pixel[2]]).collect();
        Image { side: SIDE as usize, pixels }
    }
}

fn paint(colour: Rgb, opacity: f32) -> Paint<'static> {
    let [red, green, blue] = colour.0;
    let mut paint = Paint::default();
    paint.set_color_rgba8(red, green, blue, (opacity * 255.0 + 0.5) as u8);
    paint
}

impl Scene {
    /// Paints the scene in the house style at full size ([`CANVAS`] pixels a side).
    pub fn render(&self) -> Image {
        let mut canvas = Canvas::new(WHITE);
        for shape in &self.shapes {
            canvas.shape(shape, shape.colour);
        }
        canvas.into_image()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reduced_pixel_is_the_mean_of_its_square() {
        let image = Image::from_fn(4, |x, y| Rgb::new((x * 10) as u8, (y * 10) as u8, 7));
        let half = image.reduced(2);
        assert_eq!(half.side(), 2);
        assert_eq!((half.at(0, 0), half.at(1, 1)), (Rgb::new(5, 5, 7), Rgb::new(25, 25, 7)));
    }

    #[test]
    fn bled_pixel_is_the_mean_of_the_square_around_it() {
        let image = Image::from_fn(40, |x, y| Rgb([(x * 6) as u8, (x * y % 251) as u8, (y * y % 256) as u8]));
        for reach in [0, 1, 2, 5, 60] {
            let span = |place: usize| place.saturating_sub(reach)..(place + reach + 1).min(40);
            let mean = Image::from_fn(40, |x, y| image.mean(span(x), span(y)));
            assert_eq!(image.bled(reach), mean, "reach {reach}");
        }
    }

    #[test]
    fn glaze_lets_the_ground_through() {
        let mut canvas = Canvas::new(WHITE);
        let all = crate::geometry::Pen::rectangle(0.0, 0.0, SIDE, SIDE).finish().expect("a square is visible");
        canvas.glaze(&all, Rgb::new(0, 0, 0), 0.25);
        let Rgb([grey, ..]) = canvas.into_image().at(128, 128);
        assert!(grey.abs_diff(191) <= 1, "{grey}");
    }
}
