//! Counts the instructions of the hot kernels on a simulated CPU, independently of the machine's load.

mod callgrind;
mod table;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use callgrind::Kernel;
use table::{Row, Table};

use crate::output::{print, tell};
use crate::release;

/// Which kernels are counted, and what they are compared with.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only kernels with these names [default: all]
    #[arg(long, value_delimiter = ',', value_name = "NAME")]
    kernel: Vec<String>,
    /// Show the difference against what this command printed before, saved in a file
    #[arg(long, value_name = "FILE")]
    against: Option<PathBuf>,
    /// Calls that are counted of each kernel; the table has their mean
    #[arg(long, default_value_t = 2, value_name = "N")]
    calls: u64,
}

/// Runs one kernel.
const EXAMPLE: &str = "one_kernel";

const NOTE: &str = "\
Instructions per call on one thread, counted by callgrind. Valgrind's CPU has no 512-bit vectors, so these are the
portable kernels.
";

/// Builds the example of `catelier-numerics` that runs one kernel, and runs it under callgrind for every row.
pub(crate) fn run(args: &Args) -> Result<()> {
    ensure!(args.calls > 0, "`--calls` is 0, expected at least 1");
    let before = args.against.as_deref().map(read).transpose()?;
    callgrind::check()?;
    let program = release::build(&["--package", "catelier-numerics", "--example", EXAMPLE], EXAMPLE)?;
    let mut table = Table::default();
    for kernel in kernels(&program, &args.kernel)? {
        for pass in ["forward", "backward"] {
            tell(&format!("{} {pass}", kernel.name));
            let instructions = kernel.instructions_per_call(&program, pass, args.calls)?;
            table.rows.push(Row {
                kernel: format!("{} {pass}", kernel.name),
                shape: kernel.shape.clone(),
                instructions,
            });
        }
    }
    print(&format!("{NOTE}\n{}", table.markdown(before.as_ref())));
    Ok(())
}

fn read(path: &Path) -> Result<Table> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read `{}`", path.display()))?;
    Table::parse(&text).with_context(|| format!("`{}` is not what this command prints", path.display()))
}

/// The requested kernels among those that the program can run.
fn kernels(program: &Path, wanted: &[String]) -> Result<Vec<Kernel>> {
    let all = callgrind::list(program)?;
    if let Some(unknown) = wanted.iter().find(|name| all.iter().all(|kernel| kernel.name != **name)) {
        let names: Vec<&str> = all.iter().map(|kernel| kernel.name.as_str()).collect();
        bail!("there is no kernel `{unknown}`; expected one of {}", names.join(", "));
    }
    Ok(all.into_iter().filter(|kernel| wanted.is_empty() || wanted.contains(&kernel.name)).collect())
}
