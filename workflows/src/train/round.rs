//! A round of a federation at home: what is asked for in, a contribution out.

use std::collections::BTreeSet;
use std::path::PathBuf;

use catelier_adapters::file;
use catelier_adapters::{Adapter, Component, ModuleInfo, Targets};
use catelier_federation::{ClientRound, Contribution, Problem, RejectedContribution};
use catelier_pipelines::training::{Ending, StartingPoint};

use super::{Run, Trained, TrainingData};
use crate::base::Base;
use crate::error::{Context, Error, Result};
use crate::event::ArtefactKind;
use crate::local_training::{At, LocalTraining};
use crate::run_folder::RunFolder;
use crate::session::Session;
use crate::settings::{ResolvedTrain, TrainSettings};

/// The file that leaves the client, in the run's folder.
pub const CONTRIBUTION: &str = "contribution.safetensors";

/// A round as a client takes part in it.
#[derive(Debug, Clone, Default)]
pub struct RoundRequest {
    /// The folder of the round: a [`ClientRound`].
    pub folder: PathBuf,
    /// The client's name in the federation.
    pub client: String,
    /// The client's own adapter of its last round, where the rule leaves a part of it at home.
    pub own: Option<PathBuf>,
    /// Seed of the noise that covers the contribution, where the plan asks for noise: a secret, and never the same twice.
    pub noise_seed: u64,
}

/// A round that was read, with the base's modules checked.
pub(super) struct LocalRound<'r> {
    request: &'r RoundRequest,
    round: ClientRound,
    own: Option<Adapter>,
}

impl<'r> LocalRound<'r> {
    /// Reads the round, and the client's own adapter for a base with these modules.
    pub(super) fn read(request: &'r RoundRequest, modules: &[ModuleInfo]) -> Result<Self> {
        let folder = request.folder.display();
        let round = ClientRound::load(&request.folder).user_error(format!("cannot take part in `{folder}`"))?;
        let read = |path: &PathBuf| file::read(path, modules).user_error(format!("cannot read `{}`", path.display()));
        let own = request.own.as_ref().map(read).transpose()?.map(|file| file.adapter);
        Ok(Self { request, round, own })
    }

    /// The settings with the targets of the global adapter, where none are stated.
    pub(super) fn fit(&self, asked: TrainSettings, modules: &[ModuleInfo]) -> TrainSettings {
        let targets = self.round.global.as_ref().and_then(|global| targets_of(global, modules));
        TrainSettings { targets: asked.targets.or(targets), ..asked }
    }

    /// Trains as the round asks, and writes what leaves the client.
    pub(super) fn train(
        &self,
        base: &Base,
        data: &TrainingData,
        folder: &RunFolder,
        settings: ResolvedTrain,
        resume: bool,
        session: &Session<'_>,
    ) -> Result<Trained> {
        let (local, instructions) = (LocalTraining { base, data, towards: None, session }, &self.round.instructions);
        let at = At { global: self.round.global.as_ref(), own: self.own.as_ref(), rank: None };
        let start = local.start(&settings, instructions, at)?;
        let trained = match start {
            Some(start) if !instructions.phases.is_empty() => {
                self.in_phases(&local, settings, start, folder, resume)?
            }
            start => {
                Run { base, data, folder, start: start.as_ref(), towards: None, resume }.train(settings, session)?
            }
        };
        if trained.ending == Ending::Finished {
            self.send(base, &trained, data.image_count(), folder, session)?;
        }
        Ok(trained)
    }

    fn in_phases(
        &self,
        local: &LocalTraining<'_, '_>,
        settings: ResolvedTrain,
        start: StartingPoint,
        folder: &RunFolder,
        resume: bool,
    ) -> Result<Trained> {
        if resume {
            let refused = "a round whose head and body are trained one after the other does not resume";
            return Err(Error::user(refused, "train it again in another folder"));
        }
        folder.begin()?;
        let trained = local.in_phases(&settings, &self.round.instructions, start, folder.path())?;
        folder.finish()?;
        Ok(trained)
    }

    /// Writes the contribution, after the check at the client's border.
    fn send(
        &self,
        base: &Base,
        trained: &Trained,
        images: usize,
        folder: &RunFolder,
        session: &Session<'_>,
    ) -> Result<()> {
        let contribution = Contribution::from_examples(&self.request.client, trained.adapter.clone(), images);
        let contribution = contribution.on_base(&base.model.fingerprint);
        let leaving = self.round.leaving(contribution, self.request.noise_seed).failed("cannot check what leaves")?;
        let path = folder.path().join(CONTRIBUTION);
        let sent = leaving.map_err(|problems| self.refused(problems))?;
        sent.save(&path).failed("cannot save the contribution")?;
        session.written(ArtefactKind::Contribution, path);
        Ok(())
    }

    fn refused(&self, problems: Vec<Problem>) -> Error {
        let refused = RejectedContribution { client: self.request.client.clone(), problems };
        Error::user(format!("the contribution must not leave: {refused}"), "train again with a lower learning rate")
    }
}

/// The named groups of targets.
const GROUPS: [fn() -> Targets; 4] = [Targets::attention, Targets::linears, Targets::convolutions, Targets::everything];

/// The named group of targets that selects exactly the adapter's modules.
fn targets_of(adapter: &Adapter, modules: &[ModuleInfo]) -> Option<Targets> {
    let adapted: BTreeSet<&str> = adapter.iter().map(|(path, _)| path).collect();
    let component = |path: &str| Component::of_path(path).map(|(component, _)| component);
    let components: Vec<_> = adapted.iter().map(|path| component(path)).collect();
    let fits = |targets: &Targets| {
        let of_models = modules.iter().filter(|module| components.contains(&component(&module.path)));
        let selected = of_models.filter(|module| targets.chooses(module)).map(|module| module.path.as_str());
        selected.collect::<BTreeSet<_>>() == adapted
    };
    GROUPS.iter().map(|group| group()).find(fits)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use catelier_adapters::LoraConfig;
    use catelier_pipelines::training::TrainConfig;

    use super::*;
    use crate::base::BaseSource;

    fn config() -> LoraConfig {
        TrainConfig { rank: 1, ..TrainConfig::default() }.lora()
    }

    #[test]
    fn the_targets_of_an_adapter_are_found_by_its_modules() {
        let modules = BaseSource::Embedded.open(&Session::new(|_| {})).unwrap().modules();
        let (unet, _): (Vec<_>, Vec<_>) = modules.iter().cloned().partition(|module| module.path.starts_with("unet."));
        for group in GROUPS {
            let config = LoraConfig { targets: group(), ..config() };
            let (adapter, _) = Adapter::init(&config, &unet, 1, &Device::Cpu).unwrap();
            assert_eq!(targets_of(&adapter, &modules), Some(group()));
        }
        let some = LoraConfig { targets: "mid_block.*.to_q".parse().unwrap(), ..config() };
        let (adapter, _) = Adapter::init(&some, &unet, 1, &Device::Cpu).unwrap();
        assert_eq!(targets_of(&adapter, &modules), None);
    }
}
