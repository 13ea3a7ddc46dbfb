//! The update of one layer, by kind.
//!
//! Each kind is a variant of [`LayerUpdate`] over a type of its own, which defines the named tensors, their effect on a
//! frozen layer, and their names in files. Training, resuming, averaging and moving between devices go through the
//! named tensors and do not depend on the kind.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use catelier_numerics::finite::is_finite;

use crate::dora::DoraFactors;
use crate::error::{Error, Result};
use crate::factors::LoraFactors;
use crate::kind::UpdateKind;
use crate::layer::FrozenLayer;

/// The update of one layer.
#[derive(Debug, Clone)]
pub enum LayerUpdate {
    /// A low-rank addition to the weight.
    Lora(LoraFactors),
    /// A low-rank change of the weight's direction with a trained magnitude.
    Dora(DoraFactors),
}

impl From<LoraFactors> for LayerUpdate {
    fn from(factors: LoraFactors) -> Self {
        Self::Lora(factors)
    }
}

impl From<DoraFactors> for LayerUpdate {
    fn from(factors: DoraFactors) -> Self {
        Self::Dora(factors)
    }
}

impl LayerUpdate {
    /// The kind of update.
    pub fn kind(&self) -> UpdateKind {
        match self {
            Self::Lora(_) => UpdateKind::Lora,
            Self::Dora(_) => UpdateKind::Dora,
        }
    }

    /// The tensors with their names, always in the same order.
    pub fn tensors(&self) -> impl Iterator<Item = (&'static str, &Tensor)> {
        (0..).map_while(|index| self.tensor(index))
    }

    fn tensor(&self, index: usize) -> Option<(&'static str, &Tensor)> {
        match (index, self) {
            (0, _) => Some(("down", &self.low_rank().down)),
            (1, _) => Some(("up", &self.low_rank().up)),
            (2, Self::Dora(dora)) => Some(("magnitude", &dora.magnitude)),
            _ => None,
        }
    }

    /// The update made of these tensors; their names determine its kind.
    ///
    /// # Errors
    /// [`Error::UpdateTensors`] if no kind has tensors of these names; otherwise the errors of [`LoraFactors::new`] and
    /// [`DoraFactors::new`].
    pub fn from_tensors(mut tensors: BTreeMap<String, Tensor>, alpha: f64) -> Result<Self> {
        let names: Vec<String> = tensors.keys().cloned().collect();
        let found = (tensors.remove("down"), tensors.remove("up"), tensors.remove("magnitude"), tensors.len());
        match found {
            (Some(down), Some(up), None, 0) => Ok(LoraFactors::new(down, up, alpha)?.into()),
            (Some(down), Some(up), Some(magnitude), 0) => {
                Ok(DoraFactors::new(LoraFactors::new(down, up, alpha)?, magnitude)?.into())
            }
            _ => Err(Error::UpdateTensors { names }),
        }
    }

    /// The tensor of this name.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.tensors().find(|(own, _)| *own == name).map(|(_, tensor)| tensor)
    }

    /// The same update with every tensor replaced by `f(name, tensor)`, which must keep the shape.
    ///
    /// # Errors
    /// Any error of `f`.
    pub fn try_map<E>(&self, mut f: impl FnMut(&'static str, &Tensor) -> Result<Tensor, E>) -> Result<Self, E> {
        let low_rank = self.low_rank();
        let low_rank =
            LoraFactors { down: f("down", &low_rank.down)?, up: f("up", &low_rank.up)?, alpha: low_rank.alpha };
        Ok(match self {
            Self::Lora(_) => Self::Lora(low_rank),
            Self::Dora(dora) => Self::Dora(DoraFactors { low_rank, magnitude: f("magnitude", &dora.magnitude)? }),
        })
    }

    /// The factors of a LoRA; `None` for another kind.
    pub fn as_lora(&self) -> Option<&LoraFactors> {
        match self {
            Self::Lora(factors) => Some(factors),
            Self::Dora(_) => None,
        }
    }

    /// The low-rank factors: the whole of a LoRA, the direction's update of a DoRA.
    pub fn low_rank(&self) -> &LoraFactors {
        match self {
            Self::Lora(factors) => factors,
            Self::Dora(dora) => &dora.low_rank,
        }
    }

    /// Number of rows of `down`.
    pub fn rank(&self) -> usize {
        self.low_rank().rank()
    }

    /// Numerator of the scale of the low-rank product.
    pub fn alpha(&self) -> f64 {
        self.low_rank().alpha
    }

    /// `alpha / rank`, the scale of the low-rank product.
    pub fn scale(&self) -> f64 {
        self.low_rank().scale()
    }

    /// Whether the module is a convolution.
    pub fn is_convolution(&self) -> bool {
        self.low_rank().is_convolution()
    }

    /// Shape of the module's weight: `[out, in]` or `[out, in, kernel, kernel]`.
    pub fn weight_shape(&self) -> Vec<usize> {
        let LoraFactors { down, up, .. } = self.low_rank();
        [&up.dims()[..1], &down.dims()[1..]].concat()
    }

    /// Number of elements of all tensors.
    pub fn element_count(&self) -> usize {
        self.tensors().map(|(_, tensor)| tensor.elem_count()).sum()
    }

    /// A copy on another device, with the factors in another dtype. Magnitudes keep their dtype: rounding one would
    /// scale a whole output.
    ///
    /// # Errors
    /// [`Error::Tensor`] if the device refuses.
    pub fn to(&self, device: &Device, dtype: DType) -> Result<Self> {
        let to = |name, tensor: &Tensor| {
            let dtype = if name == "magnitude" { tensor.dtype() } else { dtype };
            tensor.to_device(device)?.to_dtype(dtype)
        };
        self.try_map(to).map_err(Error::tensor("copying an update to a device"))
    }

    /// Whether alpha and every element are finite.
    ///
    /// # Errors
    /// [`Error::Tensor`] if a tensor cannot be read.
    pub fn is_finite(&self) -> Result<bool> {
        let mut finite = self.alpha().is_finite();
        for (_, tensor) in self.tensors() {
            finite &= is_finite(tensor).map_err(Error::tensor("checking an update"))?;
        }
        Ok(finite)
    }

    /// The difference between the adapted weight and the base's `weight`, in f32 and in the weight's shape.
    ///
    /// **Gradient** flows to the update's tensors.
    ///
    /// # Errors
    /// [`Error::MergeShapes`] if the weight belongs to another module.
    pub fn delta(&self, weight: &Tensor) -> Result<Tensor> {
        let delta = match self {
            Self::Lora(factors) => factors.delta()?,
            Self::Dora(dora) => dora.delta(weight)?,
        };
        if delta.dims() == weight.dims() {
            return Ok(delta);
        }
        Err(Error::MergeShapes { weight: weight.dims().to_vec(), update: delta.dims().to_vec() })
    }

    /// The merged weight, `weight + strength * delta`, in the weight's own dtype.
    ///
    /// The sum is formed in f32. `weight: [out, in]` or `[out, in, kernel, kernel]`.
    ///
    /// # Errors
    /// [`Error::MergeShapes`] if the weight belongs to another module, [`Error::MergeNotFinite`] if the sum overflows
    /// the weight's dtype.
    pub fn merged_into(&self, weight: &Tensor, strength: f64) -> Result<Tensor> {
        let delta = self.delta(weight)?;
        let merged = (|| {
            let sum = (weight.to_dtype(DType::F32)? + (delta * strength)?)?;
            sum.to_dtype(weight.dtype())
        })()
        .map_err(Error::tensor("merging"))?;
        if is_finite(&merged).map_err(Error::tensor("checking the merged weight"))? {
            Ok(merged)
        } else {
            Err(Error::MergeNotFinite { dtype: weight.dtype() })
        }
    }

    /// `residual + layer(x)` plus the update's change at this strength. The frozen weight is multiplied once.
    pub(crate) fn forward(
        &self,
        layer: &impl FrozenLayer,
        x: &Tensor,
        strength: f64,
        residual: Option<&Tensor>,
    ) -> candle_core::Result<Tensor> {
        match self {
            Self::Lora(factors) => {
                layer.forward_lora(x, &with_dtype_of(factors, x)?, factors.scale() * strength, residual)
            }
            Self::Dora(dora) => layer.forward_dora(x, dora.at(strength), residual),
        }
    }

    /// The change that the update at this strength makes to the layer's result. A LoRA needs no product with the frozen
    /// weight, a DoRA needs one.
    pub(crate) fn change(&self, layer: &impl FrozenLayer, x: &Tensor, strength: f64) -> candle_core::Result<Tensor> {
        match self {
            Self::Lora(factors) => layer.lora_change(x, &with_dtype_of(factors, x)?, factors.scale() * strength),
            Self::Dora(dora) => layer.dora_change(x, dora.at(strength)),
        }
    }
}

/// The factors in the dtype that the model computes in.
fn with_dtype_of(factors: &LoraFactors, x: &Tensor) -> candle_core::Result<LoraFactors> {
    Ok(LoraFactors {
        down: factors.down.to_dtype(x.dtype())?,
        up: factors.up.to_dtype(x.dtype())?,
        alpha: factors.alpha,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(values: &[f32], shape: &[usize]) -> Tensor {
        Tensor::from_slice(values, shape, &Device::Cpu).unwrap()
    }

    fn two_by_three() -> LayerUpdate {
        let down = tensor(&[1., 2., 3., 4., 5., 6.], &[2, 3]);
        let up = tensor(&[1., 0., 0., 1., 1., 1.], &[3, 2]);
        LoraFactors::new(down, up, 4.0).unwrap().into()
    }

    fn decomposed() -> LayerUpdate {
        let magnitude = tensor(&[1., 2., 3.], &[3]);
        DoraFactors::new(two_by_three().low_rank().clone(), magnitude).unwrap().into()
    }

    #[test]
    fn merging_adds_the_update_at_its_strength() {
        let weight = tensor(&[0.; 9], &[3, 3]);
        let merged = two_by_three().merged_into(&weight, 0.5).unwrap();
        assert_eq!(merged.to_vec2::<f32>().unwrap()[2], [5., 7., 9.]);
    }

    #[test]
    fn merging_and_unmerging_restores_the_weight() {
        let weight = tensor(&[1., 2., 3., 4., 5., 6., 7., 8., 9.], &[3, 3]);
        let merged = two_by_three().merged_into(&weight, 1.0).unwrap();
        let restored = two_by_three().merged_into(&merged, -1.0).unwrap();
        assert_eq!(restored.to_vec2::<f32>().unwrap(), weight.to_vec2::<f32>().unwrap());
    }

    #[test]
    fn merging_that_overflows_a_half_weight_is_an_error() {
        let weight = tensor(&[0.; 9], &[3, 3]).to_dtype(DType::F16).unwrap();
        let error = two_by_three().merged_into(&weight, 1e5).unwrap_err();
        assert!(matches!(error, Error::MergeNotFinite { .. }), "{error}");
    }

    #[test]
    fn merging_into_another_module_is_an_error() {
        for update in [two_by_three(), decomposed()] {
            let error = update.merged_into(&tensor(&[0.; 12], &[3, 4]), 1.0).unwrap_err();
            assert!(error.to_string().contains("[3, 4]"), "{error}");
        }
    }

    #[test]
    fn every_tensor_has_a_name_and_can_be_replaced() {
        for (update, names) in [(two_by_three(), &["down", "up"][..]), (decomposed(), &["down", "up", "magnitude"])] {
            assert_eq!(update.tensors().map(|(name, _)| name).collect::<Vec<_>>(), names);
            let mut met = Vec::new();
            let doubled = update.try_map(|name, tensor| {
                met.push(name);
                tensor * 2.0
            });
            assert_eq!(met, names);
            let doubled = doubled.unwrap();
            assert_eq!(doubled.kind(), update.kind());
            for ((_, new), (_, old)) in doubled.tensors().zip(update.tensors()) {
                let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                assert!(values(new).iter().zip(values(old)).all(|(new, old)| *new == 2.0 * old));
            }
        }
    }

    #[test]
    fn an_update_is_told_by_the_names_of_its_tensors() {
        for update in [two_by_three(), decomposed()] {
            let named = |update: &LayerUpdate| -> BTreeMap<String, Tensor> {
                update.tensors().map(|(name, tensor)| (name.to_owned(), tensor.clone())).collect()
            };
            assert_eq!(LayerUpdate::from_tensors(named(&update), 4.0).unwrap().kind(), update.kind());
            let mut without = named(&update);
            without.remove("up");
            let error = LayerUpdate::from_tensors(without, 4.0).unwrap_err();
            assert!(error.to_string().contains("`down`"), "{error}");
        }
    }

    #[test]
    fn magnitudes_keep_their_precision_on_the_way_to_a_half_precision_model() {
        let moved = decomposed().to(&Device::Cpu, DType::BF16).unwrap();
        let dtypes: Vec<DType> = moved.tensors().map(|(_, tensor)| tensor.dtype()).collect();
        assert_eq!(dtypes, [DType::BF16, DType::BF16, DType::F32]);
    }

    #[test]
    fn one_value_that_is_not_finite_is_found_in_any_tensor() {
        assert!(decomposed().is_finite().unwrap());
        for poisoned in ["down", "up", "magnitude"] {
            let update = decomposed().try_map(|name, tensor| match name == poisoned {
                true => tensor / 0.0,
                false => Ok(tensor.clone()),
            });
            assert!(!update.unwrap().is_finite().unwrap(), "{poisoned}");
        }
    }
}
