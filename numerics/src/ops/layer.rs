//! Frozen layers fused with the operation before them and the residual after them.
//!
//! The graph keeps the input of every node until the backward pass. A frozen layer needs only the shape of its input,
//! so the normalisation before it and the residual after it join its node: the graph never keeps the tensors between
//! them.

use std::borrow::Cow;

use candle_core::{Result, Shape, Tensor};
use catelier_kernels::{
    AddedKernel, AddedKernel2, Float, Kernel1, Kernel3, NeedsGrad, Start, View, apply_added2, apply3, borrow,
};

/// A layer with a frozen weight, without its bias.
pub(super) trait Product: Clone + Send + Sync + 'static {
    const NAME: &'static str;

    /// Shape of the result for an input of shape `x`.
    fn output(&self, x: &[usize]) -> Result<Shape>;

    /// `start + layer(x)`.
    fn forward<T: Float>(&self, x: View<'_, T>, start: Start<'_, T>) -> Result<Vec<T>>;

    /// Gradient of an input of shape `x`.
    fn backward<T: Float>(&self, x: &[usize], grad: &[T]) -> Result<Vec<T>>;
}

/// Values added to a layer's product, without gradients: `bias: [out]` and `shift: [batch, out]`.
#[derive(Debug, Clone, Default)]
pub(super) struct Constants {
    pub(super) bias: Option<Tensor>,
    pub(super) shift: Option<Tensor>,
}

/// A kernel that can be a prologue: its backward pass does not read its result.
pub(super) trait PrologueKernel: Kernel1 {
    /// Shape of the result for an input of shape `x`.
    fn output(&self, x: &[usize]) -> Vec<usize>;
}

/// The operation between the input of a node and the input of its product.
pub(super) trait PrologueStep: Send + Sync + 'static {
    fn output(&self, x: &[usize]) -> Vec<usize>;
    fn forward<'a, T: Float>(&self, x: View<'a, T>) -> Result<Cow<'a, [T]>>;
    fn backward<T: Float>(&self, x: View<'_, T>, grad: Vec<T>) -> Result<Vec<T>>;
}

/// Leaves the input unchanged.
pub(super) struct NoPrologue;

impl PrologueStep for NoPrologue {
    fn output(&self, x: &[usize]) -> Vec<usize> {
        x.to_vec()
    }

    fn forward<'a, T: Float>(&self, x: View<'a, T>) -> Result<Cow<'a, [T]>> {
        Ok(Cow::Borrowed(x.data))
    }

    fn backward<T: Float>(&self, _: View<'_, T>, grad: Vec<T>) -> Result<Vec<T>> {
        Ok(grad)
    }
}

impl<K: PrologueKernel> PrologueStep for K {
    fn output(&self, x: &[usize]) -> Vec<usize> {
        PrologueKernel::output(self, x)
    }

    fn forward<'a, T: Float>(&self, x: View<'a, T>) -> Result<Cow<'a, [T]>> {
        Kernel1::forward(self, x).map(|(values, _)| Cow::Owned(values))
    }

    fn backward<T: Float>(&self, x: View<'_, T>, grad: Vec<T>) -> Result<Vec<T>> {
        let dims = PrologueKernel::output(self, x.dims);
        let (unseen, grad) = (View { data: &[], dims: &dims }, View { data: &grad, dims: &dims });
        Kernel1::backward(self, x, unseen, grad)
    }
}

/// A frozen layer and its prologue.
pub(super) struct Layer<L, P> {
    pub(super) prologue: L,
    pub(super) product: P,
    pub(super) constants: Constants,
}

impl<L: PrologueStep, P: Product> AddedKernel for Layer<L, P> {
    const NAME: &'static str = P::NAME;

    fn forward<T: Float>(&self, x: View<'_, T>, residual: Option<View<'_, T>>) -> Result<(Vec<T>, Shape)> {
        let dims = self.prologue.output(x.dims);
        let input = self.prologue.forward(x)?;
        let bias = self.constants.bias.as_ref().map(borrow::<T>).transpose()?;
        let shift = self.constants.shift.as_ref().map(borrow::<T>).transpose()?;
        let shape = self.product.output(&dims)?;
        let residual = fitting(Self::NAME, &shape, residual)?;
        let start = Start { bias: bias.as_deref(), shift: shift.as_deref(), residual };
        Ok((self.product.forward(View { data: &input, dims: &dims }, start)?, shape))
    }

    fn backward<T: Float>(&self, x: View<'_, T>, grad: &[T]) -> Result<Vec<T>> {
        self.prologue.backward(x, self.product.backward(&self.prologue.output(x.dims), grad)?)
    }
}

/// A trainable update of a product, with three arguments: the input and two factors.
pub(super) trait LowRank: Send + Sync + 'static {
    /// Adds the update to `y`.
    fn add_to<T: Float>(&self, arguments: [View<'_, T>; 3], y: &mut [T]) -> Result<()>;

    /// Gradients of the three arguments. The input's gradient is added to `dx`, if it is needed.
    fn backward<T: Float>(
        &self,
        arguments: [View<'_, T>; 3],
        grad: View<'_, T>,
        wanted: NeedsGrad,
        dx: Vec<T>,
    ) -> Result<[Vec<T>; 3]>;
}

/// A frozen layer and its trainable update as one CPU node: `residual + product + bias + update`.
pub(super) fn adapted_layer<P: Product, U: LowRank>(
    [x, down, up]: [&Tensor; 3],
    product: P,
    bias: Option<Tensor>,
    update: U,
    residual: Option<&Tensor>,
) -> Result<Tensor> {
    let layer = Adapted { product, bias, update };
    let Some(residual) = residual else {
        return apply3(x, down, up, layer);
    };
    // A node of candle has three arguments at most, and the factors are small enough to copy.
    let factors = Tensor::cat(&[down.flatten_all()?, up.flatten_all()?], 0)?;
    apply_added2(x, &factors, Some(residual), AdaptedOnto { layer, down: down.shape().clone(), up: up.shape().clone() })
}

struct Adapted<P, U> {
    product: P,
    bias: Option<Tensor>,
    update: U,
}

impl<P: Product, U: LowRank> Adapted<P, U> {
    fn forward_onto<T: Float>(
        &self,
        arguments: [View<'_, T>; 3],
        residual: Option<View<'_, T>>,
    ) -> Result<(Vec<T>, Shape)> {
        let shape = self.product.output(arguments[0].dims)?;
        let residual = fitting(P::NAME, &shape, residual)?;
        let bias = self.bias.as_ref().map(borrow::<T>).transpose()?;
        let mut y = self.product.forward(arguments[0], Start { bias: bias.as_deref(), shift: None, residual })?;
        self.update.add_to(arguments, &mut y)?;
        Ok((y, shape))
    }

    fn differentiate<T: Float>(
        &self,
        arguments: [View<'_, T>; 3],
        grad: View<'_, T>,
        wanted: NeedsGrad,
    ) -> Result<[Vec<T>; 3]> {
        let dx = if wanted[0] { self.product.backward(arguments[0].dims, grad.data)? } else { Vec::new() };
        self.update.backward(arguments, grad, wanted, dx)
    }
}

impl<P: Product, U: LowRank> Kernel3 for Adapted<P, U> {
    const NAME: &'static str = P::NAME;

    fn forward<T: Float>(&self, arguments: [View<'_, T>; 3]) -> Result<(Vec<T>, Shape)> {
        self.forward_onto(arguments, None)
    }

    fn backward<T: Float>(
        &self,
        arguments: [View<'_, T>; 3],
        _: View<'_, T>,
        grad: View<'_, T>,
        wanted: NeedsGrad,
    ) -> Result<[Vec<T>; 3]> {
        self.differentiate(arguments, grad, wanted)
    }
}

/// [`Adapted`] with a residual. One tensor holds both factors, `down` before `up`.
struct AdaptedOnto<P, U> {
    layer: Adapted<P, U>,
    down: Shape,
    up: Shape,
}

impl<P, U> AdaptedOnto<P, U> {
    fn factors<'a, T>(&'a self, factors: View<'a, T>) -> [View<'a, T>; 2] {
        let (down, up) = factors.data.split_at(self.down.elem_count());
        [View { data: down, dims: self.down.dims() }, View { data: up, dims: self.up.dims() }]
    }
}

impl<P: Product, U: LowRank> AddedKernel2 for AdaptedOnto<P, U> {
    const NAME: &'static str = P::NAME;

    fn forward<T: Float>(
        &self,
        [x, factors]: [View<'_, T>; 2],
        residual: Option<View<'_, T>>,
    ) -> Result<(Vec<T>, Shape)> {
        let [down, up] = self.factors(factors);
        self.layer.forward_onto([x, down, up], residual)
    }

    fn backward<T: Float>(
        &self,
        [x, factors]: [View<'_, T>; 2],
        grad: View<'_, T>,
        [of_x, of_factors]: [bool; 2],
    ) -> Result<[Vec<T>; 2]> {
        let [down, up] = self.factors(factors);
        let [dx, mut d_down, d_up] = self.layer.differentiate([x, down, up], grad, [of_x, of_factors, of_factors])?;
        d_down.extend(d_up);
        Ok([dx, d_down])
    }
}

/// The elements of the residual, if its shape is `shape`.
pub(super) fn fitting<'a, T>(name: &str, shape: &Shape, residual: Option<View<'a, T>>) -> Result<Option<&'a [T]>> {
    match residual {
        Some(residual) if residual.dims != shape.dims() => {
            candle_core::bail!("{name}: expected a residual {shape:?}, found {:?}", residual.dims)
        }
        residual => Ok(residual.map(|residual| residual.data)),
    }
}
