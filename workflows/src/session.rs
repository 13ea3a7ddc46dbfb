//! What a workflow is handed from its surroundings: an observer, a way to stop it, and the machine.

use std::cell::RefCell;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::Device;

use crate::device::DeviceChoice;
use crate::error::{Error, Result};
use crate::event::{Artefact, ArtefactKind, Event, Progress, Stage};

/// A token that stops work; all clones are one token.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// A token that has not stopped anything yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks the work to stop: training after the optimizer step at work, which is saved; generation after the sampler
    /// step; encoding after the image.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// Whether somebody asked.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// What a workflow is handed from its surroundings.
///
/// Nothing here is found out by the workflows: they read no environment, choose no device and print nothing.
pub struct Session<'a> {
    observer: RefCell<Box<dyn FnMut(Event) + 'a>>,
    cancel: Cancel,
    variables: fn(&str) -> Option<String>,
    automatic_device: fn() -> Device,
    peak_memory: fn() -> Option<u64>,
}

impl<'a> Session<'a> {
    /// A session that reports to `observer`, knows no environment variables and computes on the CPU.
    pub fn new(observer: impl FnMut(Event) + 'a) -> Self {
        Self {
            observer: RefCell::new(Box::new(observer)),
            cancel: Cancel::new(),
            variables: |_| None,
            automatic_device: || Device::Cpu,
            peak_memory: || None,
        }
    }

    /// The same, stopped by `cancel`.
    #[must_use]
    pub fn with_cancel(self, cancel: Cancel) -> Self {
        Self { cancel, ..self }
    }

    /// The same with a lookup of environment variables. Only bases on a hub need one: they are found by the variables
    /// of [`HubSettings::resolve`](catelier_pipelines::models::hub::HubSettings::resolve).
    #[must_use]
    pub fn with_variables(self, variables: fn(&str) -> Option<String>) -> Self {
        Self { variables, ..self }
    }

    /// The same with the device that [`DeviceChoice::Auto`] stands for.
    #[must_use]
    pub fn with_automatic_device(self, automatic_device: fn() -> Device) -> Self {
        Self { automatic_device, ..self }
    }

    /// The same with a gauge of the most memory that the process has held, in bytes, for the metrics of training runs.
    #[must_use]
    pub fn with_peak_memory(self, peak_memory: fn() -> Option<u64>) -> Self {
        Self { peak_memory, ..self }
    }

    /// The device that `choice` names.
    ///
    /// # Errors
    /// [`Error::User`] when there is no such device.
    pub fn open_device(&self, choice: DeviceChoice) -> Result<Device> {
        choice.open(self.automatic_device)
    }

    /// The value of an environment variable, as the caller knows it.
    pub fn variable(&self, name: &str) -> Option<String> {
        (self.variables)(name)
    }

    /// Most memory that the process has held so far, in bytes, where the caller can tell.
    pub fn peak_memory(&self) -> Option<u64> {
        (self.peak_memory)()
    }

    /// Whether the work should stop.
    pub fn is_cancelled(&self) -> bool {
        self.cancel.is_cancelled()
    }

    /// Stops here if somebody asked.
    ///
    /// # Errors
    /// [`Error::Cancelled`].
    pub fn check_cancelled(&self) -> Result<()> {
        if self.is_cancelled() { Err(Error::Cancelled) } else { Ok(()) }
    }

    /// Reports `event` to the observer.
    pub fn report(&self, event: Event) {
        (*self.observer.borrow_mut())(event);
    }

    /// Something a person may want to know.
    pub fn note(&self, text: impl Into<String>) {
        self.report(Event::Note(text.into()));
    }

    /// Something a person may want to act on.
    pub fn warn(&self, text: impl Into<String>) {
        self.report(Event::Warning(text.into()));
    }

    /// `done` of `total` pieces of a stage are done; whether to go on.
    pub fn progress(&self, stage: Stage, done: usize, total: usize, note: impl Into<String>) -> ControlFlow<()> {
        self.report(Event::Progress(Progress { stage, done, total, note: note.into() }));
        if self.is_cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    /// A file or folder is complete.
    pub fn written(&self, kind: ArtefactKind, path: impl Into<PathBuf>) {
        self.report(Event::Written(Artefact { kind, path: path.into() }));
    }
}
