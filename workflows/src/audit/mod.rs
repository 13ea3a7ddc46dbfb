//! What leaks out of a federation's rounds: how much of another artist's training images an attacker finds in what it is
//! handed. The attacks are those of a simulated federation's own rounds, so that what they find can be counted.
//!
//! **The round-difference attack** draws with what the attacker makes of a late round plus a multiple of its difference to an
//! early one, and compares what was drawn with the training images. **Membership by loss** asks whether an adapter predicts
//! the noise on an image better than the base does.
//!
//! **Source** the difference of rounds: "Mining Your Memory" (ICLR 2026 submission, withdrawn), of which only reviews could be
//! read, so that this is a reconstruction; calibration of the loss by a reference model: Watson et al., arXiv 2111.08440; rates
//! at few false positives: Carlini et al., arXiv 2112.03570.

mod attack;
mod copying;
mod measure;
mod membership;
mod played;
mod separation;
mod sheet;
mod victim;

use std::path::{Path, PathBuf};

use candle_core::{DType, Device};
use catelier_federation::Strategy;
use catelier_gallery::Artist;
use catelier_pipelines::training::LossKind;
use serde::Serialize;

pub use attack::Knows;
pub use copying::Copying;
pub use measure::{Measure, Trial};
pub use played::{Attacker, Isolation};
pub use separation::Separation;

use crate::base::BaseSource;
use crate::error::{Context, Error, Result};
use crate::event::ArtefactKind;
use crate::generator::ImageGenerator;
use crate::output::{self, OutputFolder};
use crate::scoring::Towers;
use crate::session::Session;
use crate::settings::SamplingSettings;
use attack::HandedOut;
use copying::Nearness;
use measure::{COPY_NOISE, Eyes};
use played::Played;
use victim::{Attacked, Room};

const COMMAND: &str = "federate audit";
const REPORT: &str = "audit.json";

/// An audit as it is asked for.
#[derive(Debug, Clone, PartialEq)]
pub struct AuditRequest {
    /// A folder of `federate simulate` with the global adapter of every round (`--score-every 1`).
    pub simulation: PathBuf,
    /// An artist, or `server`; `None` takes the first artist.
    pub attacker: Option<String>,
    /// Beside every round and the last alone, hand out every round of this number, counted back from the last.
    pub every: usize,
    /// Multiples of the difference of two rounds that are added to the late one, each above 0.
    pub strengths: Vec<f64>,
    /// Images of each kind of prompt for each adapter that is drawn with.
    pub images: usize,
    /// Held-out images for each training image, 2 or more.
    pub held_out: usize,
    /// Noises, each with a timestep, over which a loss is averaged.
    pub draws: usize,
    /// Denoising steps of the images.
    pub sampling_steps: usize,
    /// What images are compared by.
    pub measure: Measure,
    /// Seed of the images, the noises and the intervals.
    pub seed: u64,
    /// Where `audit.json` and the sheets go; `None` writes nothing.
    pub out: Option<PathBuf>,
    /// Write beside files in `out` that no audit made; files in the way are refused all the same.
    pub force: bool,
}

impl AuditRequest {
    /// An audit of the simulation in this folder with the default settings, which writes nothing.
    pub fn new(simulation: impl Into<PathBuf>) -> Self {
        Self {
            simulation: simulation.into(),
            attacker: None,
            every: 2,
            strengths: vec![0.5, 1.0, 2.0],
            images: 8,
            held_out: 20,
            draws: 8,
            sampling_steps: 25,
            measure: Measure::default(),
            seed: 1,
            out: None,
            force: false,
        }
    }

    fn check(&self) -> Result<()> {
        let counts = [
            ("every", self.every, 1),
            ("images", self.images, 1),
            ("held-out", self.held_out, 2),
            ("draws", self.draws, 1),
        ];
        if let Some((name, found, least)) = counts.into_iter().find(|(_, found, least)| found < least) {
            let refused = format!("`{name}` is {found}, it must be at least {least}");
            return Err(Error::user(refused, "ask for more"));
        }
        match self.strengths.iter().find(|strength| !(strength.is_finite() && **strength > 0.0)) {
            None => Ok(()),
            Some(strength) => Err(Error::user(
                format!("the strength {strength} of a difference is not above 0"),
                "give numbers such as 0.5,1,2; the late round itself is always drawn with",
            )),
        }
    }
}

/// What an audit found, as `federate audit --json` prints it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Audit {
    /// Who attacked.
    pub attacker: Attacker,
    /// How well it could take its own part out of a global adapter.
    pub isolation: Isolation,
    /// The rule of the rounds.
    pub strategy: Strategy,
    /// Number of rounds.
    pub rounds: usize,
    /// The artists' objective.
    pub loss: LossKind,
    /// The clipping norm, where there was one.
    pub clip: Option<f64>,
    /// The noise in units of `clip`.
    pub noise: f64,
    /// What images were compared by.
    pub measure: Measure,
    /// Whether each measure knows copies when it sees them.
    pub trials: Vec<Trial>,
    /// What was found of the training images in what was drawn.
    pub copying: Vec<CopyingRow>,
    /// The same for each difference of rounds and strength by itself, where captions are known.
    pub by_strength: Vec<StrengthRow>,
    /// What losses tell.
    pub membership: Vec<MembershipRow>,
}

/// What was found of the training images in what was drawn.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CopyingRow {
    /// The artist whose images were looked for; `null` for all artists that were attacked together.
    pub victim: Option<String>,
    /// The rounds whose global adapters were handed out; `null` for none: the base draws.
    pub handed_out: Option<String>,
    /// What the attacker knew.
    pub knows: Knows,
    /// Number of drawn images for each artist.
    pub images: usize,
    /// What was found.
    #[serde(flatten)]
    pub copying: Copying,
}

/// What was found with one difference of rounds at one strength, of all artists that were attacked.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StrengthRow {
    /// The early round; `null` for the base.
    pub early: Option<usize>,
    /// The multiple of the difference; 0 is the late round itself.
    pub strength: f64,
    /// What was found.
    #[serde(flatten)]
    pub copying: Copying,
}

/// Whether losses tell training images from held-out ones with the same captions.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MembershipRow {
    /// The artist whose images were looked for; `null` for all artists that were attacked together, each artist's numbers around
    /// the mean of its held-out images.
    pub victim: Option<String>,
    /// The rounds whose global adapters were handed out; a number is the mean over these.
    pub handed_out: String,
    /// Whether the captions had the trigger.
    pub with_trigger: bool,
    /// How well the loss of the base minus the adapter's tells training images.
    pub told: Separation,
}

/// Attacks a simulated federation as `request` says; the same seed gives the same bytes.
///
/// # Errors
/// [`Error::User`] for a request or a folder that cannot be audited, [`Error::Failed`] when the base or the disk fails,
/// [`Error::Cancelled`] between sampler steps.
pub fn audit(request: &AuditRequest, session: &Session<'_>) -> Result<Audit> {
    request.check()?;
    let played = Played::open(&request.simulation, session)?;
    let attacker = played.attacker(request.attacker.as_deref())?;
    let out = request.claim(session)?;
    let base = BaseSource::Embedded.load(DType::F32, &Device::Cpu, session)?;
    let sampling = SamplingSettings { steps: Some(request.sampling_steps), ..SamplingSettings::default() };
    let handed_out = HandedOut::all(played.rounds(), request.every);
    let towers = Towers::embedded()?;
    let mut room = Room {
        request,
        played: &played,
        attacker: &attacker,
        handed_out: &handed_out,
        eyes: Eyes { base: &base.model, towers: &towers },
        generator: ImageGenerator::new(&base, &sampling.resolve(&base.defaults())),
        session,
    };
    let victims = played.victims(&attacker, request.held_out)?;
    let attacked = victims.into_iter().map(|victim| room.attack(victim)).collect::<Result<Vec<_>>>()?;
    let audit = room.report(&attacked)?;
    if let Some(out) = out {
        out.clear(Path::new(""), &is_made)?;
        sheet::write(&out, &handed_out[0], &attacked, session)?;
        let text = serde_json::to_string_pretty(&audit).failed("cannot write the report")?;
        output::write_text(&out.path().join(REPORT), &text)?;
        session.written(ArtefactKind::Scores, out.path().join(REPORT));
        out.finish()?;
    }
    Ok(audit)
}

impl AuditRequest {
    /// The folder for the report and the sheets, where one is asked for.
    fn claim(&self, session: &Session<'_>) -> Result<Option<OutputFolder>> {
        let Some(out) = &self.out else { return Ok(None) };
        let folder = OutputFolder::claim(out, COMMAND, self.force, session)?;
        // Before the work, which would be lost.
        folder.to_clear(Path::new(""), &is_made)?;
        Ok(Some(folder))
    }
}

/// Whether an audit gives a file this name: `audit.json`, and `goldleaf.png` of an artist.
fn is_made(file: &Path) -> bool {
    file == Path::new(REPORT) || Artist::all().iter().any(|artist| file == Path::new(&sheet::name(artist.name)))
}

impl Room<'_, '_> {
    fn report(&self, attacked: &[Attacked]) -> Result<Audit> {
        let settings = &self.played.settings;
        Ok(Audit {
            attacker: self.attacker.clone(),
            isolation: self.played.isolation(self.attacker),
            strategy: settings.strategy.0.clone(),
            rounds: self.played.rounds(),
            loss: settings.loss,
            clip: settings.clip,
            noise: settings.noise,
            measure: self.request.measure,
            trials: self.trials(attacked)?,
            copying: self.copying(attacked)?,
            by_strength: self.by_strength(attacked)?,
            membership: self.membership(attacked)?,
        })
    }

    fn trials(&self, attacked: &[Attacked]) -> Result<Vec<Trial>> {
        let mut trials = Vec::new();
        for (place, measure) in Measure::ALL.into_iter().enumerate() {
            for (index, noise) in COPY_NOISE.into_iter().enumerate() {
                let all: Vec<&Nearness> = attacked.iter().map(|one| &one.copies[place][index]).collect();
                trials.push(Trial { measure, noise, copying: Copying::of(&all, self.request.seed)? });
            }
        }
        Ok(trials)
    }

    /// All artists together, then each by itself.
    fn copying(&self, attacked: &[Attacked]) -> Result<Vec<CopyingRow>> {
        let mut rows = Vec::new();
        let base = (None, Knows::Captions);
        let rounds = self.handed_out.iter().flat_map(|rounds| Knows::ALL.map(|knows| (Some(rounds), knows)));
        for (rounds, knows) in std::iter::once(base).chain(rounds) {
            for (victim, some) in groups(attacked) {
                let found: Vec<(Nearness, usize)> = some.iter().filter_map(|one| one.nearness(rounds, knows)).collect();
                let Some((_, images)) = found.first() else { continue };
                let nearness: Vec<&Nearness> = found.iter().map(|(nearness, _)| nearness).collect();
                let copying = Copying::of(&nearness, self.request.seed)?;
                let handed_out = rounds.map(|rounds| rounds.name.clone());
                rows.push(CopyingRow { victim, handed_out, knows, images: *images, copying });
            }
        }
        Ok(rows)
    }

    fn by_strength(&self, attacked: &[Attacked]) -> Result<Vec<StrengthRow>> {
        let Some(first) = attacked.iter().find(|one| !one.drawn.is_empty()) else { return Ok(Vec::new()) };
        let mut ways: Vec<_> = first.drawn.iter().map(|drawn| (drawn.early, drawn.strength)).collect();
        ways.dedup();
        let mut rows = Vec::new();
        for (early, strength) in ways {
            let found: Vec<Nearness> = attacked.iter().filter_map(|one| one.at(early, strength)).collect();
            let copying = Copying::of(&found.iter().collect::<Vec<_>>(), self.request.seed)?;
            rows.push(StrengthRow { early, strength, copying });
        }
        Ok(rows)
    }

    /// All artists together, then each by itself.
    fn membership(&self, attacked: &[Attacked]) -> Result<Vec<MembershipRow>> {
        let mut rows = Vec::new();
        let asked = self.handed_out.iter().flat_map(|rounds| [false, true].map(|with_trigger| (rounds, with_trigger)));
        for (rounds, with_trigger) in asked {
            for (victim, some) in groups(attacked) {
                let (mut members, mut held_out) = (Vec::new(), Vec::new());
                for (of_members, of_held_out) in some.iter().filter_map(|one| one.gains(rounds, with_trigger)) {
                    members.extend(of_members);
                    held_out.extend(of_held_out);
                }
                if !members.is_empty() {
                    let told = Separation::of(&members, &held_out, self.request.seed)?;
                    rows.push(MembershipRow { victim, handed_out: rounds.name.clone(), with_trigger, told });
                }
            }
        }
        Ok(rows)
    }
}

/// All artists together, and each by itself where there are several.
fn groups(attacked: &[Attacked]) -> impl Iterator<Item = (Option<String>, &[Attacked])> {
    let single = attacked.iter().map(|one| (Some(one.victim.artist.clone()), std::slice::from_ref(one)));
    std::iter::once((None, attacked)).chain(single.filter(|_| attacked.len() > 1))
}
