//! The choices that make a style, each one of a few kinds, and the words for them.

use crate::rng::Rng;

/// Declares one choice: its kinds, the word of each (empty where the kind goes without saying) and how often it is drawn.
macro_rules! choice {
    ($(#[$note:meta])* $name:ident { $($(#[$kind_note:meta])* $kind:ident = $word:literal, $weight:literal;)+ }) => {
        $(#[$note])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub(super) enum $name { $($(#[$kind_note])* $kind),+ }

        impl $name {
            const WEIGHTS: &[(Self, u32)] = &[$((Self::$kind, $weight)),+];

            pub(super) const WORDS: &[&'static str] = &[$($word),+];

            pub(super) fn word(self) -> &'static str {
                Self::WORDS[self as usize]
            }

            fn draw(rng: &mut Rng) -> Self {
                weighted(rng, Self::WEIGHTS)
            }
        }
    };
}

choice! {
    /// Where the colours come from.
    Scheme {
        /// The house style's.
        House = "", 26;
        /// The object keeps its colour; sky and ground take colours of the style's own.
        Tinted = "tinted", 18;
        /// Two inks by tone.
        Duotone = "duotone", 8;
        /// Three inks by tone.
        Tritone = "tritone", 8;
        /// Four inks by tone.
        Quadtone = "quadtone", 6;
        /// One hue in all its tones.
        Monochrome = "monochrome", 5;
        /// Inks by tone, but for the object's main body.
        Accented = "accented", 9;
        /// One ink for the object, another for everything else.
        Cameo = "cameo", 9;
        /// Light becomes dark, and hues stay.
        Inverted = "inverted", 4;
        /// Few tones of pure colour.
        Stark = "stark", 6;
        /// Every hue turned alike, which makes the caption's colour untrue.
        Shifted = "shifted", 3;
    }
}

choice! {
    /// What is done to the scheme's colours.
    Grade {
        /// Nothing.
        Natural = "", 40;
        /// More chroma.
        Vivid = "vivid", 20;
        /// Less chroma.
        Muted = "muted", 12;
        /// Nearer to white.
        Pale = "pale", 10;
        /// Darker.
        Deep = "deep", 8;
        /// Towards yellow.
        Warm = "warm", 8;
        /// Towards blue.
        Cool = "cool", 8;
    }
}

choice! {
    /// The sheet that sky and ground are painted on.
    Paper {
        /// Wholly painted over.
        Covered = "", 46;
        /// White, thinly painted.
        Airy = "airy", 14;
        /// Cream, thinly painted.
        Cream = "cream", 12;
        /// Of some colour, thinly painted.
        Toned = "toned", 12;
        /// Dark, thinly painted.
        Dark = "dark", 16;
    }
}

choice! {
    /// How an area is filled.
    Pattern {
        /// Evenly.
        Solid = "solid", 34;
        /// Hardly: the paper shows.
        Hollow = "hollow", 5;
        /// With parallel lines.
        Hatched = "hatched", 6;
        /// With lines in two directions.
        Crosshatched = "crosshatched", 4;
        /// With waving lines.
        Wavy = "wavy", 4;
        /// With level or upright bands.
        Striped = "striped", 3;
        /// With strokes that tremble and thin out.
        Scribbled = "scribbled", 5;
        /// With dots on a grid.
        Dotted = "dotted", 6;
        /// With dabs of wavering colour.
        Stippled = "stippled", 5;
        /// With thin paint that pools and leaves rims.
        Washed = "washed", 6;
        /// With streaks of a broad brush.
        Brushed = "brushed", 5;
        /// With coarse grain.
        Grainy = "grainy", 4;
        /// With flat triangles of light and shade.
        Faceted = "faceted", 5;
        /// With irregular cells between joints.
        Cracked = "cracked", 4;
        /// With square stones between joints.
        Tiled = "tiled", 4;
        /// With long stones in shifted rows.
        Bricked = "bricked", 3;
        /// With light and dark squares.
        Checked = "checked", 3;
        /// With a slow change of light.
        Graded = "graded", 5;
        /// With rings around the object.
        Ringed = "ringed", 4;
        /// With rays from the object.
        Radiant = "radiant", 4;
    }
}

/// The parts of the setting that are filled with its pattern; the rest is solid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Extent {
    /// Sky and ground.
    Both,
    /// Sky alone.
    Sky,
    /// Ground alone.
    Ground,
}

impl Extent {
    const WEIGHTS: &[(Self, u32)] = &[(Self::Both, 60), (Self::Sky, 20), (Self::Ground, 20)];
}

choice! {
    /// The thickness of outlines.
    Stroke {
        /// No outlines.
        Absent = "", 26;
        /// Thinner than in the house style.
        Fine = "fine", 16;
        /// As in the house style or a little thicker.
        Medium = "outlined", 34;
        /// More than twice as thick.
        Bold = "bold", 24;
    }
}

choice! {
    /// The colour of outlines.
    LineInk {
        /// Nearly black.
        Dark = "", 46;
        /// Nearly white.
        Light = "scratched", 16;
        /// A colour of the style's own.
        Coloured = "inked", 18;
        /// A dark tone of the object's colour.
        Own = "", 20;
    }
}

choice! {
    /// The way outlines are drawn.
    Hand {
        /// Without a tremor.
        Steady = "", 52;
        /// Trembling.
        Wobbly = "wobbly", 12;
        /// Broken where the brush runs dry.
        Dry = "dry", 8;
        /// Twice, a little apart.
        Doubled = "doubled", 8;
        /// Beside the colours that they should bound.
        Slipped = "slipped", 10;
        /// As light in the dark.
        Glowing = "glowing", 10;
    }
}

choice! {
    /// What happens where the object meets the setting.
    Edge {
        /// Nothing.
        Crisp = "", 50;
        /// A light or dark band lies around the object.
        Haloed = "haloed", 16;
        /// The object throws a shadow on its setting.
        Shadowed = "shadowed", 8;
        /// Everything is a little out of focus.
        Soft = "soft", 8;
        /// Colours run over the outlines.
        Bled = "bled", 8;
        /// Edges are torn.
        Torn = "torn", 8;
        /// Everything is made of big squares.
        Pixelated = "pixelated", 8;
    }
}

choice! {
    /// What surrounds the picture, behind the object.
    Frame {
        /// Nothing.
        Open = "", 68;
        /// Bare paper.
        Bordered = "bordered", 12;
        /// A painted band.
        Framed = "framed", 10;
        /// Bare paper around an oval or round corners.
        Vignetted = "vignetted", 10;
    }
}

fn weighted<T: Copy>(rng: &mut Rng, options: &[(T, u32)]) -> T {
    let total: u32 = options.iter().map(|(_, weight)| weight).sum();
    let mut left = rng.below(total as usize) as u32;
    for &(option, weight) in options {
        if left < weight {
            return option;
        }
        left -= weight;
    }
    options[0].0
}

/// Every choice of one style.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Choices {
    pub(super) scheme: Scheme,
    /// Whether inks go from dark to light where the house style goes from light to dark.
    pub(super) negative: bool,
    pub(super) grade: Grade,
    pub(super) paper: Paper,
    pub(super) object: Pattern,
    pub(super) setting: Pattern,
    pub(super) extent: Extent,
    pub(super) stroke: Stroke,
    pub(super) ink: LineInk,
    pub(super) hand: Hand,
    pub(super) edge: Edge,
    pub(super) frame: Frame,
}

/// The word of a style whose inks go from dark to light.
const NEGATIVE: &str = "negative";

/// The least and the most words of a style. With fewer it would hardly differ from the house style.
pub(super) const WORDS: std::ops::RangeInclusive<usize> = 2..=5;

impl Choices {
    pub(super) fn draw(rng: &mut Rng) -> Self {
        let mut choices = Self::draw_once(rng);
        while !WORDS.contains(&choices.words().len()) {
            choices = Self::draw_once(rng);
        }
        choices
    }

    fn draw_once(rng: &mut Rng) -> Self {
        let object = Pattern::draw(rng);
        let drawn = Self {
            scheme: Scheme::draw(rng),
            negative: rng.chance(0.3),
            grade: Grade::draw(rng),
            paper: Paper::draw(rng),
            object,
            setting: if rng.chance(0.3) { object } else { Pattern::draw(rng) },
            extent: weighted(rng, Extent::WEIGHTS),
            stroke: Stroke::draw(rng),
            ink: LineInk::draw(rng),
            hand: Hand::draw(rng),
            edge: Edge::draw(rng),
            frame: Frame::draw(rng),
        };
        drawn.reconciled().shortened()
    }

    /// The choices, with those changed that another one rules out.
    fn reconciled(mut self) -> Self {
        if self.has_inks() {
            self.grade = Grade::Natural;
        } else {
            self.negative = false;
        }
        if self.edge == Edge::Pixelated {
            (self.object, self.setting) = (coarsened(self.object), coarsened(self.setting));
            self.hand = Hand::Steady;
        }
        if self.object == self.setting && is_centred(self.object) {
            self.object = Pattern::Solid;
        }
        if matches!(self.setting, Pattern::Solid | Pattern::Hollow) {
            self.extent = Extent::Both;
        }
        if self.object == Pattern::Hollow && self.stroke == Stroke::Absent {
            self.stroke = Stroke::Medium;
        }
        if self.stroke == Stroke::Absent { self.without_lines() } else { self.with_lines() }
    }

    /// A halo holds together what no outline bounds.
    fn without_lines(mut self) -> Self {
        (self.ink, self.hand) = (LineInk::Dark, Hand::Steady);
        if has_cells(self.object) || has_lines(self.object) && has_lines(self.setting) {
            self.edge = Edge::Haloed;
        }
        self
    }

    /// Lines that are seen on their paper.
    fn with_lines(mut self) -> Self {
        if self.hand == Hand::Glowing {
            (self.paper, self.ink) = (Paper::Dark, LineInk::Own);
        }
        if self.hand == Hand::Glowing && self.object == Pattern::Hollow {
            self.object = Pattern::Solid;
        }
        let frayed = matches!(self.hand, Hand::Dry | Hand::Glowing);
        if frayed && self.stroke == Stroke::Fine || self.edge == Edge::Torn && self.stroke == Stroke::Bold {
            self.stroke = Stroke::Medium;
        }
        let bright = matches!(self.paper, Paper::Airy | Paper::Cream) || self.object == Pattern::Hollow;
        self.ink = match (self.ink, self.paper) {
            (LineInk::Dark, Paper::Dark) => LineInk::Light,
            (LineInk::Light, paper) if bright && paper != Paper::Dark => LineInk::Own,
            (ink, _) => ink,
        };
        self
    }

    /// Whether tones alone choose the setting's colours.
    pub(super) fn has_inks(&self) -> bool {
        use Scheme::{Accented, Cameo, Duotone, Monochrome, Quadtone, Tritone};
        matches!(self.scheme, Accented | Cameo | Duotone | Monochrome | Quadtone | Tritone)
    }

    /// The choices, with the least conspicuous ones undone until the rest can be said in [`WORDS`].
    fn shortened(mut self) -> Self {
        let undo: [fn(&mut Self); 6] = [
            |choices| choices.grade = Grade::Natural,
            |choices| choices.frame = Frame::Open,
            |choices| choices.negative = false,
            |choices| (choices.setting, choices.extent) = (Pattern::Solid, Extent::Both),
            |choices| choices.edge = Edge::Crisp,
            |choices| (choices.ink, choices.hand) = (LineInk::Own, Hand::Steady),
        ];
        for step in undo {
            if self.words().len() <= *WORDS.end() {
                break;
            }
            step(&mut self);
        }
        self
    }

    /// The words of the style: palette, object, setting, outlines, edges, paper and frame, in this order.
    pub(super) fn words(&self) -> Vec<&'static str> {
        let fills = match (self.object, self.setting) {
            (Pattern::Solid, Pattern::Solid) => ["", ""],
            (object, setting) if object == setting => [object.word(), ""],
            (object, Pattern::Solid) => [object.word(), ""],
            (object, setting) => [object.word(), setting.word()],
        };
        let negative = if self.negative { NEGATIVE } else { "" };
        let line = [self.stroke.word(), self.ink.word(), self.hand.word()];
        let all = [self.scheme.word(), negative, self.grade.word(), fills[0], fills[1]]
            .into_iter()
            .chain(line)
            .chain([self.edge.word(), self.paper.word(), self.frame.word()]);
        all.filter(|word| !word.is_empty()).collect()
    }
}

/// Whether the pattern turns around the object's middle, which hides an object that has it too.
fn is_centred(pattern: Pattern) -> bool {
    matches!(pattern, Pattern::Ringed | Pattern::Radiant)
}

/// Whether the pattern breaks up the edges of what it fills.
pub(super) fn has_cells(pattern: Pattern) -> bool {
    matches!(pattern, Pattern::Stippled | Pattern::Cracked | Pattern::Tiled | Pattern::Bricked)
}

/// Whether the pattern is made of separate lines or dots.
fn has_lines(pattern: Pattern) -> bool {
    use Pattern::{Crosshatched, Dotted, Hatched, Scribbled, Striped, Wavy};
    matches!(pattern, Crosshatched | Dotted | Hatched | Scribbled | Striped | Wavy)
}

/// A pattern that big squares can show.
fn coarsened(pattern: Pattern) -> Pattern {
    match pattern {
        Pattern::Solid | Pattern::Hollow | Pattern::Graded | Pattern::Grainy | Pattern::Washed | Pattern::Ringed => {
            pattern
        }
        Pattern::Striped | Pattern::Hatched | Pattern::Crosshatched | Pattern::Radiant => Pattern::Striped,
        Pattern::Checked | Pattern::Tiled | Pattern::Bricked | Pattern::Dotted => Pattern::Checked,
        _ => Pattern::Solid,
    }
}

/// Every word that a style can have, by choice.
pub(super) fn vocabulary() -> Vec<&'static str> {
    let lists = [
        Scheme::WORDS,
        &[NEGATIVE],
        Grade::WORDS,
        Pattern::WORDS,
        Stroke::WORDS,
        LineInk::WORDS,
        Hand::WORDS,
        Edge::WORDS,
        Paper::WORDS,
        Frame::WORDS,
    ];
    lists.concat().into_iter().filter(|word| !word.is_empty()).collect()
}
