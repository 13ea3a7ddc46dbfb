//! Scores by kind of prompt and by class: an even average can hide one ruined class.

use serde::{Deserialize, Serialize};

use super::kps_no_token;
use crate::error::{Error, Result};
use crate::score::Score;

/// The score of one kind of prompt or one class.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Group {
    /// The kind or class.
    pub name: String,
    /// [`kps_no_token`] of this group alone.
    pub kept: Score,
    /// `1 - kept.mean`, in [0, 1].
    pub drop: f64,
    /// Similarity of the group's most changed image.
    pub worst: f64,
}

/// Splits similarities by their label and scores each group, the largest drop first.
///
/// `labels[i]` is the group of `similarities[i]`; images without a label are left out.
///
/// # Errors
/// If the lists differ in length or a similarity lies outside [0, 1].
pub fn by_group(labels: &[Option<&str>], similarities: &[f64], seed: u64) -> Result<Vec<Group>> {
    if labels.len() != similarities.len() {
        return Err(Error::LengthMismatch {
            what: "labels and similarities",
            expected: labels.len(),
            found: similarities.len(),
        });
    }
    let mut groups = collect(labels, similarities)
        .into_iter()
        .map(|(name, values)| group(name, &values, seed))
        .collect::<Result<Vec<_>>>()?;
    groups.sort_by(|left, right| right.drop.total_cmp(&left.drop));
    Ok(groups)
}

fn collect<'a>(labels: &[Option<&'a str>], similarities: &[f64]) -> Vec<(&'a str, Vec<f64>)> {
    let mut groups = std::collections::BTreeMap::<&str, Vec<f64>>::new();
    for (label, similarity) in labels.iter().zip(similarities) {
        if let Some(label) = label {
            groups.entry(label).or_default().push(*similarity);
        }
    }
    groups.into_iter().collect()
}

fn group(name: &str, similarities: &[f64], seed: u64) -> Result<Group> {
    let kept = kps_no_token(similarities, seed)?;
    Ok(Group {
        name: name.to_owned(),
        kept,
        drop: 1.0 - kept.mean,
        worst: similarities.iter().copied().fold(1.0, f64::min),
    })
}
