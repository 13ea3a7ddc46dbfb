//! Pillow's resize, bit for bit: antialiased, horizontally and then vertically, rounded to eight bits after each pass.
//!
//! CLIP was trained on images resized by Pillow, and scores change with the resize filter, so the arithmetic must be
//! the same: fixed-point weights with 22 fractional bits, rounded half away from zero, normalised for each output
//! pixel.

use image::RgbImage;

/// Pillow's filters with Pillow's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Filter {
    Nearest = 0,
    Lanczos = 1,
    Bilinear = 2,
    Bicubic = 3,
    Box = 4,
    Hamming = 5,
}

/// Fractional bits of a fixed-point weight: 32, minus 8 for the level and 2 for overshoot.
const FRACTION_BITS: u32 = 32 - 8 - 2;

impl Filter {
    /// The filter with this number.
    pub(crate) fn numbered(number: u8) -> Option<Self> {
        use Filter::{Bicubic, Bilinear, Box, Hamming, Lanczos, Nearest};
        [Nearest, Lanczos, Bilinear, Bicubic, Box, Hamming].into_iter().find(|filter| *filter as u8 == number)
    }

    /// Half the width of the filter, in input pixels at scale 1.
    fn support(self) -> f64 {
        match self {
            Self::Nearest => 0.0,
            Self::Box => 0.5,
            Self::Bilinear | Self::Hamming => 1.0,
            Self::Bicubic => 2.0,
            Self::Lanczos => 3.0,
        }
    }

    /// The weight at distance `x` from the centre.
    fn weight(self, x: f64) -> f64 {
        match self {
            Self::Nearest => 1.0,
            Self::Box if -0.5 < x && x <= 0.5 => 1.0,
            Self::Bilinear => (1.0 - x.abs()).max(0.0),
            Self::Bicubic => bicubic(x.abs()),
            Self::Hamming if x.abs() < 1.0 => sinc(x) * (0.54 + 0.46 * (std::f64::consts::PI * x).cos()),
            Self::Lanczos if (-3.0..3.0).contains(&x) => sinc(x) * sinc(x / 3.0),
            _ => 0.0,
        }
    }
}

/// Keys' cubic with a = -0.5.
fn bicubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    match x {
        ..1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
        1.0..2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
        _ => 0.0,
    }
}

fn sinc(x: f64) -> f64 {
    let x = x * std::f64::consts::PI;
    if x == 0.0 { 1.0 } else { x.sin() / x }
}

/// The input pixels of one output pixel, with their weights.
struct Taps {
    first: usize,
    weights: Vec<i32>,
}

/// Resizes to `width` x `height`; neither side of either size is 0.
pub(crate) fn resize(image: &RgbImage, (width, height): (u32, u32), filter: Filter) -> RgbImage {
    let across = taps(image.width(), width, filter);
    let narrowed = RgbImage::from_fn(width, image.height(), |x, y| {
        weighted(&across[x as usize], |source| image.get_pixel(source, y))
    });
    let down = taps(image.height(), height, filter);
    RgbImage::from_fn(width, height, |x, y| weighted(&down[y as usize], |source| narrowed.get_pixel(x, source)))
}

fn weighted<'a>(taps: &Taps, pixel: impl Fn(u32) -> &'a image::Rgb<u8>) -> image::Rgb<u8> {
    let mut sums = [1_i32 << (FRACTION_BITS - 1); 3];
    for (offset, weight) in taps.weights.iter().enumerate() {
        let levels = pixel((taps.first + offset) as u32).0;
        for (sum, level) in sums.iter_mut().zip(levels) {
            *sum += i32::from(level) * weight;
        }
    }
    image::Rgb(sums.map(|sum| (sum >> FRACTION_BITS).clamp(0, 255) as u8))
}

/// The taps of every output pixel along one side.
fn taps(from: u32, to: u32, filter: Filter) -> Vec<Taps> {
    let scale = f64::from(from) / f64::from(to);
    (0..to).map(|index| taps_around((f64::from(index) + 0.5) * scale, scale, from, filter)).collect()
}

fn taps_around(centre: f64, scale: f64, from: u32, filter: Filter) -> Taps {
    if filter == Filter::Nearest {
        return Taps { first: centre as usize, weights: vec![1 << FRACTION_BITS] };
    }
    // When shrinking, the filter widens with the scale: that is the antialiasing.
    let stretch = scale.max(1.0);
    let reach = filter.support() * stretch;
    let first = (centre - reach + 0.5).max(0.0) as usize;
    let end = ((centre + reach + 0.5) as usize).min(from as usize);
    let weights: Vec<f64> = (first..end).map(|index| filter.weight((index as f64 - centre + 0.5) / stretch)).collect();
    let total: f64 = weights.iter().sum();
    Taps { first, weights: weights.iter().map(|weight| fixed_point(weight / total)).collect() }
}

fn fixed_point(weight: f64) -> i32 {
    (weight * f64::from(1_u32 << FRACTION_BITS)).round() as i32
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Filter; 6] =
        [Filter::Nearest, Filter::Lanczos, Filter::Bilinear, Filter::Bicubic, Filter::Box, Filter::Hamming];

    fn ramp(width: u32, height: u32) -> RgbImage {
        RgbImage::from_fn(width, height, |x, y| image::Rgb([(x * 9) as u8, (y * 7) as u8, (x * y) as u8]))
    }

    /// The sum of each byte times its position, from 1 on.
    fn checksum(image: &RgbImage) -> u64 {
        (1..).zip(image.as_raw()).map(|(position, level)| position * u64::from(*level)).sum::<u64>() % (1 << 32)
    }

    /// From Pillow 13.0: `Image.fromarray(a).resize(size, number)` for
    /// `y, x = mgrid[0:23, 0:37]`, `a = stack([x*37, y*53, x*y*11]) % 256`, smaller, larger and
    /// narrower in one direction.
    #[test]
    fn golden_checksums_of_pillow_agree_for_every_filter() {
        let image =
            RgbImage::from_fn(37, 23, |x, y| image::Rgb([x * 37, y * 53, x * y * 11].map(|level| (level % 256) as u8)));
        let expected = [
            [6_612_288, 1_262_993_709, 15_191_596],
            [6_329_169, 1_299_250_501, 18_615_326],
            [6_336_786, 1_296_850_074, 18_521_661],
            [6_325_707, 1_297_409_988, 18_586_893],
            [6_510_309, 1_262_993_709, 18_392_834],
            [6_360_852, 1_294_090_732, 18_133_166],
        ];
        for (filter, expected) in ALL.into_iter().zip(expected) {
            let found = [(12, 9), (50, 31), (37, 5)].map(|size| checksum(&resize(&image, size, filter)));
            assert_eq!(found, expected, "{filter:?}");
        }
    }

    #[test]
    fn one_colour_stays_that_colour() {
        let image = RgbImage::from_pixel(13, 7, image::Rgb([0, 100, 255]));
        for filter in ALL {
            let resized = resize(&image, (5, 9), filter);
            assert!(resized.pixels().all(|pixel| pixel.0 == [0, 100, 255]), "{filter:?}");
        }
    }

    #[test]
    fn the_same_size_changes_nothing() {
        let image = ramp(11, 6);
        for filter in ALL {
            assert_eq!(resize(&image, (11, 6), filter), image, "{filter:?}");
        }
    }

    #[test]
    fn a_box_to_half_the_size_averages_four_pixels() {
        let image = RgbImage::from_fn(2, 2, |x, y| image::Rgb([(x * 100 + y * 20) as u8; 3]));
        // Across: (0, 100) to 50, (20, 120) to 70; down: 60.
        assert_eq!(resize(&image, (1, 1), Filter::Box).get_pixel(0, 0).0, [60; 3]);
    }

    #[test]
    fn mirrored_images_give_mirrored_results() {
        let image = ramp(16, 9);
        let mirror = image::imageops::flip_horizontal;
        for filter in [Filter::Bicubic, Filter::Lanczos, Filter::Bilinear] {
            let there = mirror(&resize(&image, (7, 5), filter));
            assert_eq!(resize(&mirror(&image), (7, 5), filter), there, "{filter:?}");
        }
    }

    #[test]
    fn every_filter_is_found_by_its_number() {
        for filter in ALL {
            assert_eq!(Filter::numbered(filter as u8), Some(filter));
        }
        assert_eq!(Filter::numbered(6), None);
    }
}
