//! `catelier train`: images in, adapter out.

use catelier_workflows::pipelines::training::Ending;
use catelier_workflows::settings::{self, Settings, TrainSettings};
use catelier_workflows::{Result, Session, TrainRequest, train};

use crate::cli::{SettingsArgs, TrainArgs};
use crate::failure::Outcome;
use crate::terminal;

pub(super) fn run(args: TrainArgs, session: &Session<'_>) -> Outcome<()> {
    let TrainArgs { settings, resume, out, force } = args;
    let request = TrainRequest { settings: settings.asked()?, resume, out, force };
    let trained = train(&request, session)?;
    if let Ending::Stopped { step, reason } = &trained.ending {
        terminal::say(&format!("stopped after step {step} ({reason}); everything is saved"));
        terminal::say(&format!("go on with: catelier train --resume --out {}", request.out.display()));
    }
    Ok(())
}

impl SettingsArgs {
    /// Flags over run file.
    pub(super) fn asked(self) -> Result<TrainSettings> {
        let file = self.config.as_deref().map(settings::read).transpose()?.unwrap_or_default();
        Ok(self.flags.over(file))
    }
}
