//! Kinds of adapters: the kinds that can be applied here, and all kinds that a file is recognised as.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// A kind of layer update that can be trained and applied; see [`LayerUpdate`](crate::LayerUpdate).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UpdateKind {
    /// Two low-rank factors (arXiv 2106.09685).
    #[default]
    Lora,
    /// Two low-rank factors and a magnitude for each output (arXiv 2402.09353).
    Dora,
}

impl UpdateKind {
    /// Every kind.
    pub const ALL: [Self; 2] = [Self::Lora, Self::Dora];

    /// The name in flags, settings and headers.
    pub fn name(self) -> &'static str {
        match self {
            Self::Lora => "lora",
            Self::Dora => "dora",
        }
    }
}

impl fmt::Display for UpdateKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        AdapterKind::from(*self).fmt(f)
    }
}

impl FromStr for UpdateKind {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|kind| kind.name() == name);
        found.ok_or_else(|| Error::UnknownKind { name: name.to_owned() })
    }
}

/// A kind of adapter, recognised by the tensor names of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AdapterKind {
    /// Two low-rank factors.
    Lora,
    /// LoRA with a magnitude per output (arXiv 2402.09353).
    Dora,
    /// Hadamard product of two low-rank products (LyCORIS).
    Loha,
    /// Kronecker product (LyCORIS).
    Lokr,
    /// Orthogonal fine-tuning, block-wise or butterfly.
    Oft,
    /// Generalised LoRA (LyCORIS).
    Glora,
    /// Learned scales of activations.
    Ia3,
    /// LoRA on a convolution with a third factor between `down` and `up`.
    TuckerLora,
    /// Whole weight differences.
    FullDifference,
    /// Trained biases or norms beside the factors.
    BiasOrNorm,
    /// Textual inversion embeddings.
    TextualInversion,
}

impl From<UpdateKind> for AdapterKind {
    fn from(kind: UpdateKind) -> Self {
        match kind {
            UpdateKind::Lora => Self::Lora,
            UpdateKind::Dora => Self::Dora,
        }
    }
}

impl AdapterKind {
    /// Advice for a file of this kind, which cannot be applied.
    pub(crate) fn advice(self) -> &'static str {
        match self {
            Self::Lora => "this file can be applied as it is",
            Self::Dora => {
                "magnitudes are read from `dora_scale` and `lora_magnitude_vector`; export the file under one of these names"
            }
            Self::TextualInversion => "load it as an embedding of the text encoder, not as an adapter",
            _ => "extract a plain LoRA from it with the tool that trained it, or merge it into its base there",
        }
    }
}

impl fmt::Display for AdapterKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Lora => "LoRA",
            Self::Dora => "DoRA",
            Self::Loha => "LoHa",
            Self::Lokr => "LoKr",
            Self::Oft => "OFT",
            Self::Glora => "GLoRA",
            Self::Ia3 => "(IA)³",
            Self::TuckerLora => "three-factor LoRA",
            Self::FullDifference => "full weight difference",
            Self::BiasOrNorm => "LoRA-with-biases-or-norms",
            Self::TextualInversion => "textual inversion",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_written_as_they_are_read() {
        for kind in UpdateKind::ALL {
            assert_eq!(kind.name().parse::<UpdateKind>().unwrap(), kind);
        }
        let error = "loha".parse::<UpdateKind>().unwrap_err();
        assert!(error.to_string().contains("`lora` or `dora`"), "{error}");
    }
}
