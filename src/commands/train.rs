//! `catelier train`: images in, adapter out.

use std::hash::{BuildHasher, Hasher, RandomState};

use catelier_workflows::pipelines::training::Ending;
use catelier_workflows::settings::{self, Settings, TrainSettings};
use catelier_workflows::train::RoundRequest;
use catelier_workflows::{Result, Session, TrainRequest, train};

use crate::cli::{SettingsArgs, TrainArgs};
use crate::failure::{Failure, Outcome};
use crate::{shell, terminal};

pub(super) fn run(args: TrainArgs, session: &Session<'_>) -> Outcome<()> {
    let TrainArgs { settings, resume, out, round, client, own, force } = args;
    let round = round.zip(client).map(|(folder, client)| RoundRequest { folder, client, own, noise_seed: secret() });
    let request = TrainRequest { settings: settings.asked()?, resume, out, force, round };
    let trained = train(&request, session)?;
    if let Ending::Stopped { step, .. } = &trained.ending {
        terminal::say(&format!("stopped after step {step} of {}; everything is saved", trained.settings.steps));
        terminal::say(&format!("go on with: catelier train --resume --out {}", shell::quoted(&request.out)));
        return Err(Failure::Stopped);
    }
    Ok(())
}

/// A number that nobody else knows: the keys of the standard library's hash maps are random.
fn secret() -> u64 {
    RandomState::new().build_hasher().finish()
}

impl SettingsArgs {
    /// Flags over run file.
    pub(super) fn asked(self) -> Result<TrainSettings> {
        let file = self.config.as_deref().map(settings::read).transpose()?.unwrap_or_default();
        Ok(self.flags.over(file))
    }
}
