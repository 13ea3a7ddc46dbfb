//! The topmost shape under every pixel of the canvas.

use tiny_skia::{FillRule, LineCap, LineJoin, Paint, Pixmap, Stroke, Transform};

use super::field::Field;
use crate::palette::Rgb;
use crate::render::Image;
use crate::scene::{CANVAS, Ink, Role, Scene, Shape};
use crate::vocabulary::Setting;

pub(crate) const WIDTH: usize = CANVAS as usize;

/// Distance that ink bleeds into its ground, in canvas units; a small autoencoder could not reproduce hard edges.
pub(crate) const BLEED: usize = 2;

/// A scene with the topmost shape of every pixel.
pub(crate) struct View<'a> {
    pub(super) scene: &'a Scene,
    topmost: Vec<u16>,
}

impl<'a> View<'a> {
    /// The scene with its outlines unchanged.
    pub(super) fn of(scene: &'a Scene) -> Self {
        Self::thickened(scene, 0.0)
    }

    /// The scene with every outline `extra` canvas units thicker.
    pub(crate) fn thickened(scene: &'a Scene, extra: f32) -> Self {
        Self::map(scene, |shape| match (shape.ink, shape.role) {
            (Ink::Stroke { width }, Role::Outline) => Some(Ink::Stroke { width: width + extra }),
            (ink, _) => Some(ink),
        })
    }

    /// The scene without its outlines.
    pub(super) fn without_outlines(scene: &'a Scene) -> Self {
        Self::map(scene, |shape| (shape.role != Role::Outline).then_some(shape.ink))
    }

    /// The setting alone, as if the object were not there.
    pub(crate) fn of_setting(scene: &'a Scene) -> Self {
        Self::map(scene, |shape| (!shape.role.is_object()).then_some(shape.ink))
    }

    /// The object alone, without its outlines; elsewhere the topmost shape is the sky.
    pub(crate) fn of_object(scene: &'a Scene) -> Self {
        Self::map(scene, |shape| matches!(shape.role, Role::Object { .. }).then_some(shape.ink))
    }

    /// Paints the index of every shape as a colour, without antialiasing, with the ink that `ink` returns.
    fn map(scene: &'a Scene, ink: impl Fn(&Shape) -> Option<Ink>) -> Self {
        let mut numbers = Pixmap::new(CANVAS, CANVAS).expect("the canvas has a fixed size above zero");
        for (number, shape) in scene.shapes.iter().enumerate() {
            let mut paint = Paint { anti_alias: false, ..Paint::default() };
            paint.set_color_rgba8((number / 256) as u8, (number % 256) as u8, 0, 255);
            match ink(shape) {
                Some(Ink::Fill) => {
                    numbers.fill_path(&shape.path, &paint, FillRule::Winding, Transform::identity(), None)
                }
                Some(Ink::Stroke { width }) => {
                    let stroke =
                        Stroke { width, line_cap: LineCap::Round, line_join: LineJoin::Round, ..Stroke::default() };
                    numbers.stroke_path(&shape.path, &paint, &stroke, Transform::identity(), None);
                }
                None => {}
            }
        }
        let topmost = numbers.data().chunks_exact(4).map(|pixel| u16::from_be_bytes([pixel[0], pixel[1]])).collect();
        Self { scene, topmost }
    }

    /// The index of the topmost shape at (`x`, `y`); outside the canvas, at the nearest pixel.
    pub(crate) fn number(&self, x: i32, y: i32) -> usize {
        let last = CANVAS as i32 - 1;
        let (column, row) = (x.clamp(0, last) as usize, y.clamp(0, last) as usize);
        usize::from(self.topmost[row * WIDTH + column])
    }

    pub(super) fn shape(&self, x: i32, y: i32) -> &'a Shape {
        &self.scene.shapes[self.number(x, y)]
    }

    pub(crate) fn role(&self, x: i32, y: i32) -> Role {
        self.shape(x, y).role
    }

    pub(super) fn colour(&self, x: i32, y: i32) -> Rgb {
        self.shape(x, y).colour
    }

    pub(super) fn is_night(&self) -> bool {
        self.scene.triple.setting == Setting::Night
    }

    /// The distance of every pixel from the object, outlines included; 0 on the object itself.
    pub(super) fn distance(&self) -> Field {
        Field::distance(|x, y| self.role(x, y).is_object())
    }

    /// Paints an image from the shape under every pixel; the ink bleeds a little.
    pub(super) fn paint(&self, mut colour: impl FnMut(Spot<'a>) -> Rgb) -> Image {
        let spot = |x: usize, y: usize| Spot { x: x as i32, y: y as i32, shape: self.shape(x as i32, y as i32) };
        Image::from_fn(WIDTH, |x, y| colour(spot(x, y))).bled(BLEED)
    }
}

/// One pixel and the shape on top there.
#[derive(Clone, Copy)]
pub(super) struct Spot<'a> {
    pub(super) x: i32,
    pub(super) y: i32,
    pub(super) shape: &'a Shape,
}

impl Spot<'_> {
    /// The middle of the pixel in canvas units.
    pub(super) fn point(&self) -> (f32, f32) {
        (self.x as f32 + 0.5, self.y as f32 + 0.5)
    }

    /// Darkness of the colour in the house style, 0 (white) to 1 (black).
    pub(super) fn darkness(&self) -> f32 {
        1.0 - self.shape.colour.luma() / 255.0
    }
}
