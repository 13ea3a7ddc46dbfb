//! What of a tower's tokens is a style: their projection, their channel statistics, or their Gram matrix.

use std::fmt;
use std::str::FromStr;

use candle_core::{Device, Result as CandleResult, Tensor};
use catelier_features::clip::ImageEncoder;
use catelier_features::{Error as FeatureError, Extractor, Feature, ImageFeatures};
use catelier_numerics::hex;
use catelier_numerics::noise::{Noise, Stream};
use image::RgbImage;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::Error;

/// Images in one pass of the tower.
const BATCH: usize = 8;

/// Channels of a Gram matrix; wider tokens are projected to as many.
const GRAM_CHANNELS: usize = 64;

/// How the tokens of an image become one feature.
///
/// In text: `projection`, `mean-deviation:BLOCK`, `gram:BLOCK`.
///
/// ```
/// # use catelier_style::Pooling;
/// assert_eq!("gram:2".parse::<Pooling>().unwrap(), Pooling::Gram { block: 2 });
/// assert!("gram".parse::<Pooling>().is_err());
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Pooling {
    /// The tower's own projection: that of CLIP, SigLIP, or of a tower trained on style, such as CSD's.
    #[default]
    Projection,
    /// Mean and deviation of every channel over the patches after a block, `2 width` values. The Euclidean distance of two
    /// such features is the 2-Wasserstein distance of Gaussians with these means and diagonal covariances.
    ///
    /// **Source** the statistics of AdaIN (arXiv 1703.06868), as IntroStyle (arXiv 2412.14432) uses them.
    MeanDeviation {
        /// The block, counted from 1.
        block: usize,
    },
    /// The upper triangle of `F^T F / patches` of the tokens `F` after a block. Tokens wider than 64 channels are projected
    /// to 64 by a fixed random matrix before.
    ///
    /// **Source** Gatys and others, arXiv 1508.06576.
    Gram {
        /// The block, counted from 1.
        block: usize,
    },
}

impl Pooling {
    /// The identity of a tower with this pooling.
    fn extractor(self, tower: &Extractor) -> Extractor {
        match self {
            Self::Projection => tower.clone(),
            _ => Extractor {
                name: format!("{}, {self}", tower.name),
                sha256: hex::encode(Sha256::digest(format!("{} {self}", tower.sha256))),
            },
        }
    }
}

impl fmt::Display for Pooling {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Projection => out.write_str("projection"),
            Self::MeanDeviation { block } => write!(out, "mean-deviation:{block}"),
            Self::Gram { block } => write!(out, "gram:{block}"),
        }
    }
}

impl FromStr for Pooling {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let block = |number: &str| number.parse::<usize>().ok().filter(|block| *block > 0);
        let parsed = match text.split_once(':') {
            None if text == "projection" => Some(Self::Projection),
            Some(("mean-deviation", number)) => block(number).map(|block| Self::MeanDeviation { block }),
            Some(("gram", number)) => block(number).map(|block| Self::Gram { block }),
            _ => None,
        };
        parsed.ok_or_else(|| format!("expected `projection`, `mean-deviation:BLOCK` or `gram:BLOCK`, found `{text}`"))
    }
}

impl TryFrom<String> for Pooling {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Pooling> for String {
    fn from(pooling: Pooling) -> Self {
        pooling.to_string()
    }
}

/// An image tower whose features are its pooled tokens.
///
/// Its extractor's SHA-256 covers the weights and the pooling, so that features of two poolings are never compared.
pub struct PooledTower {
    tower: ImageEncoder,
    pooling: Pooling,
    extractor: Extractor,
}

impl PooledTower {
    /// The tower with a pooling.
    ///
    /// # Errors
    /// [`Error::Features`] for a block that the tower does not have or show.
    pub fn new(tower: ImageEncoder, pooling: Pooling) -> Result<Self, Error> {
        let own = tower.extractor().clone();
        if let Pooling::MeanDeviation { block } | Pooling::Gram { block } = pooling
            && !(1..=tower.blocks()).contains(&block)
        {
            return Err(FeatureError::NoTokens { name: own.name, block, blocks: tower.blocks() }.into());
        }
        Ok(Self { extractor: pooling.extractor(&own), tower, pooling })
    }

    /// The tower with the pooling by which its extractor has this SHA-256; `None` if there is no such pooling.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_identity(tower: ImageEncoder, sha256: &str) -> Result<Option<Self>, Error> {
        let of_blocks =
            (1..=tower.blocks()).flat_map(|block| [Pooling::MeanDeviation { block }, Pooling::Gram { block }]);
        let mut poolings = std::iter::once(Pooling::Projection).chain(of_blocks);
        let found = poolings.find(|pooling| pooling.extractor(tower.extractor()).sha256 == sha256);
        found.map(|pooling| Self::new(tower, pooling)).transpose()
    }

    fn pooled(&self, images: &[&RgbImage]) -> catelier_features::Result<Vec<Feature>> {
        let computing = |source| FeatureError::Tensor { what: "pooled features", source };
        let pooled = match self.pooling {
            Pooling::Projection => return self.tower.image_features(images),
            Pooling::MeanDeviation { block } => mean_deviation(&self.tower.tokens(images, block)?),
            Pooling::Gram { block } => gram(&self.tower.tokens(images, block)?),
        };
        pooled.and_then(|pooled| pooled.to_vec2()).map_err(computing)
    }
}

impl ImageFeatures for PooledTower {
    fn extractor(&self) -> &Extractor {
        &self.extractor
    }

    fn image_features(&self, images: &[&RgbImage]) -> catelier_features::Result<Vec<Feature>> {
        match self.pooling {
            Pooling::Projection => self.tower.image_features(images),
            _ => Ok(images.chunks(BATCH).map(|images| self.pooled(images)).collect::<Result<Vec<_>, _>>()?.concat()),
        }
    }
}

/// Mean and deviation over the patches: tokens `[n, patches, width]` to `[n, 2 width]`.
pub fn mean_deviation(tokens: &Tensor) -> CandleResult<Tensor> {
    let mean = tokens.mean_keepdim(1)?;
    let deviation = tokens.broadcast_sub(&mean)?.sqr()?.mean(1)?.sqrt()?;
    Tensor::cat(&[mean.squeeze(1)?, deviation], 1)
}

/// The upper triangles of Gram matrices: tokens `[n, patches, width]` to `[n, c (c + 1) / 2]`, `c = min(width, 64)`.
pub fn gram(tokens: &Tensor) -> CandleResult<Tensor> {
    let (n, patches, width) = tokens.dims3()?;
    let tokens = match width > GRAM_CHANNELS {
        true => tokens.broadcast_matmul(&fixed_projection(width)?)?,
        false => tokens.clone(),
    };
    let channels = tokens.dim(2)?;
    let gram = (tokens.t()?.contiguous()?.matmul(&tokens.contiguous()?)? / patches as f64)?;
    let upper: Vec<u32> =
        (0..channels).flat_map(|row| (row..channels).map(move |column| (row * channels + column) as u32)).collect();
    let upper = Tensor::from_vec(upper, channels * (channels + 1) / 2, tokens.device())?;
    gram.reshape((n, channels * channels))?.index_select(&upper, 1)
}

/// Normal values of variance `1 / 64` from a fixed seed: products of tokens are kept on average.
fn fixed_projection(width: usize) -> CandleResult<Tensor> {
    let noise = Noise::new(0).normal(Stream("style.gram"), 0, 0, (width, GRAM_CHANNELS), &Device::Cpu);
    noise.map_err(candle_core::Error::wrap)? / (GRAM_CHANNELS as f64).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens() -> Tensor {
        Tensor::new(&[[[1f32, 2.0], [3.0, 2.0]], [[0.0, 1.0], [0.0, -1.0]]], &Device::Cpu).unwrap()
    }

    #[test]
    fn means_and_deviations_are_those_of_the_patches() {
        let pooled = mean_deviation(&tokens()).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(pooled, [[2.0, 2.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]]);
    }

    #[test]
    fn a_gram_matrix_holds_each_product_of_two_channels_once() {
        let pooled = gram(&tokens()).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(pooled, [[5.0, 4.0, 4.0], [0.0, 0.0, 1.0]]);
    }

    #[test]
    fn wide_tokens_give_a_gram_matrix_of_64_channels_that_does_not_know_the_order_of_patches() {
        let tokens = Noise::new(3).normal(Stream("test"), 0, 0, (2, 5, 96), &Device::Cpu).unwrap();
        let turned = Tensor::cat(&[tokens.narrow(1, 2, 3).unwrap(), tokens.narrow(1, 0, 2).unwrap()], 1).unwrap();
        let (gram, turned) = (gram(&tokens).unwrap(), self::gram(&turned).unwrap());
        assert_eq!(gram.dims(), [2, 2080]);
        let difference = (gram - turned).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(difference < 1e-4, "{difference}");
    }

    #[test]
    fn names_of_poolings_are_read_back() {
        for name in ["projection", "mean-deviation:2", "gram:3"] {
            assert_eq!(name.parse::<Pooling>().unwrap().to_string(), name);
        }
        for name in ["gram:0", "gram:x", "mean", "gram:1:2"] {
            assert!(name.parse::<Pooling>().unwrap_err().contains(name));
        }
    }
}
