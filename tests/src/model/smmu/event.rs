//! Event records and the event queue (IHI 0070, 7.2 and 7.3).

use super::super::stage2::WalkFault;
use super::interrupt::Source;
use super::registers::EVENTQEN;
use super::translate::Origin;
use super::{Bus, Smmu};

/// Event numbers (7.3).
pub mod number {
    use super::WalkFault;

    /// C_BAD_STREAMID.
    pub const C_BAD_STREAMID: u8 = 0x02;
    /// F_STE_FETCH.
    pub const F_STE_FETCH: u8 = 0x03;
    /// C_BAD_STE.
    pub const C_BAD_STE: u8 = 0x04;
    /// F_BAD_ATS_TREQ.
    pub const F_BAD_ATS_TREQ: u8 = 0x05;
    /// F_STREAM_DISABLED.
    pub const F_STREAM_DISABLED: u8 = 0x06;
    /// F_TRANSL_FORBIDDEN.
    pub const F_TRANSL_FORBIDDEN: u8 = 0x07;
    /// C_BAD_SUBSTREAMID.
    pub const C_BAD_SUBSTREAMID: u8 = 0x08;
    /// F_CD_FETCH.
    pub const F_CD_FETCH: u8 = 0x09;
    /// C_BAD_CD.
    pub const C_BAD_CD: u8 = 0x0a;
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

    /// The event of a walk that found no leaf.
    pub fn of_walk(fault: WalkFault) -> u8 {
        match fault {
            WalkFault::Translation(_) => F_TRANSLATION,
            WalkFault::AddressSize(_) => F_ADDR_SIZE,
            WalkFault::Access(_) => F_ACCESS,
            WalkFault::ExternalAbort(_) => F_WALK_EABT,
        }
    }
}

/// What was being translated when a fault came up (7.3.12 to 7.3.16, CLASS).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// 0b00: the address of a CD, or of a table of CDs.
    Cd,
    /// 0b01: the address of a stage-1 translation table.
    Table,
    /// 0b10: the address of the transaction, or what stage 1 made of it.
    Input,
}

/// Why a transaction was refused, and what an event record of it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The event's number; `None` if the transaction is refused silently.
    pub event: Option<u8>,
    /// Whether the configuration (CR2.RECINVSID, CD.R, S2R) asks for a record.
    pub record: bool,
    /// S2: it is a fault of stage 2.
    pub stage2: bool,
    /// CLASS.
    pub class: Class,
    /// IPA, of a stage-2 fault.
    pub ipa: u64,
}

impl Refusal {
    /// Refused without an event.
    pub fn silent() -> Self {
        Self { event: None, record: false, stage2: false, class: Class::Input, ipa: 0 }
    }

    /// A fault of the configuration, or a request that it forbids: recorded always.
    pub fn configuration(event: u8) -> Self {
        Self { event: Some(event), record: true, ..Self::silent() }
    }

    /// A fault of stage 1.
    pub fn stage1(event: u8, class: Class, record: bool) -> Self {
        Self { event: Some(event), record, class, ..Self::silent() }
    }

    /// A fault of stage 2.
    pub fn stage2(event: u8, class: Class, ipa: u64, record: bool) -> Self {
        Self { event: Some(event), record, stage2: true, class, ipa }
    }

    /// Whether it is about translation, and not about the configuration (7.3.12 to 7.3.16).
    pub fn translation(&self) -> bool {
        self.event.is_some_and(|event| event >= number::F_WALK_EABT)
    }

    /// The event record (7.3), if there is one: number \[7:0], SSV \[11], SSID \[31:12], StreamID \[63:32]; RnW \[99], S2 \[103], CLASS
    /// \[105:104], TTRnW \[108], InputAddr \[191:128], IPA \[243:204].
    pub fn event_record(&self, origin: Origin, address: u64, write: bool) -> Option<[u64; 4]> {
        let event = self.event?;
        let ssid = origin.ssid.map_or(0, |ssid| 1 << 11 | u64::from(ssid & 0xf_ffff) << 12);
        let zero = u64::from(event) | ssid | u64::from(origin.stream) << 32;
        let read = u64::from(!write) << 35;
        match event {
            // 7.3.6, 7.3.8: the address, and what was wanted there.
            number::F_BAD_ATS_TREQ | number::F_TRANSL_FORBIDDEN => Some([zero, read, address, 0]),
            _ if !self.translation() => Some([zero, 0, 0, 0]),
            _ => {
                let class = match self.class {
                    Class::Cd => 0b00,
                    // TTRnW: tables are only read, as there is no HTTU.
                    Class::Table => 0b01 | 1 << 4,
                    Class::Input => 0b10,
                };
                let one = read | u64::from(self.stage2) << 39 | class << 40;
                Some([zero, one, address, self.ipa & 0x000f_ffff_ffff_f000])
            }
        }
    }
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
                self.raise(bus, 4);
                return;
            }
        }
        r.eventq_prod = r.eventq_prod & 1 << 31 | prod.wrapping_add(1) & mask;
        self.events.push(event);
        // An edge, when the queue is not empty any more (7.2): for what finds it so there is no other.
        if prod == cons {
            self.interrupt(bus, Source::Event);
        }
    }
}
