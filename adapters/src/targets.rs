//! Which modules an adapter changes: presets and patterns over module paths.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, MissedPattern, Result};
use crate::module::{ModuleInfo, ModuleKind};

/// The projections of every attention, which LoRA adapts by default, as diffusers' training scripts do: first the
/// UNet's, then the text encoders'.
const ATTENTION: [&str; 8] = [
    "to_q",
    "to_k",
    "to_v",
    "to_out.0",
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.out_proj",
];

/// Names of the presets in flags and settings.
const PRESETS: [&str; 4] = ["attention", "linears", "convolutions", "everything"];

/// The modules that an adapter changes.
///
/// In text, a preset name (`attention`, `linears`, `convolutions`, `everything`) or patterns separated by commas or
/// spaces. A pattern matches the end of a module path (`to_q`, `ff.net.2`, or the whole path); `*` stands for any
/// characters: `mid_block.*.to_v`.
///
/// ```
/// # use catelier_adapters::Targets;
/// assert_eq!("attention".parse::<Targets>().unwrap(), Targets::attention());
/// let own: Targets = "to_k, up_blocks.*.ff.net.2".parse().unwrap();
/// assert_eq!(own.to_string(), "to_k,up_blocks.*.ff.net.2");
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Targets {
    /// `to_q`, `to_k`, `to_v` and `to_out.0` of every attention, and in text encoders `q_proj`, `k_proj`, `v_proj` and
    /// `out_proj`: the default.
    #[default]
    Attention,
    /// Every linear layer.
    Linears,
    /// Every convolution, one-pixel kernels included.
    Convolutions,
    /// Every linear layer and every convolution.
    Everything,
    /// The modules that match one of these patterns; never empty.
    Patterns(Vec<String>),
}

impl Targets {
    /// Every projection of every attention; see [`Targets::Attention`].
    pub fn attention() -> Self {
        Self::Attention
    }

    /// Every linear layer.
    pub fn linears() -> Self {
        Self::Linears
    }

    /// Every convolution.
    pub fn convolutions() -> Self {
        Self::Convolutions
    }

    /// Every linear layer and every convolution.
    pub fn everything() -> Self {
        Self::Everything
    }

    /// The modules that match one of these patterns; see the type for the syntax.
    pub fn patterns(patterns: Vec<String>) -> Self {
        Self::Patterns(patterns)
    }

    /// The targets among `modules`, in their order.
    ///
    /// # Errors
    /// [`Error::TargetsMissed`] if no module is a target or one of the patterns matches no module; the error lists the
    /// closest names for each pattern.
    pub fn select<'m>(&self, modules: &'m [ModuleInfo]) -> Result<Vec<&'m ModuleInfo>> {
        self.refuse_misses(modules)?;
        let chosen: Vec<_> = modules.iter().filter(|m| self.chooses(m)).collect();
        if chosen.is_empty() {
            return Err(Error::TargetsMissed {
                searched: modules.len(),
                missed: vec![MissedPattern { pattern: self.to_string(), closest: Vec::new() }],
            });
        }
        Ok(chosen)
    }

    /// Whether `module` is a target.
    pub fn chooses(&self, module: &ModuleInfo) -> bool {
        let linear = matches!(module.kind, ModuleKind::Linear { .. });
        match self {
            Self::Attention => ATTENTION.iter().any(|p| names(p, &module.path)),
            Self::Linears => linear,
            Self::Convolutions => !linear,
            Self::Everything => true,
            Self::Patterns(patterns) => patterns.iter().any(|p| names(p, &module.path)),
        }
    }

    fn refuse_misses(&self, modules: &[ModuleInfo]) -> Result<()> {
        let Self::Patterns(patterns) = self else {
            return Ok(());
        };
        let missed: Vec<_> = patterns
            .iter()
            .filter(|pattern| !modules.iter().any(|m| names(pattern, &m.path)))
            .map(|pattern| MissedPattern { pattern: pattern.clone(), closest: closest(pattern, modules) })
            .collect();
        if missed.is_empty() {
            return Ok(());
        }
        Err(Error::TargetsMissed { searched: modules.len(), missed })
    }
}

impl FromStr for Targets {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.trim() {
            "attention" => return Ok(Self::Attention),
            "linears" => return Ok(Self::Linears),
            "convolutions" => return Ok(Self::Convolutions),
            "everything" => return Ok(Self::Everything),
            _ => {}
        }
        let patterns: Vec<String> = text
            .split(|c: char| c == ',' || c.is_whitespace())
            .filter(|pattern| !pattern.is_empty())
            .map(str::to_owned)
            .collect();
        if patterns.is_empty() {
            return Err(Error::NoTargets);
        }
        Ok(Self::Patterns(patterns))
    }
}

impl TryFrom<String> for Targets {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Targets> for String {
    fn from(targets: Targets) -> Self {
        targets.to_string()
    }
}

impl fmt::Display for Targets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [attention, linears, convolutions, everything] = PRESETS;
        match self {
            Self::Attention => f.write_str(attention),
            Self::Linears => f.write_str(linears),
            Self::Convolutions => f.write_str(convolutions),
            Self::Everything => f.write_str(everything),
            Self::Patterns(patterns) => f.write_str(&patterns.join(",")),
        }
    }
}

/// Whether the pattern matches the path, or its end after a dot.
fn names(pattern: &str, path: &str) -> bool {
    let starts = std::iter::once(0).chain(path.match_indices('.').map(|(at, _)| at + 1));
    starts.map(|start| &path[start..]).any(|end| matches(pattern.as_bytes(), end.as_bytes()))
}

/// Whether `*` patterns match the whole text, without recursion: on a mismatch, the last star matches one character
/// more.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut retry = None;
    while t < text.len() {
        if pattern.get(p) == Some(&b'*') {
            retry = Some((p + 1, t));
            p += 1;
        } else if pattern.get(p) == Some(&text[t]) {
            (p, t) = (p + 1, t + 1);
        } else if let Some((after_star, swallowed)) = retry {
            retry = Some((after_star, swallowed + 1));
            (p, t) = (after_star, swallowed + 1);
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

/// The three module names nearest to a pattern that matches no module.
fn closest(pattern: &str, modules: &[ModuleInfo]) -> Vec<String> {
    let segments = pattern.split('.').count();
    let endings: BTreeSet<String> = modules.iter().map(|m| ending(&m.path, segments)).collect();
    let mut ranked: Vec<_> = endings.into_iter().map(|ending| (edit_distance(pattern, &ending), ending)).collect();
    ranked.sort();
    ranked.into_iter().take(3).map(|(_, ending)| ending).collect()
}

/// The last `segments` segments of a path, and the one before them if the first is a number, which says nothing alone.
fn ending(path: &str, segments: usize) -> String {
    let parts: Vec<&str> = path.split('.').collect();
    let mut start = parts.len().saturating_sub(segments);
    while start > 0 && parts[start].bytes().all(|byte| byte.is_ascii_digit()) {
        start -= 1;
    }
    parts[start..].join(".")
}

/// Levenshtein distance in bytes, one row at a time.
fn edit_distance(left: &str, right: &str) -> usize {
    let right = right.as_bytes();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, byte) in left.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, other) in right.iter().enumerate() {
            let substituted = diagonal + usize::from(byte != *other);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn modules() -> Vec<ModuleInfo> {
        let linear = |path: &str| ModuleInfo {
            path: path.to_owned(),
            kind: ModuleKind::Linear { in_features: 4, out_features: 4 },
        };
        let block = "unet.mid_block.attentions.0.transformer_blocks.0";
        let mut modules: Vec<_> = ["attn1.to_q", "attn1.to_out.0", "attn2.to_k", "ff.net.2"]
            .iter()
            .map(|end| linear(&format!("{block}.{end}")))
            .collect();
        modules.push(ModuleInfo {
            path: "unet.conv_in".to_owned(),
            kind: ModuleKind::Conv2d { in_channels: 4, out_channels: 8, kernel: 3, stride: 1, padding: 1 },
        });
        modules
    }

    fn selected(targets: &str) -> Vec<String> {
        let modules = modules();
        let targets: Targets = targets.parse().unwrap();
        let chosen = targets.select(&modules).unwrap();
        let short = |m: &&ModuleInfo| m.path.rsplit("blocks.0.").next().unwrap().to_owned();
        chosen.iter().map(short).collect()
    }

    #[test]
    fn presets_choose_by_kind() {
        assert_eq!(selected("attention"), ["attn1.to_q", "attn1.to_out.0", "attn2.to_k"]);
        assert_eq!(selected("convolutions"), ["unet.conv_in"]);
        assert_eq!(selected("linears").len(), 4);
        assert_eq!(selected("everything").len(), 5);
    }

    #[test]
    fn attention_is_the_projections_of_text_encoders_too() {
        let kind = ModuleKind::Linear { in_features: 4, out_features: 4 };
        let layer = |name: &str| ModuleInfo { path: format!("text_encoder.text_model.encoder.layers.0.{name}"), kind };
        let names = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "mlp.fc1"];
        let modules = names.map(layer);
        let chosen = Targets::attention().select(&modules).unwrap();
        assert!(chosen.into_iter().eq(&modules[..4]));
    }

    #[test]
    fn patterns_name_endings_and_stars_stand_for_anything() {
        assert_eq!(selected("to_k"), ["attn2.to_k"]);
        assert_eq!(selected("mid_block.*.to_q ff.net.2"), ["attn1.to_q", "ff.net.2"]);
        assert_eq!(selected("attn*.to_*").len(), 3);
        assert_eq!(selected("*").len(), 5);
    }

    #[test]
    fn an_ending_starts_at_a_dot() {
        assert!(!names("o_q", "unet.attn1.to_q"));
        assert!(!names("to_out", "unet.attn1.to_out.0"));
        assert!(names("unet.attn1.to_out.0", "unet.attn1.to_out.0"));
    }

    #[test]
    fn a_pattern_that_names_nothing_is_an_error_with_near_misses() {
        let targets: Targets = "to_q,to_w".parse().unwrap();
        let error = targets.select(&modules()).unwrap_err();
        assert!(error.to_string().contains("`to_w`"), "{error}");
        assert!(!error.to_string().contains("`to_q`"), "{error}");
        assert!(error.hint().unwrap().contains("`to_q`"), "{:?}", error.hint());
    }

    #[test]
    fn a_preset_without_modules_is_an_error() {
        let linears: Vec<_> = modules().drain(..4).collect();
        assert!(Targets::convolutions().select(&linears).is_err());
    }

    #[test]
    fn empty_text_is_refused() {
        assert!(matches!(" , ".parse::<Targets>(), Err(Error::NoTargets)));
    }

    #[test]
    fn distance_counts_edits() {
        assert_eq!(edit_distance("to_w", "to_q"), 1);
        assert_eq!(edit_distance("kitten", "sitting"), 3);
        assert_eq!(edit_distance("", "abc"), 3);
    }
}
