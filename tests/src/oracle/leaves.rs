//! Leaves of tables and of TLBs against what a domain may reach.

use super::View;
use crate::model::memory::Span;
use crate::model::stage2::Leaf;
use crate::model::{FW_CFG, GICR, ITS, RAM_BASE, SMMU_BASE, SMMU_BYTES};
use crate::record::Domain;

/// Whether a leaf of the CPUs' stage 2 maps only what the host may reach, at the same address.
pub(super) fn check_cpu(view: &View, leaf: &Leaf) -> Result<(), String> {
    if leaf.ia != leaf.output {
        return Err(format!("{:#x} is mapped to {:#x}", leaf.ia, leaf.output));
    }
    let (span, ram) = (Span::new(leaf.output, 1 << leaf.size_log2), view.bench.ram);
    for page in (span.start.max(ram.start)..span.end.min(ram.end)).step_by(4096) {
        if !view.owners.allows(0, page) {
            let owner = view.owners.of(page);
            return Err(format!("level {} leaf maps page {page:#x}, which is {owner:x?}'s", leaf.level));
        }
    }
    if span.start >= ram.start && span.end <= ram.end {
        return Ok(());
    }
    let smmus = Span::new(SMMU_BASE, SMMU_BYTES * view.bench.devices.len() as u64);
    let redistributors = (GICR.start..GICR.end).step_by(0x2_0000).map(|base| Span::new(base, 0x1000));
    match [smmus, ITS, FW_CFG].into_iter().chain(redistributors).find(|absent| absent.overlaps(span)) {
        Some(absent) => Err(format!("{absent:x?} is in the host's stage 2, in a leaf of {span:x?}")),
        None => Ok(()),
    }
}

/// Whether a leaf of an I/O table, or of an IOTLB, maps only what a stage-2 domain maps, to where it maps it.
pub(super) fn check_io(view: &View, leaf: &Leaf, domain: u64) -> Result<(), String> {
    if !leaf.execute_never() {
        return Err(format!("{:#x} is executable in an I/O table", leaf.ia));
    }
    check_pages(view, domain, leaf.ia, leaf.output, 1 << leaf.size_log2)
        .map_err(|text| format!("level {} leaf: {text}", leaf.level))
}

/// Whether `size` bytes from `ia` on lead to `output` in a stage-2 domain.
pub(super) fn check_pages(view: &View, domain: u64, ia: u64, output: u64, size: u64) -> Result<(), String> {
    for offset in (0..size).step_by(4096) {
        let (page, there) = ((ia + offset) & !0xfff, (output + offset) & !0xfff);
        let wanted = view.maps(domain, page);
        if wanted != Some(there) {
            let owner = view.owners.of(there.max(RAM_BASE));
            return Err(format!(
                "{page:#x} leads to {there:#x} (of {owner:x?}), and should lead to {wanted:x?}"
            ));
        }
    }
    Ok(())
}

/// Whether a table maps exactly what a stage-2 domain may reach.
pub(super) fn check_table(view: &View, leaves: &[Leaf], domain: u64) -> Result<(), String> {
    leaves.iter().try_for_each(|leaf| check_io(view, leaf, domain))?;
    let Some(Domain::Mapping(pages)) = view.record.domain(domain) else {
        return check_complete(view, leaves, domain);
    };
    let open = leaves.iter().filter(|leaf| leaf.readable() && leaf.writable());
    let mapped: u64 = open.map(|leaf| 1 << leaf.size_log2 >> 12).sum();
    // The doorbell's page, too.
    let wanted = pages.len() as u64 + (view.unit >> 12);
    if mapped == wanted { Ok(()) } else { Err(format!("{mapped} pages are mapped read-write, not {wanted}")) }
}

/// Whether an identity map has every page of RAM that a memory domain may reach.
pub(super) fn check_complete(view: &View, leaves: &[Leaf], domain: u64) -> Result<(), String> {
    let ram = view.bench.ram;
    let mut mapped = vec![false; (ram.size() >> 12) as usize];
    for leaf in leaves {
        let end = (leaf.ia + (1 << leaf.size_log2)).min(ram.end);
        for page in (leaf.ia.max(RAM_BASE)..end).step_by(4096) {
            if let Some(slot) =
                page.checked_sub(RAM_BASE).and_then(|offset| mapped.get_mut((offset >> 12) as usize))
            {
                *slot = leaf.readable() && leaf.writable();
            }
        }
    }
    let page = |n: usize| RAM_BASE + ((n as u64) << 12);
    match mapped.iter().enumerate().find(|&(n, &is)| is != view.owners.allows(domain, page(n))) {
        Some((n, _)) => Err(format!("page {:#x} is not mapped read-write", page(n))),
        None => Ok(()),
    }
}
