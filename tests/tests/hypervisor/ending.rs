//! Before a reset or power-off is passed on, guests' streams are detached and their memory is wiped.

use crate::boot;
use abi::{Function, Status};
use hyp::memory::Progress;
use tests::bench::{Bench, SCRATCH, Shape};
use tests::model::smmu::Fault;
use tests::model::smmu::config::SmmuConfig;
use tests::oracle;

const SECRET: u64 = 0x5ec2_e75e_c2e7_0001;

/// A guest with a device behind each SMMU and scattered pages that hold a secret.
fn with_secrets() -> (Bench, Vec<u64>) {
    let shape = Shape { relax_ns: 200_000, ..Shape::of(3, SmmuConfig::qemu()) };
    let bench = boot(&shape);
    let guest = bench.guest().unwrap();
    (0..3).for_each(|smmu| bench.attach(smmu, 1, guest).unwrap());
    let pages: Vec<u64> = (0..40).map(|n| SCRATCH + n * 0x7_3000).collect();
    for page in &pages {
        bench.whole(Function::MemDonate, *page, 0x1000, guest).unwrap();
        assert!(bench.machine().memory.write(page + 0x800, SECRET));
    }
    oracle::check(&bench).unwrap();
    (bench, pages)
}

fn end(bench: &Bench) {
    let done = (0..100_000).any(|_| matches!(bench.hypervisor.end_step(), Progress::Done));
    assert!(done, "the end does not come");
}

#[test]
fn nothing_of_a_guest_is_left() {
    let (bench, pages) = with_secrets();
    // The control: before the end the secret is there, and the guest's device reaches its page.
    assert_eq!(bench.machine().memory.read(pages[3] + 0x800), Some(SECRET));
    assert!(bench.reaches(1, 1, pages[3]));
    end(&bench);
    for page in pages {
        assert_eq!(bench.machine().memory.read(page + 0x800), Some(0), "{page:#x}");
        (0..3).for_each(|smmu| assert!(!bench.reaches(smmu, 1, page), "{page:#x} behind SMMU {smmu}"));
    }
    assert_eq!(bench.call(Function::GuestCreate, [0; 4]), Err(Status::Busy));
    assert_eq!(bench.machine().violations.take(), Vec::<String>::new());
}

#[test]
fn pages_of_a_failed_reclaim_are_wiped_too() {
    let (bench, pages) = with_secrets();
    bench.attach(0, 0, 0).unwrap();
    bench.machine().smmus[1].arm(0, Fault::Stuck);
    let reclaim = bench.call(Function::MemReclaim, [pages[5], 0x1000, 1, 0]);
    assert_eq!(reclaim, Err(Status::Hardware));
    end(&bench);
    assert_eq!(bench.machine().memory.read(pages[5] + 0x800), Some(0));
}

/// A command that an SMMU refuses once fails the detach and leaves the stream where it was. At the end nobody is there to try again, and
/// the memory is wiped next: a device that still reaches it could write back what it knows.
#[test]
fn a_refused_command_leaves_no_stream_attached() {
    for after in 0..6 {
        let (bench, pages) = with_secrets();
        let page = pages[3];
        assert!((0..3).all(|smmu| bench.reaches(smmu, 1, page)), "the control");
        bench.machine().smmus[1].arm(after, Fault::Illegal);
        end(&bench);
        for smmu in 0..3 {
            assert!(!bench.reaches(smmu, 1, page), "behind SMMU {smmu}, command {after} refused");
        }
        assert_eq!(bench.machine().memory.read(page + 0x800), Some(0));
        assert_eq!(bench.machine().violations.take(), Vec::<String>::new());
    }
}

#[test]
fn an_smmu_that_refuses_every_command_is_turned_off() {
    for fault in [Fault::IllegalForever, Fault::Stuck] {
        let (bench, pages) = with_secrets();
        bench.machine().smmus[1].arm(0, fault);
        end(&bench);
        assert!(bench.machine().smmus[1].aborting());
        (0..3).for_each(|smmu| assert!(!bench.reaches(smmu, 1, pages[3]), "behind SMMU {smmu}"));
    }
}
