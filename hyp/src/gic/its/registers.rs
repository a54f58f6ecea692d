//! The registers of an ITS's control frame (IHI 0069, 12.19): offsets in bytes, and fields.

/// GITS_CTLR, 32 bits.
pub const CTLR: u64 = 0x0;
/// GITS_CTLR.Enabled.
pub const CTLR_ENABLED: u32 = 1 << 0;
/// GITS_CTLR.Quiescent.
pub const CTLR_QUIESCENT: u32 = 1 << 31;
/// GITS_IIDR, 32 bits.
pub const IIDR: u64 = 0x4;
/// GITS_TYPER.
pub const TYPER: u64 = 0x8;
/// GITS_CBASER.
pub const CBASER: u64 = 0x80;
/// GITS_CWRITER.
pub const CWRITER: u64 = 0x88;
/// GITS_CREADR.
pub const CREADR: u64 = 0x90;
/// GITS_BASER0; the other seven follow.
pub const BASER: u64 = 0x100;
/// How many GITS_BASER<n> there are.
pub const BASERS: usize = 8;
/// The first identification register; they are 32 bits each, up to the end of the frame.
pub const IDENTIFICATION: u64 = 0xffd0;

/// GITS_TYPER.Physical.
pub const TYPER_PHYSICAL: u64 = 1 << 0;
/// GITS_TYPER.CCT.
pub const TYPER_CCT: u64 = 1 << 2;
/// GITS_TYPER.ITT_entry_size, less one, bits 7:4.
pub const TYPER_ITT_ENTRY_SIZE: u64 = 0xf << 4;
/// Where GITS_TYPER.ID_bits is, 5 bits: bits of an EventID, less one.
pub const TYPER_ID_BITS_SHIFT: u32 = 8;
/// Where GITS_TYPER.Devbits is, 5 bits: bits of a DeviceID, less one.
pub const TYPER_DEVBITS_SHIFT: u32 = 13;
/// GITS_TYPER.PTA: a Redistributor's address names it, not its processor number.
pub const TYPER_PTA: u64 = 1 << 19;
/// GITS_TYPER.HCC, bits 31:24: collections that need no table.
pub const TYPER_HCC: u64 = 0xff << 24;
/// Where GITS_TYPER.CIDbits is, 4 bits: bits of an ICID, less one.
pub const TYPER_CIDBITS_SHIFT: u32 = 32;
/// GITS_TYPER.CIL: CIDbits counts; else an ICID has 16 bits.
pub const TYPER_CIL: u64 = 1 << 36;

/// GITS_CBASER.Valid and GITS_BASER<n>.Valid.
pub const VALID: u64 = 1 << 63;
/// Inner cacheability write-back, read- and write-allocate; Inner Shareable. In GITS_CBASER and GITS_BASER<n> alike.
pub const COHERENT: u64 = 0b111 << 59 | 0b01 << 10;
/// Shareability of both.
pub const SHAREABILITY: u64 = 0b11 << 10;
/// GITS_CBASER.Physical_Address, bits 51:12.
pub const CBASER_ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// GITS_CBASER.Size: pages of 4 KiB, less one.
pub const CBASER_SIZE: u64 = 0xff;
/// The bits of GITS_CBASER that are not RES0.
pub const CBASER_FIELDS: u64 =
    VALID | 0b111 << 59 | 0b111 << 53 | CBASER_ADDRESS | SHAREABILITY | CBASER_SIZE;

/// GITS_CWRITER.Offset and GITS_CREADR.Offset, in bytes.
pub const OFFSET: u64 = 0xf_ffe0;
/// GITS_CWRITER.Retry.
pub const CWRITER_RETRY: u64 = 1 << 0;
/// GITS_CREADR.Stalled.
pub const CREADR_STALLED: u64 = 1 << 0;

/// GITS_BASER<n>.Type, bits 58:56, and Entry_Size, less one, bits 52:48: what cannot be written.
pub const BASER_FIXED: u64 = 0b111 << 56 | 0x1f << 48;
/// Where GITS_BASER<n>.Type is.
pub const BASER_TYPE_SHIFT: u32 = 56;
/// Where GITS_BASER<n>.Entry_Size is.
pub const BASER_ENTRY_SIZE_SHIFT: u32 = 48;
/// GITS_BASER<n>.Type of the device table.
pub const TYPE_DEVICES: u64 = 0b001;
/// GITS_BASER<n>.Type of the collection table.
pub const TYPE_COLLECTIONS: u64 = 0b100;
/// Where GITS_BASER<n>.Page_Size is, 2 bits: 4, 16 or 64 KiB.
pub const BASER_PAGE_SIZE_SHIFT: u32 = 8;
/// GITS_BASER<n>.Physical_Address, bits 47:12.
pub const BASER_ADDRESS: u64 = 0x0000_ffff_ffff_f000;
/// GITS_BASER<n>.Size: pages, less one.
pub const BASER_SIZE: u64 = 0xff;
/// What says which table it is: Valid, Physical_Address, Page_Size and Size.
pub const BASER_PLACE: u64 = VALID | BASER_ADDRESS | 0b11 << BASER_PAGE_SIZE_SHIFT | BASER_SIZE;
/// The bits of GITS_BASER<n> that the host writes. Indirect is not among them: two-level tables are not offered.
pub const BASER_FIELDS: u64 = BASER_PLACE | 0b111 << 59 | 0b111 << 53 | SHAREABILITY;
