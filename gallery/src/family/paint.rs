//! A scene in a random style, layer by layer: setting, frame, halo, object, lines.

use super::RandomStyle;
use super::choices::{Edge, Frame, Hand, Pattern, Stroke};
use super::coarse::Coarse;
use super::fill::{Fill, Place};
use super::pigments::{Pigment, Pigments};
use crate::geometry::Point;
use crate::palette::{BLACK, Rgb};
use crate::render::Image;
use crate::rng::Rng;
use crate::scene::{Role, SIDE, Scene};
use crate::styles::view::{BLEED, View, WIDTH};

/// Side of the squares of a pixelated picture, in canvas units.
const BLOCK: f32 = 8.0;

/// Darkness of a shadow, 0 to 1.
const SHADOW: f32 = 0.42;

/// Everything that is asked about a pixel.
pub(super) struct Painting<'a> {
    style: &'a RandomStyle,
    scene: &'a Scene,
    setting: View<'a>,
    object: View<'a>,
    outlined: View<'a>,
    gap: Option<Coarse>,
    glow: Option<Coarse>,
    pigments: Pigments,
    origin: Point,
}

impl<'a> Painting<'a> {
    pub(super) fn new(style: &'a RandomStyle, scene: &'a Scene) -> Self {
        let mut rng = Rng::new(scene.seed, "family");
        let object = View::of_object(scene);
        let choices = &style.choices;
        let outlined = match choices.stroke {
            Stroke::Absent => View::of_object(scene),
            _ => View::thickened(scene, style.line.extra),
        };
        let measured = choices.edge == Edge::Haloed || choices.setting == Pattern::Ringed;
        let gap =
            measured.then(|| Coarse::distance(|x, y| outlined.role(x, y).is_object() || object.role(x, y).is_object()));
        let glow = (choices.hand == Hand::Glowing)
            .then(|| Coarse::glow(|x, y| outlined.role(x, y) == Role::Outline, style.line.glow));
        Self {
            style,
            scene,
            setting: View::of_setting(scene),
            object,
            outlined,
            gap,
            glow,
            pigments: Pigments::new(style, scene),
            origin: (rng.between(64.0, 96.0), rng.between(64.0, 96.0)),
        }
    }

    /// The picture with one pixel for every `step` canvas units, both ways.
    pub(super) fn image(&self, step: usize) -> Image {
        let paint = |colour: &dyn Fn(usize, usize, Point) -> Rgb| {
            let middle = |place: usize| (place as f32 + 0.5) * step as f32;
            Image::from_fn(WIDTH / step, |x, y| colour(x, y, (middle(x), middle(y))))
        };
        let blur = self.style.blur.div_ceil(step);
        match self.style.choices.edge {
            Edge::Bled => {
                let fills = paint(&|_, _, point| self.filled(point)).bled(blur);
                paint(&|x, y, point| self.lined(point, fills.at(x, y))).bled(BLEED / step)
            }
            Edge::Soft => paint(&|_, _, point| self.painted(point)).bled(blur),
            Edge::Pixelated => paint(&|_, _, point| self.painted(point)),
            _ => paint(&|_, _, point| self.painted(point)).bled(BLEED / step),
        }
    }

    fn painted(&self, point: Point) -> Rgb {
        let point = self.bent(point);
        self.lined(point, self.filled(point))
    }

    /// The point of the undistorted scene that is seen at a point.
    fn bent(&self, (x, y): Point) -> Point {
        match self.style.choices.edge {
            Edge::Pixelated => {
                let block = |place: f32| ((place / BLOCK) as i32 as f32 + 0.5) * BLOCK;
                (block(x), block(y))
            }
            Edge::Torn => self.moved((x, y), self.style.torn, 13.0),
            _ => (x, y),
        }
    }

    /// A point moved by up to `reach` canvas units by noise with hills `cell` units apart.
    fn moved(&self, (x, y): Point, reach: f32, cell: f32) -> Point {
        let place = (x / cell + self.origin.0, y / cell + self.origin.1);
        let lattice = &self.style.lattice;
        (x + reach * lattice.noise(place, 5), y + reach * lattice.noise(place, 6))
    }

    /// The colour at a point without lines.
    fn filled(&self, point: Point) -> Rgb {
        if let Some(colour) = self.object_at(point) {
            return colour;
        }
        let edge = self.style.choices.edge;
        if edge == Edge::Haloed && self.gap.as_ref().is_some_and(|gap| gap.at(point) < self.style.halo) {
            return self.pigments.halo;
        }
        let colour = self.framed(point).unwrap_or_else(|| self.setting_at(point));
        if edge == Edge::Shadowed && self.is_shaded(point) { colour.mix(BLACK, SHADOW) } else { colour }
    }

    /// Whether the object's shadow falls on a point.
    fn is_shaded(&self, (x, y): Point) -> bool {
        let (right, down) = self.style.shadow;
        self.outlined.role((x - right) as i32, (y - down) as i32).is_object()
    }

    fn object_at(&self, (x, y): Point) -> Option<Rgb> {
        let slip = self.style.line.slip;
        let point = (x - slip.0, y - slip.1);
        let here = self.pigment(&self.object, point);
        let (fill, inside) = (&self.style.object, here.role.is_object());
        // Dabs and stones reach over the edge of the object; other patterns need not be asked outside it.
        if !inside && !fill.has_cells() {
            return None;
        }
        if inside && fill.pattern == Pattern::Solid {
            return Some(here.mark);
        }
        let darkness = if inside { here.darkness } else { 0.5 };
        let mark = fill.mark(self.place(point, darkness));
        let pigment = if fill.has_cells() { self.pigment(&self.object, mark.at) } else { here };
        pigment.role.is_object().then(|| blended(pigment, mark.cover, mark.light))
    }

    fn setting_at(&self, point: Point) -> Rgb {
        let here = self.pigment(&self.setting, point);
        let fill = self.fill(here.role);
        if fill.pattern == Pattern::Solid {
            return here.mark;
        }
        let mark = fill.mark(self.place(point, here.darkness));
        let pigment = if fill.has_cells() { self.pigment(&self.setting, mark.at) } else { here };
        blended(pigment, mark.cover, mark.light)
    }

    fn fill(&self, role: Role) -> &Fill {
        match role {
            Role::Sky => &self.style.sky,
            Role::Ground => &self.style.ground,
            Role::Detail => &self.style.plain,
            Role::Object { .. } | Role::Outline => &self.style.object,
        }
    }

    fn place(&self, point: Point, darkness: f32) -> Place<'_> {
        let (lattice, origin) = (&self.style.lattice, self.origin);
        let gap = self.gap.as_ref().filter(|_| self.style.choices.setting == Pattern::Ringed).map(|gap| gap.at(point));
        Place { point, darkness, centre: self.scene.centre, gap, lattice, origin }
    }

    fn pigment(&self, view: &View<'_>, (x, y): Point) -> &Pigment {
        &self.pigments.shapes[view.number(x as i32, y as i32)]
    }

    /// The colour at a point with lines and their light, over `colour`.
    fn lined(&self, point: Point, colour: Rgb) -> Rgb {
        if self.style.choices.stroke != Stroke::Absent && self.is_line(point) {
            return self.pigments.line;
        }
        match &self.glow {
            Some(glow) => {
                let most = if self.pigment(&self.object, point).role.is_object() { 0.3 } else { 0.8 };
                colour.mix(self.pigments.line, (1.7 * glow.at(point)).min(most))
            }
            None => colour,
        }
    }

    fn is_line(&self, point: Point) -> bool {
        let line = |(x, y): Point| self.outlined.role(x as i32, y as i32) == Role::Outline;
        let (x, y) = point;
        match self.style.choices.hand {
            Hand::Steady | Hand::Slipped | Hand::Glowing => line(point),
            Hand::Wobbly => line(self.moved(point, self.style.line.tremor, 22.0)),
            Hand::Dry => {
                let place = (x / 15.0 + self.origin.0, y / 15.0 + self.origin.1);
                line(point) && self.style.lattice.noise(place, 7) > -0.25
            }
            Hand::Doubled => {
                let (right, down) = self.style.line.apart;
                line((x + right, y + down)) || line((x - right, y - down))
            }
        }
    }

    /// The colour of the frame at a point, if it reaches there.
    fn framed(&self, (x, y): Point) -> Option<Rgb> {
        let width = self.style.border;
        let edge = x.min(y).min(SIDE - x).min(SIDE - y);
        match self.style.choices.frame {
            Frame::Open => None,
            Frame::Bordered => (edge < width).then_some(self.pigments.paper),
            Frame::Framed => (edge < width).then_some(if edge < 0.3 * width || edge > 0.8 * width {
                self.pigments.band.mix(self.pigments.paper, 0.55)
            } else {
                self.pigments.band
            }),
            Frame::Vignetted => {
                let (u, v) = ((x / SIDE - 0.5).abs() * 2.0, (y / SIDE - 0.5).abs() * 2.0);
                let power = if self.style.border > 20.0 { 2.0 } else { 4.0 };
                let round = libm::powf(u, power) + libm::powf(v, power);
                (round > if power < 3.0 { 1.16 } else { 0.92 }).then_some(self.pigments.paper)
            }
        }
    }
}

fn blended(pigment: &Pigment, cover: f32, light: f32) -> Rgb {
    let colour = match cover {
        0.0 => pigment.under,
        1.0 => pigment.mark,
        cover => pigment.under.mix(pigment.mark, cover.clamp(0.0, 1.0)),
    };
    if light == 0.0 { colour } else { colour.shifted(255.0 * light) }
}
