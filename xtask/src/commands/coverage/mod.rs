//! `cargo xtask coverage`: which lines of the hypervisor's library and of `smmuv3` the tests on the build machine run, the inputs of fuzzers among them.

mod instrumented;
mod lines;

use anyhow::Result;
use clap::Args;

use crate::workspace::Workspace;
use instrumented::{Programs, Recorded};
use lines::Lines;

/// Lines in a hundred that must be run.
const LEAST_PERCENT: f64 = 90.0;

/// What is measured: its name, and where its sources are. The image runs on no build machine.
const MEASURED: &[(&str, &str)] = &[("hyp, library", "hyp/src"), ("smmuv3", "hyp/smmuv3/src")];

/// Loom runs few lines in very many orders, which takes long and counts nothing that others do not.
const LEFT_OUT: &str = "loom";

/// The test program that replays the inputs of fuzzers.
const CORPORA: &str = "corpora";

/// Options of `coverage`.
#[derive(Args, Debug)]
pub struct Arguments {
    /// Also the lines that were not run
    #[arg(long)]
    missing: bool,
}

/// Runs the tests and counts; whether they passed and ran enough.
///
/// # Errors
///
/// LLVM's programs cannot be had, or the tests cannot be built.
pub fn run(arguments: &Arguments) -> Result<bool> {
    let workspace = Workspace::current();
    let programs = Programs::build(&workspace)?;
    let recorded = programs.run(|name| name != LEFT_OUT)?;
    let counted = Lines::of(workspace.root(), &recorded.lcov()?)?;
    let mut enough = recorded.failed == 0;
    for (name, sources) in MEASURED {
        let files = counted.below(sources);
        println!("\n{:>8} {:>8} {:>8}  {name}", "lines", "run", "");
        for file in &files {
            println!("{:>8} {:>8} {:>7.1}%  {}", file.lines(), file.run(), file.percent(), file.path);
            if arguments.missing {
                file.missing().iter().for_each(|(first, last)| println!("{:>27} {first}-{last}", ""));
            }
        }
        let (lines, run): (usize, usize) =
            (files.iter().map(|file| file.lines()).sum(), files.iter().map(|file| file.run()).sum());
        let percent = lines::percent(lines, run);
        println!("{lines:>8} {run:>8} {percent:>7.1}%  {name} in all; at least {LEAST_PERCENT} % are wanted");
        enough &= percent >= LEAST_PERCENT;
    }
    if recorded.failed != 0 {
        println!("{} test programs failed", recorded.failed);
    }
    Ok(enough)
}

/// Writes what the inputs of fuzzers alone reach as HTML, and says where.
///
/// # Errors
///
/// As [`run`].
pub fn of_corpora() -> Result<bool> {
    let workspace = Workspace::current();
    let programs = Programs::build(&workspace)?;
    let recorded: Recorded = programs.run(|name| name == CORPORA)?;
    let index = recorded.html(&workspace.target().join("coverage/html"), MEASURED)?;
    println!("{}", index.display());
    Ok(recorded.failed == 0)
}
