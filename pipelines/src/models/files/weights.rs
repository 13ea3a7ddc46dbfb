//! The weights of one component: tensors are taken by name and checked against the shape from the configuration.

use std::cell::RefCell;
use std::fmt;
use std::path::PathBuf;
use std::rc::Rc;

use candle_core::safetensors::{Load, MmapedSafetensors, SliceSafetensors};
use candle_core::{DType, Device, Shape, Tensor};
use safetensors::tensor::TensorView;

use super::random::RandomTensors;
use crate::error::{Error, Result};

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
/// Files are memory-mapped: a tensor is read (and converted) when it is taken, and the map is released with the last
/// `Weights` of the component, so a loaded model holds one copy of its weights. A missing or misshapen tensor is
/// recorded, not reported at once: [`finish`](Self::finish) reports all of them together.
#[derive(Clone)]
pub struct Weights {
    file: Rc<WeightFile>,
    prefix: String,
}

struct WeightFile {
    component: String,
    tensors: Source,
    dtype: DType,
    device: Device,
    offences: RefCell<Vec<TensorOffence>>,
}

enum Source {
    Mapped(MmapedSafetensors),
    Embedded(Vec<SliceSafetensors<'static>>),
    Random(RandomTensors),
}

impl Weights {
    /// Maps the files of `component` into memory.
    pub(super) fn mapped(component: &str, files: &[PathBuf], dtype: DType, device: &Device) -> Result<Self> {
        #[expect(unsafe_code, reason = "mapping gigabytes instead of reading them; model files do not change under us")]
        // SAFETY: the mapped bytes are read only through the safetensors parser, which has checked every offset. A
        // file that another program shortens meanwhile ends this process (SIGBUS); it cannot be made to write.
        let tensors = unsafe { MmapedSafetensors::multi(files) }.map_err(|source| {
            let path = files.iter().map(|file| file.display().to_string()).collect::<Vec<_>>().join(", ");
            Error::UnreadableWeights { path, source }
        })?;
        Ok(Self::new(component, Source::Mapped(tensors), dtype, device))
    }

    /// Parses weights embedded in the binary.
    pub(super) fn embedded(component: &str, files: Vec<&'static [u8]>, dtype: DType, device: &Device) -> Result<Self> {
        let tensors = files
            .into_iter()
            .map(SliceSafetensors::new)
            .collect::<candle_core::Result<_>>()
            .map_err(|source| Error::UnreadableWeights { path: component.into(), source })?;
        Ok(Self::new(component, Source::Embedded(tensors), dtype, device))
    }

    /// Draws random weights on demand.
    pub(super) fn random(tensors: RandomTensors, dtype: DType, device: &Device) -> Self {
        let component = tensors.component.clone();
        Self::new(&component, Source::Random(tensors), dtype, device)
    }

    fn new(component: &str, tensors: Source, dtype: DType, device: &Device) -> Self {
        let file = WeightFile {
            component: component.into(),
            tensors,
            dtype,
            device: device.clone(),
            offences: RefCell::default(),
        };
        Self { file: Rc::new(file), prefix: String::new() }
    }

    /// The component's folder, such as `unet`, `vae` or `text_encoder`.
    pub fn component(&self) -> &str {
        &self.file.component
    }

    /// The device of the loaded tensors.
    pub fn device(&self) -> &Device {
        &self.file.device
    }

    /// The type that the weights are converted to.
    pub fn dtype(&self) -> DType {
        self.file.dtype
    }

    /// The type of activations. On the CPU it is f32 for weights in half precision, because their products are summed
    /// in f32; otherwise it is the type of the weights.
    pub fn activation_dtype(&self) -> DType {
        self.file.activation_dtype()
    }

    /// The weights below `name`, joined to this path by a dot.
    #[must_use]
    pub fn at(&self, name: &str) -> Self {
        Self { file: self.file.clone(), prefix: self.full_name(name) }
    }

    /// This path from the component's root, without a dot at the end; empty at the root.
    pub fn path(&self) -> &str {
        &self.prefix
    }

    /// Whether the tensor `name` exists.
    pub fn contains(&self, name: &str) -> bool {
        let name = self.full_name(name);
        match &self.file.tensors {
            Source::Random(tensors) => tensors.holds(&name),
            _ => self.file.view(&name).is_some(),
        }
    }

    /// The shape of the tensor `name`, if it exists; random weights have no shape before they are taken.
    pub fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.file.view(&self.full_name(name)).map(|view| view.shape().to_vec())
    }

    /// The tensor `name` on the component's device, converted to the component's type; vectors (norms, biases) are
    /// converted to the type of activations.
    ///
    /// A missing or misshapen tensor is recorded for [`finish`](Self::finish), and zeros are returned in its place.
    ///
    /// # Errors
    /// [`Error::Tensor`] if its type cannot be converted or memory is short.
    pub fn get(&self, shape: impl Into<Shape>, name: &str) -> Result<Tensor> {
        let (shape, name) = (shape.into(), self.full_name(name));
        if let Source::Random(tensors) = &self.file.tensors {
            let dtype = self.file.dtype_of(shape.dims());
            return tensors.tensor(&name, shape, dtype, &self.file.device);
        }
        let view = self.file.view(&name);
        if let Some(view) = view.as_ref().filter(|view| view.shape() == shape.dims()) {
            return self.file.load(view);
        }
        let found = view.map(|view| view.shape().to_vec());
        let offence = TensorOffence { tensor: name, expected: shape.dims().to_vec(), found };
        self.file.offences.borrow_mut().push(offence);
        Ok(Tensor::zeros(shape, self.file.dtype, &self.file.device)?)
    }

    /// Reports every tensor that [`get`](Self::get) recorded as missing or misshapen.
    ///
    /// # Errors
    /// [`Error::TensorMismatch`] naming all of them.
    pub fn finish(&self) -> Result<()> {
        let offences = self.file.offences.take();
        if offences.is_empty() {
            return Ok(());
        }
        Err(Error::TensorMismatch { component: self.file.component.clone(), offences })
    }

    fn full_name(&self, name: &str) -> String {
        match (self.prefix.as_str(), name) {
            ("", name) => name.into(),
            (prefix, "") => prefix.into(),
            (prefix, name) => format!("{prefix}.{name}"),
        }
    }
}

impl WeightFile {
    fn view(&self, name: &str) -> Option<TensorView<'_>> {
        match &self.tensors {
            Source::Mapped(tensors) => tensors.get(name).ok(),
            Source::Embedded(files) => files.iter().find_map(|file| file.get(name).ok()),
            Source::Random(_) => None,
        }
    }

    fn load(&self, view: &TensorView<'_>) -> Result<Tensor> {
        Ok(view.load(&self.device)?.to_dtype(self.dtype_of(view.shape()))?)
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
