//! `catelier style`: an index of artists, searches in it, and the training of the style model.

use catelier_workflows::style::{
    IndexReport, IndexRequest, IndexedReport, SearchReport, SearchRequest, StyleTrainReport, StyleTrainRequest, index,
    search, train,
};
use catelier_workflows::styles::federated::{Measures, Outcome};
use catelier_workflows::styles::{Calibration, FITS_FROM, Found, Gap};
use catelier_workflows::{Error, Session};

use crate::cli::{StyleCommand, StyleIndexArgs, StyleSearchArgs, StyleTrainArgs};
use crate::failure::Outcome as Ended;
use crate::{shell, terminal};

pub(super) fn run(command: StyleCommand, session: &Session<'_>) -> Ended<()> {
    match command {
        StyleCommand::Index(args) => run_index(args, session),
        StyleCommand::Search(args) => run_search(args, session),
        StyleCommand::Train(args) => run_train(*args, session),
    }
}

fn run_index(args: StyleIndexArgs, session: &Session<'_>) -> Ended<()> {
    let request = IndexRequest {
        sources: args.sources,
        model: args.model.into(),
        prototypes: args.prototypes,
        noise: args.noise,
        seed: args.seed,
        adapters_out: args.adapters_out,
        allow_mix: args.allow_mix,
        out: args.out,
        force: args.force,
    };
    let indexed = index(&request, session);
    if matches!(indexed, Err(Error::Cancelled)) {
        terminal::say("no index was written; the same command begins anew");
    }
    let report = indexed?;
    if args.json { terminal::json(&report) } else { terminal::lines(table_of_artists(&report)) }
}

fn table_of_artists(report: &IndexReport) -> Vec<String> {
    let width = width_of(report.artists.iter().map(|artist| artist.artist.as_str()));
    let mut lines =
        vec![format!("{:<width$} {:>5} {:>10} {:>24}  {}", "artist", "works", "prototypes", "gap", "most similar")];
    lines.extend(report.artists.iter().map(|artist| {
        let IndexedReport { artist: name, works, prototypes, gap: own, .. } = artist;
        format!("{name:<width$} {works:>5} {prototypes:>10} {:>24}  {}", gap(own), rival(own))
    }));
    lines.push(String::new());
    lines.push(report.calibration.as_ref().map_or_else(
        || "scores have no probabilities: fewer than 20 works of artists with several were at hand".to_owned(),
        calibration,
    ));
    lines
}

fn calibration(calibration: &Calibration) -> String {
    let Calibration { works, accuracy, error, .. } = calibration;
    format!(
        "of {works} works held out one by one, {:.1} % found their artist; probabilities are off by {error:.3} on average",
        100.0 * accuracy
    )
}

/// The longest name, within reason.
fn width_of<'n>(names: impl Iterator<Item = &'n str>) -> usize {
    names.map(|name| terminal::escaped(name).chars().count()).max().unwrap_or(0).clamp("artist".len(), 40)
}

fn gap(gap: &Gap) -> String {
    match (gap.value, gap.low, gap.high) {
        (Some(value), Some(low), Some(high)) => format!("{value:.3} ({low:.3} to {high:.3})"),
        (Some(value), ..) => format!("{value:.3}"),
        _ => "unknown".to_owned(),
    }
}

/// The most similar artist, and what the gap says of the two.
fn rival(gap: &Gap) -> String {
    match gap.is_told_apart() {
        Some(false) => format!("{}, from whom the model cannot tell this artist", gap.rival),
        _ => gap.rival.clone(),
    }
}

fn run_search(args: StyleSearchArgs, session: &Session<'_>) -> Ended<()> {
    let request = SearchRequest {
        references: args.reference,
        index: args.index,
        tower: args.tower,
        top: args.top,
        sheet: args.sheet,
        pictures: args.pictures,
        force: args.force,
    };
    let report = search(&request, session)?;
    if let Some(sheet) = &request.sheet {
        terminal::say(&format!("sheet: {}", sheet.display()));
    }
    if args.json { terminal::json(&report) } else { terminal::lines(table_of_found(&report)) }
}

fn table_of_found(report: &SearchReport) -> Vec<String> {
    let width = width_of(report.found.iter().map(|found| found.artist.as_str()));
    let mut lines = vec![verdict(report), String::new()];
    lines.push(format!(
        "{:>2} {:<width$} {:>11} {:>7} {:>5} {:>24}  {}",
        "", "artist", "probability", "score", "works", "gap", "most similar"
    ));
    for (place, found) in report.found.iter().enumerate() {
        let Found { artist, score, probability, gap: own, works, .. } = found;
        let probability = probability.map_or("-".to_owned(), |probability| format!("{probability:.2}"));
        lines.push(format!(
            "{:>2} {artist:<width$} {probability:>11} {score:>7.3} {works:>5} {:>24}  {}",
            place + 1,
            gap(own),
            rival(own)
        ));
    }
    lines
}

fn verdict(report: &SearchReport) -> String {
    let best = report.found.first().map_or("", |found| found.artist.as_str());
    match report.fits {
        Some(true) => format!("{best} fits, the best of {} artists", report.artists),
        Some(false) => format!("no artist here fits: none of {} reaches a probability of {FITS_FROM}", report.artists),
        None => {
            format!("{best} is the nearest of {} artists; the index cannot say whether anybody fits", report.artists)
        }
    }
}

fn run_train(args: StyleTrainArgs, session: &Session<'_>) -> Ended<()> {
    let request = StyleTrainRequest { settings: args.settings, resume: args.resume, out: args.out, force: args.force };
    let trained = train(&request, session);
    if matches!(trained, Err(Error::Cancelled)) {
        terminal::say(&format!("go on with: catelier style train --resume --out {}", shell::quoted(&request.out)));
    }
    let report = trained?;
    if args.json { terminal::json(&report) } else { terminal::lines(table_of_methods(&report)) }
}

fn table_of_methods(report: &StyleTrainReport) -> Vec<String> {
    let StyleTrainReport { artists, public, held_out, .. } = report;
    let mut lines = vec![format!("{artists} artists, {public} public ones, {held_out} held-out works"), String::new()];
    lines.push(format!(
        "{:<28} {:>8} {:>8} {:>7} {:>9} {:>9}",
        "method", "accuracy", "macro-F1", "mAP", "recall@5", "sent"
    ));
    for outcome in &report.outcomes {
        let Outcome { method, measures, before_tuning, sent, .. } = outcome;
        if let Some(before) = before_tuning {
            lines.push(row(&format!("{method}, before tuning"), before, *sent));
        }
        lines.push(row(method.name(), measures, *sent));
    }
    lines
}

fn row(name: &str, measures: &Measures, sent: usize) -> String {
    let Measures { accuracy, macro_f1, mean_average_precision, recall_at_5 } = measures;
    format!("{name:<28} {accuracy:>8.3} {macro_f1:>8.3} {mean_average_precision:>7.3} {recall_at_5:>9.3} {sent:>9}")
}
