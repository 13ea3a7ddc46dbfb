//! Products of small dense matrices that lie in the cache; nothing is packed.

use half::bf16;

use super::vectors::{has_bf16_instructions, has_wide_vectors, pair_rows, round_row, strip, strip_bf16};
use crate::work::count_product;
use crate::{Float, Matrix, MatrixMut, Threads, Update, multiply};

/// Contiguous rows that begin `pitch` elements apart.
#[derive(Debug, Clone, Copy)]
#[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "for the inner loops of x86-64 alone"))]
pub(super) struct Rows<P> {
    pub(super) start: P,
    pub(super) pitch: usize,
}

/// How a strip stores its sums.
#[derive(Debug, Clone, Copy)]
#[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "for the inner loops of x86-64 alone"))]
pub(super) struct Style {
    pub(super) scale: f32,
    /// Whether the sums are added to the old values.
    pub(super) add: bool,
    /// The valid columns of the last register, as a bit mask.
    pub(super) mask: u16,
}

/// Rows and columns summed at a time: 24 of the 32 vector registers.
const ROWS: usize = 6;
const COLUMNS: usize = 64;

/// [`multiply`] on the calling thread, for matrices with contiguous rows where `b` stays in the cache.
pub fn multiply_in_cache<T: Float>(
    result: MatrixMut<'_, T>,
    update: Update,
    scale: T,
    a: Matrix<'_, T>,
    b: Matrix<'_, T>,
) {
    let (Some(a_data), Some(b_data)) = (T::as_f32(a.data), T::as_f32(b.data)) else {
        return multiply(result, update, scale, a, b, Threads::One);
    };
    if !has_wide_vectors() || a.columns == 0 || b.columns == 0 {
        return multiply(result, update, scale, a, b, Threads::One);
    }
    assert_eq!((result.rows, result.columns, a.columns), (a.rows, b.columns, b.rows), "shape of the product");
    assert!(a.column_stride == 1 && b.column_stride == 1, "rows of adjacent elements");
    count_product(a.rows, b.columns, a.columns);
    let depth = a.columns;
    let (a, b) = (Factor { data: a_data, pitch: a.row_stride }, Factor { data: b_data, pitch: b.row_stride });
    let c = result.single();
    in_strips(c, (scale.to_f64() as f32, update), a, b, depth);
}

/// Rows of bf16, the left factor of a product; an odd number of columns is padded with zeros.
#[derive(Debug)]
pub struct RoundedRows {
    data: Vec<bf16>,
    rows: usize,
    /// Number of pairs in a row.
    depth: usize,
}

impl RoundedRows {
    /// Rounds `rows`; only for CPUs with [bf16 instructions](super::has_bf16_instructions).
    #[expect(unsafe_code, reason = "vector instructions")]
    pub fn new(rows: Matrix<'_, f32>) -> Self {
        assert!(has_bf16_instructions(), "bf16 instructions");
        let (count, columns) = rows.shape();
        let depth = columns.div_ceil(2);
        let mut data = vec![bf16::ZERO; count * 2 * depth];
        for row in 0..count {
            // SAFETY: the instructions were detected.
            unsafe { round_row(rows.row(row), &mut data[row * 2 * depth..][..columns]) }
        }
        Self { data, rows: count, depth }
    }
}

/// Pairs of bf16 rows, the right factor of a product: `[rows / 2, columns, 2]`; an odd last row is paired with zeros.
#[derive(Debug, Clone)]
pub struct RoundedPairs {
    data: Vec<[bf16; 2]>,
    depth: usize,
    columns: usize,
}

impl RoundedPairs {
    /// Rounds `rows`; only for CPUs with [bf16 instructions](super::has_bf16_instructions).
    #[expect(unsafe_code, reason = "vector instructions")]
    pub fn new(rows: Matrix<'_, f32>) -> Self {
        assert!(has_bf16_instructions(), "bf16 instructions");
        let (count, columns) = rows.shape();
        let (depth, zeros) = (count.div_ceil(2), vec![0.0; if count % 2 == 1 { columns } else { 0 }]);
        let mut data = vec![[bf16::ZERO; 2]; depth * columns];
        for pair in 0..depth {
            let bottom = if 2 * pair + 1 < count { rows.row(2 * pair + 1) } else { &zeros };
            // SAFETY: the instructions were detected.
            unsafe { pair_rows(rows.row(2 * pair), bottom, &mut data[pair * columns..][..columns]) }
        }
        Self { data, depth, columns }
    }
}

/// `result = scale · a · b`, or `result += scale · a · b`, with sums in f32. `b` may be larger than needed: the product
/// uses its first columns and rows, as many as the result and `a` have.
pub fn multiply_rounded(result: MatrixMut<'_, f32>, update: Update, scale: f32, a: &RoundedRows, b: &RoundedPairs) {
    assert!(result.rows == a.rows && a.depth <= b.depth && result.columns <= b.columns, "shape of the product");
    count_product(a.rows, result.columns, 2 * a.depth);
    let (a_pairs, _) = a.data.as_chunks::<2>();
    let (left, right) =
        (Factor { data: a_pairs, pitch: a.depth }, Factor { data: b.data.as_slice(), pitch: b.columns });
    in_strips(result, (scale, update), left, right, a.depth);
}

/// A factor of a product and the distance between its rows.
#[derive(Clone, Copy)]
struct Factor<'a, E> {
    data: &'a [E],
    pitch: usize,
}

/// One lane of a multiplying instruction: an f32, or a pair of bf16.
trait Lane: Copy {
    /// Multiplies a strip of `N` rows and `V` registers.
    ///
    /// # Safety
    /// The CPU has the instructions, and the pointers are valid for all rows.
    #[expect(unsafe_code, reason = "vector instructions on pointers")]
    unsafe fn strip<const N: usize, const V: usize>(
        a: Rows<*const Self>,
        b: Rows<*const Self>,
        c: Rows<*mut f32>,
        depth: usize,
        style: Style,
    );
}

macro_rules! lane {
    ($lane:ty, $strip:ident) => {
        impl Lane for $lane {
            #[expect(unsafe_code, reason = "vector instructions on pointers")]
            #[inline(always)]
            unsafe fn strip<const N: usize, const V: usize>(
                a: Rows<*const Self>,
                b: Rows<*const Self>,
                c: Rows<*mut f32>,
                depth: usize,
                style: Style,
            ) {
                // SAFETY: as promised by the caller.
                unsafe { $strip::<N, V>(a, b, c, depth, style) }
            }
        }
    };
}

lane!(f32, strip);
lane!([bf16; 2], strip_bf16);

/// Computes a product in strips; `depth` lanes are summed.
fn in_strips<E: Lane>(
    result: MatrixMut<'_, f32>,
    (scale, update): (f32, Update),
    a: Factor<'_, E>,
    b: Factor<'_, E>,
    depth: usize,
) {
    if depth > 0 && result.rows > 0 && result.columns > 0 {
        assert!((result.rows - 1) * a.pitch + depth <= a.data.len(), "rows of the left factor");
        assert!((depth - 1) * b.pitch + result.columns <= b.data.len(), "rows of the right factor");
    }
    for column in (0..result.columns).step_by(COLUMNS) {
        let columns = COLUMNS.min(result.columns - column);
        for row in (0..result.rows).step_by(ROWS) {
            let rows = ROWS.min(result.rows - row);
            let a_rows = Rows { start: a.data[row * a.pitch..].as_ptr(), pitch: a.pitch };
            let b_rows = Rows { start: b.data[column..].as_ptr(), pitch: b.pitch };
            let c = result.data[row * result.row_stride + column..].as_mut_ptr();
            let c_rows = Rows { start: c, pitch: result.row_stride };
            let style = Style { scale, add: update == Update::Add, mask: u16::MAX >> (15 - (columns - 1) % 16) };
            dispatch([a_rows, b_rows], c_rows, (rows, columns, depth), style);
        }
    }
}

/// Calls the strip for `rows` rows and the number of registers that `columns` columns need.
#[expect(unsafe_code, reason = "vector instructions on pointers")]
fn dispatch<E: Lane>(
    [a, b]: [Rows<*const E>; 2],
    c: Rows<*mut f32>,
    (rows, columns, depth): (usize, usize, usize),
    style: Style,
) {
    macro_rules! of {
        ($rows:literal) => {
            match columns.div_ceil(16) {
                1 => E::strip::<$rows, 1>(a, b, c, depth, style),
                2 => E::strip::<$rows, 2>(a, b, c, depth, style),
                3 => E::strip::<$rows, 3>(a, b, c, depth, style),
                _ => E::strip::<$rows, 4>(a, b, c, depth, style),
            }
        };
    }
    // SAFETY: the instructions were detected; the factors hold every row and the result was built with every element
    // inside its data; columns beyond `columns` are masked out.
    unsafe {
        match rows {
            1 => of!(1),
            2 => of!(2),
            3 => of!(3),
            4 => of!(4),
            5 => of!(5),
            _ => of!(6),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::normals::normals;

    #[test]
    fn rounded_products_are_the_products_of_rounded_values() {
        if !has_bf16_instructions() {
            return;
        }
        let rounded = |sample, count: usize| -> Vec<f32> {
            normals(sample, count).into_iter().map(|value| bf16::from_f32(value).to_f32()).collect()
        };
        for (rows, columns, depth) in [(1, 1, 1), (6, 64, 3), (7, 65, 40), (13, 100, 5), (5, 48, 9), (12, 31, 17)] {
            let (a, b) = (rounded(0, rows * depth), rounded(1, depth * columns));
            let (a, b) = (Matrix::new(&a, rows, depth), Matrix::new(&b, depth, columns));
            let (mut found, mut expected) = (vec![1.0; rows * columns], vec![1.0; rows * columns]);
            for update in [Update::Add, Update::Replace] {
                let found = MatrixMut::new(&mut found, rows, columns);
                multiply_rounded(found, update, 0.5, &RoundedRows::new(a), &RoundedPairs::new(b));
                multiply(MatrixMut::new(&mut expected, rows, columns), update, 0.5, a, b, Threads::One);
            }
            let apart = found.iter().zip(&expected).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max);
            assert!(apart < 1e-5, "{rows} x {columns} x {depth}: {apart}");
        }
    }

    #[test]
    fn it_is_the_product_for_every_shape_of_strip() {
        for (rows, columns, depth) in [(1, 1, 1), (6, 64, 3), (7, 65, 40), (13, 100, 5), (5, 48, 9), (12, 31, 17)] {
            let (a, b) = (normals(0, rows * (depth + 2)), normals(1, depth * (columns + 3)));
            let (mut found, mut expected) = (normals(2, rows * (columns + 1)), normals(2, rows * (columns + 1)));
            let (a, b) =
                (Matrix::rows_apart(&a, rows, depth, depth + 2), Matrix::rows_apart(&b, depth, columns, columns + 3));
            for update in [Update::Add, Update::Replace] {
                let wide = |c| MatrixMut::rows_apart(c, rows, columns, columns + 1);
                multiply_in_cache(wide(&mut found), update, 0.5, a, b);
                multiply(wide(&mut expected), update, 0.5, a, b, Threads::One);
                let apart = found.iter().zip(&expected).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max);
                assert!(apart < 1e-5, "{rows} x {columns} x {depth}: {apart}");
            }
        }
    }
}
