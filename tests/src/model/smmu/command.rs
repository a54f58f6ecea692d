//! What each command does (IHI 0070, 4.1 to 4.7).
//!
//! An invalidation dooms what is cached at that moment; the next CMD_SYNC that completes removes what is doomed. Until
//! then a doomed entry still translates, and a greedy SMMU reads it again at once: an invalidation that comes before
//! the store it is for has no use.

use super::queue::{CommandError, Outcome};
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
        self.judge(bus, low, high);
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
            // 4.3.3 CFGI_CD: SSID [31:12], StreamID [63:32], Leaf [64]. 4.3.4 CFGI_CD_ALL: StreamID.
            0x05 => self.cfgi_cd(bus, bits(low, 63, 32) as u32, bits(low, 31, 12) as u32, high & 1 == 1),
            0x06 => {
                let stream = bits(low, 63, 32) as u32;
                self.doom_contexts(bus, |(at, _)| at == stream, |(at, _)| at == stream);
            }
            // 4.3.5: no VMSs are cached here.
            0x07 => {}
            0x10..=0x13 | 0x28 | 0x2a | 0x30 => return self.tlbi(bus, low, high),
            // EL2 and EL2-E2H StreamWorlds are not modelled.
            0x20..=0x23 => {}
            0x40 => return self.atc_inv(bus, low, high),
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

    /// 4.3.3: the CD of a StreamID and SSID, and, unless `leaf`, the level-1 descriptor on the way.
    fn cfgi_cd(&mut self, bus: &mut Bus, stream: u32, ssid: u32, leaf: bool) {
        if ssid >> self.config.ssid_size() != 0 {
            self.violation(
                bus,
                format_args!("CFGI_CD of SSID {ssid:#x}, SSIDSIZE is {}", self.config.ssid_size()),
            );
        }
        let table = self
            .cached_setup(stream)
            .and_then(|setup| setup.contexts.format.leaf_log2())
            .filter(|_| !leaf)
            .map(|leaf_log2| (stream, ssid >> leaf_log2));
        self.doom_contexts(bus, |at| at == (stream, ssid), |at| Some(at) == table);
    }

    /// 4.7.3, 3.21.1: completes when all earlier invalidations have, which includes every transaction that was translated
    /// with what they invalidate.
    fn sync(&mut self, bus: &mut Bus) -> Outcome {
        // It begins when it becomes the next command, and takes its time; longer if an ATC does not answer.
        let mut delay = self.config.sync_delay_ns;
        if !self.atc.unanswered.is_empty() {
            delay = delay.max(self.config.atc_timeout_ns);
        }
        let due = *self.sync_due_ns.get_or_insert(self.next_command_ns + delay);
        if bus.now_ns < due || !self.in_flight.is_empty() {
            return Outcome::Waiting;
        }
        self.sync_due_ns = None;
        self.next_command_ns = self.next_command_ns.max(due);
        // 3.9.1.4, 7.1: said once of each device, one after the other: they need not time out at the same moment. A SYNC after that completes,
        // but the ATCs still have what they had.
        if self.atc.unanswered.pop_front().is_some() {
            return Outcome::Error(CommandError::AtcInvSync);
        }
        self.tlb.forget_doomed();
        self.configuration.forget_doomed();
        self.atc.forget_doomed();
        self.complete_flushes(bus);
        self.read_ahead(bus);
        Outcome::Done
    }
}

/// Bits that are RES0 in each command (4.2 to 4.7): a driver that sets them means something else than it says.
fn reserved_bits(opcode: u8, ril: bool) -> [u64; 2] {
    const OPCODE: u64 = 0xff;
    const STREAM: u64 = 0xffff_ffff << 32;
    const VMID: u64 = 0xffff << 32;
    const SSID: u64 = 0xf_ffff << 12;
    const ASID: u64 = 0xffff << 48;
    const ADDRESS: u64 = 0x00ff_ffff_ffff_f000;
    const VA: u64 = 0xffff_ffff_ffff_f000;
    const RANGE: u64 = 0x1f << 12 | 0x3f << 20;
    match opcode {
        0x03 => [!(OPCODE | STREAM), !1],
        0x04 => [!(OPCODE | STREAM), !31],
        0x05 => [!(OPCODE | STREAM | SSID), !1],
        0x06 => [!(OPCODE | STREAM), !0],
        0x10 | 0x28 => [!(OPCODE | VMID), !0],
        0x11 => [!(OPCODE | VMID | ASID), !0],
        0x12 if ril => [!(OPCODE | VMID | ASID | RANGE), !(VA | 0xf01)],
        0x12 => [!(OPCODE | VMID | ASID), !(VA | 1)],
        0x13 if ril => [!(OPCODE | VMID | RANGE), !(VA | 0xf01)],
        0x13 => [!(OPCODE | VMID), !(VA | 1)],
        0x2a if ril => [!(OPCODE | VMID | RANGE), !(ADDRESS | 0xf01)],
        0x2a => [!(OPCODE | VMID), !(ADDRESS | 1)],
        0x30 | 0x20 => [!OPCODE, !0],
        // Global [9], SSV [11]; Size [69:64].
        0x40 => [!(OPCODE | STREAM | SSID | 1 << 9 | 1 << 11), !(VA | 0x3f)],
        // CS [13:12], MSH [23:22], MSIAttr [27:24], MSIData [63:32].
        0x46 => [!(OPCODE | 3 << 12 | 3 << 22 | 0xf << 24 | STREAM), !0x000f_ffff_ffff_fffc],
        _ => [0, 0],
    }
}
