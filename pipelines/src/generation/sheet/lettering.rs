//! Letters for sheets: Noto Sans Mono, rendered in advance in shades of grey.

use image::{Rgb, RgbImage};
use noto_sans_mono_bitmap::{FontWeight, RasterHeight, get_raster, get_raster_width};

/// Space between lines, in pixels.
const LEADING: u32 = 4;

/// The two letter sizes of a sheet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Font {
    Title,
    Label,
}

impl Font {
    fn cut(self) -> (FontWeight, RasterHeight) {
        match self {
            Self::Title => (FontWeight::Bold, RasterHeight::Size24),
            Self::Label => (FontWeight::Regular, RasterHeight::Size16),
        }
    }

    fn letter_width(self) -> u32 {
        let (weight, size) = self.cut();
        get_raster_width(weight, size) as u32
    }

    /// Height of `lines` lines.
    pub(super) fn height(self, lines: usize) -> u32 {
        let (_, size) = self.cut();
        (size.val() as u32 + LEADING) * lines as u32
    }

    /// Width of a line of text.
    pub(super) fn width(self, text: &str) -> u32 {
        self.letter_width() * text.chars().count() as u32
    }

    /// `text` in at most `most` lines of at most `width` pixels, broken between words if possible; a text that does not
    /// fit ends in dots.
    pub(super) fn wrapped(self, text: &str, width: u32, most: usize) -> Vec<String> {
        let room = ((width / self.letter_width()) as usize).max(4);
        let mut lines: Vec<String> = Vec::new();
        for word in text.split_whitespace().flat_map(|word| pieces(word, room)) {
            match lines.last_mut() {
                Some(line) if line.chars().count() + 1 + word.chars().count() <= room => {
                    line.push(' ');
                    line.push_str(&word);
                }
                _ => lines.push(word),
            }
        }
        if lines.len() > most {
            lines.truncate(most);
            if let Some(line) = lines.last_mut() {
                *line = line.chars().take(room - 3).chain("...".chars()).collect();
            }
        }
        lines
    }

    /// Draws one line with its top left corner at `place`; pixels beyond the page are left out.
    pub(super) fn draw(self, page: &mut RgbImage, text: &str, (left, top): (u32, u32), ink: Rgb<u8>) {
        let (weight, size) = self.cut();
        for (index, letter) in text.chars().enumerate() {
            let glyph = get_raster(letter, weight, size).or_else(|| get_raster('?', weight, size));
            let left = left + index as u32 * self.letter_width();
            for (y, row) in glyph.iter().flat_map(|glyph| glyph.rows().enumerate()) {
                for (x, shade) in row.iter().enumerate() {
                    blend(page, (left + x as u32, top + y as u32), ink, *shade);
                }
            }
        }
    }

    /// Draws lines below one another, each centred in `width` pixels.
    pub(super) fn draw_centred(
        self,
        page: &mut RgbImage,
        lines: &[String],
        (left, top): (u32, u32),
        width: u32,
        ink: Rgb<u8>,
    ) {
        for (index, line) in lines.iter().enumerate() {
            let indent = width.saturating_sub(self.width(line)) / 2;
            self.draw(page, line, (left + indent, top + self.height(index)), ink);
        }
    }
}

/// A word, cut into pieces if it is longer than a line.
fn pieces(word: &str, room: usize) -> Vec<String> {
    let letters: Vec<char> = word.chars().collect();
    letters.chunks(room).map(|piece| piece.iter().collect()).collect()
}

/// Blends `ink` over a pixel; a `shade` of 255 is opaque.
fn blend(page: &mut RgbImage, (x, y): (u32, u32), ink: Rgb<u8>, shade: u8) {
    let Some(pixel) = page.get_pixel_mut_checked(x, y) else { return };
    for (channel, ink) in pixel.0.iter_mut().zip(ink.0) {
        let (below, above, shade) = (u32::from(*channel), u32::from(ink), u32::from(shade));
        *channel = ((below * (255 - shade) + above * shade + 127) / 255) as u8;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_break_between_words_and_stay_in_their_width() {
        let width = Font::Label.width("a painting of");
        let lines = Font::Label.wrapped("a painting of a red teapot", width, 9);
        assert_eq!(lines, ["a painting of", "a red teapot"]);
    }

    #[test]
    fn a_word_longer_than_the_line_is_cut() {
        let lines = Font::Label.wrapped("abcdefghij", Font::Label.width("abcdef"), 9);
        assert_eq!(lines, ["abcdef", "ghij"]);
    }

    #[test]
    fn what_does_not_fit_ends_in_dots() {
        let lines = Font::Label.wrapped("one two three four", Font::Label.width("one two"), 2);
        assert_eq!(lines, ["one two", "thre..."]);
    }

    #[test]
    fn letters_beyond_the_page_are_left_out() {
        let mut page = RgbImage::from_pixel(20, 20, Rgb([255; 3]));
        Font::Title.draw(&mut page, "WWW 茶", (4, 4), Rgb([0; 3]));
        assert!(page.pixels().any(|pixel| pixel.0 == [0; 3]));
    }
}
