//! Colours: 8-bit sRGB triples and the tones of the house style.

use crate::vocabulary::Colour;

/// An 8-bit sRGB colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rgb(pub [u8; 3]);

impl Rgb {
    /// The colour from red, green and blue.
    pub const fn new(red: u8, green: u8, blue: u8) -> Self {
        Self([red, green, blue])
    }

    /// The colour `share` (0 to 1) of the way to `other`.
    pub fn mix(self, other: Self, share: f32) -> Self {
        let blend = |from: u8, to: u8| {
            let value = f32::from(from) + (f32::from(to) - f32::from(from)) * share;
            (value + 0.5).clamp(0.0, 255.0) as u8
        };
        Self(std::array::from_fn(|channel| blend(self.0[channel], other.0[channel])))
    }

    /// The perceived brightness, 0 (black) to 255 (white): Rec. 601 luma.
    pub fn luma(self) -> f32 {
        let [red, green, blue] = self.0.map(f32::from);
        0.299 * red + 0.587 * green + 0.114 * blue
    }

    /// The colour with its distance from grey multiplied by `factor`.
    pub(crate) fn saturated(self, factor: f32) -> Self {
        let grey = self.luma();
        Self(self.0.map(|channel| (grey + (f32::from(channel) - grey) * factor + 0.5).clamp(0.0, 255.0) as u8))
    }

    /// Both colours as inks printed over each other.
    pub(crate) fn over(self, under: Self) -> Self {
        Self(std::array::from_fn(|channel| (u32::from(self.0[channel]) * u32::from(under.0[channel]) / 255) as u8))
    }

    /// The colour with `amount` added to every channel.
    pub(crate) fn shifted(self, amount: f32) -> Self {
        Self(self.0.map(|channel| (f32::from(channel) + amount + 0.5).clamp(0.0, 255.0) as u8))
    }
}

pub(crate) const WHITE: Rgb = Rgb::new(255, 255, 255);
pub(crate) const BLACK: Rgb = Rgb::new(0, 0, 0);

/// The three tones in which the house style paints one colour.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tones {
    pub(crate) main: Rgb,
    pub(crate) dark: Rgb,
    pub(crate) light: Rgb,
}

impl Tones {
    pub(crate) fn of(colour: Colour) -> Self {
        let main = match colour {
            Colour::Red => Rgb::new(222, 44, 46),
            Colour::Orange => Rgb::new(248, 136, 26),
            Colour::Yellow => Rgb::new(252, 216, 48),
            Colour::Green => Rgb::new(40, 150, 66),
            Colour::Blue => Rgb::new(44, 84, 214),
            Colour::Purple => Rgb::new(136, 60, 182),
            Colour::Pink => Rgb::new(252, 150, 194),
            Colour::White => Rgb::new(252, 252, 250),
        };
        let dark = match colour {
            Colour::White => Rgb::new(184, 192, 206),
            Colour::Yellow => Rgb::new(214, 160, 20),
            _ => main.mix(BLACK, 0.36),
        };
        Self { main, dark, light: main.mix(WHITE, 0.42) }
    }
}
