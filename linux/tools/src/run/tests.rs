//! Commands on a hypervisor that is made of a few answers.

use super::*;
use abi::Status;
use alloc::vec::Vec;
use core::cell::RefCell;
use hyp_iommu_uapi::Record;

/// Two SMMUs, one guest with one page, one stream that is attached; and what was asked.
#[derive(Default)]
struct Fake {
    asked: RefCell<Vec<(Request, Record)>>,
    events: RefCell<Vec<[u64; 4]>>,
}

const PAGE: u64 = 0x4800_0000;

impl Fake {
    fn answer(&self, id: u64, [x1, x2, ..]: [u64; 4]) -> Record {
        let refuse = |status: Status| [status.to_register(), 0, 0, 0, 0];
        match Function::from_id(id as u32).expect("a function of the interface") {
            Function::Features => [0, 44 << 8 | 1, 4096, 2 << 20, 64],
            Function::SmmuCount => [0, 2, 0, 0, 0],
            Function::SmmuDescribe => [0, 0x0c00_0000 + x1 * 0x2_0000, 4, 3 | 255 << 16, x1],
            Function::SmmuTags => [0, 3, 253, 0, 0],
            Function::SmmuFeatures => [0, 0x0d44_101a, 2, 3, 4],
            Function::StreamQuery if (x1, x2) == (1, 9) => [0, 1, 1, 7, 0],
            Function::StreamQuery => [0; 5],
            Function::DomainDescribe if x1 <= 1 => [0, 0, 0, x1, 0],
            Function::DomainDescribe => refuse(Status::UnknownGuest),
            Function::DomainTag if (x1, x2) == (1, 1) => [0, 1, 7, 1, 0],
            Function::DomainTag => [0; 5],
            Function::MemQuery if x1 == PAGE => [0, 1, 0, 0, 0],
            Function::MemQuery => [0, 0, 0x100, 0, 0],
            Function::MemDonate if x1 == PAGE => refuse(Status::WrongState),
            Function::MemDonate => [0, x2.min(2 << 20), 0, 0, 0],
            Function::Statistics => [0, 1000 + x1, 0, 0, 0],
            Function::GuestTeardown => {
                let steps = self.asked.borrow().len() as u64;
                [0, u64::from(steps < 3), 0, 0, 0]
            }
            Function::EventRead => {
                let Some([x1, x2, x3, x4]) = self.events.borrow_mut().pop() else {
                    return refuse(Status::Empty);
                };
                [0, x1, x2, x3, x4]
            }
            other => panic!("{other:?} is not expected"),
        }
    }
}

impl Device for Fake {
    fn request(&self, request: Request, record: Record) -> Result<Record, Errno> {
        self.asked.borrow_mut().push((request, record));
        let [word0, x1, x2, x3, x4] = record;
        match request {
            Request::Call if word0 == Function::StreamAttach.id().into() => Err(Errno::BUSY),
            Request::Version => Ok([1 << 16, 1 << 16 | 1, 0, 0, 0]),
            Request::Call => Ok(self.answer(word0, [x1, x2, x3, x4])),
            Request::Allocate => Ok([PAGE, word0, 0, 0, 0]),
            Request::Pages if word0 == 0 => Ok([PAGE, 0x3000, 0, 0, 0]),
            Request::Pages => Err(Errno::NO_ENTRY),
            Request::Free => Err(Errno::BUSY),
            Request::Read => Ok([0x1234, 0, 0, 0, 0]),
            Request::Write => Ok([0; 5]),
        }
    }
}

fn typed(fake: &Fake, text: &str) -> Result<String, String> {
    run(&command::parse(&text.split(' ').collect::<Vec<_>>()).expect(text), fake)
}

#[test]
fn what_is_there_is_shown() {
    let fake = Fake::default();
    let shown = |text| typed(&fake, text).expect(text);
    let smmus = shown("smmus");
    assert_eq!(smmus.lines().count(), 2);
    assert!(smmus.contains("SMMU 1: registers at 0xc020000, StreamIDs of 4 bits, dead"), "{smmus}");
    assert!(smmus.contains("3 in use, 253 free, the largest 255"), "{smmus}");
    assert_eq!(shown("streams"), "SMMU 1, StreamID 0x9: domain 1 (memory of guest 1), VMID 7\n");
    assert_eq!(shown("stream 0 9"), "SMMU 0, StreamID 0x9: unattached, its DMA faults\n");
    assert_eq!(
        shown("domains"),
        "domain 0 (the host's): 0 streams, 0 vSMMUs, no tags\n\
         domain 1 (memory of guest 1): 1 streams, 0 vSMMUs, VMID 7 on SMMU 1 (1 streams)\n"
    );
    assert_eq!(
        shown("memory"),
        "0x48000000, 0x1000 bytes: guest 1\n0x48001000, 0x2000 bytes: the host, shared with the hypervisor\n"
    );
    assert_eq!(shown("owner 0x48000000"), "guest 1\n");
    let version = shown("version");
    assert!(version.contains("hypervisor: 1.1\n") && version.contains("of a domain: 44\n"), "{version}");
    let statistics = shown("statistics");
    assert_eq!(statistics.lines().count(), abi::Statistic::ALL.len());
    assert!(statistics.contains("1001  Commands posted"), "{statistics}");
    assert_eq!(shown("allocate 4K"), "0x48000000\n");
    assert_eq!(shown("read 0x48000008"), "0x0000000000001234\n");
}

#[test]
fn events_come_in_order_and_those_that_were_lost_are_told() {
    let fake = Fake::default();
    let source = |stream: u64| 0x10 | stream << 8 | 1 << 40 | 1 << 48 | 1 << 49;
    *fake.events.borrow_mut() = [[source(0x11), 0x2000, 0, 3], [source(0x10), 0x1000, 0, 0]].into();
    assert_eq!(
        typed(&fake, "events").expect("they are there"),
        "F_TRANSLATION SMMU 1 StreamID 0x10 write 0x1000\n3 events were lost here\nF_TRANSLATION SMMU 1 StreamID 0x11 write 0x2000\n"
    );
    assert_eq!(typed(&fake, "events"), Ok(String::new()));
}

#[test]
fn a_long_range_is_done_in_steps_and_a_guest_until_it_is_gone() {
    let fake = Fake::default();
    typed(&fake, "donate 0x50000000 5M 1").expect("it is given");
    let steps: Vec<_> = fake.asked.borrow().iter().map(|(_, [_, start, size, ..])| (*start, *size)).collect();
    assert_eq!(steps, [(0x5000_0000, 5 << 20), (0x5020_0000, 3 << 20), (0x5040_0000, 1 << 20)]);

    let fake = Fake::default();
    typed(&fake, "guest teardown 1").expect("it ends");
    assert_eq!(fake.asked.borrow().len(), 3);
}

#[test]
fn a_refusal_says_what_was_wrong_and_what_is_right() {
    let fake = Fake::default();
    let refused = |text| typed(&fake, text).expect_err(text);
    assert!(refused("donate 0x48000000 4K 1").starts_with("WrongState: A page of the range is not"));
    assert!(refused("free 0x48000000").contains("reclaim it"));
    assert!(refused("attach 0 0x10 1").contains("/remove"));
    let asked = fake.asked.borrow().len();
    assert!(refused("donate 0x50000000 4K 65").contains("from 1 to 64"));
    assert!(refused("guest teardown 0").contains("hyp-iommu guest create"));
    assert!(refused("domain map 0x1ff 0 0x50000000 4K").contains("hyp-iommu domain create"));
    assert_eq!(fake.asked.borrow().len(), asked, "what can be seen to be wrong is not asked");
}
