//! What an SMMU can do: the ID registers together, with the errata (IHI 0070, 6.3.1 to 6.3.7).

mod errata;
mod owner;

pub use errata::Part;

use core::fmt;

use crate::pgtable::{Blocks, Granule};
use crate::registers::{IDR0, IDR1, IDR3, IDR5};

/// The ID registers that features are read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct IdRegisters {
    /// SMMU_IDR0.
    pub idr0: u32,
    /// SMMU_IDR1.
    pub idr1: u32,
    /// SMMU_IDR3.
    pub idr3: u32,
    /// SMMU_IDR5.
    pub idr5: u32,
    /// SMMU_IIDR.
    pub iidr: u32,
}

/// A set of granules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Granules {
    /// 4 KiB.
    pub size_4k: bool,
    /// 16 KiB.
    pub size_16k: bool,
    /// 64 KiB.
    pub size_64k: bool,
}

impl Granules {
    /// No granule.
    pub const NONE: Self = Self { size_4k: false, size_16k: false, size_64k: false };
    /// Every granule.
    pub const ALL: Self = Self { size_4k: true, size_16k: true, size_64k: true };

    /// The granules that are in both.
    pub const fn and(self, other: Self) -> Self {
        Self {
            size_4k: self.size_4k && other.size_4k,
            size_16k: self.size_16k && other.size_16k,
            size_64k: self.size_64k && other.size_64k,
        }
    }

    /// The smallest granule of the set, `None` of an empty one.
    pub const fn smallest(self) -> Option<Granule> {
        match self {
            Self { size_4k: true, .. } => Some(Granule::Size4K),
            Self { size_16k: true, .. } => Some(Granule::Size16K),
            Self { size_64k: true, .. } => Some(Granule::Size64K),
            _ => None,
        }
    }
}

/// What one SMMU can do, after errata.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// Stage 1 is supported.
    pub stage1: bool,
    /// Stage 2 is supported.
    pub stage2: bool,
    /// Both stages at once are supported and work.
    pub nested: bool,
    /// VMSAv8-64 tables are supported.
    pub aarch64_tables: bool,
    /// VMSAv8-32 LPAE tables are supported: their IPAs always have 40 bits.
    pub aarch32_tables: bool,
    /// Tables may be little-endian.
    pub little_endian: bool,
    /// StreamWorld EL2 exists, and with it the commands CMD_TLBI_EL2_* and CR2.E2H.
    pub el2: bool,
    /// Walks, queues and structures are coherent with the CPUs.
    pub coherent: bool,
    /// Broadcast TLB maintenance is heard.
    pub broadcast_tlb: bool,
    /// Hardware updates the access flag of descriptors.
    pub access_flag_updates: bool,
    /// Hardware updates the dirty state of descriptors too.
    pub dirty_updates: bool,
    /// Address Translation Services.
    pub ats: bool,
    /// ATS that translates by stage 1 alone and checks what comes back against stage 2 (EATS = 0b10).
    pub split_stage_ats: bool,
    /// Page Request Interface.
    pub pri: bool,
    /// Message-signalled interrupts.
    pub msi: bool,
    /// A CPU that waits in WFE hears of completed commands and of room in the queue.
    pub sev: bool,
    /// Range invalidation and TTL hints.
    pub range_invalidation: bool,
    /// BBML: 0, 1 or 2.
    pub break_before_make_level: u8,
    /// Faults stall or terminate, as STE and CD say.
    pub configurable_stalls: bool,
    /// Faults always stall.
    pub forced_stalls: bool,
    /// An STE can override the shareability and memory type of transactions.
    pub attribute_override: bool,
    /// Granules of stage-2 tables.
    pub granules: Granules,
    /// Output address size in bits.
    pub oas_bits: u8,
    /// Bits of a virtual address that one table base translates: 48, 52 or 55.
    pub va_bits: u8,
    /// Width of an ASID in bits: 8 or 16.
    pub asid_bits: u8,
    /// Width of a VMID in bits: 8 or 16.
    pub vmid_bits: u8,
    /// Invalidations can match a group of VMIDs (CR0.VMW).
    pub vmid_wildcards: bool,
    /// Width of a StreamID in bits, 0 to 32.
    pub stream_bits: u8,
    /// Width of a SubstreamID in bits, 0 to 20.
    pub substream_bits: u8,
    /// Two-level stream tables are supported.
    pub two_level_stream_table: bool,
    /// Two-level tables of context descriptors are supported.
    pub two_level_cd_table: bool,
    /// log2 of the most commands in a queue.
    pub command_queue_log2: u8,
    /// log2 of the most events in a queue.
    pub event_queue_log2: u8,
    /// Bases of the queues or the stream table are fixed by the hardware.
    pub preset_bases: bool,
    /// Erratum: every batch of invalidations of TLBs and configuration, with its CMD_SYNC, must be issued a second time
    /// when the first is complete. ATC invalidations must not.
    pub repeat_invalidations: bool,
    /// Erratum: a batch must be closed by a CMD_SYNC before its 64th command, instead of going on in another batch.
    pub sync_before_last_slot: bool,
}

impl Features {
    /// An SMMU that can do nothing: a place in a table.
    pub const NONE: Self = Self {
        stage1: false,
        stage2: false,
        nested: false,
        aarch64_tables: false,
        aarch32_tables: false,
        little_endian: false,
        el2: false,
        coherent: false,
        broadcast_tlb: false,
        access_flag_updates: false,
        dirty_updates: false,
        ats: false,
        split_stage_ats: false,
        pri: false,
        msi: false,
        sev: false,
        range_invalidation: false,
        break_before_make_level: 0,
        configurable_stalls: false,
        forced_stalls: false,
        attribute_override: false,
        granules: Granules::NONE,
        oas_bits: 0,
        va_bits: 0,
        asid_bits: 0,
        vmid_bits: 0,
        vmid_wildcards: false,
        stream_bits: 0,
        substream_bits: 0,
        two_level_stream_table: false,
        two_level_cd_table: false,
        command_queue_log2: 0,
        event_queue_log2: 0,
        preset_bases: false,
        repeat_invalidations: false,
        sync_before_last_slot: false,
    };

    /// Reads the features off the ID registers and takes the errata of this revision into account.
    pub fn probe(ids: &IdRegisters) -> Self {
        let idr0 = ids.idr0;
        let set = |field: tock_registers::fields::Field<u32, IDR0::Register>| field.is_set(idr0);
        let (stage1, stage2) = (set(IDR0::S1P), set(IDR0::S2P));
        let mut features = Self {
            stage1,
            stage2,
            nested: stage1 && stage2,
            aarch64_tables: IDR0::TTF.read(idr0) & 0b10 != 0,
            aarch32_tables: IDR0::TTF.read(idr0) & 0b01 != 0,
            little_endian: IDR0::TTENDIAN.read(idr0) != 0b11,
            el2: stage1 && set(IDR0::HYP),
            coherent: set(IDR0::COHACC),
            broadcast_tlb: set(IDR0::BTM),
            access_flag_updates: IDR0::HTTU.read(idr0) != 0,
            dirty_updates: IDR0::HTTU.read(idr0) >= 0b10,
            ats: set(IDR0::ATS),
            // NS1ATS is RES0 where there are not both stages (6.3.1).
            split_stage_ats: stage1 && stage2 && set(IDR0::ATS) && !set(IDR0::NS1ATS),
            pri: set(IDR0::PRI),
            msi: set(IDR0::MSI),
            sev: set(IDR0::SEV),
            range_invalidation: IDR3::RIL.is_set(ids.idr3),
            break_before_make_level: IDR3::BBML.read(ids.idr3) as u8,
            configurable_stalls: IDR0::STALL_MODEL.read(idr0) == 0b00,
            forced_stalls: IDR0::STALL_MODEL.read(idr0) == 0b10,
            attribute_override: IDR1::ATTR_TYPES_OVR.is_set(ids.idr1),
            granules: Granules {
                size_4k: IDR5::GRAN4K.is_set(ids.idr5),
                size_16k: IDR5::GRAN16K.is_set(ids.idr5),
                size_64k: IDR5::GRAN64K.is_set(ids.idr5),
            },
            oas_bits: match IDR5::OAS.read(ids.idr5) {
                0 => 32,
                1 => 36,
                2 => 40,
                3 => 42,
                4 => 44,
                5 => 48,
                // 52 bits, and what later architectures add: tables of this project end at 48 bits.
                _ => 52,
            },
            va_bits: match IDR5::VAX.read(ids.idr5) {
                0 => 48,
                1 => 52,
                _ => 55,
            },
            asid_bits: if set(IDR0::ASID16) { 16 } else { 8 },
            vmid_bits: if set(IDR0::VMID16) { 16 } else { 8 },
            vmid_wildcards: set(IDR0::VMW),
            stream_bits: IDR1::SIDSIZE.read(ids.idr1) as u8,
            substream_bits: IDR1::SSIDSIZE.read(ids.idr1) as u8,
            two_level_stream_table: IDR0::ST_LEVEL.read(idr0) == 0b01,
            two_level_cd_table: set(IDR0::CD2L),
            command_queue_log2: IDR1::CMDQS.read(ids.idr1) as u8,
            event_queue_log2: IDR1::EVENTQS.read(ids.idr1) as u8,
            preset_bases: IDR1::QUEUES_PRESET.is_set(ids.idr1) || IDR1::TABLES_PRESET.is_set(ids.idr1),
            repeat_invalidations: false,
            sync_before_last_slot: false,
        };
        errata::apply_by_id(&mut features, ids);
        features
    }

    /// The same features after the errata of a part, which no register tells of.
    pub fn with_errata_of(mut self, part: Part) -> Self {
        errata::apply_by_part(&mut self, part);
        self
    }

    /// Bits of an IPA that stage 2 takes at the most (3.4, IAS): the output size, or 40 where that is less and
    /// VMSAv8-32 LPAE tables can make IPAs.
    pub const fn ias_bits(&self) -> u8 {
        if self.aarch32_tables && self.oas_bits < 40 { 40 } else { self.oas_bits }
    }

    /// The sizes of leaves that the SMMU walks, one bit each: bit n for `1 << n` bytes. A granule adds its page and its
    /// blocks; an output size of 52 bits, with 64 KiB granules only, blocks of 4 TiB.
    pub const fn page_sizes(&self) -> u64 {
        let mut sizes = 0;
        if self.granules.size_4k {
            sizes |= 1 << 12 | 1 << 21 | 1 << 30;
        }
        if self.granules.size_16k {
            sizes |= 1 << 14 | 1 << 25;
        }
        if self.granules.size_64k {
            sizes |= 1 << 16 | 1 << 29;
            if self.oas_bits >= 52 {
                sizes |= 1 << 42;
            }
        }
        sizes
    }

    /// Why a hypervisor cannot own this SMMU; `None` if it can.
    pub const fn unusable(&self) -> Option<Unusable> {
        if !self.stage2 {
            Some(Unusable::NoStage2)
        } else if !self.aarch64_tables {
            Some(Unusable::NoAarch64Tables)
        } else if !self.little_endian {
            Some(Unusable::BigEndian)
        } else if !self.coherent {
            Some(Unusable::NotCoherent)
        } else if self.granules.smallest().is_none() {
            Some(Unusable::NoGranule)
        } else if self.forced_stalls {
            Some(Unusable::ForcedStalls)
        } else if self.preset_bases {
            Some(Unusable::PresetBases)
        } else if self.command_queue_log2 < 2 || self.stream_bits > 32 {
            Some(Unusable::BadSizes)
        } else {
            None
        }
    }
}

/// Why an SMMU cannot be owned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unusable {
    /// IDR0.S2P is 0.
    NoStage2,
    /// IDR0.TTF has no VMSAv8-64.
    NoAarch64Tables,
    /// IDR0.TTENDIAN is 0b11.
    BigEndian,
    /// IDR0.COHACC is 0.
    NotCoherent,
    /// IDR5 has no granule.
    NoGranule,
    /// IDR0.STALL_MODEL is 0b10.
    ForcedStalls,
    /// IDR1.QUEUES_PRESET or TABLES_PRESET is 1.
    PresetBases,
    /// IDR1 has a command queue of fewer than four entries, or StreamIDs of more than 32 bits.
    BadSizes,
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoStage2 => "it has no stage 2 (IDR0.S2P = 0)",
            Self::NoAarch64Tables => "it cannot walk VMSAv8-64 tables (IDR0.TTF)",
            Self::BigEndian => "its tables are big-endian (IDR0.TTENDIAN = 0b11)",
            Self::NotCoherent => "it is not coherent with the CPUs (IDR0.COHACC = 0)",
            Self::NoGranule => "it has no translation granule (IDR5.GRAN4K, GRAN16K and GRAN64K = 0)",
            Self::ForcedStalls => "its faults always stall (IDR0.STALL_MODEL = 0b10)",
            Self::PresetBases => {
                "its queues or stream table are fixed in memory (IDR1.QUEUES_PRESET, TABLES_PRESET)"
            }
            Self::BadSizes => {
                "its command queue has fewer than four entries or its StreamIDs more than 32 bits (IDR1)"
            }
        })
    }
}

/// The format of a stage-2 table that every SMMU of a set can walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommonFormat {
    /// The smallest granule that all have.
    pub granule: Granule,
    /// The least output address size, at most 48 bits.
    pub oas_bits: u8,
    /// Blocks only if all of them take a change of block size in place (BBML 2).
    pub blocks: Blocks,
}

impl CommonFormat {
    /// The format that all of `features` can walk; `None` if they have no granule in common.
    ///
    /// BBML 1 needs the nT bit while a block changes, which this page table does not set: it counts as none.
    pub fn of<'a>(features: impl Iterator<Item = &'a Features>) -> Option<Self> {
        let mut granules = Granules::ALL;
        let mut oas_bits = 48;
        let mut in_place = true;
        for one in features {
            granules = granules.and(one.granules);
            oas_bits = one.oas_bits.min(oas_bits);
            in_place &= one.break_before_make_level >= 2;
        }
        let blocks = if in_place { Blocks::InPlace } else { Blocks::Never };
        Some(Self { granule: granules.smallest()?, oas_bits, blocks })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The registers of QEMU's model.
    const QEMU: IdRegisters =
        IdRegisters { idr0: 0x0d44_101b, idr1: 0x0273_0010, idr3: 0x1414, idr5: 0x74, iidr: 0 };

    #[test]
    fn the_registers_of_qemu_are_read() {
        let features = Features::probe(&QEMU);
        assert!(features.nested && features.coherent && features.range_invalidation);
        assert!(features.two_level_stream_table && !features.ats && !features.forced_stalls);
        assert_eq!((features.stream_bits, features.vmid_bits, features.oas_bits), (16, 16, 44));
        assert_eq!((features.command_queue_log2, features.event_queue_log2), (19, 19));
        assert_eq!(features.break_before_make_level, 2);
        assert_eq!(features.unusable(), None);
    }

    #[test]
    fn every_bit_that_is_read_changes_its_feature_alone() {
        let base = Features::probe(&QEMU);
        let probe = |bit: u32| Features::probe(&IdRegisters { idr0: QEMU.idr0 ^ 1 << bit, ..QEMU });
        assert_eq!(probe(2), Features { aarch32_tables: true, ..base });
        assert_eq!(probe(6), Features { access_flag_updates: true, ..base });
        assert_eq!(probe(7), Features { access_flag_updates: true, dirty_updates: true, ..base });
        assert_eq!(probe(9), Features { el2: true, ..base });
        assert_eq!(probe(10), Features { ats: true, split_stage_ats: true, ..base });
        assert_eq!(probe(11), base, "NS1ATS says nothing without ATS");
        assert_eq!(probe(13), Features { msi: true, ..base });
        assert_eq!(probe(14), Features { sev: true, ..base });
        assert_eq!(probe(16), Features { pri: true, ..base });
        assert_eq!(probe(17), Features { vmid_wildcards: true, ..base });
        assert_eq!(probe(19), Features { two_level_cd_table: true, ..base });
        assert_eq!(probe(21), Features { little_endian: false, ..base });
        assert_eq!(probe(24), Features { configurable_stalls: true, ..base });
        let no_split = Features::probe(&IdRegisters { idr0: QEMU.idr0 | 0b11 << 10, ..QEMU });
        assert_eq!(no_split, Features { ats: true, ..base });
        let without_stage1 = Features::probe(&IdRegisters { idr0: QEMU.idr0 & !2 | 1 << 9, ..QEMU });
        assert!(!without_stage1.el2 && !without_stage1.nested, "StreamWorld EL2 is of stage 1");
    }

    #[test]
    fn page_sizes_come_from_granules_and_output_size_together() {
        let sizes = |idr5: u32| Features::probe(&IdRegisters { idr5, ..QEMU }).page_sizes();
        assert_eq!(sizes(0x14), 1 << 12 | 1 << 21 | 1 << 30);
        assert_eq!(sizes(0x24), 1 << 14 | 1 << 25);
        assert_eq!(sizes(0x45), 1 << 16 | 1 << 29);
        assert_eq!(sizes(0x46), 1 << 16 | 1 << 29 | 1 << 42);
        assert_eq!(sizes(0x16), 1 << 12 | 1 << 21 | 1 << 30, "4 TiB need the 64 KiB granule");
        assert_eq!(sizes(0x75), sizes(0x15) | sizes(0x25) | sizes(0x45));
    }

    #[test]
    fn the_input_size_is_the_output_size_but_for_lpae() {
        let ias = |ttf: u32, oas: u32| {
            let ids = IdRegisters { idr0: QEMU.idr0 & !0b1100 | ttf << 2, idr5: 0x70 | oas, ..QEMU };
            Features::probe(&ids).ias_bits()
        };
        assert_eq!([0, 1, 2, 5, 6].map(|oas| ias(0b10, oas)), [32, 36, 40, 48, 52]);
        assert_eq!([0, 1, 2, 5, 6].map(|oas| ias(0b11, oas)), [40, 40, 40, 48, 52]);
    }

    #[test]
    fn errata_are_taken_off_what_the_registers_say() {
        let mmu_700 = Features::probe(&IdRegisters { iidr: 0x4870_043b, idr0: QEMU.idr0 | 1 << 5, ..QEMU });
        assert!(!mmu_700.nested && !mmu_700.broadcast_tlb && mmu_700.sync_before_last_slot);
        let base = Features::probe(&QEMU);
        assert_eq!(Part::named("arm,smmu-v3"), None);
        let tegra = base.with_errata_of(Part::named("nvidia,tegra264-smmu").unwrap());
        assert_eq!(tegra, Features { repeat_invalidations: true, ..base });
    }

    #[test]
    fn what_cannot_be_owned_says_why() {
        let probe = |ids: IdRegisters| Features::probe(&ids).unusable();
        assert_eq!(probe(IdRegisters { idr0: QEMU.idr0 & !1, ..QEMU }), Some(Unusable::NoStage2));
        assert_eq!(probe(IdRegisters { idr0: QEMU.idr0 & !0x10, ..QEMU }), Some(Unusable::NotCoherent));
        assert_eq!(probe(IdRegisters { idr5: 4, ..QEMU }), Some(Unusable::NoGranule));
        assert_eq!(probe(IdRegisters { idr0: QEMU.idr0 | 3 << 21, ..QEMU }), Some(Unusable::BigEndian));
        let forced = QEMU.idr0 & !(3 << 24) | 2 << 24;
        assert_eq!(probe(IdRegisters { idr0: forced, ..QEMU }), Some(Unusable::ForcedStalls));
    }

    #[test]
    fn the_common_format_is_what_all_can_walk() {
        let base = Features::probe(&QEMU);
        let only_64k = Granules { size_4k: false, size_16k: false, size_64k: true };
        let without_bbml = Features { break_before_make_level: 1, granules: only_64k, oas_bits: 40, ..base };
        let alone = CommonFormat::of([base].iter()).unwrap();
        assert_eq!((alone.granule, alone.oas_bits, alone.blocks), (Granule::Size4K, 44, Blocks::InPlace));
        let both = CommonFormat::of([base, without_bbml].iter()).unwrap();
        assert_eq!((both.granule, both.oas_bits, both.blocks), (Granule::Size64K, 40, Blocks::Never));
        let only_4k = Granules { size_4k: true, size_16k: false, size_64k: false };
        let apart = Features { granules: only_4k, ..base };
        assert_eq!(CommonFormat::of([without_bbml, apart].iter()), None);
    }
}
