//! The methods by name.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// How the style model is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Method {
    /// No training: the tower's own features.
    Tower,
    /// Every artist by itself.
    Local,
    /// The mean of models with a common classifier (arXiv 1602.05629).
    Fedavg,
    /// The same, held near the global model (arXiv 1812.06127).
    Fedprox,
    /// The same, with a contrast of models (arXiv 2103.16257).
    Moon,
    /// Models stay at home, and prototypes are shared (arXiv 2105.00243).
    Fedproto,
    /// The mean of bodies; classifiers stay at home and are trained first in every round (arXiv 2102.07078).
    Fedrep,
    /// FedAvg, and then fine-tuning at home.
    FedavgTuned,
    /// The mean of bodies under a fixed random classifier, and then fine-tuning of both at home (arXiv 2106.06042).
    Fedbabu,
    /// FedAvg with EWWA-FL's weights for every element (arXiv 2404.15919).
    Ewwa,
    /// All works in one place: what no federation can have.
    Centralised,
    /// FedStyle, reconstructed (arXiv 2404.16336), with all of its parts or some.
    Fedstyle(FedStyleParts),
}

/// The parts of FedStyle that are switched on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FedStyleParts {
    /// Cross-entropy against the prototypes.
    pub classifier: bool,
    /// Alignment with the server's prototypes.
    pub alignment: bool,
    /// Contrast with the server's prototypes and the public set.
    pub contrast: bool,
    /// The public set: its negatives, and the server's calibration.
    pub public: bool,
}

impl FedStyleParts {
    /// All of them.
    pub const ALL: Self = Self { classifier: true, alignment: true, contrast: true, public: true };
}

/// Names of the parts, and FedStyle without each.
const ABLATIONS: [(&str, FedStyleParts); 5] = [
    ("fedstyle", FedStyleParts::ALL),
    ("fedstyle-without-classifier", FedStyleParts { classifier: false, ..FedStyleParts::ALL }),
    ("fedstyle-without-alignment", FedStyleParts { alignment: false, ..FedStyleParts::ALL }),
    ("fedstyle-without-contrast", FedStyleParts { contrast: false, ..FedStyleParts::ALL }),
    ("fedstyle-without-public", FedStyleParts { public: false, ..FedStyleParts::ALL }),
];

const OTHERS: [(&str, Method); 11] = [
    ("tower", Method::Tower),
    ("local", Method::Local),
    ("fedavg", Method::Fedavg),
    ("fedprox", Method::Fedprox),
    ("moon", Method::Moon),
    ("fedproto", Method::Fedproto),
    ("fedrep", Method::Fedrep),
    ("fedavg-tuned", Method::FedavgTuned),
    ("fedbabu", Method::Fedbabu),
    ("ewwa", Method::Ewwa),
    ("centralised", Method::Centralised),
];

impl Method {
    /// FedStyle with all of its parts.
    pub const FEDSTYLE: Self = Self::Fedstyle(FedStyleParts::ALL);

    /// Every method with a name: the others, FedStyle, and FedStyle without each of its parts.
    pub fn all() -> Vec<Self> {
        let others = OTHERS.iter().map(|(_, method)| *method);
        others.chain(ABLATIONS.iter().map(|(_, parts)| Self::Fedstyle(*parts))).collect()
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        let other = OTHERS.iter().find(|(_, method)| *method == self).map(|(name, _)| *name);
        let ablation = ABLATIONS.iter().find(|(_, parts)| Self::Fedstyle(*parts) == self).map(|(name, _)| *name);
        other.or(ablation).unwrap_or("fedstyle-without-several")
    }

    /// Whether its clients end with models of their own.
    pub fn is_personal(self) -> bool {
        matches!(self, Self::Local | Self::Fedproto | Self::FedavgTuned | Self::Fedbabu)
    }
}

impl fmt::Display for Method {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.name())
    }
}

impl FromStr for Method {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::all().into_iter().find(|method| method.name() == text).ok_or_else(|| {
            let names: Vec<&str> = Self::all().into_iter().map(Self::name).collect();
            format!("expected one of {}, found `{text}`", names.join(", "))
        })
    }
}

impl TryFrom<String> for Method {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Method> for String {
    fn from(method: Method) -> Self {
        method.name().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_method_is_found_by_its_name_and_others_are_refused_with_the_list() {
        for method in Method::all() {
            assert_eq!(method.name().parse::<Method>().unwrap(), method);
        }
        let error = "fedsgd".parse::<Method>().unwrap_err();
        assert!(error.contains("fedsgd") && error.contains("fedstyle-without-public"), "{error}");
    }
}
