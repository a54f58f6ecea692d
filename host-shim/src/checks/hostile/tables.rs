//! Tables that a device's stage 1 is walked by, donated while the device uses them.

use super::super::support::{
    add_all, attach_stage1, block, cpu_store, cpu_value, detach_stage1, dma_at, dma_at_everywhere, done,
    drain, good, start_stage1, stop_stage1, unit,
};
use super::super::{Check, Outcome, Stop};
use crate::call::Calls;
use crate::host::{Dma, Host};
use crate::stage1::{DomainId, Stage1};
use crate::{attack_worked, fail, text};

const IOVA: u64 = 0x2345_4000_0000;
const MAX_LEVELS: usize = 4;
/// A descriptor is valid, and one that is no leaf (DDI 0487, D8.3).
const VALID: u64 = 1 << 0;
const TABLE: u64 = 0b11;
const ADDRESS: u64 = 0x0000_ffff_ffff_f000;

pub(super) fn check<H: Host>() -> Check<H> {
    Check {
        name: "a device's page tables donated",
        expected: "DMA faults on every SMMU from the donation on, for the table of each level; it lands when the host has made the table anew",
        run: attack,
    }
}

/// The descriptors on the way to [`IOVA`]: where each is and what it says; from the table that TTB0 names to the leaf.
fn way<H: Host>(
    host: &H,
    stage1: &Stage1<'_, H>,
    domain: DomainId,
) -> Result<[Option<(u64, u64)>; MAX_LEVELS], Stop> {
    let Some(descriptor) = done("a context descriptor", stage1.context(domain, 0))? else {
        fail!("no context descriptor of a domain that is attached");
    };
    let bits = stage1.granule().bytes().trailing_zeros();
    let index_bits = bits - 3;
    // T0SZ is bits 5:0 of word 0, TTB0 is in word 1 (IHI 0070, 5.4).
    let input_bits = 64 - (descriptor.0[0] & 0x3f) as u32;
    let levels = (input_bits - bits).div_ceil(index_bits);
    let mut table = descriptor.0[1] & ADDRESS;
    let mut way = [None; MAX_LEVELS];
    for (level, step) in (0..levels).rev().zip(&mut way) {
        let shift = bits + level * index_bits;
        let at = table + (IOVA >> shift & ((1 << index_bits) - 1)) * 8;
        let entry = cpu_value(host, at)?;
        *step = Some((at, entry));
        if entry & TABLE != TABLE || level == 0 {
            break;
        }
        table = entry & ADDRESS;
    }
    Ok(way)
}

fn attack<H: Host>(host: &H) -> Outcome {
    let mut stage1 = start_stage1(host)?;
    let size = unit(host)?.max(stage1.granule().bytes());
    let memory = block(host, 2);
    let guest = good("GUEST_CREATE", host.create_guest())?;
    let domain = done("a stage-1 domain", stage1.create())?;
    add_all(host, &mut stage1)?;
    attach_stage1(host, &mut stage1, domain)?;
    done("map", stage1.map(domain, IOVA, memory, stage1.granule().bytes(), true))?;
    let way = way(host, &stage1, domain)?;
    let mut tables = 0;
    // From the last level up: an SMMU that looks at a context descriptor anew may look where TTB0 leads, and fault for that alone.
    for (at, entry) in way.into_iter().rev().flatten() {
        if entry & VALID == 0 {
            fail!("{entry:#x} at {at:#x}, on the way to what is mapped");
        }
        let page = at & !(size - 1);
        dma_at_everywhere(host, IOVA, memory, Dma::Landed, "by tables of the host's")?;
        good("MEM_DONATE", host.donate(page, size, guest))?;
        for smmu in 0..host.smmus() {
            if host.dma_write_at(smmu, IOVA, memory) == Dma::Landed {
                attack_worked!("SMMU {smmu} translates by the table at {page:#x}, which is a guest's");
            }
            dma_at(host, smmu, IOVA, memory, Dma::Faulted, "by a table that is a guest's")?;
        }
        good("MEM_RECLAIM", host.reclaim(page, size, guest))?;
        dma_at_everywhere(host, IOVA, memory, Dma::Faulted, "by a table that was wiped")?;
        // Each table on the way has this one descriptor.
        cpu_store(host, at, entry)?;
        dma_at_everywhere(host, IOVA, memory, Dma::Landed, "by a table that was made anew")?;
        tables += 1;
    }
    detach_stage1(host, &mut stage1)?;
    stop_stage1(host, stage1, &[domain])?;
    good("GUEST_DESTROY", host.destroy_guest(guest))?;
    drain(host)?;
    Ok(text!("{tables} tables, behind {} SMMUs", host.smmus()))
}
