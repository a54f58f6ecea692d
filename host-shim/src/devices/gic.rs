//! Registers of an ITS and of Redistributors, as far as LPIs need them (IHI 0069, 12.11 and 12.19).

/// Of an ITS's control frame.
pub mod its {
    /// GITS_CTLR.
    pub const CTLR: u64 = 0x0;
    /// GITS_CTLR.Enabled.
    pub const ENABLED: u64 = 1 << 0;
    /// GITS_CBASER.
    pub const CBASER: u64 = 0x80;
    /// GITS_CWRITER.
    pub const CWRITER: u64 = 0x88;
    /// GITS_CREADR.
    pub const CREADR: u64 = 0x90;
    /// GITS_BASER0, which the others follow, 8 bytes each.
    pub const BASER: u64 = 0x100;
    /// How many of these there are.
    pub const BASERS: u64 = 8;
    /// Valid, of GITS_CBASER, GITS_BASER<n> and commands.
    pub const VALID: u64 = 1 << 63;
    /// Bytes of a command (5.3).
    pub const COMMAND_BYTES: u64 = 32;
}

/// Of RD_base.
pub mod lpis {
    /// GICR_CTLR.
    pub const CTLR: u64 = 0x0;
    /// GICR_CTLR.EnableLPIs.
    pub const ENABLE: u32 = 1 << 0;
    /// GICR_PROPBASER.
    pub const PROPBASER: u64 = 0x70;
    /// GICR_PENDBASER.
    pub const PENDBASER: u64 = 0x78;
    /// GICR_PROPBASER.IDbits: INTIDs of 14 bits, so that each table is within [`TABLE_BYTES`].
    pub const ID_BITS: u64 = 13;
    /// GICR_PENDBASER.PTZ: the table is all zeros.
    pub const ALL_ZEROS: u64 = 1 << 62;
    /// What each of the two tables lies in, and is aligned to.
    pub const TABLE_BYTES: u64 = 0x1_0000;
}
