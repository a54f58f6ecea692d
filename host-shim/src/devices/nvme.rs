//! An NVMe disk (NVM Express Base Specification 1.4): admin queue, one I/O queue, polled.

use crate::bus::Bus;
use crate::host::{Abort, DiskError};

/// PCI class, subclass and programming interface of an NVMe controller.
pub const CLASS: u32 = 0x01_0802;

const CAP: u64 = 0x00;
const CC: u64 = 0x14;
const CSTS: u64 = 0x1c;
const AQA: u64 = 0x24;
const ASQ: u64 = 0x28;
const ACQ: u64 = 0x30;
const DOORBELLS: u64 = 0x1000;

/// CC: enabled, 64-byte submission and 16-byte completion entries, 4 KiB pages.
const CC_ENABLED: u32 = 1 | 6 << 16 | 4 << 20;
const CSTS_READY: u32 = 1 << 0;
const CSTS_FATAL: u32 = 1 << 1;

const ENTRIES: u32 = 16;
const TIMEOUT_NS: u64 = 2_000_000_000;
const NAMESPACE: u32 = 1;
const PAGE: u64 = 0x1000;
/// Bytes written and read back.
const BLOCK: u64 = 4096;

const CREATE_SUBMISSION: u32 = 0x01;
const CREATE_COMPLETION: u32 = 0x05;
const IDENTIFY: u32 = 0x06;
const WRITE: u32 = 0x01;
const READ: u32 = 0x02;

impl From<Abort> for DiskError {
    fn from(Abort: Abort) -> Self {
        Self::Unreachable
    }
}

/// A submission queue with its completion queue.
struct Queue {
    id: u32,
    submission: u64,
    completion: u64,
    tail: u32,
    head: u32,
    phase: u32,
}

impl Queue {
    fn new(id: u32, submission: u64, completion: u64) -> Self {
        Self { id, submission, completion, tail: 0, head: 0, phase: 1 }
    }
}

/// The controller while it is enabled.
struct Controller<'a, B> {
    bus: &'a B,
    bar: u64,
    /// Bytes from one doorbell to the next.
    stride: u64,
}

/// What a command says besides its opcode.
#[derive(Default)]
struct Command {
    namespace: u32,
    data: u64,
    dwords: [u32; 3],
}

/// Brings the controller up, identifies it and its first namespace, writes a block filled from `pattern`, reads it back, and
/// turns the controller off.
///
/// `memory` is 32 KiB, aligned to 4 KiB, that the device may reach.
///
/// # Errors
/// [`DiskError::TimedOut`] also when the controller says that it failed: that is how it takes a DMA that was refused.
pub fn round_trip<B: Bus>(bus: &B, bar: u64, memory: u64, pattern: u64) -> Result<(), DiskError> {
    for address in (memory..memory + 8 * PAGE).step_by(8) {
        bus.write_u64(address, 0)?;
    }
    let stride = 4 << (bus.read_u32(bar + CAP + 4)? & 0xf);
    let controller = Controller { bus, bar, stride };
    let outcome = controller.exercise(memory, pattern);
    controller.disable()?;
    outcome
}

impl<B: Bus> Controller<'_, B> {
    fn exercise(&self, memory: u64, pattern: u64) -> Result<(), DiskError> {
        let [identity, written, read] = [memory + 4 * PAGE, memory + 5 * PAGE, memory + 6 * PAGE];
        self.enable(memory, memory + PAGE)?;
        let mut admin = Queue::new(0, memory, memory + PAGE);
        let mut io = Queue::new(1, memory + 2 * PAGE, memory + 3 * PAGE);
        self.run(&mut admin, IDENTIFY, Command { data: identity, dwords: [1, 0, 0], ..Command::default() })?;
        self.run(&mut admin, IDENTIFY, Command { namespace: NAMESPACE, data: identity, dwords: [0; 3] })?;
        let format = u64::from(self.bus.read_u32(identity + 24)? >> 16 & 0xf);
        let block_bits = self.bus.read_u32(identity + 128 + 4 * format)? >> 16 & 0xff;
        if !(9..=12).contains(&block_bits) {
            return Err(DiskError::Different);
        }
        let blocks = BLOCK as u32 >> block_bits;
        let queue = (ENTRIES - 1) << 16 | io.id;
        self.run(
            &mut admin,
            CREATE_COMPLETION,
            Command { namespace: 0, data: io.completion, dwords: [queue, 1, 0] },
        )?;
        self.run(
            &mut admin,
            CREATE_SUBMISSION,
            Command { namespace: 0, data: io.submission, dwords: [queue, io.id << 16 | 1, 0] },
        )?;
        for offset in (0..BLOCK).step_by(8) {
            self.bus.write_u64(written + offset, pattern ^ offset)?;
        }
        for (opcode, data) in [(WRITE, written), (READ, read)] {
            let command = Command { namespace: NAMESPACE, data, dwords: [0, 0, blocks - 1] };
            self.run(&mut io, opcode, command)?;
        }
        for offset in (0..BLOCK).step_by(8) {
            if self.bus.read_u64(read + offset)? != pattern ^ offset {
                return Err(DiskError::Different);
            }
        }
        Ok(())
    }

    fn enable(&self, submission: u64, completion: u64) -> Result<(), DiskError> {
        self.disable()?;
        self.bus.write_u32(self.bar + AQA, (ENTRIES - 1) << 16 | (ENTRIES - 1))?;
        for (register, address) in [(ASQ, submission), (ACQ, completion)] {
            self.bus.write_u32(self.bar + register, address as u32)?;
            self.bus.write_u32(self.bar + register + 4, (address >> 32) as u32)?;
        }
        self.bus.write_u32(self.bar + CC, CC_ENABLED)?;
        self.wait_ready(true)
    }

    fn disable(&self) -> Result<(), DiskError> {
        self.bus.write_u32(self.bar + CC, 0)?;
        self.wait_ready(false)
    }

    fn wait_ready(&self, ready: bool) -> Result<(), DiskError> {
        let done = || Ok((self.bus.read_u32(self.bar + CSTS)? & CSTS_READY != 0) == ready);
        if self.bus.wait(TIMEOUT_NS, done)? { Ok(()) } else { Err(DiskError::TimedOut) }
    }

    /// Submits one command and waits for its completion.
    fn run(&self, queue: &mut Queue, opcode: u32, command: Command) -> Result<(), DiskError> {
        let entry = queue.submission + u64::from(queue.tail) * 64;
        let dwords = [
            opcode | queue.tail << 16,
            command.namespace,
            0,
            0,
            0,
            0,
            command.data as u32,
            (command.data >> 32) as u32,
            0,
            0,
            command.dwords[0],
            command.dwords[1],
            command.dwords[2],
        ];
        for (index, value) in (0..).zip(dwords) {
            self.bus.write_u32(entry + 4 * index, value)?;
        }
        queue.tail = (queue.tail + 1) % ENTRIES;
        let doorbell = self.bar + DOORBELLS + u64::from(2 * queue.id) * self.stride;
        self.bus.write_u32(doorbell, queue.tail)?;

        let completion = queue.completion + u64::from(queue.head) * 16 + 12;
        let mut status = 0;
        let mut fatal = false;
        let done = || {
            status = self.bus.read_u32(completion)? >> 16;
            fatal = self.bus.read_u32(self.bar + CSTS)? & CSTS_FATAL != 0;
            Ok(status & 1 == queue.phase || fatal)
        };
        let answered = self.bus.wait(TIMEOUT_NS, done)?;
        if !answered || fatal {
            return Err(DiskError::TimedOut);
        }
        queue.head = (queue.head + 1) % ENTRIES;
        if queue.head == 0 {
            queue.phase ^= 1;
        }
        self.bus.write_u32(doorbell + self.stride, queue.head)?;
        match status >> 1 {
            0 => Ok(()),
            code => Err(DiskError::Command(code as u16)),
        }
    }
}
