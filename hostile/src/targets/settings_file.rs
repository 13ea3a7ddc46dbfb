//! A run file, a simulation's file, that of a style model's training, or the marker of an output folder. The first line of an input is its name.

use std::fmt::Debug;
use std::fs;
use std::path::Path;

use catelier_workflows::output::Marker;
use catelier_workflows::settings::{self, BaseDefaults, ResolvedSimulate, ResolvedStyleTrain, ResolvedTrain, Settings};
use catelier_workflows::{SimulateSettings, StyleTrainSettings, TrainSettings};

use crate::{Verdict, folder, refused};

const RUN: &str = "run.toml";
const SIMULATION: &str = "simulation.toml";
const STYLE: &str = "style.toml";
const MARKER: &str = ".catelier.json";

pub(super) fn read(input: &[u8]) -> Verdict {
    let (name, bytes) = folder::named(input, &[RUN, SIMULATION, STYLE, MARKER]);
    folder::with_file("settings", name, bytes, |path| {
        let verdict = match name {
            RUN => run(path),
            SIMULATION => simulation(path),
            STYLE => style(path),
            _ => Marker::read(path.parent().unwrap()).map_or_else(|error| refused(&error), |_| Verdict::Accepted),
        };
        fs::remove_file(path).unwrap();
        verdict
    })
}

fn run(path: &Path) -> Verdict {
    let base = BaseDefaults { is_embedded: false, resolution: 512 };
    let settings = match settings::read::<TrainSettings>(path) {
        Ok(settings) => settings,
        Err(error) => return refused(&error),
    };
    match settings.resolve(&base) {
        Ok(resolved) => {
            if let Err(error) = resolved.config().validate() {
                return refused(&error);
            }
            holds_when_written::<ResolvedTrain, TrainSettings>(&resolved, path);
            Verdict::Accepted
        }
        Err(error) => refused(&error),
    }
}

fn simulation(path: &Path) -> Verdict {
    match settings::read::<SimulateSettings>(path) {
        Ok(settings) => {
            holds_when_written::<ResolvedSimulate, SimulateSettings>(&settings.resolve(), path);
            Verdict::Accepted
        }
        Err(error) => refused(&error),
    }
}

fn style(path: &Path) -> Verdict {
    let settings = match settings::read::<StyleTrainSettings>(path) {
        Ok(settings) => settings.resolve(),
        Err(error) => return refused(&error),
    };
    if let Err(error) = settings.validate() {
        return refused(&error);
    }
    holds_when_written::<ResolvedStyleTrain, StyleTrainSettings>(&settings, path);
    Verdict::Accepted
}

/// Resolved settings are saved as text that reads back as the same, and that a later run takes.
fn holds_when_written<R, S>(resolved: &R, path: &Path)
where
    R: serde::Serialize + serde::de::DeserializeOwned + PartialEq + Debug,
    S: Settings,
{
    let text = toml::to_string(resolved).unwrap_or_else(|error| panic!("accepted, but cannot be saved: {error}"));
    let again: R = toml::from_str(&text).unwrap_or_else(|error| panic!("saved, but not read: {error}\n{text}"));
    assert_eq!(&again, resolved);
    fs::write(path, &text).unwrap();
    settings::read::<S>(path).map(drop).unwrap_or_else(|error| panic!("saved, but refused: {error}\n{text}"));
}
