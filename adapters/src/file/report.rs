//! How much of a file found its place in the base model.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::module::Component;

/// How much of a file found its place in the base model, by component.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MatchReport {
    /// Counts of modules, for each component that the file speaks of.
    pub components: BTreeMap<Component, Matched>,
    /// Tensor names that have no place, in their order.
    pub unmatched: Vec<String>,
}

/// Counts of the modules of one component.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Matched {
    /// Modules that found their place.
    pub matched: usize,
    /// Modules in the file.
    pub total: usize,
    /// Whether the base listed this component's modules, so that shapes could be compared.
    /// Without it, a text encoder's modules are known by their fixed names only.
    pub compared: bool,
}

impl MatchReport {
    /// Modules that found their place, all components together.
    pub fn matched(&self) -> usize {
        self.components.values().map(|counts| counts.matched).sum()
    }

    /// Modules in the file, all components together.
    pub fn total(&self) -> usize {
        self.components.values().map(|counts| counts.total).sum()
    }

    /// Whether everything in the file has its place.
    pub fn is_complete(&self) -> bool {
        self.unmatched.is_empty() && self.matched() == self.total()
    }
}

impl fmt::Display for MatchReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (component, counts)) in self.components.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(f, "{comma}{component} {}/{}", counts.matched, counts.total)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_reads_as_matched_of_total() {
        let counts = |matched, total| Matched { matched, total, compared: true };
        let report = MatchReport {
            components: [(Component::Unet, counts(31, 32)), (Component::TextEncoder, counts(8, 8))].into(),
            unmatched: vec!["x.lora_up.weight".to_owned()],
        };
        assert_eq!(report.to_string(), "unet 31/32, text_encoder 8/8");
        assert_eq!((report.matched(), report.total()), (39, 40));
        assert!(!report.is_complete());
    }
}
