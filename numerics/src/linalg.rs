//! Best low-rank approximation of a weighted sum of low-rank products, which is never formed, and small dense problems.

mod dense;
mod jacobi;

use candle_core::{DType, Device, Tensor};
use nalgebra::DMatrix;

use self::jacobi::Decomposition;
use crate::error::During;
use crate::{Error, Result};
pub use dense::{nearest_rotation, ridge_solution, truncated_svd};

/// One term of the sum: `weight · up · down`.
#[derive(Debug, Clone)]
pub struct LowRankTerm {
    /// `[out, r]`; the rank `r` may differ between terms.
    pub up: Tensor,
    /// `[r, in]`.
    pub down: Tensor,
    /// The term's weight.
    pub weight: f64,
}

/// The approximation `up · down`.
#[derive(Debug, Clone)]
pub struct Truncated {
    /// `[out, rank]`, f32 (f64 if the first term is f64): left singular vectors times √σ.
    pub up: Tensor,
    /// `[rank, in]`, same element type: √σ times right singular vectors.
    pub down: Tensor,
    /// The singular values of the sum, descending; at most as many as the ranks of the terms add up to.
    pub singular_values: Vec<f64>,
    /// Fraction of the squared Frobenius norm that the truncation removes, in `[0, 1]`.
    pub discarded: f64,
}

/// The best approximation of rank `rank` to `Σ weight · up · down`, computed in f64.
///
/// QR orthogonalises the stacked factors, so only the small core between them is decomposed: the cost is
/// `O((out + in) · R²)`, where `R` is the sum of the ranks. The sign of each pair of singular vectors makes the largest
/// entry of the left vector positive, so that results are unique. If `rank` exceeds the rank of the sum, the surplus
/// columns and rows are zero.
///
/// **Source** Eckart and Young, 1936; QR-then-SVD as in Halko, Martinsson and Tropp, arXiv 0909.4061, section 3.3.
///
/// # Errors
/// [`Error::Term`] for factors that do not fit or are not finite, [`Error::Number`] for rank 0, [`Error::NoValues`] for
/// no terms.
pub fn low_rank_svd(terms: &[LowRankTerm], rank: usize) -> Result<Truncated> {
    if rank == 0 {
        return Err(Error::Number { what: "rank", expected: "1 or more", found: 0.0 });
    }
    let first = terms.first().ok_or(Error::NoValues { what: "low-rank sum" })?;
    let (ups, downs) = stack(terms)?;
    let (left, left_core) = ups.qr().unpack();
    let (right, right_core) = downs.qr().unpack();
    let core = decompose(&(left_core * right_core.transpose()))?;
    let kept = assemble(&left, &right, &core, rank);
    let dtype = if first.up.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
    Ok(Truncated {
        up: to_tensor(&kept.0, dtype, first.up.device())?,
        down: to_tensor(&kept.1.transpose(), dtype, first.up.device())?,
        discarded: discarded(&core.values, rank),
        singular_values: core.values,
    })
}

/// The stacked `up` factors, `[out, R]`, times their weights, and the stacked `down` factors, `[in, R]`.
fn stack(terms: &[LowRankTerm]) -> Result<(DMatrix<f64>, DMatrix<f64>)> {
    let (mut ups, mut downs) = (Vec::new(), Vec::new());
    for (index, term) in terms.iter().enumerate() {
        let (up, down) = read_term(index, term)?;
        ups.push(up * term.weight);
        downs.push(down.transpose());
    }
    for (index, (up, down)) in ups.iter().zip(&downs).enumerate() {
        let (expected, found) = ((ups[0].nrows(), downs[0].nrows()), (up.nrows(), down.nrows()));
        if expected != found {
            let problem = format!("expected a product of shape {expected:?} (out, in) as in term 0, found {found:?}");
            return Err(Error::Term { index, problem });
        }
    }
    Ok((beside(&ups), beside(&downs)))
}

fn read_term(index: usize, term: &LowRankTerm) -> Result<(DMatrix<f64>, DMatrix<f64>)> {
    let fail = |problem: String| Error::Term { index, problem };
    let (Ok((_, r)), Ok((s, _))) = (term.up.dims2(), term.down.dims2()) else {
        let (up, down) = (term.up.dims(), term.down.dims());
        return Err(fail(format!("expected up [out, r] and down [r, in], found {up:?} and {down:?}")));
    };
    if r != s {
        return Err(fail(format!("expected the ranks of up and down to agree, found {r} and {s}")));
    }
    let (up, down) = (to_matrix(&term.up)?, to_matrix(&term.down)?);
    let finite = term.weight.is_finite() && up.iter().chain(down.iter()).all(|value| value.is_finite());
    if !finite {
        return Err(fail("expected finite numbers, found NaN or infinity".into()));
    }
    Ok((up, down))
}

fn to_matrix(tensor: &Tensor) -> Result<DMatrix<f64>> {
    let read = || -> candle_core::Result<_> {
        let (rows, columns) = tensor.dims2()?;
        let values = tensor.flatten_all()?.to_dtype(DType::F64)?.to_vec1::<f64>()?;
        Ok(DMatrix::from_row_slice(rows, columns, &values))
    };
    read().during("reading a low-rank factor")
}

fn to_tensor(matrix: &DMatrix<f64>, dtype: DType, device: &Device) -> Result<Tensor> {
    // The column-major storage of the transpose is the row-major storage of the matrix.
    let values = matrix.transpose().as_slice().to_vec();
    Tensor::from_vec(values, (matrix.nrows(), matrix.ncols()), &Device::Cpu)
        .and_then(|tensor| tensor.to_dtype(dtype)?.to_device(device))
        .during("writing a low-rank factor")
}

fn beside(blocks: &[DMatrix<f64>]) -> DMatrix<f64> {
    let columns: Vec<_> = blocks.iter().flat_map(|block| block.column_iter()).collect();
    match columns.is_empty() {
        true => DMatrix::zeros(blocks[0].nrows(), 0),
        false => DMatrix::from_columns(&columns),
    }
}

fn decompose(core: &DMatrix<f64>) -> Result<Decomposition> {
    let (rows, columns) = core.shape();
    jacobi::decompose(core).ok_or(Error::NotConverged { rows, columns })
}

/// The factors `[out, rank]` and `[in, rank]`; √σ scales both sides of each component.
fn assemble(
    left: &DMatrix<f64>,
    right: &DMatrix<f64>,
    core: &Decomposition,
    rank: usize,
) -> (DMatrix<f64>, DMatrix<f64>) {
    let mut ups = DMatrix::zeros(left.nrows(), rank);
    let mut downs = DMatrix::zeros(right.nrows(), rank);
    let kept = core.values.iter().take(rank).enumerate().filter(|(_, sigma)| **sigma > 0.0);
    for (component, sigma) in kept {
        let (up, down) = (left * core.left.column(component), right * core.right.column(component));
        let scale = if up[up.iamax()] < 0.0 { -sigma.sqrt() } else { sigma.sqrt() };
        ups.set_column(component, &(up * scale));
        downs.set_column(component, &(down * scale));
    }
    (ups, downs)
}

fn discarded(singular_values: &[f64], rank: usize) -> f64 {
    let square = |values: &[f64]| values.iter().map(|value| value * value).sum::<f64>();
    let total = square(singular_values);
    if total == 0.0 { 0.0 } else { square(&singular_values[rank.min(singular_values.len())..]) / total }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::noise::{Noise, Stream};

    fn normal(sample: u64, rows: usize, columns: usize) -> Tensor {
        let noise = Noise::new(23).normal(Stream("linalg"), 0, sample, (rows, columns), &Device::Cpu).unwrap();
        noise.to_dtype(DType::F64).unwrap()
    }

    fn terms(out: usize, inside: usize, ranks: &[usize]) -> Vec<LowRankTerm> {
        let term = |(index, rank): (usize, &usize)| LowRankTerm {
            up: normal(2 * index as u64, out, *rank),
            down: normal(2 * index as u64 + 1, *rank, inside),
            weight: 0.5 + index as f64,
        };
        ranks.iter().enumerate().map(term).collect()
    }

    fn dense(terms: &[LowRankTerm]) -> DMatrix<f64> {
        let product = |term: &LowRankTerm| to_matrix(&term.up).unwrap() * to_matrix(&term.down).unwrap() * term.weight;
        terms.iter().map(product).reduce(|a, b| a + b).unwrap()
    }

    fn approximation(truncated: &Truncated) -> DMatrix<f64> {
        to_matrix(&truncated.up).unwrap() * to_matrix(&truncated.down).unwrap()
    }

    /// Squared singular values of a dense matrix, by another algorithm.
    fn squared_singular_values(matrix: &DMatrix<f64>) -> Vec<f64> {
        let mut values = (matrix.transpose() * matrix).symmetric_eigenvalues().as_slice().to_vec();
        values.sort_by(|a, b| b.total_cmp(a));
        values
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

        /// By Eckart and Young, the norm of the discarded singular values is the smallest error of any matrix of that
        /// rank; an approximation with this error is the truncated decomposition of the dense sum.
        #[test]
        fn comes_as_close_as_any_matrix_of_that_rank_can(
            out in 1..20usize,
            inside in 1..20usize,
            ranks in prop::collection::vec(1..6usize, 1..5),
            rank in 1..12usize,
        ) {
            let terms = terms(out, inside, &ranks);
            let matrix = dense(&terms);
            let truncated = low_rank_svd(&terms, rank).unwrap();
            prop_assert_eq!(truncated.up.dims(), &[out, rank]);
            prop_assert_eq!(truncated.down.dims(), &[rank, inside]);

            let (squares, norm) = (squared_singular_values(&matrix), matrix.norm_squared());
            let best: f64 = squares.iter().skip(rank).sum();
            let reached = (approximation(&truncated) - &matrix).norm_squared();
            prop_assert!((reached - best).abs() < 1e-12 * norm, "best {}, reached {}", best, reached);
            prop_assert!((truncated.discarded - best / norm).abs() < 1e-12);
            for (found, expected) in truncated.singular_values.iter().zip(&squares) {
                prop_assert!((found * found - expected).abs() < 1e-12 * norm, "{}² and {}", found, expected);
            }
        }

        #[test]
        fn is_exact_when_the_rank_suffices(ranks in prop::collection::vec(1..5usize, 1..4), spare in 0..3usize) {
            let terms = terms(13, 11, &ranks);
            let truncated = low_rank_svd(&terms, ranks.iter().sum::<usize>() + spare).unwrap();
            let difference = (approximation(&truncated) - dense(&terms)).norm();
            prop_assert!(difference < 1e-12 * dense(&terms).norm(), "difference {}", difference);
        }
    }

    #[test]
    fn a_sum_whose_decomposition_is_known_is_decomposed_so() {
        let tensor = |values: &[&[f64]]| {
            let flat: Vec<f64> = values.concat();
            Tensor::from_vec(flat, (values.len(), values[0].len()), &Device::Cpu).unwrap()
        };
        // 2 · e₁ f₁ᵀ + 5 · e₂ f₂ᵀ, where the e and the f are orthonormal.
        let term = LowRankTerm {
            up: tensor(&[&[0.6, 0.8], &[-0.8, 0.6]]),
            down: tensor(&[&[2.0, 0.0, 0.0], &[0.0, 3.0, 4.0]]),
            weight: 1.0,
        };
        let truncated = low_rank_svd(&[term], 1).unwrap();
        assert!(
            (truncated.singular_values[0] - 5.0).abs() < 1e-14 && (truncated.singular_values[1] - 2.0).abs() < 1e-14
        );
        assert!((truncated.discarded - 4.0 / 29.0).abs() < 1e-14);
        let (up, down) = (to_matrix(&truncated.up).unwrap(), to_matrix(&truncated.down).unwrap());
        let root = 5f64.sqrt();
        assert!((up / root - DMatrix::from_column_slice(2, 1, &[0.8, 0.6])).norm() < 1e-14);
        assert!((down / root - DMatrix::from_column_slice(1, 3, &[0.0, 0.6, 0.8])).norm() < 1e-14);
    }

    #[test]
    fn signs_do_not_depend_on_how_the_sum_is_written() {
        let terms = terms(7, 5, &[3]);
        let mut flipped = terms.clone();
        flipped[0].up = terms[0].up.neg().unwrap();
        flipped[0].down = terms[0].down.neg().unwrap();
        let (a, b) = (low_rank_svd(&terms, 2).unwrap(), low_rank_svd(&flipped, 2).unwrap());
        let difference = (to_matrix(&a.up).unwrap() - to_matrix(&b.up).unwrap()).norm();
        assert!(difference < 1e-12, "difference {difference}");
    }

    #[test]
    fn a_sum_of_zeros_is_approximated_by_zeros() {
        let zeros = LowRankTerm {
            up: Tensor::zeros((4, 2), DType::F32, &Device::Cpu).unwrap(),
            down: normal(0, 2, 3).to_dtype(DType::F32).unwrap(),
            weight: 1.0,
        };
        let truncated = low_rank_svd(&[zeros], 2).unwrap();
        assert_eq!(truncated.up.dtype(), DType::F32);
        assert_eq!((approximation(&truncated).norm(), truncated.discarded), (0.0, 0.0));
    }

    #[test]
    fn terms_that_do_not_fit_are_named() {
        let good = terms(4, 3, &[2]).remove(0);
        let broken = [
            LowRankTerm { down: normal(0, 3, 3), ..good.clone() },
            LowRankTerm { up: normal(0, 5, 2), ..good.clone() },
            LowRankTerm { weight: f64::NAN, ..good.clone() },
            LowRankTerm { up: normal(0, 4, 2).flatten_all().unwrap(), ..good.clone() },
        ];
        for term in broken {
            let error = low_rank_svd(&[good.clone(), term], 1).unwrap_err();
            assert!(matches!(error, Error::Term { index: 1, .. }), "{error}");
        }
        assert!(matches!(low_rank_svd(&[], 1), Err(Error::NoValues { .. })));
        assert!(matches!(low_rank_svd(&[good], 0), Err(Error::Number { .. })));
    }
}
