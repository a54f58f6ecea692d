//! Set-up, build, run, test, measure and debug: `cargo xtask COMMAND`.

mod commands;
mod console;
mod emulator;
mod image;
mod linux;
mod machine;
mod panics;
mod payload;
mod progress;
mod setup;
mod sources;
#[cfg(test)]
mod unsafe_code;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Everything that is done with this project, set-up included.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Finds or fetches what is needed to build and run, and says what it took and from where
    Setup(commands::setup::Arguments),
    /// Builds the hypervisor and the host program, and prints their sizes
    Build,
    /// Boots the hypervisor with a host in QEMU; the exit status is the outcome of the guest
    Run(commands::run::Arguments),
    /// Runs all tests: on this machine, then in QEMU in several machine shapes
    Test(commands::test::Arguments),
    /// Boots as `run` does, but QEMU waits for the debugger; prints the debugger's command
    Gdb(commands::gdb::Arguments),
    /// Runs once with QEMU's trace of its SMMUs, and shows commands, faults and translations as text
    Trace(commands::trace::Arguments),
    /// Attacks with what machines make up, the library or the machine; the exit status says whether nothing was found
    Fuzz(commands::fuzz::Arguments),
    /// Counts instructions and compares them with the limits; the exit status says whether all are kept
    Bench(commands::bench::Arguments),
    /// Counts the lines of the library that tests and the inputs of fuzzers run; the exit status says whether they are enough
    Coverage(commands::coverage::Arguments),
    /// Builds with one deliberate fault at a time; the exit status says whether the tests caught every one
    Mutate(commands::mutate::Arguments),
    /// Writes docs/hypercalls.md from the definitions in the `abi` crate
    Hypercalls(commands::hypercalls::Arguments),
    /// Prints where the host might make the hypervisor panic; the exit status says whether each place has its reason in panics.toml
    Panics,
    /// Removes what was built, and with --all what set-up fetched
    Clean(commands::clean::Arguments),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = emulator::end_on_signal().and_then(|()| match arguments.command {
        Command::Setup(arguments) => commands::setup::run(&arguments),
        Command::Build => commands::build::run(),
        Command::Run(arguments) => commands::run::run(&arguments),
        Command::Test(arguments) => commands::test::run(&arguments),
        Command::Gdb(arguments) => commands::gdb::run(&arguments),
        Command::Trace(arguments) => commands::trace::run(&arguments),
        Command::Fuzz(arguments) => commands::fuzz::run(&arguments),
        Command::Bench(arguments) => commands::bench::run(&arguments),
        Command::Coverage(arguments) => commands::coverage::run(&arguments),
        Command::Mutate(arguments) => commands::mutate::run(&arguments),
        Command::Hypercalls(arguments) => commands::hypercalls::run(&arguments),
        Command::Panics => commands::panics::run(),
        Command::Clean(arguments) => commands::clean::run(&arguments),
    });
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            for cause in error.chain().skip(1) {
                eprintln!("because: {cause}");
            }
            ExitCode::from(2)
        }
    }
}
