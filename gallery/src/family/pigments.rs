//! The colours of one scene in one style, far enough from each other that the object is seen.

use super::RandomStyle;
use super::choices::{Edge, Hand, LineInk, Paper, Pattern, Stroke};
use super::fill::{Fill, Marks};
use super::tint::Tint;
use crate::palette::Rgb;
use crate::scene::{Role, Scene, Shape};
use crate::vocabulary::Setting;

/// The colours of a shape: between the marks of its pattern, and of the marks.
#[derive(Clone, Copy)]
pub(super) struct Pigment {
    pub(super) under: Rgb,
    pub(super) mark: Rgb,
    /// Darkness in the house style, 0 (white) to 1 (black).
    pub(super) darkness: f32,
    pub(super) role: Role,
}

/// The colours of a scene.
pub(super) struct Pigments {
    /// One for each shape of the scene.
    pub(super) shapes: Vec<Pigment>,
    pub(super) line: Rgb,
    pub(super) halo: Rgb,
    pub(super) paper: Rgb,
    pub(super) band: Rgb,
}

impl Pigments {
    pub(super) fn new(style: &RandomStyle, scene: &Scene) -> Self {
        let tints = Tints::new(style, scene);
        let shapes = scene.shapes.iter().map(|shape| tints.pigment(style, scene, shape)).collect();
        Self {
            shapes,
            line: tints.line.rgb(),
            halo: tints.halo.rgb(),
            paper: tints.paper.rgb(),
            band: style.palette.band.apart(tints.body, 0.12).rgb(),
        }
    }
}

/// The colours that others must stand out from.
struct Tints {
    /// The mean of the object's main colour and what shows between its marks.
    body: Tint,
    sky: Tint,
    ground: Tint,
    line: Tint,
    halo: Tint,
    paper: Tint,
    /// The least distance of the setting from the object.
    least: f32,
    /// Whether neither an outline nor a halo bounds the object.
    unbounded: bool,
}

impl Tints {
    fn new(style: &RandomStyle, scene: &Scene) -> Self {
        let is_body = |shape: &&Shape| shape.role == Role::Object { main: true };
        let body = object(style, scene.shapes.iter().find(is_body).unwrap_or(&scene.shapes[0]));
        let [sky, ground] = [0, 1].map(|number| covering(style, scene, &scene.shapes[number]));
        let line = line(style, body, sky);
        let least = least(style, line, sky, ground);
        let unbounded = style.choices.stroke == Stroke::Absent && style.choices.edge != Edge::Haloed;
        let mut tints = Self { body, sky, ground, line, halo: line, paper: style.palette.paper, least, unbounded };
        let (under, mark) = tints.pair(body, &style.object, true);
        tints.body = under.mix(mark, style.object.covered());
        tints.sky = sky.apart(tints.body, least);
        tints.ground = ground.apart(tints.body, least);
        tints.halo = halo(tints.body, tints.sky.mix(tints.ground, 0.5), style.palette.line);
        tints
    }

    fn pigment(&self, style: &RandomStyle, scene: &Scene, shape: &Shape) -> Pigment {
        let backdrop = if shape.path.bounds().bottom() > scene.horizon + 4.0 { self.ground } else { self.sky };
        let (tint, fill) = match shape.role {
            Role::Sky => (self.sky, &style.sky),
            Role::Ground => (self.ground, &style.ground),
            Role::Detail => (covering(style, scene, shape).apart(backdrop, 0.14).apart(self.body, 0.06), &style.plain),
            Role::Object { .. } | Role::Outline => (self.part(style, shape), &style.object),
        };
        let (under, mark) = self.pair(tint, fill, shape.role.is_object());
        let (under, mark) = self.parted((under, mark), fill, shape.role);
        let darkness = 1.0 - shape.colour.luma() / 255.0;
        Pigment { under: under.rgb(), mark: mark.rgb(), darkness, role: shape.role }
    }

    /// A part of the object; what is not of its main colour is kept off the setting.
    fn part(&self, style: &RandomStyle, shape: &Shape) -> Tint {
        let (tint, least) = (object(style, shape), 0.6 * self.least);
        let is_main = shape.role == Role::Object { main: true };
        if is_main { tint } else { tint.apart(self.sky, least).apart(self.ground, least) }
    }

    /// Both colours: those of the setting lightened or darkened alike until their mean is off the object, and those of an
    /// object that nothing bounds kept on one side of the setting.
    fn parted(&self, (under, mark): (Tint, Tint), fill: &Fill, role: Role) -> (Tint, Tint) {
        let mean = under.mix(mark, fill.covered());
        if matches!(role, Role::Sky | Role::Ground) {
            let amount = mean.apart(self.body, self.least).lightness - mean.lightness;
            return (under.lighter(amount), mark.lighter(amount));
        }
        if !self.unbounded || !role.is_object() {
            return (under, mark);
        }
        // Without an outline, gaps of the setting's colour would break up the object.
        let bounded = |tint: Tint| beside(beside(tint, mean, self.sky), mean, self.ground);
        (bounded(under), bounded(mark))
    }

    /// The colours between the marks and of the marks.
    fn pair(&self, tint: Tint, fill: &Fill, is_object: bool) -> (Tint, Tint) {
        if fill.pattern == Pattern::Hollow {
            let bare = self.paper.mix(tint, if is_object { 0.1 } else { 0.25 });
            return (if is_object { bare } else { bare.apart(self.body, self.least) }, tint);
        }
        if fill.pattern == Pattern::Washed {
            return (self.paper.mix(tint, 0.3), tint);
        }
        if fill.is_shading() {
            return (tint, tint);
        }
        let away = |other: Tint| if is_object { other } else { other.apart(self.body, 0.7 * self.least) };
        let depth = if fill.has_cells() { fill.depth.max(0.1) + 0.05 } else { fill.depth };
        match fill.marks {
            Marks::OnPaper if is_object => (self.paper.mix(tint, 0.16), tint.apart(self.paper, 0.16)),
            Marks::OnPaper => (away(self.paper.mix(tint, 0.45)), tint),
            Marks::Darker | Marks::Lighter if fill.has_cells() => {
                let joint = tint.lighter(if fill.marks == Marks::Darker { -depth } else { depth });
                (away(joint), tint)
            }
            Marks::Darker => (tint.lighter(0.3 * depth), away(tint.lighter(-depth))),
            Marks::Lighter => (tint.lighter(-0.3 * depth), away(tint.lighter(depth))),
            Marks::Inked if fill.has_cells() => (away(tint.mix(self.line, 0.8)), tint),
            Marks::Inked if is_object => (self.paper.mix(tint, fill.stain), self.line),
            Marks::Inked => (away(self.paper.mix(tint, fill.stain)), away(tint.mix(self.line, 0.4))),
        }
    }
}

/// The colour, at least a little lighter than `backdrop` where `mean` is lighter, and otherwise darker.
fn beside(tint: Tint, mean: Tint, backdrop: Tint) -> Tint {
    let (above, below) = (backdrop.lightness + 0.08, backdrop.lightness - 0.08);
    let lightness = tint.lightness;
    tint.with_lightness(if mean.lightness >= backdrop.lightness { lightness.max(above) } else { lightness.min(below) })
}

/// The colour of a part of the object; between glowing lines it is dim.
fn object(style: &RandomStyle, shape: &Shape) -> Tint {
    let tint = style.palette.tint(shape);
    if glows(style) { tint.with_lightness(0.25 + 0.4 * tint.lightness) } else { tint }
}

fn glows(style: &RandomStyle) -> bool {
    style.choices.hand == Hand::Glowing
}

/// The colour of a part of the setting over the paper, which shows less at night.
fn covering(style: &RandomStyle, scene: &Scene, shape: &Shape) -> Tint {
    let palette = &style.palette;
    let night = scene.triple.setting == Setting::Night && style.choices.paper != Paper::Dark;
    let usual = if shape.role == Role::Detail { 0.5 + 0.5 * palette.cover } else { palette.cover };
    let tint = palette.paper.mix(palette.tint(shape), if night { usual.max(0.6) } else { usual });
    let most = if style.choices.ink == LineInk::Light { 0.62 } else { 1.0 };
    if shape.role == Role::Detail { tint } else { tint.with_lightness(tint.lightness.min(most)) }
}

/// The colour of the outlines.
fn line(style: &RandomStyle, body: Tint, sky: Tint) -> Tint {
    let own = match (glows(style), style.choices.paper) {
        (true, _) => body.with_lightness(0.62 + 0.5 * (body.lightness - 0.25)).saturated(1.3),
        (_, Paper::Dark) => body.with_lightness(0.5 + 0.5 * body.lightness),
        _ => body.with_lightness(0.42 * body.lightness + 0.04),
    };
    let ink = if style.choices.ink == LineInk::Own { own } else { style.palette.line };
    let ink = match (style.choices.ink, style.choices.paper) {
        (LineInk::Coloured, Paper::Dark) => ink.with_lightness(ink.lightness.max(0.64)),
        _ => ink,
    };
    if glows(style) || style.choices.object == Pattern::Hollow { ink.apart(sky, 0.32) } else { ink.apart(body, 0.24) }
}

/// How far the object must be from sky and ground: less where an outline or a halo parts them.
fn least(style: &RandomStyle, line: Tint, sky: Tint, ground: Tint) -> f32 {
    let choices = &style.choices;
    let lined = choices.stroke != Stroke::Absent && line.distance(sky).min(line.distance(ground)) > 0.25;
    let broken = choices.hand == Hand::Dry || choices.stroke == Stroke::Fine;
    let covered = if matches!(style.object.marks, Marks::OnPaper | Marks::Inked) || choices.object == Pattern::Hollow {
        0.06
    } else {
        0.0
    };
    covered
        + match (lined, choices.edge) {
            (true, Edge::Haloed) => 0.08,
            (true, Edge::Soft) => 0.16,
            (true, _) if broken => 0.18,
            (true, _) => 0.14,
            (false, Edge::Haloed) => 0.16,
            (false, Edge::Soft) => 0.26,
            (false, _) => 0.22,
        }
}

/// Light or dark, whichever parts the object better from its setting; a little of the style's own ink.
fn halo(body: Tint, setting: Tint, ink: Tint) -> Tint {
    let light = Tint::new(0.97, 0.0, 0.0).mix(ink, 0.08);
    let dark = Tint::new(0.16, 0.0, 0.0).mix(ink, 0.2);
    let parts = |tint: Tint| tint.distance(setting).min(tint.distance(body) + 0.1);
    if parts(light) + 0.1 >= parts(dark) { light } else { dark }
}
