//! Matrix products, with all bounds checked before the `gemm` crate receives pointers.

use gemm::Parallelism;

use super::{Float, single, single_mut};
use crate::work::count_product;

/// A read-only strided view of a matrix.
#[derive(Debug, Clone, Copy)]
pub struct Matrix<'a, T> {
    pub(super) data: &'a [T],
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) row_stride: usize,
    pub(super) column_stride: usize,
}

impl<'a, T> Matrix<'a, T> {
    /// A dense matrix in row-major order.
    pub fn new(data: &'a [T], rows: usize, columns: usize) -> Self {
        Self::rows_apart(data, rows, columns, columns)
    }

    /// A matrix whose contiguous rows begin `row_stride` elements apart.
    pub fn rows_apart(data: &'a [T], rows: usize, columns: usize, row_stride: usize) -> Self {
        assert!(extent(rows, columns, row_stride) <= data.len(), "matrix reaches beyond its data");
        Self { data, rows, columns, row_stride, column_stride: 1 }
    }

    /// Number of rows and columns.
    pub fn shape(&self) -> (usize, usize) {
        (self.rows, self.columns)
    }

    /// Row `index` of a matrix with contiguous rows.
    pub fn row(&self, index: usize) -> &'a [T] {
        assert_eq!(self.column_stride, 1, "a row of adjacent elements");
        &self.data[index * self.row_stride..][..self.columns]
    }

    /// The transpose, without a copy.
    pub fn t(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }
}

/// A writable matrix with contiguous rows that do not overlap.
#[derive(Debug)]
pub struct MatrixMut<'a, T> {
    pub(super) data: &'a mut [T],
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) row_stride: usize,
}

impl<'a, T> MatrixMut<'a, T> {
    /// A dense matrix in row-major order.
    pub fn new(data: &'a mut [T], rows: usize, columns: usize) -> Self {
        Self::rows_apart(data, rows, columns, columns)
    }

    /// A matrix whose rows begin `row_stride` elements apart.
    pub fn rows_apart(data: &'a mut [T], rows: usize, columns: usize, row_stride: usize) -> Self {
        assert!(extent(rows, columns, row_stride) <= data.len(), "matrix reaches beyond its data");
        assert!(rows <= 1 || row_stride >= columns, "rows of the result overlap");
        Self { data, rows, columns, row_stride }
    }
}

impl<'a, T: Float> Matrix<'a, T> {
    /// A dense copy of the transpose, in row-major order, of a matrix with contiguous rows.
    pub fn transposed(self) -> Vec<T> {
        let mut result = vec![T::ZERO; self.rows * self.columns];
        self.transpose_into(&mut result);
        result
    }

    /// As [`transposed`](Self::transposed), over the elements of `result`, `rows * columns` of them.
    pub fn transpose_into(self, result: &mut [T]) {
        /// Elements copied together: one cache line of f32.
        const LINE: usize = 16;
        for first in (0..self.rows).step_by(LINE) {
            let rows: [&[T]; LINE] = std::array::from_fn(|row| self.row((first + row).min(self.rows - 1)));
            for (column, line) in result.chunks_exact_mut(self.rows).enumerate() {
                line[first..].iter_mut().zip(&rows).for_each(|(value, row)| *value = row[column]);
            }
        }
    }

    /// The matrix as f32; `T` must be f32.
    pub fn single(self) -> Matrix<'a, f32> {
        let Self { rows, columns, row_stride, column_stride, .. } = self;
        Matrix { data: single(self.data), rows, columns, row_stride, column_stride }
    }
}

impl<'a, T: Float> MatrixMut<'a, T> {
    /// The matrix as f32; `T` must be f32.
    pub fn single(self) -> MatrixMut<'a, f32> {
        let Self { rows, columns, row_stride, .. } = self;
        MatrixMut { data: single_mut(self.data), rows, columns, row_stride }
    }
}

/// Number of elements from the first to the last, both included.
fn extent(rows: usize, columns: usize, row_stride: usize) -> usize {
    if rows == 0 || columns == 0 { 0 } else { (rows - 1) * row_stride + columns }
}

/// How a product updates its result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Update {
    /// The product replaces the old values.
    Replace,
    /// The product is added to the old values.
    Add,
}

/// The threads that compute one product; the result's bits do not depend on them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Threads {
    /// The calling thread only, for callers that are parallel themselves.
    One,
    /// All threads of the current pool.
    All,
}

/// `result = scale · a · b`, or `result += scale · a · b`.
#[expect(unsafe_code, reason = "the product kernel takes pointers")]
pub fn multiply<T: Float>(
    result: MatrixMut<'_, T>,
    update: Update,
    scale: T,
    a: Matrix<'_, T>,
    b: Matrix<'_, T>,
    threads: Threads,
) {
    assert_eq!((result.rows, result.columns), (a.rows, b.columns), "shape of the product");
    assert_eq!(a.columns, b.rows, "inner dimensions of the product");
    count_product(result.rows, result.columns, a.columns);
    let parallelism = match threads {
        Threads::One => Parallelism::None,
        Threads::All => Parallelism::Rayon(rayon::current_num_threads()),
    };
    // SAFETY: `Matrix` and `MatrixMut` were built with every element inside their slice, the shapes agree as asserted,
    // the result is borrowed mutably so it aliases nothing, and its rows do not overlap, so no two threads write the
    // same element. Strides fit in isize because slices do.
    unsafe {
        gemm::gemm(
            result.rows,
            result.columns,
            a.columns,
            result.data.as_mut_ptr(),
            1,
            result.row_stride as isize,
            update == Update::Add,
            a.data.as_ptr(),
            a.column_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.column_stride as isize,
            b.row_stride as isize,
            T::ONE,
            scale,
            false,
            false,
            false,
            parallelism,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::normals::normals;

    fn product(m: usize, n: usize, k: usize, threads: Threads) -> Vec<u32> {
        let (a, b) = (normals(0, m * k), normals(1, k * n));
        let mut c = normals(2, m * n);
        let result = MatrixMut::new(&mut c, m, n);
        multiply(result, Update::Add, 0.7, Matrix::new(&a, m, k), Matrix::new(&b, n, k).t(), threads);
        c.iter().map(|value| value.to_bits()).collect()
    }

    #[test]
    fn bits_do_not_depend_on_the_number_of_threads() {
        let shapes = [(1, 1, 1), (64, 77, 320), (320, 4224, 320), (320, 62, 640), (1, 512, 4096), (512, 1, 1024)];
        let narrow = [(4096, 4, 320), (4096, 320, 4), (4, 320, 4096), (77, 768, 768), (1025, 513, 257), (2, 3000, 9)];
        for (m, n, k) in shapes.into_iter().chain(narrow) {
            let alone = product(m, n, k, Threads::One);
            for threads in 1..=3 {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                let together = pool.install(|| product(m, n, k, Threads::All));
                assert!(alone == together, "{m}x{n}x{k} on {threads} threads");
            }
        }
    }

    #[test]
    fn products_with_empty_sides_are_empty_or_zero() {
        let mut c = [5.0f32; 6];
        multiply(
            MatrixMut::new(&mut c, 2, 3),
            Update::Replace,
            1.0,
            Matrix::new(&[], 2, 0),
            Matrix::new(&[], 0, 3),
            Threads::All,
        );
        assert_eq!(c, [0.0; 6]);
        let none: &mut [f32] = &mut [];
        multiply(
            MatrixMut::new(none, 0, 3),
            Update::Add,
            1.0,
            Matrix::new(&[], 0, 2),
            Matrix::new(&[0.0; 6], 2, 3),
            Threads::All,
        );
    }

    #[test]
    fn a_transpose_has_each_row_as_a_column() {
        let data = normals(0, 40 * 13);
        for (rows, columns) in [(1, 1), (5, 13), (16, 3), (33, 9), (40, 13), (0, 4), (4, 0)] {
            let matrix = Matrix::rows_apart(&data, rows, columns, 13);
            let expected = (0..columns).flat_map(|column| (0..rows).map(move |row| (row, column)));
            let expected: Vec<f32> = expected.map(|(row, column)| data[row * 13 + column]).collect();
            assert!(matrix.transposed() == expected, "{rows} x {columns}");
        }
    }

    #[test]
    fn strided_views_multiply_like_dense_ones() {
        let data = normals(0, 200);
        let (a, b) = (Matrix::rows_apart(&data[3..], 4, 5, 11), Matrix::rows_apart(&data[60..], 6, 5, 9).t());
        let mut c = [0.0f32; 4 * 8];
        multiply(MatrixMut::rows_apart(&mut c, 4, 6, 8), Update::Replace, 2.0, a, b, Threads::One);
        for (row, column) in (0..4).flat_map(|row| (0..6).map(move |column| (row, column))) {
            let dot: f32 = (0..5).map(|k| data[3 + row * 11 + k] * data[60 + column * 9 + k]).sum();
            assert!((c[row * 8 + column] - 2.0 * dot).abs() < 1e-5);
        }
        assert!((0..4).all(|row| c[row * 8 + 6] == 0.0 && c[row * 8 + 7] == 0.0));
    }

    #[test]
    #[should_panic(expected = "beyond its data")]
    fn a_matrix_larger_than_its_data_is_refused() {
        Matrix::rows_apart(&[0.0f32; 10], 3, 4, 4);
    }
}
