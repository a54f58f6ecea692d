//! Questions to the model machine, past the hypervisor.

use smmuv3::address::PhysAddr;
use tests::model::Machine;
use tests::model::memory::Span;
use tests::model::stage2::walk;

use crate::world::PAGE;

/// Whether the host's stage 2 in memory maps an address.
pub fn is_hosts(machine: &Machine, address: u64) -> bool {
    let stage2 = machine.cpu.stage2.unwrap();
    walk(&machine.memory, &stage2, address, None, &mut Vec::new(), &mut Vec::new()).is_ok()
}

/// The pages of a span.
pub fn pages(span: Span) -> impl Iterator<Item = u64> {
    (span.start / PAGE..span.end.div_ceil(PAGE)).map(|page| page * PAGE)
}

/// The SMMU whose command queue an address is in.
pub fn queue_at(machine: &Machine, address: PhysAddr) -> Option<usize> {
    machine.smmus.iter().position(|smmu| {
        let base = smmu.registers.cmdq_base;
        Span::new(base & 0x00ff_ffff_ffff_ffe0, 16 << (base & 31)).contains(address.0)
    })
}

/// The SMMU whose STEs an address is among: its table is linear.
pub fn stream_table_at(machine: &Machine, address: PhysAddr) -> Option<usize> {
    machine.smmus.iter().position(|smmu| {
        let registers = &smmu.registers;
        Span::new(registers.strtab_base & 0x00ff_ffff_ffff_ffc0, 64 << registers.strtab_base_cfg)
            .contains(address.0)
    })
}

/// What a CMD_TLBI_S12_VMALL does, now.
pub fn flush(machine: &mut Machine, smmu: usize, doomed: impl Fn(u16) -> bool) {
    let tlb = &mut machine.smmus[smmu].tlb;
    tlb.translations.retain(|entry| !doomed(entry.vmid));
    tlb.walks.retain(|step| !doomed(step.vmid));
}

/// A VMID was given back: nothing of it may be cached.
pub fn check_free(machine: &Machine, smmu: usize, vmid: u16) {
    let cached = machine.smmus[smmu].cached().find(|cached| cached.vmid() == Some(vmid));
    assert!(cached.is_none(), "VMID {vmid} is free, and SMMU {smmu} has {}", cached.unwrap());
}
