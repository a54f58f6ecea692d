//! `cargo xtask mutate`: shows that the tests can fail.
//!
//! Each mutation is one replacement of text in a copy of the tree, built with a target directory of its own. It is caught
//! when a test fails, or the guest fails, panics or hangs. A copy without a mutation must pass first.
//!
//! One that builds out what keeps an attack from its end names the check that makes the attack. That check alone is run, and must say that
//! the attack worked: it is not enough that something fails.

mod model;
mod tree;

use std::collections::BTreeSet;
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
    /// More replacements that it takes.
    #[serde(default)]
    also: Vec<Edit>,
    /// Who must notice.
    caught_by: CaughtBy,
    /// The check, or the test, that must say that its attack worked.
    check: Option<String>,
}

/// One replacement.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Edit {
    /// As of [`Mutation`].
    file: String,
    /// As of [`Mutation`].
    find: String,
    /// As of [`Mutation`].
    replace: String,
}

impl Mutation {
    /// Its replacements, in order.
    fn edits(&self) -> impl Iterator<Item = (&str, &str, &str)> {
        let first = (&*self.file, &*self.find, &*self.replace);
        let others = self.also.iter().map(|edit| (&*edit.file, &*edit.find, &*edit.replace));
        std::iter::once(first).chain(others)
    }
}

/// How a check says that an attack has reached its end.
const ATTACK_WORKED: &str = "attack worked";

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
    /// The tests failed, but the check that was named did not see its attack work; what they said.
    Otherwise(String),
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
        let here = || chosen.iter().filter(|mutation| mutation.caught_by == by);
        // All tests include those that are named.
        let controls: BTreeSet<Option<&str>> = if here().any(|mutation| mutation.check.is_none()) {
            BTreeSet::from([None])
        } else {
            here().map(|mutation| mutation.check.as_deref()).collect()
        };
        for check in controls {
            println!("control, {by:?}, {}: no mutation", check.unwrap_or("all tests"));
            match attempt(&copy, &tools, by, check)? {
                Verdict::Survived => {}
                Verdict::Caught(how) | Verdict::Otherwise(how) => {
                    bail!("the tests fail without a mutation ({how}): type `cargo xtask test`")
                }
            }
        }
    }
    let mut survivors = 0;
    for mutation in &chosen {
        let started = Instant::now();
        copy.apply(mutation)?;
        let verdict = attempt(&copy, &tools, mutation.caught_by, mutation.check.as_deref());
        copy.revert(mutation)?;
        let seconds = started.elapsed().as_secs();
        match verdict {
            Err(error) => {
                survivors += 1;
                println!("BROKEN    {} ({seconds} s): {error:#}", mutation.name);
            }
            Ok(Verdict::Caught(how)) => println!("caught    {} ({seconds} s): {how}", mutation.name),
            Ok(Verdict::Otherwise(how)) => {
                survivors += 1;
                let check = mutation.check.as_deref().unwrap_or_default();
                println!(
                    "OTHERWISE {} ({seconds} s): `{check}` does not say that its attack worked: {how}",
                    mutation.name
                );
            }
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

fn attempt(copy: &Copy, tools: &Tools, by: CaughtBy, check: Option<&str>) -> Result<Verdict> {
    match by {
        CaughtBy::Model => model::attempt(copy.workspace(), TIMEOUT, check),
        CaughtBy::Qemu => in_qemu(copy.workspace(), tools, check),
    }
}

fn in_qemu(workspace: &Workspace, tools: &Tools, check: Option<&str>) -> Result<Verdict> {
    let images = image::build(workspace, tools.standard_library)?;
    let only = check.map_or_else(String::new, |check| format!(" only={}", check.replace(' ', "_")));
    let run = Run {
        name: "mutate",
        shape: Shape::new(3, 4, MemorySize::DEFAULT)?.with_mmio_disk(),
        entry: Entry::Image,
        bootargs: format!("rounds=200{only}"),
        extra: Vec::new(),
        timeout: TIMEOUT,
        silence: None,
        show: false,
        logs: workspace.logs()?,
    };
    let record = emulator::run(&run, &tools.qemu, &images.software())?;
    if record.passed() {
        return Ok(Verdict::Survived);
    }
    if let Some(check) = check {
        return Ok(match record.console.failure_of(check) {
            Some(how) if how.contains(ATTACK_WORKED) => Verdict::Caught(how.trim().to_owned()),
            Some(how) => Verdict::Otherwise(how.trim().to_owned()),
            None => Verdict::Otherwise(record.sentence(TIMEOUT)),
        });
    }
    let how = record.console.first_complaint().map_or_else(|| record.sentence(TIMEOUT), str::to_owned);
    Ok(Verdict::Caught(how.trim().to_owned()))
}
