//! A simulation that was played: what its folder holds, and what of it an attacker knows.

use std::fmt;
use std::path::{Path, PathBuf};

use catelier_adapters::file::{self, Format};
use catelier_adapters::{Adapter, ModuleInfo, sum};
use catelier_federation::{RoundReport, Start, State, Strategy};
use image::RgbImage;
use serde::{Serialize, Serializer};

use crate::base::BaseSource;
use crate::error::{Context, Error, Result};
use crate::output::Marker;
use crate::session::Session;
use crate::settings::{self, ResolvedSimulate, SimulateSettings};
use crate::{drawn, images, run_folder, simulate};

/// Held-out images have these scene seeds and the following ones.
const HELD_OUT_SEED: u64 = 1_000_000;

const ATTEMPT: &str = "cannot repeat what an artist sent";

/// Who attacks: an artist that takes part, or the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Attacker {
    /// Knows the global adapters that it was handed, and its own contributions.
    Artist(String),
    /// Sees every contribution by itself.
    Server,
}

/// `server` in text.
const SERVER: &str = "server";

impl fmt::Display for Attacker {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Artist(name) => name,
            Self::Server => SERVER,
        })
    }
}

impl Serialize for Attacker {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// How well an attacker can take its own part out of a global adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Isolation {
    /// It sees the victim's contribution itself.
    Contribution,
    /// The global adapter is the mean of the updates, up to the rank to which the rule cuts it and the server's noise: without
    /// its own part there is left the mean of the others', and with one other the other's own.
    Mean,
    /// The rule takes a mean of factors, or something near to a mean: what is left is an estimate.
    Estimate,
    /// The rule keeps, merges or moves parts: the global adapter is attacked as it is.
    Nothing,
}

/// A folder of `federate simulate`.
pub(super) struct Played {
    folder: PathBuf,
    pub(super) settings: ResolvedSimulate,
    history: Vec<RoundReport>,
    modules: Vec<ModuleInfo>,
}

/// An artist whose training images are looked for.
pub(super) struct Victim {
    pub(super) artist: String,
    pub(super) trigger: String,
    /// The training images.
    pub(super) images: Vec<RgbImage>,
    /// Their captions, without the trigger.
    pub(super) captions: Vec<String>,
    /// For each training image, images by the same artist with the same caption, drawn from other seeds.
    pub(super) held_out: Vec<Vec<RgbImage>>,
}

impl Victim {
    pub(super) fn members(&self) -> Vec<&RgbImage> {
        self.images.iter().collect()
    }
}

impl Played {
    /// Opens a simulation that came to its end, with the global adapter of every round, of two artists or more.
    ///
    /// # Errors
    /// [`Error::User`] for another folder, and for a simulation that cannot be audited.
    pub(super) fn open(folder: &Path, session: &Session<'_>) -> Result<Self> {
        match Marker::read(folder)? {
            Some(marker) if marker.command == simulate::COMMAND && marker.finished => {}
            Some(marker) if marker.command == simulate::COMMAND => {
                return Err(Error::user(
                    format!("the simulation in `{}` is not finished", folder.display()),
                    "go on with it by `federate simulate --resume`",
                ));
            }
            _ => {
                return Err(Error::user(
                    format!("`{}` holds no simulation", folder.display()),
                    "name a folder that `federate simulate` wrote",
                ));
            }
        }
        let settings: SimulateSettings = settings::read_saved(&folder.join(simulate::SETTINGS))?;
        let state = simulate::read_state(folder).user_error("cannot read the simulation's state")?;
        let played = Self {
            folder: folder.to_path_buf(),
            settings: settings.resolve(),
            history: state.history().to_vec(),
            modules: BaseSource::Embedded.open(session)?.modules(),
        };
        played.check()?;
        Ok(played)
    }

    fn check(&self) -> Result<()> {
        if let [only] = &self.settings.artists[..] {
            return Err(Error::user(
                format!("`{only}` is the only artist of the simulation: there is nobody else to attack"),
                "play a simulation with two artists or more",
            ));
        }
        match (1..self.rounds()).find(|round| !self.global_file(*round).exists()) {
            None => Ok(()),
            Some(round) => Err(Error::user(
                format!("`{}` has no global adapter of round {round}", self.folder.display()),
                "play the simulation with `--score-every 1`, which keeps that of every round",
            )),
        }
    }

    pub(super) fn rounds(&self) -> usize {
        self.history.len()
    }

    /// The artist or the server of this name.
    ///
    /// # Errors
    /// [`Error::User`] for a name that takes no part.
    pub(super) fn attacker(&self, name: Option<&str>) -> Result<Attacker> {
        let artists = &self.settings.artists;
        match name {
            None => Ok(Attacker::Artist(artists[0].clone())),
            Some(SERVER) => Ok(Attacker::Server),
            Some(name) if artists.iter().any(|artist| artist == name) => Ok(Attacker::Artist(name.to_owned())),
            Some(name) => Err(Error::user(
                format!("`{name}` takes no part in the simulation"),
                format!("the attacker is `{SERVER}` or one of {}", artists.join(", ")),
            )),
        }
    }

    /// The artists that are attacked: all others.
    pub(super) fn victims(&self, attacker: &Attacker, held_out: usize) -> Result<Vec<Victim>> {
        let is_attacked = |artist: &&String| !matches!(attacker, Attacker::Artist(own) if own == *artist);
        self.settings.artists.iter().filter(is_attacked).map(|artist| self.victim(artist, held_out)).collect()
    }

    fn victim(&self, name: &str, held_out: usize) -> Result<Victim> {
        let artist = drawn::artist(name)?;
        let folder = self.folder.join(name).join(drawn::IMAGES);
        let (mut images, mut captions) = (Vec::new(), Vec::new());
        for reference in images::read_references(Some(&folder))? {
            let caption = reference.caption.ok_or_else(|| {
                Error::user(format!("an image in `{}` has no caption", folder.display()), "play the simulation again")
            })?;
            images.push(reference.image);
            captions.push(caption);
        }
        let again = |caption: &String| drawn::again(artist, caption, HELD_OUT_SEED, held_out);
        let held_out = captions.iter().map(again).collect::<Result<_>>()?;
        Ok(Victim { artist: name.to_owned(), trigger: simulate::trigger_of(artist), images, captions, held_out })
    }

    /// How well the attacker takes its own part out.
    pub(super) fn isolation(&self, attacker: &Attacker) -> Isolation {
        let ResolvedSimulate { strategy, poisoned, head, .. } = &self.settings;
        match (attacker, &strategy.0) {
            (Attacker::Server, _) => Isolation::Contribution,
            _ if head.is_some() || *poisoned > 0 => Isolation::Nothing,
            (_, Strategy::Product { .. } | Strategy::Ffa | Strategy::Rolora) => Isolation::Mean,
            (
                _,
                Strategy::Fedavg
                | Strategy::Fair { .. }
                | Strategy::Fedrot { .. }
                | Strategy::Hetlora
                | Strategy::Raflora
                | Strategy::TrimmedMean { .. }
                | Strategy::NormBound { .. },
            ) => Isolation::Estimate,
            _ => Isolation::Nothing,
        }
    }

    /// What the attacker makes of a round to attack the victim: the victim's contribution, the others' part of the global
    /// adapter, or the whole of it. `None` where the victim took no part in what only the server sees.
    pub(super) fn exposed(&self, attacker: &Attacker, victim: &str, round: usize) -> Result<Option<Adapter>> {
        match (attacker, self.isolation(attacker)) {
            (Attacker::Server, _) => self.share(victim, round).map(|_| self.sent(victim, round)).transpose(),
            (Attacker::Artist(own), Isolation::Mean | Isolation::Estimate) => {
                let global = self.global(round)?;
                let Some(share) = self.share(own, round).filter(|share| *share < 1.0) else { return Ok(Some(global)) };
                let sent = self.sent(own, round)?;
                let rest = 1.0 / (1.0 - share);
                sum(&[(&global, rest), (&sent, -share * rest)]).failed("cannot take the own part out").map(Some)
            }
            (Attacker::Artist(_), _) => self.global(round).map(Some),
        }
    }

    /// The artist's share of the mean of a round; `None` where it contributed nothing.
    fn share(&self, artist: &str, round: usize) -> Option<f64> {
        let clients = &self.history[round - 1].clients;
        let own = clients.iter().find(|client| client.client == artist)?;
        Some(own.weight / clients.iter().map(|client| client.weight).sum::<f64>())
    }

    /// What the artist sent in a round: clipped and noisy where the plan says so. Of rules that keep parts at home this is the
    /// whole adapter, which is more than what leaves.
    fn sent(&self, artist: &str, round: usize) -> Result<Adapter> {
        let folder = self.folder.join(artist).join(format!("round-{round}"));
        let [phased, plain] = [folder.join("phase-2"), folder].map(|run| run_folder::adapter_in(&run, Format::Kohya));
        let adapter = self.read(if phased.exists() { &phased } else { &plain })?;
        let plan = self.settings.plan();
        let Some(privacy) = &plan.privacy else { return Ok(adapter) };
        // Before the first round `up` is zero, and so it is in a fresh adapter.
        let asked = plan.configure(round, &State::starting_from(adapter.clone())).failed(ATTEMPT)?;
        let goes_on = round > 1 && asked.start == Start::Global;
        let before = goes_on.then(|| self.global(round - 1)).transpose()?;
        privacy.protect(&adapter, before.as_ref(), &asked.roles, round, artist).failed(ATTEMPT)
    }

    /// The global adapter after a round.
    pub(super) fn global(&self, round: usize) -> Result<Adapter> {
        self.read(&self.global_file(round))
    }

    fn global_file(&self, round: usize) -> PathBuf {
        match round == self.rounds() {
            true => self.folder.join(simulate::GLOBAL),
            false => simulate::global_of(&self.folder, round),
        }
    }

    fn read(&self, path: &Path) -> Result<Adapter> {
        let read = file::read(path, &self.modules).user_error("cannot read an adapter of the simulation")?;
        match read.integrity.remark() {
            Some(remark) => Err(Error::user(
                format!("`{}` is not as it was saved: {remark}", path.display()),
                "restore it, or play the simulation again in another folder",
            )),
            None => Ok(read.adapter),
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Tensor};
    use catelier_adapters::file::Metadata;
    use catelier_adapters::{LoraFactors, ModuleKind};
    use catelier_federation::{ClientReport, Contribution};

    use super::*;

    const ARTISTS: [&str; 3] = ["goldleaf", "poster", "wash"];

    /// The first module of the base, with an update that differs by the artist and the round.
    fn update(module: &ModuleInfo, artist: usize, round: usize) -> Adapter {
        let values = |shape: Vec<usize>, phase: f32| {
            let count = shape.iter().product::<usize>();
            let wave = (0..count).map(|place| (place as f32 * 0.7 + phase).sin()).collect::<Vec<_>>();
            Tensor::from_vec(wave, shape, &candle_core::Device::Cpu).unwrap()
        };
        let phase = 3.0 * artist as f32 + round as f32;
        let factors = LoraFactors::new(
            values(module.kind.down_shape(2), phase),
            values(module.kind.up_shape(2), 2.0 * phase + 1.0),
            2.0,
        );
        Adapter::from_iter([(module.path.clone(), factors.unwrap())])
    }

    /// A simulation of two rounds under `product:exact`, as far as an attacker looks into it.
    fn played(folder: &Path, artists: usize, clip: Option<f64>) -> Played {
        let session = Session::new(|_| {});
        let modules = BaseSource::Embedded.open(&session).unwrap().modules();
        let module = modules.iter().find(|module| matches!(module.kind, ModuleKind::Linear { .. })).unwrap().clone();
        let names = &ARTISTS[..artists];
        let settings = SimulateSettings {
            artists: Some(names.iter().map(|name| (*name).to_owned()).collect()),
            strategy: Some(crate::value::Text("product:exact".parse().unwrap())),
            clip,
            ..SimulateSettings::default()
        };
        let mut played =
            Played { folder: folder.to_path_buf(), settings: settings.resolve(), history: Vec::new(), modules };
        let write = |path: PathBuf, adapter: &Adapter| {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            file::write(&path, adapter, Format::Kohya, &Metadata::default()).unwrap();
        };
        let reports = |round| RoundReport {
            round,
            clients: names
                .iter()
                .map(|name| ClientReport { client: (*name).into(), weight: 10.0, norm: 1.0 })
                .collect(),
            failed: Vec::new(),
            distance: 0.0,
            relative_distance: 0.0,
            norm: 1.0,
            change: 1.0,
            spread: 0.0,
            bytes_sent: 0,
        };
        for round in 1..=2 {
            for (place, name) in names.iter().enumerate() {
                let file = folder.join(name).join(format!("round-{round}/adapter.safetensors"));
                write(file, &update(&module, place, round));
            }
            played.history = (1..=round).map(reports).collect();
            let sent = |name: &&str| Contribution::from_examples(*name, played.sent(name, round).unwrap(), 10);
            let sent: Vec<Contribution> = names.iter().map(sent).collect();
            let global = played.settings.strategy.0.aggregate(&sent).unwrap().adapter;
            write(folder.join(simulate::GLOBAL), &global);
            write(simulate::global_of(folder, round), &global);
        }
        played
    }

    fn delta(adapter: &Adapter) -> Vec<f32> {
        let (_, update) = adapter.iter().next().unwrap();
        let delta = update.low_rank().delta().unwrap().to_dtype(DType::F32).unwrap();
        delta.flatten_all().unwrap().to_vec1().unwrap()
    }

    fn distance(left: &[f32], right: &[f32]) -> f32 {
        left.iter().zip(right).map(|(left, right)| (left - right).abs()).fold(0.0, f32::max)
    }

    #[test]
    fn of_two_artists_under_an_exact_mean_each_sees_what_the_other_sent() {
        for clip in [None, Some(3.0)] {
            let folder = tempfile::tempdir().unwrap();
            let played = played(folder.path(), 2, clip);
            let attacker = played.attacker(Some("goldleaf")).unwrap();
            assert_eq!(played.isolation(&attacker), Isolation::Mean);
            for round in [1, 2] {
                let exposed = played.exposed(&attacker, "poster", round).unwrap().unwrap();
                let seen = played.exposed(&Attacker::Server, "poster", round).unwrap().unwrap();
                let own = played.sent("goldleaf", round).unwrap();
                assert!(distance(&delta(&exposed), &delta(&seen)) < 1e-4, "{clip:?} in round {round}");
                assert!(distance(&delta(&exposed), &delta(&own)) > 1e-2);
            }
        }
    }

    #[test]
    fn of_three_artists_each_sees_the_mean_of_the_others() {
        let folder = tempfile::tempdir().unwrap();
        let played = played(folder.path(), 3, None);
        let attacker = played.attacker(None).unwrap();
        let exposed = delta(&played.exposed(&attacker, "wash", 2).unwrap().unwrap());
        let [poster, wash] = ["poster", "wash"].map(|name| delta(&played.sent(name, 2).unwrap()));
        let mean: Vec<f32> = poster.iter().zip(&wash).map(|(poster, wash)| (poster + wash) / 2.0).collect();
        assert!(distance(&exposed, &mean) < 1e-4);
    }

    #[test]
    fn what_an_artist_can_take_out_depends_on_the_rule() {
        let folder = tempfile::tempdir().unwrap();
        let mut played = played(folder.path(), 2, None);
        let attacker = played.attacker(None).unwrap();
        for (rule, isolation) in [
            ("product", Isolation::Mean),
            ("fedavg", Isolation::Estimate),
            ("median", Isolation::Nothing),
            ("flora", Isolation::Nothing),
            ("ffa", Isolation::Mean),
        ] {
            played.settings.strategy = crate::value::Text(rule.parse().unwrap());
            assert_eq!(played.isolation(&attacker), isolation, "{rule}");
            assert_eq!(played.isolation(&Attacker::Server), Isolation::Contribution, "{rule}");
        }
    }

    #[test]
    fn an_attacker_takes_part_and_is_not_alone() {
        let folder = tempfile::tempdir().unwrap();
        let played = played(folder.path(), 2, None);
        assert_eq!(serde_json::to_value(Attacker::Server).unwrap(), "server");
        assert_eq!(serde_json::to_value(played.attacker(None).unwrap()).unwrap(), "goldleaf");
        let error = played.attacker(Some("neon")).unwrap_err();
        assert_eq!(error.to_string(), "`neon` takes no part in the simulation");
        assert_eq!(error.hint().unwrap(), "the attacker is `server` or one of goldleaf, poster");
        let alone = Played {
            settings: SimulateSettings { artists: Some(vec!["wash".into()]), ..Default::default() }.resolve(),
            ..played
        };
        assert!(alone.check().unwrap_err().to_string().contains("`wash` is the only artist"));
    }
}
