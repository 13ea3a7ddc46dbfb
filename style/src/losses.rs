//! The losses of FedStyle, reconstructed, and of the methods that it is compared with.
//!
//! FedStyle's paper (arXiv 2404.16336) could not be read: that artists align with the server, that contrast shapes the
//! space, and that a small public set helps the server is known; the formulas here are a reconstruction. All tensors may be
//! f32 or f64, and all losses are scalars. **Gradient** flows to every tensor argument.

use candle_core::{D, Result, Tensor};

/// Rows at length 1, `[n, d]`.
pub fn unit_rows(rows: &Tensor) -> Result<Tensor> {
    rows.broadcast_div(&(rows.sqr()?.sum_keepdim(D::Minus1)? + 1e-12)?.sqrt()?)
}

/// Cross-entropy of logits `[n, k]` against labels below `k`, averaged over the rows.
pub fn cross_entropy(logits: &Tensor, labels: &[u32]) -> Result<Tensor> {
    let (n, k) = logits.dims2()?;
    let chosen = |row: usize, column: usize| labels.get(row).is_some_and(|label| *label as usize == column);
    let chosen = mask(logits, (n, k), chosen)?;
    let shifted = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?.detach())?;
    let log_sum = shifted.exp()?.sum_keepdim(D::Minus1)?.log()?;
    (shifted.broadcast_sub(&log_sum)? * chosen)?.sum_all()? * (-1.0 / n as f64)
}

/// Cross-entropy against a classifier whose rows are prototypes of length 1: the logits are `directions · bank^T / tau`.
/// A classifier of fixed norms cannot win by growing, which a client with one style would otherwise do.
///
/// Directions `[n, d]`, bank `[k, d]`, labels below `k`.
pub fn prototype_cross_entropy(directions: &Tensor, bank: &Tensor, labels: &[u32], temperature: f64) -> Result<Tensor> {
    cross_entropy(&(directions.matmul(&bank.t()?)? / temperature)?, labels)
}

/// `mean(1 - z_i · p_i)`: the distance of directions from the server's prototypes of their styles, both `[n, d]`.
pub fn alignment(directions: &Tensor, targets: &Tensor) -> Result<Tensor> {
    1.0 - (directions * targets)?.sum(D::Minus1)?.mean_all()?
}

/// Supervised contrastive loss, whose denominators also hold negatives from elsewhere: a client with one style has none of
/// its own, so they are the server's prototypes of other styles and works of the public set.
///
/// For a row `i` with the others of its label `P(i)`:
/// `-1/|P(i)| Σ_p log( exp(z_i·z_p/tau) / (Σ_{a≠i} exp(z_i·z_a/tau) + Σ_m exp(z_i·n_m/tau)) )`, averaged over the rows
/// with a positive. Without any, it is 0.
///
/// Directions `[n, d]`, negatives `[m, d]`.
///
/// **Source** Khosla and others, arXiv 2004.11362, equation 2; the negatives from elsewhere are reconstructed.
pub fn contrastive(directions: &Tensor, labels: &[u32], negatives: &Tensor, temperature: f64) -> Result<Tensor> {
    let n = directions.dim(0)?;
    let same = |row: usize, column: usize| row != column && labels.get(row) == labels.get(column);
    let positives: Vec<usize> = (0..n).map(|row| (0..n).filter(|column| same(row, *column)).count()).collect();
    let anchors = positives.iter().filter(|count| **count > 0).count();
    let own = (directions.matmul(&directions.t()?)? / temperature)?;
    if anchors == 0 {
        return own.sum_all()? * 0.0;
    }
    let foreign = (directions.matmul(&negatives.t()?)? / temperature)?;
    let largest = Tensor::cat(&[&own, &foreign], 1)?.max_keepdim(1)?.detach();
    let own = own.broadcast_sub(&largest)?;
    let others = mask(&own, (n, n), |row, column| row != column)?;
    let foreign = foreign.broadcast_sub(&largest)?.exp()?.sum_keepdim(1)?;
    let sum = ((own.exp()? * others)?.sum_keepdim(1)? + foreign)?;
    let weight = |row: usize, column: usize| match same(row, column) {
        true => 1.0 / (positives[row] * anchors) as f64,
        false => 0.0,
    };
    let weights = weights(&own, (n, n), weight)?;
    (own.broadcast_sub(&sum.log()?)? * weights)?.sum_all()?.neg()
}

/// MOON's contrast of models: a direction should lie nearer to the global model's than to that of the client's last model.
/// All `[n, d]`; only `directions` should have a gradient.
///
/// **Source** arXiv 2103.16257, equation 3.
pub fn model_contrast(directions: &Tensor, global: &Tensor, previous: &Tensor, temperature: f64) -> Result<Tensor> {
    let alike = |other: &Tensor| (directions * other)?.sum_keepdim(D::Minus1)? / temperature;
    let logits = Tensor::cat(&[alike(global)?, alike(previous)?], 1)?;
    cross_entropy(&logits, &vec![0; directions.dim(0)?])
}

/// FedProto's distance from the server's prototypes: the mean over the rows of `‖z_i - p_i‖²`, both `[n, d]`.
///
/// **Source** arXiv 2105.00243, equation 6.
pub fn prototype_distance(directions: &Tensor, targets: &Tensor) -> Result<Tensor> {
    (directions - targets)?.sqr()?.sum(D::Minus1)?.mean_all()
}

/// FedProx's term `mu / 2 ‖w - w_global‖²`.
///
/// **Source** arXiv 1812.06127, equation 2.
pub fn proximal(parameters: &Tensor, global: &Tensor, mu: f64) -> Result<Tensor> {
    (parameters - global)?.sqr()?.sum_all()? * (mu / 2.0)
}

fn mask(like: &Tensor, shape: (usize, usize), chosen: impl Fn(usize, usize) -> bool) -> Result<Tensor> {
    weights(like, shape, |row, column| f64::from(u8::from(chosen(row, column))))
}

/// A constant `[rows, columns]` in the type of `like`.
fn weights(like: &Tensor, (rows, columns): (usize, usize), weight: impl Fn(usize, usize) -> f64) -> Result<Tensor> {
    let weights: Vec<f64> = (0..rows)
        .flat_map(|row| (0..columns).map(move |column| (row, column)))
        .map(|(row, column)| weight(row, column))
        .collect();
    Tensor::from_vec(weights, (rows, columns), like.device())?.to_dtype(like.dtype())
}
