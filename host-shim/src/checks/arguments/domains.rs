//! Bad arguments of the calls about domains.

use super::Bad;
use crate::call::{Calls, DomainCalls};
use crate::checks::Outcome;
use crate::checks::objects::{Nested, Vsmmu};
use crate::checks::support::{HOST, block, drain, good, stream, unit};
use crate::host::{Device, Host};
use abi::{DomainHandle, Function, GuestHandle, Recipient, Status};
use smmuv3::features::Features;
use smmuv3::ste::Stage1Claim;

/// Register values that name no object: those of another generation, place and owner than `handle`, and what no object ever has.
pub(super) fn not_handles(handle: u64) -> impl Iterator<Item = u64> {
    let near = [1 << 16, 1 << 31, 1, 1 << 15, 1 << 32, 1 << 40, 1 << 63];
    near.into_iter().map(move |bit| handle ^ bit).chain([65, 255, 256, 0xffff, 0xffff_ffff, u64::MAX])
}

pub(super) fn domains<H: Host>(host: &H) -> Outcome {
    use Function::{
        DomainCreate, DomainDescribe, DomainDestroy, DomainMap, DomainQuery, DomainTag, DomainUnmap,
    };
    const IPA: u64 = 0x40_0000;
    let unit = unit(host)?;
    let page = block(host, 1);
    let [owned, second, foreign, shared, free] = [0, 1, 2, 3, 4].map(|index| page + index * unit);
    let guest = good("GUEST_CREATE", host.create_guest())?;
    let other = good("GUEST_CREATE", host.create_guest())?;
    let domain = good("DOMAIN_CREATE", host.create_domain(guest, 0))?;
    let stale = good("DOMAIN_CREATE", host.create_domain(guest, 0))?;
    good("DOMAIN_DESTROY", host.destroy_domain(stale))?;
    let empty = good("DOMAIN_CREATE", host.create_domain(guest, 0))?;
    for (start, owner) in [(owned, guest), (second, guest), (foreign, other)] {
        good("MEM_DONATE", host.donate(start, unit, owner))?;
    }
    good("MEM_SHARE", host.share(shared, unit, Recipient::Guest(guest)))?;
    good("DOMAIN_MAP", host.domain_map(domain, IPA, owned, unit))?;
    let attached = stream(host, 0, Device::Immediate)?;
    good("STREAM_ATTACH", host.attach(0, attached, empty))?;
    let can_nest = Features::probe(&good("SMMU_FEATURES", host.smmu_features(0))?).stage1;
    let vsmmu = if can_nest { Some(Vsmmu::create(host, 0, HOST)?) } else { None };
    let nested = match &vsmmu {
        Some(vsmmu) => Some(Nested::create(host, vsmmu.handle, Stage1Claim::ABORT.0)?),
        None => None,
    };
    drain(host)?;
    let (g, d) = (guest.to_register(), domain.to_register());

    let mut bad = Bad::new(host)?;
    let nobody = (1..=u64::from(GuestHandle::MAX)).find(|&id| id != g && id != other.to_register());
    for handle in [0, nobody.unwrap_or(64), 65, g | 1 << 32, g + 256, u64::MAX] {
        bad.call(DomainCreate, [handle, 0, 0, 0], Status::UnknownGuest)?;
    }
    for bit in 1..64 {
        bad.call(DomainCreate, [g, 1 << bit, 0, 0], Status::Invalid)?;
    }
    let not_created = [HOST, DomainHandle::Guest(guest)].map(DomainHandle::to_register);
    let unknown = || not_handles(d).chain([stale.to_register()]);
    for handle in unknown() {
        for function in [DomainDescribe, DomainTag, DomainQuery] {
            bad.call(function, [handle, 0, 0, 0], Status::UnknownDomain)?;
        }
        bad.call(Function::StreamAttach, [0, u64::from(attached), handle, 0], Status::UnknownDomain)?;
        bad.call(Function::VsmmuCreate, [0, handle, 0, 0], Status::UnknownDomain)?;
    }
    let wrong_kind = nested.as_ref().map(|nested| nested.handle.to_register());
    for handle in unknown().chain(not_created) {
        bad.call(DomainDestroy, [handle, 0, 0, 0], Status::UnknownDomain)?;
    }
    for handle in unknown().chain(not_created).chain(wrong_kind) {
        bad.call(DomainMap, [handle, IPA + unit, second, unit], Status::UnknownDomain)?;
        bad.call(DomainUnmap, [handle, IPA, unit, 0], Status::UnknownDomain)?;
    }
    if let Some(nested) = wrong_kind {
        bad.call(DomainQuery, [nested, IPA, 0, 0], Status::UnknownDomain)?;
        bad.call(Function::VsmmuCreate, [0, nested, 0, 0], Status::UnknownDomain)?;
    }
    if let Some(nobody) = nobody {
        for function in [DomainQuery, DomainDescribe, DomainTag] {
            bad.call(function, [nobody, 0, 0, 0], Status::UnknownGuest)?;
        }
        bad.call(Function::VsmmuCreate, [0, nobody, 0, 0], Status::UnknownGuest)?;
    }
    for smmu in [host.smmus() as u64, 64, 256, 1 << 32, u64::MAX] {
        bad.call(DomainTag, [d, smmu, 0, 0], Status::UnknownSmmu)?;
    }

    // The last unit of the domain can be mapped, the next cannot.
    let end = good("FEATURES", host.features())?.domain_end();
    good("DOMAIN_MAP", host.domain_map(domain, end - unit, owned, unit))?;
    good("DOMAIN_UNMAP", host.domain_unmap(domain, end - unit, unit))?;
    for (ipa, start, size) in [
        (IPA + 1, second, unit),
        (IPA + unit / 2, second, unit),
        (IPA + unit, second + unit / 2, unit),
        (IPA + unit, second, 0),
        (IPA + unit, second, unit - 1),
        (IPA + unit, second, unit + 1),
        (0_u64.wrapping_sub(unit), second, unit),
        (1 << 63, second, unit),
        (1 << 52, second, unit),
        (end, second, unit),
        (end - unit, second, 2 * unit),
    ] {
        bad.call(DomainMap, [d, ipa, start, size], Status::Unaligned)?;
        if start == second && size != 0 {
            bad.call(DomainUnmap, [d, ipa, size, 0], Status::Unaligned)?;
        }
    }
    bad.call(DomainUnmap, [d, IPA, 0, 0], Status::Unaligned)?;
    bad.call(DomainUnmap, [d, IPA, u64::MAX, 0], Status::Unaligned)?;
    bad.call(DomainMap, [d, IPA + unit, host.not_ram(), unit], Status::NotRam)?;
    for start in [foreign, shared, free] {
        bad.call(DomainMap, [d, IPA + unit, start, unit], Status::WrongState)?;
    }
    bad.call(DomainMap, [d, IPA + unit, second, 2 * unit], Status::WrongState)?;
    bad.call(DomainMap, [d, IPA, second, unit], Status::WrongState)?;
    bad.call(DomainMap, [d, IPA, owned, unit], Status::WrongState)?;
    bad.call(DomainMap, [d, IPA - unit, owned, 2 * unit], Status::WrongState)?;
    for ipa in [IPA + unit, IPA - unit, 0] {
        bad.call(DomainUnmap, [d, ipa, unit, 0], Status::WrongState)?;
        bad.call(DomainQuery, [d, ipa, 0, 0], Status::WrongState)?;
    }
    bad.call(DomainQuery, [d, 1 << 52, 0, 0], Status::WrongState)?;
    bad.call(DomainQuery, [d, u64::MAX, 0, 0], Status::WrongState)?;
    bad.call(DomainDestroy, [d, 0, 0, 0], Status::Busy)?;
    bad.call(DomainDestroy, [empty.to_register(), 0, 0, 0], Status::Busy)?;
    bad.call(Function::GuestDestroy, [g, 0, 0, 0], Status::Busy)?;
    bad.call(Function::MemReclaim, [owned, unit, g, 0], Status::WrongState)?;
    for handle in [0, nobody.unwrap_or(64), 65, g | 1 << 32, u64::MAX] {
        bad.call(Function::GuestTeardown, [handle, 0, 0, 0], Status::UnknownGuest)?;
    }
    let outcome = bad.done();

    good("STREAM_DETACH", host.detach(0, attached))?;
    if let (Some(nested), Some(vsmmu)) = (nested, vsmmu) {
        nested.end()?;
        vsmmu.end()?;
    }
    good("DOMAIN_UNMAP", host.domain_unmap(domain, IPA, unit))?;
    for domain in [domain, empty] {
        good("DOMAIN_DESTROY", host.destroy_domain(domain))?;
    }
    for (start, owner) in [(owned, guest), (second, guest), (foreign, other)] {
        good("MEM_RECLAIM", host.reclaim(start, unit, owner))?;
    }
    good("MEM_UNSHARE", host.unshare(shared, unit, Recipient::Guest(guest)))?;
    for guest in [guest, other] {
        good("GUEST_DESTROY", host.destroy_guest(guest))?;
    }
    outcome
}
