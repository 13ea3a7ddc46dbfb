//! A style's colours: what becomes of each colour of the house style, and the colours of paper, lines and frames.

use super::choices::{Choices, Grade, LineInk, Paper, Scheme};
use super::tint::Tint;
use crate::rng::Rng;
use crate::scene::{Role, Shape};

/// The colours of one style.
#[derive(Clone, Debug)]
pub(super) struct Palette {
    scheme: Scheme,
    grade: Grade,
    inks: Inks,
    setting_inks: Inks,
    sky: Tint,
    ground: Tint,
    turn: f32,
    pub(super) paper: Tint,
    /// The share of sky and ground that covers the paper, 0 to 1.
    pub(super) cover: f32,
    /// The ink of lines that do not take the object's colour.
    pub(super) line: Tint,
    /// The painted band of a frame.
    pub(super) band: Tint,
}

impl Palette {
    pub(super) fn draw(choices: &Choices, rng: &mut Rng) -> Self {
        let paper = paper(choices.paper, rng);
        let count = match choices.scheme {
            Scheme::Tritone => 3,
            Scheme::Quadtone => 4,
            _ => 2,
        };
        let mut inks = Inks::draw(count, choices, rng);
        let mut setting_inks = Inks::draw(2, choices, rng);
        if choices.scheme == Scheme::Cameo {
            let object_is_light = rng.chance(0.5) || choices.paper == Paper::Dark;
            inks = inks.squeezed(if object_is_light { (0.5, 0.95) } else { (0.15, 0.6) });
            setting_inks = setting_inks.squeezed(if object_is_light { (0.16, 0.44) } else { (0.7, 0.95) });
        } else {
            inks.take(paper, choices.paper);
        }
        let sky = Tint::new(rng.between(0.5, 0.94), rng.between(0.04, 0.2), rng.unit());
        let ground = Tint::new(rng.between(0.45, 0.9), rng.between(0.04, 0.2), rng.unit());
        Self {
            scheme: choices.scheme,
            grade: choices.grade,
            inks,
            setting_inks,
            sky,
            ground,
            turn: rng.between(0.2, 0.8),
            paper,
            cover: cover(choices.paper, rng),
            line: line(choices.ink, rng),
            band: Tint::new(rng.between(0.3, 0.8), rng.between(0.05, 0.18), rng.unit()),
        }
    }

    /// What becomes of a shape's colour in the house style.
    pub(super) fn tint(&self, shape: &Shape) -> Tint {
        let house = Tint::of(shape.colour);
        let is_body = shape.role == Role::Object { main: true };
        let is_object = shape.role.is_object();
        let tint = match self.scheme {
            Scheme::House => house,
            Scheme::Shifted => house.turned(self.turn),
            Scheme::Inverted => house.with_lightness(1.06 - 0.86 * house.lightness),
            Scheme::Stark => stark(house),
            Scheme::Tinted => self.tinted(house, shape.role),
            Scheme::Accented if is_body => house.saturated(1.15),
            Scheme::Cameo if !is_object => self.setting_inks.at(house.lightness),
            _ => self.inks.at(house.lightness),
        };
        self.graded(tint)
    }

    fn tinted(&self, house: Tint, role: Role) -> Tint {
        let near = |tint: Tint| tint.lighter(0.55 * (house.lightness - 0.78));
        match role {
            Role::Sky => near(self.sky),
            Role::Ground => near(self.ground),
            Role::Detail => house.mix(near(self.sky), 0.3),
            Role::Object { .. } | Role::Outline => house,
        }
    }

    fn graded(&self, tint: Tint) -> Tint {
        let white = Tint::new(0.97, 0.0, 0.0);
        match self.grade {
            Grade::Natural => tint,
            Grade::Vivid => tint.saturated(1.45).lighter(0.02),
            Grade::Muted => tint.saturated(0.42),
            Grade::Pale => tint.mix(white, 0.45),
            Grade::Deep => tint.with_lightness(0.74 * tint.lightness).saturated(1.1),
            Grade::Warm => tint.saturated(0.85).moved(0.018, 0.05),
            Grade::Cool => tint.saturated(0.85).moved(-0.012, -0.055),
        }
    }
}

/// Few tones, strong chroma.
fn stark(house: Tint) -> Tint {
    let step = libm::roundf(house.lightness * 4.0) / 4.0;
    house.with_lightness(0.12 + 0.84 * step).saturated(1.5)
}

fn paper(kind: Paper, rng: &mut Rng) -> Tint {
    match kind {
        Paper::Covered | Paper::Airy => Tint::new(0.97, 0.008, rng.unit()),
        Paper::Cream => Tint::new(rng.between(0.91, 0.95), rng.between(0.03, 0.055), rng.between(0.2, 0.26)),
        Paper::Toned => Tint::new(rng.between(0.6, 0.86), rng.between(0.04, 0.11), rng.unit()),
        Paper::Dark => Tint::new(rng.between(0.15, 0.34), rng.between(0.0, 0.09), rng.unit()),
    }
}

fn cover(kind: Paper, rng: &mut Rng) -> f32 {
    match kind {
        Paper::Covered => 1.0,
        Paper::Airy => rng.between(0.2, 0.55),
        Paper::Cream | Paper::Toned => rng.between(0.15, 0.5),
        Paper::Dark => rng.between(0.08, 0.4),
    }
}

fn line(kind: LineInk, rng: &mut Rng) -> Tint {
    match kind {
        LineInk::Dark | LineInk::Own => Tint::new(rng.between(0.14, 0.3), rng.between(0.0, 0.08), rng.unit()),
        LineInk::Light => Tint::new(rng.between(0.9, 0.98), rng.between(0.0, 0.05), rng.unit()),
        LineInk::Coloured => Tint::new(rng.between(0.36, 0.66), rng.between(0.12, 0.22), rng.unit()),
    }
}

/// Inks from dark to light.
#[derive(Clone, Debug)]
struct Inks {
    tints: Vec<Tint>,
    negative: bool,
    stepped: bool,
}

impl Inks {
    /// `count` inks (at least 2) whose hues follow each other by one step, or of one hue in a monochrome.
    fn draw(count: usize, choices: &Choices, rng: &mut Rng) -> Self {
        let hue = rng.unit();
        let step = match (choices.scheme, rng.below(4)) {
            (Scheme::Monochrome, _) => 0.0,
            (_, 0) => 0.5,
            (_, 1) => 0.36,
            (_, 2) => 0.2,
            (_, _) => rng.jitter(0.12),
        };
        let (dark, light) = (rng.between(0.2, 0.4), rng.between(0.84, 0.96));
        let chroma = rng.between(0.05, 0.2);
        let tint = |place: usize| {
            let share = place as f32 / (count - 1) as f32;
            Tint::new(dark + (light - dark) * share, chroma * (1.0 - 0.6 * share * share), hue + step * place as f32)
        };
        let stepped = choices.scheme != Scheme::Monochrome && count > 2 && rng.chance(0.6);
        Self { tints: (0..count).map(tint).collect(), negative: choices.negative, stepped }
    }

    /// The ink of a tone, 0 (black) to 1 (white); middling tones are spread.
    fn at(&self, tone: f32) -> Tint {
        let spread = ((tone - 0.28) / 0.68).clamp(0.0, 1.0);
        let share = if self.negative { 1.0 - spread } else { spread };
        let place = share * (self.tints.len() - 1) as f32;
        if self.stepped {
            return self.tints[libm::roundf(place) as usize];
        }
        let first = (place as usize).min(self.tints.len() - 2);
        self.tints[first].mix(self.tints[first + 1], place - first as f32)
    }

    /// The inks with their lightness between `low` and `high`.
    fn squeezed(mut self, (low, high): (f32, f32)) -> Self {
        let most = (self.tints.len() - 1) as f32;
        for (place, tint) in self.tints.iter_mut().enumerate() {
            *tint = tint.with_lightness(low + (high - low) * place as f32 / most);
        }
        self
    }

    /// Lets the paper be the lightest ink, or the darkest where it is dark.
    fn take(&mut self, paper: Tint, kind: Paper) {
        let last = self.tints.len() - 1;
        match kind {
            Paper::Covered => {}
            Paper::Airy | Paper::Cream | Paper::Toned => self.tints[last] = paper,
            Paper::Dark => self.tints[0] = paper,
        }
    }
}
