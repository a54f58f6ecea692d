//! Offsets of registers (IHI 0070, 6.2).

/// SMMU_IDR0.
pub const IDR0: u64 = 0x0;
/// SMMU_IDR1.
pub const IDR1: u64 = 0x4;
/// SMMU_IDR3.
pub const IDR3: u64 = 0xc;
/// SMMU_CR0.
pub const CR0: u64 = 0x20;
/// SMMU_CR0ACK.
pub const CR0ACK: u64 = 0x24;
/// SMMU_CR1.
pub const CR1: u64 = 0x28;
/// SMMU_CR2.
pub const CR2: u64 = 0x2c;
/// SMMU_GBPA.
pub const GBPA: u64 = 0x44;
/// SMMU_IRQ_CTRL.
pub const IRQ_CTRL: u64 = 0x50;
/// SMMU_IRQ_CTRLACK.
pub const IRQ_CTRLACK: u64 = 0x54;
/// SMMU_GERROR.
pub const GERROR: u64 = 0x60;
/// SMMU_GERRORN.
pub const GERRORN: u64 = 0x64;
/// SMMU_GERROR_IRQ_CFG0.
pub const GERROR_IRQ_CFG0: u64 = 0x68;
/// SMMU_STRTAB_BASE.
pub const STRTAB_BASE: u64 = 0x80;
/// SMMU_STRTAB_BASE_CFG.
pub const STRTAB_BASE_CFG: u64 = 0x88;
/// SMMU_CMDQ_BASE.
pub const CMDQ_BASE: u64 = 0x90;
/// SMMU_CMDQ_PROD.
pub const CMDQ_PROD: u64 = 0x98;
/// SMMU_CMDQ_CONS.
pub const CMDQ_CONS: u64 = 0x9c;
/// SMMU_EVENTQ_BASE.
pub const EVENTQ_BASE: u64 = 0xa0;
/// SMMU_EVENTQ_IRQ_CFG0.
pub const EVENTQ_IRQ_CFG0: u64 = 0xb0;
/// SMMU_EVENTQ_PROD, in page 1.
pub const EVENTQ_PROD: u64 = 0x1_00a8;
/// SMMU_EVENTQ_CONS, in page 1.
pub const EVENTQ_CONS: u64 = 0x1_00ac;
