//! Strategies in text: a name, and a setting after a colon where it has one.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;

use super::{Ewwa, EwwaForm, Moments, Placement, ServerOptimizer, Strategy, TargetRank};
use crate::error::{Error, Result};

/// The ridge of `fair` where none is named.
const RIDGE: f64 = 1e-3;
/// The softness of `fedrot` where none is named: the middle of what its paper recommends.
const SOFTNESS: f64 = 0.5;
/// The share that `trimmed-mean` drops at each end where none is named.
const CUT: f64 = 0.2;
/// The factor of `norm-bound` where none is named.
const FACTOR: f64 = 1.0;

impl Strategy {
    /// The names of all strategies, as in flags; a setting may follow some after a colon.
    pub const NAMES: [&'static str; 23] = [
        "fedavg",
        "product",
        "ffa",
        "rolora",
        "fedsa",
        "flora",
        "fedex",
        "fair",
        "fedrot",
        "hetlora",
        "raflora",
        "ewwa-adam",
        "ewwa-adagrad",
        "ewwa-yogi",
        "ewwa-released",
        "fedadam",
        "fedadagrad",
        "fedyogi",
        "median",
        "trimmed-mean",
        "krum",
        "geometric-median",
        "norm-bound",
    ];

    /// Description of the strategy in one sentence.
    pub fn description(&self) -> &'static str {
        match self {
            Self::Fedavg => {
                "mean of the factors, each by itself; cheap, but not the mean of the updates unless all clients share one `down`"
            }
            Self::Product { .. } => {
                "mean of the updates themselves, cut to a rank by singular values; exact when the rank suffices, and ranks may differ"
            }
            Self::Ffa => "mean of `up` beside a common `down` that nobody trains; exact",
            Self::Rolora => "mean of `up` and of `down` in turn, the other held; exact",
            Self::Fedsa => "mean of `down`, while every client keeps its `up`",
            Self::Flora => "stacked factors; exact, and the ranks add up",
            Self::Fedex => "mean of the factors and the residual that it misses; exact",
            Self::Fair { .. } => "mean of `down` and the `up` beside it that comes nearest to the mean of the updates",
            Self::Fedrot { .. } => "mean of factors that were rotated towards the global ones",
            Self::Hetlora => "mean of the factors of mixed ranks, padded with zeros and weighted by their norms",
            Self::Raflora => "mean of the factors of mixed ranks, each rank slice over the clients that have it",
            Self::Ewwa { .. } => "mean with a weight for every element and client, from the moments of its changes",
            Self::ServerOptimizer(_) => "an adaptive step of the server along the mean change",
            Self::Median { .. } => "median of every element of the updates; bears less than half poisoned",
            Self::TrimmedMean { .. } => "mean of every element of the updates without the extremes",
            Self::Krum { .. } => "mean of the updates that are nearest to the others",
            Self::GeometricMedian => "geometric median of the updates; bears less than half poisoned",
            Self::NormBound { .. } => "mean of the updates, the long ones shortened",
        }
    }

    /// The strategy of this name with this setting; `None` if there is none.
    fn named(name: &str, setting: Option<&str>) -> Option<Self> {
        Some(match (name, setting) {
            ("fedavg" | "fedit", None) => Self::Fedavg,
            ("product" | "flexlora", rank) => Self::Product { rank: target(rank)?, alpha: None },
            ("ffa" | "ffa-lora", None) => Self::Ffa,
            ("rolora", None) => Self::Rolora,
            ("fedsa" | "fedsa-lora", None) => Self::Fedsa,
            ("flora", None) => Self::Flora,
            ("fedex" | "fedex-lora", None) => Self::Fedex,
            ("fair" | "lora-fair", ridge) => Self::Fair { ridge: number(ridge, RIDGE)? },
            ("fedrot" | "fedrot-lora", softness) => Self::Fedrot { softness: number(softness, SOFTNESS)? },
            ("hetlora", None) => Self::Hetlora,
            ("raflora", None) => Self::Raflora,
            ("median", rank) => Self::Median { rank: target(rank)? },
            ("trimmed-mean", cut) => Self::TrimmedMean { cut: number(cut, CUT)?, rank: TargetRank::Largest },
            ("krum" | "multi-krum", poisoned) => Self::Krum { poisoned: whole(poisoned, 1)? },
            ("geometric-median" | "rfa", None) => Self::GeometricMedian,
            ("norm-bound", factor) => Self::NormBound { factor: number(factor, FACTOR)? },
            (name, setting) => Self::adaptive(name, setting)?,
        })
    }

    /// The strategies with moments.
    fn adaptive(name: &str, setting: Option<&str>) -> Option<Self> {
        let moments = |name: &str| match name {
            "adam" => Some(Moments::Adam),
            "adagrad" => Some(Moments::Adagrad),
            "yogi" => Some(Moments::Yogi),
            _ => None,
        };
        if let Some(variant) = name.strip_prefix("ewwa-") {
            let settings = match variant {
                "released" => Ewwa { form: EwwaForm::SharedLog, ..Ewwa::default() },
                variant => Ewwa { moments: moments(variant)?, ..Ewwa::default() },
            };
            return Some(Self::Ewwa { settings, placement: placement(setting)? });
        }
        if name == "ewwa" {
            return Some(Self::Ewwa { settings: Ewwa::default(), placement: placement(setting)? });
        }
        let mut optimizer = ServerOptimizer::new(moments(name.strip_prefix("fed")?)?);
        optimizer.learning_rate = number(setting, optimizer.learning_rate)?;
        Some(Self::ServerOptimizer(optimizer))
    }
}

/// All names beside the two that the message of an unknown name explains.
pub(crate) fn others() -> String {
    Strategy::NAMES[2..].join(", ")
}

fn target(rank: Option<&str>) -> Option<TargetRank> {
    match rank {
        None => Some(TargetRank::Largest),
        Some("exact") => Some(TargetRank::Exact),
        Some(rank) => rank.parse().ok().filter(|rank| *rank > 0).map(TargetRank::Fixed),
    }
}

fn number(text: Option<&str>, usual: f64) -> Option<f64> {
    text.map_or(Some(usual), |text| text.parse().ok().filter(|number: &f64| number.is_finite()))
}

fn whole(text: Option<&str>, usual: usize) -> Option<usize> {
    text.map_or(Some(usual), |text| text.parse().ok())
}

fn placement(text: Option<&str>) -> Option<Placement> {
    match text {
        None | Some("up") => Some(Placement::Up),
        Some("factors") => Some(Placement::Factors),
        Some("product") => Some(Placement::Product),
        Some(_) => None,
    }
}

impl FromStr for Strategy {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (name, setting) = text.split_once(':').map_or((text, None), |(name, setting)| (name, Some(setting)));
        let found = Self::named(name, setting).filter(|strategy| strategy.validate().is_ok());
        found.ok_or_else(|| Error::UnknownStrategy { name: text.to_owned() })
    }
}

/// Reads a strategy that is spelled out with its settings, or named as in flags.
pub(crate) fn by_name_or_settings<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Strategy, D::Error> {
    let parsed = match serde_json::Value::deserialize(from)? {
        serde_json::Value::String(name) => name.parse().map_err(|error: Error| error.to_string()),
        settings => serde_json::from_value(settings).map_err(|error| error.to_string()),
    };
    parsed.map_err(serde::de::Error::custom)
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fedavg => f.write_str("fedavg"),
            Self::Product { rank, .. } => write_ranked(f, "product", *rank),
            Self::Ffa => f.write_str("ffa"),
            Self::Rolora => f.write_str("rolora"),
            Self::Fedsa => f.write_str("fedsa"),
            Self::Flora => f.write_str("flora"),
            Self::Fedex => f.write_str("fedex"),
            Self::Fair { ridge } => write_number(f, "fair", *ridge, RIDGE),
            Self::Fedrot { softness } => write_number(f, "fedrot", *softness, SOFTNESS),
            Self::Hetlora => f.write_str("hetlora"),
            Self::Raflora => f.write_str("raflora"),
            Self::Ewwa { settings, placement } => write_ewwa(f, settings, *placement),
            Self::ServerOptimizer(settings) => {
                let usual = ServerOptimizer::new(settings.moments).learning_rate;
                write_number(f, &format!("fed{}", moments(settings.moments)), settings.learning_rate, usual)
            }
            Self::Median { rank } => write_ranked(f, "median", *rank),
            Self::TrimmedMean { cut, .. } => write_number(f, "trimmed-mean", *cut, CUT),
            Self::Krum { poisoned } => write!(f, "krum:{poisoned}"),
            Self::GeometricMedian => f.write_str("geometric-median"),
            Self::NormBound { factor } => write_number(f, "norm-bound", *factor, FACTOR),
        }
    }
}

fn write_ranked(f: &mut fmt::Formatter<'_>, name: &str, rank: TargetRank) -> fmt::Result {
    match rank {
        TargetRank::Largest => f.write_str(name),
        TargetRank::Fixed(rank) => write!(f, "{name}:{rank}"),
        TargetRank::Exact => write!(f, "{name}:exact"),
    }
}

fn write_number(f: &mut fmt::Formatter<'_>, name: &str, value: f64, usual: f64) -> fmt::Result {
    if value == usual { f.write_str(name) } else { write!(f, "{name}:{value}") }
}

fn moments(moments: Moments) -> &'static str {
    match moments {
        Moments::Adam => "adam",
        Moments::Adagrad => "adagrad",
        Moments::Yogi => "yogi",
    }
}

/// Settings that no name has (the temperature, magnitudes alone) are not written.
fn write_ewwa(f: &mut fmt::Formatter<'_>, settings: &Ewwa, placement: Placement) -> fmt::Result {
    match settings.form {
        EwwaForm::Softmax => write!(f, "ewwa-{}", moments(settings.moments))?,
        EwwaForm::SharedLog => f.write_str("ewwa-released")?,
    }
    match placement {
        Placement::Up => Ok(()),
        Placement::Factors => f.write_str(":factors"),
        Placement::Product => f.write_str(":product"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::strategy::Distance;

    #[test]
    fn strategies_are_written_as_they_are_read() {
        let settings = ["product:8", "product:exact", "fair:0.5", "fedrot:1", "median:4", "trimmed-mean:0.1", "krum:3"];
        let more = ["norm-bound:2", "ewwa-adam:factors", "ewwa-yogi:product", "fedyogi:0.1", "ewwa-released:factors"];
        for text in Strategy::NAMES.iter().chain(&settings).chain(&more).filter(|text| **text != "krum") {
            assert_eq!(text.parse::<Strategy>().unwrap().to_string(), *text);
        }
    }

    #[test]
    fn names_of_papers_are_read_too() {
        let papers = [("fedit", "fedavg"), ("flexlora", "product"), ("flexlora:exact", "product:exact")];
        for (paper, name) in papers.into_iter().chain([("ewwa", "ewwa-adam"), ("rfa", "geometric-median")]) {
            assert_eq!(paper.parse::<Strategy>().unwrap(), name.parse().unwrap());
        }
        let json = r#"{"flexlora": {"rank": {"fixed": 4}, "alpha": null}}"#;
        let strategy: Strategy = serde_json::from_str(json).unwrap();
        assert_eq!(strategy.to_string(), "product:4");
        assert!(serde_json::to_string(&strategy).unwrap().starts_with(r#"{"product""#));
    }

    #[test]
    fn other_names_are_refused_with_the_choices() {
        let old = ["", "average", "product:", "product:0", "product:-1", "fedavg:2", "fedit:exact", "flexlora:0"];
        let new =
            ["fair:0", "fedrot:2", "trimmed-mean:0.5", "krum:-1", "norm-bound:nan", "ewwa:all", "fedsgd", "ewwa-sgd"];
        for text in old.iter().chain(&new) {
            let error = text.parse::<Strategy>().unwrap_err();
            assert!(error.to_string().contains("`fedavg` or `product`"), "{error}");
            assert!(error.to_string().contains("geometric-median"), "{error}");
        }
    }

    #[test]
    fn a_distance_from_nothing_is_nothing() {
        assert!(Distance::default().relative().abs() < 1e-12);
        assert!((Distance { absolute: 1.0, mean_norm: 4.0 }.relative() - 0.25).abs() < 1e-12);
    }
}
