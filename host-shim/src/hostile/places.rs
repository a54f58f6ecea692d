//! Places in the host's memory that an attack knows: a stage 1 for devices, what drivers of emulated SMMUs keep, and pages for everything.
//!
//! All lie in the first units of [`Host::scratch`](crate::host::Host::scratch), where donations mostly go to, too.

use crate::devices::gic::lpis::TABLE_BYTES;

/// log2 of the units of [`Places`] that donations mostly take.
pub const NEAR_LOG2: u32 = 7;
/// Units of stage 1: descriptors, two levels of tables, and pages of data from here on.
const DATA: u64 = 4;
/// The unit of commands for vSMMUs.
const COMMANDS: u64 = 12;
/// First unit of the first driver; each has this many.
const DRIVERS: u64 = 16;
const DRIVER_UNITS: u64 = 8;
/// First unit of what an ITS has: its queue, two tables, and ITTs after them.
const ITS: u64 = 80;
/// First unit of the tables of LPIs: of configuration, and of pending LPIs.
const LPIS: u64 = 96;
/// The entry of the first stage-1 table that leads to the last one.
const ROOT_INDEX: u64 = 5;

/// Where everything is.
#[derive(Clone, Copy, Debug)]
pub struct Places {
    /// First byte of the host's memory for this.
    pub scratch: u64,
    /// The ownership unit in bytes: a power of two from 4 KiB.
    pub unit: u64,
}

impl Places {
    /// The `n`-th unit.
    pub const fn unit(&self, n: u64) -> u64 {
        self.scratch + n * self.unit
    }

    /// log2 of the unit.
    pub const fn log2(&self) -> u32 {
        self.unit.trailing_zeros()
    }

    /// The linear table of context descriptors.
    pub const fn contexts(&self) -> u64 {
        self.unit(0)
    }

    /// The first stage-1 table.
    const fn root(&self) -> u64 {
        self.unit(1)
    }

    /// The last one.
    const fn last(&self) -> u64 {
        self.unit(2)
    }

    /// Where a device finds entry `n` of the last table.
    pub const fn virtual_address(&self, n: u64) -> u64 {
        ROOT_INDEX << (2 * self.log2() - 3) | n << self.log2()
    }

    /// Commands for the owners of vSMMUs.
    pub const fn commands(&self) -> u64 {
        self.unit(COMMANDS)
    }

    /// Pages for such commands: another one when the first is not the host's.
    pub fn command_pages(&self) -> impl Iterator<Item = u64> + use<> {
        let places = *self;
        (COMMANDS..DRIVERS).map(move |unit| places.unit(unit))
    }

    /// The words of stage 1 with this ASID, by their addresses (IHI 0070, 5.4; DDI 0487, D8.3): context descriptor 0, the entry of the first table,
    /// and those of the last one.
    pub fn stage1(&self, asid: u64) -> [(u64, u64); 8] {
        let granule = match self.log2() {
            12 => 0,
            16 => 1,
            _ => 2,
        };
        // T0SZ of what two levels resolve, TG0, EPD1, V, IPS 44 bits, AA64, R, A, ASET, ASID.
        let input_bits = u64::from(self.log2() + 2 * (self.log2() - 3));
        let flags = 1 << 30 | 1 << 31 | 4 << 32 | 1 << 41 | 1 << 45 | 1 << 46 | 1 << 47;
        let descriptor = (64 - input_bits) | granule << 6 | flags | asid << 48;
        let entry = |n| (self.last() + 8 * n, Self::leaf(self.unit(DATA + n)));
        [
            (self.contexts() + 8, self.root()),
            (self.contexts(), descriptor),
            (self.root() + 8 * ROOT_INDEX, self.last() | 3),
            entry(0),
            entry(1),
            entry(2),
            entry(3),
            (self.last() + 8 * 4, Self::leaf(self.unit(3))),
        ]
    }

    /// Where entry `n` of the last table is.
    pub const fn entry(&self, n: u64) -> u64 {
        self.last() + 8 * n
    }

    /// A stage-1 page: AF, SH, AP\[1], nG, valid (DDI 0487, D8.3.1).
    pub const fn leaf(page: u64) -> u64 {
        page | 1 << 11 | 1 << 10 | 3 << 8 | 1 << 6 | 3
    }

    const fn driver(&self, smmu: usize, unit: u64) -> u64 {
        self.unit(DRIVERS + DRIVER_UNITS * (smmu as u64 % 8) + unit)
    }

    /// The stream table of a driver: the first level.
    pub const fn stream_table(&self, smmu: usize) -> u64 {
        self.driver(smmu, 0)
    }

    /// Its command queue.
    pub const fn command_queue(&self, smmu: usize) -> u64 {
        self.driver(smmu, 1)
    }

    /// Its event queue.
    pub const fn event_queue(&self, smmu: usize) -> u64 {
        self.driver(smmu, 2)
    }

    /// The second level of its stream table, of 256 entries, for every bus.
    pub const fn stream_entries(&self, smmu: usize) -> u64 {
        self.driver(smmu, 4)
    }

    /// The command queue of the ITS: a page.
    pub const fn its_queue(&self) -> u64 {
        self.unit(ITS)
    }

    /// Its tables, a page each.
    pub const fn its_tables(&self) -> [u64; 2] {
        [self.unit(ITS + 1), self.unit(ITS + 2)]
    }

    /// The ITT of a device, one of four; 256 bytes.
    pub const fn translation_table(&self, device: u64) -> u64 {
        self.unit(ITS + 3 + device % 4)
    }

    /// The configuration and the pending table of a Redistributor. All have one configuration table.
    pub const fn lpi_tables(&self, redistributor: u64) -> (u64, u64) {
        let first = self.unit(LPIS);
        (first, first + (1 + redistributor % 4) * TABLE_BYTES)
    }
}
