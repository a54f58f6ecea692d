//! Instructions and entries of EL2, from QEMU's log.
//!
//! The virtual counter cannot tell EL2's instructions from Linux's, and a counter in the hypervisor would not be the image that is
//! released. QEMU's log can: with one instruction a translation block (`one-insn-per-tb`) and blocks that do not jump to one another
//! (`nochain`) it has a line for each instruction that is executed (`exec`), and a filter leaves those in the text of EL2 (`-dfilter`).
//! Linux never executes there: its kernel is at the top of the address space and a program of its own is below 1 GiB or at random far above.
//!
//! The same log has the bytes that the guest writes to its UART, so what the guest says cuts the stream exactly, and the exceptions
//! (`int`), each with the reason that ESR_EL2 gives.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};

use crate::emulator;
use crate::image::Image;

/// Arguments that make QEMU log this, where the hypervisor is an `Image`.
pub fn arguments(hypervisor: &Image) -> Vec<String> {
    let first = emulator::HYPERVISOR_ADDRESS;
    let last = first + hypervisor.sizes.text - 1;
    let filter = format!("{first:#x}..{last:#x}");
    let words = ["-accel", "tcg,one-insn-per-tb=on", "-d", "exec,nochain,int,trace:pl011_write", "-dfilter"];
    words.iter().map(|word| (*word).to_owned()).chain([filter]).collect()
}

/// What EL2 did in some time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Instructions.
    pub instructions: u64,
    /// Entries from EL1 and EL0, by exception class (ESR_EL2.EC).
    pub entries: BTreeMap<u8, u64>,
}

/// What EL2 did between two lines of the guest's that begin with `phase: `.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Phase {
    /// The first word after `phase: `: what was done.
    pub name: String,
    /// The second: how often.
    pub count: u64,
    /// What EL2 did for it.
    pub work: Work,
}

/// Reads a log to its end.
pub fn read(log: impl Read) -> Vec<Phase> {
    let mut reader = BufReader::with_capacity(1 << 20, log);
    let (mut parser, mut line) = (Parser::default(), Vec::new());
    while reader.read_until(b'\n', &mut line).is_ok_and(|bytes| bytes != 0) {
        parser.line(&line);
        line.clear();
    }
    parser.phases
}

/// The phase of this name and count.
pub fn find<'a>(phases: &'a [Phase], name: &str, count: u64) -> Option<&'a Work> {
    let found = phases.iter().find(|phase| phase.name == name && phase.count == count);
    found.map(|phase| &phase.work)
}

#[derive(Default)]
struct Parser {
    /// Since the last line that begins a phase.
    work: Work,
    /// The phase that goes on.
    open: Option<(String, u64)>,
    /// What the guest wrote since its last line feed.
    uart: Vec<u8>,
    /// The last exception was taken to EL2, and its syndrome comes next.
    enters: bool,
    phases: Vec<Phase>,
}

impl Parser {
    fn line(&mut self, line: &[u8]) {
        if line.starts_with(b"Trace ") {
            self.work.instructions += 1;
        } else if line.starts_with(b"Stopped execution ") {
            // The block of the line before was not executed, and has a line again when it is.
            self.work.instructions = self.work.instructions.saturating_sub(1);
        } else if let Some(rest) = line.strip_prefix(b"pl011_write ") {
            if let Some(byte) = uart_byte(rest) {
                self.uart_byte(byte);
            }
        } else if let Some(rest) = line.strip_prefix(b"...from EL") {
            self.enters = rest.starts_with(b"1 to EL2") || rest.starts_with(b"0 to EL2");
        } else if let Some(rest) = line.strip_prefix(b"...with ESR 0x") {
            if std::mem::take(&mut self.enters)
                && let Some(class) = hexadecimal(rest)
            {
                *self.work.entries.entry(class as u8).or_default() += 1;
            }
        } else if line.starts_with(b"qemu-system-") {
            emulator::complain(String::from_utf8_lossy(line).trim_end());
        }
    }

    fn uart_byte(&mut self, byte: u8) {
        if byte != b'\n' {
            self.uart.push(byte);
            return;
        }
        let text = String::from_utf8_lossy(&std::mem::take(&mut self.uart)).into_owned();
        let Some(rest) = text.trim().strip_prefix("phase: ") else { return };
        let work = std::mem::take(&mut self.work);
        if let Some((name, count)) = self.open.take() {
            self.phases.push(Phase { name, count, work });
        }
        let mut words = rest.split_whitespace();
        if let (Some(name), Some(Ok(count))) = (words.next(), words.next().map(str::parse)) {
            self.open = Some((name.to_owned(), count));
        }
    }
}

/// The byte of a store to the data register: `addr 0x000 value 0x00000041 reg DR`.
fn uart_byte(rest: &[u8]) -> Option<u8> {
    let value = rest.strip_prefix(b"addr 0x000 value 0x")?;
    Some(hexadecimal(value)? as u8)
}

/// The number that a text begins with.
fn hexadecimal(text: &[u8]) -> Option<u64> {
    let end = text.iter().position(|byte| !byte.is_ascii_hexdigit()).unwrap_or(text.len());
    u64::from_str_radix(std::str::from_utf8(text.get(..end)?).ok()?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(text: &str) -> String {
        text.bytes().map(|byte| format!("pl011_write addr 0x000 value 0x{byte:08x} reg DR\n")).collect()
    }

    const INSTRUCTION: &str = "Trace 0: 0x7f04e4000900 [100000000400/0000000040200000/000004a1/ff022201] \n";
    const STOPPED: &str = "Stopped execution of TB chain before 0x7f04e4000f40 [00000000402011a0] \n";
    const TRAP: &str =
        "Taking exception 4 [Data Abort] on CPU 0\n...from EL1 to EL2\n...with ESR 0x24/0x93c08044\n";
    const SYSTEM_CALL: &str =
        "Taking exception 2 [SVC] on CPU 0\n...from EL0 to EL1\n...with ESR 0x15/0x56000000\n";

    #[test]
    fn what_the_guest_says_cuts_the_stream() {
        let mut log = INSTRUCTION.repeat(3) + TRAP;
        log += &said("booted\r\nphase: read 2\r\n");
        // An interrupt register of the UART is no byte.
        log += "pl011_write addr 0x038 value 0x00000010 reg IMSC\n";
        log += &[INSTRUCTION, TRAP, INSTRUCTION, SYSTEM_CALL, INSTRUCTION, STOPPED, TRAP].concat();
        log += &said("phase: end 0\nphase: read 4\n");
        log += INSTRUCTION;
        let phases = read(log.as_bytes());
        assert_eq!(phases.len(), 2, "the last one has no end");
        let work = find(&phases, "read", 2).expect("it was cut");
        assert_eq!(*work, Work { instructions: 2, entries: BTreeMap::from([(0x24, 2)]) });
        assert_eq!(find(&phases, "end", 0), Some(&Work::default()));
        assert_eq!(find(&phases, "read", 4), None);
    }

    #[test]
    fn bytes_that_mean_nothing_do_no_harm() {
        assert_eq!(read(&b"\xff\xfe\n\n...with ESR 0x\npl011_write addr\nTrace"[..]), []);
    }
}
