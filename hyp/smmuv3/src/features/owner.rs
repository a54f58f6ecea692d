//! What an SMMU can do for somebody who has stage 1 of it and nothing else.

use super::{Features, IdRegisters};
use crate::registers::{IDR0, IDR1, IDR3, IDR5};
use crate::ste::Ats;

/// log2 of the commands that an owner can send at once.
const COMMANDS_LOG2: u32 = 6;
/// log2 of the entries that a queue has at the most (3.5.1).
const QUEUE_LOG2: u32 = 19;
/// Width of the StreamIDs that an owner chooses.
const STREAM_BITS: u32 = 32;
/// STALL_MODEL: faults terminate.
const TERMINATE: u32 = 0b01;
/// TTENDIAN: little-endian.
const LITTLE_ENDIAN: u32 = 0b10;

impl Features {
    /// The ID registers of an SMMU that has stage 1 alone, made of what this one has: [`Features::probe`] reads them. `ats` is the
    /// most that a stream may be granted.
    ///
    /// There is stage 1 where both stages work together. Hidden is what is EL2's (stage 2, VMIDs, StreamWorld EL2, the
    /// stream table, MSIs and wake-up events of its queue), what EL2 does not let a stream have (hardware updates of
    /// descriptors, PRI, stalls, overrides of attributes), and broadcast TLB maintenance, which names VMIDs of CPUs. IIDR is 0: EL2 minds the errata.
    pub fn for_owner(&self, ats: Ats) -> IdRegisters {
        let table_formats = u32::from(self.aarch64_tables) << 1 | u32::from(self.aarch32_tables);
        let asid16 = self.asid_bits == 16;
        let idr0 = IDR0::S1P.val(self.nested.into())
            + IDR0::TTF.val(table_formats)
            + IDR0::COHACC.val(self.coherent.into())
            + IDR0::ATS.val((self.ats && ats != Ats::Off).into())
            + IDR0::ASID16.val(asid16.into())
            + IDR0::CD2L.val(self.two_level_cd_table.into())
            + IDR0::TTENDIAN.val(LITTLE_ENDIAN)
            + IDR0::STALL_MODEL.val(TERMINATE);
        let idr1 = IDR1::SIDSIZE.val(STREAM_BITS)
            + IDR1::SSIDSIZE.val(self.substream_bits.into())
            + IDR1::CMDQS.val(COMMANDS_LOG2);
        let idr3 = IDR3::RIL.val(self.range_invalidation.into())
            + IDR3::BBML.val(self.break_before_make_level.into());
        let oas = match self.oas_bits {
            32 => 0,
            36 => 1,
            40 => 2,
            42 => 3,
            44 => 4,
            48 => 5,
            _ => 6,
        };
        let vax = match self.va_bits {
            48 => 0,
            52 => 1,
            _ => 2,
        };
        let idr5 = IDR5::OAS.val(oas)
            + IDR5::GRAN4K.val(self.granules.size_4k.into())
            + IDR5::GRAN16K.val(self.granules.size_16k.into())
            + IDR5::GRAN64K.val(self.granules.size_64k.into())
            + IDR5::VAX.val(vax);
        IdRegisters { idr0: idr0.value, idr1: idr1.value, idr3: idr3.value, idr5: idr5.value, iidr: 0 }
    }

    /// The ID registers of an emulated SMMU, which has stage 1 as [`Features::for_owner`] says, and a stream table,
    /// queues and MSIs that EL2 works with in software, so that they do not depend on the hardware: two-level stream
    /// tables over the StreamIDs of this SMMU, queues of up to 2^19 entries, MSIs of CMD_SYNC.
    ///
    /// TERM_MODEL is 1: a driver that always asks for an abort (CD.A = 1) is right on any hardware.
    pub fn for_emulation(&self, ats: Ats) -> IdRegisters {
        let owner = self.for_owner(ats);
        let idr0 = IDR0::MSI::SET + IDR0::TERM_MODEL::SET + IDR0::ST_LEVEL::TwoLevel;
        let idr1 = IDR1::SIDSIZE.val(self.stream_bits.into())
            + IDR1::CMDQS.val(QUEUE_LOG2)
            + IDR1::EVENTQS.val(QUEUE_LOG2);
        IdRegisters { idr0: idr0.modify(owner.idr0), idr1: idr1.modify(owner.idr1), ..owner }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Everything set that an SMMU can have, on the registers of QEMU's model.
    const ALL: IdRegisters = IdRegisters {
        idr0: 0x0d4f_77bf & !(0b11 << 24),
        idr1: 0x0a73_0510,
        idr3: 0x1414,
        idr5: 0x474,
        iidr: 0,
    };

    #[test]
    fn an_owner_finds_what_it_may_use_and_nothing_else() {
        let all = Features::probe(&ALL);
        assert!(
            all.stage2 && all.el2 && all.broadcast_tlb && all.dirty_updates && all.pri && all.msi && all.sev
        );
        assert!(
            all.vmid_wildcards && all.configurable_stalls && all.split_stage_ats && all.attribute_override
        );
        let owner = Features::probe(&all.for_owner(Ats::SplitStage));
        let expected = Features {
            stage2: false,
            nested: false,
            el2: false,
            broadcast_tlb: false,
            access_flag_updates: false,
            dirty_updates: false,
            split_stage_ats: false,
            pri: false,
            msi: false,
            sev: false,
            vmid_bits: 8,
            vmid_wildcards: false,
            configurable_stalls: false,
            attribute_override: false,
            stream_bits: 32,
            two_level_stream_table: false,
            command_queue_log2: 6,
            event_queue_log2: 0,
            ..all
        };
        assert_eq!(owner, expected);
        assert_eq!(all.for_owner(Ats::SplitStage).idr0 >> 24 & 0b11, 0b01, "STALL_MODEL");
    }

    #[test]
    fn an_emulated_smmu_has_queues_and_a_stream_table_besides() {
        let all = Features::probe(&ALL);
        let owner = Features::probe(&all.for_owner(Ats::SplitStage));
        let ids = all.for_emulation(Ats::SplitStage);
        let expected = Features {
            msi: true,
            two_level_stream_table: true,
            stream_bits: 16,
            command_queue_log2: 19,
            event_queue_log2: 19,
            ..owner
        };
        assert_eq!(Features::probe(&ids), expected);
        assert_eq!(ids.idr0 >> 24 & 0b111, 0b101, "TERM_MODEL and STALL_MODEL");
    }

    #[test]
    fn there_is_no_ats_without_a_grant_and_no_stage_1_without_nesting() {
        let all = Features::probe(&ALL);
        assert!(!Features::probe(&all.for_owner(Ats::Off)).ats);
        let none = Features { ats: false, ..all };
        assert!(!Features::probe(&none.for_owner(Ats::Full)).ats);
        let broken = Features { nested: false, ..all };
        assert!(!Features::probe(&broken.for_owner(Ats::Off)).stage1);
    }

    #[test]
    fn every_size_survives() {
        for (oas, va) in [(0, 0), (1, 0), (2, 1), (3, 1), (4, 0), (5, 2), (6, 1)] {
            let features = Features::probe(&IdRegisters { idr5: 0x70 | oas | va << 10, ..ALL });
            let owner = Features::probe(&features.for_owner(Ats::Off));
            assert_eq!((owner.oas_bits, owner.va_bits), (features.oas_bits, features.va_bits));
        }
    }
}
