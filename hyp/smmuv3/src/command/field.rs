//! Fields of commands (IHI 0070, 4.3 to 4.7) as masks of the word that they stand in.

/// Word 0 of every command: the opcode.
pub(crate) const OPCODE: u64 = 0xff;
/// Word 0 of commands about a stream: StreamID.
pub(crate) const STREAM: u64 = 0xffff_ffff << 32;
/// Word 0 of CFGI_CD and ATC_INV: SubstreamID.
pub(crate) const SUBSTREAM: u64 = 0xf_ffff << 12;
/// Word 0 of ATC_INV: Global.
pub(crate) const GLOBAL: u64 = 1 << 9;
/// Word 0 of ATC_INV: SSV, the command has a SubstreamID.
pub(crate) const SSV: u64 = 1 << 11;
/// Word 1 of PREFETCH_ADDR: Size and Stride.
pub(crate) const PREFETCH_SPAN: u64 = 0x3ff;
/// Word 1 of CFGI_STE_RANGE: Range.
pub(crate) const RANGE: u64 = 0x1f;
/// Word 1 of ATC_INV: Size.
pub(crate) const SIZE: u64 = 0x3f;

/// Word 0 of a `TLBI` by address: NUM.
pub(crate) const NUM: u64 = 0x1f << 12;
/// Word 0 of a `TLBI` by address: SCALE. Bit 25 counts where IDR5.DS is 1 only.
pub(crate) const SCALE: u64 = 0x3f << 20;
/// Word 0 of a `TLBI`: VMID.
pub(crate) const VMID: u64 = 0xffff << 32;
/// Word 0 of a `TLBI`: ASID.
pub(crate) const ASID: u64 = 0xffff << 48;
/// Word 1 of CFGI_CD, CFGI_STE and a `TLBI` by address: Leaf.
pub(crate) const LEAF: u64 = 1;
/// Word 1 of a `TLBI` by address: TTL.
pub(crate) const TTL: u64 = 0b11 << 8;
/// Word 1 of a `TLBI` by address: TG.
pub(crate) const TG: u64 = 0b11 << 10;
/// Word 1 of ATC_INV and a `TLBI` by address: Address, whose bits below 12 are 0.
pub(crate) const ADDRESS: u64 = !0xfff;

/// Word 0 of SYNC: CS, how its completion is signalled.
pub(crate) const CS: u64 = 0b11 << 12;
/// Word 0 of SYNC: MSIData.
pub(crate) const MSI_DATA: u64 = 0xffff_ffff << 32;
/// Word 0 of SYNC: MSH, MSIAttr and MSIData, which count with CS = SIG_IRQ only.
pub(crate) const MSI: u64 = 0b11 << 22 | 0xf << 24 | 0xffff_ffff << 32;
/// Word 1 of SYNC: MSIAddress, which counts with CS = SIG_IRQ only.
pub(crate) const MSI_ADDRESS: u64 = 0x00ff_ffff_ffff_fffc;

/// The field of `word` that `mask` covers, as a number.
pub(crate) const fn read(word: u64, mask: u64) -> u64 {
    (word & mask) >> mask.trailing_zeros()
}

/// `value` in the field that `mask` covers; what does not fit is dropped.
pub(crate) const fn write(mask: u64, value: u64) -> u64 {
    value << mask.trailing_zeros() & mask
}
