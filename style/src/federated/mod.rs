//! FedStyle, reconstructed: artists train one style model without uploading their works; and the methods that it is compared with.
//!
//! Every method runs in one harness: the same tower, works, start, optimizer, number of epochs and measures.

mod bank;
mod local;
mod measures;
mod method;
mod rounds;
mod rows;

use std::ops::ControlFlow;

use catelier_features::Feature;
use catelier_federation::{NamedTensors, Strategy};
use serde::{Deserialize, Serialize};

pub use bank::Bank;
pub use measures::Measures;
pub use method::{FedStyleParts, Method};

use crate::error::{Error, Result};
use crate::model::{Standardisation, StyleHead};
use rounds::Rounds;
use rows::Prepared;

/// A client of the federation: an artist with works in one style, as the tower sees them.
#[derive(Debug, Clone, PartialEq)]
pub struct Participant {
    /// The artist's name.
    pub name: String,
    /// Works to learn from. Each has one or more views: the first is the work as it is, the others are cut or mirrored.
    pub learn: Vec<Vec<Feature>>,
    /// Works that are searched for and never learned from.
    pub held_out: Vec<Feature>,
}

/// The settings of a federation, the same for all methods.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// Rounds.
    pub rounds: usize,
    /// Epochs of every client in a round.
    pub local_epochs: usize,
    /// Works in a batch; each comes with two views.
    pub batch: usize,
    /// AdamW's learning rate, without weight decay.
    pub learning_rate: f64,
    /// Width of the directions; `None` for that of the tower's features.
    pub width: Option<usize>,
    /// Temperature of all products.
    pub temperature: f64,
    /// FedStyle: weight of the alignment with the server's prototypes.
    pub alignment: f64,
    /// FedStyle: weight of the contrast.
    pub contrast: f64,
    /// FedStyle: share of a prototype that stays in a round.
    pub momentum: f64,
    /// FedStyle: steps of calibration on the public set in a round.
    pub calibration_steps: usize,
    /// FedProx: weight of the proximal term; also holds FedStyle's calibration near the aggregated model.
    pub proximal: f64,
    /// MOON: weight of the contrast of models.
    pub model_contrast: f64,
    /// FedProto: weight of the distance from the prototypes.
    pub prototype_distance: f64,
    /// Epochs of fine-tuning at home, where the method has it.
    pub tuning_epochs: usize,
    /// The rule by which FedStyle and the methods with a common model aggregate, but for EWWA.
    pub strategy: Strategy,
    /// Measure after every so many rounds, for the curves; 0 for none.
    pub measure_every: usize,
    /// Seed of all that is drawn.
    pub seed: u64,
}

impl Default for Settings {
    /// Those of the published figures: see `docs/experiments/style.md`.
    fn default() -> Self {
        Self {
            rounds: 20,
            local_epochs: 5,
            batch: 16,
            learning_rate: 5e-4,
            width: None,
            temperature: 0.1,
            alignment: 1.0,
            contrast: 1.0,
            momentum: 0.9,
            calibration_steps: 5,
            proximal: 0.01,
            model_contrast: 1.0,
            prototype_distance: 1.0,
            tuning_epochs: 5,
            strategy: Strategy::Fedavg,
            measure_every: 5,
            seed: 1,
        }
    }
}

impl Settings {
    /// Refuses settings that nothing can be trained with.
    ///
    /// # Errors
    /// [`Error::Setting`], [`Error::Federation`].
    pub fn validate(&self) -> Result<()> {
        let counts = [("rounds", self.rounds), ("local_epochs", self.local_epochs), ("batch", self.batch)];
        if let Some((what, found)) = counts.into_iter().find(|(_, count)| *count == 0) {
            return Err(Error::Setting { what, expected: "1 or more", found: found as f64 });
        }
        let positive = [("learning_rate", self.learning_rate), ("temperature", self.temperature)];
        if let Some((what, found)) = positive.into_iter().find(|(_, value)| !(value.is_finite() && *value > 0.0)) {
            return Err(Error::Setting { what, expected: "a finite number above 0", found });
        }
        let weights = [
            ("alignment", self.alignment),
            ("contrast", self.contrast),
            ("proximal", self.proximal),
            ("model_contrast", self.model_contrast),
            ("prototype_distance", self.prototype_distance),
        ];
        if let Some((what, found)) = weights.into_iter().find(|(_, value)| !(value.is_finite() && *value >= 0.0)) {
            return Err(Error::Setting { what, expected: "a finite number of 0 or more", found });
        }
        if !(0.0..1.0).contains(&self.momentum) {
            return Err(Error::Setting { what: "momentum", expected: "0 or more and below 1", found: self.momentum });
        }
        self.strategy.validate().map_err(|source| Error::Federation { round: 1, source })
    }
}

/// What a method achieved.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// The method.
    pub method: Method,
    /// On the held-out works, at the end.
    pub measures: Measures,
    /// The same before fine-tuning at home, where the method has it.
    pub before_tuning: Option<Measures>,
    /// Accuracy after some rounds.
    pub curve: Vec<CurvePoint>,
    /// Numbers that a client sends in a round: its model, and its prototype.
    pub sent: usize,
    /// Prototypes that the server refused: round, artist and reason.
    pub refused: Vec<String>,
}

/// A point of a curve.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct CurvePoint {
    /// The round, from 1.
    pub round: usize,
    /// Accuracy on the held-out works.
    pub accuracy: f64,
}

/// The outcome of a method, and its model where there is one for all.
#[derive(Debug, Clone)]
pub struct Trained {
    /// What it achieved.
    pub outcome: Outcome,
    /// The head of the common model; `None` for the tower alone and for methods whose clients end with models of their own.
    pub head: Option<StyleHead>,
}

/// Runs a method. `public` are artists whose works everybody may see; only FedStyle learns from them, and the features are
/// standardised by them, or by the participants' where there are none.
///
/// `observe` is called after every round with its number, and stops the work by [`ControlFlow::Break`].
///
/// # Errors
/// [`Error::FewArtists`], [`Error::FewWorks`] for a participant without two works to learn from or one that is held out,
/// [`Error::SameName`], [`Error::Setting`], [`Error::Width`], [`Error::Federation`], [`Error::Cancelled`].
pub fn run(
    method: Method,
    participants: &[Participant],
    public: &[Participant],
    settings: &Settings,
    observe: &mut dyn FnMut(usize) -> ControlFlow<()>,
) -> Result<Trained> {
    settings.validate()?;
    check(participants)?;
    let prepared = Prepared::of(participants, public)?;
    if method == Method::Tower {
        let measures = measures::measure(&prepared.raw()?, &prepared)?;
        let outcome =
            Outcome { method, measures, before_tuning: None, curve: Vec::new(), sent: 0, refused: Vec::new() };
        return Ok(Trained { outcome, head: None });
    }
    Rounds::new(method, &prepared, settings)?.run(observe)
}

/// Refuses participants that cannot be trained with or measured.
fn check(participants: &[Participant]) -> Result<()> {
    if participants.len() < 2 {
        return Err(Error::FewArtists { found: participants.len() });
    }
    for (index, participant) in participants.iter().enumerate() {
        let artist = participant.name.clone();
        if participants[..index].iter().any(|other| other.name == artist) {
            return Err(Error::SameName { name: artist });
        }
        let (learn, held_out) = (participant.learn.len(), participant.held_out.len());
        if learn < 2 {
            return Err(Error::FewWorks { artist, found: learn, needed: 2, purpose: "to learn from" });
        }
        if held_out == 0 {
            return Err(Error::FewWorks { artist, found: 0, needed: 1, purpose: "to be held out" });
        }
    }
    Ok(())
}

/// Name of the projection in models.
const PROJECTION: &str = "projection";

/// Name of the classifier `[artists, width]` in models that have one.
const CLASSIFIER: &str = "classifier";

/// The head of a model.
fn head(standardisation: &Standardisation, model: &NamedTensors) -> Result<StyleHead> {
    StyleHead::new(standardisation.clone(), model[PROJECTION].clone())
}
