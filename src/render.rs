//! Shows what workflows report: bars, lines on stderr.

use catelier_workflows::{Artefact, ArtefactKind, Cancel, Event, Progress, Session, Stage};

use crate::progress::Bar;
use crate::{device, memory, signals, terminal};

/// The surroundings of a workflow that the command runs.
pub(crate) fn session() -> Session<'static> {
    let cancel = Cancel::new();
    let mut renderer = Renderer { cancel: cancel.clone(), is_listening: false, bars: Vec::new() };
    Session::new(move |event| renderer.show(event))
        .with_cancel(cancel)
        .with_variables(|name| std::env::var(name).ok())
        .with_automatic_device(device::automatic)
        .with_peak_memory(catelier_bench::process::peak_bytes)
}

struct Renderer {
    cancel: Cancel,
    is_listening: bool,
    /// Stages at work, each inside the one before: a preview lies inside a training.
    bars: Vec<(Stage, Bar)>,
}

impl Renderer {
    fn show(&mut self, event: Event) {
        match event {
            Event::Progress(progress) => {
                self.listen();
                self.advance(progress);
            }
            Event::Note(text) => terminal::say(&text),
            Event::Warning(text) => terminal::warn(&text),
            Event::BaseLoaded { .. } => memory::settle(),
            Event::Written(Artefact { kind: ArtefactKind::Adapter, path }) => {
                // Also where the training was stopped.
                self.end_bars(0);
                terminal::say(&format!("adapter: {}", path.display()));
            }
            Event::Written(Artefact { kind: ArtefactKind::Report, path }) => {
                terminal::say(&format!("report: {}", path.display()));
            }
            _ => {}
        }
    }

    /// Before there is progress, work cannot stop within a step, and Ctrl-C ends the process as it does everywhere.
    fn listen(&mut self) {
        if !self.is_listening {
            self.is_listening = true;
            signals::listen(self.cancel.clone());
        }
    }

    /// Ends the stages from the one at `place` on, the inner ones first.
    fn end_bars(&mut self, place: usize) {
        while self.bars.len() > place {
            self.bars.pop();
        }
    }

    fn advance(&mut self, progress: Progress) {
        let Progress { stage, done, total, note } = progress;
        let place = self.bars.iter().position(|(known, _)| *known == stage).unwrap_or_else(|| {
            self.bars.push((stage, Bar::starting_at(&stage.to_string(), done, total)));
            self.bars.len() - 1
        });
        self.bars[place].1.reach(done, note);
        if done == total {
            self.end_bars(place);
        }
    }
}

impl Drop for Renderer {
    fn drop(&mut self) {
        self.end_bars(0);
    }
}
