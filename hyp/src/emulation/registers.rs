//! The registers, and the writes that change nothing but the register (IHI 0070, 6.3).

use smmuv3::features::IdRegisters;
use smmuv3::registers::{
    AIDR_OFFSET, CMDQ_BASE_OFFSET, CMDQ_CONS, CMDQ_CONS_OFFSET, CMDQ_PROD, CMDQ_PROD_OFFSET, CR0, CR0_OFFSET,
    CR0ACK_OFFSET, CR1, CR1_OFFSET, CR2, CR2_OFFSET, EVENTQ_BASE_OFFSET, EVENTQ_CONS, EVENTQ_CONS_OFFSET,
    EVENTQ_IRQ_CFG0_OFFSET, EVENTQ_IRQ_CFG1_OFFSET, EVENTQ_IRQ_CFG2_OFFSET, EVENTQ_PROD, EVENTQ_PROD_OFFSET,
    GBPA, GBPA_OFFSET, GERROR, GERROR_IRQ_CFG0_OFFSET, GERROR_IRQ_CFG1_OFFSET, GERROR_IRQ_CFG2_OFFSET,
    GERROR_OFFSET, GERRORN_OFFSET, IDR0, IDR0_OFFSET, IDR1, IDR1_OFFSET, IDR3_OFFSET, IDR5_OFFSET,
    IIDR_OFFSET, IRQ_CFG0, IRQ_CFG2, IRQ_CTRL, IRQ_CTRL_OFFSET, IRQ_CTRLACK_OFFSET, PAGE1, QUEUE_BASE,
    STRTAB_BASE, STRTAB_BASE_CFG, STRTAB_BASE_CFG_OFFSET, STRTAB_BASE_OFFSET,
};

/// The bits of a field, where they stand.
macro_rules! bits {
    ($field:path) => {
        ($field.mask << $field.shift)
    };
}

/// CR0.SMMUEN.
pub(super) const SMMUEN: u32 = bits!(CR0::SMMUEN);
/// CR0.EVENTQEN.
pub(super) const EVENTQEN: u32 = bits!(CR0::EVENTQEN);
/// CR0.CMDQEN.
pub(super) const CMDQEN: u32 = bits!(CR0::CMDQEN);
/// CR0.ATSCHK.
const ATSCHK: u32 = bits!(CR0::ATSCHK);

/// CR1.TABLE_*.
const CR1_TABLE: u32 = bits!(CR1::TABLE_IC) | bits!(CR1::TABLE_OC) | bits!(CR1::TABLE_SH);
/// CR1.QUEUE_*.
const CR1_QUEUE: u32 = bits!(CR1::QUEUE_IC) | bits!(CR1::QUEUE_OC) | bits!(CR1::QUEUE_SH);
/// CR2: without IDR0.HYP and IDR0.BTM there is RECINVSID alone.
const CR2_BITS: u32 = bits!(CR2::RECINVSID);
/// IRQ_CTRL without IDR0.PRI.
const IRQ_CTRL_BITS: u32 = bits!(IRQ_CTRL::GERROR_IRQEN) | bits!(IRQ_CTRL::EVENTQ_IRQEN);
/// GERROR without IDR0.PRI.
const GERROR_BITS: u32 = bits!(GERROR::CMDQ_ERR)
    | bits!(GERROR::EVENTQ_ABT_ERR)
    | bits!(GERROR::MSI_CMDQ_ABT_ERR)
    | bits!(GERROR::MSI_EVENTQ_ABT_ERR)
    | bits!(GERROR::MSI_GERROR_ABT_ERR)
    | bits!(GERROR::SFM_ERR);
const STRTAB_BASE_BITS: u64 = bits!(STRTAB_BASE::ADDR) | bits!(STRTAB_BASE::RA);
const STRTAB_BASE_CFG_BITS: u32 =
    bits!(STRTAB_BASE_CFG::LOG2SIZE) | bits!(STRTAB_BASE_CFG::SPLIT) | bits!(STRTAB_BASE_CFG::FMT);
const QUEUE_BASE_BITS: u64 =
    bits!(QUEUE_BASE::ADDR) | bits!(QUEUE_BASE::LOG2SIZE) | bits!(QUEUE_BASE::ALLOCATE);
const EVENTQ_PROD_BITS: u32 = bits!(EVENTQ_PROD::WR) | bits!(EVENTQ_PROD::OVFLG);
const EVENTQ_CONS_BITS: u32 = bits!(EVENTQ_CONS::RD) | bits!(EVENTQ_CONS::OVACKFLG);
const IRQ_CFG0_BITS: u64 = bits!(IRQ_CFG0::ADDR);
const IRQ_CFG2_BITS: u32 = bits!(IRQ_CFG2::MEMATTR) | bits!(IRQ_CFG2::SH);

/// GBPA: transactions abort; no attribute is overridden.
const GBPA_VALUE: u32 = bits!(GBPA::ABORT) | 1 << GBPA::SHCFG.shift;
/// AIDR: SMMUv3.1.
const AIDR_VALUE: u32 = 0x1;

/// The aliases in page 0 of EVENTQ_PROD and EVENTQ_CONS (6.2.1).
const EVENTQ_PROD_ALIAS: u64 = EVENTQ_PROD_OFFSET - PAGE1;
const EVENTQ_CONS_ALIAS: u64 = EVENTQ_CONS_OFFSET - PAGE1;

/// Where and how the MSI of a register-based interrupt would be sent.
#[derive(Clone, Copy, Debug, Default)]
struct IrqConfig {
    address: u64,
    data: u32,
    attributes: u32,
}

/// The registers as they read, and between them what has effects elsewhere.
#[derive(Clone, Debug)]
pub(super) struct RegisterFile {
    pub(super) cr0: u32,
    pub(super) cr0ack: u32,
    cr1: u32,
    pub(super) cr2: u32,
    pub(super) irq_ctrl: u32,
    pub(super) gerror: u32,
    pub(super) gerrorn: u32,
    pub(super) strtab_base: u64,
    pub(super) strtab_base_cfg: u32,
    pub(super) cmdq_base: u64,
    pub(super) cmdq_prod: u32,
    /// RD alone.
    pub(super) cmdq_cons: u32,
    /// ERR, as a number.
    pub(super) cmdq_error: u8,
    pub(super) eventq_base: u64,
    pub(super) eventq_prod: u32,
    pub(super) eventq_cons: u32,
    gerror_irq: IrqConfig,
    eventq_irq: IrqConfig,
}

impl RegisterFile {
    /// Out of reset: what resets to an UNKNOWN value is 0.
    pub(super) const fn new() -> Self {
        const NONE: IrqConfig = IrqConfig { address: 0, data: 0, attributes: 0 };
        Self {
            cr0: 0,
            cr0ack: 0,
            cr1: 0,
            cr2: 0,
            irq_ctrl: 0,
            gerror: 0,
            gerrorn: 0,
            strtab_base: 0,
            strtab_base_cfg: 0,
            cmdq_base: 0,
            cmdq_prod: 0,
            cmdq_cons: 0,
            cmdq_error: 0,
            eventq_base: 0,
            eventq_prod: 0,
            eventq_cons: 0,
            gerror_irq: NONE,
            eventq_irq: NONE,
        }
    }

    /// The word at `offset`, a multiple of 4. What is no register reads as zero (6.2).
    pub(super) fn read(&self, ids: &IdRegisters, offset: u64) -> u32 {
        match offset {
            EVENTQ_PROD_OFFSET | EVENTQ_PROD_ALIAS => self.eventq_prod,
            GERROR_OFFSET => self.gerror,
            _ => self.peek(ids, offset).unwrap_or(0),
        }
    }

    /// As [`RegisterFile::read`]; `None` where the SMMU is to be looked at first.
    #[inline(always)]
    pub(super) fn peek(&self, ids: &IdRegisters, offset: u64) -> Option<u32> {
        Some(match offset {
            CMDQ_PROD_OFFSET => self.cmdq_prod,
            CMDQ_CONS_OFFSET => {
                // Above the wrap bit the register reads as zero (6.3.28).
                let index = self.cmdq_cons & wrap_mask(queue_log2(ids, Queue::Commands, self.cmdq_base));
                index | u32::from(self.cmdq_error) << CMDQ_CONS::ERR.shift
            }
            EVENTQ_PROD_OFFSET | EVENTQ_PROD_ALIAS | GERROR_OFFSET => return None,
            EVENTQ_CONS_OFFSET | EVENTQ_CONS_ALIAS => self.eventq_cons,
            GERRORN_OFFSET => self.gerrorn,
            CR0_OFFSET => self.cr0,
            CR0ACK_OFFSET => self.cr0ack,
            IRQ_CTRL_OFFSET | IRQ_CTRLACK_OFFSET => self.irq_ctrl,
            CR1_OFFSET => self.cr1,
            CR2_OFFSET => self.cr2,
            GBPA_OFFSET => GBPA_VALUE,
            IDR0_OFFSET => ids.idr0,
            IDR1_OFFSET => ids.idr1,
            IDR3_OFFSET => ids.idr3,
            IDR5_OFFSET => ids.idr5,
            IIDR_OFFSET => ids.iidr,
            AIDR_OFFSET => AIDR_VALUE,
            STRTAB_BASE_CFG_OFFSET => self.strtab_base_cfg,
            GERROR_IRQ_CFG1_OFFSET => self.gerror_irq.data,
            GERROR_IRQ_CFG2_OFFSET => self.gerror_irq.attributes,
            EVENTQ_IRQ_CFG1_OFFSET => self.eventq_irq.data,
            EVENTQ_IRQ_CFG2_OFFSET => self.eventq_irq.attributes,
            _ => match offset & !4 {
                STRTAB_BASE_OFFSET => half(self.strtab_base, offset),
                CMDQ_BASE_OFFSET => half(self.cmdq_base, offset),
                EVENTQ_BASE_OFFSET => half(self.eventq_base, offset),
                GERROR_IRQ_CFG0_OFFSET => half(self.gerror_irq.address, offset),
                EVENTQ_IRQ_CFG0_OFFSET => half(self.eventq_irq.address, offset),
                _ => 0,
            },
        })
    }

    /// Writes the word at `offset`, a multiple of 4, of a register that is read by what uses it only. Guarded registers ignore it while
    /// they are guarded, read-only ones and what is no register always. GBPA always says abort.
    pub(super) fn write(&mut self, offset: u64, value: u32) {
        match offset {
            EVENTQ_CONS_OFFSET | EVENTQ_CONS_ALIAS => self.eventq_cons = value & EVENTQ_CONS_BITS,
            EVENTQ_PROD_OFFSET | EVENTQ_PROD_ALIAS if !self.is_on(EVENTQEN) => {
                self.eventq_prod = value & EVENTQ_PROD_BITS;
            }
            CMDQ_CONS_OFFSET if !self.is_on(CMDQEN) => self.cmdq_cons = value & bits!(CMDQ_CONS::RD),
            CR1_OFFSET => {
                let mut writable = 0;
                if !self.is_on(SMMUEN) {
                    writable |= CR1_TABLE;
                }
                if !self.is_on(CMDQEN | EVENTQEN) {
                    writable |= CR1_QUEUE;
                }
                self.cr1 = self.cr1 & !writable | value & writable;
            }
            CR2_OFFSET if !self.is_on(SMMUEN) => self.cr2 = value & CR2_BITS,
            IRQ_CTRL_OFFSET => self.irq_ctrl = value & IRQ_CTRL_BITS,
            STRTAB_BASE_CFG_OFFSET if !self.is_on(SMMUEN) => {
                self.strtab_base_cfg = value & STRTAB_BASE_CFG_BITS;
            }
            _ => self.write_half(offset, value),
        }
    }

    /// Writes half a register of 64 bits, or a word of where an MSI goes.
    fn write_half(&mut self, offset: u64, value: u32) {
        match offset & !4 {
            STRTAB_BASE_OFFSET if !self.is_on(SMMUEN) => {
                set_half(&mut self.strtab_base, offset, value, STRTAB_BASE_BITS);
            }
            CMDQ_BASE_OFFSET if !self.is_on(CMDQEN) => {
                set_half(&mut self.cmdq_base, offset, value, QUEUE_BASE_BITS);
            }
            EVENTQ_BASE_OFFSET if !self.is_on(EVENTQEN) => {
                set_half(&mut self.eventq_base, offset, value, QUEUE_BASE_BITS);
            }
            GERROR_IRQ_CFG0_OFFSET | GERROR_IRQ_CFG1_OFFSET
                if self.irq_ctrl & bits!(IRQ_CTRL::GERROR_IRQEN) == 0 =>
            {
                self.gerror_irq.write(offset.wrapping_sub(GERROR_IRQ_CFG0_OFFSET), value);
            }
            EVENTQ_IRQ_CFG0_OFFSET | EVENTQ_IRQ_CFG1_OFFSET
                if self.irq_ctrl & bits!(IRQ_CTRL::EVENTQ_IRQEN) == 0 =>
            {
                self.eventq_irq.write(offset.wrapping_sub(EVENTQ_IRQ_CFG0_OFFSET), value);
            }
            _ => {}
        }
    }

    /// CMDQ_PROD, which may be written at any time (6.3.27).
    pub(super) const fn set_cmdq_prod(&mut self, value: u32) {
        self.cmdq_prod = value & bits!(CMDQ_PROD::WR);
    }

    /// CR0, whose update is yet to come. What IDR0 does not have is reserved.
    pub(super) fn set_cr0(&mut self, ids: &IdRegisters, value: u32) {
        let ats = if IDR0::ATS.is_set(ids.idr0) { ATSCHK } else { 0 };
        self.cr0 = value & (SMMUEN | EVENTQEN | CMDQEN | ats);
    }

    /// GERRORN: of the errors that are active, those end whose bits differ (6.3.20).
    pub(super) const fn acknowledge(&mut self, value: u32) {
        self.gerrorn ^= (value ^ self.gerrorn) & self.active_errors();
    }

    /// The errors that are active, as bits of GERROR.
    pub(super) const fn active_errors(&self) -> u32 {
        (self.gerror ^ self.gerrorn) & GERROR_BITS
    }

    /// Whether any of these bits of CR0 is set, or not yet acknowledged to be clear.
    const fn is_on(&self, enables: u32) -> bool {
        (self.cr0 | self.cr0ack) & enables != 0
    }
}

impl IrqConfig {
    /// Writes the word at an offset from CFG0.
    const fn write(&mut self, offset: u64, value: u32) {
        match offset {
            0x0 | 0x4 => set_half(&mut self.address, offset, value, IRQ_CFG0_BITS),
            0x8 => self.data = value,
            _ => self.attributes = value & IRQ_CFG2_BITS,
        }
    }
}

/// One of the two queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Queue {
    /// The command queue.
    Commands,
    /// The event queue.
    Events,
}

/// log2 of the entries of a queue with this base register: LOG2SIZE, as far as IDR1 allows (6.3.26, 6.3.29).
pub(super) fn queue_log2(ids: &IdRegisters, queue: Queue, base: u64) -> u32 {
    let most = match queue {
        Queue::Commands => IDR1::CMDQS.read(ids.idr1),
        Queue::Events => IDR1::EVENTQS.read(ids.idr1),
    };
    (QUEUE_BASE::LOG2SIZE.read(base) as u32).min(most).min(MOST_ENTRIES_LOG2)
}

/// log2 of the most entries that an index has bits for (3.5.1).
const MOST_ENTRIES_LOG2: u32 = 19;

/// The bits of an index and its wrap bit, for a queue of `1 << log2` entries, 19 at the most.
pub(super) const fn wrap_mask(log2: u32) -> u32 {
    (2 << log2) - 1
}

/// The base of a queue of entries of `1 << entry_log2` bytes, aligned as the SMMU does (6.3.26, 6.3.29).
pub(super) fn queue_base(base: u64, log2: u32, entry_log2: u32) -> u64 {
    let size_log2 = log2.saturating_add(entry_log2).min(63);
    base & bits!(QUEUE_BASE::ADDR) & !((1 << size_log2) - 1)
}

/// The half of a register that `offset` names.
const fn half(value: u64, offset: u64) -> u32 {
    if offset & 4 == 0 { value as u32 } else { (value >> 32) as u32 }
}

/// Writes the half that `offset` names, of a register that has the bits of `mask`.
const fn set_half(register: &mut u64, offset: u64, value: u32, mask: u64) {
    let written = if offset & 4 == 0 {
        *register & !0xffff_ffff | value as u64
    } else {
        *register & 0xffff_ffff | (value as u64) << 32
    };
    *register = written & mask;
}
