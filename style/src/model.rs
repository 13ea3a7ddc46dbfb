//! A style model: a frozen tower, and a small head that is trained.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use catelier_features::{Extractor, Feature, ImageFeatures};
use catelier_numerics::finite::is_finite;
use catelier_numerics::hex;
use catelier_numerics::noise::{Noise, Stream};
use catelier_numerics::tensor_file::{self, Checksum, TensorFile};
use image::RgbImage;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::losses::unit_rows;
use crate::vectors::unit;

/// Name of the file format of a trained head, in its header.
pub const HEAD_FORMAT: &str = "catelier style head";

/// Version of that format.
pub const HEAD_VERSION: &str = "1";

/// Most values of a feature or of a direction.
const WIDEST: usize = 65_536;

/// Smallest scale of a channel, in units of the mean scale: a channel that hardly varies would be noise alone.
const SMALLEST_SCALE: f64 = 0.1;

/// The identity of a style model: directions of two models cannot be compared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelId {
    /// The tower.
    pub tower: Extractor,
    /// SHA-256 of the head's tensors; none for the tower alone.
    pub head: Option<String>,
}

impl ModelId {
    /// Whether both are one model; the tower's name does not count.
    #[must_use]
    pub fn agrees_with(&self, other: &Self) -> bool {
        self.tower.sha256 == other.tower.sha256 && self.head == other.head
    }

    /// Refuses what was made with another model.
    ///
    /// # Errors
    /// [`Error::OtherModel`].
    pub fn require(&self, what: &str, found: &Self) -> Result<()> {
        if self.agrees_with(found) {
            return Ok(());
        }
        Err(Error::OtherModel { what: what.to_owned(), expected: self.to_string(), found: found.to_string() })
    }
}

impl std::fmt::Display for ModelId {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let short = |sum: &str| sum.get(..12).unwrap_or(sum).to_owned();
        write!(out, "`{}` ({})", self.tower.name, short(&self.tower.sha256))?;
        self.head.as_ref().map_or(Ok(()), |head| write!(out, " with the head {}", short(head)))
    }
}

/// The mean and the scale of every channel of a tower's features, by which a head's input is made comparable.
#[derive(Debug, Clone, PartialEq)]
pub struct Standardisation {
    mean: Vec<f32>,
    scale: Vec<f32>,
}

impl Standardisation {
    /// The means and deviations of these features, such as those of a public set.
    ///
    /// # Errors
    /// [`Error::NoDirection`] for no features, [`Error::Width`] for features of different widths.
    pub fn of(features: &[&Feature]) -> Result<Self> {
        let width = features.first().map_or(0, |feature| feature.len());
        if width == 0 {
            return Err(Error::NoDirection { what: "the public set".to_owned() });
        }
        same_width(features.iter().map(|feature| feature.len()), width)?;
        let count = features.len() as f64;
        let over = |value: &dyn Fn(&Feature) -> f64| features.iter().map(|feature| value(feature)).sum::<f64>() / count;
        let mean: Vec<f64> = (0..width).map(|channel| over(&|feature| f64::from(feature[channel]))).collect();
        let variance = |channel: usize| over(&|feature| (f64::from(feature[channel]) - mean[channel]).powi(2));
        let scale: Vec<f64> = (0..width).map(|channel| variance(channel).sqrt()).collect();
        let least = (SMALLEST_SCALE * scale.iter().sum::<f64>() / width as f64).max(1e-6);
        Ok(Self {
            mean: mean.iter().map(|value| *value as f32).collect(),
            scale: scale.iter().map(|value| value.max(least) as f32).collect(),
        })
    }

    /// Number of channels.
    pub fn width(&self) -> usize {
        self.mean.len()
    }

    /// Features as a head takes them, `[n, width + 1]`: standardised, with a 1 at the end for the bias.
    ///
    /// # Errors
    /// [`Error::Width`].
    pub fn rows(&self, features: &[&Feature]) -> Result<Tensor> {
        same_width(features.iter().map(|feature| feature.len()), self.width())?;
        let mut values = Vec::with_capacity(features.len() * (self.width() + 1));
        for feature in features {
            let channels = feature.iter().zip(self.mean.iter().zip(&self.scale));
            values.extend(channels.map(|(value, (mean, scale))| (value - mean) / scale));
            values.push(1.0);
        }
        let shape = (features.len(), self.width() + 1);
        Tensor::from_vec(values, shape, &Device::Cpu).map_err(Error::tensor("rows of features"))
    }
}

fn same_width(mut found: impl Iterator<Item = usize>, expected: usize) -> Result<()> {
    match found.find(|found| *found != expected) {
        Some(found) => Err(Error::Width { expected, found }),
        None => Ok(()),
    }
}

/// The trained part of a style model: a linear projection of standardised features, whose result has length 1.
#[derive(Debug, Clone)]
pub struct StyleHead {
    standardisation: Standardisation,
    projection: Tensor,
}

impl StyleHead {
    /// A head with the projection `[width, channels + 1]`, the last column of which is the bias.
    ///
    /// # Errors
    /// [`Error::Width`] if it does not fit the standardisation.
    pub fn new(standardisation: Standardisation, projection: Tensor) -> Result<Self> {
        let fits = matches!(projection.dims(), [rows, columns] if *rows > 0 && *columns == standardisation.width() + 1);
        if !fits {
            let found = projection.dims().last().map_or(0, |columns| columns.saturating_sub(1));
            return Err(Error::Width { expected: standardisation.width(), found });
        }
        let projection = projection.to_dtype(DType::F32).map_err(Error::tensor("a projection"))?.detach();
        Ok(Self { standardisation, projection })
    }

    /// Number of values of a direction.
    pub fn width(&self) -> usize {
        self.projection.dims()[0]
    }

    /// A projection before training: the identity where `width` is the number of channels, so that training starts from
    /// what the tower sees, and random directions otherwise.
    ///
    /// # Errors
    /// [`Error::Setting`] for a width of 0 or above 65,536.
    pub fn start(channels: usize, width: usize, seed: u64) -> Result<Tensor> {
        if width == 0 || width > WIDEST {
            let expected = "a width from 1 to 65536";
            return Err(Error::Setting { what: "width", expected, found: width as f64 });
        }
        let start = || {
            let zero_bias = Tensor::zeros((width, 1), DType::F32, &Device::Cpu)?;
            let weights = match width == channels {
                true => Tensor::eye(width, DType::F32, &Device::Cpu)?,
                false => random_directions(channels, width, seed)?,
            };
            Tensor::cat(&[weights, zero_bias], 1)
        };
        start().map_err(Error::tensor("a projection"))
    }

    /// The directions of features, each of length 1.
    ///
    /// # Errors
    /// [`Error::Width`], [`Error::NoDirection`].
    pub fn directions(&self, features: &[&Feature]) -> Result<Vec<Feature>> {
        let rows = self.standardisation.rows(features)?;
        let directions = project(&rows, &self.projection).and_then(|directions| directions.to_vec2::<f32>());
        let directions = directions.map_err(Error::tensor("directions"))?;
        directions.iter().map(|direction| unit(direction, "a picture")).collect()
    }

    /// SHA-256 of the tensors in hexadecimal.
    ///
    /// # Errors
    /// [`Error::Numerics`] if a tensor cannot be read.
    pub fn sha256(&self) -> Result<String> {
        let bytes = tensor_file::to_bytes(&self.tensors()?, &BTreeMap::new());
        Ok(hex::encode(Sha256::digest(bytes.map_err(Error::numerics("hashing a head"))?)))
    }

    pub(crate) fn tensors(&self) -> Result<BTreeMap<String, Tensor>> {
        let vector = |values: &[f32]| Tensor::new(values, &Device::Cpu).map_err(Error::tensor("a head"));
        Ok(BTreeMap::from([
            ("head.mean".to_owned(), vector(&self.standardisation.mean)?),
            ("head.scale".to_owned(), vector(&self.standardisation.scale)?),
            ("head.projection".to_owned(), self.projection.clone()),
        ]))
    }

    /// The head in a file; `None` if there is none.
    pub(crate) fn of_file(path: &Path, file: &TensorFile) -> Result<Option<Self>> {
        if !file.contains("head.projection") {
            return Ok(None);
        }
        let read = |name: &str| finite_tensor(path, file, name);
        let vector = |name: &str| read(name)?.to_vec1::<f32>().map_err(|error| unusable(path, error.to_string()));
        let standardisation = Standardisation { mean: vector("head.mean")?, scale: vector("head.scale")? };
        let (channels, scales) = (standardisation.width(), standardisation.scale.len());
        let is_positive = standardisation.scale.iter().all(|scale| *scale > 0.0);
        if channels == 0 || channels > WIDEST || scales != channels || !is_positive {
            return Err(unusable(path, format!("its head has {channels} means and {scales} scales above 0")));
        }
        let head =
            Self::new(standardisation, read("head.projection")?).map_err(|error| unusable(path, error.to_string()))?;
        if head.width() > WIDEST {
            return Err(unusable(path, format!("its head gives {} values, at most {WIDEST} are read", head.width())));
        }
        Ok(Some(head))
    }

    /// Writes the head for a tower to one checked file; `facts` are entries of the header about the training.
    ///
    /// # Errors
    /// [`Error::Numerics`] if the file cannot be written.
    pub fn save(&self, path: &Path, tower: &Extractor, facts: &BTreeMap<String, String>) -> Result<()> {
        let mut header = facts.clone();
        header.insert("format".to_owned(), HEAD_FORMAT.to_owned());
        header.insert("version".to_owned(), HEAD_VERSION.to_owned());
        header.insert("tower".to_owned(), to_json(path, tower)?);
        let written = tensor_file::write_checked(path, &self.tensors()?, &header);
        written.map_err(Error::numerics(format!("writing `{}`", path.display())))
    }

    /// Reads a head, and the tower that it was trained for.
    ///
    /// # Errors
    /// [`Error::File`] for a file that is damaged, no head, or of another version; [`Error::Numerics`] for one that cannot
    /// be read.
    pub fn load(path: &Path) -> Result<(Extractor, Self)> {
        let file = open_checked(path, HEAD_FORMAT, HEAD_VERSION)?;
        let tower = from_json(path, &file, "tower")?;
        let head = Self::of_file(path, &file)?.ok_or_else(|| unusable(path, "it holds no head".to_owned()))?;
        Ok((tower, head))
    }
}

/// Orthogonal on average: normal values of variance `1 / channels`.
fn random_directions(channels: usize, width: usize, seed: u64) -> candle_core::Result<Tensor> {
    let values = Noise::new(seed).normal(Stream("style.head"), 0, 0, (width, channels), &Device::Cpu);
    values.map_err(candle_core::Error::wrap)? / (channels as f64).sqrt()
}

/// Rows `[n, channels + 1]` to directions of length 1, `[n, width]`.
///
/// **Gradient** flows to both.
pub fn project(rows: &Tensor, projection: &Tensor) -> candle_core::Result<Tensor> {
    unit_rows(&rows.matmul(&projection.t()?)?)
}

/// A style model: images to directions, whose products say how alike two styles are.
///
/// The tower is anything that makes features of images: an image tower with a pooling, or channel statistics of a UNet.
pub struct StyleModel {
    tower: Box<dyn ImageFeatures + Send + Sync>,
    head: Option<StyleHead>,
    id: ModelId,
}

impl StyleModel {
    /// A tower, and a head that was trained for it or none.
    ///
    /// # Errors
    /// [`Error::Numerics`] if the head cannot be hashed.
    pub fn new(tower: impl ImageFeatures + Send + Sync + 'static, head: Option<StyleHead>) -> Result<Self> {
        let sum = head.as_ref().map(StyleHead::sha256).transpose()?;
        let id = ModelId { tower: tower.extractor().clone(), head: sum };
        Ok(Self { tower: Box::new(tower), head, id })
    }

    /// Its identity.
    pub fn id(&self) -> &ModelId {
        &self.id
    }

    /// Its head, if it has one.
    pub fn head(&self) -> Option<&StyleHead> {
        self.head.as_ref()
    }

    /// The tower.
    pub fn tower(&self) -> &dyn ImageFeatures {
        &*self.tower
    }

    /// The directions of images, each of length 1.
    ///
    /// # Errors
    /// [`Error::Features`], [`Error::Width`], [`Error::NoDirection`].
    pub fn directions(&self, images: &[&RgbImage]) -> Result<Vec<Feature>> {
        let features = self.tower.image_features(images)?;
        match &self.head {
            Some(head) => head.directions(&features.iter().collect::<Vec<_>>()),
            None => features.iter().map(|feature| unit(feature, "a picture")).collect(),
        }
    }
}

/// Opens a file of this crate, and refuses one that is damaged or of another kind.
pub(crate) fn open_checked(path: &Path, format: &str, version: &str) -> Result<TensorFile> {
    let reading = || Error::numerics(format!("reading `{}`", path.display()));
    let file = TensorFile::open(path).map_err(reading())?;
    let found = |name: &str| file.metadata().get(name).map_or("", String::as_str);
    if found("format") != format || found("version") != version {
        let found = format!("`{}` version `{}`", found("format"), found("version"));
        return Err(unusable(path, format!("expected `{format}` version `{version}`, found {found}")));
    }
    match file.checksum().map_err(reading())? {
        Checksum::Holds => Ok(file),
        Checksum::Absent => Err(unusable(path, "it is damaged: its checksum is missing".to_owned())),
        Checksum::Differs => Err(unusable(path, "it is damaged: its checksum does not hold".to_owned())),
    }
}

/// A tensor of a file in f32, without values that are not finite.
pub(crate) fn finite_tensor(path: &Path, file: &TensorFile, name: &str) -> Result<Tensor> {
    let tensor = file.tensor_f32(name).map_err(Error::numerics(format!("reading `{}`", path.display())))?;
    match is_finite(&tensor).map_err(Error::tensor("whether values are finite"))? {
        true => Ok(tensor),
        false => Err(unusable(path, format!("`{name}` has values that are not finite"))),
    }
}

pub(crate) fn to_json(path: &Path, value: &impl Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(|error| unusable(path, error.to_string()))
}

pub(crate) fn from_json<T: for<'de> Deserialize<'de>>(path: &Path, file: &TensorFile, entry: &str) -> Result<T> {
    let text = file.metadata().get(entry).map_or("", String::as_str);
    serde_json::from_str(text).map_err(|error| unusable(path, format!("`{entry}` in its header: {error}")))
}

pub(crate) fn unusable(path: &Path, reason: String) -> Error {
    Error::File { path: path.to_owned(), reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn features() -> Vec<Feature> {
        vec![vec![1.0, 10.0, 0.5], vec![3.0, 30.0, 0.5], vec![2.0, 20.0, 0.5]]
    }

    fn head() -> StyleHead {
        let features = features();
        let standardisation = Standardisation::of(&features.iter().collect::<Vec<_>>()).unwrap();
        StyleHead::new(standardisation, StyleHead::start(3, 3, 1).unwrap()).unwrap()
    }

    #[test]
    fn rows_are_standardised_and_a_channel_that_never_varies_stays_finite() {
        let features = features();
        let features: Vec<_> = features.iter().collect();
        let rows = Standardisation::of(&features).unwrap().rows(&features).unwrap().to_vec2::<f32>().unwrap();
        let deviation = (2f32 / 3.0).sqrt();
        for (row, expected) in rows.iter().zip([-1.0 / deviation, 1.0 / deviation, 0.0]) {
            assert!((row[0] - expected).abs() < 1e-5 && (row[1] - expected).abs() < 1e-5, "{row:?}");
            assert_eq!(row[2..], [0.0, 1.0]);
        }
    }

    #[test]
    fn a_saved_head_is_read_back_and_a_damaged_one_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("head.safetensors");
        let tower = Extractor { name: "tower".into(), sha256: "ab".into() };
        head().save(&path, &tower, &BTreeMap::new()).unwrap();
        let (found, loaded) = StyleHead::load(&path).unwrap();
        assert_eq!((found, loaded.sha256().unwrap()), (tower, head().sha256().unwrap()));
        let mut bytes = std::fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&path, bytes).unwrap();
        assert!(StyleHead::load(&path).unwrap_err().to_string().contains("checksum"));
    }

    #[test]
    fn features_of_another_width_are_refused_with_both_widths() {
        let short = vec![1.0, 2.0];
        let error = head().directions(&[&short]).unwrap_err();
        assert!(matches!(error, Error::Width { expected: 3, found: 2 }), "{error}");
        let projection = StyleHead::start(5, 4, 1).unwrap();
        let error = StyleHead::new(head().standardisation, projection).unwrap_err();
        assert!(matches!(error, Error::Width { expected: 3, found: 5 }), "{error}");
    }

    #[test]
    fn models_with_other_heads_are_other_models_and_names_do_not_count() {
        let id = |name: &str, head: Option<&str>| ModelId {
            tower: Extractor { name: name.into(), sha256: "ab".into() },
            head: head.map(str::to_owned),
        };
        assert!(id("here", None).agrees_with(&id("there", None)));
        let error = id("here", Some("h1")).require("ada", &id("here", None)).unwrap_err();
        assert!(error.to_string().contains("ada") && error.hint().is_some(), "{error}");
    }
}
