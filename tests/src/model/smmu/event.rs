//! Event records and the event queue (IHI 0070, 7.2 and 7.3).

use super::registers::EVENTQEN;
use super::{Bus, Smmu};

/// Event numbers (7.3).
pub mod number {
    /// C_BAD_STREAMID.
    pub const C_BAD_STREAMID: u8 = 0x02;
    /// F_STE_FETCH.
    pub const F_STE_FETCH: u8 = 0x03;
    /// C_BAD_STE.
    pub const C_BAD_STE: u8 = 0x04;
    /// F_WALK_EABT.
    pub const F_WALK_EABT: u8 = 0x0b;
    /// F_TRANSLATION.
    pub const F_TRANSLATION: u8 = 0x10;
    /// F_ADDR_SIZE.
    pub const F_ADDR_SIZE: u8 = 0x11;
    /// F_ACCESS.
    pub const F_ACCESS: u8 = 0x12;
    /// F_PERMISSION.
    pub const F_PERMISSION: u8 = 0x13;
}

/// An event without an address: number [7:0], StreamID [63:32].
pub fn configuration_event(number: u8, stream: u32) -> [u64; 4] {
    [u64::from(number) | u64::from(stream) << 32, 0, 0, 0]
}

/// A stage-2 fault of data: RnW [99], S2 [103], CLASS [105:104] = IN, InputAddr [191:128], IPA [243:204].
pub fn translation_event(number: u8, stream: u32, address: u64, write: bool) -> [u64; 4] {
    let word1 = u64::from(!write) << 35 | 1 << 39 | 0b10 << 40;
    [u64::from(number) | u64::from(stream) << 32, word1, address, address & 0x000f_ffff_ffff_f000]
}

impl Smmu {
    /// Writes an event record to the queue, or drops it: when the queue is off, or full (7.2, 7.4: OVFLG toggles once).
    pub(crate) fn record(&mut self, bus: &mut Bus, event: [u64; 4]) {
        let r = &mut self.registers;
        if r.cr0ack & EVENTQEN == 0 {
            return;
        }
        let log2 = (r.eventq_base & 31) as u32;
        let mask = (2u32 << log2) - 1;
        let (prod, cons) = (r.eventq_prod & mask, r.eventq_cons & mask);
        if prod.wrapping_sub(cons) & mask == 1 << log2 {
            // 7.4: OVFLG differs from OVACKFLG while an overflow is not acknowledged.
            if (r.eventq_prod ^ r.eventq_cons) >> 31 == 0 {
                r.eventq_prod ^= 1 << 31;
            }
            return;
        }
        let base = r.eventq_base & 0x00ff_ffff_ffff_ffe0;
        let slot = base + u64::from(prod & (mask >> 1)) * 32;
        for (word, offset) in event.into_iter().zip((0..).step_by(8)) {
            if !bus.memory.write(slot + offset, word) {
                // 7.2.2: an event that cannot be written is lost and EVENTQ_ABT_ERR becomes active.
                if (r.gerror ^ r.gerrorn) & 4 == 0 {
                    r.gerror ^= 4;
                }
                return;
            }
        }
        r.eventq_prod = r.eventq_prod & 1 << 31 | prod.wrapping_add(1) & mask;
        self.events.push(event);
    }
}
