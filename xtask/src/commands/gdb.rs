//! `cargo xtask gdb`.

use std::net::{Ipv4Addr, TcpListener};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;

use super::run::{Machine, Prepared};
use crate::emulator;
use crate::workspace::Workspace;

/// Options of `gdb`.
#[derive(Args, Debug)]
pub struct Arguments {
    #[command(flatten)]
    machine: Machine,
    /// TCP port that QEMU's debug stub listens on
    #[arg(long, default_value_t = 1234, value_parser = clap::value_parser!(u16).range(1..))]
    port: u16,
}

/// Starts QEMU halted before the first instruction, and prints the debugger's command.
///
/// # Errors
///
/// The port is in use, or as `run`.
pub fn run(arguments: &Arguments) -> Result<bool> {
    let port = arguments.port;
    let workspace = Workspace::current();
    let mut run = arguments.machine.run("gdb", &workspace, Duration::MAX, false)?;
    // Looked at before the build, so that the user hears of it at once.
    drop(TcpListener::bind((Ipv4Addr::LOCALHOST, port)).with_context(|| {
        let next = if port == u16::MAX { 1234 } else { port + 1 };
        format!("port {port} is in use: type `cargo xtask gdb --port {next}`")
    })?);
    let Prepared { qemu, software, symbols } = arguments.machine.prepare(&workspace)?;
    run.extra.extend(["-S".into(), "-gdb".into(), format!("tcp:127.0.0.1:{port}")]);
    let mut symbols = symbols.iter().map(|file| file.display());
    let first = symbols.next().map(|file| format!(" {file}")).unwrap_or_default();
    println!("QEMU waits for a debugger on port {port}; end it with Ctrl-C. Type in another terminal:\n");
    println!(
        "    gdb-multiarch -ex 'set architecture aarch64' -ex 'target remote 127.0.0.1:{port}'{first}\n"
    );
    println!("then `continue`.");
    for host in symbols {
        println!("Symbols of the host program: `add-symbol-file {host}`");
    }
    println!();
    emulator::attached(&run, &qemu, &software, false)?;
    Ok(true)
}
