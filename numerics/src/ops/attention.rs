//! Attention that keeps one number per query instead of a matrix of scores.

use std::sync::{Mutex, PoisonError};

use candle_core::{DType, Result, Shape, Tensor};
use rayon::prelude::*;

use super::composed;
use super::softmax::softmax_row;
use crate::kernel::{
    Float, Kernel3, Matrix, MatrixMut, Threads, Update, View, Wanted, apply3, multiply, sum_of_products, vectorized,
};

/// Queries whose scores are held at a time.
const BLOCK: usize = 128;

/// Which keys a query may look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttentionMask {
    /// All of them.
    None,
    /// Those at its own position and before (key index ≤ query index).
    Causal,
}

/// Multi-head attention, `softmax(q kᵀ / √d) v` for each head.
///
/// **Shapes** `q: [batch, t, heads · d]`, `k`, `v`: `[batch, s, heads · d]`; returns `[batch, t, heads · d]`. `t` and
/// `s` may differ. Nothing is transposed or copied, and the scores are computed again in the backward pass.
///
/// **Gradient** to `q`, `k` and `v`.
///
/// **Errors** for shapes that do not fit.
///
/// **Source** Vaswani et al., arXiv 1706.03762; recomputation as in Dao et al., arXiv 2205.14135.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, mask: AttentionMask) -> Result<Tensor> {
    check(q, k, v, heads)?;
    if !q.device().is_cpu() {
        return composed::attention(q, k, v, heads, mask);
    }
    let dtype = q.dtype();
    let kernel = Attention { heads, mask, log_sums: Mutex::new(Box::new([])) };
    match dtype {
        DType::F16 | DType::BF16 => {
            let [q, k, v] = [q, k, v].map(|x| x.to_dtype(DType::F32));
            apply3(&q?, &k?, &v?, kernel)?.to_dtype(dtype)
        }
        _ => apply3(q, k, v, kernel),
    }
}

fn check(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize) -> Result<()> {
    let ((batch, _, width), (k_batch, _, k_width)) = (q.dims3()?, k.dims3()?);
    if heads == 0 || width % heads != 0 {
        candle_core::bail!("attention: expected a width divisible by {heads} heads, found {width}");
    }
    if k.dims() != v.dims() || (batch, width) != (k_batch, k_width) {
        let (q, k, v) = (q.dims(), k.dims(), v.dims());
        candle_core::bail!("attention: expected k and v [{batch}, s, {width}] for q {q:?}, found {k:?} and {v:?}");
    }
    Ok(())
}

struct Attention {
    heads: usize,
    mask: AttentionMask,
    /// `[batch, t, heads]` in f64: logarithm of the sum of exponentials of each row of scores, from the forward pass.
    log_sums: Mutex<Box<[f64]>>,
}

/// Sizes of one call, and how to find a head in it.
#[derive(Clone, Copy)]
struct Sizes {
    batch: usize,
    queries: usize,
    keys: usize,
    heads: usize,
    head_width: usize,
    mask: AttentionMask,
}

impl Sizes {
    fn width(&self) -> usize {
        self.heads * self.head_width
    }

    fn scale<T: Float>(&self) -> T {
        T::from_f64(1.0 / (self.head_width as f64).sqrt())
    }

    /// How many keys the first `queries` queries can see.
    fn visible(&self, queries: usize) -> usize {
        match self.mask {
            AttentionMask::None => self.keys,
            AttentionMask::Causal => queries.min(self.keys),
        }
    }

    /// Rows `first..first + rows` of one head of one sample of a `[batch, tokens, width]` tensor.
    fn head<'a, T>(
        &self,
        data: &'a [T],
        tokens: usize,
        sample: usize,
        head: usize,
        rows: (usize, usize),
    ) -> Matrix<'a, T> {
        let start = (sample * tokens + rows.0) * self.width() + head * self.head_width;
        // A head of no rows may begin beyond the data.
        let data = data.get(start..).unwrap_or(&[]);
        Matrix::rows_apart(data, rows.1, self.head_width, self.width())
    }
}

impl Attention {
    fn sizes<T>(&self, q: &View<'_, T>, k: &View<'_, T>) -> Sizes {
        let (batch, queries, width, keys) = (q.dims[0], q.dims[1], q.dims[2], k.dims[1]);
        Sizes { batch, queries, keys, heads: self.heads, head_width: width / self.heads, mask: self.mask }
    }
}

impl Kernel3 for Attention {
    const NAME: &'static str = "attention";

    fn forward<T: Float>(&self, [q, k, v]: [View<'_, T>; 3]) -> Result<(Vec<T>, Shape)> {
        let sizes = self.sizes(&q, &k);
        let mut output = vec![T::ZERO; q.data.len()];
        let mut log_sums = vec![0.0; sizes.batch * sizes.queries * sizes.heads];
        if sizes.keys > 0 && !output.is_empty() {
            let samples = output.par_chunks_mut(sizes.queries * sizes.width());
            let samples = samples.zip(log_sums.par_chunks_mut(sizes.queries * sizes.heads)).enumerate();
            samples.for_each(|(sample, (output, log_sums))| {
                let blocks = output.par_chunks_mut(BLOCK * sizes.width());
                let blocks = blocks.zip(log_sums.par_chunks_mut(BLOCK * sizes.heads)).enumerate();
                blocks.for_each(|(block, (output, log_sums))| {
                    forward_block(&sizes, [q.data, k.data, v.data], sample, block * BLOCK, output, log_sums);
                });
            });
        }
        *self.log_sums.lock().unwrap_or_else(PoisonError::into_inner) = log_sums.into_boxed_slice();
        Ok((output, q.dims.into()))
    }

    fn backward<T: Float>(
        &self,
        [q, k, v]: [View<'_, T>; 3],
        y: View<'_, T>,
        grad: View<'_, T>,
        _: Wanted,
    ) -> Result<[Vec<T>; 3]> {
        let sizes = self.sizes(&q, &k);
        let log_sums = self.log_sums.lock().unwrap_or_else(PoisonError::into_inner);
        let forward = Forward { q: q.data, k: k.data, v: v.data, y: y.data, grad: grad.data, log_sums: &log_sums };
        let heads: Vec<_> = (0..sizes.batch * sizes.heads)
            .into_par_iter()
            .map(|index| HeadGradients::compute(&sizes, &forward, index / sizes.heads, index % sizes.heads))
            .collect();
        let gather = |tokens, of: fn(&HeadGradients<T>) -> &[T]| interleave(&sizes, tokens, &heads, of);
        Ok([
            gather(sizes.queries, |head| &head.dq),
            gather(sizes.keys, |head| &head.dk),
            gather(sizes.keys, |head| &head.dv),
        ])
    }
}

/// Output rows and log-sums of the queries from `first` on, for all heads.
fn forward_block<T: Float>(
    sizes: &Sizes,
    [q, k, v]: [&[T]; 3],
    sample: usize,
    first: usize,
    output: &mut [T],
    log_sums: &mut [f64],
) {
    let rows = output.len() / sizes.width();
    let visible = sizes.visible(first + rows);
    let mut scores = vec![T::ZERO; rows * visible];
    for head in 0..sizes.heads {
        let q = sizes.head(q, sizes.queries, sample, head, (first, rows));
        let k = sizes.head(k, sizes.keys, sample, head, (0, visible));
        let v = sizes.head(v, sizes.keys, sample, head, (0, visible));
        multiply(MatrixMut::new(&mut scores, rows, visible), Update::Replace, sizes.scale(), q, k.t(), Threads::One);
        for (row, scores) in scores.chunks_exact_mut(visible).enumerate() {
            let (seen, hidden) = scores.split_at_mut(sizes.visible(first + row + 1));
            log_sums[row * sizes.heads + head] = softmax_row(seen).to_f64();
            hidden.fill(T::ZERO);
        }
        let output = &mut output[head * sizes.head_width..];
        let output = MatrixMut::rows_apart(output, rows, sizes.head_width, sizes.width());
        multiply(output, Update::Replace, T::ONE, Matrix::new(&scores, rows, visible), v, Threads::One);
    }
}

/// What the forward pass left, and the gradient of its result.
struct Forward<'a, T> {
    q: &'a [T],
    k: &'a [T],
    v: &'a [T],
    y: &'a [T],
    grad: &'a [T],
    log_sums: &'a [f64],
}

/// Gradients of one head of one sample, each `[tokens, head_width]`.
struct HeadGradients<T> {
    dq: Vec<T>,
    dk: Vec<T>,
    dv: Vec<T>,
}

impl<T: Float> HeadGradients<T> {
    fn compute(sizes: &Sizes, forward: &Forward<'_, T>, sample: usize, head: usize) -> Self {
        let width = sizes.head_width;
        let mut this = Self {
            dq: vec![T::ZERO; sizes.queries * width],
            dk: vec![T::ZERO; sizes.keys * width],
            dv: vec![T::ZERO; sizes.keys * width],
        };
        let block_elements = BLOCK.min(sizes.queries) * sizes.keys;
        let mut scratch = (vec![T::ZERO; block_elements], vec![T::ZERO; block_elements]);
        if sizes.keys > 0 {
            for first in (0..sizes.queries).step_by(BLOCK) {
                let rows = (first, BLOCK.min(sizes.queries - first));
                this.add_block(sizes, forward, (sample, head), rows, &mut scratch);
            }
        }
        this
    }

    /// Adds what the queries `first..first + count` contribute.
    fn add_block(
        &mut self,
        sizes: &Sizes,
        forward: &Forward<'_, T>,
        (sample, head): (usize, usize),
        (first, count): (usize, usize),
        (p, ds): &mut (Vec<T>, Vec<T>),
    ) {
        let (width, visible) = (sizes.head_width, sizes.visible(first + count));
        let (p, ds) = (&mut p[..count * visible], &mut ds[..count * visible]);
        let of_queries = |data| sizes.head(data, sizes.queries, sample, head, (first, count));
        let of_keys = |data| sizes.head(data, sizes.keys, sample, head, (0, visible));
        let (q, grad) = (of_queries(forward.q), of_queries(forward.grad));
        let (k, v) = (of_keys(forward.k), of_keys(forward.v));

        multiply(MatrixMut::new(p, count, visible), Update::Replace, sizes.scale(), q, k.t(), Threads::One);
        multiply(MatrixMut::new(ds, count, visible), Update::Replace, T::ONE, grad, v.t(), Threads::One);
        for (row, (p, ds)) in p.chunks_exact_mut(visible).zip(ds.chunks_exact_mut(visible)).enumerate() {
            let token = sample * sizes.queries + first + row;
            let at = token * sizes.width() + head * width;
            let row = ScoreRow {
                p,
                ds,
                seen: sizes.visible(first + row + 1),
                log_sum: T::from_f64(forward.log_sums[token * sizes.heads + head]),
                y: &forward.y[at..][..width],
                grad: &forward.grad[at..][..width],
                scale: sizes.scale(),
            };
            vectorized(row, ScoreRow::differentiate);
        }
        let (p, ds) = (Matrix::new(p, count, visible), Matrix::new(ds, count, visible));
        let add = |into: &mut [T], rows, a, b| {
            multiply(MatrixMut::new(into, rows, width), Update::Add, T::ONE, a, b, Threads::One);
        };
        add(&mut self.dv[..visible * width], visible, p.t(), grad);
        add(&mut self.dk[..visible * width], visible, ds.t(), q);
        add(&mut self.dq[first * width..][..count * width], count, ds, k);
    }
}

/// The scores of one query in the backward pass.
struct ScoreRow<'a, T> {
    /// Scores, to become probabilities.
    p: &'a mut [T],
    /// Gradients of the probabilities, to become those of the scores.
    ds: &'a mut [T],
    /// How many keys the query may look at.
    seen: usize,
    log_sum: T,
    /// The query's result and its gradient.
    y: &'a [T],
    grad: &'a [T],
    scale: T,
}

impl<T: Float> ScoreRow<'_, T> {
    /// `p = exp(s − log Σ exp s)` and `ds = p · (dp − Σ y · dy) · scale`.
    #[inline(always)]
    fn differentiate(self) {
        let delta = T::from_f64(sum_of_products(self.y, self.grad, |y, grad| y * grad));
        for (p, ds) in self.p[..self.seen].iter_mut().zip(&mut self.ds[..self.seen]) {
            *p = (*p - self.log_sum).exp();
            *ds = *p * (*ds - delta) * self.scale;
        }
        self.p[self.seen..].fill(T::ZERO);
        self.ds[self.seen..].fill(T::ZERO);
    }
}

/// From one `[tokens, head_width]` per sample and head to `[batch, tokens, heads * head_width]`.
fn interleave<T: Float>(
    sizes: &Sizes,
    tokens: usize,
    heads: &[HeadGradients<T>],
    of: fn(&HeadGradients<T>) -> &[T],
) -> Vec<T> {
    crate::kernel::map_rows(sizes.batch * tokens, sizes.width(), |first, rows| {
        for (row, columns) in rows.chunks_exact_mut(sizes.width()).enumerate() {
            let (sample, token) = ((first + row) / tokens, (first + row) % tokens);
            for (head, columns) in columns.chunks_exact_mut(sizes.head_width).enumerate() {
                let source = of(&heads[sample * sizes.heads + head]);
                columns.copy_from_slice(&source[token * sizes.head_width..][..sizes.head_width]);
            }
        }
    })
}
