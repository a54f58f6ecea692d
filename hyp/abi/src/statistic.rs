//! The counters of `STATISTICS`.

use crate::status::documented;

documented! {
    /// Counters of [`Function::Statistics`](crate::Function::Statistics), by index.
    ///
    /// Each is a 64-bit count since boot unless its name ends in a unit.
    Statistic: u64 {
        QuarantinedPages = 0, "Pages that are in nobody's hands because hardware failed while they changed owner.";
        Commands = 1, "Commands posted to all SMMUs' command queues, CMD_SYNC included.";
        Syncs = 2, "CMD_SYNC commands posted to all SMMUs.";
        Events = 3, "Events read from all SMMUs' event queues.";
        EventsLost = 4, "Events lost: a hardware queue overflowed, or the ring at EL2 was full.";
        GlobalErrors = 5, "GERROR conditions acknowledged.";
        DeadSmmus = 6, "SMMUs that failed for good and abort every transaction.";
        InjectedAborts = 7, "Stage-2 aborts injected into EL1.";
        BootTicks = 8, "Generic timer ticks from EL2's entry on the first CPU to its first exception return to EL1.";
        TablePages = 9, "Pages that hold page tables, stream tables and queues.";
        EmulatedAccesses = 10, "Accesses of registers that EL2 emulated: of SMMUs and of the interrupt controller.";
        HostTableBytes = 11, "Bytes of the page tables that hold the host's stage 2 and the shared I/O page table.";
        DriverAccesses = 12, "Accesses of the registers of emulated SMMUs.";
        DriverQueueStores = 13, "Of these, stores to `CMDQ_PROD`.";
        DriverSyncs = 14, "CMD_SYNC commands that the host's own drivers sent.";
    }
}
