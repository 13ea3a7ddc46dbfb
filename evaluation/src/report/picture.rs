//! Pictures inside a page.

use std::io::Cursor;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use image::{ImageFormat, RgbImage};
use maud::{Markup, Render, html};

use crate::error::{Error, Result};

/// Up to this side, pixels are shown as squares and not smeared.
const PIXEL_ART_SIDE: u32 = 128;

/// A picture as PNG in a data URI, with the words that replace it for who cannot see it.
pub(super) struct Picture {
    uri: String,
    alt: String,
    width: u32,
    height: u32,
}

impl Picture {
    /// Encodes a picture.
    pub(super) fn new(picture: &RgbImage, alt: impl Into<String>) -> Result<Self> {
        let alt = alt.into();
        let mut png = Cursor::new(Vec::new());
        if let Err(source) = picture.write_to(&mut png, ImageFormat::Png) {
            return Err(Error::EncodePicture { alt, source });
        }
        let uri = format!("data:image/png;base64,{}", STANDARD.encode(png.into_inner()));
        let (width, height) = picture.dimensions();
        Ok(Self { uri, alt, width, height })
    }
}

impl Render for Picture {
    fn render(&self) -> Markup {
        let small = self.width.max(self.height) <= PIXEL_ART_SIDE;
        html! {
            img.pixels[small] src=(self.uri) alt=(self.alt) width=(self.width) height=(self.height)
                loading="lazy" decoding="async";
        }
    }
}

/// Pictures with words under them, in rows that come out even where their number allows it.
pub(super) fn grid(pictures: &[(Picture, &str)]) -> Markup {
    let even = [6, 5, 4].into_iter().find(|columns| pictures.len().is_multiple_of(*columns));
    html! {
        div.thumbnails style=(format!("--columns:{}", even.unwrap_or(6))) {
            @for (picture, words) in pictures {
                figure {
                    (picture)
                    @if !words.is_empty() { figcaption { (words) } }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_survives_the_way_into_a_page() {
        let picture = RgbImage::from_fn(5, 3, |x, y| image::Rgb([x as u8 * 40, y as u8 * 80, 7]));
        let shown = Picture::new(&picture, "a test").unwrap();
        let png = STANDARD.decode(shown.uri.strip_prefix("data:image/png;base64,").unwrap());
        let back = image::load_from_memory(&png.unwrap()).unwrap().to_rgb8();
        assert_eq!(back, picture);
    }

    #[test]
    fn descriptions_are_escaped() {
        let picture = RgbImage::new(1, 1);
        let shown = Picture::new(&picture, "\"><script>").unwrap().render().into_string();
        assert!(shown.contains("alt=\"&quot;&gt;&lt;script&gt;\""), "{shown}");
    }

    #[test]
    fn a_picture_without_pixels_is_an_error() {
        let error = Picture::new(&RgbImage::new(0, 0), "nothing");
        assert!(matches!(error, Err(Error::EncodePicture { .. })));
    }
}
