//! What an SMMU can do: the ID registers together, with the errata (IHI 0070, 6.3.1 to 6.3.7).

use core::fmt;

use crate::pgtable::{Blocks, Granule};
use crate::registers::{IDR0, IDR1, IDR3, IDR5, IIDR};

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
    /// Walks, queues and structures are coherent with the CPUs.
    pub coherent: bool,
    /// Broadcast TLB maintenance is heard.
    pub broadcast_tlb: bool,
    /// Address Translation Services.
    pub ats: bool,
    /// Range invalidation and TTL hints.
    pub range_invalidation: bool,
    /// BBML: 0, 1 or 2.
    pub break_before_make_level: u8,
    /// Faults always stall.
    pub forced_stalls: bool,
    /// Granules of stage-2 tables.
    pub granules: Granules,
    /// Output address size in bits.
    pub oas_bits: u8,
    /// Width of an ASID in bits: 8 or 16.
    pub asid_bits: u8,
    /// Width of a VMID in bits: 8 or 16.
    pub vmid_bits: u8,
    /// Width of a StreamID in bits, 0 to 32.
    pub stream_bits: u8,
    /// Width of a SubstreamID in bits, 0 to 20.
    pub substream_bits: u8,
    /// Two-level stream tables are supported.
    pub two_level_stream_table: bool,
    /// log2 of the most commands in a queue.
    pub command_queue_log2: u8,
    /// log2 of the most events in a queue.
    pub event_queue_log2: u8,
    /// Bases of the queues or the stream table are fixed by the hardware.
    pub preset_bases: bool,
}

/// One row of the errata: which revisions it concerns, and what it takes from their features.
struct Erratum {
    implementer: u32,
    product: u32,
    /// First revision (r, p) without the erratum.
    fixed_in: (u32, u32),
    apply: fn(&mut Features),
}

const ARM: u32 = 0x43b;

/// The errata that change what may be used, as their Software Developer Errata Notices give them.
const ERRATA: &[Erratum] = &[
    // MMU-600, 1209401: nested translation.
    Erratum { implementer: ARM, product: 0x483, fixed_in: (2, 0), apply: |features| features.nested = false },
    // MMU-700, 2268618 and 2812531: nested translation; 2812531: broadcast TLB maintenance.
    Erratum {
        implementer: ARM,
        product: 0x487,
        fixed_in: (1, 1),
        apply: |features| {
            features.nested = false;
            features.broadcast_tlb = false;
        },
    },
];

impl Features {
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
            coherent: set(IDR0::COHACC),
            broadcast_tlb: set(IDR0::BTM),
            ats: set(IDR0::ATS),
            range_invalidation: IDR3::RIL.is_set(ids.idr3),
            break_before_make_level: IDR3::BBML.read(ids.idr3) as u8,
            forced_stalls: IDR0::STALL_MODEL.read(idr0) == 0b10,
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
                // 52 bits, and what is reserved: tables of this project end at 48 bits.
                _ => 52,
            },
            asid_bits: if set(IDR0::ASID16) { 16 } else { 8 },
            vmid_bits: if set(IDR0::VMID16) { 16 } else { 8 },
            stream_bits: IDR1::SIDSIZE.read(ids.idr1) as u8,
            substream_bits: IDR1::SSIDSIZE.read(ids.idr1) as u8,
            two_level_stream_table: IDR0::ST_LEVEL.read(idr0) == 0b01,
            command_queue_log2: IDR1::CMDQS.read(ids.idr1) as u8,
            event_queue_log2: IDR1::EVENTQS.read(ids.idr1) as u8,
            preset_bases: IDR1::QUEUES_PRESET.is_set(ids.idr1) || IDR1::TABLES_PRESET.is_set(ids.idr1),
        };
        let revision = (IIDR::VARIANT.read(ids.iidr), IIDR::REVISION.read(ids.iidr));
        for erratum in ERRATA {
            if IIDR::IMPLEMENTER.read(ids.iidr) == erratum.implementer
                && IIDR::PRODUCT.read(ids.iidr) == erratum.product
                && revision < erratum.fixed_in
            {
                (erratum.apply)(&mut features);
            }
        }
        features
    }

    /// Why a hypervisor cannot own this SMMU; `None` if it can.
    pub const fn unusable(&self) -> Option<Unusable> {
        if !self.stage2 {
            Some(Unusable::NoStage2)
        } else if !self.aarch64_tables {
            Some(Unusable::NoAarch64Tables)
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
    fn nesting_is_off_before_the_revision_that_mends_it() {
        let nested = |product: u32, variant: u32, revision: u32| {
            Features::probe(&IdRegisters {
                iidr: product << 20 | variant << 16 | revision << 12 | ARM,
                ..QEMU
            })
            .nested
        };
        assert!(!nested(0x483, 0, 2) && !nested(0x483, 1, 9) && nested(0x483, 2, 0));
        assert!(!nested(0x487, 0, 0) && !nested(0x487, 1, 0) && nested(0x487, 1, 1));
        assert!(nested(0x484, 0, 0), "another product");
    }

    #[test]
    fn what_cannot_be_owned_says_why() {
        let probe = |ids: IdRegisters| Features::probe(&ids).unusable();
        assert_eq!(probe(IdRegisters { idr0: QEMU.idr0 & !1, ..QEMU }), Some(Unusable::NoStage2));
        assert_eq!(probe(IdRegisters { idr0: QEMU.idr0 & !0x10, ..QEMU }), Some(Unusable::NotCoherent));
        assert_eq!(probe(IdRegisters { idr5: 4, ..QEMU }), Some(Unusable::NoGranule));
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
