//! VMIDs and ASIDs: in use exactly as long as a domain or a vSMMU has them, and with nothing of the old owner when they are used again.

use super::errands::{delayed_devices, expect, mark, read_in, write_in};
use super::objects::{Member, Nested, Vsmmu};
use super::support::{
    HOST, MAX_SMMUS, add_all, attach_stage1, block, detach_stage1, dma_at, dma_at_everywhere, done, drain,
    good, start_stage1, stop_stage1, stream, unit,
};
use super::{Check, Outcome, Stop};
use crate::call::{Calls, DomainCalls, DomainTag};
use crate::host::{Device, Dma, Host};
use crate::{fail, text};
use abi::DomainHandle;
use smmuv3::features::Features;
use smmuv3::ste::Stage1Claim;

pub(super) fn checks<H: Host>() -> [Check<H>; 4] {
    [
        Check {
            name: "VMIDs in use",
            expected: "on each SMMU those of the domains and vSMMUs there and no more, after each of 12 steps, all different",
            run: in_use,
        },
        Check {
            name: "a VMID used again at once",
            expected: "a domain that gets the VMID of another after its last detach reaches nothing of the other's",
            run: vmid_again,
        },
        Check {
            name: "an ASID used again at once",
            expected: "a stage-1 domain that gets the ASID of another after its last detach or its replacement reaches nothing of the other's",
            run: asid_again,
        },
        Check {
            name: "the VMID of a vSMMU used again",
            expected: "with the same VMID and ASID nothing is left of a stage 1 that ended without an invalidation of its owner's",
            run: vsmmu_again,
        },
    ]
}

/// The VMID that a domain gets on each SMMU, by the immediate device.
pub(super) fn vmids_of<H: Host>(host: &H, domain: DomainHandle) -> Result<[u64; MAX_SMMUS], Stop> {
    let mut tags = [0; MAX_SMMUS];
    for (smmu, tag) in tags.iter_mut().enumerate().take(host.smmus()) {
        let id = stream(host, smmu, Device::Immediate)?;
        good("STREAM_ATTACH", host.attach(smmu, id, domain))?;
        *tag = good("STREAM_QUERY", host.attachment(smmu, id))?.map_or(0, |attachment| attachment.vmid);
        good("STREAM_DETACH", host.detach(smmu, id))?;
        if *tag == 0 {
            fail!("no VMID of an attached stream behind SMMU {smmu}");
        }
    }
    Ok(tags)
}

/// How many SMMUs have the same number in both.
fn same<H: Host>(host: &H, one: &[u64; MAX_SMMUS], other: &[u64; MAX_SMMUS]) -> usize {
    one.iter().zip(other).take(host.smmus()).filter(|(one, other)| one == other).count()
}

/// Follows the VMIDs of an SMMU.
struct Ledger<'h, H> {
    host: &'h H,
    smmu: usize,
    /// VMIDs in use on every SMMU before the first step.
    before: [u64; MAX_SMMUS],
}

impl<'h, H: Host> Ledger<'h, H> {
    fn open(host: &'h H, smmu: usize) -> Result<Self, Stop> {
        let mut before = [0; MAX_SMMUS];
        for (smmu, place) in before.iter_mut().enumerate().take(host.smmus()) {
            *place = good("SMMU_TAGS", host.smmu_tags(smmu))?.used;
        }
        Ok(Self { host, smmu, before })
    }

    /// So many more are in use on the SMMU, and none on another.
    fn expect(&self, more: u64, after: &str) -> Result<(), Stop> {
        for (smmu, before) in self.before.into_iter().enumerate().take(self.host.smmus()) {
            let expected = if smmu == self.smmu { before + more } else { before };
            let tags = good("SMMU_TAGS", self.host.smmu_tags(smmu))?;
            let described = good("SMMU_DESCRIBE", self.host.describe_smmu(smmu))?;
            // That of unattached streams is not counted there.
            let agree = u64::from(described.vmids_in_use) + 1 == tags.used
                && tags.used + tags.free == u64::from(described.last_vmid);
            if tags.used != expected || !agree {
                fail!("SMMU {smmu} after {after}: {tags:?}, {described:?}, not {expected} in use");
            }
        }
        Ok(())
    }

    /// The domain has this tag on the SMMU, and none on another.
    fn tag(&self, domain: DomainHandle, expected: DomainTag, after: &str) -> Result<(), Stop> {
        for smmu in 0..self.host.smmus() {
            let expected = if smmu == self.smmu { expected } else { DomainTag::None };
            let seen = good("DOMAIN_TAG", self.host.domain_tag(domain, smmu))?;
            if seen != expected {
                fail!("tag of {domain:?} on SMMU {smmu} after {after}: {seen:?}, not {expected:?}");
            }
        }
        Ok(())
    }

    /// The VMID by which a stream is attached.
    fn vmid(&self, stream: u32) -> Result<u64, Stop> {
        let attachment = good("STREAM_QUERY", self.host.attachment(self.smmu, stream))?;
        Ok(attachment.map_or(0, |attachment| attachment.vmid))
    }
}

fn in_use<H: Host>(host: &H) -> Outcome {
    let guest = good("GUEST_CREATE", host.create_guest())?;
    let created = good("DOMAIN_CREATE", host.create_domain(guest, 0))?;
    let memory = DomainHandle::Guest(guest);
    let mut tried = 0;
    for smmu in 0..host.smmus() {
        let first = stream(host, smmu, Device::Immediate)?;
        let Some(second) = host.stream(smmu, Device::Delayed) else { continue };
        let features = Features::probe(&good("SMMU_FEATURES", host.smmu_features(smmu))?);
        if !features.stage1 {
            continue;
        }
        let ledger = Ledger::open(host, smmu)?;
        good("STREAM_ATTACH", host.attach(smmu, first, HOST))?;
        ledger.expect(1, "a first stream in the host's domain")?;
        let host_vmid = ledger.vmid(first)?;
        ledger.tag(HOST, DomainTag::Own { vmid: host_vmid, users: 1 }, "a first stream")?;
        good("STREAM_ATTACH", host.attach(smmu, second, HOST))?;
        ledger.expect(1, "a second stream in the host's domain")?;
        ledger.tag(HOST, DomainTag::Own { vmid: host_vmid, users: 2 }, "a second stream")?;
        let vsmmu = Vsmmu::create(host, smmu, HOST)?;
        ledger.expect(2, "VSMMU_CREATE")?;
        let members =
            [Member::add(host, vsmmu.handle, 1, first)?, Member::add(host, vsmmu.handle, 2, second)?];
        let nested = Nested::create(host, vsmmu.handle, Stage1Claim::bypass(&features).0)?;
        ledger.expect(2, "VSMMU_ADD_STREAM and DOMAIN_CREATE_NESTED")?;
        ledger.tag(nested.handle, DomainTag::Vsmmu { vmid: vsmmu.vmid, users: 0 }, "its creation")?;
        good("STREAM_ATTACH with REPLACE", host.replace(smmu, first, nested.handle))?;
        ledger.expect(2, "the first stream went to the nested domain")?;
        ledger.tag(HOST, DomainTag::Own { vmid: host_vmid, users: 1 }, "the first stream left")?;
        ledger.tag(nested.handle, DomainTag::Vsmmu { vmid: vsmmu.vmid, users: 1 }, "a stream came")?;
        good("STREAM_ATTACH with REPLACE", host.replace(smmu, second, nested.handle))?;
        ledger.expect(1, "the second stream went to the nested domain")?;
        ledger.tag(HOST, DomainTag::None, "the last stream left")?;
        if host_vmid == vsmmu.vmid || ledger.vmid(second)? != vsmmu.vmid {
            fail!("VMIDs behind SMMU {smmu}: {host_vmid} of the host's domain, {} of the vSMMU", vsmmu.vmid);
        }
        good("STREAM_DETACH", host.detach(smmu, second))?;
        good("STREAM_DETACH", host.detach(smmu, first))?;
        ledger.expect(1, "the nested domain has no stream any more")?;
        good("STREAM_ATTACH", host.attach(smmu, first, created))?;
        good("STREAM_ATTACH", host.attach(smmu, second, memory))?;
        ledger.expect(3, "one stream each in two domains of a guest")?;
        let [one, other] = [ledger.vmid(first)?, ledger.vmid(second)?];
        ledger.tag(created, DomainTag::Own { vmid: one, users: 1 }, "a first stream")?;
        ledger.tag(memory, DomainTag::Own { vmid: other, users: 1 }, "a first stream")?;
        if one == other || [one, other].contains(&vsmmu.vmid) {
            fail!(
                "VMIDs behind SMMU {smmu}: {one} and {other} of a guest's domains, {} of a vSMMU",
                vsmmu.vmid
            );
        }
        good("STREAM_DETACH", host.detach(smmu, first))?;
        ledger.expect(2, "a guest's domain has no stream any more")?;
        ledger.tag(created, DomainTag::None, "its last stream left")?;
        good("STREAM_DETACH", host.detach(smmu, second))?;
        nested.end()?;
        for member in members {
            member.end()?;
        }
        ledger.expect(1, "all but the vSMMU ended")?;
        vsmmu.end()?;
        ledger.expect(0, "VSMMU_DESTROY")?;
        tried += 1;
    }
    good("DOMAIN_DESTROY", host.destroy_domain(created))?;
    good("GUEST_DESTROY", host.destroy_guest(guest))?;
    drain(host)?;
    if tried == 0 {
        return Err(Stop::NotApplicable(text!("no SMMU with stage 1 has two devices behind it")));
    }
    Ok(text!("up to 3 more, then as before, on {tried} SMMUs"))
}

fn vmid_again<H: Host>(host: &H) -> Outcome {
    const IPA: u64 = 0x40_0000;
    delayed_devices(host)?;
    let unit = unit(host)?;
    let page = block(host, 3) + 2 * unit;
    let guest = good("GUEST_CREATE", host.create_guest())?;
    let memory = DomainHandle::Guest(guest);
    good("MEM_DONATE", host.donate(page, unit, guest))?;
    let mut again = 0;
    for round in 0..2 {
        let phase = 3 * round + 1;
        let old = good("DOMAIN_CREATE", host.create_domain(guest, 0))?;
        let new = good("DOMAIN_CREATE", host.create_domain(guest, 0))?;
        good("DOMAIN_MAP", host.domain_map(old, IPA, page, unit))?;
        let before = vmids_of(host, old)?;
        write_in(host, old, IPA, phase)?;
        again += same(host, &before, &vmids_of(host, new)?);
        write_in(host, old, IPA, phase + 1)?;
        // The last use of the tag was the old domain's, with a transfer; the next is the new one's.
        write_in(host, new, IPA, phase + 2)?;
        let seen = read_in(host, memory, page)?;
        expect(host, seen, |smmu| mark(phase + 1, smmu), "the page after a write through the new domain")?;
        expect(host, read_in(host, new, IPA)?, |_| 0, "through the new domain")?;
        good("DOMAIN_UNMAP", host.domain_unmap(old, IPA, unit))?;
        for domain in [old, new] {
            good("DOMAIN_DESTROY", host.destroy_domain(domain))?;
        }
    }
    good("MEM_RECLAIM", host.reclaim(page, unit, guest))?;
    good("GUEST_DESTROY", host.destroy_guest(guest))?;
    drain(host)?;
    if again == 0 {
        fail!("no VMID was used again");
    }
    Ok(text!("refused; {again} VMIDs were used again"))
}

const IOVA: u64 = 0x3456_4000_0000;

fn asid_again<H: Host>(host: &H) -> Outcome {
    let mut stage1 = start_stage1(host)?;
    let page = stage1.granule().bytes();
    let targets = [block(host, 2), block(host, 3)];
    let mut again = 0;
    add_all(host, &mut stage1)?;
    for replaced in [false, true, false, true] {
        let old = done("a stage-1 domain", stage1.create())?;
        let between = done("a stage-1 domain", stage1.create())?;
        done("map", stage1.map(old, IOVA, targets[0], page, true))?;
        done("map", stage1.map(between, IOVA, targets[1], page, true))?;
        attach_stage1(host, &mut stage1, old)?;
        dma_at_everywhere(host, IOVA, targets[0], Dma::Landed, "in the old domain")?;
        let mut asids = [None; MAX_SMMUS];
        for (smmu, asid) in asids.iter_mut().enumerate().take(host.smmus()) {
            *asid = done("its ASID", stage1.asid(old, smmu))?;
        }
        let new = done("a stage-1 domain", stage1.create())?;
        if !replaced {
            detach_stage1(host, &mut stage1)?;
            attach_stage1(host, &mut stage1, new)?;
        }
        for (smmu, asid) in asids.into_iter().enumerate().take(host.smmus()) {
            if replaced {
                let id = stream(host, smmu, Device::Immediate)?;
                done("replace", stage1.attach(smmu, id, 0, between))?;
                dma_at(host, smmu, IOVA, targets[1], Dma::Landed, "in the domain that replaced it")?;
                done("replace", stage1.attach(smmu, id, 0, new))?;
            }
            again += u32::from(done("its ASID", stage1.asid(new, smmu))? == asid);
        }
        for target in targets {
            dma_at_everywhere(host, IOVA, target, Dma::Faulted, "in a domain that maps nothing")?;
        }
        detach_stage1(host, &mut stage1)?;
        for domain in [old, between, new] {
            done("end of a stage-1 domain", stage1.destroy(domain))?;
        }
    }
    stop_stage1(host, stage1, &[])?;
    drain(host)?;
    if again == 0 {
        fail!("no ASID was used again");
    }
    Ok(text!("refused; {again} ASIDs were used again"))
}

fn vsmmu_again<H: Host>(host: &H) -> Outcome {
    let target = block(host, 2);
    let mut vmids = [[0; MAX_SMMUS]; 2];
    for (round, vmids) in vmids.iter_mut().enumerate() {
        let mut stage1 = start_stage1(host)?;
        let page = stage1.granule().bytes();
        for (smmu, vmid) in vmids.iter_mut().enumerate().take(host.smmus()) {
            *vmid = done("the host's vSMMU", stage1.vsmmu(smmu))?.1;
        }
        let domain = done("a stage-1 domain", stage1.create())?;
        add_all(host, &mut stage1)?;
        attach_stage1(host, &mut stage1, domain)?;
        let when = if round == 0 { "before the map" } else { "on a new vSMMU" };
        dma_at_everywhere(host, IOVA, target, Dma::Faulted, when)?;
        if round == 0 {
            done("map", stage1.map(domain, IOVA, target, page, true))?;
            dma_at_everywhere(host, IOVA, target, Dma::Landed, "mapped")?;
            // Without an invalidation of the host's: to forget is left to the hypervisor.
            drop(stage1);
            continue;
        }
        detach_stage1(host, &mut stage1)?;
        stop_stage1(host, stage1, &[domain])?;
    }
    drain(host)?;
    let [old, new] = vmids;
    match same(host, &old, &new) {
        0 => fail!("no VMID was used again"),
        again => Ok(text!("faulted; {again} VMIDs were used again")),
    }
}
