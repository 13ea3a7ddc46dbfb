//! A client's training in a round of a federation: from instructions to an adapter.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use catelier_adapters::Adapter;
use catelier_federation::{Instructions, Personal, Phase, Role, leading_slices};
use catelier_pipelines::training::{Ending, Knowledge, StartingPoint, Trainer};

use crate::base::Base;
use crate::error::{Context, Error, Result};
use crate::run_folder::RunFolder;
use crate::session::Session;
use crate::settings::ResolvedTrain;
use crate::train::{Run, Trained, TrainingData};

/// Seeds of the phases of a round are this far apart.
const SEEDS_A_PHASE: u64 = 100;

/// What a client trains on.
#[derive(Clone, Copy)]
pub(crate) struct LocalTraining<'a, 's> {
    pub(crate) base: &'a Base,
    pub(crate) data: &'a TrainingData,
    /// What others know of the first samples of the data.
    pub(crate) towards: Option<&'a Knowledge>,
    pub(crate) session: &'a Session<'s>,
}

/// What a client starts a round from.
#[derive(Clone, Copy)]
pub(crate) struct At<'a> {
    /// The global adapter.
    pub(crate) global: Option<&'a Adapter>,
    /// The client's own adapter of its last round, of which it keeps what is personal.
    pub(crate) own: Option<&'a Adapter>,
    /// The client's own rank, where ranks may differ: it takes the leading slices of a global adapter of a larger one.
    pub(crate) rank: Option<usize>,
}

impl LocalTraining<'_, '_> {
    /// Trains as the instructions say. The last run is in the last of [`folders`].
    pub(crate) fn follow(
        &self,
        settings: &ResolvedTrain,
        instructions: &Instructions,
        at: At<'_>,
        folder: &Path,
    ) -> Result<Trained> {
        let start = self.start(settings, instructions, at)?;
        match start {
            Some(start) if !instructions.phases.is_empty() => self.in_phases(settings, instructions, start, folder),
            start => self.run(settings, start.as_ref(), folder),
        }
    }

    /// One run for each phase, each from the adapter of the one before.
    pub(crate) fn in_phases(
        &self,
        settings: &ResolvedTrain,
        instructions: &Instructions,
        mut start: StartingPoint,
        folder: &Path,
    ) -> Result<Trained> {
        let mut trained = None;
        for ((index, phase), folder) in (0..).zip(&instructions.phases).zip(folders(instructions, folder)) {
            let steps = ((settings.steps as f64 * phase.share).round() as usize).max(1);
            let settings =
                ResolvedTrain { steps, seed: settings.seed.wrapping_add(SEEDS_A_PHASE * index), ..settings.clone() };
            start.frozen = frozen(instructions, Some(phase), &start.adapter);
            let run = self.run(&settings, Some(&start), &folder)?;
            start.adapter = run.adapter.clone();
            trained = Some(run);
        }
        trained.ok_or_else(|| Error::user("there is no phase to train", "use the plan of a strategy"))
    }

    /// The last training at home: `phase` of [`Personal::tuning`], or all of the adapter.
    pub(crate) fn tune(
        &self,
        settings: &ResolvedTrain,
        personal: Option<(&Personal, &Phase)>,
        adapter: &Adapter,
        folder: &Path,
    ) -> Result<Trained> {
        let frozen = personal.map_or_else(BTreeSet::new, |(personal, phase)| {
            let parts = [(phase.body, personal.body_of(adapter)), (phase.head, personal.head_of(adapter))];
            parts.iter().filter(|(is_trained, _)| !is_trained).flat_map(|(_, part)| names(part)).collect()
        });
        let start = StartingPoint { frozen, ..adapter.clone().into() };
        self.run(settings, Some(&start), folder)
    }

    /// A run of its own, from a fresh adapter.
    pub(crate) fn alone(&self, settings: &ResolvedTrain, folder: &Path) -> Result<Trained> {
        self.run(settings, None, folder)
    }

    /// Where the run starts; `None` for a fresh adapter with nothing beside it.
    pub(crate) fn start(
        &self,
        settings: &ResolvedTrain,
        instructions: &Instructions,
        At { global, own, rank }: At<'_>,
    ) -> Result<Option<StartingPoint>> {
        let given = instructions.starting_point(global, own).user_error("cannot start the round")?;
        let adapter = match (given, rank) {
            (Some(adapter), Some(rank)) if adapter.uniform_rank().is_none_or(|wide| wide > rank) => {
                leading_slices(&adapter, rank).user_error("cannot cut the global adapter to the client's rank")?
            }
            (Some(adapter), _) => adapter,
            (None, _) if instructions.merged.is_none() && instructions.proximal == 0.0 => return Ok(None),
            (None, _) => Trainer::fresh_adapter(&self.base.model, &settings.config()).user_error("cannot train")?,
        };
        Ok(Some(StartingPoint {
            frozen: frozen(instructions, None, &adapter),
            merged: instructions.merged.clone(),
            proximal: instructions.proximal,
            adapter,
        }))
    }

    /// One run in place of an earlier one.
    pub(crate) fn run(
        &self,
        settings: &ResolvedTrain,
        start: Option<&StartingPoint>,
        folder: &Path,
    ) -> Result<Trained> {
        let Self { base, data, towards, session } = *self;
        let folder = RunFolder::replace(folder, session)?;
        let run = Run { base, data, folder: &folder, start, towards, resume: false };
        let trained = run.train(settings.clone(), session)?;
        match trained.ending {
            Ending::Finished => Ok(trained),
            Ending::Stopped { .. } => Err(Error::Cancelled),
        }
    }
}

/// The folders of a round's runs: `folder` itself, or one in it for each phase.
pub(crate) fn folders(instructions: &Instructions, folder: &Path) -> Vec<PathBuf> {
    match instructions.phases.len() {
        0 => vec![folder.to_path_buf()],
        phases => (1..=phases).map(|phase| folder.join(format!("phase-{phase}"))).collect(),
    }
}

/// Names of the parameters that stay as they are in a phase, or in a round without phases.
fn frozen(instructions: &Instructions, phase: Option<&Phase>, adapter: &Adapter) -> BTreeSet<String> {
    let of = |role| instructions.roles.names(adapter, role);
    let mut frozen = of(Role::Frozen);
    if let Some(phase) = phase {
        let parts = [(phase.body, Role::Shared), (phase.head, Role::Personal)];
        frozen.extend(parts.into_iter().filter(|(is_trained, _)| !is_trained).flat_map(|(_, role)| of(role)));
    }
    frozen.into_iter().collect()
}

fn names(adapter: &Adapter) -> Vec<String> {
    let of_module = |(path, update): (&str, &catelier_adapters::LayerUpdate)| -> Vec<String> {
        update.tensors().map(|(name, _)| format!("{path}.{name}")).collect()
    };
    adapter.iter().flat_map(of_module).collect()
}
