//! Small and dense problems: the rotation nearest to a matrix, ridge regression, and the truncation of a dense matrix.

use candle_core::{DType, Device, Tensor};
use nalgebra::DMatrix;

use super::{LowRankTerm, Truncated, beside, low_rank_svd, to_matrix, to_tensor};
use crate::noise::{Noise, Stream};
use crate::{Error, Result};

/// The rotation `R` (orthogonal, determinant +1) nearest to a square matrix in Frobenius norm, f64 `[r, r]`.
///
/// With `M = to · fromᵀ`, `R` minimises `‖R · from − to‖`: the orthogonal Procrustes problem. Where directions of `M`
/// vanish, any rotation of them is as near, and one of them is returned.
///
/// **Source** Schönemann, 1966; the determinant as in Kabsch, 1976.
///
/// # Errors
/// [`Error::Number`] for a matrix that is empty, not square or not finite; [`Error::NotConverged`].
pub fn nearest_rotation(matrix: &Tensor) -> Result<Tensor> {
    let square = to_matrix(matrix)?;
    let (rows, columns) = square.shape();
    if rows != columns || rows == 0 {
        return Err(Error::Number {
            what: "columns of a rotation",
            expected: "as many as rows, 1 or more",
            found: columns as f64,
        });
    }
    refuse_infinite(&square)?;
    let decomposed = square.try_svd(true, true, f64::EPSILON, MAX_ITERATIONS);
    let (mut left, right) =
        decomposed.and_then(|svd| Some((svd.u?, svd.v_t?))).ok_or(Error::NotConverged { rows, columns })?;
    if (&left * &right).determinant() < 0.0 {
        // The direction of the smallest singular value costs least.
        left.column_mut(rows - 1).neg_mut();
    }
    to_tensor(&(left * right), DType::F64, matrix.device())
}

/// Iterations after which a decomposition of a finite matrix counts as not converged.
const MAX_ITERATIONS: usize = 10_000;

fn refuse_infinite(matrix: &DMatrix<f64>) -> Result<()> {
    match matrix.iter().find(|value| !value.is_finite()) {
        Some(found) => Err(Error::Number { what: "value of a matrix", expected: "finite", found: *found }),
        None => Ok(()),
    }
}

/// `right · (gram + ridge · I)⁻¹`, f64 `[n, r]`: the solution `X` of `min ‖X F − Y‖² + ridge ‖X‖²` for `gram = F Fᵀ`
/// `[r, r]` and `right = Y Fᵀ` `[n, r]`.
///
/// # Errors
/// [`Error::Number`] for a ridge that is not above 0, shapes that do not fit, or a matrix that is not finite or not positive definite with it.
pub fn ridge_solution(gram: &Tensor, ridge: f64, right: &Tensor) -> Result<Tensor> {
    if !(ridge.is_finite() && ridge > 0.0) {
        return Err(Error::Number { what: "ridge", expected: "finite and above 0", found: ridge });
    }
    let (gram, values) = (to_matrix(gram)?, to_matrix(right)?);
    if !gram.is_square() || values.ncols() != gram.nrows() {
        return Err(Error::Number {
            what: "columns of a ridge problem",
            expected: "as many as rows of a square matrix",
            found: values.ncols() as f64,
        });
    }
    refuse_infinite(&gram)?;
    refuse_infinite(&values)?;
    let regular = &gram + DMatrix::identity(gram.nrows(), gram.ncols()) * ridge;
    let indefinite = Error::Number { what: "ridge", expected: "large beside the rounding of the matrix", found: ridge };
    let solution = regular.cholesky().ok_or(indefinite)?.solve(&values.transpose());
    to_tensor(&solution.transpose(), DType::F64, right.device())
}

/// Up to this smaller side, a dense matrix is decomposed as a whole.
const WHOLE_SIDE: usize = 192;
/// Directions that are followed beyond the rank.
const OVERSAMPLED: usize = 16;
/// Multiplications by the matrix and its transpose; each sharpens the gap between kept and discarded directions.
const POWER_ITERATIONS: usize = 6;
/// What the matrix may make of a kept right vector beside its left one, in units of the largest singular value. The part
/// that is cut off is wrong by the square of it.
const SETTLED: f64 = 1e-6;

/// The best approximation of rank `rank` to a dense matrix `[out, in]`, computed in f64.
///
/// Up to a smaller side of 192 the decomposition is exact. Above it, a subspace of `rank + 16` directions is followed
/// through six power iterations from a fixed start. Where singular values fall too slowly for these, the subspace grows
/// (block Lanczos) until the kept directions are settled to 1e-6 of the largest singular value, or it is the whole space.
/// [`Truncated::singular_values`] ends with that subspace.
///
/// **Source** Halko, Martinsson and Tropp, arXiv 0909.4061, algorithm 4.4; Musco and Musco, arXiv 1504.05477, algorithm 2.
///
/// # Errors
/// As [`low_rank_svd`].
pub fn truncated_svd(matrix: &Tensor, rank: usize) -> Result<Truncated> {
    let dense = to_matrix(matrix)?;
    let (rows, columns) = dense.shape();
    refuse_infinite(&dense)?;
    let device = matrix.device();
    if rows.min(columns) <= WHOLE_SIDE.max(rank + OVERSAMPLED) {
        return low_rank_svd(&[whole_term(&dense, device)?], rank);
    }
    let mut basis = random(columns, rank + OVERSAMPLED);
    let mut left = (&dense * basis).qr().q();
    for _ in 0..POWER_ITERATIONS {
        basis = dense.tr_mul(&left).qr().q();
        left = (&dense * basis).qr().q();
    }
    let mut space = Subspace::new(&dense, left);
    loop {
        let mut truncated = space.truncated(rank, device)?;
        if space.is_settled(&truncated)? || !space.grow() {
            let (total, kept) = (dense.norm_squared(), truncated.singular_values.iter().take(rank));
            let kept: f64 = kept.map(|value| value * value).sum();
            truncated.discarded = if total == 0.0 { 0.0 } else { (1.0 - kept / total).clamp(0.0, 1.0) };
            return Ok(truncated);
        }
    }
}

/// Left directions that are followed, and what the matrix makes of them.
struct Subspace<'m> {
    dense: &'m DMatrix<f64>,
    /// Orthonormal columns.
    left: DMatrix<f64>,
    /// `leftᵀ · dense`.
    right: DMatrix<f64>,
    /// Columns of `left` that were added last.
    newest: usize,
}

impl<'m> Subspace<'m> {
    fn new(dense: &'m DMatrix<f64>, left: DMatrix<f64>) -> Self {
        let (right, newest) = (left.tr_mul(dense), left.ncols());
        Self { dense, left, right, newest }
    }

    /// The best approximation within the subspace.
    fn truncated(&self, rank: usize, device: &Device) -> Result<Truncated> {
        let (up, down) = (to_tensor(&self.left, DType::F64, device)?, to_tensor(&self.right, DType::F64, device)?);
        low_rank_svd(&[LowRankTerm { up, down, weight: 1.0 }], rank)
    }

    /// Whether the matrix makes of each kept right vector the left one beside it. Both have the length √σ.
    fn is_settled(&self, truncated: &Truncated) -> Result<bool> {
        let (up, down) = (to_matrix(&truncated.up)?, to_matrix(&truncated.down)?);
        let images = self.dense * down.transpose();
        let largest = truncated.singular_values.first().copied().unwrap_or(0.0);
        let is_settled = |(place, sigma): (usize, &f64)| {
            let rest = images.column(place) - up.column(place) * *sigma;
            rest.norm() <= SETTLED * largest * sigma.sqrt()
        };
        Ok(truncated.singular_values.iter().take(up.ncols()).enumerate().all(is_settled))
    }

    /// Doubles the subspace by what the matrix makes of it; `false` if it cannot grow.
    fn grow(&mut self) -> bool {
        let (before, most) = (self.left.ncols(), self.smaller_side());
        while self.left.ncols() < (2 * before).min(most) {
            let newest = self.right.rows(self.right.nrows() - self.newest, self.newest).transpose();
            let fresh = self.orthogonal_part(self.dense * newest);
            if fresh.ncols() == 0 {
                break;
            }
            self.newest = fresh.ncols();
            let images = fresh.tr_mul(self.dense);
            self.left = beside(&[std::mem::replace(&mut self.left, DMatrix::zeros(0, 0)), fresh]);
            let rights = [std::mem::replace(&mut self.right, DMatrix::zeros(0, 0)).transpose(), images.transpose()];
            self.right = beside(&rights).transpose();
        }
        self.left.ncols() > before
    }

    /// The most directions that there are.
    fn smaller_side(&self) -> usize {
        self.dense.nrows().min(self.dense.ncols())
    }

    /// Orthonormal columns that span what `columns` have beside the subspace.
    fn orthogonal_part(&self, mut columns: DMatrix<f64>) -> DMatrix<f64> {
        let length = columns.norm();
        // Twice is enough: the second time removes what rounding left of the first.
        for _ in 0..2 {
            columns -= &self.left * self.left.tr_mul(&columns);
        }
        let (directions, sizes) = columns.qr().unpack();
        let is_new = |place: &usize| sizes[(*place, *place)].abs() > 1e-10 * length;
        let room = self.smaller_side().saturating_sub(self.left.ncols());
        let kept: Vec<usize> = (0..directions.ncols()).filter(is_new).take(room).collect();
        directions.select_columns(&kept)
    }
}

/// The matrix as a product with an identity on its smaller side.
fn whole_term(dense: &DMatrix<f64>, device: &Device) -> Result<LowRankTerm> {
    let (rows, columns) = dense.shape();
    let identity = |side| DMatrix::identity(side, side);
    let (up, down) = if rows <= columns { (identity(rows), dense.clone()) } else { (dense.clone(), identity(columns)) };
    Ok(LowRankTerm {
        up: to_tensor(&up, DType::F64, device)?,
        down: to_tensor(&down, DType::F64, device)?,
        weight: 1.0,
    })
}

/// The fixed start of the power iterations, `[rows, columns]`.
fn random(rows: usize, columns: usize) -> DMatrix<f64> {
    let values = Noise::new(0).normals(Stream("linalg.subspace"), 0, 0, rows * columns);
    DMatrix::from_iterator(rows, columns, values.into_iter().map(f64::from))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn normal(sample: u64, rows: usize, columns: usize) -> Tensor {
        let noise = Noise::new(29).normal(Stream("dense"), 0, sample, (rows, columns), &Device::Cpu).unwrap();
        noise.to_dtype(DType::F64).unwrap()
    }

    #[test]
    fn the_nearest_rotation_undoes_a_rotation() {
        let turned = nearest_rotation(&normal(0, 4, 4)).unwrap();
        let from = normal(1, 4, 9);
        let to = turned.matmul(&from).unwrap();
        let found = nearest_rotation(&to.matmul(&from.t().unwrap()).unwrap()).unwrap();
        let difference = (to_matrix(&found).unwrap() - to_matrix(&turned).unwrap()).norm();
        assert!(difference < 1e-12, "{difference}");
        assert!((to_matrix(&turned).unwrap().determinant() - 1.0).abs() < 1e-12);
    }

    #[test]
    fn a_matrix_of_zeros_has_a_rotation_too() {
        let rotation = to_matrix(&nearest_rotation(&normal(0, 3, 3).zeros_like().unwrap()).unwrap()).unwrap();
        assert!((rotation.tr_mul(&rotation) - DMatrix::identity(3, 3)).norm() < 1e-12);
        assert!((rotation.determinant() - 1.0).abs() < 1e-12);
    }

    #[test]
    fn a_ridge_solution_has_no_gradient() {
        let (factor, target) = (normal(2, 3, 8), normal(3, 5, 8));
        let transposed = factor.t().unwrap();
        let (gram, right) = (factor.matmul(&transposed).unwrap(), target.matmul(&transposed).unwrap());
        let solution = to_matrix(&ridge_solution(&gram, 0.1, &right).unwrap()).unwrap();
        let gradient =
            &solution * (to_matrix(&gram).unwrap() + DMatrix::identity(3, 3) * 0.1) - to_matrix(&right).unwrap();
        assert!(gradient.norm() < 1e-10);
        assert!(ridge_solution(&gram, 0.0, &right).is_err());
    }

    #[test]
    fn a_large_dense_matrix_is_truncated_as_a_small_one() {
        let term = LowRankTerm { up: normal(4, 260, 5), down: normal(5, 5, 240), weight: 1.0 };
        let noise = (normal(6, 260, 240) * 1e-3).unwrap();
        let dense = (term.up.matmul(&term.down).unwrap() + noise).unwrap();
        let truncated = truncated_svd(&dense, 5).unwrap();
        let exact = low_rank_svd(&[whole_term(&to_matrix(&dense).unwrap(), &Device::Cpu).unwrap()], 5).unwrap();
        assert!((truncated.discarded - exact.discarded).abs() < 1e-9);
        for (found, expected) in truncated.singular_values.iter().zip(&exact.singular_values).take(5) {
            assert!((found / expected - 1.0).abs() < 1e-9);
        }
    }

    /// The singular values of such a matrix fall so slowly that power iterations do not settle.
    #[test]
    fn a_matrix_without_any_structure_is_cut_as_well_as_it_can_be() {
        for (rows, columns) in [(230, 200), (210, 320)] {
            let dense = normal(8, rows, columns);
            let truncated = truncated_svd(&dense, 6).unwrap();
            let whole = low_rank_svd(&[whole_term(&to_matrix(&dense).unwrap(), &Device::Cpu).unwrap()], 6).unwrap();
            assert!((truncated.discarded / whole.discarded - 1.0).abs() < 1e-11, "{truncated:?}");
            let difference = |matrix: &Truncated| to_matrix(&matrix.up).unwrap() * to_matrix(&matrix.down).unwrap();
            let error = (difference(&truncated) - difference(&whole)).norm() / whole.singular_values[0];
            assert!(error < 1e-4, "{error}");
        }
    }

    /// Six directions of one length, which a single direction could not tell apart.
    #[test]
    fn equal_singular_values_are_all_found() {
        let orthogonal = |sample, side| to_matrix(&normal(sample, side, side)).unwrap().qr().q();
        let values = (0..220).map(|place| if place < 6 { 2.0 } else { 1.9 });
        let diagonal = DMatrix::from_diagonal(&values.collect::<Vec<f64>>().into());
        let dense = orthogonal(9, 220) * diagonal * orthogonal(10, 220);
        let truncated = truncated_svd(&to_tensor(&dense, DType::F64, &Device::Cpu).unwrap(), 6).unwrap();
        let expected = 214.0 * 1.9 * 1.9 / dense.norm_squared();
        assert!((truncated.discarded / expected - 1.0).abs() < 1e-10, "{} {expected}", truncated.discarded);
    }

    #[test]
    fn matrices_that_are_not_finite_or_not_square_are_refused() {
        assert!(nearest_rotation(&normal(0, 3, 4)).is_err());
        let infinite = (normal(0, 3, 3) / 0.0).unwrap();
        assert!(nearest_rotation(&infinite).is_err() && truncated_svd(&infinite, 1).is_err());
    }
}
