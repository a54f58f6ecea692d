//! ATS: what a device holds, and may say that it holds.

use crate::{boot, good};
use abi::{Function, Reason, attach};
use tests::bench::{Bench, IMAGE, POOL, SCRATCH, Shape};
use tests::calls::incompatible;
use tests::model::SMMU_BASE;
use tests::model::device::Dma;
use tests::model::smmu::Fault;
use tests::model::smmu::ats::AtsReply;
use tests::model::smmu::config::SmmuConfig;
use tests::nest::{ARENA, Nest};
use tests::oracle;
use tests::owner::{EATS, Stage1};

const ATS: SmmuConfig = SmmuConfig::qemu().with_ats().ssid_bits(4).atc_timeout(50_000);
const VALUE: u64 = 0x005e_c2e7;

/// A Translated request of device 0 behind SMMU 0 to an address of its choice.
fn forged(bench: &Bench, address: u64) -> Option<u64> {
    let stream = bench.devices[0][0].stream;
    match bench.machine().dma_translated(0, stream, address, VALUE) {
        Dma::Reached(target) => Some(target),
        Dma::Aborted => None,
    }
}

/// A write of that device through its ATC.
fn through_atc(bench: &Bench, address: u64) -> Option<u64> {
    let stream = bench.devices[0][0].stream;
    match bench.machine().dma_through_atc(0, stream, address, VALUE) {
        Dma::Reached(target) => Some(target),
        Dma::Aborted => None,
    }
}

/// A nested stream of the host's with ATS and a warm ATC.
fn nested(shape: &Shape) -> (Bench, Nest) {
    let bench = boot(shape);
    let nest = bench.nest(0, 0, SCRATCH, 1).unwrap();
    let [word0, word1] = nest.stage1.words();
    let domain = bench.nested(nest.vsmmu, [word0, word1 | EATS]).unwrap();
    bench.attach(0, 0, domain).unwrap();
    for n in 0..4 {
        assert_eq!(through_atc(&bench, nest.stage1.va(n)), Some(nest.stage1.page(n)));
    }
    good(&bench, "warm");
    (bench, nest)
}

#[test]
fn split_stage_ats_leaves_the_last_word_to_stage_2() {
    let (bench, nest) = nested(&Shape::of(2, ATS));
    let guest = bench.guest().unwrap();
    let page = nest.stage1.page(1);
    assert_eq!(forged(&bench, page), Some(page), "the control: an IPA of the host's");
    assert_eq!(forged(&bench, POOL), None, "the hypervisor's memory");
    let sent = bench.machine().smmus[0].count(0x40);
    bench.whole(Function::MemDonate, page, 0x1000, guest).unwrap();
    assert_eq!(bench.machine().smmus[0].count(0x40), sent, "the ATC has IPAs: it need not be told");
    assert_eq!(through_atc(&bench, nest.stage1.va(1)), None);
    assert_eq!(forged(&bench, page), None, "donated");
    assert_eq!(forged(&bench, nest.stage1.page(2)), Some(nest.stage1.page(2)), "the control");
    good(&bench, "donated");
}

#[test]
fn a_donation_empties_the_atc_of_a_trusted_stream() {
    for nested_stream in [false, true] {
        let shape = Shape::of(2, ATS).trusting(0, 0);
        let (bench, va, page) = if nested_stream {
            let (bench, nest) = nested(&shape);
            (bench, nest.stage1.va(1), nest.stage1.page(1))
        } else {
            let bench = boot(&shape);
            assert_eq!(bench.attach_with(0, 0, 0, attach::ATS), Ok(()));
            (bench, SCRATCH + 0x5000, SCRATCH + 0x5000)
        };
        let guest = bench.guest().unwrap();
        assert_eq!(through_atc(&bench, va), Some(page));
        assert_eq!(forged(&bench, page), Some(page), "what it is trusted with: nothing looks at the request");
        let held = |bench: &Bench| {
            bench.machine().smmus[0]
                .atc
                .entries
                .iter()
                .any(|entry| entry.output & !0xfff == page & !0xfff || entry.covers(va))
        };
        assert!(held(&bench));
        let sent = bench.machine().smmus[0].count(0x40);
        bench.whole(Function::MemDonate, page, 0x1000, guest).unwrap();
        assert!(bench.machine().smmus[0].count(0x40) > sent);
        assert!(!held(&bench), "the ATC has forgotten the page");
        assert_eq!(through_atc(&bench, va), None);
        good(&bench, "donated");
    }
}

#[test]
fn a_range_of_any_shape_goes_from_the_atc_whole() {
    for (first, count) in [(1u64, 2u64), (3, 2), (7, 9), (5, 1), (0, 16), (15, 2)] {
        let bench = boot(&Shape::of(1, ATS).trusting(0, 0));
        bench.attach_with(0, 0, 0, attach::ATS).unwrap();
        let guest = bench.guest().unwrap();
        // The block is split before, so that the ATC holds pages.
        bench.whole(Function::MemDonate, SCRATCH + 0x10_0000, 0x1000, guest).unwrap();
        let page = |n: u64| SCRATCH + n * 0x1000;
        (0..20).for_each(|n| assert_eq!(through_atc(&bench, page(n)), Some(page(n))));
        bench.whole(Function::MemDonate, page(first), count * 0x1000, guest).unwrap();
        for n in 0..20 {
            let taken = (first..first + count).contains(&n);
            assert_eq!(
                through_atc(&bench, page(n)),
                (!taken).then_some(page(n)),
                "{n} of {first} and {count}"
            );
        }
        good(&bench, "donated");
    }
}

/// The control of the one above: an ATC_INV that does nothing is seen, as is the page that the device then goes on to reach.
#[test]
fn an_atc_that_is_not_told_is_seen() {
    let bench = boot(&Shape::of(1, ATS).trusting(0, 0));
    bench.attach_with(0, 0, 0, attach::ATS).unwrap();
    let (guest, page) = (bench.guest().unwrap(), SCRATCH + 0x5000);
    assert_eq!(through_atc(&bench, page), Some(page));
    // TLBI, SYNC, ATC_INV, SYNC.
    bench.machine().smmus[0].arm(2, Fault::Skip);
    bench.whole(Function::MemDonate, page, 0x1000, guest).unwrap();
    assert_eq!(through_atc(&bench, page), Some(page), "it reaches the guest's page");
    assert!(oracle::check(&bench).is_err());
}

#[test]
fn ats_is_refused_where_it_would_hand_isolation_to_the_device() {
    let full_only = ATS.without_split_ats();
    let bench = boot(&Shape::mixed(&[ATS, full_only, SmmuConfig::qemu()]).trusting(0, 1).trusting(1, 1));
    // Stage 2 alone: only for those that are trusted.
    for (smmu, device, result) in [
        (0, 0, incompatible(Reason::Ats)),
        (0, 1, Ok(())),
        (1, 0, incompatible(Reason::Ats)),
        (1, 1, Ok(())),
        (2, 0, incompatible(Reason::Ats)),
    ] {
        let tags = bench.tags(smmu);
        assert_eq!(bench.attach_with(smmu, device, 0, attach::ATS), result, "SMMU {smmu}, device {device}");
        if result.is_err() {
            assert_eq!((bench.tags(smmu), bench.attached_to(smmu, device)), (tags, None));
        } else {
            bench.detach(smmu, device).unwrap();
        }
        good(&bench, "attached or not");
    }
    // Nested: for those that are trusted, and for all where stage 2 has the last word.
    for (smmu, results) in [(0, [Ok(()), Ok(())]), (1, [incompatible(Reason::Ats), Ok(())])] {
        let nest = bench.nest(smmu, 0, SCRATCH + smmu as u64 * 0x1_0000, 1).unwrap();
        let [word0, word1] = nest.stage1.words();
        let domain = bench.nested(nest.vsmmu, [word0, word1 | EATS]).unwrap();
        for (device, result) in results.into_iter().enumerate() {
            assert_eq!(bench.attach_with(smmu, device, domain, 0), result, "SMMU {smmu}, device {device}");
        }
        good(&bench, "nested");
    }
    let vsmmu = bench.vsmmu(2, 0).unwrap();
    assert_eq!(bench.nested(vsmmu, [0b1011 | SCRATCH, 1 << 44 | EATS]), Err((abi::Status::Illegal, 1)));
}

#[test]
fn requests_of_a_stream_without_ats_abort() {
    let bench = boot(&Shape::of(1, ATS).trusting(0, 0));
    let stream = bench.devices[0][0].stream;
    for address in [SCRATCH, POOL, 0] {
        assert_eq!(forged(&bench, address), None, "unattached");
        assert_eq!(bench.machine().ats_request(0, stream, address), AtsReply::Refused);
    }
    bench.attach(0, 0, 0).unwrap();
    assert_eq!((forged(&bench, SCRATCH), forged(&bench, POOL)), (None, None), "attached without ATS");
    assert_eq!(bench.machine().ats_request(0, stream, SCRATCH), AtsReply::Refused);
    assert_eq!(bench.attach_with(0, 0, 0, attach::ATS | attach::REPLACE), Ok(()));
    assert_eq!(forged(&bench, SCRATCH), Some(SCRATCH), "the control");
    good(&bench, "with ATS");
    bench.detach(0, 0).unwrap();
    assert_eq!(forged(&bench, SCRATCH), None, "detached");
    good(&bench, "detached");
}

/// Every StreamID that an SMMU has, whatever it is attached to, makes up addresses of everybody's.
#[test]
fn translated_requests_of_any_stream() {
    const PLACES: [&str; 5] =
        ["the hypervisor's image", "its pool", "an SMMU's registers", "a guest's page", "the host's page"];
    let bench = boot(&Shape::of(3, ATS));
    let guest = bench.guest().unwrap();
    let guests = SCRATCH + (1 << 20);
    bench.whole(Function::MemDonate, guests, 0x1000, guest).unwrap();
    // SMMU 0: the host's domain and a guest's. SMMU 1: nested, without ATS and with split-stage ATS. SMMU 2: unattached.
    bench.attach(0, 0, 0).unwrap();
    bench.attach(0, 1, guest).unwrap();
    let nest = bench.nest(1, 0, SCRATCH, 1).unwrap();
    let [word0, word1] = nest.stage1.words();
    for (device, ats) in [(0, 0), (1, EATS)] {
        let domain = bench.nested(nest.vsmmu, [word0, word1 | ats]).unwrap();
        bench.attach(1, device, domain).unwrap();
    }
    let with_ats = (1, bench.devices[1][1].stream);
    let mine = nest.stage1.page(2);
    let mut reached = 0;
    for smmu in 0..3 {
        for stream in 0..1 << 16 {
            for (place, address) in PLACES.iter().zip([IMAGE, POOL, SMMU_BASE, guests, mine]) {
                let Dma::Reached(target) = bench.machine().dma_translated(smmu, stream, address, VALUE)
                else {
                    continue;
                };
                assert!(
                    (smmu, stream) == with_ats && target == mine,
                    "attack worked: StreamID {stream:#x} of SMMU {smmu} reached {place} at {target:#x} by a Translated request"
                );
                reached += 1;
            }
        }
    }
    assert_eq!(reached, 1, "the control: split-stage ATS, and an IPA of the host's");
    good(&bench, "with requests of every stream");
}

#[test]
fn what_an_atc_kept_is_gone_before_ats_is_on_again() {
    let bench = boot(&Shape::of(1, ATS).trusting(0, 0));
    let (guest, page) = (bench.guest().unwrap(), SCRATCH + 0x5000);
    bench.attach_with(0, 0, 0, attach::ATS).unwrap();
    assert_eq!(through_atc(&bench, page), Some(page));
    bench.detach(0, 0).unwrap();
    bench.whole(Function::MemDonate, page, 0x1000, guest).unwrap();
    assert_eq!(through_atc(&bench, page), None, "off");
    bench.attach_with(0, 0, 0, attach::ATS).unwrap();
    assert_eq!(through_atc(&bench, page), None, "on again");
    assert_eq!(through_atc(&bench, page + 0x1000), Some(page + 0x1000), "the control");
    good(&bench, "on again");
    // From one domain to another, with ATS on in both.
    let domain = bench.guest_domain(guest, 32, 2).unwrap();
    bench.detach(0, 0).unwrap();
    bench.attach_with(0, 0, guest, attach::ATS).unwrap();
    assert_eq!(through_atc(&bench, page), Some(page));
    bench.attach_with(0, 0, domain, attach::ATS | attach::REPLACE).unwrap();
    assert_eq!(through_atc(&bench, page), None);
    assert_eq!(through_atc(&bench, ARENA), Some(SCRATCH + 33 * 0x1000));
    good(&bench, "replaced");
}

#[test]
fn ssids_of_a_trusted_nested_stream_are_all_told() {
    let bench = boot(&Shape::of(1, ATS).trusting(0, 0));
    let nest = bench.nest(0, 0, SCRATCH, 1).unwrap();
    assert!(nest.stage1.write_cd(&bench, 0, 1, nest.stage1.cd(1)));
    let [word0, word1] = nest.stage1.words_with(2, 0, 2);
    let domain = bench.nested(nest.vsmmu, [word0, word1 | EATS]).unwrap();
    bench.attach(0, 0, domain).unwrap();
    let stream = bench.devices[0][0].stream;
    let (va, page) = (nest.stage1.va(2), nest.stage1.page(2));
    let dma = |ssid: Option<u32>| bench.machine().dma_through_atc(0, (stream, ssid), va, VALUE);
    assert_eq!((dma(None), dma(Some(1))), (Dma::Reached(page), Dma::Reached(page)));
    let guest = bench.guest().unwrap();
    bench.whole(Function::MemDonate, page, 0x1000, guest).unwrap();
    assert_eq!((dma(None), dma(Some(1))), (Dma::Aborted, Dma::Aborted));
    good(&bench, "donated");
}

#[test]
fn an_atc_that_does_not_answer_fails_the_operation_and_no_more() {
    let shape = Shape { relax_ns: 20_000, ..Shape::of(2, ATS).trusting(0, 0) };
    let bench = boot(&shape);
    let (guest, page) = (bench.guest().unwrap(), SCRATCH + 0x5000);
    bench.attach_with(0, 0, 0, attach::ATS).unwrap();
    bench.attach(0, 1, 0).unwrap();
    assert_eq!(through_atc(&bench, page), Some(page));
    let donate = || bench.call(Function::MemDonate, [page, 0x1000, guest, 0]).map(drop);
    bench.machine().smmus[0].arm(0, Fault::NoAnswer);
    assert_eq!(donate(), Err(abi::Status::Hardware));
    assert!(bench.machine().smmus[0].translating(), "the SMMU goes on");
    assert_eq!(bench.call(Function::MemQuery, [page, 0, 0, 0]).map(|[owner, ..]| owner), Ok(0));
    assert!(bench.reaches(0, 1, page), "the page is the host's still");
    oracle::check_state(&bench).unwrap();
    assert_eq!(donate(), Ok(()), "the control: the device answers again");
    assert_eq!(through_atc(&bench, page), None);
    oracle::check_state(&bench).unwrap();
    // Again and again: it is the device's fault, and not the SMMU's.
    for round in 1..6u64 {
        let page = page + round * 0x1000;
        assert_eq!(through_atc(&bench, page), Some(page));
        bench.machine().smmus[0].arm(0, Fault::NoAnswer);
        let donated = bench.call(Function::MemDonate, [page, 0x1000, guest, 0]).map(drop);
        assert_eq!(donated, Err(abi::Status::Hardware));
        assert!(bench.machine().smmus[0].translating());
    }
    oracle::check_state(&bench).unwrap();
}

/// Each is said of at the same CMD_SYNC.
#[test]
fn two_devices_of_a_domain_that_do_not_answer_are_not_the_end_of_their_smmu() {
    let bench = boot(&Shape { relax_ns: 20_000, ..Shape::of(1, ATS).trusting(0, 0).trusting(0, 1) });
    let (guest, page) = (bench.guest().unwrap(), SCRATCH + 0x5000);
    for device in [0, 1] {
        bench.attach_with(0, device, 0, attach::ATS).unwrap();
    }
    assert_eq!(through_atc(&bench, page), Some(page));
    let donate = || bench.call(Function::MemDonate, [page, 0x1000, guest, 0]).map(drop);
    assert_eq!(bench.while_silent(&[(0, 0), (0, 1)], donate), Err(abi::Status::Hardware));
    assert!(bench.machine().smmus[0].translating(), "the SMMU goes on");
    oracle::check_state(&bench).unwrap();
    assert_eq!(donate(), Ok(()), "the control: the devices answer again");
    oracle::check_state(&bench).unwrap();
}

/// No stream is trusted: with split-stage ATS an owner may send ATC_INV.
#[test]
fn an_owner_whose_device_times_out_again_and_again_does_not_end_the_smmu() {
    let (bench, nest) = nested(&Shape { relax_ns: 200_000, ..Shape::of(1, ATS.atc_timeout(20_000_000)) });
    let commands = [[0x40, 52], [0x46, 0]].repeat(32);
    let start = bench.machine().now_ns;
    let sent = while_silent(&bench, || bench.invalidate(nest.vsmmu, &commands));
    assert_eq!(sent.map_err(|(status, _)| status), Err(abi::Status::Hardware));
    assert!(bench.machine().now_ns - start >= 32 * 20_000_000, "all were waited for");
    assert!(bench.machine().smmus[0].translating(), "the SMMU goes on");
    assert!(bench.invalidate(nest.vsmmu, &commands).is_ok(), "the control: the device answers again");
    assert_eq!(through_atc(&bench, nest.stage1.va(1)), Some(nest.stage1.page(1)));
    good(&bench, "answered");
}

/// The first device behind SMMU 0 does not answer while `call` is made.
fn while_silent<T>(bench: &Bench, call: impl FnOnce() -> T) -> T {
    let result = bench.while_silent(&[(0, 0)], call);
    // The way back forgets an STE once more than memory shows that it must.
    bench.machine().smmus[0].needless.clear();
    result
}

/// A machine where one device is trusted, and what asks it does not take long to give up.
fn one_trusted() -> Bench {
    boot(&Shape { relax_ns: 20_000, ..Shape::of(1, ATS).trusting(0, 0) })
}

#[test]
fn a_silent_device_stays_in_its_domain_without_ats() {
    let bench = one_trusted();
    let guest = bench.guest().unwrap();
    let [first, second] = [16, 32].map(|place| bench.guest_domain(guest, place, 8).unwrap());
    bench.attach_with(0, 0, first, attach::ATS).unwrap();
    let replace =
        || bench.attach_with(0, 0, second, attach::ATS | attach::REPLACE).map_err(|(status, _)| status);
    assert_eq!(while_silent(&bench, replace), Err(abi::Status::Hardware));
    assert!(bench.machine().smmus[0].translating(), "the SMMU goes on");
    assert_eq!(bench.attached_to(0, 0), Some(first));
    let page = bench.query(first, ARENA);
    assert!(page.is_some() && bench.dma(0, 0, ARENA) == page);
    assert_eq!(through_atc(&bench, ARENA), None, "its requests abort");
    good(&bench, "back");
    // Neither domain is held by what failed.
    for domain in [first, second] {
        bench.unmap(domain, ARENA, 8 * bench.unit()).unwrap();
    }
    assert_eq!(bench.destroy(first), Err(abi::Status::Busy), "the stream is in it");
    bench.destroy(second).unwrap();
    bench.detach(0, 0).unwrap();
    bench.destroy(first).unwrap();
    good(&bench, "destroyed");
    bench.attach_with(0, 0, guest, attach::ATS).unwrap();
    good(&bench, "with ATS, now that it answers");
}

#[test]
fn the_vsmmu_of_a_silent_device_gives_its_vmid_back_clean() {
    for place in 0..3 {
        give_vmid_back_after(place, None);
    }
}

/// The device stays silent, and the SMMU refuses one command, also on the way back without ATS.
#[test]
fn the_vsmmu_of_a_silent_device_gives_its_vmid_back_clean_whatever_command_is_refused() {
    for place in 0..3 {
        let met = (0..32).take_while(|at| give_vmid_back_after(place, Some(*at))).count();
        assert!((5..32).contains(&met), "{met} commands");
    }
}

/// A nested stream is to be replaced by itself, by another nested one, or by its guest's memory domain, and its device does not answer; then all
/// goes, and another guest has the VMID. Whether the command that is to be refused came.
fn give_vmid_back_after(place: usize, refused: Option<u64>) -> bool {
    let bench = one_trusted();
    let guest = bench.guest().unwrap();
    let parent = bench.guest_domain(guest, 16, Stage1::UNITS).unwrap();
    let nest = bench.nest(0, parent, ARENA, 1).unwrap();
    let [word0, word1] = nest.stage1.words();
    let nested = [0, 1].map(|_| bench.nested(nest.vsmmu, [word0, word1 | EATS]).unwrap());
    bench.attach(0, 0, nested[0]).unwrap();
    assert!(bench.dma(0, 0, nest.stage1.va(1)).is_some());
    let name = format!("replaced by {place}, command {refused:?} refused");
    let well = |what| oracle::check_state(&bench).unwrap_or_else(|text| panic!("{name}, {what}: {text}"));

    let flags = if place == 2 { attach::ATS | attach::REPLACE } else { attach::REPLACE };
    let other = [nested[0], nested[1], guest][place];
    if let Some(at) = refused {
        bench.machine().smmus[0].arm(at, Fault::Illegal);
    }
    let replace = || bench.attach_with(0, 0, other, flags).map_err(|(status, _)| status);
    assert_eq!(while_silent(&bench, replace), Err(abi::Status::Hardware), "{name}");
    let is_met = bench.machine().smmus[0].faults.is_empty();
    bench.machine().smmus[0].faults.clear();
    // A CMD_SYNC that is refused, and then finds that the device is silent, is the second error of one command.
    let is_dead = !bench.machine().smmus[0].translating();
    assert!(!is_dead || refused.is_some(), "{name}: the SMMU goes on");
    assert_eq!(bench.attached_to(0, 0), Some(nested[0]), "{name}");
    let wanted = if is_dead { None } else { nest.page(&bench, 1) };
    assert_eq!(bench.dma(0, 0, nest.stage1.va(1)), wanted, "{name}");
    well("back");

    bench.detach(0, 0).unwrap();
    well("detached");
    for domain in nested {
        bench.destroy(domain).unwrap();
    }
    for id in 0..2 {
        bench.call(Function::VsmmuRemoveStream, [nest.vsmmu, id, 0, 0]).unwrap();
    }
    bench.call(Function::VsmmuDestroy, [nest.vsmmu, 0, 0, 0]).unwrap();
    well("destroyed");
    if is_dead {
        return is_met;
    }
    // Who has the VMID next, with the same ASID.
    let other = bench.guest().unwrap();
    let parent = bench.guest_domain(other, 64, Stage1::UNITS).unwrap();
    let theirs = bench.nest(0, parent, ARENA, 1).unwrap();
    bench.attach(0, 1, theirs.domain(&bench).unwrap()).unwrap();
    for n in 0..4 {
        assert_eq!(bench.dma(0, 1, theirs.stage1.va(n)), theirs.page(&bench, n), "{name}");
    }
    well("used again");
    is_met
}
