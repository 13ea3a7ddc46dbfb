//! A scene as data: an ordered list of shapes that every artist can redraw.

use tiny_skia::{Path, Transform};

use crate::geometry::{Frame, Pen};
use crate::palette::Rgb;
use crate::rng::Rng;
use crate::vocabulary::Triple;
use crate::{objects, settings};

/// The side of the square canvas on which scenes are composed, in canvas units (and pixels, before reduction).
pub const CANVAS: u32 = 256;

pub(crate) const SIDE: f32 = CANVAS as f32;

/// Width of an object's outline in the house style, in canvas units.
pub(crate) const OUTLINE_WIDTH: f32 = 5.0;

/// The part that a shape plays in its scene; each style treats the parts in its own way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// The upper part of the setting: sky or wall.
    Sky,
    /// The lower part of the setting: grass, sea, snow or floor.
    Ground,
    /// A small thing that belongs to the setting, such as a wave or a snowflake.
    Detail,
    /// A part of the object.
    Object {
        /// Whether the part is painted in a tone of the caption's colour.
        main: bool,
    },
    /// A dark line around a part of the object.
    Outline,
}

impl Role {
    /// Whether the shape belongs to the object rather than to its setting.
    pub fn is_object(self) -> bool {
        matches!(self, Self::Object { .. } | Self::Outline)
    }
}

/// Whether a path is filled or drawn as a line.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Ink {
    /// The inside is filled.
    Fill,
    /// The path is drawn as a line.
    Stroke {
        /// Thickness in canvas units.
        width: f32,
    },
}

/// One shape: a path on the canvas, its ink, its colour in the house style and its role.
#[derive(Clone, Debug)]
pub struct Shape {
    /// The path in canvas units (`0..256` both ways, y downwards).
    pub path: Path,
    /// Filled or drawn as a line.
    pub ink: Ink,
    /// The colour in the house style.
    pub colour: Rgb,
    /// The shape's role in the scene.
    pub role: Role,
}

/// A captioned scene: shapes in painting order, the farthest first.
#[derive(Clone, Debug)]
pub struct Scene {
    /// The object, its colour and its setting.
    pub triple: Triple,
    /// The seed of the scene; styles seed their own random streams with it too.
    pub seed: u64,
    /// The shapes in painting order.
    pub shapes: Vec<Shape>,
    /// The middle of the object in canvas units.
    pub centre: (f32, f32),
    /// About half the object's height in canvas units.
    pub radius: f32,
    /// The height at which sky meets ground, in canvas units from the top.
    pub horizon: f32,
}

impl Scene {
    /// Composes the scene of `triple`: the same seed gives the same shapes, on every machine and in every thread.
    pub fn draw(triple: Triple, seed: u64) -> Self {
        let mut rng = Rng::new(seed, "scene");
        let frame = Frame {
            centre: (SIDE * (0.5 + rng.jitter(0.05)), SIDE * (0.51 + rng.jitter(0.04))),
            radius: SIDE * 0.34 * (1.0 + rng.jitter(0.1)),
            lean: rng.jitter(4.0),
        };
        let (mut shapes, horizon) = settings::draw(triple.setting, &mut rng);
        let mut sketch = Sketch::new(frame);
        objects::draw(triple.object, triple.colour, &mut sketch, &mut rng);
        shapes.extend(sketch.shapes);
        Self { triple, seed, shapes, centre: frame.centre, radius: frame.radius, horizon }
    }
}

/// Collects shapes given in an object's own coordinates.
pub(crate) struct Sketch {
    transform: Transform,
    shapes: Vec<Shape>,
}

/// The colour of outlines in the house style.
pub(crate) const OUTLINE: Rgb = Rgb::new(30, 26, 40);

impl Sketch {
    fn new(frame: Frame) -> Self {
        Self { transform: frame.transform(), shapes: Vec::new() }
    }

    fn push(&mut self, pen: Pen, ink: Ink, colour: Rgb, role: Role) {
        let path = pen.finish().and_then(|path| path.transform(self.transform));
        self.shapes.extend(path.map(|path| Shape { path, ink, colour, role }));
    }

    /// A part in a tone of the caption's colour, outlined.
    pub(crate) fn body(&mut self, pen: Pen, colour: Rgb) {
        self.outlined(pen, colour, true);
    }

    /// A part in a colour of its own, outlined.
    pub(crate) fn part(&mut self, pen: Pen, colour: Rgb) {
        self.outlined(pen, colour, false);
    }

    fn outlined(&mut self, pen: Pen, colour: Rgb, main: bool) {
        self.push(pen.clone(), Ink::Fill, colour, Role::Object { main });
        self.outline(pen);
    }

    /// Several overlapping parts with one outline around them all.
    pub(crate) fn merged(&mut self, pens: &[Pen], colour: Rgb) {
        for pen in pens {
            let width = 2.0 * OUTLINE_WIDTH;
            self.push(pen.clone(), Ink::Stroke { width }, OUTLINE, Role::Outline);
        }
        for pen in pens {
            self.tone(pen.clone(), colour);
        }
    }

    /// A patch in a tone of the caption's colour, without an outline.
    pub(crate) fn tone(&mut self, pen: Pen, colour: Rgb) {
        self.push(pen, Ink::Fill, colour, Role::Object { main: true });
    }

    /// A patch in a colour of its own, without an outline.
    pub(crate) fn patch(&mut self, pen: Pen, colour: Rgb) {
        self.push(pen, Ink::Fill, colour, Role::Object { main: false });
    }

    /// The outline alone.
    pub(crate) fn outline(&mut self, pen: Pen) {
        self.push(pen, Ink::Stroke { width: OUTLINE_WIDTH }, OUTLINE, Role::Outline);
    }

    /// A coloured line of `width` canvas units with an outline on both sides.
    pub(crate) fn rod(&mut self, pen: Pen, width: f32, colour: Rgb, main: bool) {
        let outer = width + 2.0 * OUTLINE_WIDTH;
        self.push(pen.clone(), Ink::Stroke { width: outer }, OUTLINE, Role::Outline);
        self.push(pen, Ink::Stroke { width }, colour, Role::Object { main });
    }
}
