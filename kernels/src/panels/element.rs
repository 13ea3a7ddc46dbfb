//! What weights and activations are multiplied as: f32, or bf16 with sums in f32.

use half::bf16;

use super::vectors::{
    convert_bf16, detects_bf16_instructions, detects_wide_vectors, tile_bf16, tile_f32, turn, turn_pairs,
};
use super::{PANEL, PANELS, PIXELS};

/// Sums of a tile, pixel by pixel.
pub(super) type Tile = [[[f32; PANEL]; PANELS]; PIXELS];

/// Where a tile's pixels are found: `row · pitch + tap + channel` from the first on.
#[derive(Clone, Copy)]
#[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "for the inner loops of x86-64 alone"))]
pub struct Walk<'a> {
    /// Elements from one pixel to the next.
    pub pitch: usize,
    /// Elements from a pixel to the one under each tap.
    pub taps: &'a [usize],
    /// Channels, a multiple of [`Element::GROUP`].
    pub channels: usize,
    /// Whether the sums go on from what the tile holds.
    pub add: bool,
}

/// A number type of weights.
pub trait Element: Copy + Default + Send + Sync + std::fmt::Debug + 'static {
    /// Neighbouring channels that one instruction multiplies and adds.
    const GROUP: usize;

    /// Whether this CPU has the instructions that fields of this type need. It does not look at
    /// [`use_portable_kernels`](crate::processor::use_portable_kernels): a layer keeps the kind it was made with.
    fn is_supported() -> bool;

    fn from_f32(value: f32) -> Self;

    /// Number `place` of a group of [`GROUP`](Self::GROUP).
    fn pick(group: &[Self], place: usize) -> f32;

    /// Converts sixteen numbers.
    fn convert(values: &[f32; 16], into: &mut [Self; 16]);

    /// Turns `[channels / GROUP, outputs, GROUP]` into `[outputs / GROUP, channels, GROUP]`, 32 of each.
    fn turn(square: &[[Self; PANEL]; PANEL], turned: &mut [[Self; PANEL]; PANEL]);

    /// `tile[pixel][panel][output] = Σ x · panel`, or `+=`, for the first `N` pixels and `P` panels.
    ///
    /// # Safety
    /// The processor has the instructions; `x` is valid for every element that `walk` reaches with `N` pixels, and
    /// every panel, aligned to 64 bytes, for `taps · channels · PANEL` elements.
    #[expect(unsafe_code, reason = "vector instructions on pointers whose ranges the caller has checked")]
    unsafe fn tile<const N: usize, const P: usize>(
        x: *const Self,
        walk: Walk<'_>,
        panels: [*const Self; P],
        tile: &mut Tile,
    );
}

/// [`Element::tile`] for up to [`PIXELS`] pixels.
///
/// # Safety
/// As there.
#[expect(unsafe_code, reason = "vector instructions on pointers whose ranges the caller has checked")]
#[inline(always)]
pub(super) unsafe fn tile<E: Element, const P: usize>(
    pixels: usize,
    x: *const E,
    walk: Walk<'_>,
    panels: [*const E; P],
    tile: &mut Tile,
) {
    // SAFETY: as promised by the caller.
    unsafe {
        match pixels {
            1 => E::tile::<1, P>(x, walk, panels, tile),
            2 => E::tile::<2, P>(x, walk, panels, tile),
            3 => E::tile::<3, P>(x, walk, panels, tile),
            4 => E::tile::<4, P>(x, walk, panels, tile),
            5 => E::tile::<5, P>(x, walk, panels, tile),
            _ => E::tile::<PIXELS, P>(x, walk, panels, tile),
        }
    }
}

impl Element for f32 {
    const GROUP: usize = 1;

    fn is_supported() -> bool {
        detects_wide_vectors()
    }

    fn from_f32(value: f32) -> Self {
        value
    }

    #[inline(always)]
    fn pick(group: &[Self], _: usize) -> f32 {
        group[0]
    }

    fn convert(values: &[f32; 16], into: &mut [Self; 16]) {
        *into = *values;
    }

    #[expect(unsafe_code, reason = "vector instructions, where there are any")]
    fn turn(square: &[[Self; PANEL]; PANEL], turned: &mut [[Self; PANEL]; PANEL]) {
        // SAFETY: panels turn their squares, and `Packed::new` has asserted that these instructions exist.
        unsafe { turn(square, turned) }
    }

    #[expect(unsafe_code, reason = "vector instructions on pointers whose ranges the caller has checked")]
    #[inline(always)]
    unsafe fn tile<const N: usize, const P: usize>(
        x: *const Self,
        walk: Walk<'_>,
        panels: [*const Self; P],
        tile: &mut Tile,
    ) {
        // SAFETY: as promised by the caller.
        unsafe { tile_f32::<N, P>(x, walk, panels, tile) }
    }
}

impl Element for bf16 {
    const GROUP: usize = 2;

    fn is_supported() -> bool {
        detects_bf16_instructions()
    }

    fn from_f32(value: f32) -> Self {
        bf16::from_f32(value)
    }

    /// From the whole pair: to read one of them would be to read across the lines of the cache.
    #[inline(always)]
    fn pick(group: &[Self], place: usize) -> f32 {
        let pair = u32::from(group[0].to_bits()) | u32::from(group[1].to_bits()) << 16;
        f32::from_bits(pair << (16 - 16 * place) & 0xffff_0000)
    }

    #[expect(unsafe_code, reason = "the conversion instruction, where there is one")]
    fn convert(values: &[f32; 16], into: &mut [Self; 16]) {
        // SAFETY: fields convert, and their constructors have asserted that these instructions exist.
        unsafe { convert_bf16(values, into) }
    }

    #[expect(unsafe_code, reason = "vector instructions, where there are any")]
    fn turn(square: &[[Self; PANEL]; PANEL], turned: &mut [[Self; PANEL]; PANEL]) {
        // SAFETY: panels turn their squares, and `Packed::new` has asserted that these instructions exist.
        unsafe { turn_pairs(square, turned) }
    }

    #[expect(unsafe_code, reason = "vector instructions on pointers whose ranges the caller has checked")]
    #[inline(always)]
    unsafe fn tile<const N: usize, const P: usize>(
        x: *const Self,
        walk: Walk<'_>,
        panels: [*const Self; P],
        tile: &mut Tile,
    ) {
        // SAFETY: as promised by the caller.
        unsafe { tile_bf16::<N, P>(x, walk, panels, tile) }
    }
}
