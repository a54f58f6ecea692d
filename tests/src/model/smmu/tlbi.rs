//! TLB invalidation commands (IHI 0070, 4.4): what each of them names.

use super::super::stage2::level_shift;
use super::combined::Scope;
use super::queue::{CommandError, Outcome};
use super::tlb::Hint;
use super::{Bus, Smmu};

fn bits(word: u64, high: u32, low: u32) -> u64 {
    word >> low & ((1u64 << (high - low + 1)) - 1)
}

/// VMID [47:32] and ASID [63:48] of a command.
pub(crate) fn tags(low: u64) -> (u16, u16) {
    (bits(low, 47, 32) as u16, bits(low, 63, 48) as u16)
}

impl Smmu {
    /// Executes a TLBI: dooms what it names.
    pub(crate) fn tlbi(&mut self, bus: &mut Bus, low: u64, high: u64) -> Outcome {
        let (vmid, asid) = tags(low);
        let opcode = low as u8;
        self.check_tags(bus, opcode, vmid, asid);
        let stage1 = |asid, globals, hint| Scope { vmid: Some(vmid), asid, globals, hint };
        match opcode {
            // 4.4.1 TLBI_NH_ALL, NH_ASID, NH_VA, NH_VAA: stage-1 and combined entries of a VMID.
            0x10 => self.doom_combined(bus, &stage1(None, true, None)),
            0x11 => self.doom_combined(bus, &stage1(Some(asid), false, None)),
            0x12 | 0x13 => {
                let hint = match self.range(low, high, high & !0xfff) {
                    Ok(Some(hint)) => hint,
                    Ok(None) => return Outcome::Done,
                    Err(error) => return Outcome::Error(error),
                };
                let asid = (opcode == 0x12).then_some(asid);
                self.doom_combined(bus, &stage1(asid, true, Some(hint)));
            }
            // 4.4.2 TLBI_S2_IPA: only entries of stage 2 alone.
            0x2a => match self.range(low, high, high & 0x00ff_ffff_ffff_f000) {
                Ok(Some(hint)) => self.doom_translations(bus, Some(vmid), Some(hint), false),
                Ok(None) => {}
                Err(error) => return Outcome::Error(error),
            },
            // 4.4.3 TLBI_S12_VMALL and 4.4.4 TLBI_NSNH_ALL: both stages, in one step.
            _ => {
                let vmid = (opcode == 0x28).then_some(vmid);
                self.doom_translations(bus, vmid, None, true);
                self.doom_combined(bus, &Scope { vmid, asid: None, globals: true, hint: None });
            }
        }
        Outcome::Done
    }

    fn check_tags(&self, bus: &mut Bus, opcode: u8, vmid: u16, asid: u16) {
        // 4.4: with IDR0.VMID16 = 0, or ASID16 = 0, the upper 8 bits are RES0.
        let vmid_bits = self.config.vmid_bits();
        if opcode != 0x30 && u32::from(vmid) >> vmid_bits != 0 {
            self.violation(bus, format_args!("VMID {vmid:#x} has more than {vmid_bits} bits"));
        }
        let asid_bits = self.config.asid_bits();
        if matches!(opcode, 0x11 | 0x12) && u32::from(asid) >> asid_bits != 0 {
            self.violation(bus, format_args!("ASID {asid:#x} has more than {asid_bits} bits"));
        }
    }

    /// 4.4.1.1: NUM [16:12], SCALE [25:20]; Leaf [64], TTL [73:72], TG [75:74]. `None`: the command need not invalidate anything.
    fn range(&mut self, low: u64, high: u64, address: u64) -> Result<Option<Hint>, CommandError> {
        let leaf_only = high & 1 == 1;
        let tg = bits(high, 11, 10);
        if !self.config.ril() || tg == 0 {
            // One address, any level, any granule.
            let (first, last) = (address, address);
            return Ok(Some(Hint { first, last, level: None, leaf_only, granule_log2: None }));
        }
        let (num, scale, ttl) = (bits(low, 16, 12), bits(low, 25, 20), bits(high, 9, 8));
        let granule_log2 = [0, 12, 14, 16][tg as usize];
        // With TG not 0, TTL = NUM = SCALE = 0 is reserved; so is TTL = 0b01 for 16 KiB and 64 KiB without 52-bit addresses.
        if num == 0 && scale == 0 && ttl == 0 || ttl == 1 && granule_log2 != 12 {
            return Err(CommandError::Illegal);
        }
        // Range = (NUM + 1) * 2^SCALE granules.
        let bytes = u128::from(num + 1) << (scale + granule_log2 as u64);
        let last = (u128::from(address) + bytes - 1).min(u128::from(u64::MAX)) as u64;
        let level = (ttl != 0).then_some(ttl as u32);
        let unit = level.map_or(granule_log2, |level| level_shift(granule_log2, level));
        // An address or a length that is no multiple of what TTL names need not invalidate anything.
        if address & ((1 << unit) - 1) != 0 || bytes & ((1 << unit) - 1) != 0 {
            let command = low as u8;
            self.needless.push(format!(
                "TLBI {command:#x} of {address:#x}, {bytes:#x} bytes, with TTL {ttl}: not a multiple"
            ));
            return Ok(None);
        }
        let granule_log2 = Some(granule_log2);
        Ok(Some(Hint { first: address, last, level, leaf_only, granule_log2 }))
    }
}
