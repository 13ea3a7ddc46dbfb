//! The weights of one component: tensors are taken by name and checked against the shape from the configuration.

use std::fmt;
use std::rc::Rc;

use candle_core::{DType, Device, Shape, Tensor};
use catelier_numerics::tensor_file::TensorFile;

use super::random::RandomTensors;
use crate::error::{Error, Result};
use crate::models::shapes::TensorShape;

/// A setting of a configuration file that these models do not support.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnsupportedSetting {
    /// The key in the file.
    pub key: String,
    /// Its value, as JSON.
    pub value: String,
    /// The supported values, in words or as JSON.
    pub supported: String,
}

impl fmt::Display for UnsupportedSetting {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "`{}` is `{}` (supported: {})", self.key, self.value, self.supported)
    }
}

/// A tensor that is missing, or has another shape than its configuration asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorOffence {
    /// The tensor's name in the file.
    pub tensor: String,
    /// The shape that it should have.
    pub expected: Vec<usize>,
    /// The shape that it has; `None` if it is missing.
    pub found: Option<Vec<usize>>,
}

impl fmt::Display for TensorOffence {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "`{}` should be {:?}, ", self.tensor, self.expected)?;
        match &self.found {
            Some(found) => write!(out, "found {found:?}"),
            None => write!(out, "found nothing"),
        }
    }
}

/// The weights of one component, below one path in its module tree.
///
/// Only the headers of the files are kept: a tensor is read (and converted) when it is taken, so a loaded model holds one
/// copy of its weights. A network calls `expect` with all its tensors first, so that weights of another
/// model are refused before anything is allocated.
#[derive(Clone)]
pub struct Weights {
    source: Rc<Source>,
    prefix: String,
}

struct Source {
    component: String,
    tensors: Tensors,
    dtype: DType,
    device: Device,
}

enum Tensors {
    Files(Vec<TensorFile>),
    Random(RandomTensors),
}

impl Weights {
    /// The tensors of `files`, which belong to `component`.
    pub(super) fn stored(component: &str, files: Vec<TensorFile>, dtype: DType, device: &Device) -> Self {
        Self::new(component, Tensors::Files(files), dtype, device)
    }

    /// Draws random weights on demand.
    pub(super) fn random(tensors: RandomTensors, dtype: DType, device: &Device) -> Self {
        let component = tensors.component.clone();
        Self::new(&component, Tensors::Random(tensors), dtype, device)
    }

    fn new(component: &str, tensors: Tensors, dtype: DType, device: &Device) -> Self {
        let source = Source { component: component.into(), tensors, dtype, device: device.clone() };
        Self { source: Rc::new(source), prefix: String::new() }
    }

    /// The component's folder, such as `unet`, `vae` or `text_encoder`.
    pub fn component(&self) -> &str {
        &self.source.component
    }

    /// The device of the loaded tensors.
    pub fn device(&self) -> &Device {
        &self.source.device
    }

    /// The type that the weights are converted to.
    pub fn dtype(&self) -> DType {
        self.source.dtype
    }

    /// The type of activations. On the CPU it is f32 for weights in half precision, because their products are summed
    /// in f32; otherwise it is the type of the weights.
    pub fn activation_dtype(&self) -> DType {
        self.source.activation_dtype()
    }

    /// The weights below `name`, joined to this path by a dot.
    #[must_use]
    pub fn at(&self, name: &str) -> Self {
        Self { source: self.source.clone(), prefix: self.full_name(name) }
    }

    /// This path from the component's root, without a dot at the end; empty at the root.
    pub fn path(&self) -> &str {
        &self.prefix
    }

    /// Whether the tensor `name` exists.
    pub fn contains(&self, name: &str) -> bool {
        let name = self.full_name(name);
        match &self.source.tensors {
            Tensors::Random(tensors) => tensors.holds(&name),
            Tensors::Files(_) => self.source.file_with(&name).is_some(),
        }
    }

    /// Compares all tensors that a network will take with those in the headers of the files. Random weights have every
    /// shape.
    ///
    /// # Errors
    /// [`Error::TensorMismatch`] naming every tensor that is missing or misshapen.
    pub(crate) fn expect(&self, tensors: &[TensorShape]) -> Result<()> {
        let offence = |tensor: &TensorShape| self.source.offence(&self.full_name(&tensor.name), &tensor.shape);
        let offences: Vec<TensorOffence> = tensors.iter().filter_map(offence).collect();
        if offences.is_empty() { Ok(()) } else { Err(self.source.mismatch(offences)) }
    }

    /// The tensor `name` on the component's device, converted to the component's type; vectors (norms, biases) are
    /// converted to the type of activations.
    ///
    /// # Errors
    /// [`Error::TensorMismatch`] if it is missing or misshapen, [`Error::Numerics`] if the file cannot be read,
    /// [`Error::Tensor`] if its type cannot be converted.
    pub fn get(&self, shape: impl Into<Shape>, name: &str) -> Result<Tensor> {
        let (shape, name) = (shape.into(), self.full_name(name));
        let Source { tensors, device, .. } = self.source.as_ref();
        let dtype = self.source.dtype_of(shape.dims());
        if let Tensors::Random(tensors) = tensors {
            return tensors.tensor(&name, shape, dtype, device);
        }
        match (self.source.offence(&name, shape.dims()), self.source.file_with(&name)) {
            (None, Some(file)) if dtype == DType::F32 && file.dtype(&name)?.is_float() => {
                Ok(file.tensor_f32(&name)?.to_device(device)?)
            }
            (None, Some(file)) => Ok(file.tensor(&name, device)?.to_dtype(dtype)?),
            (offence, _) => Err(self.source.mismatch(offence.into_iter().collect())),
        }
    }

    fn full_name(&self, name: &str) -> String {
        match (self.prefix.as_str(), name) {
            ("", name) => name.into(),
            (prefix, "") => prefix.into(),
            (prefix, name) => format!("{prefix}.{name}"),
        }
    }
}

impl Source {
    fn file_with(&self, name: &str) -> Option<&TensorFile> {
        match &self.tensors {
            Tensors::Files(files) => files.iter().find(|file| file.contains(name)),
            Tensors::Random(_) => None,
        }
    }

    /// The offence of the tensor `name`, if it is missing or has another shape.
    fn offence(&self, name: &str, expected: &[usize]) -> Option<TensorOffence> {
        let Tensors::Files(_) = &self.tensors else { return None };
        let found = self.file_with(name).and_then(|file| file.shape(name).ok());
        let offence =
            || TensorOffence { tensor: name.into(), expected: expected.to_vec(), found: found.map(<[usize]>::to_vec) };
        (found != Some(expected)).then(offence)
    }

    fn mismatch(&self, offences: Vec<TensorOffence>) -> Error {
        Error::TensorMismatch { component: self.component.clone(), offences }
    }

    /// The type that a tensor with these dimensions is converted to: vectors to the type of activations.
    fn dtype_of(&self, dims: &[usize]) -> DType {
        if dims.len() > 1 { self.dtype } else { self.activation_dtype() }
    }

    fn activation_dtype(&self) -> DType {
        match self.dtype {
            DType::F16 | DType::BF16 if self.device.is_cpu() => DType::F32,
            dtype => dtype,
        }
    }
}
