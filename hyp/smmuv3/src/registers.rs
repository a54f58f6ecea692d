//! Register offsets and fields (IHI 0070, chapter 6).
//!
//! Offsets are in bytes from register page 0, but for the two that [`PAGE1`] is part of. A field is used as
//! `IDR0::S2P.read(value)`; what a field may hold beyond the named values is left open, because hardware newer than
//! this text may say it.

#![expect(missing_docs, reason = "register_bitfields! adds items of its own beside the documented fields")]

use tock_registers::register_bitfields;

/// Offset of register page 1 (6.1): both pages are 64 KiB.
pub const PAGE1: u64 = 0x1_0000;
/// Bytes of register space that an SMMU has at the least: page 0 and page 1.
pub const SPACE_BYTES: u64 = 0x2_0000;

/// Feature register 0 (6.3.1), 32 bits.
pub const IDR0_OFFSET: u64 = 0x00;
/// Feature register 1 (6.3.2), 32 bits.
pub const IDR1_OFFSET: u64 = 0x04;
/// Feature register 2 (6.3.3), 32 bits.
pub const IDR2_OFFSET: u64 = 0x08;
/// Feature register 3 (6.3.4), 32 bits.
pub const IDR3_OFFSET: u64 = 0x0c;
/// Feature register 5 (6.3.6), 32 bits.
pub const IDR5_OFFSET: u64 = 0x14;
/// Implementer, product, variant and revision (6.3.7), 32 bits.
pub const IIDR_OFFSET: u64 = 0x18;
/// Architecture version (6.3.8), 32 bits.
pub const AIDR_OFFSET: u64 = 0x1c;
/// Control register 0 (6.3.9), 32 bits.
pub const CR0_OFFSET: u64 = 0x20;
/// Acknowledges an update of CR0 (6.3.10), 32 bits.
pub const CR0ACK_OFFSET: u64 = 0x24;
/// Memory attributes of tables and queues (6.3.11), 32 bits, read-only while SMMUEN or a queue is enabled.
pub const CR1_OFFSET: u64 = 0x28;
/// Control register 2 (6.3.12), 32 bits, read-only while SMMUEN.
pub const CR2_OFFSET: u64 = 0x2c;
/// Global bypass attributes (6.3.14), 32 bits.
pub const GBPA_OFFSET: u64 = 0x44;
/// Interrupt enables (6.3.17), 32 bits.
pub const IRQ_CTRL_OFFSET: u64 = 0x50;
/// Acknowledges an update of IRQ_CTRL (6.3.18), 32 bits.
pub const IRQ_CTRLACK_OFFSET: u64 = 0x54;
/// Global errors, toggled by the SMMU (6.3.19), 32 bits.
pub const GERROR_OFFSET: u64 = 0x60;
/// Global errors, acknowledged by software (6.3.20), 32 bits.
pub const GERRORN_OFFSET: u64 = 0x64;
/// MSI of global errors: address (6.3.21), 64 bits, read-only while they interrupt.
pub const GERROR_IRQ_CFG0_OFFSET: u64 = 0x68;
/// MSI of global errors: data (6.3.22), 32 bits.
pub const GERROR_IRQ_CFG1_OFFSET: u64 = 0x70;
/// MSI of global errors: memory attributes (6.3.23), 32 bits.
pub const GERROR_IRQ_CFG2_OFFSET: u64 = 0x74;
/// Stream table base (6.3.24), 64 bits.
pub const STRTAB_BASE_OFFSET: u64 = 0x80;
/// Stream table format and size (6.3.25), 32 bits.
pub const STRTAB_BASE_CFG_OFFSET: u64 = 0x88;
/// Command queue base (6.3.26), 64 bits.
pub const CMDQ_BASE_OFFSET: u64 = 0x90;
/// Command queue producer index (6.3.27), 32 bits.
pub const CMDQ_PROD_OFFSET: u64 = 0x98;
/// Command queue consumer index and error (6.3.28), 32 bits.
pub const CMDQ_CONS_OFFSET: u64 = 0x9c;
/// Event queue base (6.3.29), 64 bits.
pub const EVENTQ_BASE_OFFSET: u64 = 0xa0;
/// MSI of the event queue: address (6.3.30), 64 bits, read-only while it interrupts.
pub const EVENTQ_IRQ_CFG0_OFFSET: u64 = 0xb0;
/// MSI of the event queue: data, 32 bits.
pub const EVENTQ_IRQ_CFG1_OFFSET: u64 = 0xb8;
/// MSI of the event queue: memory attributes, 32 bits.
pub const EVENTQ_IRQ_CFG2_OFFSET: u64 = 0xbc;
/// MSI of the PRI queue: address, 64 bits, read-only while it interrupts.
pub const PRIQ_IRQ_CFG0_OFFSET: u64 = 0xd0;
/// Event queue producer index, 32 bits, in page 1.
pub const EVENTQ_PROD_OFFSET: u64 = PAGE1 + 0xa8;
/// Event queue consumer index, 32 bits, in page 1.
pub const EVENTQ_CONS_OFFSET: u64 = PAGE1 + 0xac;

register_bitfields![u32,
    /// Feature register 0 (6.3.1).
    pub IDR0 [
        /// Stage 2 is supported.
        S2P OFFSET(0) NUMBITS(1) [],
        /// Stage 1 is supported.
        S1P OFFSET(1) NUMBITS(1) [],
        /// Translation table formats.
        TTF OFFSET(2) NUMBITS(2) [
            /// VMSAv8-64.
            AArch64 = 0b10,
            /// VMSAv8-32 LPAE and VMSAv8-64.
            Both = 0b11
        ],
        /// Table walks, queues and structures are coherent with the CPUs.
        COHACC OFFSET(4) NUMBITS(1) [],
        /// Hears the CPUs' broadcast TLB maintenance.
        BTM OFFSET(5) NUMBITS(1) [],
        /// Hardware update of access flag and dirty state.
        HTTU OFFSET(6) NUMBITS(2) [],
        /// StreamWorld EL2.
        HYP OFFSET(9) NUMBITS(1) [],
        /// Address Translation Services.
        ATS OFFSET(10) NUMBITS(1) [],
        /// Split-stage ATS (STE.EATS = 0b10) is not supported.
        NS1ATS OFFSET(11) NUMBITS(1) [],
        /// 16-bit ASIDs.
        ASID16 OFFSET(12) NUMBITS(1) [],
        /// Message-signalled interrupts.
        MSI OFFSET(13) NUMBITS(1) [],
        /// Events wake CPUs that wait in WFE.
        SEV OFFSET(14) NUMBITS(1) [],
        /// Page Request Interface.
        PRI OFFSET(16) NUMBITS(1) [],
        /// VMID wildcards.
        VMW OFFSET(17) NUMBITS(1) [],
        /// 16-bit VMIDs.
        VMID16 OFFSET(18) NUMBITS(1) [],
        /// Two-level tables of context descriptors.
        CD2L OFFSET(19) NUMBITS(1) [],
        /// Endianness of tables.
        TTENDIAN OFFSET(21) NUMBITS(2) [
            /// Either, as STE and CD say.
            Mixed = 0b00,
            /// Little-endian.
            Little = 0b10,
            /// Big-endian.
            Big = 0b11
        ],
        /// Stall model.
        STALL_MODEL OFFSET(24) NUMBITS(2) [
            /// Stall or terminate, as STE and CD say.
            StallAndTerminate = 0b00,
            /// Faults terminate.
            Terminate = 0b01,
            /// Faults stall, always.
            ForcedStall = 0b10
        ],
        /// Behaviour of terminated transactions can be chosen.
        TERM_MODEL OFFSET(26) NUMBITS(1) [],
        /// Stream table formats.
        ST_LEVEL OFFSET(27) NUMBITS(2) [
            /// Linear.
            Linear = 0b00,
            /// Linear and two-level.
            TwoLevel = 0b01
        ]
    ],
    /// Feature register 1 (6.3.2).
    pub IDR1 [
        /// Width of a StreamID in bits.
        SIDSIZE OFFSET(0) NUMBITS(6) [],
        /// Width of a SubstreamID in bits.
        SSIDSIZE OFFSET(6) NUMBITS(5) [],
        /// log2 of the most entries of an event queue.
        EVENTQS OFFSET(16) NUMBITS(5) [],
        /// log2 of the most entries of a command queue.
        CMDQS OFFSET(21) NUMBITS(5) [],
        /// Memory attributes of DMA are the SMMU's own.
        ATTR_TYPES_OVR OFFSET(27) NUMBITS(1) [],
        /// Bases of queues are fixed.
        QUEUES_PRESET OFFSET(29) NUMBITS(1) [],
        /// Base of the stream table is fixed.
        TABLES_PRESET OFFSET(30) NUMBITS(1) []
    ],
    /// Feature register 3 (6.3.4).
    pub IDR3 [
        /// Range invalidation and TTL hints.
        RIL OFFSET(10) NUMBITS(1) [],
        /// Level of break-before-make behaviour.
        BBML OFFSET(11) NUMBITS(2) []
    ],
    /// Feature register 5 (6.3.6).
    pub IDR5 [
        /// Output address size.
        OAS OFFSET(0) NUMBITS(3) [],
        /// 4 KiB granule.
        GRAN4K OFFSET(4) NUMBITS(1) [],
        /// 16 KiB granule.
        GRAN16K OFFSET(5) NUMBITS(1) [],
        /// 64 KiB granule.
        GRAN64K OFFSET(6) NUMBITS(1) [],
        /// Virtual address extent.
        VAX OFFSET(10) NUMBITS(2) [],
        /// Most outstanding stalls.
        STALL_MAX OFFSET(16) NUMBITS(16) []
    ],
    /// Implementation (6.3.7).
    pub IIDR [
        /// JEP106 code of the implementer.
        IMPLEMENTER OFFSET(0) NUMBITS(12) [],
        /// Minor revision (pM).
        REVISION OFFSET(12) NUMBITS(4) [],
        /// Major revision (rN).
        VARIANT OFFSET(16) NUMBITS(4) [],
        /// Product.
        PRODUCT OFFSET(20) NUMBITS(12) []
    ],
    /// Control register 0 (6.3.9), and CR0ACK.
    pub CR0 [
        /// Translation is enabled.
        SMMUEN OFFSET(0) NUMBITS(1) [],
        /// PRI queue is enabled.
        PRIQEN OFFSET(1) NUMBITS(1) [],
        /// Event queue is enabled.
        EVENTQEN OFFSET(2) NUMBITS(1) [],
        /// Command queue is enabled.
        CMDQEN OFFSET(3) NUMBITS(1) [],
        /// Translated ATS requests are checked.
        ATSCHK OFFSET(4) NUMBITS(1) [],
        /// Matching of VMID wildcards.
        VMW OFFSET(6) NUMBITS(3) []
    ],
    /// Control register 1 (6.3.11).
    pub CR1 [
        /// Inner cacheability of queues.
        QUEUE_IC OFFSET(0) NUMBITS(2) [
            /// Write-back.
            WriteBack = 0b01
        ],
        /// Outer cacheability of queues.
        QUEUE_OC OFFSET(2) NUMBITS(2) [
            /// Write-back.
            WriteBack = 0b01
        ],
        /// Shareability of queues.
        QUEUE_SH OFFSET(4) NUMBITS(2) [
            /// Inner shareable.
            Inner = 0b11
        ],
        /// Inner cacheability of tables.
        TABLE_IC OFFSET(6) NUMBITS(2) [
            /// Write-back.
            WriteBack = 0b01
        ],
        /// Outer cacheability of tables.
        TABLE_OC OFFSET(8) NUMBITS(2) [
            /// Write-back.
            WriteBack = 0b01
        ],
        /// Shareability of tables.
        TABLE_SH OFFSET(10) NUMBITS(2) [
            /// Inner shareable.
            Inner = 0b11
        ]
    ],
    /// Control register 2 (6.3.12).
    pub CR2 [
        /// StreamWorld EL2 has ASIDs.
        E2H OFFSET(0) NUMBITS(1) [],
        /// Transactions with a StreamID out of range are recorded.
        RECINVSID OFFSET(1) NUMBITS(1) [],
        /// Broadcast TLB maintenance is not heard.
        PTM OFFSET(2) NUMBITS(1) []
    ],
    /// Global bypass attributes (6.3.14).
    pub GBPA [
        /// Shareability of what passes while SMMUEN is 0.
        SHCFG OFFSET(12) NUMBITS(2) [
            /// The incoming one.
            Incoming = 0b01
        ],
        /// All transactions abort while SMMUEN is 0.
        ABORT OFFSET(20) NUMBITS(1) [],
        /// An update is under way.
        UPDATE OFFSET(31) NUMBITS(1) []
    ],
    /// Interrupt enables (6.3.17).
    pub IRQ_CTRL [
        /// Global errors interrupt.
        GERROR_IRQEN OFFSET(0) NUMBITS(1) [],
        /// The PRI queue interrupts.
        PRIQ_IRQEN OFFSET(1) NUMBITS(1) [],
        /// The event queue interrupts.
        EVENTQ_IRQEN OFFSET(2) NUMBITS(1) []
    ],
    /// Global errors (6.3.19), and GERRORN: an error is active while its bits in the two differ.
    pub GERROR [
        /// A command queue error: CMDQ_CONS.ERR says which.
        CMDQ_ERR OFFSET(0) NUMBITS(1) [],
        /// Writing the event queue was aborted; events may be lost.
        EVENTQ_ABT_ERR OFFSET(2) NUMBITS(1) [],
        /// Writing the PRI queue was aborted.
        PRIQ_ABT_ERR OFFSET(3) NUMBITS(1) [],
        /// The MSI of a CMD_SYNC was aborted.
        MSI_CMDQ_ABT_ERR OFFSET(4) NUMBITS(1) [],
        /// The MSI of the event queue was aborted.
        MSI_EVENTQ_ABT_ERR OFFSET(5) NUMBITS(1) [],
        /// The MSI of the PRI queue was aborted.
        MSI_PRIQ_ABT_ERR OFFSET(6) NUMBITS(1) [],
        /// The MSI of a global error was aborted.
        MSI_GERROR_ABT_ERR OFFSET(7) NUMBITS(1) [],
        /// The SMMU has entered service failure mode: every transaction aborts.
        SFM_ERR OFFSET(8) NUMBITS(1) []
    ],
    /// Stream table format (6.3.25).
    pub STRTAB_BASE_CFG [
        /// log2 of the number of StreamIDs that the table covers.
        LOG2SIZE OFFSET(0) NUMBITS(6) [],
        /// StreamID bits that index level 2.
        SPLIT OFFSET(6) NUMBITS(5) [],
        /// Format.
        FMT OFFSET(16) NUMBITS(2) [
            /// Linear.
            Linear = 0b00,
            /// Two levels.
            TwoLevel = 0b01
        ]
    ],
    /// Memory attributes of an MSI (6.3.23).
    pub IRQ_CFG2 [
        /// Memory type.
        MEMATTR OFFSET(0) NUMBITS(4) [],
        /// Shareability.
        SH OFFSET(4) NUMBITS(2) []
    ],
    /// Command queue producer (6.3.27).
    pub CMDQ_PROD [
        /// Index and wrap bit.
        WR OFFSET(0) NUMBITS(20) []
    ],
    /// Command queue consumer (6.3.28).
    pub CMDQ_CONS [
        /// Index and wrap bit.
        RD OFFSET(0) NUMBITS(20) [],
        /// Reason of the command queue error, see [`crate::command::CommandError`].
        ERR OFFSET(24) NUMBITS(7) []
    ],
    /// Event queue producer.
    pub EVENTQ_PROD [
        /// Index and wrap bit.
        WR OFFSET(0) NUMBITS(20) [],
        /// Events were lost: differs from OVACKFLG while not acknowledged.
        OVFLG OFFSET(31) NUMBITS(1) []
    ],
    /// Event queue consumer.
    pub EVENTQ_CONS [
        /// Index and wrap bit.
        RD OFFSET(0) NUMBITS(20) [],
        /// Acknowledges OVFLG.
        OVACKFLG OFFSET(31) NUMBITS(1) []
    ]
];

register_bitfields![u64,
    /// Stream table base (6.3.24): aligned to the size of the table, or for two levels of its first level.
    pub STRTAB_BASE [
        /// Bits 51:6 of the address.
        ADDR OFFSET(6) NUMBITS(46) [],
        /// Read-allocate hint.
        RA OFFSET(62) NUMBITS(1) []
    ],
    /// Where an MSI goes (6.3.21, 6.3.30).
    pub IRQ_CFG0 [
        /// Bits 55:2 of the address; 0: no MSI.
        ADDR OFFSET(2) NUMBITS(54) []
    ],
    /// Base of a queue (6.3.26, 6.3.29): aligned to the larger of the queue's size and 32 bytes.
    pub QUEUE_BASE [
        /// log2 of the number of entries.
        LOG2SIZE OFFSET(0) NUMBITS(5) [],
        /// Bits 51:5 of the address.
        ADDR OFFSET(5) NUMBITS(47) [],
        /// Allocate hint: read for the command queue, write for the event queue.
        ALLOCATE OFFSET(62) NUMBITS(1) []
    ]
];
