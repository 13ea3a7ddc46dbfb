//! The report of the modules of a file that matched the base model's.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::module::Component;

/// The modules of a file that matched the base model's, counted by component.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MatchReport {
    /// Counts of modules, for each component in the file.
    pub components: BTreeMap<Component, Matched>,
    /// Tensor names that match no module, sorted.
    pub unmatched: Vec<String>,
}

/// Counts of the modules of one component.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Matched {
    /// Modules that matched the base's.
    pub matched: usize,
    /// Modules in the file.
    pub total: usize,
    /// Whether the base listed this component's modules, so that shapes could be compared. Otherwise the modules of a
    /// text encoder are recognised by CLIP's fixed names only.
    pub compared: bool,
}

impl MatchReport {
    /// Matched modules of all components together.
    pub fn matched(&self) -> usize {
        self.components.values().map(|counts| counts.matched).sum()
    }

    /// Modules in the file of all components together.
    pub fn total(&self) -> usize {
        self.components.values().map(|counts| counts.total).sum()
    }

    /// Whether every module and every key of the file matched.
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
