//! Errors of adapters and their files, with advice.

use std::path::PathBuf;

use candle_core::DType;

use crate::factors::LARGEST_RANK;
use crate::family::BaseFamily;
use crate::file::{Format, MatchReport};
use crate::kind::{AdapterKind, UpdateKind};

/// The result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Number of offenders that a message names before it counts the rest.
const SPELLED_OUT: usize = 3;

/// An error of an adapter or its file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The rank is 0 or above the limit.
    #[error("rank must be from 1 to {LARGEST_RANK}, found {rank}")]
    InvalidRank {
        /// The requested rank.
        rank: usize,
    },
    /// The alpha is zero, NaN, or beyond f32.
    #[error("alpha must be a number of f32 and not zero, found {alpha}")]
    InvalidAlpha {
        /// The requested alpha.
        alpha: f64,
    },
    /// The dropout probability is not in `0 <= p < 1`.
    #[error("dropout must be at least 0 and below 1, found {probability}")]
    InvalidDropout {
        /// The requested probability.
        probability: f64,
    },
    /// The list of targets is empty.
    #[error("no target given: expected a preset or at least one pattern")]
    NoTargets,
    /// Some targets match no module of the base.
    #[error("no module matches {} (searched {searched} modules)", listed(missed.iter().map(|m| &m.pattern)))]
    TargetsMissed {
        /// Number of modules of the base.
        searched: usize,
        /// The patterns that match no module.
        missed: Vec<MissedPattern>,
    },
    /// The shapes of two factors do not fit each other.
    #[error(
        "factors do not fit: expected down [rank, in] with up [out, rank], or down [rank, in, k, k] with up [out, rank, 1, 1]; found down {down:?}, up {up:?}"
    )]
    FactorShapes {
        /// Shape of `down`.
        down: Vec<usize>,
        /// Shape of `up`.
        up: Vec<usize>,
    },
    /// The number of magnitudes is not the number of outputs.
    #[error("magnitudes do not fit: expected [{outputs}], one for each row of `up`, found {found:?}")]
    MagnitudeShape {
        /// Number of rows of `up`.
        outputs: usize,
        /// Shape of the magnitudes.
        found: Vec<usize>,
    },
    /// No kind of update has tensors of these names.
    #[error("no kind of adapter has the tensors {}", listed(names))]
    UpdateTensors {
        /// The names.
        names: Vec<String>,
    },
    /// The operation is defined for LoRA alone, and a module has another kind.
    #[error("{doing} adapters is defined for LoRA; `{module}` is a {kind}")]
    NotLora {
        /// The operation.
        doing: &'static str,
        /// The first module of another kind.
        module: String,
        /// Its kind.
        kind: UpdateKind,
    },
    /// No kind of update has this name.
    #[error("unknown kind of adapter `{name}`: expected `lora` or `dora`")]
    UnknownKind {
        /// The name as given.
        name: String,
    },
    /// The shapes of an update and a weight differ.
    #[error("cannot merge an update of shape {update:?} into a weight of shape {weight:?}")]
    MergeShapes {
        /// Shape of the weight.
        weight: Vec<usize>,
        /// Shape of the update.
        update: Vec<usize>,
    },
    /// A merged weight overflows its dtype.
    #[error("the merged weight is not finite in {dtype:?}")]
    MergeNotFinite {
        /// The weight's dtype.
        dtype: DType,
    },
    /// Named parameters do not match the adapter's.
    #[error("parameters are missing, have another shape, or belong to another adapter: {}", listed(names))]
    ParameterNames {
        /// Their names, `<module>.<tensor>`.
        names: Vec<String>,
    },
    /// Two adapters have different shapes at a module, so they cannot be added.
    #[error("module `{module}` has factors of different shape in the adapters to combine")]
    CombinedShapes {
        /// The module.
        module: String,
    },
    /// A tensor operation failed.
    #[error("{what} failed")]
    Tensor {
        /// The operation.
        what: String,
        /// The tensor library's error.
        #[source]
        source: candle_core::Error,
    },
    /// Linear algebra, noise or a tensor file failed.
    #[error("{what} failed")]
    Numerics {
        /// The operation.
        what: String,
        /// The cause.
        #[source]
        source: catelier_numerics::Error,
    },
    /// A file that this program wrote is not as it was written.
    #[error("`{}` is damaged: its checksum does not hold", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
    },
    /// A file could not be read or written.
    #[error("cannot access `{}`", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// A folder has no adapter file.
    #[error("`{}` holds no adapter: expected `adapter_model.safetensors` or `pytorch_lora_weights.safetensors`", folder.display())]
    EmptyFolder {
        /// The folder.
        folder: PathBuf,
    },
    /// A safetensors file has no tensor of an adapter.
    #[error("`{}` holds no LoRA: {tensors} tensors, {}", path.display(), first_of("first", names))]
    NotAnAdapter {
        /// The file.
        path: PathBuf,
        /// Number of tensors in it.
        tensors: usize,
        /// Their names, at most a few.
        names: Vec<String>,
    },
    /// The file holds a kind of adapter that cannot be applied.
    #[error("`{}` is a {kind} file and cannot be applied: {} of its tensors, first `{}`", path.display(), keys.len(), keys.first().map_or("", String::as_str))]
    UnsupportedKind {
        /// The file.
        path: PathBuf,
        /// The kind in the file.
        kind: AdapterKind,
        /// The keys of that kind.
        keys: Vec<String>,
    },
    /// Some modules lack a tensor of their update.
    #[error("`{}` has modules without all of their tensors: {}", path.display(), listed_plain(modules))]
    IncompleteModules {
        /// The file.
        path: PathBuf,
        /// The incomplete modules.
        modules: Vec<IncompleteModule>,
    },
    /// Two names in the file stand for the same module.
    #[error("`{}` names the same module twice: {}", path.display(), listed(modules))]
    DuplicateModules {
        /// The file.
        path: PathBuf,
        /// The modules.
        modules: Vec<String>,
    },
    /// No module of the file exists in the base.
    #[error("none of the {total} modules of `{}` exists in the base model, first `{first}`", path.display())]
    NothingMatches {
        /// The file.
        path: PathBuf,
        /// Modules in the file.
        total: usize,
        /// The first of them.
        first: String,
        /// The base family the file seems made for.
        file_family: Option<BaseFamily>,
        /// The base family of the modules given.
        base_family: Option<BaseFamily>,
    },
    /// Some keys are unknown or name modules that the base lacks.
    #[error("`{}` has keys without a place in the base model ({report}): {}", path.display(), listed(&report.unmatched))]
    UnmatchedKeys {
        /// The file.
        path: PathBuf,
        /// The matched modules and the unmatched keys.
        report: MatchReport,
    },
    /// The shapes of some factors do not fit the base's modules.
    #[error("`{}` does not fit the base model: {}", path.display(), listed_plain(offenders))]
    WrongShapes {
        /// The file.
        path: PathBuf,
        /// Every module with a wrong shape.
        offenders: Vec<ShapeMismatch>,
        /// The base family the file seems made for.
        file_family: Option<BaseFamily>,
        /// The base family of the modules given.
        base_family: Option<BaseFamily>,
    },
    /// Some ranks exceed both sides of their modules by far.
    #[error("`{}` has ranks that its modules do not need: {}", path.display(), listed_plain(modules))]
    SurplusRanks {
        /// The file.
        path: PathBuf,
        /// Every module with such a rank.
        modules: Vec<SurplusRank>,
    },
    /// Some factors or alphas are NaN or infinite.
    #[error("`{}` has values that are not finite in {} tensors: {}", path.display(), tensors.len(), listed(tensors))]
    NotFinite {
        /// The file.
        path: PathBuf,
        /// The tensors.
        tensors: Vec<String>,
    },
    /// A tensor has the wrong dtype or shape for its role.
    #[error("`{}`: `{tensor}` should be {expected}, found {found}", path.display())]
    UnexpectedTensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The expected dtype or shape.
        expected: &'static str,
        /// The dtype or shape in the file.
        found: String,
    },
    /// An adapter configuration cannot be read.
    #[error("`{origin}` is not a usable adapter configuration: {reason}")]
    Configuration {
        /// The file, or the header entry.
        origin: String,
        /// The reason.
        reason: String,
    },
    /// The adapter adapts no module, so there is nothing to write.
    #[error("the adapter has no modules, so there is nothing to write")]
    NothingToWrite,
    /// Some module paths belong to no known component, so they cannot be written.
    #[error("module paths must start with `unet.`, `text_encoder.` or `text_encoder_2.`: {}", listed(paths))]
    UnknownComponents {
        /// The paths.
        paths: Vec<String>,
    },
    /// The adapter adapts several components, but a PEFT folder holds one.
    #[error("a PEFT file holds the adapter of one model, found {}", listed(components))]
    SeveralComponents {
        /// The components of the adapter.
        components: Vec<String>,
    },
    /// The adapter has several kinds of update, but a diffusers or PEFT file holds one.
    #[error("a {format} file holds one kind of adapter, found {}", listed(kinds))]
    SeveralKinds {
        /// The requested format.
        format: Format,
        /// The kinds of the adapter's modules.
        kinds: Vec<String>,
    },
    /// No format has this name.
    #[error("unknown adapter format `{name}`: expected `kohya`, `diffusers` or `peft`")]
    UnknownFormat {
        /// The name as given.
        name: String,
    },
}

/// A target pattern that matches no module, with the nearest names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MissedPattern {
    /// The pattern as given.
    pub pattern: String,
    /// Up to three module names close to it.
    pub closest: Vec<String>,
}

/// A factor whose shape does not fit its module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShapeMismatch {
    /// Module path in the base.
    pub module: String,
    /// `down`, `up` or `magnitude`.
    pub factor: &'static str,
    /// Shape that the module needs.
    pub expected: Vec<usize>,
    /// Shape in the file.
    pub found: Vec<usize>,
}

impl ShapeMismatch {
    /// Whether the file has a magnitude for each input, `[1, in]`, instead of one for each output.
    fn is_magnitude_per_input(&self) -> bool {
        self.factor == "magnitude" && self.found.len() > 1 && self.found[0] == 1
    }
}

impl std::fmt::Display for ShapeMismatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { module, factor, expected, found } = self;
        write!(f, "`{module}`: expected {factor} {expected:?}, found {found:?}")
    }
}

/// A module of a file whose rank exceeds both of its sides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SurplusRank {
    /// Module path in the base.
    pub module: String,
    /// Rank in the file.
    pub rank: usize,
    /// The largest rank that is accepted for the module.
    pub most: usize,
}

impl std::fmt::Display for SurplusRank {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { module, rank, most } = self;
        write!(f, "`{module}`: expected rank {most} or less, found {rank}")
    }
}

/// A module of a file that lacks a tensor of its update.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IncompleteModule {
    /// The keys of the module in the file.
    pub keys: Vec<String>,
    /// The missing tensor: `down`, `up` or `magnitude`.
    pub missing: &'static str,
}

impl std::fmt::Display for IncompleteModule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "no {} beside {}", self.missing, listed(&self.keys))
    }
}

impl Error {
    /// Wraps a tensor library error together with the operation that failed.
    pub(crate) fn tensor(what: &str) -> impl FnOnce(candle_core::Error) -> Self {
        let what = what.to_owned();
        move |source| Self::Tensor { what, source }
    }

    /// Wraps a numerics error together with the operation that failed.
    pub(crate) fn numerics(what: impl Into<String>) -> impl FnOnce(catelier_numerics::Error) -> Self {
        let what = what.into();
        move |source| Self::Numerics { what, source }
    }

    /// Wraps a system error together with the file that it is about.
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }

    /// Advice on what to do next, where there is any.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::TargetsMissed { missed, .. } => return nearest_names(missed),
            Self::NoTargets => {
                "use `attention`, `linears`, `convolutions`, `everything`, or patterns such as `to_q,ff.net.2`".to_owned()
            }
            Self::MergeNotFinite { .. } => "merge into f32 weights, or at a smaller strength".to_owned(),
            Self::UnsupportedKind { kind, .. } => kind.advice().to_owned(),
            Self::NotLora { .. } => "its effect depends on the base's weights; merge it into its base, and extract a LoRA there".to_owned(),
            Self::IncompleteModules { .. } => "the file is damaged, or was cut by another tool; save it again where it was trained".to_owned(),
            Self::SeveralKinds { .. } => format!("write it as `{}`, which holds several kinds", Format::Kohya),
            Self::WrongShapes { offenders, .. } if offenders.iter().any(ShapeMismatch::is_magnitude_per_input) => {
                "magnitudes for each input, which LyCORIS writes without `wd_on_output`, cannot be applied".to_owned()
            }
            Self::NothingMatches { file_family, base_family, .. }
            | Self::WrongShapes { file_family, base_family, .. } => {
                return other_family(*file_family, *base_family);
            }
            Self::UnmatchedKeys { .. } => {
                "the file may be made for another base or by another tool; inspect it, or accept that these keys are left out".to_owned()
            }
            Self::SurplusRanks { .. } => {
                "no trainer writes such a file; do not trust its source, or resize the adapter where it was made".to_owned()
            }
            Self::Damaged { .. } => {
                "copy the file again from where it was made; if a tool changed its tensors on purpose, let that tool drop the header".to_owned()
            }
            Self::NotFinite { .. } => "the training that wrote this file diverged; use an earlier state".to_owned(),
            Self::SeveralComponents { .. } => {
                format!("write it as `{}` or `{}`, which hold several models", Format::Kohya, Format::Diffusers)
            }
            Self::NotAnAdapter { .. } => "adapters have keys such as `lora_unet_….lora_down.weight`; this may be a whole model".to_owned(),
            Self::Numerics { source, .. } => return source.hint(),
            _ => return None,
        };
        Some(hint)
    }
}

fn nearest_names(missed: &[MissedPattern]) -> Option<String> {
    let names: Vec<&String> = missed.iter().flat_map(|m| &m.closest).collect();
    if names.is_empty() {
        return None;
    }
    let quoted: Vec<_> = names.iter().map(|name| format!("`{name}`")).collect();
    Some(format!("closest: {}", quoted.join(", ")))
}

fn other_family(file: Option<BaseFamily>, base: Option<BaseFamily>) -> Option<String> {
    match (file, base) {
        (Some(file), Some(base)) if file != base => Some(format!(
            "the file seems made for {file}, the base model is {base}; choose a base of the file's family"
        )),
        (Some(file), Some(_)) => {
            Some(format!("the file seems made for {file} of another size; choose another base model"))
        }
        (Some(file), None) => Some(format!("the file seems made for {file}; choose a base model of that family")),
        _ => Some("the file was made for a base model of another architecture".to_owned()),
    }
}

/// The first few names in backticks, and the number of the others.
fn listed<S: AsRef<str>>(names: impl IntoIterator<Item = S>) -> String {
    listed_plain(names.into_iter().map(|name| format!("`{}`", name.as_ref())))
}

/// The first few items, and the number of the others.
fn listed_plain<S: std::fmt::Display>(items: impl IntoIterator<Item = S>) -> String {
    let mut items = items.into_iter();
    let shown: Vec<String> = items.by_ref().take(SPELLED_OUT).map(|item| item.to_string()).collect();
    match items.count() {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

fn first_of(label: &str, names: &[String]) -> String {
    match names.first() {
        Some(name) => format!("{label} `{name}`"),
        None => "none at all".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_spell_out_three_and_count_the_rest() {
        assert_eq!(listed(["a", "b"]), "`a`, `b`");
        assert_eq!(listed(["a", "b", "c", "d", "e"]), "`a`, `b`, `c` and 2 more");
    }

    #[test]
    fn a_wrong_shape_says_which_module_and_which_family() {
        let error = Error::WrongShapes {
            path: "style.safetensors".into(),
            offenders: vec![ShapeMismatch {
                module: "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k".to_owned(),
                factor: "down",
                expected: vec![8, 768],
                found: vec![8, 1024],
            }],
            file_family: Some(BaseFamily::Sd2),
            base_family: Some(BaseFamily::Sd1),
        };
        assert!(error.to_string().contains("expected down [8, 768], found [8, 1024]"));
        assert!(error.hint().unwrap().contains("Stable Diffusion 2"));
    }
}
