//! What a program needs of Linux: its start, system calls, processes, files, memory, PCI functions. All `unsafe` code of the package is in here.

mod calls;
mod file;
mod heap;
mod memory;
mod physical;
mod process;
mod start;
pub mod vfio;

use alloc::format;
use alloc::string::String;

pub use file::{Access, File, open_module};
pub use memory::{Own, PAGE_BYTES, Registers};
pub use physical::{Machine, layout};

/// Offset of the Command register of a PCI function.
const COMMAND: u64 = 4;
/// Command: memory space and bus master.
const MEMORY_AND_MASTER: u16 = 1 << 1 | 1 << 2;

/// Lets a PCI function do DMA and answer accesses; its configuration is in a file at an offset.
fn enable(file: &File, config: u64) -> Result<(), String> {
    let mut command = [0; 2];
    if file.read_at(config + COMMAND, &mut command) == Ok(true) {
        let command = u16::from_le_bytes(command) | MEMORY_AND_MASTER;
        if file.write_at(config + COMMAND, &command.to_le_bytes()) == Ok(true) {
            return Ok(());
        }
    }
    Err("the function's Command register cannot be read and written: be root".into())
}

/// The first page of the first BAR of a PCI function that no driver has, for example `0000:00:02.0`, which may do DMA then.
///
/// # Errors
///
/// There is no such function, or this user may not.
pub fn function(name: &str) -> Result<Registers, String> {
    let path = |file: &str| format!("/sys/bus/pci/devices/{name}/{file}");
    enable(&File::open(&path("config"), Access::ReadWrite)?, 0)?;
    let resource = path("resource0");
    let registers = Registers::new(&File::open(&resource, Access::ReadWrite)?, 0);
    registers.map_err(|error| format!("{resource} cannot be mapped: Linux's error {}", error.0))
}
