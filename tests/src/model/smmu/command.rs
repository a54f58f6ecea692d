//! What each command does (IHI 0070, 4.1 to 4.7).
//!
//! An invalidation dooms what is cached at that moment; the next CMD_SYNC that completes removes what is doomed. Until
//! then a doomed entry still translates, and a greedy SMMU reads it again at once: an invalidation that comes before
//! the store it is for has no use.

use super::queue::{CommandError, Outcome};
use super::tlb::Hint;
use super::{Bus, Smmu};

fn bits(word: u64, high: u32, low: u32) -> u64 {
    word >> low & ((1u64 << (high - low + 1)) - 1)
}

impl Smmu {
    /// Executes one command from its raw 16 bytes.
    pub fn execute(&mut self, bus: &mut Bus, command: [u64; 2]) -> Outcome {
        let [low, high] = command;
        let opcode = low as u8;
        if !self.supported(opcode) {
            return Outcome::Error(CommandError::Illegal);
        }
        // 4.1.6: SSec [10] is RES0, and 1 is ILLEGAL, in the non-secure queue.
        if low >> 10 & 1 == 1 && !matches!(opcode, 0x46) {
            return Outcome::Error(CommandError::Illegal);
        }
        let reserved = reserved_bits(opcode, self.config.ril());
        if low & reserved[0] != 0 || high & reserved[1] != 0 {
            self.violation(bus, format_args!("command {low:#018x} {high:#018x} has RES0 bits set"));
        }
        self.sequence += 1;
        match opcode {
            // 4.2.1, 4.2.2: prefetches are hints.
            0x01 | 0x02 => {}
            // 4.3.1 CFGI_STE: StreamID [63:32], Leaf [64].
            0x03 => self.doom_configuration(bus, bits(low, 63, 32) as u32, 0, high & 1 == 1),
            // 4.3.2 CFGI_STE_RANGE: StreamIDs that agree above bit Range; 31 is CFGI_ALL (4.3.6).
            0x04 => {
                let range = bits(high, 4, 0) as u32;
                let stream = if range == 31 { 0 } else { bits(low, 63, 32) as u32 };
                self.doom_configuration(bus, stream, range + 1, false);
            }
            // 4.3.3, 4.3.4, 4.3.5: no CDs or VMSs are cached here.
            0x05..=0x07 => {}
            // 4.4: stage-1 translations are not modelled, but VMID-wide stage-1 commands leave stage 2 alone.
            0x10..=0x13 | 0x20..=0x23 => {}
            // 4.4.3 TLBI_S12_VMALL: VMID [47:32].
            0x28 => {
                let vmid = bits(low, 47, 32) as u16;
                self.check_vmid(bus, vmid);
                self.doom_translations(bus, Some(vmid), None);
            }
            // 4.4.2 TLBI_S2_IPA.
            0x2a => return self.tlbi_s2_ipa(bus, low, high),
            // 4.4.4 TLBI_NSNH_ALL.
            0x30 => self.doom_translations(bus, None, None),
            // 4.5.1 ATC_INV: no ATCs are modelled.
            0x40 => {}
            // 4.7.3 SYNC: CS [13:12], 0b11 reserved.
            0x46 => {
                let cs = bits(low, 13, 12);
                if cs == 3 {
                    return Outcome::Error(CommandError::Illegal);
                }
                if cs == 1 && bits(high, 51, 2) != 0 {
                    self.violation(bus, format_args!("SYNC with an MSI to {high:#x}"));
                }
                return self.sync(bus);
            }
            _ => return Outcome::Error(CommandError::Illegal),
        }
        Outcome::Done
    }

    /// 4.1.3: which opcodes the ID registers allow; all others are CERROR_ILL.
    fn supported(&self, opcode: u8) -> bool {
        let c = &self.config;
        match opcode {
            0x01 | 0x02 | 0x03 | 0x04 | 0x46 | 0x30 => true,
            0x05 | 0x06 => c.stage1(),
            0x10..=0x13 => c.stage1(),
            0x20..=0x23 => c.hyp() && c.stage1(),
            0x28 | 0x2a => c.stage2(),
            0x40 => c.ats(),
            0x41 => c.pri(),
            _ => false,
        }
    }

    fn check_vmid(&self, bus: &mut Bus, vmid: u16) {
        // 4.4: with IDR0.VMID16 = 0 the upper 8 bits are RES0.
        if u32::from(vmid) >> self.config.vmid_bits() != 0 {
            self.violation(
                bus,
                format_args!("VMID {vmid:#x} has more than {} bits", self.config.vmid_bits()),
            );
        }
    }

    /// 4.4.1, 4.4.2: NUM [16:12], SCALE [25:20], VMID [47:32]; Leaf [64], TTL [73:72], TG [75:74], Address [115:76].
    fn tlbi_s2_ipa(&mut self, bus: &mut Bus, low: u64, high: u64) -> Outcome {
        let vmid = bits(low, 47, 32) as u16;
        self.check_vmid(bus, vmid);
        let leaf_only = high & 1 == 1;
        let address = high & 0x00ff_ffff_ffff_f000;
        let tg = bits(high, 11, 10);
        if !self.config.ril() || tg == 0 {
            // One address, any level, any granule.
            self.doom_translations(
                bus,
                Some(vmid),
                Some(Hint { first: address, last: address, level: None, leaf_only, granule_log2: None }),
            );
            return Outcome::Done;
        }
        let (num, scale, ttl) = (bits(low, 16, 12), bits(low, 25, 20), bits(high, 9, 8));
        let granule_log2 = [0, 12, 14, 16][tg as usize];
        // 4.4.1.1: with TG not 0, TTL = NUM = SCALE = 0 is reserved; so is TTL = 0b01 for 16 KiB and 64 KiB without 52-bit addresses.
        if num == 0 && scale == 0 && ttl == 0 {
            return Outcome::Error(CommandError::Illegal);
        }
        if ttl == 1 && granule_log2 != 12 {
            return Outcome::Error(CommandError::Illegal);
        }
        // Range = (NUM + 1) * 2^SCALE granules.
        let bytes = u128::from(num + 1) << (scale + granule_log2 as u64);
        let last = (u128::from(address) + bytes - 1).min((1 << 56) - 1) as u64;
        let level = (ttl != 0).then_some(ttl as u32);
        let unit = level.map_or(granule_log2, |level| super::super::stage2::level_shift(granule_log2, level));
        // An address or a length that is no multiple of what TTL names need not invalidate anything.
        if address & ((1 << unit) - 1) != 0 || bytes & ((1 << unit) - 1) != 0 {
            self.violation(
                bus,
                format_args!("TLBI_S2_IPA of {address:#x}, {bytes:#x} bytes, with TTL {ttl}: not a multiple"),
            );
            return Outcome::Done;
        }
        let hint = Hint { first: address, last, level, leaf_only, granule_log2: Some(granule_log2) };
        self.doom_translations(bus, Some(vmid), Some(hint));
        Outcome::Done
    }

    /// 4.7.3, 3.21.1: completes when all earlier invalidations have, which includes every transaction that was translated
    /// with what they invalidate.
    fn sync(&mut self, bus: &mut Bus) -> Outcome {
        if !self.in_flight.is_empty() {
            return Outcome::Waiting;
        }
        self.tlb.forget_doomed();
        self.configuration.forget_doomed();
        self.read_ahead(bus);
        Outcome::Done
    }
}

/// Bits that are RES0 in each command (4.2 to 4.7): a driver that sets them means something else than it says.
fn reserved_bits(opcode: u8, ril: bool) -> [u64; 2] {
    const OPCODE: u64 = 0xff;
    const STREAM: u64 = 0xffff_ffff << 32;
    const VMID: u64 = 0xffff << 32;
    const ADDRESS: u64 = 0x00ff_ffff_ffff_f000;
    match opcode {
        0x03 => [!(OPCODE | STREAM), !1],
        0x04 => [!(OPCODE | STREAM), !31],
        0x10 | 0x28 => [!(OPCODE | VMID), !0],
        0x2a if ril => [!(OPCODE | VMID | 0x1f << 12 | 0x3f << 20), !(ADDRESS | 0xf01)],
        0x2a => [!(OPCODE | VMID), !(ADDRESS | 1)],
        0x30 | 0x20 => [!OPCODE, !0],
        // CS [13:12], MSH [23:22], MSIAttr [27:24], MSIData [63:32].
        0x46 => [!(OPCODE | 3 << 12 | 3 << 22 | 0xf << 24 | STREAM), !0x000f_ffff_ffff_fffc],
        _ => [0, 0],
    }
}
