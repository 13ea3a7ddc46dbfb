//! `catelier adapter`: look into adapter files and convert them.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::Path;

use catelier_workflows::adapter::{ConvertRequest, convert};
use catelier_workflows::adapters::file::{self, Inspection};
use catelier_workflows::{Context, Session};

use crate::cli::AdapterCommand;
use crate::failure::Outcome;
use crate::terminal;

pub(super) fn run(command: AdapterCommand, session: &Session<'_>) -> Outcome<()> {
    match command {
        AdapterCommand::Inspect { file, json } => inspect(&file, json),
        AdapterCommand::Convert { file: from, format, base, out, force } => {
            let report = convert(&ConvertRequest { from, format, base, out, force }, session)?;
            terminal::say(&format!("matched {report}"));
            Ok(())
        }
    }
}

fn inspect(path: &Path, json: bool) -> Outcome<()> {
    let inspection = file::inspect(path).user_error(format!("cannot inspect `{}`", path.display()))?;
    if json {
        return terminal::json(&inspection);
    }
    terminal::lines(describe(&inspection))
}

/// The inspection as a person reads it: one fact a line, then the strongest modules.
fn describe(inspection: &Inspection) -> Vec<String> {
    let unknown = || "unknown".to_string();
    let mut lines = vec![
        line("file", format!("{} ({:.2} MB)", inspection.file, inspection.bytes as f64 / 1e6)),
        line("format", format!("{:?}", inspection.format).to_lowercase()),
        line("kind", counted(&inspection.kinds)),
        line("base family", inspection.family.map_or_else(unknown, |family| family.to_string())),
        line("modules", counted(&inspection.components)),
        line("rank", counted(&inspection.ranks)),
        line("alpha", counted(&inspection.alphas)),
        line("values", format!("{} in {}", inspection.element_count, joined(&inspection.dtypes))),
        line("hash", &inspection.model_hash),
    ];
    lines.extend(inspection.remarks.iter().map(|remark| line("remark", remark)));
    lines.push(String::new());
    lines.push("largest updates".to_string());
    let mut modules: Vec<_> = inspection.modules.iter().filter_map(|module| Some((module.norm?, module))).collect();
    modules.sort_by(|left, right| right.0.total_cmp(&left.0));
    lines.extend(modules.iter().take(8).map(|(norm, module)| format!("  {norm:10.4}  {}", module.name)));
    lines.push(String::new());
    lines.push("metadata".to_string());
    lines.extend(inspection.metadata.iter().map(|(key, value)| format!("  {key}: {}", shortened(value))));
    lines
}

fn line(name: &str, value: impl Display) -> String {
    format!("{name:<12} {value}")
}

/// `8 (32 modules), 4 (2 modules)`.
fn counted<K: Display>(counts: &BTreeMap<K, usize>) -> String {
    joined(counts.iter().map(|(key, count)| format!("{key} ({count} modules)")))
}

fn joined(items: impl IntoIterator<Item = impl Display>) -> String {
    items.into_iter().map(|item| item.to_string()).collect::<Vec<_>>().join(", ")
}

fn shortened(value: &str) -> String {
    const SHOWN: usize = 100;
    match value.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{} … ({} characters)", &value[..end], value.chars().count()),
        None => value.to_string(),
    }
}
