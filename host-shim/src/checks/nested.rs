//! Stage 1 above stage 2: what the host writes there leads nowhere that stage 2 does not, and stage 2 that changes is forgotten with
//! everything that was made from it.

use super::objects::{Member, Nested};
use super::support::{
    HOST, add_all, attach_stage1, block, cpu_store, detach_stage1, dma, dma_at, dma_at_everywhere, done,
    drain, good, refused, start_stage1, stop_stage1, stream, unit,
};
use super::{Check, Outcome, Stop};
use crate::call::{Calls, DomainCalls, VsmmuCalls};
use crate::host::{Device, Dma, Host};
use crate::stage1::{DomainId, Idle, Stage1, StreamOptions};
use crate::{fail, text};
use abi::{DomainHandle, Status, VsmmuHandle};
use smmuv3::address::PhysAddr;
use smmuv3::cd::ContextDescriptor;
use smmuv3::command::Command;
use smmuv3::ste::Stage1Claim;

pub(super) fn checks<H: Host>() -> [Check<H>; 6] {
    [
        Check {
            name: "stage 1 above a page that is donated",
            expected: "combined entries warm, DMA faults on every SMMU while the page is a guest's, and lands after the reclaim",
            run: donation,
        },
        Check {
            name: "a context descriptor in a page that is donated",
            expected: "the cached descriptor is forgotten with the page: DMA faults, also after the reclaim, until there is a new one",
            run: descriptor,
        },
        Check {
            name: "a page that is donated while stage 1 is away",
            expected: "combined entries warm, the stream bypasses stage 1, the page goes, stage 1 comes back: DMA to the page faults, and beside it lands",
            run: away,
        },
        Check {
            name: "stage 1 that leads to forbidden places",
            expected: "faults on every SMMU, for an output address as for the address of a context descriptor",
            run: forbidden,
        },
        Check {
            name: "from the host's domain to stage 1 and back",
            expected: "each change is one REPLACE: DMA is translated by the new domain, then by none, then by stage 1, then by the host's again",
            run: there_and_back,
        },
        Check {
            name: "replacing with somebody else's domain",
            expected: "UnknownDomain, and the stream is where it was, in every direction",
            run: foreign,
        },
    ]
}

const IOVA: u64 = 0x2345_4000_0000;

fn donation<H: Host>(host: &H) -> Outcome {
    let mut stage1 = start_stage1(host)?;
    let size = unit(host)?.max(stage1.granule().bytes());
    let (memory, neighbour) = (block(host, 2) + 4 * size, block(host, 2) + 5 * size);
    let guest = good("GUEST_CREATE", host.create_guest())?;
    let domain = done("a stage-1 domain", stage1.create())?;
    add_all(host, &mut stage1)?;
    attach_stage1(host, &mut stage1, domain)?;
    for (iova, target) in [(IOVA, memory), (IOVA + size, neighbour)] {
        done("map", stage1.map(domain, iova, target, size, true))?;
    }
    for _ in 0..2 {
        dma_at_everywhere(host, IOVA, memory, Dma::Landed, "before the donation")?;
        dma_at_everywhere(host, IOVA + size, neighbour, Dma::Landed, "before the donation")?;
        good("MEM_DONATE", host.donate(memory, size, guest))?;
        dma_at_everywhere(host, IOVA, memory, Dma::Faulted, "donated, with warm IOTLBs")?;
        dma_at_everywhere(host, IOVA + size, neighbour, Dma::Landed, "beside the donation")?;
        good("MEM_RECLAIM", host.reclaim(memory, size, guest))?;
        dma_at_everywhere(host, IOVA, memory, Dma::Landed, "reclaimed")?;
    }
    detach_stage1(host, &mut stage1)?;
    stop_stage1(host, stage1, &[domain])?;
    good("GUEST_DESTROY", host.destroy_guest(guest))?;
    drain(host)?;
    Ok(text!("landed, faulted, landed, twice behind {} SMMUs", host.smmus()))
}

/// A nested domain that the host made by itself, for the immediate device behind an SMMU.
struct ByHand<'h, H: Host> {
    host: &'h H,
    vsmmu: VsmmuHandle,
    smmu: usize,
    stream: u32,
    // The domain goes first: the stream can leave the vSMMU when it is detached.
    domain: Nested<'h, H>,
    member: Member<'h, H>,
}

impl<'h, H: Host> ByHand<'h, H> {
    /// The device has another StreamID in the vSMMU than on the SMMU, and its one context descriptor is at `table`.
    fn attach(host: &'h H, stage1: &Stage1<'_, H>, smmu: usize, table: u64) -> Result<Self, Stop> {
        let stream = stream(host, smmu, Device::Immediate)?;
        let (vsmmu, _) = done("the host's vSMMU", stage1.vsmmu(smmu))?;
        let member = Member::add(host, vsmmu, 0xcafe_0000 + smmu as u32, stream)?;
        let claim = Stage1Claim::linear(PhysAddr(table), 0, false);
        let domain = Nested::create(host, vsmmu, claim.0)?;
        good("STREAM_ATTACH", host.attach(smmu, stream, domain.handle))?;
        Ok(Self { host, vsmmu, smmu, stream, domain, member })
    }

    fn detach(self) -> Result<(), Stop> {
        let destroyed = self.host.destroy_domain(self.domain.handle);
        refused("DOMAIN_DESTROY with a stream", destroyed, Status::Busy)?;
        let removed = self.host.remove_stream(self.vsmmu, self.member.virtual_stream);
        refused("VSMMU_REMOVE_STREAM while attached", removed, Status::Busy)?;
        good("STREAM_DETACH", self.host.detach(self.smmu, self.stream))?;
        self.domain.end()?;
        self.member.end()
    }
}

fn store_descriptor<H: Host>(host: &H, table: u64, descriptor: &ContextDescriptor) -> Result<(), Stop> {
    // Word 0 has V: it comes last.
    for (index, word) in descriptor.0.into_iter().enumerate().rev() {
        cpu_store(host, table + index as u64 * 8, word)?;
    }
    Ok(())
}

/// Attaches a stream to a stage-1 domain, and answers the descriptor that it has there.
fn attach_for_descriptor<H: Host>(
    stage1: &mut Stage1<'_, H>,
    domain: DomainId,
    smmu: usize,
    id: u32,
) -> Result<ContextDescriptor, Stop> {
    done("adding a stream", stage1.add_stream(smmu, id, StreamOptions::default()))?;
    done("attach to a stage-1 domain", stage1.attach(smmu, id, 0, domain))?;
    match done("a context descriptor", stage1.context(domain, smmu))? {
        Some(descriptor) => Ok(descriptor),
        None => fail!("no ASID behind SMMU {smmu} with a stream attached"),
    }
}

/// Takes such a stream out again.
fn leave<H: Host>(stage1: &mut Stage1<'_, H>, smmu: usize, id: u32) -> Result<(), Stop> {
    done("detach from a stage-1 domain", stage1.detach(smmu, id, 0, Idle::Aborts))?;
    done("removing a stream", stage1.remove_stream(smmu, id))
}

fn descriptor<H: Host>(host: &H) -> Outcome {
    super::errands::delayed_devices(host)?;
    let mut stage1 = start_stage1(host)?;
    let size = unit(host)?.max(stage1.granule().bytes());
    let [memory, table, commands] = [0, 8, 16].map(|index| block(host, 3) + index * size);
    let guest = good("GUEST_CREATE", host.create_guest())?;
    let domain = done("a stage-1 domain", stage1.create())?;
    done("map", stage1.map(domain, IOVA, memory, size, true))?;
    let mut tried = 0;
    for smmu in 0..host.smmus() {
        // The delayed device keeps the domain's ASID in use, so that the immediate one can have a descriptor in memory of the check's.
        let Some(id) = host.stream(smmu, Device::Delayed) else { continue };
        let descriptor = attach_for_descriptor(&mut stage1, domain, smmu, id)?;
        store_descriptor(host, table, &descriptor)?;
        let by_hand = ByHand::attach(host, &stage1, smmu, table)?;
        dma_at(host, smmu, IOVA, memory, Dma::Landed, "by a descriptor of the check's")?;
        good("MEM_DONATE", host.donate(table, size, guest))?;
        dma_at(host, smmu, IOVA, memory, Dma::Faulted, "with the descriptor's page donated")?;
        good("MEM_RECLAIM", host.reclaim(table, size, guest))?;
        dma_at(host, smmu, IOVA, memory, Dma::Faulted, "with the descriptor wiped")?;
        store_descriptor(host, table, &descriptor)?;
        let command = Command::cfgi_cd(by_hand.member.virtual_stream, 0, true);
        for (word, address) in command.0.into_iter().zip((commands..).step_by(8)) {
            cpu_store(host, address, word)?;
        }
        good("VSMMU_INVALIDATE", host.invalidate(by_hand.vsmmu, commands, 1))?;
        dma_at(host, smmu, IOVA, memory, Dma::Landed, "with a new descriptor")?;
        by_hand.detach()?;
        dma_at(host, smmu, IOVA, memory, Dma::Faulted, "detached")?;
        leave(&mut stage1, smmu, id)?;
        tried += 1;
    }
    done("end of a stage-1 domain", stage1.destroy(domain))?;
    done("end of stage 1", stage1.stop())?;
    good("GUEST_DESTROY", host.destroy_guest(guest))?;
    drain(host)?;
    Ok(text!("landed, faulted twice, landed, behind {tried} SMMUs"))
}

fn away<H: Host>(host: &H) -> Outcome {
    let mut stage1 = start_stage1(host)?;
    let size = unit(host)?.max(stage1.granule().bytes());
    let [memory, neighbour, table] = [0, 8, 16].map(|index| block(host, 3) + index * size);
    let guest = good("GUEST_CREATE", host.create_guest())?;
    let domain = done("a stage-1 domain", stage1.create())?;
    for (iova, target) in [(IOVA, memory), (IOVA + size, neighbour)] {
        done("map", stage1.map(domain, iova, target, size, true))?;
    }
    let mut tried = 0;
    for smmu in 0..host.smmus() {
        // The descriptor of another device, which then goes: its ASID is flushed with it, and the check's is another.
        let Some(id) = host.stream(smmu, Device::Delayed) else { continue };
        let mut descriptor = attach_for_descriptor(&mut stage1, domain, smmu, id)?;
        leave(&mut stage1, smmu, id)?;
        descriptor.0[0] ^= 0x80 << 48;
        store_descriptor(host, table, &descriptor)?;
        let by_hand = ByHand::attach(host, &stage1, smmu, table)?;
        let features = done("features", stage1.features(smmu))?;
        let bypass = Nested::create(host, by_hand.vsmmu, Stage1Claim::bypass(&features).0)?;
        let replace = |domain| good("STREAM_ATTACH with REPLACE", host.replace(smmu, by_hand.stream, domain));
        for away in [false, true] {
            dma_at(host, smmu, IOVA, memory, Dma::Landed, "by stage 1")?;
            dma_at(host, smmu, IOVA + size, neighbour, Dma::Landed, "by stage 1, beside it")?;
            if away {
                replace(bypass.handle)?;
            }
            good("MEM_DONATE", host.donate(memory, size, guest))?;
            if away {
                replace(by_hand.domain.handle)?;
            }
            dma_at(host, smmu, IOVA, memory, Dma::Faulted, "donated")?;
            dma_at(host, smmu, IOVA + size, neighbour, Dma::Landed, "beside what was donated")?;
            good("MEM_RECLAIM", host.reclaim(memory, size, guest))?;
        }
        by_hand.detach()?;
        bypass.end()?;
        tried += 1;
    }
    done("end of a stage-1 domain", stage1.destroy(domain))?;
    done("end of stage 1", stage1.stop())?;
    good("GUEST_DESTROY", host.destroy_guest(guest))?;
    drain(host)?;
    Ok(text!("with stage 1 in place and away, behind {tried} SMMUs"))
}

fn forbidden<H: Host>(host: &H) -> Outcome {
    let mut stage1 = start_stage1(host)?;
    let page = stage1.granule().bytes();
    let guest = good("GUEST_CREATE", host.create_guest())?;
    let size = unit(host)?;
    let guests = block(host, 4);
    good("MEM_DONATE", host.donate(guests, size, guest))?;
    let domain = done("a stage-1 domain", stage1.create())?;
    add_all(host, &mut stage1)?;
    attach_stage1(host, &mut stage1, domain)?;
    let output_end = 1 << done("features", stage1.features(0))?.oas_bits.min(48);
    let targets = || {
        let named = (0..4096).map_while(|index| host.forbidden(index)).map(|target| target.address);
        named.chain([guests, host.not_ram()]).filter(move |address| *address < output_end)
    };
    for target in targets() {
        let start = target & !(page - 1);
        done("map", stage1.map(domain, IOVA, start, page, true))?;
        dma_at_everywhere(host, IOVA + (target & (page - 1) & !3), target, Dma::Faulted, "through stage 1")?;
        done("unmap", stage1.unmap(domain, IOVA, page))?;
    }
    let control = block(host, 2);
    done("map", stage1.map(domain, IOVA, control, page, true))?;
    dma_at_everywhere(host, IOVA, control, Dma::Landed, "through stage 1, as the control")?;
    detach_stage1(host, &mut stage1)?;
    for smmu in 0..host.smmus() {
        let id = stream(host, smmu, Device::Immediate)?;
        done("removing a stream", stage1.remove_stream(smmu, id))?;
        for target in targets() {
            let by_hand = ByHand::attach(host, &stage1, smmu, target & !0x3f)?;
            dma_at(host, smmu, IOVA, control, Dma::Faulted, "by a descriptor in a forbidden place")?;
            by_hand.detach()?;
        }
    }
    done("end of a stage-1 domain", stage1.destroy(domain))?;
    done("end of stage 1", stage1.stop())?;
    good("MEM_RECLAIM", host.reclaim(guests, size, guest))?;
    good("GUEST_DESTROY", host.destroy_guest(guest))?;
    drain(host)?;
    Ok(text!("{} places, as outputs and as descriptors, behind {} SMMUs", targets().count(), host.smmus()))
}

fn there_and_back<H: Host>(host: &H) -> Outcome {
    let mut stage1 = start_stage1(host)?;
    let page = stage1.granule().bytes();
    let (own, target) = (block(host, 1), block(host, 2));
    let domain = done("a stage-1 domain", stage1.create())?;
    done("map", stage1.map(domain, own, target, page, true))?;
    for smmu in 0..host.smmus() {
        let id = stream(host, smmu, Device::Immediate)?;
        let (vsmmu, vmid) = done("the host's vSMMU", stage1.vsmmu(smmu))?;
        let features = done("features", stage1.features(smmu))?;
        good("STREAM_ATTACH", host.attach(smmu, id, HOST))?;
        dma(host, smmu, own, Dma::Landed, "in the host's domain")?;
        done("adding a stream", stage1.add_stream(smmu, id, StreamOptions::default()))?;
        dma(host, smmu, own, Dma::Landed, "in the host's domain, and a vSMMU's")?;
        for _ in 0..2 {
            done("attach to a stage-1 domain", stage1.attach(smmu, id, 0, domain))?;
            dma_at(host, smmu, own, target, Dma::Landed, "by stage 1")?;
            let seen = good("STREAM_QUERY", host.attachment(smmu, id))?;
            if seen.is_none_or(|seen| seen.vmid != vmid) {
                fail!("{seen:?} of a nested stream behind SMMU {smmu}, whose vSMMU has VMID {vmid}");
            }
            done("detach", stage1.detach(smmu, id, 0, Idle::HostDomain))?;
            dma(host, smmu, own, Dma::Landed, "in the host's domain again")?;
        }
        // Without stage 1 of the host's: bypass, abort, and what is not valid.
        let bypass = Nested::create(host, vsmmu, Stage1Claim::bypass(&features).0)?;
        let abort = Nested::create(host, vsmmu, Stage1Claim::ABORT.0)?;
        let invalid = Nested::create(host, vsmmu, [0; 2])?;
        for (domain, expected, when) in [
            (bypass.handle, Dma::Landed, "bypassing stage 1"),
            (abort.handle, Dma::Faulted, "by an entry that aborts"),
            (bypass.handle, Dma::Landed, "bypassing stage 1 again"),
            (invalid.handle, Dma::Faulted, "by an entry that is not valid"),
            (HOST, Dma::Landed, "in the host's domain at last"),
        ] {
            good("STREAM_ATTACH with REPLACE", host.replace(smmu, id, domain))?;
            dma(host, smmu, own, expected, when)?;
        }
        for domain in [bypass, abort, invalid] {
            domain.end()?;
        }
        good("STREAM_DETACH", host.detach(smmu, id))?;
        dma(host, smmu, own, Dma::Faulted, "detached")?;
    }
    stop_stage1(host, stage1, &[domain])?;
    drain(host)?;
    Ok(text!("host's domain, stage 1, bypass and abort, behind {} SMMUs", host.smmus()))
}

fn foreign<H: Host>(host: &H) -> Outcome {
    let mut stage1 = start_stage1(host)?;
    let page = stage1.granule().bytes();
    let (own, target) = (block(host, 1), block(host, 2));
    let domain = done("a stage-1 domain", stage1.create())?;
    done("map", stage1.map(domain, own, target, page, true))?;
    let guests = [good("GUEST_CREATE", host.create_guest())?, good("GUEST_CREATE", host.create_guest())?];
    let created = good("DOMAIN_CREATE", host.create_domain(guests[0], 0))?;
    let memory_domains = guests.map(DomainHandle::Guest);
    for smmu in 0..host.smmus() {
        let id = stream(host, smmu, Device::Immediate)?;
        let tries = |mine: DomainHandle, others: &[DomainHandle]| {
            for other in others {
                let before = good("STREAM_QUERY", host.attachment(smmu, id))?;
                let replaced = host.replace(smmu, id, *other);
                refused("REPLACE with somebody else's domain", replaced, Status::UnknownDomain)?;
                if good("STREAM_QUERY", host.attachment(smmu, id))? != before {
                    fail!("a refused REPLACE from {mine:?} to {other:?} changed {before:?}");
                }
            }
            Ok(())
        };
        good("STREAM_ATTACH", host.attach(smmu, id, HOST))?;
        tries(HOST, &[memory_domains[0], created])?;
        dma(host, smmu, own, Dma::Landed, "in the host's domain still")?;
        done("adding a stream", stage1.add_stream(smmu, id, StreamOptions::default()))?;
        done("attach to a stage-1 domain", stage1.attach(smmu, id, 0, domain))?;
        tries(HOST, &[memory_domains[0], created])?;
        dma_at(host, smmu, own, target, Dma::Landed, "by stage 1 still")?;
        done("detach", stage1.detach(smmu, id, 0, Idle::Aborts))?;
        let nowhere = host.replace(smmu, id, HOST);
        refused("REPLACE of an unattached stream", nowhere, Status::WrongState)?;
        done("removing a stream", stage1.remove_stream(smmu, id))?;
        for mine in [memory_domains[0], created] {
            good("STREAM_ATTACH", host.attach(smmu, id, mine))?;
            tries(mine, &[HOST, memory_domains[1]])?;
            good("STREAM_DETACH", host.detach(smmu, id))?;
        }
    }
    done("end of a stage-1 domain", stage1.destroy(domain))?;
    done("end of stage 1", stage1.stop())?;
    good("DOMAIN_DESTROY", host.destroy_domain(created))?;
    for guest in guests {
        good("GUEST_DESTROY", host.destroy_guest(guest))?;
    }
    drain(host)?;
    Ok(text!("four domains, none left for another's, behind {} SMMUs", host.smmus()))
}
