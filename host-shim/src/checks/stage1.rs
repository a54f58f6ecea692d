//! The host's own domains: page tables of the host's, on streams behind every SMMU, kept coherent through `VSMMU_INVALIDATE`.

use super::support::{
    BLOCK, add_all, attach_stage1, block, cpu_store, cpu_value, detach_stage1, dma_at, dma_at_everywhere,
    done, drain, good, start_stage1, stop_stage1, stream,
};
use super::{Check, Outcome, Stop};
use crate::call::{Calls, Event};
use crate::host::{Device, Dma, Host};
use crate::stage1::{Idle, StreamOptions};
use crate::{fail, text};

pub(super) fn checks<H: Host>() -> [Check<H>; 6] {
    [
        Check {
            name: "stage 1 on all SMMUs",
            expected: "one domain: DMA lands where its page table says, nowhere before, after the unmap, and when detached, IOTLBs warm",
            run: life,
        },
        Check {
            name: "stage 1, ranges in warm IOTLBs",
            expected: "of 32 warm pages those that are unmapped fault, the others land; mapped in reverse each lands in its new page",
            run: ranges,
        },
        Check {
            name: "stage 1, 2 MiB blocks and pages",
            expected: "an unmap across two blocks takes that range and no more; mapped again the blocks are whole",
            run: blocks,
        },
        Check {
            name: "stage 1, one domain replaced by another",
            expected: "DMA lands in the page of the new domain at once, and of the old one after the way back; other streams stay",
            run: replace,
        },
        Check {
            name: "disk through stage 1",
            expected: "a disk works in a stage-1 domain that maps its memory, and no command completes after the unmap",
            run: disk,
        },
        Check {
            name: "SubstreamIDs",
            expected: "each SubstreamID of a stream reaches its own domain, and nothing when detached",
            run: substreams,
        },
    ]
}

/// An I/O address that no memory has.
const IOVA: u64 = 0x1234_4000_0000;

fn life<H: Host>(host: &H) -> Outcome {
    const UNTOUCHED: u64 = 0x5555_aaaa_5555_aaaa;
    let mut stage1 = start_stage1(host)?;
    let page = stage1.granule().bytes();
    // The I/O address is that of a page of the host's which is not mapped.
    let (iova, first, second) = (block(host, 1), block(host, 2), block(host, 3) + 5 * page);
    cpu_store(host, iova, UNTOUCHED)?;
    let domain = done("a stage-1 domain", stage1.create())?;
    add_all(host, &mut stage1)?;
    attach_stage1(host, &mut stage1, domain)?;
    drain(host)?;
    for smmu in 0..host.smmus() {
        dma_at(host, smmu, iova, first, Dma::Faulted, "before the map")?;
        let event = good("EVENT_READ", host.event())?;
        let id = stream(host, smmu, Device::Immediate)?;
        let named = event.is_some_and(|event| {
            event.smmu == smmu && event.stream == id && event.number == Event::TRANSLATION && !event.stage2
        });
        if !named {
            fail!("no F_TRANSLATION of stage 1 of StreamID {id:#x} behind SMMU {smmu}, but {event:?}");
        }
        drain(host)?;
    }
    for (target, other, when) in [(first, second, "mapped"), (second, first, "mapped to another page")] {
        done("map", stage1.map(domain, iova, target, page, true))?;
        cpu_store(host, other, 0)?;
        dma_at_everywhere(host, iova, target, Dma::Landed, when)?;
        dma_at_everywhere(host, iova + page - 4, target + page - 4, Dma::Landed, when)?;
        dma_at_everywhere(host, target, target, Dma::Faulted, "at the page's own address")?;
        if cpu_value(host, other)? != 0 {
            fail!("DMA landed in the page that is not mapped");
        }
        done("unmap", stage1.unmap(domain, iova, page))?;
        dma_at_everywhere(host, iova, target, Dma::Faulted, "unmapped, with warm IOTLBs")?;
    }
    done("map", stage1.map(domain, iova, first, page, false))?;
    dma_at_everywhere(host, iova, first, Dma::Faulted, "mapped for reading only")?;
    done("unmap", stage1.unmap(domain, iova, page))?;
    done("map", stage1.map(domain, iova, first, page, true))?;
    dma_at_everywhere(host, iova, first, Dma::Landed, "mapped for writing")?;
    detach_stage1(host, &mut stage1)?;
    dma_at_everywhere(host, iova, first, Dma::Faulted, "detached")?;
    attach_stage1(host, &mut stage1, domain)?;
    dma_at_everywhere(host, iova, first, Dma::Landed, "attached again")?;
    detach_stage1(host, &mut stage1)?;
    if cpu_value(host, iova)? != UNTOUCHED {
        fail!("the page that has the I/O address as its own was written");
    }
    stop_stage1(host, stage1, &[domain])?;
    drain(host)?;
    Ok(text!("mapped, unmapped, remapped, detached behind {} SMMUs", host.smmus()))
}

fn ranges<H: Host>(host: &H) -> Outcome {
    const PAGES: u64 = 32;
    let mut stage1 = start_stage1(host)?;
    let page = stage1.granule().bytes();
    let memory = block(host, 2);
    let domain = done("a stage-1 domain", stage1.create())?;
    add_all(host, &mut stage1)?;
    attach_stage1(host, &mut stage1, domain)?;
    // Odd pages, so that no two pages are neighbours on both sides.
    let target = |index: u64| memory + (2 * index + 1) * page;
    for index in 0..PAGES {
        done("map", stage1.map(domain, IOVA + index * page, target(index), page, true))?;
        dma_at_everywhere(host, IOVA + index * page, target(index), Dma::Landed, "mapped")?;
    }
    for (first, count) in [(3, 1), (7, 5), (16, 8), (30, 2)] {
        done("unmap", stage1.unmap(domain, IOVA + first * page, count * page))?;
        for index in 0..PAGES {
            let gone = (first..first + count).contains(&index);
            let expected = if gone { Dma::Faulted } else { Dma::Landed };
            let when = if gone { "unmapped" } else { "beside what was unmapped" };
            dma_at_everywhere(host, IOVA + index * page, target(index), expected, when)?;
        }
        for index in first..first + count {
            done("map", stage1.map(domain, IOVA + index * page, target(index), page, true))?;
            dma_at_everywhere(host, IOVA + index * page, target(index), Dma::Landed, "mapped again")?;
        }
    }
    done("unmap", stage1.unmap(domain, IOVA, PAGES * page))?;
    for index in 0..PAGES {
        let target = target(PAGES - 1 - index);
        done("map", stage1.map(domain, IOVA + index * page, target, page, true))?;
        dma_at_everywhere(host, IOVA + index * page, target, Dma::Landed, "mapped in reverse")?;
    }
    detach_stage1(host, &mut stage1)?;
    stop_stage1(host, stage1, &[domain])?;
    drain(host)?;
    Ok(text!("{PAGES} pages, four ranges, behind {} SMMUs", host.smmus()))
}

fn blocks<H: Host>(host: &H) -> Outcome {
    let mut stage1 = start_stage1(host)?;
    let page = stage1.granule().bytes();
    let memory = block(host, 2);
    let size = 2 * BLOCK;
    let domain = done("a stage-1 domain", stage1.create())?;
    add_all(host, &mut stage1)?;
    attach_stage1(host, &mut stage1, domain)?;
    let places = [0, BLOCK - page, BLOCK, size - page];
    let hole = BLOCK / 2..BLOCK + BLOCK / 2;
    let edges = [hole.start - page, hole.start, BLOCK - page, BLOCK, hole.end - page, hole.end];
    for (start, step) in [(0, size), (0, BLOCK), (0, BLOCK / 2)] {
        for at in (start..size).step_by(step as usize) {
            done("map", stage1.map(domain, IOVA + at, memory + at, step, true))?;
        }
        for at in places.into_iter().chain(edges) {
            dma_at_everywhere(host, IOVA + at, memory + at, Dma::Landed, "mapped")?;
        }
        done("unmap", stage1.unmap(domain, IOVA + hole.start, hole.end - hole.start))?;
        for at in edges {
            let expected = if hole.contains(&at) { Dma::Faulted } else { Dma::Landed };
            dma_at_everywhere(host, IOVA + at, memory + at, expected, "with a hole across two blocks")?;
        }
        let (iova, target) = (IOVA + hole.start, memory + hole.start);
        done("map", stage1.map(domain, iova, target, hole.end - hole.start, true))?;
        for at in places.into_iter().chain(edges) {
            dma_at_everywhere(host, IOVA + at, memory + at, Dma::Landed, "whole again")?;
        }
        done("unmap", stage1.unmap(domain, IOVA, size))?;
        for at in places.into_iter().chain(edges) {
            dma_at_everywhere(host, IOVA + at, memory + at, Dma::Faulted, "all unmapped")?;
        }
    }
    detach_stage1(host, &mut stage1)?;
    stop_stage1(host, stage1, &[domain])?;
    drain(host)?;
    Ok(text!("4 MiB mapped in three sizes, a hole of 2 MiB, behind {} SMMUs", host.smmus()))
}

fn replace<H: Host>(host: &H) -> Outcome {
    let mut stage1 = start_stage1(host)?;
    let page = stage1.granule().bytes();
    let targets = [block(host, 2), block(host, 3) + page];
    let mut domains = [done("a stage-1 domain", stage1.create())?; 2];
    domains[1] = done("a stage-1 domain", stage1.create())?;
    let [old, new] = domains;
    add_all(host, &mut stage1)?;
    for (domain, target) in domains.into_iter().zip(targets) {
        done("map", stage1.map(domain, IOVA, target, page, true))?;
    }
    attach_stage1(host, &mut stage1, old)?;
    // Where there is a second device it keeps the old domain's ASID in use: nothing flushes it.
    let second = |smmu: usize| host.stream(smmu, Device::Delayed);
    for (smmu, id) in (0..host.smmus()).filter_map(|smmu| Some((smmu, second(smmu)?))) {
        done("adding a stream", stage1.add_stream(smmu, id, StreamOptions::default()))?;
        done("attach to a stage-1 domain", stage1.attach(smmu, id, 0, old))?;
    }
    dma_at_everywhere(host, IOVA, targets[0], Dma::Landed, "in the first domain")?;
    for smmu in 0..host.smmus() {
        let id = stream(host, smmu, Device::Immediate)?;
        for (domain, target, other) in [(new, targets[1], targets[0]), (old, targets[0], targets[1])] {
            cpu_store(host, other, 0)?;
            done("replace", stage1.attach(smmu, id, 0, domain))?;
            dma_at(host, smmu, IOVA, target, Dma::Landed, "in the domain that replaced the other")?;
            if cpu_value(host, other)? != 0 {
                fail!("DMA behind SMMU {smmu} landed in the domain that was replaced");
            }
            for other in (0..host.smmus()).filter(|other| *other != smmu) {
                dma_at(host, other, IOVA, targets[0], Dma::Landed, "in the first domain still")?;
            }
            let asids = [old, new].map(|domain| stage1.asid(domain, smmu));
            let [Ok(kept), Ok(used)] = asids else { fail!("{asids:?}") };
            let users = kept.map_or(0, |(_, users)| users) + used.map_or(0, |(_, users)| users);
            let expected = 1 + u32::from(second(smmu).is_some());
            if users != expected || kept.is_some() && kept.map(|tag| tag.0) == used.map(|tag| tag.0) {
                fail!("ASIDs behind SMMU {smmu}: {kept:?} and {used:?}");
            }
        }
    }
    for (smmu, id) in (0..host.smmus()).filter_map(|smmu| Some((smmu, second(smmu)?))) {
        done("detach from a stage-1 domain", stage1.detach(smmu, id, 0, Idle::Aborts))?;
        done("removing a stream", stage1.remove_stream(smmu, id))?;
    }
    detach_stage1(host, &mut stage1)?;
    stop_stage1(host, stage1, &domains)?;
    drain(host)?;
    Ok(text!("there and back behind {} SMMUs", host.smmus()))
}

fn disk<H: Host>(host: &H) -> Outcome {
    use crate::host::DiskError;
    const SIZE: u64 = 0x1_0000;
    let memory = block(host, 1);
    let mut stage1 = start_stage1(host)?;
    let domain = done("a stage-1 domain", stage1.create())?;
    let mut disks = 0;
    for smmu in 0..host.smmus() {
        let Some(id) = host.stream(smmu, Device::Disk) else { continue };
        done("adding a stream", stage1.add_stream(smmu, id, StreamOptions::default()))?;
        done("attach to a stage-1 domain", stage1.attach(smmu, id, 0, domain))?;
        done("map", stage1.map(domain, memory, memory, SIZE, true))?;
        let mapped = host.disk_round_trip(smmu, memory, 0x5eed_0001);
        done("unmap", stage1.unmap(domain, memory, SIZE))?;
        let unmapped = host.disk_round_trip(smmu, memory, 0x5eed_0002);
        match (mapped, unmapped) {
            (Ok(()), Err(DiskError::TimedOut)) => disks += 1,
            (Err(DiskError::Absent), _) => {}
            (mapped, unmapped) => {
                fail!("the disk behind SMMU {smmu}: {mapped:?} with its memory mapped, {unmapped:?} without")
            }
        }
        done("detach from a stage-1 domain", stage1.detach(smmu, id, 0, Idle::Aborts))?;
        done("removing a stream", stage1.remove_stream(smmu, id))?;
    }
    done("end of a stage-1 domain", stage1.destroy(domain))?;
    done("end of stage 1", stage1.stop())?;
    drain(host)?;
    if disks == 0 {
        return Err(Stop::NotApplicable(text!("no disk behind any SMMU")));
    }
    Ok(text!("{disks} disks: worked, refused"))
}

fn substreams<H: Host>(host: &H) -> Outcome {
    const CD_MAX: u8 = 2;
    let mut stage1 = start_stage1(host)?;
    let page = stage1.granule().bytes();
    let domains = [done("a stage-1 domain", stage1.create())?, done("a stage-1 domain", stage1.create())?];
    let targets = [block(host, 2), block(host, 3)];
    for (domain, target) in domains.into_iter().zip(targets) {
        done("map", stage1.map(domain, IOVA, target, page, true))?;
    }
    let mut tried = 0;
    for smmu in 0..host.smmus() {
        let id = stream(host, smmu, Device::Immediate)?;
        if done("features", stage1.features(smmu))?.substream_bits < CD_MAX {
            continue;
        }
        let write = |substream: u32, target: u64, expected: Dma, when: &str| {
            let seen = match substream {
                0 => Some(host.dma_write_at(smmu, IOVA, target)),
                substream => host.dma_write_substream(smmu, substream, IOVA, target),
            };
            match seen {
                None => Ok(false),
                Some(seen) if seen == expected => Ok(true),
                Some(seen) => {
                    fail!("SubstreamID {substream} behind SMMU {smmu} {when}: {seen:?}, not {expected:?}")
                }
            }
        };
        let options = StreamOptions { cd_max: CD_MAX, ats: false };
        done("adding a stream", stage1.add_stream(smmu, id, options))?;
        done("attach", stage1.attach(smmu, id, 1, domains[0]))?;
        if write(1, targets[0], Dma::Landed, "attached")? {
            tried += 1;
            write(0, targets[0], Dma::Faulted, "with SubstreamID 1 attached")?;
            write(2, targets[0], Dma::Faulted, "with SubstreamID 1 attached")?;
            done("attach", stage1.attach(smmu, id, 2, domains[1]))?;
            done("attach", stage1.attach(smmu, id, 0, domains[1]))?;
            for (substream, target) in [(0, targets[1]), (1, targets[0]), (2, targets[1])] {
                write(substream, target, Dma::Landed, "with three attached")?;
            }
            done("replace", stage1.attach(smmu, id, 1, domains[1]))?;
            write(1, targets[1], Dma::Landed, "replaced")?;
            write(2, targets[1], Dma::Landed, "beside the one that was replaced")?;
            done("detach", stage1.detach(smmu, id, 2, Idle::Aborts))?;
            write(2, targets[1], Dma::Faulted, "detached")?;
            write(0, targets[1], Dma::Landed, "beside the one that was detached")?;
            done("detach", stage1.detach(smmu, id, 0, Idle::Aborts))?;
        }
        done("detach", stage1.detach(smmu, id, 1, Idle::Aborts))?;
        write(1, targets[1], Dma::Faulted, "with all detached")?;
        done("removing a stream", stage1.remove_stream(smmu, id))?;
    }
    for domain in domains {
        done("end of a stage-1 domain", stage1.destroy(domain))?;
    }
    done("end of stage 1", stage1.stop())?;
    drain(host)?;
    if tried == 0 {
        return Err(Stop::NotApplicable(text!("no SMMU and device have SubstreamIDs")));
    }
    Ok(text!("three SubstreamIDs of a stream behind {tried} SMMUs"))
}
