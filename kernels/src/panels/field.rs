//! The left operand of a packed product: pixels with contiguous channels.

use std::borrow::Cow;
use std::ops::Range;

use rayon::prelude::*;

use super::Element;
use super::vectors::transpose;

/// Side of the squares in which maps are transposed: sixteen f32 are one cache line.
const SQUARE: usize = 16;

/// Pixels `[batch, height, width, channels]`, including margins of zeros.
#[derive(Debug)]
pub struct Field<'a, E: Clone> {
    pub(super) data: Cow<'a, [E]>,
    pub(super) batch: usize,
    pub(super) size: (usize, usize),
    /// Number of channels, a multiple of [`Element::GROUP`].
    pub(super) channels: usize,
}

impl<'a, E: Element> Field<'a, E> {
    /// Converts tokens `x: [batch · height · width, channels]` to pixels, with samples of `size` (height, width).
    ///
    /// # Panics
    /// On a CPU without the instructions for `E`.
    pub fn tokens(x: &[f32], channels: usize, size: (usize, usize)) -> Self {
        assert!(E::is_supported(), "fields need the instructions of their element type");
        let (rows, padded) = (x.len() / channels, channels.next_multiple_of(E::GROUP));
        let mut data = vec![E::default(); rows * padded];
        let pieces = data.par_chunks_mut(padded * 64).zip(x.par_chunks(channels * 64));
        pieces.for_each(|(into, from)| {
            for (into, from) in into.chunks_exact_mut(padded).zip(from.chunks_exact(channels)) {
                convert(from, &mut into[..channels]);
            }
        });
        Self { data: Cow::Owned(data), batch: rows / (size.0 * size.1).max(1), size, channels: padded }
    }

    /// Converts maps `x: [batch, channels, height, width]` to pixels in a frame of zeros.
    ///
    /// # Panics
    /// On a CPU without the instructions for `E`.
    pub fn planes(x: &[f32], channels: usize, (height, width): (usize, usize), frame: Frame) -> Self {
        assert!(E::is_supported(), "fields need the instructions of their element type");
        let (size, padded) = (frame.size, channels.next_multiple_of(E::GROUP));
        let batch = x.len() / (channels * height * width).max(1);
        let mut data = vec![E::default(); batch * size.0 * size.1 * padded];
        data.par_chunks_mut(size.1 * padded).enumerate().for_each(|(line, pixels)| {
            let (sample, row) = (line / size.0, line % size.0);
            if let Some(row) = frame.source_row(row, height) {
                let source = &x[sample * channels * height * width..][..channels * height * width];
                let line = Line { source, plane: height * width, start: row * width };
                let columns = frame.source_columns(width);
                let first = frame.origin.1 + (columns.start * frame.spread) as isize;
                line.transpose(channels, columns, &mut pixels[first as usize * padded..], frame.spread * padded);
            }
        });
        Self { data: Cow::Owned(data), batch, size, channels: padded }
    }
}

/// The position of a map in its field.
#[derive(Debug, Clone, Copy)]
pub struct Frame {
    /// Height and width of the field.
    pub size: (usize, usize),
    /// Position of the map's first pixel; pixels outside the field are left out.
    pub origin: (isize, isize),
    /// Distance in the field between adjacent pixels of the map.
    pub spread: usize,
}

impl Frame {
    /// The row of the map, which has `height` rows, that lies in row `row` of the field.
    fn source_row(&self, row: usize, height: usize) -> Option<usize> {
        let below = usize::try_from(row as isize - self.origin.0).ok()?;
        (below % self.spread == 0 && below / self.spread < height).then_some(below / self.spread)
    }

    /// The columns of the map, which has `width` columns, that lie in the field.
    fn source_columns(&self, width: usize) -> Range<usize> {
        let hidden = usize::try_from(-self.origin.1).unwrap_or(0).div_ceil(self.spread);
        let end = usize::try_from(self.size.1 as isize - self.origin.1).unwrap_or(0).div_ceil(self.spread).min(width);
        hidden.min(end)..end
    }
}

impl<'a> Field<'a, f32> {
    /// Borrows tokens `x: [batch · height · width, channels]` without a copy, with samples of `size` (height, width).
    pub fn borrowed(x: &'a [f32], channels: usize, size: (usize, usize)) -> Self {
        Self { data: Cow::Borrowed(x), batch: x.len() / (channels * size.0 * size.1).max(1), size, channels }
    }
}

/// One line of the map of every channel.
struct Line<'a> {
    source: &'a [f32],
    plane: usize,
    start: usize,
}

impl Line<'_> {
    /// Writes the line as pixels that begin `pitch` elements apart.
    fn transpose<E: Element>(&self, channels: usize, columns: Range<usize>, pixels: &mut [E], pitch: usize) {
        if columns.len() < SQUARE {
            return self.transpose_one_by_one(channels, columns, pixels, pitch);
        }
        self.transpose_in_squares(channels, columns, pixels, pitch);
    }

    /// For short lines, whose maps fit the cache in any order of reading.
    fn transpose_one_by_one<E: Element>(&self, channels: usize, columns: Range<usize>, pixels: &mut [E], pitch: usize) {
        for (pixel, column) in columns.enumerate() {
            let channels_of_pixel = self.source[self.start + column..].iter().step_by(self.plane);
            for (into, from) in pixels[pixel * pitch..][..channels].iter_mut().zip(channels_of_pixel) {
                *into = E::from_f32(*from);
            }
        }
    }

    /// In squares, because each cache line of a map is then read once, whatever the distance between maps.
    #[expect(unsafe_code, reason = "vector instructions, where there are any")]
    fn transpose_in_squares<E: Element>(&self, channels: usize, columns: Range<usize>, pixels: &mut [E], pitch: usize) {
        let (mut square, mut transposed) = ([[0.0f32; SQUARE]; SQUARE], [[0.0f32; SQUARE]; SQUARE]);
        for first in columns.clone().step_by(SQUARE) {
            let count = SQUARE.min(columns.end - first);
            for channel in (0..channels).step_by(SQUARE) {
                let depth = SQUARE.min(channels - channel);
                for (row, square) in square[..depth].iter_mut().enumerate() {
                    let from = (channel + row) * self.plane + self.start + first;
                    copy(&mut square[..count], &self.source[from..][..count]);
                }
                // SAFETY: `planes` has asserted that these instructions exist.
                unsafe { transpose(&square, &mut transposed) }
                let below = pixels[(first - columns.start) * pitch..].chunks_mut(pitch);
                for (pixel, values) in below.zip(&transposed[..count]) {
                    let mut converted = [E::default(); SQUARE];
                    E::convert(values, &mut converted);
                    copy(&mut pixel[channel..][..depth], &converted[..depth]);
                }
            }
        }
    }
}

/// Copies up to one line of a square; a whole line is copied without a call.
#[inline(always)]
pub(super) fn copy<E: Copy>(into: &mut [E], from: &[E]) {
    match (<&mut [E; SQUARE]>::try_from(&mut *into), <&[E; SQUARE]>::try_from(from)) {
        (Ok(into), Ok(from)) => *into = *from,
        _ => into.copy_from_slice(from),
    }
}

fn convert<E: Element>(from: &[f32], into: &mut [E]) {
    let ((from, from_rest), (into, into_rest)) = (from.as_chunks::<16>(), into.as_chunks_mut::<16>());
    for (from, into) in from.iter().zip(into) {
        E::convert(from, into);
    }
    for (from, into) in from_rest.iter().zip(into_rest) {
        *into = E::from_f32(*from);
    }
}
