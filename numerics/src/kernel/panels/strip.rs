//! Products of small dense matrices that lie in the cache: nothing is packed.

use super::vectors::{has_wide_vectors, strip};
use crate::kernel::{Float, Matrix, MatrixMut, Threads, Update, multiply};
use crate::work::count_product;

/// Rows of adjacent elements that begin `pitch` apart.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rows<P> {
    pub(crate) start: P,
    pub(crate) pitch: usize,
}

/// Rows and columns that are summed at a time: 24 of the 32 registers.
const ROWS: usize = 6;
const COLUMNS: usize = 64;

/// The same as [`multiply`] on the calling thread, for matrices whose rows are of adjacent elements and whose `b` stays
/// in the cache.
pub(crate) fn multiply_in_cache<T: Float>(
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
    let Some(c_data) = T::as_f32_mut(result.data) else { unreachable!("the result has the type of its factors") };
    let style = (scale.to_f64() as f32, update == Update::Add);
    for column in (0..b.columns).step_by(COLUMNS) {
        let columns = COLUMNS.min(b.columns - column);
        for row in (0..a.rows).step_by(ROWS) {
            let rows = ROWS.min(a.rows - row);
            let a_rows = Rows { start: a_data[row * a.row_stride..].as_ptr(), pitch: a.row_stride };
            let b_rows = Rows { start: b_data[column..].as_ptr(), pitch: b.row_stride };
            let c = c_data[row * result.row_stride + column..].as_mut_ptr();
            let c_rows = Rows { start: c, pitch: result.row_stride };
            dispatch([a_rows, b_rows], c_rows, (rows, columns, a.columns), style);
        }
    }
}

/// Picks the strip of `rows` rows and as many registers as hold `columns` columns.
#[expect(unsafe_code, reason = "vector instructions on pointers")]
fn dispatch(
    [a, b]: [Rows<*const f32>; 2],
    c: Rows<*mut f32>,
    (rows, columns, depth): (usize, usize, usize),
    (scale, add): (f32, bool),
) {
    let style = (scale, add, u16::MAX >> (15 - (columns - 1) % 16));
    macro_rules! of {
        ($rows:literal) => {
            match columns.div_ceil(16) {
                1 => strip::<$rows, 1>(a, b, c, depth, style),
                2 => strip::<$rows, 2>(a, b, c, depth, style),
                3 => strip::<$rows, 3>(a, b, c, depth, style),
                _ => strip::<$rows, 4>(a, b, c, depth, style),
            }
        };
    }
    // SAFETY: the instructions were detected; the matrices were built with every element inside their data, rows and
    // columns lie within them, and columns beyond `columns` are masked out.
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
    use crate::noise::{Noise, Stream};

    #[test]
    fn it_is_the_product_for_every_shape_of_strip() {
        let numbers = |sample, count| Noise::new(2).normals(Stream("strip"), 0, sample, count);
        for (rows, columns, depth) in [(1, 1, 1), (6, 64, 3), (7, 65, 40), (13, 100, 5), (5, 48, 9), (12, 31, 17)] {
            let (a, b) = (numbers(0, rows * (depth + 2)), numbers(1, depth * (columns + 3)));
            let (mut found, mut expected) = (numbers(2, rows * (columns + 1)), numbers(2, rows * (columns + 1)));
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
