//! What can go wrong with adapters, and what to do about it.

use std::path::PathBuf;

use candle_core::DType;

use crate::family::BaseFamily;
use crate::file::{Format, MatchReport};
use crate::kind::{AdapterKind, UpdateKind};

/// The result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// How many offenders a message spells out before it counts the rest.
const SPELLED_OUT: usize = 3;

/// Everything that can go wrong with adapters and their files.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A rank that no adapter can have.
    #[error("rank must be 1 or more, found {rank}")]
    InvalidRank {
        /// The rank asked for.
        rank: usize,
    },
    /// An alpha that would make the update vanish or explode.
    #[error("alpha must be finite and not zero, found {alpha}")]
    InvalidAlpha {
        /// The alpha asked for.
        alpha: f64,
    },
    /// A dropout probability out of range.
    #[error("dropout must be at least 0 and below 1, found {probability}")]
    InvalidDropout {
        /// The probability asked for.
        probability: f64,
    },
    /// A target list without a target.
    #[error("no target given: expected a preset or at least one pattern")]
    NoTargets,
    /// Targets that name no module of the base.
    #[error("no module matches {} (searched {searched} modules)", listed(missed.iter().map(|m| &m.pattern)))]
    TargetsMissed {
        /// How many modules the base has.
        searched: usize,
        /// The patterns without a module.
        missed: Vec<MissedPattern>,
    },
    /// Two factors that do not belong together.
    #[error(
        "factors do not fit: expected down [rank, in] with up [out, rank], or down [rank, in, k, k] with up [out, rank, 1, 1]; found down {down:?}, up {up:?}"
    )]
    FactorShapes {
        /// Shape of `down`.
        down: Vec<usize>,
        /// Shape of `up`.
        up: Vec<usize>,
    },
    /// Magnitudes that are not one for each output.
    #[error("magnitudes do not fit: expected [{outputs}], one for each row of `up`, found {found:?}")]
    MagnitudeShape {
        /// Number of rows of `up`.
        outputs: usize,
        /// Shape of the magnitudes.
        found: Vec<usize>,
    },
    /// Named tensors that make up no kind of update.
    #[error("no kind of adapter has the tensors {}", listed(names))]
    UpdateTensors {
        /// The names.
        names: Vec<String>,
    },
    /// An operation on updates that is defined for LoRA alone.
    #[error("{doing} adapters is defined for LoRA; `{module}` is a {kind}")]
    NotLora {
        /// What was being done.
        doing: &'static str,
        /// The first module of another kind.
        module: String,
        /// Its kind.
        kind: UpdateKind,
    },
    /// A name that is not a kind of update.
    #[error("unknown kind of adapter `{name}`: expected `lora` or `dora`")]
    UnknownKind {
        /// What was asked for.
        name: String,
    },
    /// An update and a weight of different shapes.
    #[error("cannot merge an update of shape {update:?} into a weight of shape {weight:?}")]
    MergeShapes {
        /// Shape of the weight.
        weight: Vec<usize>,
        /// Shape of the update.
        update: Vec<usize>,
    },
    /// A merged weight that its dtype cannot hold.
    #[error("the merged weight is not finite in {dtype:?}")]
    MergeNotFinite {
        /// The weight's dtype.
        dtype: DType,
    },
    /// Parameters that are not those of the adapter.
    #[error("parameters are missing, have another shape, or belong to another adapter: {}", listed(names))]
    ParameterNames {
        /// Their names, `<module>.<tensor>`.
        names: Vec<String>,
    },
    /// Adapters that cannot be combined module by module.
    #[error("module `{module}` has factors of different shape in the adapters to combine")]
    CombinedShapes {
        /// The module.
        module: String,
    },
    /// A tensor operation failed.
    #[error("{what} failed")]
    Tensor {
        /// What was being done.
        what: String,
        /// What the tensor library says.
        #[source]
        source: candle_core::Error,
    },
    /// Linear algebra, noise or a tensor file failed.
    #[error("{what} failed")]
    Numerics {
        /// What was being done.
        what: String,
        /// The cause.
        #[source]
        source: catelier_numerics::Error,
    },
    /// A file could not be read or written.
    #[error("cannot access `{}`", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: std::io::Error,
    },
    /// A folder that holds no adapter file.
    #[error("`{}` holds no adapter: expected `adapter_model.safetensors` or `pytorch_lora_weights.safetensors`", folder.display())]
    EmptyFolder {
        /// The folder.
        folder: PathBuf,
    },
    /// A safetensors file without a LoRA key.
    #[error("`{}` holds no LoRA: {tensors} tensors, {}", path.display(), first_of("first", names))]
    NotAnAdapter {
        /// The file.
        path: PathBuf,
        /// Number of tensors in it.
        tensors: usize,
        /// Their names, at most a few.
        names: Vec<String>,
    },
    /// An adapter of another kind.
    #[error("`{}` is a {kind} file and cannot be applied: {} of its tensors, first `{}`", path.display(), keys.len(), keys.first().map_or("", String::as_str))]
    UnsupportedKind {
        /// The file.
        path: PathBuf,
        /// What it holds.
        kind: AdapterKind,
        /// The keys that show it.
        keys: Vec<String>,
    },
    /// Modules that lack a tensor of their update.
    #[error("`{}` has modules without all of their tensors: {}", path.display(), listed_plain(modules))]
    IncompleteModules {
        /// The file.
        path: PathBuf,
        /// The incomplete modules.
        modules: Vec<IncompleteModule>,
    },
    /// Two keys that mean the same module.
    #[error("`{}` names the same module twice: {}", path.display(), listed(modules))]
    DuplicateModules {
        /// The file.
        path: PathBuf,
        /// The modules.
        modules: Vec<String>,
    },
    /// None of the file's modules exists in the base.
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
    /// Some keys are unknown or name modules the base lacks.
    #[error("`{}` has keys without a place in the base model ({report}): {}", path.display(), listed(&report.unmatched))]
    UnmatchedKeys {
        /// The file.
        path: PathBuf,
        /// What matched and what did not.
        report: MatchReport,
    },
    /// Factors whose shapes are not those of the base's modules.
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
    /// Factors or alphas that are NaN or infinite.
    #[error("`{}` has values that are not finite in {} tensors: {}", path.display(), tensors.len(), listed(tensors))]
    NotFinite {
        /// The file.
        path: PathBuf,
        /// The tensors.
        tensors: Vec<String>,
    },
    /// A tensor of a dtype or shape that its role cannot have.
    #[error("`{}`: `{tensor}` should be {expected}, found {found}", path.display())]
    UnexpectedTensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// What its role asks for.
        expected: &'static str,
        /// What it is.
        found: String,
    },
    /// An adapter configuration that cannot be read.
    #[error("`{origin}` is not a usable adapter configuration: {reason}")]
    Configuration {
        /// The file, or the header entry.
        origin: String,
        /// What is wrong.
        reason: String,
    },
    /// An adapter that changes nothing has no file.
    #[error("the adapter has no modules, so there is nothing to write")]
    NothingToWrite,
    /// Module paths outside the known components cannot be written.
    #[error("module paths must start with `unet.`, `text_encoder.` or `text_encoder_2.`: {}", listed(paths))]
    UnknownComponents {
        /// The paths.
        paths: Vec<String>,
    },
    /// A PEFT file holds one model.
    #[error("a PEFT file holds the adapter of one model, found {}", listed(components))]
    SeveralComponents {
        /// The components of the adapter.
        components: Vec<String>,
    },
    /// A diffusers or PEFT file holds one kind of update.
    #[error("a {format} file holds one kind of adapter, found {}", listed(kinds))]
    SeveralKinds {
        /// The format asked for.
        format: Format,
        /// The kinds of the adapter's modules.
        kinds: Vec<String>,
    },
    /// A name that is not a format.
    #[error("unknown adapter format `{name}`: expected `kohya`, `diffusers` or `peft`")]
    UnknownFormat {
        /// What was asked for.
        name: String,
    },
}

/// A target pattern that names no module, with the nearest names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MissedPattern {
    /// The pattern as given.
    pub pattern: String,
    /// Up to three module names close to it.
    pub closest: Vec<String>,
}

/// One factor whose shape is not the one its module needs.
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
    /// Whether the file has a magnitude for each input, `[1, in]`, where there should be one for each output.
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

/// A module of a file that lacks a tensor of its update.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IncompleteModule {
    /// The keys that the file has for it.
    pub keys: Vec<String>,
    /// What is missing: `down`, `up` or `magnitude`.
    pub missing: &'static str,
}

impl std::fmt::Display for IncompleteModule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "no {} beside {}", self.missing, listed(&self.keys))
    }
}

impl Error {
    /// Wraps a tensor library error with what was being done.
    pub(crate) fn tensor(what: &str) -> impl FnOnce(candle_core::Error) -> Self {
        let what = what.to_owned();
        move |source| Self::Tensor { what, source }
    }

    /// Wraps a numerics error with what was being done.
    pub(crate) fn numerics(what: impl Into<String>) -> impl FnOnce(catelier_numerics::Error) -> Self {
        let what = what.into();
        move |source| Self::Numerics { what, source }
    }

    /// Wraps a system error with the file it is about.
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }

    /// What to do next, where something can be done.
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

/// The first few names in backticks, and how many more there are.
fn listed<S: AsRef<str>>(names: impl IntoIterator<Item = S>) -> String {
    listed_plain(names.into_iter().map(|name| format!("`{}`", name.as_ref())))
}

/// The first few items, and how many more there are.
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
