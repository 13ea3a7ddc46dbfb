//! The element types of packed products: f32, or bf16 with sums in f32.

use half::bf16;

use super::vectors::{
    convert_bf16, detects_bf16_instructions, detects_wide_vectors, tile_bf16, tile_f32, transpose, transpose_pairs,
};
use super::{PANEL, PANELS, PIXELS};

/// Sums of a tile, by pixel and panel.
pub(super) type Tile = [[[f32; PANEL]; PANELS]; PIXELS];

/// Positions of a tile's elements: `pixel · pitch + tap + channel` elements after the first.
#[derive(Clone, Copy)]
#[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "for the inner loops of x86-64 alone"))]
pub struct Walk<'a> {
    /// Elements from one pixel to the next.
    pub pitch: usize,
    /// Offset of each tap, in elements.
    pub taps: &'a [usize],
    /// Number of channels, a multiple of [`Element::GROUP`].
    pub channels: usize,
    /// Whether the sums are added to the tile's old values.
    pub add: bool,
}

/// An element type of weights.
pub trait Element: Copy + Default + Send + Sync + std::fmt::Debug + 'static {
    /// Adjacent channels that one instruction multiplies and adds.
    const GROUP: usize;

    /// Whether this CPU has the instructions for fields of this type. It ignores
    /// [`use_portable_kernels`](crate::cpu::use_portable_kernels), because an existing layer keeps its kind.
    fn is_supported() -> bool;

    fn from_f32(value: f32) -> Self;

    /// Element `place` of a group of [`GROUP`](Self::GROUP) elements.
    fn pick(group: &[Self], place: usize) -> f32;

    /// Converts sixteen values from f32.
    fn convert(values: &[f32; 16], into: &mut [Self; 16]);

    /// Transposes `[channels / GROUP, outputs, GROUP]` into `[outputs / GROUP, channels, GROUP]`, for 32 channels and
    /// 32 outputs.
    fn transpose(square: &[[Self; PANEL]; PANEL], transposed: &mut [[Self; PANEL]; PANEL]);

    /// `tile[pixel][panel][output] = Σ x · panel`, or `+=`, for the first `N` pixels and `P` panels.
    ///
    /// # Safety
    /// The CPU has the instructions; `x` is valid for every element that `walk` reaches with `N` pixels, and
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
/// As for [`Element::tile`].
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
    fn transpose(square: &[[Self; PANEL]; PANEL], transposed: &mut [[Self; PANEL]; PANEL]) {
        // SAFETY: panels transpose their squares, and `Packed::new` has asserted that these instructions exist.
        unsafe { transpose(square, transposed) }
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

    /// Reads the whole pair, because loads of single elements would cross cache lines.
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
    fn transpose(square: &[[Self; PANEL]; PANEL], transposed: &mut [[Self; PANEL]; PANEL]) {
        // SAFETY: panels transpose their squares, and `Packed::new` has asserted that these instructions exist.
        unsafe { transpose_pairs(square, transposed) }
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
