//! Invariants: a stream that is not what its driver wants aborts or is what it was; what a call or a guest has the driver does not get, and
//! the other way round; the VMID lives as long as the driver has the SMMU, and stands in the array while a stream uses it.

use abi::{DomainHandle, Reason};
use smmuv3::command::opcode::{CFGI_CD, CFGI_CD_ALL, CFGI_STE, SYNC, TLBI_NH_ALL, TLBI_S12_VMALL};
use smmuv3::invalidation::DomainIndex;
use smmuv3::ste::Stage1Claim;

use super::*;
use crate::iommu::tests::{HOST, Machine, guest};
use crate::iommu::{DomainKind, DomainTag, How, StreamState};

const TRANSLATE: Stage1Claim = Stage1Claim::linear(smmuv3::address::PhysAddr(0x4800_0000), 0, false);
/// V, Config = bypass.
const BYPASS: Stage1Claim = Stage1Claim([0b1001, 0]);

fn with_driver() -> (Machine, Emulated) {
    let machine = Machine::new();
    let emulated = machine.iommu.create_emulated(&machine.fake, 0).unwrap();
    (machine, emulated)
}

fn set(
    machine: &mut Machine,
    emulated: &Emulated,
    stream: u32,
    claim: Stage1Claim,
) -> Result<(), StreamRefused> {
    let Machine { fake, iommu, pages } = machine;
    iommu.set_emulated_stream(fake, emulated, stream, claim, pages)
}

#[test]
fn a_stream_is_what_its_entry_says() {
    let (mut machine, emulated) = with_driver();
    let host = DomainIndex(0);
    let parked = {
        machine.attach(0, 8, HOST).unwrap();
        machine.detach(0, 8).unwrap();
        machine.entry(0, 8)
    };
    machine.fake.take_actions();
    set(&mut machine, &emulated, 8, Stage1Claim::ABORT).unwrap();
    set(&mut machine, &emulated, 8, Stage1Claim([0, 0])).unwrap();
    assert_eq!(machine.fake.take_opcodes(0), [], "it aborts already");

    set(&mut machine, &emulated, 8, TRANSLATE).unwrap();
    let entry = machine.entry(0, 8);
    assert_eq!((entry[0], entry[2] as u16), (0x4800_000f, emulated.vmid));
    assert!(!machine.is_idle(host));
    let StreamState::Attached { domain, vmid } = machine.query(0, 8) else { panic!("not attached") };
    assert_eq!(vmid, emulated.vmid);
    let found = machine.iommu.describe_domain(domain).unwrap();
    assert_eq!((found.kind, found.streams), (DomainKind::Emulated(0), 1));
    let tag = |smmu| machine.iommu.domain_tag(&machine.fake, domain, smmu);
    assert_eq!(tag(0), Ok(DomainTag::Vsmmu(emulated.vmid, 1)));
    assert_eq!(tag(1), Ok(DomainTag::None));

    machine.fake.take_actions();
    let other = Stage1Claim::linear(smmuv3::address::PhysAddr(0x4900_0000), 0, false);
    set(&mut machine, &emulated, 8, other).unwrap();
    assert_eq!(machine.fake.take_opcodes(0), [CFGI_STE, SYNC], "one word; ASIDs are the driver's to flush");
    set(&mut machine, &emulated, 16, BYPASS).unwrap();
    assert_eq!(machine.entry(0, 16)[0], 0b1101, "stage 2 alone");
    machine.fake.take_actions();
    set(&mut machine, &emulated, 8, BYPASS).unwrap();
    assert!(!machine.fake.take_opcodes(0).contains(&TLBI_S12_VMALL), "the other stream uses the tag");

    for stream in [8, 16] {
        set(&mut machine, &emulated, stream, Stage1Claim::ABORT).unwrap();
        assert_eq!(machine.query(0, stream), StreamState::Unattached);
        assert_eq!(machine.entry(0, stream), parked);
    }
    assert!(machine.is_idle(host));
    assert!(machine.fake.take_opcodes(0).contains(&TLBI_S12_VMALL));
    machine.iommu.destroy_emulated(&machine.fake, &emulated).unwrap();
    assert_eq!(machine.vmids_in_use(0), 0);
    assert!(machine.iommu.describe_domain(domain).is_err());
}

#[test]
fn what_its_driver_may_not_have_aborts() {
    let (mut machine, emulated) = with_driver();
    for bad in [Stage1Claim([0b1101, 0]), Stage1Claim([0b1011, 1 << 28]), Stage1Claim([0x8000_0000_000b, 0])]
    {
        set(&mut machine, &emulated, 8, TRANSLATE).unwrap();
        assert_eq!(set(&mut machine, &emulated, 8, bad), Err(StreamRefused::BadSte));
        assert_eq!(machine.query(0, 8), StreamState::Unattached);
        assert_eq!(set(&mut machine, &emulated, 8, bad), Err(StreamRefused::BadSte));
    }
    assert_eq!(set(&mut machine, &emulated, 0x1_0000, TRANSLATE), Err(StreamRefused::BadStreamId));
    assert!(machine.is_idle(DomainIndex(0)));
}

#[test]
fn a_stream_is_in_one_state() {
    let (mut machine, emulated) = with_driver();
    machine.attach(0, 8, HOST).unwrap();
    machine.attach(0, 16, DomainHandle::Guest(guest(1))).unwrap();
    let attached = [machine.query(0, 8), machine.query(0, 16)];
    for stream in [8, 16] {
        for claim in [TRANSLATE, BYPASS, Stage1Claim::ABORT, Stage1Claim([0b1101, 0])] {
            assert_eq!(set(&mut machine, &emulated, stream, claim), Err(StreamRefused::Busy));
        }
    }
    assert_eq!([machine.query(0, 8), machine.query(0, 16)], attached);

    set(&mut machine, &emulated, 24, TRANSLATE).unwrap();
    let entry = machine.entry(0, 24);
    assert_eq!(machine.attach(0, 24, HOST), Err(Refused::Busy));
    let replace = How { replace: true, ats: false };
    let Machine { fake, iommu, pages } = &mut machine;
    assert_eq!(iommu.attach(fake, 0, 24, HOST, replace, pages), Err(Refused::Busy));
    assert_eq!(iommu.detach(fake, 0, 24, pages), Err(Refused::Busy));
    let (vsmmu, _) = iommu.create_vsmmu(fake, 0, HOST).unwrap();
    assert_eq!(iommu.add_virtual_stream(fake, vsmmu, 1, 24, pages), Err(Refused::Busy));
    iommu.add_virtual_stream(fake, vsmmu, 1, 32, pages).unwrap();
    let StreamState::Attached { domain, .. } = iommu.query(fake, 0, 24).unwrap() else { panic!() };
    assert_eq!(iommu.destroy_domain(domain), Err(Refused::UnknownDomain));
    assert_eq!(iommu.attach(fake, 0, 40, domain, How::default(), pages), Err(Refused::UnknownDomain));
    assert_eq!(iommu.create_vsmmu(fake, 0, domain), Err(Refused::UnknownDomain));
    assert_eq!(machine.entry(0, 24), entry);
    assert_eq!(set(&mut machine, &emulated, 32, TRANSLATE), Err(StreamRefused::Busy), "a vSMMU's");
}

#[test]
fn commands_between_those_about_streams_of_others_are_one_batch() {
    let (mut machine, emulated) = with_driver();
    set(&mut machine, &emulated, 8, TRANSLATE).unwrap();
    set(&mut machine, &emulated, 16, TRANSLATE).unwrap();
    machine.attach(0, 24, HOST).unwrap();
    machine.fake.take_actions();
    let send = |commands: &[Command]| {
        machine.iommu.invalidate_emulated(&machine.fake, &emulated, commands).unwrap();
        machine.fake.take_opcodes(0)
    };
    let [one, all] = [Command::cfgi_cd(8, 0, true), Command::cfgi_cd_all(16)];
    let [tlbi, foreign] = [Command::tlbi_nh_all(emulated.vmid), Command::cfgi_cd_all(24)];
    assert_eq!(send(&[one, all, tlbi, one]), [CFGI_CD, CFGI_CD_ALL, TLBI_NH_ALL, CFGI_CD, SYNC]);
    assert_eq!(send(&[one; 64]).iter().filter(|opcode| **opcode == SYNC).count(), 1);
    assert_eq!(
        send(&[foreign, one, tlbi, foreign, foreign, all]),
        [CFGI_CD, TLBI_NH_ALL, SYNC, CFGI_CD_ALL, SYNC]
    );
    assert_eq!(send(&[foreign]), []);
}

#[test]
fn what_fails_is_undone() {
    for failing in [1, 3] {
        let (mut machine, emulated) = with_driver();
        set(&mut machine, &emulated, 8, TRANSLATE).unwrap();
        let entry = machine.entry(0, 8);
        machine.fake.fail_commands(0, &[8 + failing]);
        let set = set(&mut machine, &emulated, 8, Stage1Claim::ABORT);
        if set == Err(StreamRefused::Hardware) {
            assert_eq!(machine.entry(0, 8), entry);
            assert!(!machine.is_idle(DomainIndex(0)));
        }
    }
    let (mut machine, emulated) = with_driver();
    machine.pages.left = 0;
    assert_eq!(set(&mut machine, &emulated, 8, TRANSLATE), Err(StreamRefused::NoMemory));
    assert_eq!(machine.query(0, 8), StreamState::Unattached);
    let no_ats = Refused::Incompatible(Reason::Ats);
    assert_eq!(StreamRefused::from(no_ats), StreamRefused::Hardware);
}

#[test]
fn an_smmu_without_nesting_has_no_driver() {
    let machine = Machine::with(|fake| fake.with(0, |smmu| smmu.set(0, smmu.get(0) & !0b10)));
    assert_eq!(machine.iommu.create_emulated(&machine.fake, 0), None);
    assert_eq!(machine.iommu.create_emulated(&machine.fake, 3), None);
    assert_eq!(machine.vmids_in_use(0), 0);
}
