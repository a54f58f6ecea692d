//! A disk behind virtio-mmio, which reads and writes memory where its queue says, with no SMMU in front of it.

use super::super::support::{block, cpu_store, cpu_value};
use super::super::{Check, Outcome, Stop};
use super::{Prey, side_doors};
use crate::host::{Abort, Host, SideDoors};
use crate::{attack_worked, fail, text};

// Registers of the legacy interface, which QEMU's transports have (Virtual I/O Device 1.2, 4.2.4).
const MAGIC_VALUE: u64 = 0x00;
const DEVICE_ID: u64 = 0x08;
const GUEST_FEATURES: u64 = 0x20;
const GUEST_PAGE_SIZE: u64 = 0x28;
const QUEUE_SEL: u64 = 0x30;
const QUEUE_NUM: u64 = 0x38;
const QUEUE_ALIGN: u64 = 0x3c;
const QUEUE_PFN: u64 = 0x40;
const QUEUE_NOTIFY: u64 = 0x50;
const STATUS: u64 = 0x70;

const MAGIC: u32 = 0x7472_6976;
const BLOCK_DEVICE: u32 = 2;
/// Status: ACKNOWLEDGE and DRIVER, then DRIVER_OK too.
const DRIVER: u32 = 1 | 2;
const DRIVER_OK: u32 = DRIVER | 4;
const TRANSPORT_BYTES: u64 = 0x200;

/// Entries of the queue, and where its parts are in its memory (2.7.2): descriptors, what the driver offers, what the device used.
const ENTRIES: u64 = 8;
const AVAILABLE: u64 = 16 * ENTRIES;
const USED: u64 = 4096;
/// Request header and status byte (5.2.6), behind the queue.
const HEADER: u64 = 0x2000;
const ANSWER: u64 = 0x2010;
const SECTOR_BYTES: u64 = 512;
/// Descriptor flags: another one follows; the device writes.
const NEXT: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;

pub(super) fn check<H: Host>() -> Check<H> {
    Check {
        name: "virtio-mmio DMA into the hypervisor",
        expected: "each access to all transports aborts, so a disk there reads and writes neither the hypervisor's memory nor a guest's",
        run: attack,
    }
}

/// A disk, with a queue in memory of the host's.
struct Disk<'h, H> {
    host: &'h H,
    base: u64,
    memory: u64,
    requests: u32,
}

impl<'h, H: Host> Disk<'h, H> {
    /// Looks at every transport: `None` if none is a disk.
    fn find(host: &'h H, doors: &SideDoors) -> Result<Option<Self>, Abort> {
        let memory = block(host, 2);
        for base in (0..doors.virtio_mmio_count).map(|n| doors.virtio_mmio + n * TRANSPORT_BYTES) {
            if host.cpu_read_u32(base + MAGIC_VALUE)? == MAGIC
                && host.cpu_read_u32(base + DEVICE_ID)? == BLOCK_DEVICE
            {
                return Ok(Some(Self { host, base, memory, requests: 0 }));
            }
        }
        Ok(None)
    }

    fn start(&self) -> Result<(), Abort> {
        for offset in (0..0x3000).step_by(8) {
            self.host.cpu_write_u64(self.memory + offset, 0)?;
        }
        for (register, value) in [
            (STATUS, 0),
            (STATUS, DRIVER),
            (GUEST_FEATURES, 0),
            (GUEST_PAGE_SIZE, 4096),
            (QUEUE_SEL, 0),
            (QUEUE_NUM, ENTRIES as u32),
            (QUEUE_ALIGN, 4096),
            (QUEUE_PFN, (self.memory / 4096) as u32),
            (STATUS, DRIVER_OK),
        ] {
            self.host.cpu_write_u32(self.base + register, value)?;
        }
        Ok(())
    }

    /// Copies a sector of memory to the disk, or a sector of the disk to memory; whether the device says that it did.
    fn transfer(&mut self, to_disk: bool, sector: u64, memory: u64) -> Result<bool, Abort> {
        let Self { host, memory: queue, .. } = *self;
        host.cpu_write_u64(queue + HEADER, u64::from(to_disk))?;
        host.cpu_write_u64(queue + HEADER + 8, sector)?;
        host.cpu_write_u64(queue + ANSWER, 0xff)?;
        let chain = [
            (queue + HEADER, 16, NEXT, 1),
            (memory, SECTOR_BYTES, if to_disk { NEXT } else { NEXT | WRITE }, 2),
            (queue + ANSWER, 1, WRITE, 0),
        ];
        for ((address, length, flags, next), at) in chain.into_iter().zip((queue..).step_by(16)) {
            host.cpu_write_u64(at, address)?;
            host.cpu_write_u64(at + 8, length | flags << 32 | next << 48)?;
        }
        self.requests += 1;
        host.cpu_write_u32(queue + AVAILABLE, self.requests << 16)?;
        host.cpu_write_u32(self.base + QUEUE_NOTIFY, 0)?;
        let is_used =
            || host.cpu_read_u32(queue + USED).is_ok_and(|used| used >> 16 == self.requests & 0xffff);
        let done = (0..20_000_000).any(|_| is_used());
        Ok(done && host.cpu_read_u64(queue + ANSWER)? & 0xff == 0)
    }
}

/// What was tried: whether the disk copies what is in memory of the host's, and what of `place` comes back by way of the disk.
fn write_and_read_back<H: Host>(
    disk: &mut Disk<'_, H>,
    own: u64,
    place: u64,
    value: u64,
) -> Result<Option<u64>, Stop> {
    let host = disk.host;
    cpu_store(host, own, value)?;
    let mut copy = |to_disk, sector, memory| disk.transfer(to_disk, sector, memory).unwrap_or(false);
    // From the host's memory by the disk to the place, and from there by another sector of the disk back.
    let done = copy(true, 0, own) && copy(false, 0, place) && copy(true, 1, place);
    cpu_store(host, own, 0)?;
    let back = done && copy(false, 1, own);
    let seen = cpu_value(host, own)?;
    Ok(back.then_some(seen))
}

fn attack<H: Host>(host: &H) -> Outcome {
    const VALUE: u64 = 0x0bad_c0de_0bad_c0de;
    let doors = side_doors(host)?;
    let prey = Prey::new(host)?;
    if let Ok(found) = Disk::find(host, &doors) {
        let Some(mut disk) = found else {
            fail!("the transports of virtio-mmio were reached; none has a disk")
        };
        if disk.start().is_err() {
            fail!("the disk behind virtio-mmio at {:#x} was reached", disk.base);
        }
        let own = block(host, 2) + 0x4000;
        let control = write_and_read_back(&mut disk, own, own + 0x1000, VALUE)?;
        for (whose, place) in prey.places() {
            let seen = write_and_read_back(&mut disk, own, place + 0x800, VALUE + 1)?;
            if (control, seen) == (Some(VALUE), Some(VALUE + 1)) {
                let _ = host.cpu_write_u32(disk.base + STATUS, 0);
                attack_worked!(
                    "the disk behind virtio-mmio at {:#x} wrote to {place:#x}, which is {whose}, and read it back",
                    disk.base
                );
            }
        }
        fail!("the disk behind virtio-mmio at {:#x} was reached, and copied {control:x?}", disk.base);
    }
    let mut refused = 0;
    for base in (0..doors.virtio_mmio_count).map(|n| doors.virtio_mmio + n * TRANSPORT_BYTES) {
        for register in [QUEUE_PFN, QUEUE_NOTIFY, STATUS] {
            if host.cpu_write_u32(base + register, 0).is_ok() || host.cpu_read_u32(base + MAGIC_VALUE).is_ok()
            {
                fail!("the transport of virtio-mmio at {base:#x} was reached");
            }
            refused += 1;
        }
    }
    prey.end()?;
    Ok(text!("{refused} stores to {} transports refused", doors.virtio_mmio_count))
}
