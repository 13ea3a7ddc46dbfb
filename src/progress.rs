//! Progress for people: a bar on a terminal, now and then a line elsewhere.

use std::io::IsTerminal;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::terminal;

/// Without a terminal, a line this often at most.
const LINE_EVERY: Duration = Duration::from_secs(15);

/// The bars of the work that is going on, each inside the one before; the last one is shown. Each draws for itself:
/// together, they would panic when the terminal goes away.
static BARS: Mutex<Vec<ProgressBar>> = Mutex::new(Vec::new());

fn bars() -> MutexGuard<'static, Vec<ProgressBar>> {
    BARS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Writes whole lines to the terminal, which the bar at work makes room for.
pub(crate) fn above_bars(write: impl FnOnce()) {
    match bars().last() {
        Some(bar) => bar.suspend(write),
        None => write(),
    }
}

/// Progress of one piece of work.
pub(crate) struct Bar {
    bar: ProgressBar,
    label: String,
    is_terminal: bool,
    last_line: Instant,
}

impl Bar {
    /// `label` names the stage, which has `done` of `total` pieces behind it, as a resumed run does.
    pub(crate) fn starting_at(label: &str, done: usize, total: usize) -> Self {
        let is_terminal = std::io::stderr().is_terminal();
        let mut bars = bars();
        if let Some(outer) = bars.last() {
            show(outer, "");
        }
        let bar = ProgressBar::with_draw_target(Some(total as u64), target(is_terminal));
        bar.set_style(style(template()));
        bar.set_prefix(label.to_string());
        bar.set_position(done as u64);
        bar.reset_eta();
        bars.push(bar.clone());
        drop(bars);
        Self { bar, label: label.to_string(), is_terminal, last_line: Instant::now() }
    }

    /// `done` pieces are finished; `note` is shown beside them.
    pub(crate) fn reach(&mut self, done: usize, note: String) {
        self.bar.set_message(note);
        self.bar.set_position(done as u64);
        let total = self.bar.length().unwrap_or_default();
        if !self.is_terminal && (self.last_line.elapsed() >= LINE_EVERY || done as u64 == total) {
            self.last_line = Instant::now();
            terminal::say(&format!("{} {done}/{total} {}", self.label, self.bar.message()));
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        let mut bars = bars();
        bars.pop();
        match bars.last() {
            None if Some(self.bar.position()) == self.bar.length() => self.bar.abandon(),
            None => self.bar.finish_and_clear(),
            Some(outer) => {
                self.bar.finish_and_clear();
                show(outer, template());
            }
        }
    }
}

fn target(is_terminal: bool) -> ProgressDrawTarget {
    if is_terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() }
}

/// One line, whatever the terminal's width: indicatif leaves a part of a bar behind that takes two.
fn template() -> &'static str {
    let (_, columns) = console::Term::stderr().size();
    match columns {
        ..100 => "{prefix:>14} {pos}/{len}  {eta} left  {wide_msg}",
        _ => "{prefix:>14} {bar:24} {pos}/{len}  {per_sec}, {eta} left  {wide_msg}",
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// Draws the bar by another template; by an empty one, it gives up its line.
fn show(bar: &ProgressBar, template: &str) {
    bar.set_style(style(template));
    // Draws at once, where a tick could come too soon after the last one.
    bar.suspend(|| ());
}
