//! A tiny driver, written by hand in raw registers, commands and tables (IHI 0070, DDI 0487), for tests of the model itself: one or more
//! SMMUs with two devices each, and a host whose memory stage 2 moves: its IPAs are not physical addresses.

use crate::model::device::Dma;
use crate::model::memory::Span;
use crate::model::smmu::config::SmmuConfig;
use crate::model::{Machine, RAM_BASE, SMMU_BASE, SMMU_BYTES};

/// A StreamID with a device.
pub const STREAM: u32 = 0x10;
/// Another.
pub const OTHER: u32 = 0x11;
/// S2VMID of what [`nested`] and [`stage2`] make.
pub const VMID: u64 = 7;
/// ASID of what [`Rig::host`] sets up.
pub const ASID: u64 = 5;
/// Linear stream table of 256 STEs.
pub const STREAM_TABLE: u64 = RAM_BASE + 0x10_0000;
const COMMANDS: u64 = RAM_BASE + 0x20_0000;
const EVENTS: u64 = RAM_BASE + 0x28_0000;
/// Stage-2 tables: 39 bits of IPA, levels 1 to 3.
pub const S2_ROOT: u64 = RAM_BASE + 0x30_0000;
/// Level 2 of stage 2.
pub const S2_LEVEL2: u64 = RAM_BASE + 0x31_0000;
/// Level 3 of stage 2: the 2 MiB from [`IPA`].
pub const S2_LEVEL3: u64 = RAM_BASE + 0x32_0000;
/// First IPA of the host's memory.
pub const IPA: u64 = 0x8000_0000;
/// Where that is in physical memory.
pub const HOST: u64 = RAM_BASE + 0x100_0000;
/// The host's CDs (an IPA).
pub const CDS: u64 = IPA;
/// The host's level-3 stage-1 table: entry 0 is for [`VA`] (an IPA). Its levels 1 and 2 are 0x2000 and 0x1000 below.
pub const LEVEL3: u64 = IPA + 0x2_2000;
/// The host's level-2 stage-1 table.
pub const LEVEL2: u64 = IPA + 0x2_1000;
/// The host's first stage-1 table, TTB0: 39 bits of VA.
pub const LEVEL1: u64 = IPA + 0x2_0000;
/// A page of the host (an IPA).
pub const PAGE: u64 = IPA + 0x4_0000;
/// Where the host's stage 1 maps it.
pub const VA: u64 = 0x12_3440_0000;
/// A stage-1 page: AF, SH, AP\[1] (unprivileged), nG, valid page (DDI 0487, D8.3.1).
pub const LEAF1: u64 = 1 << 11 | 1 << 10 | 3 << 8 | 1 << 6 | 3;
/// A stage-2 page: XN, AF, SH, S2AP read and write, MemAttr Normal write-back, valid page.
pub const LEAF2: u64 = 1 << 54 | 1 << 10 | 3 << 8 | 3 << 6 | 0xf << 2 | 3;
/// CMD_SYNC.
pub const SYNC: [u64; 2] = [0x46, 0];

/// Where an IPA of the host is in physical memory.
pub fn physical(ipa: u64) -> u64 {
    ipa - IPA + HOST
}

/// STE word 2 of the stage-2 tables: S2VMID, S2T0SZ 25, S2SL0 1, 4 KiB, S2PS 44 bits, S2AA64, S2AFFD, S2R.
pub const STAGE2: u64 = VMID | 25 << 32 | 1 << 38 | 4 << 48 | 1 << 51 | 1 << 53 | 1 << 58;

/// An STE with stage 2 only.
pub fn stage2() -> [u64; 8] {
    [1 | 0b110 << 1, 0, STAGE2, S2_ROOT, 0, 0, 0, 0]
}

/// An STE with both stages, and one CD at [`CDS`].
pub fn nested() -> [u64; 8] {
    [1 | 0b111 << 1 | CDS, 0, STAGE2, S2_ROOT, 0, 0, 0, 0]
}

/// As [`nested`], with 2^`max` CDs: S1CDMax \[63:59], S1Fmt \[5:4], S1DSS \[1:0].
pub fn nested_with(max: u64, format: u64, dss: u64) -> [u64; 8] {
    let mut ste = nested();
    ste[0] |= max << 59 | format << 4;
    ste[1] |= dss;
    ste
}

/// Adds EATS.
pub fn with_eats(mut ste: [u64; 8], eats: u64) -> [u64; 8] {
    ste[1] |= eats << 28;
    ste
}

/// A CD: T0SZ 25, 4 KiB, EPD1, V, IPS 44 bits, AA64, R, A, ASET, ASID; TTB0.
pub fn cd(asid: u64, table: u64) -> [u64; 8] {
    let zero = 25 | 1 << 30 | 1 << 31 | 4 << 32 | 1 << 41 | 1 << 45 | 1 << 46 | 1 << 47 | asid << 48;
    [zero, table, 0, 0, 0, 0, 0, 0]
}

/// CMD_CFGI_STE.
pub fn cfgi_ste(stream: u32) -> [u64; 2] {
    [3 | u64::from(stream) << 32, 1]
}

/// CMD_CFGI_CD, with the level-1 descriptor unless `leaf`.
pub fn cfgi_cd(stream: u32, ssid: u64, leaf: u64) -> [u64; 2] {
    [5 | ssid << 12 | u64::from(stream) << 32, leaf]
}

/// CMD_CFGI_CD_ALL.
pub fn cfgi_cd_all(stream: u32) -> [u64; 2] {
    [6 | u64::from(stream) << 32, 0]
}

/// CMD_TLBI_NH_ALL.
pub fn nh_all(vmid: u64) -> [u64; 2] {
    [0x10 | vmid << 32, 0]
}

/// CMD_TLBI_NH_ASID.
pub fn nh_asid(vmid: u64, asid: u64) -> [u64; 2] {
    [0x11 | vmid << 32 | asid << 48, 0]
}

/// CMD_TLBI_NH_VA of one address.
pub fn nh_va(vmid: u64, asid: u64, va: u64, leaf: u64) -> [u64; 2] {
    [0x12 | vmid << 32 | asid << 48, va | leaf]
}

/// CMD_TLBI_S12_VMALL.
pub fn s12_vmall(vmid: u64) -> [u64; 2] {
    [0x28 | vmid << 32, 0]
}

/// CMD_TLBI_S2_IPA of one address.
pub fn s2_ipa(vmid: u64, ipa: u64) -> [u64; 2] {
    [0x2a | vmid << 32, ipa]
}

/// CMD_ATC_INV of everything.
pub fn atc_inv_all(stream: u32) -> [u64; 2] {
    [0x40 | u64::from(stream) << 32, 52]
}

/// The machine and its driver.
pub struct Rig {
    /// The machine.
    pub machine: Machine,
    prods: Vec<u32>,
}

impl Rig {
    /// One SMMU, translating, with an empty stream table.
    pub fn new(config: SmmuConfig) -> Self {
        Self::many(&[config])
    }

    /// Several SMMUs, translating, which share one empty stream table.
    pub fn many(configs: &[SmmuConfig]) -> Self {
        let streams = vec![vec![STREAM, OTHER]; configs.len()];
        let mut machine = Machine::new(64 << 20, configs, &streams);
        for (start, size) in [(STREAM_TABLE, 0x1_0000), (S2_ROOT, 0x3_0000), (HOST, 0x20_0000)] {
            machine.memory.wipe(Span::new(start, size));
        }
        machine.write_u64(S2_ROOT + (IPA >> 30) * 8, S2_LEVEL2 | 3);
        machine.write_u64(S2_LEVEL2 + (IPA >> 21 & 511) * 8, S2_LEVEL3 | 3);
        for page in 0..512 {
            machine.write_u64(S2_LEVEL3 + page * 8, (HOST + (page << 12)) | LEAF2);
        }
        let mut rig = Self { machine, prods: vec![0; configs.len()] };
        for (n, config) in configs.iter().enumerate() {
            let base = SMMU_BASE + SMMU_BYTES * n as u64;
            // CMDQEN; with ATS, ATSCHK too.
            let checked = if config.ats() { 1 << 4 } else { 0 };
            let m = &mut rig.machine;
            m.write_register_u32(base + 0x44, 1 << 31 | 1 << 20);
            m.write_register_u64(base + 0x80, STREAM_TABLE);
            m.write_register_u32(base + 0x88, 8);
            m.write_register_u64(base + 0x90, (COMMANDS + 0x1000 * n as u64) | 6);
            m.write_register_u64(base + 0xa0, (EVENTS + 0x1000 * n as u64) | 6);
            m.write_register_u32(base + 0x20, 1 << 3 | checked);
            m.advance(1_000_000);
            rig.commands_on(n, &[[4, 31], [0x30, 0], SYNC]);
            rig.machine.advance(10_000_000);
            rig.machine.write_register_u32(base + 0x20, 1 << 3 | 1 << 2 | 1 | checked);
            rig.machine.advance(1_000_000);
        }
        rig.clean();
        rig
    }

    /// As [`Rig::new`], with both stages and the host's tables: [`VA`] is mapped to [`PAGE`] with [`ASID`].
    pub fn nested(config: SmmuConfig) -> Self {
        let mut rig = Self::new(config);
        rig.host();
        rig.attach(STREAM, nested());
        rig
    }

    /// Writes the host's CD 0 and tables.
    pub fn host(&mut self) {
        self.stage1(|ipa| ipa);
    }

    /// As [`Rig::host`], with physical addresses in the tables and the CD.
    pub fn host_without_stage2(&mut self) {
        self.stage1(physical);
    }

    fn stage1(&mut self, address: impl Fn(u64) -> u64) {
        self.host_write(LEVEL1 + (VA >> 30) * 8, address(LEVEL2) | 3);
        self.host_write(LEVEL2 + (VA >> 21 & 511) * 8, address(LEVEL3) | 3);
        self.host_write(LEVEL3, address(PAGE) | LEAF1);
        self.write_cd(0, cd(ASID, address(LEVEL1)));
    }

    /// A store of the host: to an IPA, seen by nobody but memory.
    pub fn host_write(&mut self, ipa: u64, value: u64) {
        assert!(self.machine.memory.write(physical(ipa), value));
    }

    /// Writes a CD of the linear table.
    pub fn write_cd(&mut self, ssid: u64, cd: [u64; 8]) {
        for (word, offset) in cd.into_iter().zip((0..).step_by(8)) {
            self.host_write(CDS + ssid * 64 + offset, word);
        }
    }

    /// Writes an STE, its first word last, without any command.
    pub fn write_ste(&mut self, stream: u32, ste: [u64; 8]) {
        let at = STREAM_TABLE + u64::from(stream) * 64;
        if self.machine.memory.read(at).is_some_and(|word| word & 1 == 1) {
            self.machine.write_u64(at, 0);
        }
        for (n, word) in ste.into_iter().enumerate().rev() {
            self.machine.write_u64(at + n as u64 * 8, word);
        }
    }

    /// Writes an STE, and CFGI_STE and SYNC.
    pub fn attach(&mut self, stream: u32, ste: [u64; 8]) {
        self.write_ste(stream, ste);
        self.commands(&[cfgi_ste(stream), SYNC]);
    }

    /// Unmaps a page of the host from stage 2.
    pub fn take(&mut self, ipa: u64) {
        self.machine.write_u64(S2_LEVEL3 + (ipa >> 12 & 511) * 8, 0);
    }

    /// Wipes a page of the host, as its next owner would: a violation if anything still reaches it.
    pub fn wipe(&mut self, ipa: u64) {
        self.machine.wipe(Span::new(physical(ipa), 0x1000));
    }

    /// Posts commands to the first SMMU.
    pub fn commands(&mut self, commands: &[[u64; 2]]) {
        self.commands_on(0, commands);
    }

    /// Posts commands to an SMMU.
    pub fn commands_on(&mut self, smmu: usize, commands: &[[u64; 2]]) {
        let queue = COMMANDS + 0x1000 * smmu as u64;
        for command in commands {
            let slot = queue + u64::from(self.prods[smmu] & 63) * 16;
            self.machine.write_u64(slot, command[0]);
            self.machine.write_u64(slot + 8, command[1]);
            self.prods[smmu] = (self.prods[smmu] + 1) & 127;
        }
        let base = SMMU_BASE + SMMU_BYTES * smmu as u64;
        self.machine.write_register_u32(base + 0x98, self.prods[smmu]);
    }

    /// Whether an SMMU has consumed all that was posted.
    pub fn done(&mut self, smmu: usize) -> bool {
        let base = SMMU_BASE + SMMU_BYTES * smmu as u64;
        self.machine.read_register_u32(base + 0x9c) == self.prods[smmu]
    }

    /// A write of the device to [`VA`].
    pub fn dma(&mut self) -> Dma {
        self.machine.dma_write(0, STREAM, VA, 0x55)
    }

    /// Whether that write gets to where both stages put it at first.
    pub fn reaches(&mut self) -> bool {
        match self.dma() {
            Dma::Reached(target) => {
                assert_eq!(target, physical(PAGE));
                true
            }
            Dma::Aborted => false,
        }
    }

    /// The last event of the first SMMU.
    pub fn event(&self) -> [u64; 4] {
        self.machine.smmus[0].events.last().copied().unwrap_or_default()
    }

    /// Fails unless nothing was done wrong.
    pub fn clean(&mut self) {
        let all = self.machine.violations.take();
        assert!(all.is_empty(), "{all:#?}");
    }

    /// Fails unless a violation with these words was recorded.
    pub fn violates(&mut self, what: &str) {
        let all = self.machine.violations.take();
        assert!(all.iter().any(|text| text.contains(what)), "no {what:?} in {all:#?}");
    }
}
