//! Domains of a guest that map its memory where they want.

use crate::{boot, good};
use abi::{Function, Reason, Status, domain_options};
use tests::bench::{SCRATCH, Shape};
use tests::calls::incompatible;
use tests::model::smmu::config::SmmuConfig;
use tests::nest::ARENA;

const BLOCK: u64 = 2 << 20;

/// One domain serves streams behind every SMMU, each with a tag of its own, and what is unmapped is forgotten by all.
fn one_domain_behind(smmus: usize, config: SmmuConfig) {
    let bench = boot(&Shape::of(smmus, config));
    let (unit, guest) = (bench.unit(), bench.guest().unwrap());
    let domain = bench.guest_domain(guest, 8, 4).unwrap();
    for smmu in 0..smmus {
        assert_eq!(bench.dma(smmu, 0, ARENA), None, "unattached");
        bench.attach(smmu, 0, domain).unwrap_or_else(|status| panic!("SMMU {smmu}: {status:?}"));
        assert_eq!(bench.call(Function::DomainTag, [domain, smmu as u64, 0, 0]).unwrap()[0], 1);
    }
    good(&bench, "attached");
    for smmu in 0..smmus {
        for n in 0..4 {
            assert_eq!(bench.dma(smmu, 0, ARENA + n * unit + 0x80), Some(SCRATCH + (11 - n) * unit + 0x80));
            // Its memory is not at its own address, and the host's is nowhere.
            assert_eq!(bench.dma(smmu, 0, SCRATCH + (8 + n) * unit), None);
        }
        assert_eq!(bench.dma(smmu, 0, ARENA + 4 * unit), None);
    }
    let page = SCRATCH + 10 * unit;
    let reclaim = || bench.call(Function::MemReclaim, [page, unit, guest, 0]).map(drop);
    assert_eq!(reclaim(), Err(Status::WrongState), "it is mapped");
    let before: Vec<u64> = bench.machine().smmus.iter().map(|smmu| smmu.count(0x46)).collect();
    bench.unmap(domain, ARENA + unit, unit).unwrap();
    for (smmu, before) in before.into_iter().enumerate() {
        assert_eq!(bench.machine().smmus[smmu].count(0x46), before + 1, "one CMD_SYNC for SMMU {smmu}");
        assert_eq!(bench.dma(smmu, 0, ARENA + unit), None, "unmapped");
        assert_eq!(bench.dma(smmu, 0, ARENA + 2 * unit), Some(SCRATCH + 9 * unit), "the control");
    }
    assert_eq!(reclaim(), Ok(()));
    good(&bench, "reclaimed");
    // Something else at the same address.
    bench.map(domain, ARENA + unit, SCRATCH + 9 * unit, unit).unwrap();
    for smmu in 0..smmus {
        assert_eq!(bench.dma(smmu, 0, ARENA + unit), Some(SCRATCH + 9 * unit));
        bench.detach(smmu, 0).unwrap();
        assert_eq!(bench.dma(smmu, 0, ARENA + unit), None);
        assert_eq!(bench.tags(smmu).0, bench.idle_vmids(smmu), "its tag is free again");
    }
    assert_eq!(bench.destroy(domain), Err(Status::Busy), "something is mapped");
    bench.unmap(domain, ARENA, 4 * unit).unwrap();
    assert_eq!(bench.destroy(domain), Ok(()));
    good(&bench, "gone");
}

#[test]
fn one_domain_behind_one_smmu() {
    let qemu = SmmuConfig::qemu();
    for config in [
        qemu,
        qemu.without_ril().bbml(0),
        qemu.granules(false, true, false),
        qemu.granules(false, false, true),
    ] {
        one_domain_behind(1, config);
    }
}

#[test]
fn one_domain_behind_three_smmus() {
    one_domain_behind(3, SmmuConfig::qemu());
    one_domain_behind(3, SmmuConfig::qemu().without_ril().slow(1_000).queues(2, 1));
}

#[test]
fn one_domain_behind_sixty_four_smmus() {
    one_domain_behind(64, SmmuConfig::qemu().queues(4, 1));
}

#[test]
fn an_smmu_that_cannot_walk_the_table_is_refused_and_others_serve() {
    let qemu = SmmuConfig::qemu();
    for (smmu, bbml) in [(1, 0), (1, 1), (0, 0)] {
        let mut kinds = [qemu; 3];
        kinds[smmu] = qemu.bbml(bbml);
        let bench = boot(&Shape::mixed(&kinds));
        let guest = bench.guest().unwrap();
        let domain = bench.domain(guest, domain_options::BLOCKS).unwrap();
        bench.whole(Function::MemDonate, SCRATCH, BLOCK, guest).unwrap();
        bench.map(domain, 0x4000_0000, SCRATCH, BLOCK).unwrap();
        let tags = bench.tags(smmu);
        let commands = bench.machine().smmus[smmu].commands;
        assert_eq!(bench.attach_with(smmu, 0, domain, 0), incompatible(Reason::Blocks));
        let vsmmu = bench.call_detail(Function::VsmmuCreate, [smmu as u64, domain, 0, 0]);
        assert_eq!(vsmmu, incompatible(Reason::Blocks));
        assert_eq!((bench.tags(smmu), bench.attached_to(smmu, 0)), (tags, None));
        assert_eq!(bench.machine().smmus[smmu].commands, commands, "nothing was sent to it");
        good(&bench, "refused");
        // A stream that is attached stays where it is.
        bench.attach(smmu, 0, guest).unwrap();
        assert_eq!(bench.attach_with(smmu, 0, domain, abi::attach::REPLACE), incompatible(Reason::Blocks));
        assert!(bench.reaches(smmu, 0, SCRATCH), "the control: the memory domain has pages only");
        for other in (0..3).filter(|other| *other != smmu) {
            bench.attach(other, 0, domain).unwrap();
            assert_eq!(bench.dma(other, 0, 0x4000_0000), Some(SCRATCH));
        }
        good(&bench, "the others serve");
        // A block, split in place and joined again while it is in use.
        bench.unmap(domain, 0x4000_0000 + 0x8000, 0x1000).unwrap();
        for other in (0..3).filter(|other| *other != smmu) {
            assert_eq!(bench.dma(other, 0, 0x4000_8000), None);
            assert_eq!(bench.dma(other, 0, 0x4000_9000), Some(SCRATCH + 0x9000));
        }
        good(&bench, "split");
        bench.map(domain, 0x4000_8000, SCRATCH + 0x8000, 0x1000).unwrap();
        good(&bench, "joined");
    }
}

#[test]
fn a_page_is_mapped_as_often_as_can_be_counted_and_reclaimed_after_the_last() {
    let bench = boot(&Shape::of(1, SmmuConfig::qemu()));
    let guest = bench.guest().unwrap();
    let domains = [bench.domain(guest, 0).unwrap(), bench.domain(guest, 0).unwrap()];
    bench.whole(Function::MemDonate, SCRATCH, 0x1000, guest).unwrap();
    for n in 0..255 {
        bench.map(domains[n as usize % 2], ARENA + n * 0x1000, SCRATCH, 0x1000).unwrap();
    }
    assert_eq!(bench.map(domains[1], ARENA + 0x10_0000, SCRATCH, 0x1000), Err(Status::NoSpace));
    good(&bench, "mapped");
    for n in 0..255 {
        let reclaim = bench.call(Function::MemReclaim, [SCRATCH, 0x1000, guest, 0]);
        assert_eq!(reclaim.map(drop), Err(Status::WrongState));
        bench.unmap(domains[n as usize % 2], ARENA + n * 0x1000, 0x1000).unwrap();
    }
    bench.whole(Function::MemReclaim, SCRATCH, 0x1000, guest).unwrap();
    good(&bench, "reclaimed");
}

#[test]
fn what_is_not_the_guests_cannot_be_mapped() {
    let bench = boot(&Shape::of(1, SmmuConfig::qemu()));
    let [guest, other] = [bench.guest().unwrap(), bench.guest().unwrap()];
    let domain = bench.guest_domain(guest, 0, 2).unwrap();
    bench.whole(Function::MemDonate, SCRATCH + 0x8000, 0x1000, other).unwrap();
    bench.whole(Function::MemShare, SCRATCH + 0x9000, 0x1000, guest).unwrap();
    let map = |ipa: u64, start: u64, size: u64| bench.map(domain, ipa, start, size);
    assert_eq!(
        map(ARENA + 0x8000, SCRATCH + 0x1000, 0x2000),
        Err(Status::WrongState),
        "half of it is the host's"
    );
    assert_eq!(map(ARENA + 0x8000, SCRATCH + 0x8000, 0x1000), Err(Status::WrongState), "another guest's");
    assert_eq!(
        map(ARENA + 0x8000, SCRATCH + 0x9000, 0x1000),
        Err(Status::WrongState),
        "shared, and the host's"
    );
    assert_eq!(map(ARENA, SCRATCH, 0x1000), Err(Status::WrongState), "something is mapped there");
    assert_eq!(map(ARENA + 0x8000, tests::bench::POOL, 0x1000), Err(Status::WrongState), "the hypervisor's");
    assert_eq!(map(0x809_0000, SCRATCH, 0x1000), Err(Status::WrongState), "the doorbell is there");
    assert_eq!(map(1 << 50, SCRATCH, 0x1000), Err(Status::Unaligned), "beyond what the table reaches");
    assert_eq!(map(ARENA + 0x8000, SCRATCH, 0x1000), Ok(()), "the control");
    assert_eq!(bench.unmap(domain, 0x809_0000, 0x1000), Err(Status::WrongState), "the doorbell stays");
    good(&bench, "refused");
}
