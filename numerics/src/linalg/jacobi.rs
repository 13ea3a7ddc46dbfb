//! Singular value decomposition of a small matrix by one-sided Jacobi rotations.
//!
//! Bidiagonalisation is faster but loses digits of small singular values, which sums of nearly dependent terms have.
//!
//! **Source** Hestenes, 1958; Golub and Van Loan, *Matrix Computations*, section 8.6.3.

use nalgebra::DMatrix;

/// `matrix = left · diagonal(values) · rightᵀ`, values descending; a singular vector is zero where its value is 0.
pub(super) struct Decomposition {
    pub(super) left: DMatrix<f64>,
    pub(super) values: Vec<f64>,
    pub(super) right: DMatrix<f64>,
}

/// A dozen sweeps suffice for any matrix met in practice.
const MAX_SWEEPS: usize = 100;

/// The decomposition, or `None` if the rotations do not converge, which only infinite values cause.
pub(super) fn decompose(matrix: &DMatrix<f64>) -> Option<Decomposition> {
    if matrix.nrows() < matrix.ncols() {
        let Decomposition { left, values, right } = decompose(&matrix.transpose())?;
        return Some(Decomposition { left: right, values, right: left });
    }
    let (mut columns, mut rotation) = (matrix.clone(), DMatrix::identity(matrix.ncols(), matrix.ncols()));
    // Columns shorter than this are rounding errors, which no rotation makes orthogonal.
    let vanishing = f64::EPSILON * matrix.nrows() as f64 * matrix.norm();
    let settled = (0..MAX_SWEEPS).any(|_| sweep(&mut columns, &mut rotation, vanishing) == 0);
    settled.then(|| ordered(&columns, &rotation))
}

/// Rotates each pair of columns that do not vanish once; returns the number of pairs that were not orthogonal.
fn sweep(columns: &mut DMatrix<f64>, rotation: &mut DMatrix<f64>, vanishing: f64) -> usize {
    let negligible = f64::EPSILON * columns.nrows() as f64;
    let mut rotated = 0;
    for (p, q) in (0..columns.ncols()).flat_map(|q| (0..q).map(move |p| (p, q))) {
        let (first, second) = (columns.column(p), columns.column(q));
        let (alpha, beta, gamma) = (first.norm_squared(), second.norm_squared(), first.dot(&second));
        // The comparison is false for NaN, so that NaN counts as not converged.
        if gamma.abs() <= negligible * alpha.sqrt() * beta.sqrt() || alpha.min(beta).sqrt() <= vanishing {
            continue;
        }
        let zeta = (beta - alpha) / (2.0 * gamma);
        let tangent = zeta.signum() / (zeta.abs() + zeta.hypot(1.0));
        let cosine = 1.0 / tangent.hypot(1.0);
        for target in [&mut *columns, &mut *rotation] {
            rotate(target, (p, q), cosine, cosine * tangent);
        }
        rotated += 1;
    }
    rotated
}

fn rotate(matrix: &mut DMatrix<f64>, (p, q): (usize, usize), cosine: f64, sine: f64) {
    for row in 0..matrix.nrows() {
        let (x, y) = (matrix[(row, p)], matrix[(row, q)]);
        matrix[(row, p)] = cosine * x - sine * y;
        matrix[(row, q)] = sine * x + cosine * y;
    }
}

/// Normalises the orthogonal columns and sorts them by length, longest first; lengths of the size of rounding become 0.
fn ordered(columns: &DMatrix<f64>, rotation: &DMatrix<f64>) -> Decomposition {
    let lengths: Vec<f64> = columns.column_iter().map(|column| column.norm()).collect();
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by(|a, b| lengths[*b].total_cmp(&lengths[*a]));
    let longest = order.first().map_or(0.0, |first| lengths[*first]);
    let smallest = longest * f64::EPSILON * columns.nrows() as f64;

    let (mut left, mut right) =
        (DMatrix::zeros(columns.nrows(), lengths.len()), DMatrix::zeros(lengths.len(), lengths.len()));
    let mut values = vec![0.0; lengths.len()];
    for (to, from) in order.into_iter().enumerate().filter(|(_, from)| lengths[*from] > smallest) {
        left.set_column(to, &(columns.column(from) / lengths[from]));
        right.set_column(to, &rotation.column(from));
        values[to] = lengths[from];
    }
    Decomposition { left, values, right }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_that_depend_on_each_other_settle() {
        let column = [0.3, -1.7, 0.9, 0.1];
        let matrix = DMatrix::from_fn(4, 3, |row, place| column[row] * [1.0, -0.7, 1e-3][place]);
        let found = decompose(&matrix).unwrap();
        assert!((found.values[0] - matrix.norm()).abs() < 1e-14 && found.values[1..] == [0.0, 0.0]);
        let rebuilt = &found.left * DMatrix::from_diagonal(&found.values.clone().into()) * found.right.transpose();
        assert!((rebuilt - matrix).norm() < 1e-14);
    }
}
