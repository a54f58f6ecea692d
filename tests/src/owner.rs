//! What the owner of a vSMMU keeps in its memory: context descriptors and stage-1 tables (IHI 0070, 5.4; DDI 0487, D8.3), written as
//! an owner does, at addresses of its own that the stage 2 below translates.

use crate::bench::Bench;

/// The entry of the first table that leads to the last one.
const ROOT_INDEX: u64 = 5;

/// Tables of two levels in units of one granule, one after the other from `base`, an address of the parent domain: CDs, first table, last table, CDs of a
/// second level, and pages of data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stage1 {
    /// The first address, a multiple of the unit.
    pub base: u64,
    /// log2 of the granule: that of the ownership unit.
    pub granule_log2: u32,
}

impl Stage1 {
    /// Units before the pages of data.
    pub const TABLES: u64 = 4;
    /// Pages of data.
    pub const PAGES: u64 = 4;
    /// Units in all.
    pub const UNITS: u64 = Self::TABLES + Self::PAGES;

    /// Tables from this address of the parent on.
    pub fn new(bench: &Bench, base: u64) -> Self {
        Self { base, granule_log2: bench.unit().trailing_zeros() }
    }

    /// Bytes of a unit.
    pub const fn unit(&self) -> u64 {
        1 << self.granule_log2
    }

    /// Bits of an input address: what two levels resolve.
    pub const fn ia_bits(&self) -> u32 {
        self.granule_log2 + 2 * (self.granule_log2 - 3)
    }

    /// Address of the linear table of CDs, or of the first level.
    pub const fn cds(&self) -> u64 {
        self.base
    }

    /// Address of the first table.
    pub const fn root(&self) -> u64 {
        self.base + self.unit()
    }

    /// Address of the last table.
    pub const fn last(&self) -> u64 {
        self.base + 2 * self.unit()
    }

    /// Address of the CDs below the first level.
    pub const fn leaf_cds(&self) -> u64 {
        self.base + 3 * self.unit()
    }

    /// Address of a page of data.
    pub const fn page(&self, n: u64) -> u64 {
        self.base + (Self::TABLES + n) * self.unit()
    }

    /// The device's address for an entry of the last table.
    pub const fn va(&self, n: u64) -> u64 {
        ROOT_INDEX << (2 * self.granule_log2 - 3) | n << self.granule_log2
    }

    /// A CD: T0SZ, TG0, EPD1, V, IPS 44 bits, AA64, R, A, ASET, ASID; TTB0.
    pub const fn cd(&self, asid: u64) -> [u64; 8] {
        let tg = match self.granule_log2 {
            12 => 0,
            16 => 1,
            _ => 2,
        };
        let zero = (64 - self.ia_bits()) as u64
            | tg << 6
            | 1 << 30
            | 1 << 31
            | 4 << 32
            | 1 << 41
            | 1 << 45
            | 1 << 46
            | 1 << 47
            | asid << 48;
        [zero, self.root(), 0, 0, 0, 0, 0, 0]
    }

    /// A stage-1 page: AF, SH, AP\[1], nG, valid page.
    pub const fn leaf(ipa: u64) -> u64 {
        ipa | 1 << 11 | 1 << 10 | 3 << 8 | 1 << 6 | 3
    }

    /// Word 0 of what the owner asks for: V, stage 1, S1ContextPtr, S1Fmt, S1CDMax.
    pub const fn word0(&self, cd_max: u64, format: u64) -> u64 {
        1 | 0b101 << 1 | self.cds() | format << 4 | cd_max << 59
    }

    /// Words for stage 1 with one CD.
    pub const fn words(&self) -> [u64; 2] {
        [self.word0(0, 0), SHCFG]
    }

    /// Words for `1 << cd_max` CDs in one table; `dss` says what becomes of transactions without an SSID.
    pub const fn words_with(&self, cd_max: u64, format: u64, dss: u64) -> [u64; 2] {
        [self.word0(cd_max, format), dss | SHCFG]
    }

    /// Writes a CD of the linear table.
    pub fn write_cd(&self, bench: &Bench, parent: u64, ssid: u64, cd: [u64; 8]) -> bool {
        self.write_cd_at(bench, parent, self.cds() + ssid * 64, cd)
    }

    /// Writes a CD at an address, its first word last.
    pub fn write_cd_at(&self, bench: &Bench, parent: u64, at: u64, cd: [u64; 8]) -> bool {
        (0..8).rev().all(|word| bench.owner_write(parent, at + word as u64 * 8, cd[word]))
    }

    /// Writes an entry of the last table: to a page of the parent, or none.
    pub fn write_entry(&self, bench: &Bench, parent: u64, n: u64, page: Option<u64>) -> bool {
        bench.owner_write(parent, self.last() + n * 8, page.map_or(0, Self::leaf))
    }

    /// Writes all: CD 0 with this ASID, and entries 0 to 3 for the pages of data. Whether the owner has all the memory for it.
    pub fn write(&self, bench: &Bench, parent: u64, asid: u64) -> bool {
        let clear = [self.cds(), self.root(), self.last(), self.leaf_cds()]
            .into_iter()
            .all(|table| (0..512).all(|word| bench.owner_write(parent, table + word * 8, 0)));
        clear
            && bench.owner_write(parent, self.root() + ROOT_INDEX * 8, self.last() | 3)
            && (0..Self::PAGES).all(|n| self.write_entry(bench, parent, n, Some(self.page(n))))
            && self.write_cd(bench, parent, 0, self.cd(asid))
    }

    /// Writes the first level of a CD table with 4 KiB leaves, whose first leaf has CD 0 with this ASID.
    pub fn write_two_levels(&self, bench: &Bench, parent: u64, asid: u64) -> bool {
        // 5.3: V [0], L2Ptr [55:12].
        bench.owner_write(parent, self.cds(), self.leaf_cds() | 1)
            && self.write_cd_at(bench, parent, self.leaf_cds(), self.cd(asid))
    }
}

/// SHCFG = 0b01, the incoming shareability: the only one that an owner may ask for.
pub const SHCFG: u64 = 1 << 44;
/// EATS = 0b01: the owner asks for ATS.
pub const EATS: u64 = 1 << 28;
/// Words for a stream that bypasses stage 1.
pub const BYPASS: [u64; 2] = [1 | 0b100 << 1, SHCFG];
/// Words for a stream that aborts.
pub const ABORT: [u64; 2] = [1, 0];

impl Bench {
    /// A store of the owner of a stage-2 domain at one of its addresses, which nobody but memory sees; `false` if it cannot reach it.
    pub fn owner_write(&self, domain: u64, address: u64, value: u64) -> bool {
        let Some(physical) = self.query(domain, address) else { return false };
        let mut machine = self.machine();
        // The host stores through its CPUs' stage 2. No guest runs: its memory is written from outside.
        if domain == 0 && machine.cpu_translate(physical & !7, true).is_err() {
            return false;
        }
        machine.memory.write(physical, value)
    }
}
