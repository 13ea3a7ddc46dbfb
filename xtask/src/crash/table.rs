//! The table of a campaign.

use anyhow::Result;

use super::outcome::Row;

const HEAD: &str = "\
| command | kills | at system calls | went on by `--resume` | began anew | differing bytes | metrics wrong | leftovers | stuck |
|---|---|---|---|---|---|---|---|---|
";

/// Troubles of a command that are told; the JSON has all.
const TOLD: usize = 5;

/// The rows of all commands.
#[derive(Default)]
pub(super) struct Table {
    pub(super) rows: Vec<Row>,
}

impl Table {
    pub(super) fn markdown(&self) -> String {
        let rows: String = self.rows.iter().map(line).collect();
        let troubles: String = self.rows.iter().flat_map(troubles).collect();
        let troubles = if troubles.is_empty() { troubles } else { format!("\n{troubles}") };
        format!("{HEAD}{rows}{troubles}")
    }

    pub(super) fn json(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(&self.rows)? + "\n")
    }

    pub(super) fn is_clean(&self) -> bool {
        self.rows.iter().all(Row::is_clean)
    }
}

/// A row and its troubles, before the table is complete.
pub(super) fn told(row: &Row) -> String {
    line(row) + &troubles(row).concat()
}

fn line(row: &Row) -> String {
    let Row { command, kills, at_calls, calls, resumed, anew, differing, metrics, left_over, stuck, .. } = row;
    format!(
        "| {command} | {kills} | {at_calls} of {calls} | {resumed} | {anew} | {differing} | {metrics} | {left_over} | {stuck} |\n"
    )
}

fn troubles(row: &Row) -> Vec<String> {
    let more = row.troubles.len().saturating_sub(TOLD);
    let told = row.troubles.iter().take(TOLD).map(|trouble| format!("- {}: {trouble}\n", row.command));
    told.chain((more > 0).then(|| format!("- {}: {more} more\n", row.command))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_tells_its_figures_and_the_troubles_follow() {
        let troubles = (0..7).map(|number| format!("trouble {number}")).collect();
        let row = Row { command: "draw", kills: 9, at_calls: 4, calls: 12, stuck: 7, troubles, ..Row::default() };
        let text = Table { rows: vec![row] }.markdown();
        assert!(text.contains("| draw | 9 | 4 of 12 | 0 | 0 | 0 | 0 | 0 | 7 |\n"), "{text}");
        assert!(text.contains("- draw: trouble 4\n- draw: 2 more\n"), "{text}");
    }
}
