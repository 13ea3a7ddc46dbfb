//! What a workflow reports while it works.

use std::fmt;
use std::path::PathBuf;

use catelier_evaluation::Scores;
use catelier_pipelines::training::StepReport;

/// What happened just now.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Event {
    /// One more piece of a stage is done, or the stage begins.
    Progress(Progress),
    /// Something a person may want to know.
    Note(String),
    /// Something a person may want to act on.
    Warning(String),
    /// A base is loaded: memory that loading took is free again.
    BaseLoaded {
        /// The base's name.
        name: String,
    },
    /// One optimizer step of a training run.
    Step(StepReport),
    /// An adapter was scored.
    Scores {
        /// The adapter's name.
        adapter: String,
        /// Its scores.
        scores: Box<Scores>,
    },
    /// A file or a folder of files is complete.
    Written(Artefact),
}

/// How far a stage is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// The stage.
    pub stage: Stage,
    /// Pieces that are done: images, or optimizer steps.
    pub done: usize,
    /// Pieces of the whole stage.
    pub total: usize,
    /// The latest values in a few words; may be empty.
    pub note: String,
}

/// Work that has progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Stage {
    /// Images of the drawn world are drawn.
    Draw,
    /// Training images become latents.
    Encode,
    /// Optimizer steps.
    Train,
    /// The base generates images of the class, for DreamBooth.
    ClassImages,
    /// A preview in the middle of a training run.
    TrainingPreview,
    /// Images with adapters.
    Generate,
    /// Images of the base, to compare with.
    GenerateBase,
    /// Images with the adapter, without its trigger.
    GenerateWithoutTrigger,
    /// Images with the adapter and its trigger.
    GenerateWithTrigger,
    /// Losses of images.
    Measure,
    /// A style model looks at pictures.
    Look,
    /// Rounds of a federation.
    Rounds,
}

impl fmt::Display for Stage {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Draw => "drawing",
            Self::Encode => "encoding",
            Self::Train => "training",
            Self::ClassImages => "class images",
            Self::TrainingPreview => "preview",
            Self::Generate => "generating",
            Self::GenerateBase => "base",
            Self::GenerateWithoutTrigger => "no trigger",
            Self::GenerateWithTrigger => "with trigger",
            Self::Measure => "losses",
            Self::Look => "looking",
            Self::Rounds => "rounds",
        })
    }
}

/// Something that a workflow left on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Artefact {
    /// Its kind.
    pub kind: ArtefactKind,
    /// The file, or the folder where the kind is a folder of files.
    pub path: PathBuf,
}

/// Kinds of artefacts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ArtefactKind {
    /// An adapter: a safetensors file, or a PEFT folder.
    Adapter,
    /// One generated image.
    Image,
    /// A folder of images.
    Images,
    /// A sheet that compares images.
    Sheet,
    /// Scores as JSON.
    Scores,
    /// A page for a browser.
    Report,
    /// The state from which a run goes on.
    State,
    /// What leaves a client of a federation.
    Contribution,
    /// An index of artists.
    Index,
    /// The trained head of a style model.
    StyleModel,
}
