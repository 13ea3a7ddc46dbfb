#![doc = include_str!("../README.md")]
#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::disallowed_methods,
        reason = "a test may panic, and writes half files on purpose"
    )
)]

pub mod adapter;
pub mod aggregate;
pub mod audit;
pub mod base;
pub mod demo;
pub mod device;
pub mod drawn;
pub mod embedded;
pub mod error;
pub mod evaluate;
pub mod event;
pub mod generator;
pub mod images;
mod local_training;
pub mod memory;
pub mod output;
pub mod plan;
pub mod preview;
pub mod round;
pub mod run_folder;
pub mod scoring;
pub mod session;
pub mod settings;
pub mod simulate;
pub mod style;
pub mod train;
pub mod value;

pub use catelier_adapters as adapters;
pub use catelier_evaluation as evaluation;
pub use catelier_features as features;
pub use catelier_federation as federation;
pub use catelier_gallery as gallery;
pub use catelier_numerics as numerics;
pub use catelier_pipelines as pipelines;
pub use catelier_prompts as prompts;
pub use catelier_rounds as rounds;
pub use catelier_style as styles;

pub use adapter::AdapterSource;
pub use aggregate::{AggregateReport, AggregateRequest, aggregate};
pub use audit::{Audit, AuditRequest, audit};
pub use base::{Base, BaseRequest, BaseSource};
pub use demo::{Demo, DemoRequest, DemoScores, demo};
pub use device::{DeviceChoice, WeightType};
pub use error::{Context, Error, Result};
pub use evaluate::{EvaluateRequest, Evaluated, evaluate};
pub use event::{Artefact, ArtefactKind, Event, Progress, Stage};
pub use plan::plan;
pub use preview::{Preview, PreviewRequest, preview};
pub use session::{Cancel, Session};
pub use settings::{RoundSettings, SamplingSettings, SimulateSettings, StyleTrainSettings, TrainSettings};
pub use simulate::{SimulateRequest, Simulation, simulate};
pub use train::{TrainRequest, Trained, train};
