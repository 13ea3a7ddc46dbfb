//! The inner loops in AVX-512 instructions, and the detection of these instructions.

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        __m256bh, __m256i, __m512, __m512bh, __m512i, _mm256_mask_storeu_epi16, _mm512_castpd_ps, _mm512_castps_pd,
        _mm512_castps_si512, _mm512_castsi512_ps, _mm512_cvtne2ps_pbh, _mm512_cvtneps_pbh, _mm512_dpbf16_ps,
        _mm512_fmadd_ps, _mm512_load_ps, _mm512_load_si512, _mm512_loadu_ps, _mm512_loadu_si512,
        _mm512_mask_storeu_epi32, _mm512_mask_storeu_ps, _mm512_maskz_loadu_epi32, _mm512_maskz_loadu_ps,
        _mm512_permutexvar_epi16, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps, _mm512_shuffle_f32x4,
        _mm512_shufflehi_epi16, _mm512_shufflelo_epi16, _mm512_storeu_epi32, _mm512_storeu_ps, _mm512_unpackhi_pd,
        _mm512_unpackhi_ps, _mm512_unpacklo_pd, _mm512_unpacklo_ps,
    };

    use half::bf16;

    use super::super::PANEL;
    use super::super::element::{Tile, Walk};
    use super::super::strip::{Rows, Style};

    /// Whether the CPU has vectors of sixteen f32 and can move vectors of 32 bf16.
    pub(crate) fn detects_wide_vectors() -> bool {
        is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw")
    }

    /// Whether the CPU also has instructions that multiply pairs of bf16.
    pub(crate) fn detects_bf16_instructions() -> bool {
        detects_wide_vectors() && is_x86_feature_detected!("avx512vl") && is_x86_feature_detected!("avx512bf16")
    }

    #[expect(unsafe_code, reason = "the conversion instruction")]
    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(in super::super) unsafe fn convert_bf16(values: &[f32; 16], into: &mut [bf16; 16]) {
        // SAFETY: sixteen f32 are loaded.
        let converted = unsafe { _mm512_cvtneps_pbh(_mm512_loadu_ps(values.as_ptr())) };
        // SAFETY: both are 32 bytes without invalid values.
        *into = unsafe { std::mem::transmute::<__m256bh, [bf16; 16]>(converted) };
    }

    /// Transposes a square whose side is a multiple of 16.
    #[expect(unsafe_code, reason = "vector loads and stores")]
    #[target_feature(enable = "avx512f")]
    pub(in super::super) unsafe fn transpose<const SIDE: usize>(
        square: &[[f32; SIDE]; SIDE],
        into: &mut [[f32; SIDE]; SIDE],
    ) {
        const { assert!(SIDE.is_multiple_of(16), "registers of sixteen elements") };
        for row in (0..SIDE).step_by(16) {
            for column in (0..SIDE).step_by(16) {
                // SAFETY: sixteen elements from a multiple of sixteen on are inside a row.
                let rows = std::array::from_fn(|i| unsafe { _mm512_loadu_ps(square[row + i].as_ptr().add(column)) });
                for (i, register) in transposed(rows).into_iter().enumerate() {
                    // SAFETY: as above.
                    unsafe { _mm512_storeu_ps(into[column + i].as_mut_ptr().add(row), register) }
                }
            }
        }
    }

    /// Transposes a 16 × 16 square: first pairs of elements, then pairs of pairs, then quarters of registers change
    /// places.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn transposed(rows: [__m512; 16]) -> [__m512; 16] {
        let mut quads = rows;
        for (rows, quads) in rows.as_chunks::<4>().0.iter().zip(quads.as_chunks_mut::<4>().0) {
            let low = [_mm512_unpacklo_ps(rows[0], rows[1]), _mm512_unpacklo_ps(rows[2], rows[3])];
            let high = [_mm512_unpackhi_ps(rows[0], rows[1]), _mm512_unpackhi_ps(rows[2], rows[3])];
            let [low, high] = [low, high].map(|[a, b]| [_mm512_castps_pd(a), _mm512_castps_pd(b)]);
            *quads = [
                _mm512_unpacklo_pd(low[0], low[1]),
                _mm512_unpackhi_pd(low[0], low[1]),
                _mm512_unpacklo_pd(high[0], high[1]),
                _mm512_unpackhi_pd(high[0], high[1]),
            ]
            .map(|pairs| _mm512_castpd_ps(pairs));
        }
        let mut columns = quads;
        for column in 0..4 {
            let into = quarters_transposed([0, 4, 8, 12].map(|first| quads[first + column]));
            into.into_iter().enumerate().for_each(|(quarter, register)| columns[column + 4 * quarter] = register);
        }
        columns
    }

    /// Transposes 32 channels, in pairs `[channels / 2, outputs, 2]`, by 32 outputs into pairs of outputs
    /// `[outputs / 2, channels, 2]`.
    #[expect(unsafe_code, reason = "vector loads and stores")]
    #[target_feature(enable = "avx512f,avx512bw")]
    pub(in super::super) unsafe fn transpose_pairs(square: &[[bf16; PANEL]; PANEL], into: &mut [[bf16; PANEL]; PANEL]) {
        /// Two channels of two outputs.
        type Quad = [bf16; 4];
        const SIDE: usize = PANEL / 2;
        let (square, into): (&[Quad], &mut [Quad]) =
            (square.as_flattened().as_chunks().0, into.as_flattened_mut().as_chunks_mut().0);
        for row in (0..SIDE).step_by(8) {
            for column in (0..SIDE).step_by(8) {
                let rows = std::array::from_fn(|i| {
                    let quads: &[Quad] = &square[(row + i) * SIDE + column..][..8];
                    // SAFETY: eight elements of eight bytes are loaded.
                    quads_transposed(unsafe { _mm512_loadu_ps(quads.as_ptr().cast()) })
                });
                for (i, register) in octets_transposed(rows).into_iter().enumerate() {
                    let quads: &mut [Quad] = &mut into[(column + i) * SIDE + row..][..8];
                    // SAFETY: eight elements of eight bytes are stored.
                    unsafe { _mm512_storeu_ps(quads.as_mut_ptr().cast(), register) }
                }
            }
        }
    }

    /// Swaps the second and the third of every four bf16.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn quads_transposed(quads: __m512) -> __m512 {
        const INNER: i32 = 0b11_01_10_00;
        let quads = _mm512_castps_si512(quads);
        _mm512_castsi512_ps(_mm512_shufflehi_epi16::<INNER>(_mm512_shufflelo_epi16::<INNER>(quads)))
    }

    /// Transposes eight rows of eight elements, each of two f32.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn octets_transposed(rows: [__m512; 8]) -> [__m512; 8] {
        let rows = rows.map(|row| _mm512_castps_pd(row));
        let rows = rows.as_chunks::<2>().0;
        let even = std::array::from_fn(|i| _mm512_castpd_ps(_mm512_unpacklo_pd(rows[i][0], rows[i][1])));
        let odd = std::array::from_fn(|i| _mm512_castpd_ps(_mm512_unpackhi_pd(rows[i][0], rows[i][1])));
        let (even, odd) = (quarters_transposed(even), quarters_transposed(odd));
        std::array::from_fn(|column| if column % 2 == 0 { even[column / 2] } else { odd[column / 2] })
    }

    /// Transposes four rows of four quarters of a register.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn quarters_transposed([a, b, c, d]: [__m512; 4]) -> [__m512; 4] {
        const EVEN: i32 = 0x88;
        const ODD: i32 = 0xdd;
        let even = [_mm512_shuffle_f32x4::<EVEN>(a, b), _mm512_shuffle_f32x4::<EVEN>(c, d)];
        let odd = [_mm512_shuffle_f32x4::<ODD>(a, b), _mm512_shuffle_f32x4::<ODD>(c, d)];
        [
            _mm512_shuffle_f32x4::<EVEN>(even[0], even[1]),
            _mm512_shuffle_f32x4::<EVEN>(odd[0], odd[1]),
            _mm512_shuffle_f32x4::<ODD>(even[0], even[1]),
            _mm512_shuffle_f32x4::<ODD>(odd[0], odd[1]),
        ]
    }

    /// Sums of a tile: two registers for each pixel and panel.
    type Sums<const N: usize, const P: usize> = [[[__m512; 2]; P]; N];

    #[expect(unsafe_code, reason = "vector instructions on pointers whose ranges the caller has checked")]
    #[target_feature(enable = "avx512f")]
    pub(in super::super) unsafe fn tile_f32<const N: usize, const P: usize>(
        x: *const f32,
        walk: Walk<'_>,
        panels: [*const f32; P],
        tile: &mut Tile,
    ) {
        let mut sums: Sums<N, P> = start(tile, walk.add);
        let mut depth = 0;
        for &tap in walk.taps {
            for channel in 0..walk.channels {
                // SAFETY: the caller promised all of `walk` and the whole panels.
                unsafe {
                    let weights = panels.map(|panel| {
                        let panel = panel.add(depth);
                        [_mm512_load_ps(panel), _mm512_load_ps(panel.add(PANEL / 2))]
                    });
                    for (pixel, sums) in sums.iter_mut().enumerate() {
                        let value = _mm512_set1_ps(*x.add(pixel * walk.pitch + tap + channel));
                        for (sums, weights) in sums.iter_mut().zip(weights) {
                            sums[0] = _mm512_fmadd_ps(value, weights[0], sums[0]);
                            sums[1] = _mm512_fmadd_ps(value, weights[1], sums[1]);
                        }
                    }
                }
                depth += PANEL;
            }
        }
        write(sums, tile);
    }

    #[expect(unsafe_code, reason = "vector instructions on pointers whose ranges the caller has checked")]
    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(in super::super) unsafe fn tile_bf16<const N: usize, const P: usize>(
        x: *const bf16,
        walk: Walk<'_>,
        panels: [*const bf16; P],
        tile: &mut Tile,
    ) {
        let mut sums: Sums<N, P> = start(tile, walk.add);
        let mut depth = 0;
        for &tap in walk.taps {
            for channel in (0..walk.channels).step_by(2) {
                // SAFETY: the caller promised all of `walk` and the whole panels; a pair of bf16 is read as one i32.
                unsafe {
                    let weights = panels.map(|panel| {
                        let panel = panel.add(depth);
                        [pairs(_mm512_load_si512(panel.cast())), pairs(_mm512_load_si512(panel.add(PANEL).cast()))]
                    });
                    for (pixel, sums) in sums.iter_mut().enumerate() {
                        let pair = x.add(pixel * walk.pitch + tap + channel).cast::<i32>().read_unaligned();
                        let pair = pairs(_mm512_set1_epi32(pair));
                        for (sums, weights) in sums.iter_mut().zip(weights) {
                            sums[0] = _mm512_dpbf16_ps(sums[0], weights[0], pair);
                            sums[1] = _mm512_dpbf16_ps(sums[1], weights[1], pair);
                        }
                    }
                }
                depth += 2 * PANEL;
            }
        }
        write(sums, tile);
    }

    /// `c = scale · a · b`, or `c += scale · a · b`: `N` rows, `V` registers of columns, the last one cut by `mask`.
    ///
    /// # Safety
    /// The CPU has the instructions; `a` is valid for `N` rows of `depth` and `b` for `depth` rows of the columns,
    /// each `pitch` apart, and `c` likewise for `N` rows.
    #[expect(unsafe_code, reason = "vector instructions on pointers whose ranges the caller has checked")]
    #[target_feature(enable = "avx512f")]
    pub(in super::super) unsafe fn strip<const N: usize, const V: usize>(
        a: Rows<*const f32>,
        b: Rows<*const f32>,
        c: Rows<*mut f32>,
        depth: usize,
        style: Style,
    ) {
        let masks = masks::<V>(style);
        let mut sums = [[_mm512_setzero_ps(); V]; N];
        for k in 0..depth {
            // SAFETY: the caller promised these rows; masked columns are not touched.
            unsafe {
                let row = b.start.add(k * b.pitch);
                let weights: [__m512; V] =
                    std::array::from_fn(|register| _mm512_maskz_loadu_ps(masks[register], row.add(16 * register)));
                for (n, sums) in sums.iter_mut().enumerate() {
                    let value = _mm512_set1_ps(*a.start.add(n * a.pitch + k));
                    for (sum, weight) in sums.iter_mut().zip(weights) {
                        *sum = _mm512_fmadd_ps(value, weight, *sum);
                    }
                }
            }
        }
        // SAFETY: as promised by the caller.
        unsafe { store(sums, c, style) }
    }

    /// The valid columns of each register.
    #[inline(always)]
    fn masks<const V: usize>(style: Style) -> [u16; V] {
        std::array::from_fn(|register| if register + 1 == V { style.mask } else { u16::MAX })
    }

    /// `c = scale · sums`, or `c += scale · sums`.
    #[expect(unsafe_code, reason = "vector stores")]
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn store<const N: usize, const V: usize>(sums: [[__m512; V]; N], c: Rows<*mut f32>, style: Style) {
        let (masks, scale) = (masks::<V>(style), _mm512_set1_ps(style.scale));
        for (n, sums) in sums.into_iter().enumerate() {
            for (register, sum) in sums.into_iter().enumerate() {
                // SAFETY: the caller promised the rows of `c`; masked columns are not touched.
                unsafe {
                    let at = c.start.add(n * c.pitch + 16 * register);
                    let before = match style.add {
                        true => _mm512_maskz_loadu_ps(masks[register], at),
                        false => _mm512_setzero_ps(),
                    };
                    _mm512_mask_storeu_ps(at, masks[register], _mm512_fmadd_ps(scale, sum, before));
                }
            }
        }
    }

    /// [`strip`] for pairs of bf16, with sums in f32: `depth`, the rows of `b` and their pitch count pairs.
    ///
    /// # Safety
    /// As for [`strip`].
    #[expect(unsafe_code, reason = "vector instructions on pointers whose ranges the caller has checked")]
    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(in super::super) unsafe fn strip_bf16<const N: usize, const V: usize>(
        a: Rows<*const [bf16; 2]>,
        b: Rows<*const [bf16; 2]>,
        c: Rows<*mut f32>,
        depth: usize,
        style: Style,
    ) {
        let masks = masks::<V>(style);
        let mut sums = [[_mm512_setzero_ps(); V]; N];
        for k in 0..depth {
            // SAFETY: the caller promised these rows; masked columns are not touched; a pair is read as one i32.
            unsafe {
                let row = b.start.add(k * b.pitch).cast::<i32>();
                let weights: [__m512bh; V] = std::array::from_fn(|register| {
                    pairs(_mm512_maskz_loadu_epi32(masks[register], row.add(16 * register)))
                });
                for (n, sums) in sums.iter_mut().enumerate() {
                    let value = a.start.add(n * a.pitch + k).cast::<i32>().read_unaligned();
                    let value = pairs(_mm512_set1_epi32(value));
                    for (sum, weight) in sums.iter_mut().zip(weights) {
                        *sum = _mm512_dpbf16_ps(*sum, value, weight);
                    }
                }
            }
        }
        // SAFETY: as promised by the caller.
        unsafe { store(sums, c, style) }
    }

    /// Rounds two rows of equal length to bf16 and interleaves them: `[top, bottom]` for every column.
    #[expect(unsafe_code, reason = "vector loads and stores")]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    pub(in super::super) unsafe fn pair_rows(top: &[f32], bottom: &[f32], into: &mut [[bf16; 2]]) {
        assert!(top.len() == into.len() && bottom.len() == into.len(), "rows of equal length");
        let order: [u16; 32] = std::array::from_fn(|place| (place / 2 + 16 * (place % 2)) as u16);
        // SAFETY: 64 bytes are loaded.
        let order = unsafe { _mm512_loadu_si512(order.as_ptr().cast()) };
        let whole = into.len() / 16 * 16;
        for first in (0..whole).step_by(16) {
            // SAFETY: sixteen columns from here on are inside the rows.
            unsafe {
                let [top, bottom] = [top, bottom].map(|row| _mm512_loadu_ps(row.as_ptr().add(first)));
                let pairs = _mm512_permutexvar_epi16(order, as_integers(_mm512_cvtne2ps_pbh(bottom, top)));
                _mm512_storeu_epi32(into.as_mut_ptr().add(first).cast(), pairs);
            }
        }
        let mask = (1 << (into.len() - whole)) - 1;
        // SAFETY: columns beyond the rows are masked out.
        unsafe {
            let [top, bottom] = [top, bottom].map(|row| _mm512_maskz_loadu_ps(mask, row.as_ptr().add(whole)));
            let pairs = _mm512_permutexvar_epi16(order, as_integers(_mm512_cvtne2ps_pbh(bottom, top)));
            _mm512_mask_storeu_epi32(into.as_mut_ptr().add(whole).cast(), mask, pairs);
        }
    }

    /// Rounds a row to bf16.
    #[expect(unsafe_code, reason = "vector loads and stores")]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    pub(in super::super) unsafe fn round_row(from: &[f32], into: &mut [bf16]) {
        assert_eq!(from.len(), into.len(), "rows of equal length");
        let whole = from.len() / 32 * 32;
        for first in (0..whole).step_by(32) {
            // SAFETY: 32 columns from here on are inside the rows.
            unsafe {
                let [low, high] = [0, 16].map(|half| _mm512_loadu_ps(from.as_ptr().add(first + half)));
                let rounded = as_integers(_mm512_cvtne2ps_pbh(high, low));
                _mm512_storeu_epi32(into.as_mut_ptr().add(first).cast(), rounded);
            }
        }
        for first in (whole..from.len()).step_by(16) {
            let mask = u16::MAX >> (16 - (from.len() - first).min(16));
            // SAFETY: columns beyond the rows are masked out.
            unsafe {
                let row = _mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(mask, from.as_ptr().add(first)));
                let row: __m256i = std::mem::transmute(row);
                _mm256_mask_storeu_epi16(into.as_mut_ptr().add(first).cast(), mask, row);
            }
        }
    }

    #[expect(unsafe_code, reason = "there is no intrinsic that casts between these register types")]
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn as_integers(register: __m512bh) -> __m512i {
        // SAFETY: both are 64 bytes without invalid values.
        unsafe { std::mem::transmute(register) }
    }

    #[expect(unsafe_code, reason = "there is no intrinsic that casts between these register types")]
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn pairs(register: __m512i) -> __m512bh {
        // SAFETY: both are 64 bytes without invalid values.
        unsafe { std::mem::transmute(register) }
    }

    #[expect(unsafe_code, reason = "vector stores")]
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn start<const N: usize, const P: usize>(tile: &Tile, add: bool) -> Sums<N, P> {
        let mut sums = [[[_mm512_setzero_ps(); 2]; P]; N];
        if !add {
            return sums;
        }
        for (sums, tile) in sums.iter_mut().zip(tile) {
            for (sums, tile) in sums.iter_mut().zip(tile) {
                // SAFETY: a row of a tile holds two registers.
                *sums = unsafe { [_mm512_loadu_ps(tile.as_ptr()), _mm512_loadu_ps(tile.as_ptr().add(PANEL / 2))] };
            }
        }
        sums
    }

    #[expect(unsafe_code, reason = "vector stores")]
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn write<const N: usize, const P: usize>(sums: Sums<N, P>, tile: &mut Tile) {
        for (sums, tile) in sums.iter().zip(tile) {
            for (sums, tile) in sums.iter().zip(tile) {
                // SAFETY: a row of a tile holds two registers.
                unsafe {
                    _mm512_storeu_ps(tile.as_mut_ptr(), sums[0]);
                    _mm512_storeu_ps(tile.as_mut_ptr().add(PANEL / 2), sums[1]);
                }
            }
        }
    }
}

/// Other CPUs: no panel can be made, so no function here is called.
#[cfg(not(target_arch = "x86_64"))]
mod none {
    use half::bf16;

    use super::super::PANEL;
    use super::super::element::{Tile, Walk};
    use super::super::strip::{Rows, Style};

    pub(crate) fn detects_wide_vectors() -> bool {
        false
    }

    pub(crate) fn detects_bf16_instructions() -> bool {
        false
    }

    /// A function that is never called, with the signature of the function of the same name above.
    macro_rules! absent {
        ($(fn $name:ident $(<$(const $n:ident),+>)? ($($argument:ty),*);)*) => {
            $(
                #[expect(unsafe_code, reason = "the signature of the x86-64 function")]
                pub(in super::super) unsafe fn $name $(<$(const $n: usize),+>)? ($(_: $argument),*) {
                    unreachable!("panels are only made where their instructions exist")
                }
            )*
        };
    }

    absent! {
        fn transpose<const SIDE>(&[[f32; SIDE]; SIDE], &mut [[f32; SIDE]; SIDE]);
        fn transpose_pairs(&[[bf16; PANEL]; PANEL], &mut [[bf16; PANEL]; PANEL]);
        fn convert_bf16(&[f32; 16], &mut [bf16; 16]);
        fn tile_f32<const N, const P>(*const f32, Walk<'_>, [*const f32; P], &mut Tile);
        fn tile_bf16<const N, const P>(*const bf16, Walk<'_>, [*const bf16; P], &mut Tile);
        fn strip<const N, const V>(Rows<*const f32>, Rows<*const f32>, Rows<*mut f32>, usize, Style);
        fn strip_bf16<const N, const V>(Rows<*const [bf16; 2]>, Rows<*const [bf16; 2]>, Rows<*mut f32>, usize, Style);
        fn pair_rows(&[f32], &[f32], &mut [[bf16; 2]]);
        fn round_row(&[f32], &mut [bf16]);
    }
}

#[cfg(not(target_arch = "x86_64"))]
pub(crate) use none::*;
#[cfg(target_arch = "x86_64")]
pub(crate) use x86::*;

use crate::cpu::is_portable_only;

/// Whether the CPU has vectors of sixteen f32 and their use is enabled, see
/// [`use_portable_kernels`](crate::cpu::use_portable_kernels).
pub fn has_wide_vectors() -> bool {
    detects_wide_vectors() && !is_portable_only()
}

/// Whether the CPU also multiplies pairs of bf16 and their use is enabled.
pub fn has_bf16_instructions() -> bool {
    detects_bf16_instructions() && !is_portable_only()
}
