//! `cargo xtask mutate`: shows that the tests can fail.
//!
//! Each mutation is one replacement of text in a copy of the tree, built with a target directory of its own. It is caught
//! when a test fails, or the guest fails, panics or hangs. A copy without a mutation must pass first.

mod model;
mod tree;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use serde::Deserialize;

use crate::emulator::{self, Entry, Run};
use crate::image;
use crate::machine::Shape;
use crate::machine::memory_size::MemorySize;
use crate::setup::{self, Tools};
use crate::workspace::Workspace;
use tree::Copy;

/// Where the mutations are listed.
const LIST: &str = "tests/mutations.toml";

/// When a run of a mutated system is taken to hang.
const TIMEOUT: Duration = Duration::from_secs(180);

/// Options of `mutate`.
#[derive(Args, Debug)]
pub struct Arguments {
    /// Only mutations with this text in their name
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Only mutations that these tests must catch
    #[arg(long, value_enum)]
    by: Option<CaughtBy>,
    /// Only say which there are, and whether their text is in the source once
    #[arg(long)]
    list: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    mutation: Vec<Mutation>,
}

/// One deliberate fault.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Mutation {
    /// What it is called.
    name: String,
    /// Which property it breaks.
    breaks: String,
    /// File, from the top of the tree.
    file: String,
    /// Text that is there exactly once.
    find: String,
    /// What is there instead.
    replace: String,
    /// Who must notice.
    caught_by: CaughtBy,
}

/// Which tests must fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
enum CaughtBy {
    /// Tests on this machine: the model machine, property and unit tests.
    Model,
    /// The checks in QEMU.
    Qemu,
}

/// What happened to a mutation.
#[derive(Debug)]
enum Verdict {
    /// The tests failed; what they said.
    Caught(String),
    /// The tests passed.
    Survived,
}

/// Tries every mutation and answers whether all were caught.
///
/// # Errors
///
/// The list is malformed, a text is not there exactly once, or the tests fail without a mutation.
pub fn run(arguments: &Arguments) -> Result<bool> {
    let workspace = Workspace::current();
    let list = read(&workspace)?;
    let chosen: Vec<&Mutation> = list
        .mutation
        .iter()
        .filter(|mutation| arguments.only.as_ref().is_none_or(|text| mutation.name.contains(text)))
        .filter(|mutation| arguments.by.is_none_or(|by| mutation.caught_by == by))
        .collect();
    if chosen.is_empty() {
        bail!("no mutation is like that: type `cargo xtask mutate --list`");
    }
    let mut sound = true;
    for mutation in &chosen {
        let fit = tree::mutated(workspace.root(), mutation);
        if arguments.list || fit.is_err() {
            let state = fit.err().map_or_else(String::new, |error| format!(": {error:#}"));
            sound &= state.is_empty();
            println!("{:?} {} ({}){state}", mutation.caught_by, mutation.name, mutation.breaks);
        }
    }
    if arguments.list || !sound {
        return Ok(sound);
    }

    let tools = setup::run(false)?;
    let copy = Copy::new(&workspace)?;
    for by in [CaughtBy::Model, CaughtBy::Qemu] {
        if chosen.iter().any(|mutation| mutation.caught_by == by) {
            println!("control, {by:?}: no mutation");
            if let Verdict::Caught(how) = attempt(&copy, &tools, by)? {
                bail!("the tests fail without a mutation ({how}): type `cargo xtask test`");
            }
        }
    }
    let mut survivors = 0;
    for mutation in &chosen {
        let started = Instant::now();
        copy.apply(mutation)?;
        let verdict = attempt(&copy, &tools, mutation.caught_by);
        copy.revert(mutation)?;
        let seconds = started.elapsed().as_secs();
        match verdict {
            Err(error) => {
                survivors += 1;
                println!("BROKEN    {} ({seconds} s): {error:#}", mutation.name);
            }
            Ok(Verdict::Caught(how)) => println!("caught    {} ({seconds} s): {how}", mutation.name),
            Ok(Verdict::Survived) => {
                survivors += 1;
                println!("SURVIVED  {} ({seconds} s): {} is not tested", mutation.name, mutation.breaks);
            }
        }
    }
    println!("{} caught, {survivors} survived or cannot be tried", chosen.len() - survivors);
    Ok(survivors == 0)
}

fn read(workspace: &Workspace) -> Result<List> {
    let path = workspace.root().join(LIST);
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    toml::from_str(&text).with_context(|| format!("{LIST} is malformed"))
}

fn attempt(copy: &Copy, tools: &Tools, by: CaughtBy) -> Result<Verdict> {
    match by {
        CaughtBy::Model => model::attempt(copy.workspace(), TIMEOUT),
        CaughtBy::Qemu => in_qemu(copy.workspace(), tools),
    }
}

fn in_qemu(workspace: &Workspace, tools: &Tools) -> Result<Verdict> {
    let images = image::build(workspace, tools.standard_library)?;
    let run = Run {
        name: "mutate",
        shape: Shape::new(3, 2, MemorySize::DEFAULT)?,
        entry: Entry::Image,
        bootargs: "rounds=200".into(),
        extra: Vec::new(),
        timeout: TIMEOUT,
        show: false,
        logs: workspace.logs()?,
    };
    let record = emulator::run(&run, &tools.qemu, &images.software())?;
    if record.passed() {
        return Ok(Verdict::Survived);
    }
    let how = record.console.first_complaint().map_or_else(|| record.sentence(TIMEOUT), str::to_owned);
    Ok(Verdict::Caught(how.trim().to_owned()))
}
