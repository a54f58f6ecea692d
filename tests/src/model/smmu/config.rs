//! What an SMMU of the model is: its ID registers, its speed and its temper.

/// The ID registers and timing of one SMMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SmmuConfig {
    /// SMMU_IDR0 to SMMU_IDR5 (IHI 0070, 6.3.1 to 6.3.6).
    pub idr: [u32; 6],
    /// SMMU_IIDR (6.3.7).
    pub iidr: u32,
    /// SMMU_AIDR (6.3.8).
    pub aidr: u32,
    /// Nanoseconds for each command; 0: a command is consumed inside the write of PROD.
    pub command_delay_ns: u64,
    /// Nanoseconds that a CMD_SYNC takes once it is the next command; SMMUs with different delays finish out of step.
    pub sync_delay_ns: u64,
    /// Nanoseconds after which an ATC that does not answer makes a CMD_SYNC fail (IHI 0070, 3.9.1.4: a minute on real machines).
    pub atc_timeout_ns: u64,
    /// Nanoseconds until a register update (CR0ACK, GBPA.Update, IRQ_CTRLACK) shows.
    pub register_delay_ns: u64,
    /// The SMMU caches whatever it may, as early as it may: STEs of all streams that have a device, and translations again while
    /// a TLBI is under way.
    pub greedy: bool,
}

impl SmmuConfig {
    /// The SMMU of QEMU 11.1's virt machine with `stage=nested`.
    pub const fn qemu() -> Self {
        Self {
            idr: [0x0d44_101b, 0x0273_0010, 0, 0x1414, 0, 0x74],
            iidr: 0,
            aidr: 0,
            command_delay_ns: 0,
            sync_delay_ns: 0,
            atc_timeout_ns: 0,
            register_delay_ns: 0,
            greedy: true,
        }
    }

    /// Replaces the bits `[lsb + width - 1 : lsb]` of IDR`n`.
    pub const fn with(mut self, n: usize, lsb: u32, width: u32, value: u32) -> Self {
        let mask = ((1u64 << width) - 1) as u32;
        self.idr[n] = self.idr[n] & !(mask << lsb) | (value & mask) << lsb;
        self
    }

    /// IDR3.RIL = 0: no range invalidation.
    pub const fn without_ril(self) -> Self {
        self.with(3, 10, 1, 0)
    }

    /// IDR3.BBML.
    pub const fn bbml(self, level: u32) -> Self {
        self.with(3, 11, 2, level)
    }

    /// IDR5.GRAN4K, GRAN16K and GRAN64K.
    pub const fn granules(self, k4: bool, k16: bool, k64: bool) -> Self {
        self.with(5, 4, 3, k4 as u32 | (k16 as u32) << 1 | (k64 as u32) << 2)
    }

    /// IDR5.OAS by its encoding.
    pub const fn oas(self, encoding: u32) -> Self {
        self.with(5, 0, 3, encoding)
    }

    /// IDR1.CMDQS and IDR1.EVENTQS: log2 of the most entries.
    pub const fn queues(self, commands: u32, events: u32) -> Self {
        self.with(1, 21, 5, commands).with(1, 16, 5, events)
    }

    /// IDR1.SIDSIZE.
    pub const fn stream_bits(self, bits: u32) -> Self {
        self.with(1, 0, 6, bits)
    }

    /// IDR0.ST_LEVEL = 0: only linear stream tables.
    pub const fn linear_only(self) -> Self {
        self.with(0, 27, 2, 0)
    }

    /// IDR0.VMID16 = 0.
    pub const fn vmid8(self) -> Self {
        self.with(0, 18, 1, 0)
    }

    /// IDR0.ATS = 1, with split-stage ATS (IDR0.NS1ATS = 0).
    pub const fn with_ats(self) -> Self {
        self.with(0, 10, 1, 1).with(0, 11, 1, 0)
    }

    /// IDR0.NS1ATS = 1: no split-stage ATS.
    pub const fn without_split_ats(self) -> Self {
        self.with(0, 11, 1, 1)
    }

    /// IDR0.MSI = 1: interrupts can be messages.
    pub const fn with_msis(self) -> Self {
        self.with(0, 13, 1, 1)
    }

    /// IDR1.SSIDSIZE: bits of a SubstreamID.
    pub const fn ssid_bits(self, bits: u32) -> Self {
        self.with(1, 6, 5, bits)
    }

    /// IDR0.CD2L = 1: two-level CD tables.
    pub const fn two_level_cds(self) -> Self {
        self.with(0, 19, 1, 1)
    }

    /// IDR0.ASID16 = 0.
    pub const fn asid8(self) -> Self {
        self.with(0, 12, 1, 0)
    }

    /// A CMD_SYNC takes this long.
    pub const fn sync_delay(mut self, ns: u64) -> Self {
        self.sync_delay_ns = ns;
        self
    }

    /// An ATC that does not answer makes a CMD_SYNC fail after this long.
    pub const fn atc_timeout(mut self, ns: u64) -> Self {
        self.atc_timeout_ns = ns;
        self
    }

    /// Commands take this long, registers too.
    pub const fn slow(mut self, command_delay_ns: u64) -> Self {
        self.command_delay_ns = command_delay_ns;
        self.register_delay_ns = command_delay_ns;
        self
    }

    /// Caches only what a transaction needed.
    pub const fn lazy(mut self) -> Self {
        self.greedy = false;
        self
    }

    fn field(&self, n: usize, lsb: u32, width: u32) -> u32 {
        self.idr[n] >> lsb & (((1u64 << width) - 1) as u32)
    }

    /// IDR0.S2P.
    pub fn stage2(&self) -> bool {
        self.field(0, 0, 1) == 1
    }

    /// IDR0.S1P.
    pub fn stage1(&self) -> bool {
        self.field(0, 1, 1) == 1
    }

    /// IDR0.TTF has AArch64.
    pub fn aarch64(&self) -> bool {
        self.field(0, 3, 1) == 1
    }

    /// IDR0.TTF has AArch32 (LPAE).
    pub fn aarch32(&self) -> bool {
        self.field(0, 2, 1) == 1
    }

    /// IDR0.HTTU.
    pub fn httu(&self) -> u32 {
        self.field(0, 6, 2)
    }

    /// IDR0.Hyp.
    pub fn hyp(&self) -> bool {
        self.field(0, 9, 1) == 1
    }

    /// IDR0.ATS.
    pub fn ats(&self) -> bool {
        self.field(0, 10, 1) == 1
    }

    /// Split-stage ATS is implemented (IDR0.NS1ATS = 0).
    pub fn split_ats(&self) -> bool {
        self.ats() && self.field(0, 11, 1) == 0
    }

    /// IDR0.CD2L.
    pub fn cd2l(&self) -> bool {
        self.field(0, 19, 1) == 1
    }

    /// IDR0.TERM_MODEL: faulting transactions can only be aborted.
    pub fn term_model(&self) -> bool {
        self.field(0, 26, 1) == 1
    }

    /// Widest ASID in bits (IDR0.ASID16).
    pub fn asid_bits(&self) -> u32 {
        if self.field(0, 12, 1) == 1 { 16 } else { 8 }
    }

    /// IDR1.SSIDSIZE.
    pub fn ssid_size(&self) -> u32 {
        self.field(1, 6, 5)
    }

    /// IDR3.HAD: hierarchical attributes can be switched off.
    pub fn had(&self) -> bool {
        self.field(3, 2, 1) == 1
    }

    /// IDR0.PRI.
    pub fn pri(&self) -> bool {
        self.field(0, 16, 1) == 1
    }

    /// IDR0.MSI.
    pub fn msi(&self) -> bool {
        self.field(0, 13, 1) == 1
    }

    /// Widest VMID in bits (IDR0.VMID16).
    pub fn vmid_bits(&self) -> u32 {
        if self.field(0, 18, 1) == 1 { 16 } else { 8 }
    }

    /// IDR0.STALL_MODEL.
    pub fn stall_model(&self) -> u32 {
        self.field(0, 24, 2)
    }

    /// IDR0.ST_LEVEL has two-level tables.
    pub fn two_level(&self) -> bool {
        self.field(0, 27, 2) == 1
    }

    /// IDR1.SIDSIZE.
    pub fn sid_size(&self) -> u32 {
        self.field(1, 0, 6)
    }

    /// IDR1.EVENTQS.
    pub fn eventq_max_log2(&self) -> u32 {
        self.field(1, 16, 5)
    }

    /// IDR1.CMDQS.
    pub fn cmdq_max_log2(&self) -> u32 {
        self.field(1, 21, 5)
    }

    /// IDR3.FWB.
    pub fn fwb(&self) -> bool {
        self.field(3, 8, 1) == 1
    }

    /// IDR3.RIL.
    pub fn ril(&self) -> bool {
        self.field(3, 10, 1) == 1
    }

    /// IDR3.BBML.
    pub fn bbm_level(&self) -> u32 {
        self.field(3, 11, 2)
    }

    /// Output address bits (IDR5.OAS); a reserved encoding behaves as 52.
    pub fn oa_bits(&self) -> u32 {
        [32, 36, 40, 42, 44, 48, 52, 52][self.field(5, 0, 3) as usize]
    }

    /// Input address bits, IAS (IHI 0070, 3.4): OAS, or 40 if that is more and AArch32 tables are supported.
    pub fn ia_bits(&self) -> u32 {
        if self.aarch32() { self.oa_bits().max(40) } else { self.oa_bits() }
    }

    /// Whether the granule of this log2 is implemented (IDR5.GRAN4K/16K/64K).
    pub fn has_granule(&self, log2: u32) -> bool {
        match log2 {
            12 => self.field(5, 4, 1) == 1,
            14 => self.field(5, 5, 1) == 1,
            16 => self.field(5, 6, 1) == 1,
            _ => false,
        }
    }
}
