//! Exact attention over blocks of queries: it holds the scores of one block at a time.

use std::sync::Arc;

use candle_core::{D, Result, Tensor};

use super::super::prepared::{Backward3, with_backward3};
use super::super::{AttentionMask, composed};
use super::{product, wide};

/// Bytes of one block's f32 scores, over all samples and heads. A block's temporaries are a few times as large;
/// products with fewer queries would be too small to fill a large GPU.
const BLOCK_BYTES: usize = 128 << 20;

/// Multi-head attention; shapes as in [`composed::attention`].
///
/// Products are in the type of the tensors; for half precision, softmax and the sums over blocks are in f32.
pub(in super::super) fn attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    heads: usize,
    mask: AttentionMask,
) -> Result<Tensor> {
    in_blocks(q, k, v, heads, mask, BLOCK_BYTES)
}

/// [`attention`] in blocks of at most `bytes` bytes of scores, but of at least one query.
pub(super) fn in_blocks(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    heads: usize,
    mask: AttentionMask,
    bytes: usize,
) -> Result<Tensor> {
    let blocks = Blocks::new(q, k, heads, mask, bytes)?;
    let y = blocks.forward(&q.detach(), &k.detach(), &v.detach())?;
    let backward: Backward3 =
        Arc::new(move |[q, k, v], grad, _| blocks.backward(q, k, v, grad).map(|all| all.map(Some)));
    with_backward3([q, k, v], &y, backward)
}

/// The sizes of one call, and the number of queries in a block.
#[derive(Debug, Clone, Copy)]
pub(super) struct Blocks {
    heads: usize,
    head_width: usize,
    queries: usize,
    keys: usize,
    mask: AttentionMask,
    /// Number of queries in a block; the last block may have fewer.
    size: usize,
}

/// Queries `first..first + count`, and the number of keys that the last of them may attend to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Block {
    pub(super) first: usize,
    pub(super) count: usize,
    pub(super) visible: usize,
}

impl Blocks {
    pub(super) fn new(q: &Tensor, k: &Tensor, heads: usize, mask: AttentionMask, bytes: usize) -> Result<Self> {
        let ((batch, queries, width), keys) = (q.dims3()?, k.dim(1)?);
        let bytes_of_a_query = batch * heads * keys * size_of::<f32>();
        let size = (bytes / bytes_of_a_query.max(1)).max(1);
        Ok(Self { heads, head_width: width / heads, queries, keys, mask, size })
    }

    fn scale(&self) -> f64 {
        1.0 / (self.head_width as f64).sqrt()
    }

    pub(super) fn iter(self) -> impl Iterator<Item = Block> {
        (0..self.queries).step_by(self.size).map(move |first| {
            let count = self.size.min(self.queries - first);
            let visible = match self.mask {
                AttentionMask::None => self.keys,
                AttentionMask::Causal => self.keys.min(first + count),
            };
            Block { first, count, visible }
        })
    }

    /// `[batch, tokens, heads · d]` to `[batch, heads, tokens, d]`.
    fn split(&self, x: &Tensor) -> Result<Tensor> {
        let (batch, tokens, _) = x.dims3()?;
        x.reshape((batch, tokens, self.heads, self.head_width))?.transpose(1, 2)?.contiguous()
    }

    /// `[batch, heads, tokens, d]` to `[batch, tokens, heads · d]`.
    fn joined(&self, x: &Tensor) -> Result<Tensor> {
        x.transpose(1, 2)?.flatten_from(2)
    }

    fn forward(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        if self.keys == 0 || q.elem_count() == 0 {
            return q.zeros_like();
        }
        let (q, k, v) = (self.split(q)?, self.split(k)?, self.split(v)?);
        let mix = |block: Block| {
            let probabilities = self.probabilities(block, &q, &k)?.to_dtype(v.dtype())?;
            product(&probabilities, &block.keys(&v)?)
        };
        self.joined(&Tensor::cat(&self.iter().map(mix).collect::<Result<Vec<_>>>()?, 2)?)
    }

    /// Probabilities `[batch, heads, count, visible]`; f32 if the tensors are in half precision.
    fn probabilities(&self, block: Block, q: &Tensor, k: &Tensor) -> Result<Tensor> {
        let scores = product(&block.queries(q)?, &block.keys(k)?.t()?)?;
        let scores = (wide(&scores)? * self.scale())?;
        match self.mask {
            AttentionMask::None => composed::softmax(&scores),
            AttentionMask::Causal => {
                let mask = composed::causal(block.first..block.first + block.count, block.visible, &scores)?;
                composed::softmax(&scores.broadcast_add(&mask)?)
            }
        }
    }

    /// Gradients of `q`, `k` and `v`, with the scores recomputed.
    fn backward(&self, q: &Tensor, k: &Tensor, v: &Tensor, grad: &Tensor) -> Result<[Tensor; 3]> {
        if self.keys == 0 || q.elem_count() == 0 {
            return Ok([q.zeros_like()?, k.zeros_like()?, v.zeros_like()?]);
        }
        let (q, k, v, grad) = (self.split(q)?, self.split(k)?, self.split(v)?, self.split(grad)?);
        let (mut dq, mut dk, mut dv) = (Vec::new(), wide(&k.zeros_like()?)?, wide(&v.zeros_like()?)?);
        for block in self.iter() {
            let (queries, grad) = (block.queries(&q)?, block.queries(&grad)?);
            let p = self.probabilities(block, &q, &k)?;
            let ds = self.score_gradient(&p, &product(&grad, &block.keys(&v)?.t()?)?)?.to_dtype(q.dtype())?;
            dq.push(product(&ds, &block.keys(&k)?)?);
            dk = (dk + self.padded(&product(&ds.t()?, &queries)?)?)?;
            dv = (dv + self.padded(&product(&p.to_dtype(v.dtype())?.t()?, &grad)?)?)?;
        }
        let dq = self.joined(&Tensor::cat(&dq, 2)?)?;
        Ok([dq, self.joined(&dk)?.to_dtype(k.dtype())?, self.joined(&dv)?.to_dtype(v.dtype())?])
    }

    /// The gradient of the scores, `p · (dp − Σ p · dp) / √d`, from the probabilities `p` and their gradient `dp`.
    fn score_gradient(&self, p: &Tensor, dp: &Tensor) -> Result<Tensor> {
        let dp = wide(dp)?;
        let dot = (p * &dp)?.sum_keepdim(D::Minus1)?;
        (p * dp.broadcast_sub(&dot)?)? * self.scale()
    }

    /// Pads a gradient of the visible keys with zeros to all keys, in f32 for half precision, so that blocks can be
    /// summed.
    fn padded(&self, of_visible: &Tensor) -> Result<Tensor> {
        let visible = of_visible.dim(2)?;
        wide(of_visible)?.pad_with_zeros(2, 0, self.keys - visible)
    }
}

impl Block {
    fn queries(&self, x: &Tensor) -> Result<Tensor> {
        x.narrow(2, self.first, self.count)
    }

    fn keys(&self, x: &Tensor) -> Result<Tensor> {
        x.narrow(2, 0, self.visible)
    }
}
