//! The system registers that a host finds at EL1: what the arm64 boot protocol of Linux asks of EL2
//! (`Documentation/arch/arm64/booting.rst`, "System registers"), and nothing more.
//!
//! Every feature is looked up in the ID registers first, since a register of an absent feature is undefined. A trap
//! bit that the protocol does not name stays as a trap: EL1 then sees an undefined instruction.

use aarch64_cpu::registers::{HCR_EL2, VTCR_EL2, Writeable};
use smmuv3::address::PhysAddr;
use smmuv3::pgtable::Geometry;

use super::registers::{feature, field, isb, read_sysreg, write_sysreg};
use super::{cpu, entry};

/// The VMID of the host's stage 2. There is no other.
const HOST_VMID: u64 = 1;

/// SCTLR_EL1 with everything off: the bits that are RES1 in some version of the architecture.
const SCTLR_EL1_OFF: u64 = 0x30d0_0800;
/// PSTATE of the host's first instruction: EL1h, all interrupts masked.
const FIRST_PSTATE: u64 = 0x3c5;

/// CPTR_EL2 with E2H = 0: RES1 bits, no traps. TZ (8) and TSM (12) are RES1 only where SVE and SME are absent.
const CPTR_RES1: u64 = 0x22ff;
const CPTR_TZ: u64 = 1 << 8;
const CPTR_TSM: u64 = 1 << 12;

/// The ID registers that decide what is set.
struct Ids {
    pfr0: u64,
    pfr1: u64,
    dfr0: u64,
    isar1: u64,
    isar2: u64,
    mmfr0: u64,
    mmfr1: u64,
    mmfr3: u64,
}

impl Ids {
    fn read() -> Self {
        Self {
            pfr0: read_sysreg!("id_aa64pfr0_el1"),
            pfr1: read_sysreg!("id_aa64pfr1_el1"),
            dfr0: read_sysreg!("id_aa64dfr0_el1"),
            isar1: read_sysreg!("id_aa64isar1_el1"),
            isar2: read_sysreg!("S3_0_C0_C6_2"),
            mmfr0: read_sysreg!("id_aa64mmfr0_el1"),
            mmfr1: read_sysreg!("id_aa64mmfr1_el1"),
            mmfr3: read_sysreg!("S3_0_C0_C7_3"),
        }
    }

    fn sve(&self) -> bool {
        feature(self.pfr0, 32) != 0
    }

    fn sme(&self) -> u64 {
        feature(self.pfr1, 24)
    }

    fn gcs(&self) -> bool {
        feature(self.pfr1, 44) != 0
    }

    /// FEAT_PMUv3 or later; 0xf is an IMPLEMENTATION DEFINED PMU.
    fn pmu(&self) -> Option<u64> {
        Some(feature(self.dfr0, 8)).filter(|version| (1..0xf).contains(version))
    }

    /// ID_AA64DFR0_EL1.PMSVer: the Statistical Profiling Extension.
    fn spe(&self) -> u64 {
        feature(self.dfr0, 32)
    }

    fn brbe(&self) -> bool {
        feature(self.dfr0, 52) != 0
    }

    fn pointer_authentication(&self) -> bool {
        // APA, API, GPA, GPI, and with the QARMA3 algorithm GPA3, APA3.
        field(self.isar1, 4, 8) != 0 || field(self.isar1, 24, 8) != 0 || field(self.isar2, 8, 8) != 0
    }
}

/// Sets this CPU up for the host: every register but VTTBR_EL2 and VTCR_EL2. Called on each CPU before its first ERET.
///
/// The error is why the host cannot run on this CPU.
pub fn prepare() -> Result<(), &'static str> {
    let ids = Ids::read();
    write_hcr(&ids);
    isb();
    if read_sysreg!("hcr_el2") & (1 << 34) != 0 {
        return Err("this CPU has EL2 with HCR_EL2.E2H = 1 only, which is not supported");
    }
    if feature(ids.pfr0, 24) == 0 {
        return Err("this CPU has no system-register interface to a GICv3");
    }
    write_identity();
    write_floating_point(&ids);
    write_timers(&ids);
    write_interrupt_controller();
    write_debug(&ids);
    write_extensions(&ids);
    if feature(ids.mmfr0, 56) != 0 {
        write_fine_grained_traps(&ids);
    }
    write_el1(&ids);
    isb();
    Ok(())
}

/// The host's stage 2 on this CPU, with the table at `root`.
pub fn set_stage2(geometry: &Geometry, root: PhysAddr) {
    let wide_vmid = feature(read_sysreg!("id_aa64mmfr1_el1"), 4) == 2;
    let mut vtcr = VTCR_EL2::T0SZ.val(geometry.t0sz().into())
        + VTCR_EL2::SL0.val(geometry.sl0().into())
        + VTCR_EL2::TG0.val(geometry.tg().into())
        + VTCR_EL2::PS.val(geometry.ps().into())
        + VTCR_EL2::IRGN0.val(1)
        + VTCR_EL2::ORGN0.val(1)
        + VTCR_EL2::SH0.val(3)
        + VTCR_EL2::RES1.val(1);
    if wide_vmid {
        vtcr += VTCR_EL2::VS.val(1);
    }
    VTCR_EL2.write(vtcr);
    // SAFETY: the table is the host's stage 2, which the library keeps right; what this CPU cached before is invalidated before EL1 runs.
    unsafe { write_sysreg!("vttbr_el2", HOST_VMID << 48 | root.0) };
    isb();
}

/// Forgets all translations of the host's on this CPU: those of a time when it had another stage 2, or none.
pub fn forget_translations() {
    // SAFETY: it only takes time.
    unsafe {
        core::arch::asm!("tlbi vmalls12e1", "dsb nsh", "isb", options(nostack, preserves_flags));
    }
}

/// Goes to EL1 for the first time on this CPU: PC = `start`, X0 = `argument`, all other registers 0.
pub fn enter(start: u64, argument: u64) -> ! {
    // SAFETY: stage 2 is on and `prepare` has run, so EL1 can reach nothing that is not the host's. The stack is
    // left: nothing of it is used again, and the next exception begins at its top.
    unsafe {
        write_sysreg!("elr_el2", start);
        write_sysreg!("spsr_el2", FIRST_PSTATE);
        core::arch::asm!(
            "mrs x1, tpidr_el2",
            "ldr x1, [x1, #{stack_top}]",
            "mov sp, x1",
            "mov x1, xzr", "mov x2, xzr", "mov x3, xzr", "mov x4, xzr", "mov x5, xzr", "mov x6, xzr",
            "mov x7, xzr", "mov x8, xzr", "mov x9, xzr", "mov x10, xzr", "mov x11, xzr", "mov x12, xzr",
            "mov x13, xzr", "mov x14, xzr", "mov x15, xzr", "mov x16, xzr", "mov x17, xzr", "mov x18, xzr",
            "mov x19, xzr", "mov x20, xzr", "mov x21, xzr", "mov x22, xzr", "mov x23, xzr", "mov x24, xzr",
            "mov x25, xzr", "mov x26, xzr", "mov x27, xzr", "mov x28, xzr", "mov x29, xzr", "mov x30, xzr",
            "eret",
            "dsb nsh",
            "isb",
            "b {park}",
            stack_top = const core::mem::offset_of!(cpu::Cpu, stack_top),
            park = sym entry::park,
            in("x0") argument,
            options(noreturn),
        )
    }
}

fn write_hcr(ids: &Ids) {
    // Interrupts and SErrors stay with EL1 (IMO, FMO, AMO = 0), and so do all ID registers but as below. What a core has besides the
    // architecture (TIDCP) may read caches whoever owns what is in them, or take the CPU out of broadcast invalidations.
    let mut hcr = HCR_EL2::VM::Enable
        + HCR_EL2::RW::EL1IsAarch64
        + HCR_EL2::TSC::EnableTrapEl1SmcToEl2
        + HCR_EL2::TIDCP.val(1);
    if ids.pointer_authentication() {
        hcr += HCR_EL2::APK.val(1) + HCR_EL2::API.val(1);
    }
    if feature(ids.pfr1, 8) >= 2 {
        // FEAT_MTE2: wiping memory does not clear its Allocation Tags, so EL1 gets none (no ATA), and finds no such feature.
        hcr += HCR_EL2::TID3.val(1);
    }
    let csv2 = feature(ids.pfr0, 56);
    if csv2 >= 2 || csv2 == 1 && feature(ids.pfr1, 32) >= 2 {
        hcr += HCR_EL2::EnSCXT.val(1); // FEAT_CSV2_2, or FEAT_CSV2_1p2
    }
    HCR_EL2.write(hcr);
}

/// Op0, Op1, CRn, CRm and Op2 of the register that the trapped MRS or MSR of this ISS names (DDI 0487, D24.2.40).
fn named(iss: u64) -> [u64; 5] {
    [(20, 2), (14, 3), (10, 4), (1, 4), (17, 3)].map(|(at, width)| field(iss, at, width))
}

/// What EL1 gets for the ID register that it reads with the trapped MRS of this ISS (DDI 0487, D24.2.40): what the CPU has, but
/// for FEAT_MTE2. `None`: it is no read of an ID register (group 3 of HCR_EL2).
pub fn id_register(iss: u64) -> Option<u64> {
    let [op0, op1, crn, crm, op2] = named(iss);
    let is_read = iss & 1 != 0;
    if !is_read || (op0, op1, crn) != (3, 0, 0) || !(1..8).contains(&crm) {
        return None;
    }
    let value: u64;
    // SAFETY: a jump to one of the 56 reads of two instructions each, which change nothing; what is reserved among them reads as
    // zero.
    unsafe {
        core::arch::asm!(
            "adr {at}, 2f",
            "add {at}, {at}, {index}, lsl #3",
            "br {at}",
            "2:",
            ".irp crm, 1, 2, 3, 4, 5, 6, 7",
            ".irp op2, 0, 1, 2, 3, 4, 5, 6, 7",
            "mrs {value}, S3_0_C0_C\\crm\\()_\\op2",
            "b 3f",
            ".endr",
            ".endr",
            "3:",
            at = out(reg) _,
            index = in(reg) (crm - 1) * 8 + op2,
            value = lateout(reg) value,
            options(nomem, nostack, preserves_flags),
        );
    }
    let hidden = match (crm, op2) {
        (4, 1) => 0xf << 8 | 0xf << 40 | 0xf << 52, // ID_AA64PFR1_EL1.{MTE, MTE_frac, MTEX}
        (4, 2) => 0xfff,                            // ID_AA64PFR2_EL1.{MTEPERM, MTESTOREONLY, MTEFAR}
        _ => 0,
    };
    Some(value & !hidden)
}

/// What EL1 reads from the register of OS Lock, OS Double Lock or powering down that an MRS or MSR of this ISS names (the group of
/// MDCR_EL2.TDOSA): both locks are off, and a write changes nothing. `None` of any other register.
pub fn os_lock(iss: u64) -> Option<u64> {
    match named(iss) {
        [2, 0, 1, 0 | 3 | 4, 4] => Some(0), // OSLAR_EL1, OSDLR_EL1, DBGPRCR_EL1
        [2, 0, 1, 1, 4] => Some(1 << 3),    // OSLSR_EL1: OSLM = 0b10, OSLK = 0
        _ => None,
    }
}

fn write_identity() {
    // SAFETY: EL1 reads the numbers of the CPU it runs on, and gets none of the registers that ACTLR_EL2 may lend it.
    unsafe {
        write_sysreg!("actlr_el2", 0);
        write_sysreg!("vpidr_el2", read_sysreg!("midr_el1"));
        write_sysreg!("vmpidr_el2", read_sysreg!("mpidr_el1"));
        write_sysreg!("hstr_el2", 0);
        write_sysreg!("hacr_el2", 0);
    }
}

fn write_floating_point(ids: &Ids) {
    let mut cptr = CPTR_RES1;
    if !ids.sve() {
        cptr |= CPTR_TZ;
    }
    if ids.sme() == 0 {
        cptr |= CPTR_TSM;
    }
    // SAFETY: EL2 uses neither floating point nor vectors, so what EL1 may do with them concerns EL1 alone.
    unsafe {
        write_sysreg!("cptr_el2", cptr);
        isb();
        if ids.sve() {
            write_sysreg!("S3_4_C1_C2_0", 0xf); // ZCR_EL2.LEN: the longest
        }
        if ids.sme() != 0 {
            let sctlr = read_sysreg!("sctlr_el2");
            write_sysreg!("sctlr_el2", sctlr | 1 << 60); // EnTP2
            let mut smcr = 0xf; // LEN: the longest
            if field(read_sysreg!("S3_0_C0_C4_5"), 63, 1) != 0 {
                smcr |= 1 << 31; // ID_AA64SMFR0_EL1.FA64: FA64
            }
            if ids.sme() >= 2 {
                smcr |= 1 << 30; // EZT0
            }
            write_sysreg!("S3_4_C1_C2_6", smcr);
            if field(read_sysreg!("S3_1_C0_C0_6"), 15, 1) != 0 {
                write_sysreg!("S3_4_C1_C2_5", 0); // SMIDR_EL1.SMPS: SMPRIMAP_EL2
            }
        }
    }
}

fn write_timers(ids: &Ids) {
    // SAFETY: EL2 uses the physical counter only, which none of these changes.
    unsafe {
        let event_stream = read_sysreg!("cnthctl_el2");
        write_sysreg!("cnthctl_el2", event_stream | 0b11); // EL1PCTEN, EL1PCEN
        write_sysreg!("cntvoff_el2", 0);
        if feature(ids.mmfr0, 60) == 2 {
            write_sysreg!("S3_4_C14_C0_6", 0); // CNTPOFF_EL2
        }
        write_sysreg!("cntkctl_el1", 0);
        write_sysreg!("cntp_ctl_el0", 0);
        write_sysreg!("cntv_ctl_el0", 0);
    }
}

fn write_interrupt_controller() {
    // SAFETY: EL2 takes no interrupts; virtual interrupts are off.
    unsafe {
        let sre = read_sysreg!("S3_4_C12_C9_5");
        write_sysreg!("S3_4_C12_C9_5", sre | 1 << 3 | 1); // ICC_SRE_EL2.{Enable,SRE}
        isb();
        write_sysreg!("S3_4_C12_C11_0", 0); // ICH_HCR_EL2
    }
}

fn write_debug(ids: &Ids) {
    // TDOSA: with the OS Lock on, EL1 could write what a debugger writes (MDSCR_EL1.HDE), and have the CPU halt in EL2 for good.
    let mut mdcr = 1 << 10;
    if let Some(version) = ids.pmu() {
        mdcr |= field(read_sysreg!("pmcr_el0"), 11, 5); // HPMN = PMCR_EL0.N: all counters are EL1's
        if version >= 4 {
            mdcr |= 1 << 17; // FEAT_PMUv3p1: HPMD, none of them counts at EL2
        }
        if version >= 6 {
            mdcr |= 1 << 23; // FEAT_PMUv3p5: HCCD, nor does the cycle counter
        }
    }
    if ids.spe() != 0 && field(read_sysreg!("S3_0_C9_C10_7"), 4, 1) == 0 {
        mdcr |= 0b11 << 12; // PMBIDR_EL1.P = 0: E2PB, the buffer is in EL1's translation, stage 2 included
    }
    if feature(ids.dfr0, 44) != 0 && field(read_sysreg!("S3_0_C9_C11_7"), 4, 1) == 0 {
        mdcr |= 0b11 << 24; // TRBIDR_EL1.P = 0: E2TB, likewise
    }
    // SAFETY: EL2 is not debugged or profiled; what EL1 records goes through stage 2.
    unsafe {
        write_sysreg!("mdcr_el2", mdcr);
        write_sysreg!("osdlr_el1", 0);
        write_sysreg!("mdscr_el1", 0); // with HDE, where reset has left the OS Lock on
        write_sysreg!("oslar_el1", 0);
        if ids.brbe() {
            write_sysreg!("S2_4_C9_C0_0", 0b11 << 3); // BRBCR_EL2.{MPRED,CC}, nothing recorded at EL2
        }
    }
}

/// Extensions with a register of their own.
fn write_extensions(ids: &Ids) {
    // SAFETY: each register exists by its ID field, and lets EL1 use what concerns EL1 alone.
    unsafe {
        if feature(ids.mmfr1, 40) != 0 {
            write_sysreg!("S3_4_C1_C2_2", extended_hcr(ids)); // HCRX_EL2
        }
        if feature(ids.mmfr1, 16) != 0 {
            write_sysreg!("S3_0_C10_C4_3", 0); // LORC_EL1
        }
        if feature(ids.pfr0, 40) != 0 || feature(ids.pfr1, 16) != 0 {
            write_sysreg!("S3_4_C10_C5_0", 1 << 50); // MPAM2_EL2.EnMPAMSM, no traps, partition 0
            if field(read_sysreg!("S3_0_C10_C4_4"), 17, 1) != 0 {
                write_sysreg!("S3_4_C10_C4_0", 0); // MPAMIDR_EL1.HAS_HCR: MPAMHCR_EL2
            }
        }
        if ids.gcs() {
            write_sysreg!("S3_4_C2_C5_0", 0); // GCSCR_EL2
            write_sysreg!("S3_0_C2_C5_0", 0); // GCSCR_EL1
            write_sysreg!("S3_0_C2_C5_2", 0); // GCSCRE0_EL1
        }
        // The activity monitors are enabled at the highest Exception level.
        if feature(ids.pfr0, 44) != 0 && feature(ids.pfr0, 12) == 0 {
            write_sysreg!("S3_3_C13_C2_5", 0xf); // AMCNTENSET0_EL0
        }
    }
}

/// HCRX_EL2: what EL1 may use.
fn extended_hcr(ids: &Ids) -> u64 {
    let mut hcrx = 0;
    if feature(ids.isar2, 16) != 0 {
        hcrx |= 1 << 11 | 1 << 10; // FEAT_MOPS: MSCEn, and MCE2: `traps` restarts an instruction that changed CPUs
    }
    if feature(ids.mmfr3, 0) != 0 {
        hcrx |= 1 << 14; // TCR2En
    }
    if feature(ids.mmfr3, 4) != 0 {
        hcrx |= 1 << 15; // SCTLR2En
    }
    if ids.gcs() {
        hcrx |= 1 << 22; // GCSEn
    }
    match feature(ids.isar1, 60) {
        0 => {}
        1 => hcrx |= 1 << 1,          // FEAT_LS64: EnALS
        _ => hcrx |= 1 << 1 | 1 << 2, // FEAT_LS64_V: EnASR
    }
    if feature(read_sysreg!("S3_0_C0_C4_2"), 32) != 0 {
        hcrx |= 1 << 23; // ID_AA64PFR2_EL1.FPMR: EnFPM
    }
    hcrx
}

/// Fine-grained traps: the bits whose 0 is a trap.
fn write_fine_grained_traps(ids: &Ids) {
    let (mut registers, mut instructions) = (0, 0);
    let (mut debug_reads, mut debug_writes) = (0, 0);
    if ids.sme() != 0 {
        registers |= 1 << 55 | 1 << 54; // nTPIDR2_EL0, nSMPRI_EL1
    }
    if feature(ids.mmfr3, 8) != 0 {
        registers |= 1 << 58 | 1 << 57; // FEAT_S1PIE: nPIR_EL1, nPIRE0_EL1
    }
    if feature(ids.mmfr3, 16) != 0 {
        registers |= 1 << 60 | 1 << 59; // FEAT_S1POE: nPOR_EL1, nPOR_EL0
    }
    if feature(ids.mmfr3, 24) != 0 {
        registers |= 1 << 63 | 1 << 62; // FEAT_AIE: nAMAIR2_EL1, nMAIR2_EL1
    }
    if ids.gcs() {
        registers |= 1 << 53 | 1 << 52; // nGCS_EL1, nGCS_EL0
        instructions |= 1 << 59 | 1 << 58 | 1 << 57; // nGCSEPP, nGCSSTR_EL1, nGCSPUSHM_EL1
    }
    if ids.brbe() {
        instructions |= 1 << 56 | 1 << 55; // nBRBIALL, nBRBINJ
        debug_reads |= 1 << 61 | 1 << 60 | 1 << 59; // nBRBDATA, nBRBCTL, nBRBIDR
        debug_writes |= 1 << 61 | 1 << 60; // nBRBDATA, nBRBCTL
    }
    if ids.spe() >= 3 {
        debug_reads |= 1 << 62; // nPMSNEVFR_EL1
        debug_writes |= 1 << 62;
    }
    let mut debug2 = 0;
    if ids.pmu().is_some_and(|version| version >= 9) {
        debug2 |= 1 << 2 | 1 << 3 | 1 << 4; // nPMICNTR_EL0, nPMICFILTR_EL0, nPMUACR_EL1
    }
    if ids.spe() != 0 && field(read_sysreg!("S3_0_C9_C9_7"), 7, 1) != 0 {
        debug2 |= 1 << 19; // PMSIDR_EL1.FDS: nPMSDSFR_EL1
    }
    // SAFETY: the registers exist (FEAT_FGT, FEAT_FGT2); not trapping them lets EL1 reach registers of EL1 and EL0 only.
    unsafe {
        write_sysreg!("S3_4_C1_C1_4", registers); // HFGRTR_EL2
        write_sysreg!("S3_4_C1_C1_5", registers); // HFGWTR_EL2
        write_sysreg!("S3_4_C1_C1_6", instructions); // HFGITR_EL2
        write_sysreg!("S3_4_C3_C1_4", debug_reads); // HDFGRTR_EL2
        write_sysreg!("S3_4_C3_C1_5", debug_writes); // HDFGWTR_EL2
        if feature(ids.pfr0, 44) != 0 {
            write_sysreg!("S3_4_C3_C1_6", 0); // HAFGRTR_EL2
        }
        if feature(ids.mmfr0, 56) >= 2 {
            write_sysreg!("S3_4_C3_C1_0", debug2); // HDFGRTR2_EL2
            write_sysreg!("S3_4_C3_C1_1", debug2); // HDFGWTR2_EL2
            write_sysreg!("S3_4_C3_C1_2", 0); // HFGRTR2_EL2
            write_sysreg!("S3_4_C3_C1_3", 0); // HFGWTR2_EL2
            write_sysreg!("S3_4_C3_C1_7", 0); // HFGITR2_EL2
        }
    }
}

/// EL1's own registers, so that its first instructions run in a known state.
fn write_el1(ids: &Ids) {
    // SAFETY: EL1 has not run on this CPU since it was turned on.
    unsafe {
        write_sysreg!("sctlr_el1", SCTLR_EL1_OFF);
        write_sysreg!("cpacr_el1", 0);
        write_sysreg!("tcr_el1", 0);
        write_sysreg!("vbar_el1", 0);
        write_sysreg!("tpidr_el1", 0);
        write_sysreg!("contextidr_el1", 0);
        if feature(ids.mmfr3, 0) != 0 {
            write_sysreg!("S3_0_C2_C0_3", 0); // TCR2_EL1
        }
        if feature(ids.mmfr3, 4) != 0 {
            write_sysreg!("S3_0_C1_C0_3", 0); // SCTLR2_EL1
        }
    }
}
