//! The EL1 image: what makes a host of a bare CPU.
//!
//! All `unsafe` code of the package is in here.

mod bench;
mod calls;
mod console;
mod cpu;
mod drive;
mod entry;
mod firmware;
mod fuzz;
mod hostile;
mod interrupts;
mod kept;
mod machine;
mod mmu;
mod probe;
mod profiling;
mod psci;
mod smp;
mod vectors;

use console::println;
use dtoolkit::fdt::Fdt;
use host_shim::checks::{self, Tally};
use host_shim::tree::{self, Tree};
use machine::Machine;

/// The first CPU, from `entry.rs`: on its stack, MMU off, relocated, with this device tree.
extern "C" fn boot_primary(device_tree: u64) -> ! {
    console::init(console::DEFAULT_UART);
    let Some(blob) = device_tree_bytes(device_tree) else {
        println!("no device tree at {device_tree:#x}");
        end(false);
    };
    let fdt = match Fdt::new(blob) {
        Ok(fdt) => fdt,
        Err(error) => {
            println!("the device tree at {device_tree:#x} is malformed: {error}");
            end(false);
        }
    };
    let tree = tree::read(&fdt);
    if tree.uart != 0 {
        console::init(tree.uart);
    }
    psci::init(tree.conduit);
    mmu::build(&tree);
    mmu::enable();
    cpu::set_index(0);
    smp::mark_stacks();
    println!(
        "host-shim at EL1, {} CPUs, {} root complexes",
        tree.cpus.iter().count(),
        tree.roots.iter().count()
    );
    let blob_run = tree::Run { start: device_tree, size: blob.len() as u64 };
    let passed = run(&tree, tree::bootargs(&fdt), blob_run);
    if let Some(cpu) = smp::overflowed() {
        println!("FAIL the stack of CPU {cpu} is too small for this");
        end(false);
    }
    end(passed);
}

/// Rounds of the check with all CPUs at once, unless the boot arguments say `rounds=N`.
const ROUNDS: u32 = 10_000;

/// Runs what the boot arguments ask for; whether it went well.
fn run(tree: &Tree, bootargs: &str, device_tree: tree::Run) -> bool {
    let mut words = bootargs.split_ascii_whitespace();
    let rounds = words.clone().find_map(|word| word.strip_prefix("rounds=")?.parse().ok());
    let instruction_log2_ns = words.clone().find_map(|word| word.strip_prefix("icount=")?.parse().ok());
    let Some(machine) = Machine::new(tree, device_tree, rounds.unwrap_or(ROUNDS), instruction_log2_ns) else {
        println!("no 16 MiB of RAM are free, or a PCI config space is out of reach");
        return false;
    };
    machine.describe();
    if words.clone().any(|word| word == "bench") {
        return bench::run(&machine);
    }
    if words.clone().any(|word| word == "fuzz") {
        return fuzz::run(&machine, words);
    }
    if words.clone().any(|word| word == "devices") {
        return drive::run(&machine);
    }
    let only = words.find_map(|word| word.strip_prefix("only="));
    let wanted = |name: &str| only.is_none_or(|only| matches(name, only));
    let all = checks::all::<Machine>()
        .chain(firmware::checks())
        .chain([profiling::CHECK])
        .chain(kept::CHECKS)
        .chain(hostile::checks());
    let tally = checks::run(&machine, all.filter(|check| wanted(check.name)));
    summary(&machine, tally);
    tally.failed == 0 && tally.passed > 0
}

/// Whether a check's name contains the word, in which `_` stands for a space too.
fn matches(name: &str, word: &str) -> bool {
    let same = |(a, b): (u8, u8)| a == b || (a, b) == (b' ', b'_');
    name.as_bytes().windows(word.len().max(1)).any(|part| part.iter().copied().zip(word.bytes()).all(same))
}

fn summary(machine: &Machine, tally: Tally) {
    println!("");
    if tally.passed == 0 && tally.failed == 0 {
        println!("No check was run.");
    } else if tally.failed == 0 {
        println!(
            "Behind {} SMMUs every device reached what its owner gave it and nothing else, and the CPUs were kept to the host's memory.",
            machine.smmu_count()
        );
    } else {
        println!(
            "The hypervisor does not keep all of its promises on this machine: see the lines that begin with FAIL."
        );
    }
    if tally.not_applicable != 0 {
        println!("{} checks do not apply to this machine.", tally.not_applicable);
    }
    println!("{} passed, {} failed", tally.passed, tally.failed);
}

/// Says how it went and turns the machine off.
fn end(passed: bool) -> ! {
    println!("outcome: {}", if passed { "pass" } else { "fail" });
    psci::system_off()
}

/// The device tree's bytes; `None` when there is none at that address.
fn device_tree_bytes(address: u64) -> Option<&'static [u8]> {
    const MAGIC: u32 = 0xd00d_feed;
    const MOST: usize = 2 << 20;
    if address == 0 || !address.is_multiple_of(8) {
        return None;
    }
    let header = address as *const u32;
    // SAFETY: the boot protocol says that X0 is the address of a device tree, aligned to 8 bytes, in RAM that nobody writes.
    let (magic, size) =
        unsafe { (u32::from_be(header.read_volatile()), u32::from_be(header.add(1).read_volatile())) };
    let size = usize::try_from(size).ok()?;
    if magic != MAGIC || size > MOST {
        return None;
    }
    // SAFETY: as above, and the tree says that it is this long.
    Some(unsafe { core::slice::from_raw_parts(address as *const u8, size) })
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    console::force_unlock();
    println!("host-shim: {info}");
    end(false)
}
