//! Attention that keeps one log-sum per query and head for the backward pass, instead of a matrix of scores.

mod factors;

use std::marker::PhantomData;
use std::sync::{Mutex, PoisonError};

use candle_core::{DType, Result, Shape, Tensor};
use rayon::prelude::*;

use super::device;
use super::softmax::Exponentials;
use catelier_kernels::{
    Float, Kernel3, Loop, Matrix, MatrixMut, NeedsGrad, Simd, Update, View, apply3, has_bf16_instructions,
    sum_of_products, vectorized,
};
use factors::{Blocks, Exact, Factors, KEYS, Rounded, Strips};

/// Queries whose scores are held at a time in the forward pass: with 4096 keys the scores take half a mebibyte.
const QUERIES: usize = 32;
/// Queries whose scores with [`KEYS`] keys are held at a time in the backward pass.
const BACKWARD_QUERIES: usize = 64;
/// Tokens whose rows are written together: sixteen f32 fill a cache line.
const LINE: usize = 16;

/// The keys that a query may attend to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttentionMask {
    /// All keys.
    None,
    /// Keys at the query's own position and before it (key index ≤ query index).
    Causal,
}

/// Multi-head attention, `softmax(q kᵀ / √d) v` for each head.
///
/// **Shapes** `q: [batch, t, heads · d]`, `k`, `v`: `[batch, s, heads · d]`; returns `[batch, t, heads · d]`. `t` and
/// `s` may differ. Keys and values are packed once for each head; the backward pass recomputes the scores.
///
/// **Gradient** to `q`, `k` and `v`.
///
/// **Source** Vaswani et al., arXiv 1706.03762; recomputation as in Dao et al., arXiv 2205.14135.
///
/// # Errors
/// For shapes that do not fit.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, mask: AttentionMask) -> Result<Tensor> {
    check(q, k, v, heads)?;
    if !q.device().is_cpu() {
        return device::attention(q, k, v, heads, mask);
    }
    let dtype = q.dtype();
    let kernel = Attention::<Exact>::new(heads, mask);
    match dtype {
        DType::F16 | DType::BF16 => {
            let [q, k, v] = [q, k, v].map(|x| x.to_dtype(DType::F32));
            apply3(&q?, &k?, &v?, kernel)?.to_dtype(dtype)
        }
        _ => apply3(q, k, v, kernel),
    }
}

/// [`attention`] with factors rounded to bf16, for models with bf16 weights; sums and softmax are in f32. On a CPU
/// without bf16 instructions it equals [`attention`].
///
/// **Gradient** to `q`, `k` and `v`.
///
/// # Errors
/// For shapes that do not fit.
pub fn attention_rounded(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, mask: AttentionMask) -> Result<Tensor> {
    check(q, k, v, heads)?;
    if q.device().is_cpu() && q.dtype() == DType::F32 && has_bf16_instructions() {
        return apply3(q, k, v, Attention::<Rounded>::new(heads, mask));
    }
    attention(q, k, v, heads, mask)
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

struct Attention<F> {
    heads: usize,
    mask: AttentionMask,
    factors: PhantomData<F>,
    /// `[batch, t, heads]` in f64: the logarithm of `Σ exp(score)` of each query, from the forward pass.
    log_sums: Mutex<Box<[f64]>>,
}

/// Sizes of one call, and the position of each head in its tensors.
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

    /// Number of keys that the first `queries` queries may attend to.
    fn visible(&self, queries: usize) -> usize {
        match self.mask {
            AttentionMask::None => self.keys,
            AttentionMask::Causal => queries.min(self.keys),
        }
    }

    /// Rows `first..first + rows` of one head of one sample, from a `[batch, tokens, width]` tensor.
    fn head<'a, T>(
        &self,
        data: &'a [T],
        tokens: usize,
        sample: usize,
        head: usize,
        rows: (usize, usize),
    ) -> Matrix<'a, T> {
        let start = (sample * tokens + rows.0) * self.width() + head * self.head_width;
        // The offset of an empty head may lie beyond the data.
        let data = data.get(start..).unwrap_or(&[]);
        Matrix::rows_apart(data, rows.1, self.head_width, self.width())
    }
}

impl<F> Attention<F> {
    fn new(heads: usize, mask: AttentionMask) -> Self {
        Self { heads, mask, factors: PhantomData, log_sums: Mutex::new(Box::new([])) }
    }

    fn sizes<T>(&self, q: &View<'_, T>, k: &View<'_, T>) -> Sizes {
        let (batch, queries, width, keys) = (q.dims[0], q.dims[1], q.dims[2], k.dims[1]);
        Sizes { batch, queries, keys, heads: self.heads, head_width: width / self.heads, mask: self.mask }
    }
}

impl<F: Factors> Kernel3 for Attention<F> {
    const NAME: &'static str = "attention";

    fn forward<T: Float>(&self, [q, k, v]: [View<'_, T>; 3]) -> Result<(Vec<T>, Shape)> {
        let sizes = self.sizes(&q, &k);
        let mut output = vec![T::ZERO; q.data.len()];
        let mut log_sums = vec![0.0; sizes.batch * sizes.queries * sizes.heads];
        if sizes.keys > 0 && !output.is_empty() {
            let samples = output.par_chunks_mut(sizes.queries * sizes.width());
            let samples = samples.zip(log_sums.par_chunks_mut(sizes.queries * sizes.heads)).enumerate();
            samples.for_each(|(sample, (output, log_sums))| {
                let head = |data, head| sizes.head(data, sizes.keys, sample, head, (0, sizes.keys));
                let seen =
                    |index| Seen { keys: Strips::new(head(k.data, index)), values: Blocks::new(head(v.data, index)) };
                let heads: Vec<Seen<F, T>> = (0..sizes.heads).into_par_iter().map(seen).collect();
                let q = &q.data[sample * sizes.queries * sizes.width()..];
                let blocks = output.par_chunks_mut(QUERIES * sizes.width());
                let blocks = blocks.zip(log_sums.par_chunks_mut(QUERIES * sizes.heads)).enumerate();
                blocks.for_each_init(Vec::new, |scores, (block, (output, log_sums))| {
                    forward_block(&sizes, (q, &heads), block * QUERIES, scores, output, log_sums);
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
        _: NeedsGrad,
    ) -> Result<[Vec<T>; 3]> {
        let sizes = self.sizes(&q, &k);
        let log_sums = self.log_sums.lock().unwrap_or_else(PoisonError::into_inner);
        let forward = Forward { q: q.data, k: k.data, v: v.data, y: y.data, grad: grad.data, log_sums: &log_sums };
        let heads: Vec<_> = (0..sizes.batch * sizes.heads)
            .into_par_iter()
            .map(|index| HeadGradients::compute::<F>(&sizes, &forward, index / sizes.heads, index % sizes.heads))
            .collect();
        Ok([
            interleave(&sizes, sizes.queries, &heads, |head| (&head.dq, Rows::Tokens)),
            interleave(&sizes, sizes.keys, &heads, |head| (&head.dk, Rows::Channels)),
            interleave(&sizes, sizes.keys, &heads, |head| (&head.dv, Rows::Channels)),
        ])
    }
}

/// Packed keys and values of one head of one sample, for the forward pass.
struct Seen<F: Factors, T: Float> {
    keys: Strips<F, T>,
    values: Blocks<F, T>,
}

/// Output rows and log-sums for a block of queries of one sample, starting at query `first`, for all heads.
fn forward_block<F: Factors, T: Float>(
    sizes: &Sizes,
    (q, heads): (&[T], &[Seen<F, T>]),
    first: usize,
    scores: &mut Vec<T>,
    output: &mut [T],
    log_sums: &mut [f64],
) {
    let rows = output.len() / sizes.width();
    let visible = sizes.visible(first + rows);
    let mut factors = [T::ZERO; QUERIES];
    scores.resize(rows * visible, T::ZERO);
    for (head, Seen { keys, values }) in heads.iter().enumerate() {
        let q = sizes.head(q, sizes.queries, 0, head, (first, rows));
        keys.multiply(q, (0, visible), sizes.scale(), scores, visible);
        for (row, scores) in scores.chunks_exact_mut(visible).enumerate() {
            let (seen, hidden) = scores.split_at_mut(sizes.visible(first + row + 1));
            let (peak, total) = vectorized::<Exponentials, _>(seen);
            log_sums[row * sizes.heads + head] = (peak + total.ln()).to_f64();
            factors[row] = T::ONE / total;
            hidden.fill(T::ZERO);
        }
        for start in (0..visible).step_by(KEYS) {
            let scores = Matrix::rows_apart(&scores[start..], rows, KEYS.min(visible - start), visible);
            let output = &mut output[head * sizes.head_width..];
            let output = MatrixMut::rows_apart(output, rows, sizes.head_width, sizes.width());
            let update = if start == 0 { Update::Replace } else { Update::Add };
            values.multiply(output, update, scores, start);
        }
        // Dividing the few results by the sums is cheaper than dividing the many scores.
        for (row, factor) in output.chunks_exact_mut(sizes.width()).zip(factors) {
            row[head * sizes.head_width..][..sizes.head_width].iter_mut().for_each(|value| *value *= factor);
        }
    }
}

/// Tensors of the forward pass, and the gradient of its result.
struct Forward<'a, T> {
    q: &'a [T],
    k: &'a [T],
    v: &'a [T],
    y: &'a [T],
    grad: &'a [T],
    log_sums: &'a [f64],
}

/// Gradients of one head of one sample: `dq: [queries, head_width]`, `dk` and `dv`: `[head_width, keys]`.
struct HeadGradients<T> {
    dq: Vec<T>,
    dk: Vec<T>,
    dv: Vec<T>,
}

/// One head of one sample in the backward pass, with its operands packed.
struct Head<'a, F: Factors, T: Float> {
    sizes: Sizes,
    forward: &'a Forward<'a, T>,
    sample: usize,
    head: usize,
    keys: Strips<F, T>,
    values: Strips<F, T>,
    key_rows: Blocks<F, T>,
    /// Queries and gradients of the result, each `[head_width, queries]`.
    queries: Vec<T>,
    grads: Vec<T>,
    /// `Σ y · dy` of each query: the term by which softmax's gradient depends on the sum of exponentials.
    slopes: Vec<T>,
}

impl<T: Float> HeadGradients<T> {
    fn compute<F: Factors>(sizes: &Sizes, forward: &Forward<'_, T>, sample: usize, head: usize) -> Self {
        let width = sizes.head_width;
        let mut this = Self {
            dq: vec![T::ZERO; sizes.queries * width],
            dk: vec![T::ZERO; sizes.keys * width],
            dv: vec![T::ZERO; sizes.keys * width],
        };
        let of_keys = |data| sizes.head(data, sizes.keys, sample, head, (0, sizes.keys));
        let of_queries = |data| sizes.head(data, sizes.queries, sample, head, (0, sizes.queries));
        let (y, grad) = (of_queries(forward.y), of_queries(forward.grad));
        let head = Head::<F, T> {
            sizes: *sizes,
            forward,
            sample,
            head,
            keys: Strips::new(of_keys(forward.k)),
            values: Strips::new(of_keys(forward.v)),
            key_rows: Blocks::new(of_keys(forward.k)),
            queries: of_queries(forward.q).transposed(),
            grads: grad.transposed(),
            slopes: (0..sizes.queries).map(|query| vectorized::<Slope, _>((y.row(query), grad.row(query)))).collect(),
        };
        let block = BACKWARD_QUERIES.min(sizes.queries) * KEYS.min(sizes.keys);
        let mut scratch = (vec![T::ZERO; block], vec![T::ZERO; block]);
        for key in (0..sizes.keys).step_by(KEYS) {
            for first in (0..sizes.queries).step_by(BACKWARD_QUERIES) {
                let rows = (first, BACKWARD_QUERIES.min(sizes.queries - first));
                let visible = sizes.visible(rows.0 + rows.1).saturating_sub(key);
                this.add_block(&head, rows, (key, KEYS.min(visible)), &mut scratch);
            }
        }
        this
    }

    /// Adds the gradients from queries `first..first + count` and keys `key..key + keys`.
    fn add_block<F: Factors>(
        &mut self,
        head: &Head<'_, F, T>,
        (first, count): (usize, usize),
        (key, keys): (usize, usize),
        (p, ds): &mut (Vec<T>, Vec<T>),
    ) {
        if keys == 0 {
            return;
        }
        let (sizes, forward) = (&head.sizes, head.forward);
        let width = sizes.head_width;
        let (p, ds) = (&mut p[..count * keys], &mut ds[..count * keys]);
        let of_queries = |data| sizes.head(data, sizes.queries, head.sample, head.head, (first, count));
        head.keys.multiply(of_queries(forward.q), (key, keys), sizes.scale(), p, keys);
        head.values.multiply(of_queries(forward.grad), (key, keys), T::ONE, ds, keys);
        for (row, (p, ds)) in p.chunks_exact_mut(keys).zip(ds.chunks_exact_mut(keys)).enumerate() {
            let token = head.sample * sizes.queries + first + row;
            let row = ScoreRow {
                p,
                ds,
                seen: sizes.visible(first + row + 1).saturating_sub(key).min(keys),
                log_sum: T::from_f64(forward.log_sums[token * sizes.heads + head.head]),
                slope: head.slopes[first + row],
                scale: sizes.scale(),
            };
            vectorized::<Differentiate, _>(row);
        }
        let (p, ds) = (Matrix::new(p, count, keys), Matrix::new(ds, count, keys));
        let add_keys = |into: &mut [T], queries: &[T], scores: Matrix<'_, T>| {
            let queries = Matrix::rows_apart(&queries[first..], width, count, sizes.queries);
            let into = MatrixMut::rows_apart(&mut into[key..], width, keys, sizes.keys);
            F::multiply(into, Update::Add, T::ONE, &F::left(queries), &F::right(scores));
        };
        add_keys(&mut self.dv, &head.grads, p);
        add_keys(&mut self.dk, &head.queries, ds);
        let dq = MatrixMut::new(&mut self.dq[first * width..][..count * width], count, width);
        head.key_rows.multiply(dq, Update::Add, ds, key);
    }
}

/// `Σ y · dy`.
struct Slope;

impl<T: Float> Loop<(&[T], &[T])> for Slope {
    type Output = T;

    #[inline(always)]
    fn run<S: Simd>(_: S, (y, grad): (&[T], &[T])) -> T {
        T::from_f64(sum_of_products(y, grad, |y, grad| y * grad))
    }
}

/// The scores of one query against a block of keys in the backward pass.
struct ScoreRow<'a, T> {
    /// Scores on entry, probabilities on return.
    p: &'a mut [T],
    /// Gradients of the probabilities on entry, of the scores on return.
    ds: &'a mut [T],
    /// Number of keys in this block that the query may attend to.
    seen: usize,
    log_sum: T,
    slope: T,
    scale: T,
}

/// `p = exp(s − log Σ exp s)` and `ds = p · (dp − slope) · scale`.
struct Differentiate;

impl<T: Float> Loop<ScoreRow<'_, T>> for Differentiate {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(_: S, row: ScoreRow<'_, T>) {
        for (p, ds) in row.p[..row.seen].iter_mut().zip(&mut row.ds[..row.seen]) {
            *p = (*p - row.log_sum).exp::<S>();
            *ds = *p * (*ds - row.slope) * row.scale;
        }
        row.p[row.seen..].fill(T::ZERO);
        row.ds[row.seen..].fill(T::ZERO);
    }
}

/// Whether the rows of a head's gradient matrix are tokens or channels.
#[derive(Clone, Copy)]
enum Rows {
    Tokens,
    Channels,
}

/// From one matrix per sample and head to `[batch, tokens, heads · head_width]`.
fn interleave<T: Float>(
    sizes: &Sizes,
    tokens: usize,
    heads: &[HeadGradients<T>],
    of: fn(&HeadGradients<T>) -> (&[T], Rows),
) -> Vec<T> {
    let mut result = vec![T::ZERO; sizes.batch * tokens * sizes.width()];
    if result.is_empty() {
        return result;
    }
    let samples = result.par_chunks_exact_mut(tokens * sizes.width()).zip(heads.par_chunks_exact(sizes.heads));
    samples.for_each(|(result, heads)| {
        result.par_chunks_mut(LINE * sizes.width()).enumerate().for_each(|(block, result)| {
            for (place, head) in heads.iter().enumerate() {
                put(&mut result[place * sizes.head_width..], sizes, of(head), block * LINE);
            }
        });
    });
    result
}

/// Copies one head's tokens, starting at token `first`, into `result`, whose rows hold all heads.
fn put<T: Float>(result: &mut [T], sizes: &Sizes, (matrix, rows): (&[T], Rows), first: usize) {
    let width = sizes.head_width;
    match rows {
        Rows::Tokens => {
            let tokens = matrix[first * width..].chunks_exact(width);
            result.chunks_mut(sizes.width()).zip(tokens).for_each(|(row, token)| row[..width].copy_from_slice(token));
        }
        Rows::Channels => {
            for (channel, row) in matrix.chunks_exact(matrix.len() / width).enumerate() {
                let column = result[channel..].iter_mut().step_by(sizes.width());
                column.zip(&row[first..]).for_each(|(value, number)| *value = *number);
            }
        }
    }
}
