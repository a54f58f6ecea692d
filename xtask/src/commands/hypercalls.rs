//! `cargo xtask hypercalls`: the reference of the hypercalls, printed from their definition.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use abi::{Argument, Call, Statistic, Status};
use anyhow::{Context, Result};
use clap::Args;

use crate::workspace::Workspace;

/// Options of `hypercalls`.
#[derive(Args, Debug)]
pub struct Arguments {
    /// Write nothing; only say whether the file is up to date
    #[arg(long)]
    check: bool,
}

/// Writes the file, or with `--check` answers whether it is up to date.
///
/// # Errors
///
/// The file cannot be read or written.
pub fn run(arguments: &Arguments) -> Result<bool> {
    let (path, text) = (path(), text());
    if !arguments.check {
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        println!("wrote {}", path.display());
        return Ok(true);
    }
    let current = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    if current != text {
        println!("{} is out of date: type `cargo xtask hypercalls`", path.display());
    }
    Ok(current == text)
}

fn path() -> PathBuf {
    Workspace::current().root().join("docs/hypercalls.md")
}

const HEAD: &str = "\
# Hypercalls

<!-- Made from hyp/abi by `cargo xtask hypercalls`; a test fails when it is out of date. -->

Calls are SMCCC 1.1 fast calls (DEN 0028) made with `HVC #0` at EL1, in the range of vendor-specific hypervisor services:
function id in `W0`, arguments in `X1` to `X4`. The answer is a status in `X0` and up to four results in `X1` to `X4`; `X5` to `X17`
are preserved. Unless a call says otherwise, addresses and sizes are in bytes and must be multiples of the
ownership unit that `FEATURES` reports, and **a call that does not return `SUCCESS` has changed nothing**; only
`HARDWARE` may leave pages quarantined. While the machine is being reset or turned off, every call but `CALL_UID`,
`VERSION` and `FEATURES` answers `BUSY`.

A call on a range changes at most one step (`FEATURES`) and answers how far it got; the caller goes on with the rest.
`NO_MEMORY` answers in `X1` how many pages of 4 KiB EL2's pool lacks; `POOL_TOP_UP` gives them.
";

fn text() -> String {
    let mut text = HEAD.to_owned();
    let (major, minor) = (abi::VERSION >> 16, abi::VERSION & 0xffff);
    let uid = abi::UID.map(|word| format!("`{word:#010x}`")).join(", ");
    let _ = writeln!(text, "\nInterface version {major}.{minor}. `CALL_UID` answers {uid}.\n\n## Calls\n");
    text += "| Function id | Name | Arguments | Results |\n| --- | --- | --- | --- |\n";
    for call in abi::TABLE {
        let (id, name) = (call.function.id(), call.name);
        let (arguments, results) = (names(call.arguments), names(call.results));
        let _ =
            writeln!(text, "| `{id:#010x}` | [{name}](#{}) | {arguments} | {results} |", name.to_lowercase());
    }
    for call in abi::TABLE {
        describe(&mut text, call);
    }
    text += "\n## Status\n\n| `X0` | Name | Meaning |\n| --- | --- | --- |\n";
    for &status in Status::ALL {
        let _ = writeln!(text, "| {} | `{}` | {} |", status as i64, status_name(status), status.doc());
    }
    text += "\n## Counters of `STATISTICS`\n\n| Index | Counter | Meaning |\n| --- | --- | --- |\n";
    for &statistic in Statistic::ALL {
        let name = words(&format!("{statistic:?}"));
        let _ = writeln!(text, "| {} | {name} | {} |", statistic as u64, statistic.doc());
    }
    text
}

fn describe(text: &mut String, call: &Call) {
    let _ = writeln!(text, "\n### {}\n\n`{:#010x}`. {}", call.name, call.function.id(), call.doc);
    for (title, registers) in [("Arguments", call.arguments), ("Results", call.results)] {
        if !registers.is_empty() {
            let _ = writeln!(text, "\n{title}:\n");
        }
        for (index, register) in registers.iter().enumerate() {
            let _ = writeln!(text, "- `X{}` *{}*: {}", index + 1, register.name, register.doc);
        }
    }
    if !call.errors.is_empty() {
        let errors: Vec<String> =
            call.errors.iter().map(|&error| format!("`{}`", status_name(error))).collect();
        let _ = writeln!(text, "\nErrors: {}.", errors.join(", "));
    }
}

fn names(registers: &[Argument]) -> String {
    registers.iter().map(|register| register.name).collect::<Vec<_>>().join(", ")
}

/// `NotSupported` as `NOT_SUPPORTED`.
fn status_name(status: Status) -> String {
    words(&format!("{status:?}")).replace(' ', "_").to_uppercase()
}

/// `QuarantinedPages` as `quarantined pages`.
fn words(name: &str) -> String {
    let mut words = String::new();
    for (index, letter) in name.char_indices() {
        if index != 0 && letter.is_uppercase() {
            words.push(' ');
        }
        words.extend(letter.to_lowercase());
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_is_up_to_date() {
        let current = fs::read_to_string(path()).unwrap_or_default();
        assert!(current == text(), "docs/hypercalls.md is out of date: type `cargo xtask hypercalls`");
    }

    #[test]
    fn every_call_is_described_once_and_every_id_is_its_functions() {
        for (index, call) in abi::TABLE.iter().enumerate() {
            assert_eq!(abi::Function::from_id(call.function.id()), Some(call.function), "{}", call.name);
            assert!(
                abi::TABLE[index + 1..].iter().all(|other| other.function != call.function),
                "{}",
                call.name
            );
            assert!(call.arguments.len() <= 4 && call.results.len() <= 4, "{}", call.name);
        }
    }
}
