//! The table of counts, which a later run reads for comparison.

use anyhow::{Context, Result, ensure};

/// Counted kernels, in the order they were counted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Table {
    pub(super) rows: Vec<Row>,
}

/// One pass of a kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) kernel: String,
    pub(super) shape: String,
    pub(super) instructions: u64,
}

const HEAD: &str = "| kernel | shape | instructions per call |";

impl Table {
    /// The table as Markdown, with the change against `before` if it is given.
    pub(super) fn markdown(&self, before: Option<&Self>) -> String {
        let (head, rule) = match before {
            Some(_) => (" change |", "---|"),
            None => ("", ""),
        };
        let mut text = format!("{HEAD}{head}\n|---|---|---|{rule}\n");
        for row in &self.rows {
            let Row { kernel, shape, instructions } = row;
            let change = before.map_or(String::new(), |before| format!(" {} |", before.change(row)));
            text += &format!("| {kernel} | {shape} | {instructions} |{change}\n");
        }
        text
    }

    /// Reads the rows of a table that [`markdown`](Self::markdown) wrote, ignoring the text around it.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let head = |line: &&str| line.starts_with(HEAD);
        let mut lines = text.lines().skip_while(|line| !head(line));
        lines.next().with_context(|| format!("no line begins with `{HEAD}`"))?;
        let rows = lines.skip(1).take_while(|line| line.starts_with('|')).map(parse_row).collect::<Result<Vec<_>>>()?;
        ensure!(!rows.is_empty(), "the table is empty");
        Ok(Self { rows })
    }

    /// The change of `row` against the same row of this table.
    fn change(&self, row: &Row) -> String {
        let same = |before: &&Row| (&before.kernel, &before.shape) == (&row.kernel, &row.shape);
        match self.rows.iter().find(same) {
            None => "new".into(),
            Some(before) if before.instructions == row.instructions => "none".into(),
            Some(before) => {
                format!("{:+.2} %", 100.0 * (row.instructions as f64 / before.instructions.max(1) as f64 - 1.0))
            }
        }
    }
}

fn parse_row(line: &str) -> Result<Row> {
    let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
    let [kernel, shape, instructions, ..] = cells[..] else { anyhow::bail!("too few cells in `{line}`") };
    let instructions = instructions.parse().with_context(|| format!("`{instructions}` is not a count"))?;
    Ok(Row { kernel: kernel.into(), shape: shape.into(), instructions })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(rows: &[(&str, u64)]) -> Table {
        let row = |&(kernel, instructions): &(&str, u64)| Row {
            kernel: kernel.into(),
            shape: "64 rows".into(),
            instructions,
        };
        Table { rows: rows.iter().map(row).collect() }
    }

    #[test]
    fn a_table_is_read_as_it_was_written() {
        let written = table(&[("linear forward", 1_300_000), ("geglu backward", 7)]);
        for text in [written.markdown(None), written.markdown(Some(&written))] {
            assert_eq!(Table::parse(&format!("A note.\n\n{text}\nMore.\n")).unwrap(), written);
        }
    }

    #[test]
    fn changes_are_relative_to_the_same_kernel_and_shape() {
        let before = table(&[("linear forward", 1000), ("geglu forward", 500)]);
        let now = table(&[("geglu forward", 500), ("linear forward", 1050), ("linear backward", 1)]);
        let changes = now.rows.iter().map(|row| before.change(row)).collect::<Vec<_>>();
        assert_eq!(changes, ["none", "+5.00 %", "new"]);
    }

    #[test]
    fn a_file_without_such_a_table_is_refused() {
        assert!(Table::parse("| work | shape |\n").is_err());
        let broken = format!("{HEAD}\n|---|---|---|\n| linear forward | 64 rows | many |\n");
        assert!(format!("{:#}", Table::parse(&broken).unwrap_err()).contains("`many` is not a count"));
    }
}
