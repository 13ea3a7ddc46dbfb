//! `catelier federate`: combine adapters, or play a federation of drawn artists.

use std::path::Path;

use candle_core::{DType, Device};
use catelier_adapters::file::{self, Format, Metadata};
use catelier_adapters::{Adapter, AdapterSet};
use catelier_features::Clip;
use catelier_federation::{Client, Contribution, RoundObserver, RoundPlan, RoundReport, State, Strategy, TargetRank};
use catelier_gallery::Artist;
use catelier_pipelines::base::BaseModel;
use catelier_prompts::{PromptSet, Trigger};
use image::RgbImage;
use serde::Serialize;

use super::train::{self, Start};
use super::{gallery, output_folder, write_text};
use crate::adapter_source::AdapterSource;
use crate::base_source::{self, BaseSource};
use crate::cli::{FederateCommand, SamplingArgs, SimulateArgs};
use crate::easel::Easel;
use crate::failure::{Blame, Failure, Outcome};
use crate::run_folder::RunFolder;
use crate::scoring::{self, BaseAnswers, Questions};
use crate::settings::TrainSettings;
use crate::{embedded, references, terminal};

pub(super) fn run(command: &FederateCommand) -> Outcome<()> {
    match command {
        FederateCommand::Aggregate { adapter, strategy, rank, base, out, json } => {
            let strategy = parse_strategy(strategy, *rank)?;
            aggregate(adapter, &strategy, base, out, *json)
        }
        FederateCommand::Simulate(args) => simulate(args),
    }
}

fn parse_strategy(name: &str, rank: Option<usize>) -> Outcome<Strategy> {
    let strategy: Strategy = name.parse().request("cannot use the strategy")?;
    match (strategy, rank) {
        (Strategy::Product { alpha, .. }, Some(rank)) => Ok(Strategy::Product { rank: TargetRank::Fixed(rank), alpha }),
        (Strategy::Fedavg, Some(_)) => Err(Failure::request(
            "`fedavg` keeps the rank of its adapters",
            "leave `--rank` out, or use `--strategy product`",
        )),
        (strategy, None) => Ok(strategy),
    }
}

/// What `federate aggregate --json` prints.
#[derive(Serialize)]
struct AggregateReport<'a> {
    strategy: &'a Strategy,
    adapters: usize,
    modules: usize,
    /// Distance from the exact mean of the updates, as a part of its norm.
    relative_distance: f64,
}

fn aggregate(texts: &[String], strategy: &Strategy, base: &str, out: &Path, json: bool) -> Outcome<()> {
    if texts.len() < 2 {
        return Err(Failure::request("there is one adapter to aggregate", "give `--adapter` at least twice"));
    }
    let modules = base_source::modules(&BaseSource::parse(base)?)?;
    let mut contributions = Vec::new();
    let mut metadata = Metadata::default();
    for text in texts {
        let source = AdapterSource::parse(text);
        let loaded = file::read(Path::new(&source.path), &modules).request(format!("cannot read `{}`", source.path))?;
        terminal::say(&format!("adapter: {} ({}, weight {})", source.path, loaded.report, source.weight));
        metadata.base = loaded.metadata.base.clone();
        contributions.push(Contribution {
            client: source.path,
            adapter: loaded.adapter,
            weight: source.weight,
            base_fingerprint: loaded.metadata.base.fingerprint,
        });
    }
    let aggregate = strategy.aggregate(&contributions).request("cannot aggregate these adapters")?;
    metadata.description = Some(format!("{} of {} adapters", strategy.description(), contributions.len()));
    file::write(out, &aggregate.adapter, Format::Kohya, &metadata).run("cannot save the aggregate")?;
    terminal::say(&format!("wrote {}", out.display()));
    let report = AggregateReport {
        strategy,
        adapters: contributions.len(),
        modules: aggregate.adapter.len(),
        relative_distance: aggregate.distance().relative(),
    };
    if json {
        return terminal::json(&report);
    }
    terminal::say(&format!("distance from the exact mean of the updates: {:.4} of its norm", report.relative_distance));
    Ok(())
}

/// An artist of a simulated federation: pictures that stay at home, and a trigger of its own.
struct Household<'a> {
    artist: &'static Artist,
    trigger: String,
    base: &'a BaseModel,
    args: &'a SimulateArgs,
    pictures: Vec<RgbImage>,
}

/// What went wrong at an artist's home.
#[derive(Debug, thiserror::Error)]
#[error("training failed")]
struct HouseholdError(#[source] Box<dyn std::error::Error + Send + Sync>);

impl Client for Household<'_> {
    type Error = HouseholdError;

    fn name(&self) -> &str {
        self.artist.name
    }

    fn train(&mut self, round: usize, global: Option<&Adapter>) -> Result<Contribution, HouseholdError> {
        let adapter = self.local_adapter(round, global).map_err(|failure| HouseholdError(failure.into_source()))?;
        let contribution = Contribution::from_examples(self.artist.name, adapter, self.pictures.len());
        Ok(contribution.on_base(&self.base.fingerprint))
    }
}

impl Household<'_> {
    fn home(&self) -> std::path::PathBuf {
        self.args.out.join(self.artist.name)
    }

    fn local_adapter(&self, round: usize, global: Option<&Adapter>) -> Outcome<Adapter> {
        let settings = TrainSettings {
            images: Some(self.home().join("pictures")),
            trigger: Some(self.trigger.clone()),
            steps: Some(self.args.local_steps),
            seed: Some(self.args.seed + 1000 * round as u64),
            drift_every: Some(0),
            ..TrainSettings::default()
        };
        let folder = RunFolder::replace(&self.home().join(format!("round-{round}")))?;
        let start = global.map_or(Start::Fresh, Start::From);
        let settings = settings.complete(&train::defaults(self.base, true));
        Ok(train::train(self.base, settings, &folder, start)?.adapter)
    }
}

/// Says when a round is over.
struct Town;

impl RoundObserver for Town {
    fn client_starts(&mut self, round: usize, client: &str) {
        terminal::say(&format!("round {round}: {client} trains"));
    }

    fn round_done(&mut self, report: &RoundReport, _state: &State) -> std::ops::ControlFlow<()> {
        let RoundReport { round, relative_distance, norm, .. } = report;
        terminal::say(&format!(
            "round {round}: averaged; update norm {norm:.3}, {relative_distance:.4} of it away from the exact mean"
        ));
        std::ops::ControlFlow::Continue(())
    }
}

/// One row of the table: an artist, judged by its own adapter or by the averaged one.
#[derive(Serialize)]
struct Row {
    artist: &'static str,
    adapter: &'static str,
    identity: f64,
    kps_no_token: f64,
}

/// What `federate simulate --json` prints.
#[derive(Serialize)]
struct Simulation<'a> {
    strategy: &'a Strategy,
    rounds: &'a [RoundReport],
    scores: &'a [Row],
}

fn simulate(args: &SimulateArgs) -> Outcome<()> {
    let strategy = parse_strategy(&args.strategy, None)?;
    let artists = artists(&args.artists)?;
    output_folder(&args.out)?;
    let base = BaseSource::Embedded.load(DType::F32, &Device::Cpu)?;
    let mut households =
        artists.into_iter().map(|artist| household(artist, &base, args)).collect::<Outcome<Vec<_>>>()?;
    let plan = RoundPlan { strategy: strategy.clone(), rounds: args.rounds, on_failure: Default::default() };
    let state = catelier_federation::run_rounds(&mut households, &plan, State::default(), &mut Town)
        .run("the federation stopped")?;
    let global = state.global().ok_or_else(|| Failure::request("there was no round", "ask for at least one round"))?;
    file::write(&args.out.join("global.safetensors"), global, Format::Kohya, &Metadata::default())
        .run("cannot save the averaged adapter")?;

    let rows = Judge::new(&base, args)?.rows(&households, global)?;
    let summary = Simulation { strategy: &strategy, rounds: state.history(), scores: &rows };
    let text = serde_json::to_string_pretty(&summary).run("cannot write the table")?;
    write_text(&args.out.join("simulation.json"), &text)?;
    if args.json {
        return terminal::json(&summary);
    }
    terminal::data(&table(&rows))
}

fn artists(names: &[String]) -> Outcome<Vec<&'static Artist>> {
    const USUAL: [&str; 3] = ["blueprint", "goldleaf", "poster"];
    let usual = USUAL.map(str::to_string);
    let names = if names.is_empty() { &usual[..] } else { names };
    names.iter().map(|name| Artist::named(name).request("cannot invite the artist")).collect()
}

fn household<'a>(artist: &'static Artist, base: &'a BaseModel, args: &'a SimulateArgs) -> Outcome<Household<'a>> {
    let folder = args.out.join(artist.name).join("pictures");
    gallery::write_pictures(artist, args.pictures, args.seed, &folder)?;
    let pictures = references::read(Some(&folder))?;
    Ok(Household { artist, trigger: trigger_of(artist), base, args, pictures })
}

/// A word of its own for every artist, which means nothing to the base.
fn trigger_of(artist: &Artist) -> String {
    let consonants = artist.name.chars().filter(|letter| !"aeiou".contains(*letter)).take(3);
    format!("x{}", consonants.collect::<String>())
}

/// Scores adapters with the same prompts and seeds.
struct Judge<'a> {
    easel: Easel<'a>,
    clip: Clip,
    questions: Questions,
    drawn_by_base: BaseAnswers,
}

impl<'a> Judge<'a> {
    fn new(base: &'a BaseModel, args: &SimulateArgs) -> Outcome<Self> {
        let set = PromptSet::builtin("gallery-v1").run("cannot read the embedded prompts")?;
        let questions = Questions::new(&set, None, args.prompts, 1, args.seed)?;
        let mut easel = Easel::new(base, true, &SamplingArgs::default_with_seed(args.seed))?;
        let drawn_by_base = questions.ask_base(&mut easel)?;
        Ok(Self { easel, clip: embedded::clip()?, questions, drawn_by_base })
    }

    /// Every artist by its own last adapter and by the averaged one.
    fn rows(&mut self, households: &[Household<'_>], global: &Adapter) -> Outcome<Vec<Row>> {
        let mut rows = Vec::new();
        for household in households {
            let own = RunFolder::open(&household.home().join(format!("round-{}", household.args.rounds)))?;
            let own =
                file::read(&own.adapter(Format::Kohya), &household.base.modules()).run("cannot read an adapter")?;
            rows.push(self.row(household, "own", &own.adapter)?);
            rows.push(self.row(household, "averaged", global)?);
        }
        Ok(rows)
    }

    fn row(&mut self, household: &Household<'_>, name: &'static str, adapter: &Adapter) -> Outcome<Row> {
        let trigger = Trigger::new(&household.trigger).run("cannot use the trigger")?;
        let answers = self.questions.ask(&mut self.easel, &AdapterSet::single(adapter, 1.0), Some(&trigger))?;
        let generation = self.easel.generation(Some(name), Some(&household.trigger));
        let evaluation = self.questions.evaluation(&self.drawn_by_base, &answers, &household.pictures, generation);
        let scores = scoring::score(&evaluation, &self.clip)?;
        Ok(Row {
            artist: household.artist.name,
            adapter: name,
            identity: scores.identity.map_or(f64::NAN, |identity| identity.mean),
            kps_no_token: scores.kps_no_token.mean,
        })
    }
}

fn table(rows: &[Row]) -> String {
    let mut lines = vec![format!("{:<12} {:<9} {:>8} {:>13}", "artist", "adapter", "identity", "kps_no_token")];
    lines.extend(
        rows.iter().map(|row| {
            format!("{:<12} {:<9} {:>8.3} {:>13.3}", row.artist, row.adapter, row.identity, row.kps_no_token)
        }),
    );
    lines.join("\n")
}
