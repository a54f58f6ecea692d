//! Registers (IHI 0070, 6.3) and the rules for writing them.

use super::interrupt::{ADDRESS, Msi};
use super::{Bus, Smmu};

/// Register state. Names are those of IHI 0070, 6.3.
#[derive(Clone, Debug, Default)]
#[allow(missing_docs)]
pub struct Registers {
    pub cr0: u32,
    pub cr0ack: u32,
    pub cr1: u32,
    pub cr2: u32,
    pub gbpa: u32,
    pub irq_ctrl: u32,
    pub irq_ctrlack: u32,
    pub gerror: u32,
    pub gerrorn: u32,
    pub strtab_base: u64,
    pub strtab_base_cfg: u32,
    pub cmdq_base: u64,
    pub cmdq_prod: u32,
    pub cmdq_cons: u32,
    pub eventq_base: u64,
    pub eventq_prod: u32,
    pub eventq_cons: u32,
    pub gerror_msi: Msi,
    pub eventq_msi: Msi,
    pub priq_msi: Msi,
    pub(crate) update_due_ns: u64,
    pub(crate) gbpa_due_ns: u64,
}

/// CR0.SMMUEN.
pub const SMMUEN: u32 = 1;
/// CR0.EVENTQEN.
pub const EVENTQEN: u32 = 1 << 2;
/// CR0.CMDQEN.
pub const CMDQEN: u32 = 1 << 3;
/// CR0.ATSCHK.
pub const ATSCHK: u32 = 1 << 4;
/// GBPA.ABORT.
pub const GBPA_ABORT: u32 = 1 << 20;
/// GBPA.Update.
pub const GBPA_UPDATE: u32 = 1 << 31;
/// IRQ_CTRL.EVENTQ_IRQEN.
pub const EVENTQ_IRQEN: u32 = 1 << 2;
/// GERROR.CMDQ_ERR.
pub const CMDQ_ERR: u32 = 1;

/// The 64-bit registers, by offset.
const WIDE: [u64; 11] = [0x68, 0x80, 0x90, 0xa0, 0xb0, 0xc0, 0xd0, 0x100, 0x108, 0x120, 0x128];

impl Smmu {
    pub(crate) fn step_registers(&mut self, bus: &mut Bus) {
        let r = &mut self.registers;
        if r.cr0ack != r.cr0 && bus.now_ns >= r.update_due_ns {
            let enabled = r.cr0 & !r.cr0ack & SMMUEN != 0;
            r.cr0ack = r.cr0;
            if enabled {
                self.learn_places(bus);
                self.read_ahead(bus);
            }
        }
        let r = &mut self.registers;
        if r.irq_ctrlack != r.irq_ctrl && bus.now_ns >= r.update_due_ns {
            r.irq_ctrlack = r.irq_ctrl;
        }
        if r.gbpa & GBPA_UPDATE != 0 && bus.now_ns >= r.gbpa_due_ns {
            r.gbpa &= !GBPA_UPDATE;
        }
    }

    /// Whether transactions are translated now.
    pub fn translating(&self) -> bool {
        self.registers.cr0ack & SMMUEN != 0
    }

    /// Whether transactions are aborted because the SMMU is off and GBPA says so.
    pub fn aborting(&self) -> bool {
        !self.translating() && self.registers.gbpa & GBPA_ABORT != 0
    }

    /// Reads 32 bits at an offset from the base.
    pub fn read_u32(&mut self, bus: &mut Bus, offset: u64) -> u32 {
        self.step(bus);
        if offset & 3 != 0 {
            self.violation(bus, format_args!("read of 32 bits at {offset:#x}"));
        }
        if offset < 0x20 {
            return self.read_id(offset);
        }
        let r = &self.registers;
        let half = |value: u64| (value >> (8 * (offset & 4))) as u32;
        match offset {
            0x20 => r.cr0,
            0x24 => r.cr0ack,
            0x28 => r.cr1,
            0x2c => r.cr2,
            0x44 => r.gbpa,
            0x50 => r.irq_ctrl,
            0x54 => r.irq_ctrlack,
            0x60 => r.gerror,
            0x64 => r.gerrorn,
            0x68 | 0x6c => half(r.gerror_msi.address),
            0x80 | 0x84 => half(r.strtab_base),
            0x88 => r.strtab_base_cfg,
            0x90 | 0x94 => half(r.cmdq_base),
            0x98 => r.cmdq_prod,
            0x9c => r.cmdq_cons,
            0xa0 | 0xa4 => half(r.eventq_base),
            0xb0 | 0xb4 => half(r.eventq_msi.address),
            0x1_00a8 => r.eventq_prod,
            0x1_00ac => r.eventq_cons,
            // 6.2.2: in newer revisions the page 0 offsets of the page 1 registers are RES0 or aliases; nobody should use them.
            0xa8 | 0xac | 0xc8 | 0xcc => {
                self.violation(bus, format_args!("read of a page 1 register through page 0 at {offset:#x}"));
                0
            }
            _ => 0,
        }
    }

    /// IDR0 to IDR5, IIDR and AIDR (6.3.1 to 6.3.8), or what is said in their place.
    fn read_id(&mut self, offset: u64) -> u32 {
        let reads = self.id_reads.entry(offset).or_default();
        *reads += 1;
        let lie = if *reads > 1 { self.lies.get(&offset).copied().unwrap_or(0) } else { 0 };
        let value = match offset {
            0x18 => self.config.iidr,
            0x1c => self.config.aidr,
            _ => self.config.idr[(offset / 4) as usize],
        };
        value ^ lie
    }

    /// Reads 64 bits at an offset from the base.
    pub fn read_u64(&mut self, bus: &mut Bus, offset: u64) -> u64 {
        if !WIDE.contains(&offset) {
            self.violation(bus, format_args!("64-bit read of the 32-bit register at {offset:#x}"));
        }
        u64::from(self.read_u32(bus, offset)) | u64::from(self.read_u32(bus, offset + 4)) << 32
    }

    /// Writes 64 bits at an offset from the base.
    pub fn write_u64(&mut self, bus: &mut Bus, offset: u64, value: u64) {
        self.step(bus);
        if !WIDE.contains(&offset) {
            self.violation(bus, format_args!("64-bit write of the 32-bit register at {offset:#x}"));
            return;
        }
        let (cr0, ack) = (self.registers.cr0, self.registers.cr0ack);
        match offset {
            // 6.3.23: guarded by SMMUEN = 0 in CR0 and CR0ACK.
            0x80 => {
                self.guard(bus, "STRTAB_BASE", (cr0 | ack) & SMMUEN == 0);
                self.registers.strtab_base = value;
            }
            // 6.3.26: guarded by CMDQEN.
            0x90 => {
                self.guard(bus, "CMDQ_BASE", (cr0 | ack) & CMDQEN == 0);
                self.check_queue(bus, "command queue", value, 16, self.config.cmdq_max_log2());
                self.registers.cmdq_base = value;
            }
            // 6.3.29: guarded by EVENTQEN.
            0xa0 => {
                self.guard(bus, "EVENTQ_BASE", (cr0 | ack) & EVENTQEN == 0);
                self.check_queue(bus, "event queue", value, 32, self.config.eventq_max_log2());
                self.registers.eventq_base = value;
            }
            // 6.3.19, 6.3.31: MSIs. An address other than 0 makes the SMMU write memory by itself.
            0x68 | 0xb0 | 0xd0 => {
                if value & ADDRESS != 0 {
                    self.violation(bus, format_args!("MSI address {value:#x} at {offset:#x}"));
                }
                let enabled = self.registers.irq_ctrl | self.registers.irq_ctrlack;
                if let Some((msi, irqen)) = self.msi_at(offset) {
                    msi.address = value & ADDRESS;
                    self.guard(bus, "IRQ_CFG0", enabled & irqen == 0);
                }
            }
            _ => self.violation(
                bus,
                format_args!("write of {value:#x} to {offset:#x}, which the model does not have"),
            ),
        }
    }

    fn guard(&self, bus: &mut Bus, name: &str, allowed: bool) {
        if !allowed {
            self.violation(bus, format_args!("{name} written while what it configures is enabled"));
        }
    }

    /// 6.3.26, 6.3.29: LOG2SIZE [4:0] at most IDR1's; ADDR [51:5] a multiple of the queue's size.
    fn check_queue(&self, bus: &mut Bus, name: &str, base: u64, entry_bytes: u64, max_log2: u32) {
        let log2 = (base & 31) as u32;
        if log2 > max_log2 {
            self.violation(
                bus,
                format_args!("{name} of 2^{log2} entries, at most 2^{max_log2} are implemented"),
            );
            return;
        }
        let address = base & 0x00ff_ffff_ffff_ffe0;
        let bytes = (entry_bytes << log2).max(32);
        if address & (bytes - 1) != 0 {
            self.violation(
                bus,
                format_args!("{name} at {address:#x} is not a multiple of its {bytes:#x} bytes"),
            );
        }
        if !bus.memory.is_ram(address) || !bus.memory.is_ram(address + bytes - 1) {
            self.violation(bus, format_args!("{name} at {address:#x} is not in RAM"));
        }
    }

    /// Writes 32 bits at an offset from the base.
    pub fn write_u32(&mut self, bus: &mut Bus, offset: u64, value: u32) {
        self.step(bus);
        let (cr0, ack) = (self.registers.cr0, self.registers.cr0ack);
        match offset {
            0x20 => self.write_cr0(bus, value),
            // 6.3.11: TABLE_* only with SMMUEN = 0, QUEUE_* only with all queues off.
            0x28 => {
                let changed = self.registers.cr1 ^ value;
                self.guard(bus, "CR1.TABLE_*", changed & 0xfc0 == 0 || (cr0 | ack) & SMMUEN == 0);
                self.guard(bus, "CR1.QUEUE_*", changed & 0x3f == 0 || (cr0 | ack) & 0xe == 0);
                self.registers.cr1 = value & 0xfff;
            }
            // 6.3.12: E2H, RECINVSID and PTM only with SMMUEN = 0 (RECINVSID: EVENTQEN = 0).
            0x2c => {
                let changed = self.registers.cr2 ^ value;
                self.guard(bus, "CR2", changed & 5 == 0 || (cr0 | ack) & SMMUEN == 0);
                self.guard(bus, "CR2.RECINVSID", changed & 2 == 0 || (cr0 | ack) & (EVENTQEN | SMMUEN) == 0);
                self.registers.cr2 = value & 7;
            }
            // 6.3.14: a write without Update is ignored, one during an update is UNPREDICTABLE.
            0x44 => {
                if self.registers.gbpa & GBPA_UPDATE != 0 {
                    self.violation(bus, "GBPA written while an update is under way");
                } else if value & GBPA_UPDATE == 0 {
                    self.violation(bus, "GBPA written without Update, which has no effect");
                } else {
                    self.registers.gbpa = value;
                    self.registers.gbpa_due_ns = bus.now_ns + self.config.register_delay_ns;
                }
            }
            0x50 => {
                self.registers.irq_ctrl = value & 7;
                self.registers.update_due_ns = bus.now_ns + self.config.register_delay_ns;
            }
            // 6.3.18: a bit may be toggled only to acknowledge an active error.
            0x64 => {
                let toggled = self.registers.gerrorn ^ value;
                let active = self.registers.gerrorn ^ self.registers.gerror;
                if toggled & !active != 0 {
                    self.violation(bus, format_args!("GERRORN toggles {toggled:#x}, active are {active:#x}"));
                }
                self.registers.gerrorn = value;
            }
            // 6.3.24: FMT [17:16], SPLIT [10:6], LOG2SIZE [5:0].
            0x88 => {
                self.guard(bus, "STRTAB_BASE_CFG", (cr0 | ack) & SMMUEN == 0);
                self.registers.strtab_base_cfg = value;
            }
            0x98 => self.write_cmdq_prod(bus, value),
            // 6.3.28: writable only with CMDQEN = 0.
            0x9c => {
                self.guard(bus, "CMDQ_CONS", (cr0 | ack) & CMDQEN == 0);
                if (cr0 | ack) & CMDQEN == 0 {
                    self.registers.cmdq_cons = value & 0x7f0f_ffff;
                }
            }
            // 6.3.31: writable only with EVENTQEN = 0.
            0x1_00a8 => {
                self.guard(bus, "EVENTQ_PROD", (cr0 | ack) & EVENTQEN == 0);
                if (cr0 | ack) & EVENTQEN == 0 {
                    self.registers.eventq_prod = value;
                }
            }
            0x1_00ac => self.registers.eventq_cons = value,
            // 6.3.20, 6.3.21 and their like: MSI data and attributes mean nothing without an address.
            0x70 | 0xb8 | 0xd8 => {
                if let Some((msi, _)) = self.msi_at(offset) {
                    msi.data = value;
                }
            }
            0x74 | 0xbc | 0xdc => {}
            // Halves of the 64-bit registers may be written alone (6.2), low half first as nobody needs another order.
            0x80 | 0x90 | 0xa0 | 0x84 | 0x94 | 0xa4 | 0x68 | 0x6c | 0xb0 | 0xb4 => {
                self.violation(bus, format_args!("half of the 64-bit register at {offset:#x} written alone"));
            }
            _ => self.violation(
                bus,
                format_args!("write of {value:#x} to {offset:#x}, which is read-only or reserved"),
            ),
        }
        self.step(bus);
    }

    /// 6.3.9: a field may be written only when CR0ACK shows its last update.
    fn write_cr0(&mut self, bus: &mut Bus, value: u32) {
        let changed = self.registers.cr0 ^ value;
        let pending = self.registers.cr0 ^ self.registers.cr0ack;
        if changed & pending != 0 {
            self.violation(
                bus,
                format_args!("CR0 fields {:#x} written before CR0ACK shows their update", changed & pending),
            );
        }
        if value & 2 != 0 && !self.config.pri() {
            self.violation(bus, "CR0.PRIQEN without PRI");
        }
        // 3.9.1.3: without ATSCHK, Translated requests go anywhere.
        if self.config.ats() && value & SMMUEN != 0 && value & ATSCHK == 0 {
            self.violation(bus, "SMMUEN set with ATS implemented and ATSCHK = 0");
        }
        if value & CMDQEN == 0 {
            self.sync_due_ns = None;
        }
        if changed & SMMUEN != 0 {
            // 3.11: nothing between power-on and translation may pass by, so GBPA must abort at both edges.
            if self.registers.gbpa & (GBPA_ABORT | GBPA_UPDATE) != GBPA_ABORT {
                self.violation(bus, "SMMUEN changes while GBPA does not abort");
            }
            if value & SMMUEN != 0 {
                self.check_stream_table(bus);
                if value & CMDQEN == 0 {
                    self.violation(bus, "SMMUEN set without a command queue");
                }
                // 3.21.1 and 6.3.9: caches hold anything after reset; they are invalidated before translation starts.
                if self.registers.gbpa & GBPA_ABORT != 0 && !self.initialised() {
                    self.violation(bus, "SMMUEN set before CFGI_ALL, TLBI_NSNH_ALL and a SYNC");
                }
            }
        }
        self.registers.cr0 = value;
        self.registers.update_due_ns = bus.now_ns + self.config.register_delay_ns;
    }

    /// Whether CFGI_ALL and an invalidation of all non-secure translations were consumed before a SYNC.
    fn initialised(&self) -> bool {
        self.count(0x04) > 0 && self.count(0x30) > 0 && self.count(0x46) > 0
    }
}
