//! Images inside a page.

use std::io::Cursor;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use image::{ImageFormat, RgbImage};
use maud::{Markup, Render, html};

use crate::{Error, Result};

/// Largest side of images whose pixels are shown as sharp squares.
const PIXEL_ART_SIDE: u32 = 128;

/// An image as PNG in a data URI, with a description in words for people who cannot see it.
#[derive(Debug, Clone)]
pub struct EmbeddedImage {
    uri: String,
    alt: String,
    width: u32,
    height: u32,
}

impl EmbeddedImage {
    /// Encodes `image`; `alt` is its description.
    ///
    /// # Errors
    /// [`Error::EncodeImage`] for an image without pixels.
    pub fn new(image: &RgbImage, alt: impl Into<String>) -> Result<Self> {
        let alt = alt.into();
        let mut png = Cursor::new(Vec::new());
        if let Err(source) = image.write_to(&mut png, ImageFormat::Png) {
            return Err(Error::EncodeImage { alt, source });
        }
        let uri = format!("data:image/png;base64,{}", STANDARD.encode(png.into_inner()));
        let (width, height) = image.dimensions();
        Ok(Self { uri, alt, width, height })
    }
}

impl Render for EmbeddedImage {
    fn render(&self) -> Markup {
        let small = self.width.max(self.height) <= PIXEL_ART_SIDE;
        html! {
            img.pixels[small] src=(self.uri) alt=(self.alt) width=(self.width) height=(self.height)
                loading="lazy" decoding="async";
        }
    }
}

/// Images with captions, in rows of equal length if their count allows it.
#[must_use]
pub fn grid(images: &[(EmbeddedImage, &str)]) -> Markup {
    let even = [6, 5, 4].into_iter().find(|columns| images.len().is_multiple_of(*columns));
    html! {
        div.thumbnails style=(format!("--columns:{}", even.unwrap_or(6))) {
            @for (image, words) in images {
                figure {
                    (image)
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
    fn an_image_survives_the_way_into_a_page() {
        let image = RgbImage::from_fn(5, 3, |x, y| image::Rgb([x as u8 * 40, y as u8 * 80, 7]));
        let shown = EmbeddedImage::new(&image, "a test").unwrap();
        let png = STANDARD.decode(shown.uri.strip_prefix("data:image/png;base64,").unwrap());
        let back = image::load_from_memory(&png.unwrap()).unwrap().to_rgb8();
        assert_eq!(back, image);
    }

    #[test]
    fn descriptions_are_escaped() {
        let image = RgbImage::new(1, 1);
        let shown = EmbeddedImage::new(&image, "\"><script>").unwrap().render().into_string();
        assert!(shown.contains("alt=\"&quot;&gt;&lt;script&gt;\""), "{shown}");
    }

    #[test]
    fn an_image_without_pixels_is_an_error() {
        let error = EmbeddedImage::new(&RgbImage::new(0, 0), "nothing");
        assert!(matches!(error, Err(Error::EncodeImage { .. })));
    }
}
