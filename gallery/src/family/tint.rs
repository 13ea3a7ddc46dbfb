//! Colours by lightness and chroma: Oklab (Ottosson, 2020).

use crate::palette::Rgb;

/// A colour in Oklab. Distances of 0.02 are just visible, 0.2 is the step between neighbouring colours of the world.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Tint {
    /// 0 (black) to 1 (white).
    pub(super) lightness: f32,
    a: f32,
    b: f32,
}

impl Tint {
    /// The colour of a lightness, a chroma (0 grey, about 0.25 at most) and a hue in turns (0 to 1).
    pub(super) fn new(lightness: f32, chroma: f32, hue: f32) -> Self {
        let angle = hue * std::f32::consts::TAU;
        Self { lightness, a: chroma * libm::cosf(angle), b: chroma * libm::sinf(angle) }
    }

    pub(super) fn of(colour: Rgb) -> Self {
        let [red, green, blue] = colour.0.map(|byte| linear(f32::from(byte) / 255.0));
        let long = libm::cbrtf(0.412_221_46 * red + 0.536_332_55 * green + 0.051_445_995 * blue);
        let middle = libm::cbrtf(0.211_903_5 * red + 0.680_699_5 * green + 0.107_396_96 * blue);
        let short = libm::cbrtf(0.088_302_46 * red + 0.281_718_85 * green + 0.629_978_7 * blue);
        Self {
            lightness: 0.210_454_26 * long + 0.793_617_8 * middle - 0.004_072_047 * short,
            a: 1.977_998_5 * long - 2.428_592_2 * middle + 0.450_593_7 * short,
            b: 0.025_904_037 * long + 0.782_771_77 * middle - 0.808_675_77 * short,
        }
    }

    /// The nearest 8-bit colour of the same lightness and hue.
    pub(super) fn rgb(self) -> Rgb {
        let lightness = self.lightness.clamp(0.0, 1.0);
        let with = |share: f32| Self { lightness, a: self.a * share, b: self.b * share }.linear_rgb();
        let fits = |colour: [f32; 3]| colour.iter().all(|channel| (-0.002..1.002).contains(channel));
        let mut share = 1.0;
        for _ in 0..12 {
            if fits(with(share)) {
                break;
            }
            share *= 0.88;
        }
        Rgb(with(share).map(|channel| (encoded(channel.clamp(0.0, 1.0)) * 255.0 + 0.5) as u8))
    }

    fn linear_rgb(self) -> [f32; 3] {
        let cube = |value: f32| value * value * value;
        let long = cube(self.lightness + 0.396_337_78 * self.a + 0.215_803_76 * self.b);
        let middle = cube(self.lightness - 0.105_561_346 * self.a - 0.063_854_17 * self.b);
        let short = cube(self.lightness - 0.089_484_18 * self.a - 1.291_485_5 * self.b);
        [
            4.076_741_7 * long - 3.307_711_6 * middle + 0.230_969_94 * short,
            -1.268_438 * long + 2.609_757_4 * middle - 0.341_319_4 * short,
            -0.004_196_086_3 * long - 0.703_418_6 * middle + 1.707_614_7 * short,
        ]
    }

    /// The colour `share` (0 to 1) of the way to `other`.
    pub(super) fn mix(self, other: Self, share: f32) -> Self {
        let blend = |from: f32, to: f32| from + (to - from) * share;
        Self { lightness: blend(self.lightness, other.lightness), a: blend(self.a, other.a), b: blend(self.b, other.b) }
    }

    pub(super) fn with_lightness(self, lightness: f32) -> Self {
        Self { lightness: lightness.clamp(0.0, 1.0), ..self }
    }

    pub(super) fn lighter(self, amount: f32) -> Self {
        self.with_lightness(self.lightness + amount)
    }

    /// The colour with its chroma multiplied by `factor`.
    pub(super) fn saturated(self, factor: f32) -> Self {
        Self { a: self.a * factor, b: self.b * factor, ..self }
    }

    /// The colour moved by `a` towards magenta and by `b` towards yellow.
    pub(super) fn moved(self, a: f32, b: f32) -> Self {
        Self { a: self.a + a, b: self.b + b, ..self }
    }

    /// The colour with its hue turned by `turns`.
    pub(super) fn turned(self, turns: f32) -> Self {
        let angle = turns * std::f32::consts::TAU;
        let (sine, cosine) = (libm::sinf(angle), libm::cosf(angle));
        Self { a: self.a * cosine - self.b * sine, b: self.a * sine + self.b * cosine, ..self }
    }

    pub(super) fn distance(self, other: Self) -> f32 {
        libm::hypotf(self.lightness - other.lightness, libm::hypotf(self.a - other.a, self.b - other.b))
    }

    /// The colour, lightened or darkened until it is at least `least` away from `other`.
    pub(super) fn apart(self, other: Self, least: f32) -> Self {
        if self.distance(other) >= least {
            return self;
        }
        let across = libm::hypotf(self.a - other.a, self.b - other.b);
        let step = libm::sqrtf((least * least - across * across).max(0.0));
        let (above, below) = (other.lightness + step, other.lightness - step);
        let upwards = if self.lightness >= other.lightness { above <= 0.98 } else { below < 0.08 };
        self.with_lightness(if upwards { above } else { below })
    }
}

fn linear(value: f32) -> f32 {
    if value <= 0.040_45 { value / 12.92 } else { libm::powf((value + 0.055) / 1.055, 2.4) }
}

fn encoded(value: f32) -> f32 {
    if value <= 0.003_130_8 { 12.92 * value } else { 1.055 * libm::powf(value, 1.0 / 2.4) - 0.055 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_colour_reads_back() {
        for colour in [[0, 0, 0], [255, 255, 255], [222, 44, 46], [44, 84, 214], [40, 150, 66], [252, 216, 48]] {
            let back = Tint::of(Rgb(colour)).rgb();
            assert!(back.0.iter().zip(colour).all(|(&found, byte)| found.abs_diff(byte) <= 1), "{colour:?}, {back:?}");
        }
    }

    #[test]
    fn colours_are_pushed_apart_by_lightness_alone() {
        let (sky, body) = (Tint::new(0.7, 0.1, 0.6), Tint::new(0.72, 0.1, 0.6));
        let pushed = sky.apart(body, 0.2);
        assert!((pushed.distance(body) - 0.2).abs() < 1e-4);
        assert_eq!((pushed.a, pushed.b), (sky.a, sky.b));
        assert_eq!(sky.apart(Tint::new(0.2, 0.1, 0.6), 0.2), sky);
    }

    #[test]
    fn a_colour_beyond_the_screen_keeps_its_lightness() {
        let gaudy = Tint::new(0.8, 0.4, 0.75);
        assert!((Tint::of(gaudy.rgb()).lightness - 0.8).abs() < 0.01);
    }
}
