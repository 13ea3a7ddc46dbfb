//! Factors of attention's products: exact, or rounded to bf16.

use std::borrow::Cow;

use catelier_kernels::{
    Float, Matrix, MatrixMut, RoundedPairs, RoundedRows, Update, multiply_in_cache, multiply_rounded,
};

/// Keys in a block: their values stay in the cache while the block is multiplied.
pub(super) const KEYS: usize = 512;
/// Keys in a strip of transposed keys, which stays in the first-level cache while scores are computed.
const STRIP: usize = 64;

/// The element type in which attention multiplies.
pub(super) trait Factors: Send + Sync + 'static {
    type Left<'a, T: Float>;
    type Right<'a, T: Float>;
    /// A right factor that is packed once and multiplied several times.
    type Kept<T: Float>: Send + Sync;

    /// A left factor from a matrix with contiguous rows.
    fn left<T: Float>(rows: Matrix<'_, T>) -> Self::Left<'_, T>;
    fn right<T: Float>(rows: Matrix<'_, T>) -> Self::Right<'_, T>;
    /// A right factor from the elements of `depth` rows of equal length.
    fn keep<T: Float>(elements: Vec<T>, depth: usize) -> Self::Kept<T>;
    /// The first `rows` rows and `columns` columns of a kept factor.
    fn borrow<T: Float>(kept: &Self::Kept<T>, rows: usize, columns: usize) -> Self::Right<'_, T>;

    /// `result = scale · left · right`, or `result += scale · left · right`.
    fn multiply<T: Float>(
        result: MatrixMut<'_, T>,
        update: Update,
        scale: T,
        left: &Self::Left<'_, T>,
        right: &Self::Right<'_, T>,
    );
}

/// Factors in the type of the tensors.
pub(super) struct Exact;

impl Factors for Exact {
    type Left<'a, T: Float> = Matrix<'a, T>;
    type Right<'a, T: Float> = Matrix<'a, T>;
    type Kept<T: Float> = (Vec<T>, usize);

    fn left<T: Float>(rows: Matrix<'_, T>) -> Matrix<'_, T> {
        rows
    }

    fn right<T: Float>(rows: Matrix<'_, T>) -> Matrix<'_, T> {
        rows
    }

    fn keep<T: Float>(elements: Vec<T>, depth: usize) -> (Vec<T>, usize) {
        (elements, depth)
    }

    fn borrow<T: Float>((elements, depth): &(Vec<T>, usize), rows: usize, columns: usize) -> Matrix<'_, T> {
        Matrix::rows_apart(elements, rows, columns, elements.len() / (*depth).max(1))
    }

    fn multiply<T: Float>(
        result: MatrixMut<'_, T>,
        update: Update,
        scale: T,
        left: &Matrix<'_, T>,
        right: &Matrix<'_, T>,
    ) {
        multiply_in_cache(result, update, scale, *left, *right);
    }
}

/// Factors rounded to bf16, for f32 tensors on a CPU with bf16 instructions.
pub(super) struct Rounded;

impl Factors for Rounded {
    type Left<'a, T: Float> = RoundedRows;
    type Right<'a, T: Float> = Cow<'a, RoundedPairs>;
    type Kept<T: Float> = RoundedPairs;

    fn left<T: Float>(rows: Matrix<'_, T>) -> RoundedRows {
        RoundedRows::new(rows.single())
    }

    fn right<T: Float>(rows: Matrix<'_, T>) -> Cow<'_, RoundedPairs> {
        Cow::Owned(RoundedPairs::new(rows.single()))
    }

    fn keep<T: Float>(elements: Vec<T>, depth: usize) -> RoundedPairs {
        RoundedPairs::new(Matrix::new(&elements, depth, elements.len() / depth.max(1)).single())
    }

    fn borrow<T: Float>(kept: &RoundedPairs, _: usize, _: usize) -> Cow<'_, RoundedPairs> {
        Cow::Borrowed(kept)
    }

    fn multiply<T: Float>(
        result: MatrixMut<'_, T>,
        update: Update,
        scale: T,
        left: &RoundedRows,
        right: &Cow<'_, RoundedPairs>,
    ) {
        multiply_rounded(result.single(), update, scale.to_f64() as f32, left, right);
    }
}

/// One head's keys or values, as a `[KEYS, head_width]` matrix for each [`KEYS`] tokens.
pub(super) struct Blocks<F: Factors, T: Float> {
    blocks: Vec<F::Kept<T>>,
    head_width: usize,
}

impl<F: Factors, T: Float> Blocks<F, T> {
    pub(super) fn new(tokens: Matrix<'_, T>) -> Self {
        let (count, head_width) = tokens.shape();
        let block = |first: usize| {
            let rows = first..count.min(first + KEYS);
            let mut elements = Vec::with_capacity(rows.len() * head_width);
            rows.clone().for_each(|token| elements.extend_from_slice(tokens.row(token)));
            F::keep(elements, rows.len())
        };
        Self { blocks: (0..count).step_by(KEYS).map(block).collect(), head_width }
    }

    /// `result = rows · tokens`, or `result += rows · tokens`. `tokens` are the `n` tokens from `first` on, where
    /// `n ≤ KEYS` is the number of columns of `rows` and `first` is a multiple of [`KEYS`].
    pub(super) fn multiply(&self, result: MatrixMut<'_, T>, update: Update, rows: Matrix<'_, T>, first: usize) {
        let tokens = F::borrow(&self.blocks[first / KEYS], rows.shape().1, self.head_width);
        F::multiply(result, update, T::ONE, &F::left(rows), &tokens);
    }
}

/// The transpose of one head's keys or values, as a `[head_width, STRIP]` matrix for each [`STRIP`] tokens.
pub(super) struct Strips<F: Factors, T: Float>(Vec<F::Kept<T>>);

impl<F: Factors, T: Float> Strips<F, T> {
    pub(super) fn new(tokens: Matrix<'_, T>) -> Self {
        let (count, depth) = tokens.shape();
        let strip = |first: usize| {
            let mut elements = vec![T::ZERO; depth * STRIP];
            for token in first..count.min(first + STRIP) {
                for (channel, value) in tokens.row(token).iter().enumerate() {
                    elements[channel * STRIP + token - first] = *value;
                }
            }
            F::keep(elements, depth)
        };
        Self((0..count).step_by(STRIP).map(strip).collect())
    }

    /// `result[row, i] = scale · rows[row] · token[first + i]` for `i < columns`. `first` is a multiple of [`STRIP`];
    /// the rows of the result begin `pitch` elements apart.
    pub(super) fn multiply(
        &self,
        rows: Matrix<'_, T>,
        (first, columns): (usize, usize),
        scale: T,
        result: &mut [T],
        pitch: usize,
    ) {
        let ((count, depth), rows) = (rows.shape(), F::left(rows));
        for start in (0..columns).step_by(STRIP) {
            let width = STRIP.min(columns - start);
            let strip = F::borrow(&self.0[(first + start) / STRIP], depth, width);
            let result = MatrixMut::rows_apart(&mut result[start..], count, width, pitch);
            F::multiply(result, Update::Replace, scale, &rows, &strip);
        }
    }
}
