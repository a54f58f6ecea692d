//! The service on a kernel and a hypervisor made of maps.

extern crate std;
use super::*;
use abi::Status;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::vec::Vec;

const UNIT: u64 = 4096;
const SMMU_BASE: u64 = 0x0c00_0000;
const GUEST: u64 = 1;

/// Owners by page (the host where nothing is said), words, pages that are allocated, and calls that reached the hypervisor.
#[derive(Default)]
struct Fake {
    owners: RefCell<BTreeMap<u64, u64>>,
    words: RefCell<BTreeMap<u64, u64>>,
    allocated: RefCell<Vec<Run>>,
    calls: RefCell<Vec<u32>>,
    unit: u64,
    driven: Option<u64>,
}

impl Fake {
    fn new() -> Self {
        Self { unit: UNIT, ..Self::default() }
    }

    fn made(&self, function: Function) -> bool {
        self.calls.borrow().contains(&function.id())
    }
}

impl Caller for Fake {
    fn call_raw(&self, id: u32, [x1, x2, x3, _]: [u64; 4]) -> [u64; 5] {
        self.calls.borrow_mut().push(id);
        let mut owners = self.owners.borrow_mut();
        if id == abi::oracle::FUNCTION {
            return [Status::NotSupported.to_register(), 0, 0, 0, 0];
        }
        match Function::from_id(id).expect("only calls of the interface are made") {
            Function::CallUid => {
                let [x0, x1, x2, x3] = abi::UID.map(u64::from);
                [x0, x1, x2, x3, 0]
            }
            Function::Version => [0, abi::VERSION.into(), 0, 0, 0],
            Function::Features => [0, 0, self.unit, MAX_BYTES, 64],
            Function::MemDonate | Function::MemReclaim => {
                let owner = if id == Function::MemDonate.id() { x3 } else { 0 };
                owners.extend((x1..x1 + x2).step_by(self.unit as usize).map(|page| (page, owner)));
                [0, x2, 0, 0, 0]
            }
            Function::MemQuery if x1 % self.unit != 0 => [Status::Unaligned.to_register(), 0, 0, 0, 0],
            Function::MemQuery => [0, owners.get(&x1).copied().unwrap_or(0), 0, 0, 0],
            Function::SmmuDescribe if x1 != 0 => [Status::UnknownSmmu.to_register(), 0, 0, 0, 0],
            Function::SmmuDescribe => [0, SMMU_BASE, 16, 0, 0],
            _ => [0, 0, 0, 0, 0],
        }
    }
}

impl Kernel for Fake {
    fn allocate(&self, size: u64) -> Option<u64> {
        let start = 0x4000_0000 + self.allocated.borrow().len() as u64 * MAX_BYTES;
        self.allocated.borrow_mut().push(Run { start, size });
        Some(start)
    }

    fn free(&self, run: Run) {
        let mut allocated = self.allocated.borrow_mut();
        let place = allocated.iter().position(|&other| other == run).expect("it was allocated so");
        allocated.remove(place);
    }

    fn load(&self, address: u64) -> u64 {
        self.words.borrow().get(&address).copied().unwrap_or(0)
    }

    fn store(&self, address: u64, value: u64) {
        self.words.borrow_mut().insert(address, value);
    }

    fn has_driver(&self, base: u64, stream: u64) -> bool {
        base == SMMU_BASE && self.driven == Some(stream)
    }
}

/// A request with these words, the others zero.
fn ask(service: &mut Service, kernel: &Fake, request: Request, words: &[u64]) -> Result<Record, Errno> {
    let mut record = [0; 5];
    record[..words.len()].copy_from_slice(words);
    let before = record;
    let answer = service.serve(kernel, request.number(), &mut record);
    if answer.is_err() {
        assert_eq!(record, before, "a refused request gives nothing back");
    }
    answer.map(|()| record)
}

fn call(
    service: &mut Service,
    kernel: &Fake,
    function: Function,
    arguments: &[u64],
) -> Result<Record, Errno> {
    let words = [&[function.id().into()], arguments].concat();
    ask(service, kernel, Request::Call, &words)
}

#[test]
fn only_the_right_hypervisor_will_do() {
    struct Other(u64, u64);
    impl Caller for Other {
        fn call_raw(&self, id: u32, _: [u64; 4]) -> [u64; 5] {
            let [x0, x1, x2, x3] = abi::UID.map(u64::from);
            if id == Function::CallUid.id() { [x0, x1, x2, x3 ^ self.0, 0] } else { [0, self.1, 0, 0, 0] }
        }
    }
    impl Kernel for Other {
        fn allocate(&self, _: u64) -> Option<u64> {
            None
        }
        fn free(&self, _: Run) {}
        fn load(&self, _: u64) -> u64 {
            0
        }
        fn store(&self, _: u64, _: u64) {}
        fn has_driver(&self, _: u64, _: u64) -> bool {
            false
        }
    }
    let version = u64::from(abi::VERSION);
    assert_eq!(probe(&Fake::new()), Ok(()));
    assert_eq!(probe(&Other(0, version + 1)), Ok(()), "a newer minor version only adds");
    assert_eq!(probe(&Other(1, version)), Err(Errno::NoDevice));
    assert_eq!(probe(&Other(0, version + (1 << 16))), Err(Errno::Protocol));
}

#[test]
fn a_request_that_is_none_or_says_too_much_is_refused() {
    let (mut service, kernel) = (Service::new(), Fake::new());
    let mut record = [0; 5];
    assert_eq!(service.serve(&kernel, 0x5401, &mut record), Err(Errno::NoRequest));
    for request in Request::ALL.into_iter().filter(|request| request.words() < 5) {
        let mut words = [0; 5];
        words[request.words()] = 1;
        assert_eq!(ask(&mut service, &kernel, request, &words), Err(Errno::Invalid), "{request:?}");
    }
    let version = ask(&mut service, &kernel, Request::Version, &[]).expect("it is always answered");
    assert_eq!(version, [VERSION.into(), abi::VERSION.into(), 0, 0, 0]);
}

#[test]
fn a_page_that_is_away_is_neither_freed_nor_accessed() {
    let (mut service, kernel) = (Service::new(), Fake::new());
    let [start, size, ..] = ask(&mut service, &kernel, Request::Allocate, &[2 * UNIT]).expect("pages");
    assert_eq!(size, 2 * UNIT);
    let word = start + UNIT + 8;
    ask(&mut service, &kernel, Request::Write, &[word, 7]).expect("the page is the host's");
    assert_eq!(ask(&mut service, &kernel, Request::Read, &[word]).expect("so it is read")[0], 7);

    call(&mut service, &kernel, Function::MemDonate, &[start + UNIT, UNIT, GUEST])
        .expect("a page of the module");
    assert_eq!(ask(&mut service, &kernel, Request::Free, &[start]), Err(Errno::Busy));
    assert_eq!(ask(&mut service, &kernel, Request::Read, &[word]), Err(Errno::Busy));
    assert_eq!(ask(&mut service, &kernel, Request::Write, &[word, 8]), Err(Errno::Busy));
    assert_eq!(kernel.load(word), 7);
    ask(&mut service, &kernel, Request::Read, &[start]).expect("the other page is still the host's");

    call(&mut service, &kernel, Function::MemReclaim, &[start + UNIT, UNIT, GUEST])
        .expect("a page of the module");
    ask(&mut service, &kernel, Request::Free, &[start]).expect("nothing is away");
    assert!(kernel.allocated.borrow().is_empty());
    assert_eq!(ask(&mut service, &kernel, Request::Free, &[start]), Err(Errno::NoEntry));
    assert_eq!(ask(&mut service, &kernel, Request::Read, &[word]), Err(Errno::NoEntry));
}

#[test]
fn memory_of_linux_itself_is_not_given_away() {
    let (mut service, kernel) = (Service::new(), Fake::new());
    let [start, ..] = ask(&mut service, &kernel, Request::Allocate, &[UNIT]).expect("a page");
    for function in [
        Function::MemShare,
        Function::MemUnshare,
        Function::MemDonate,
        Function::MemReclaim,
        Function::PoolTopUp,
    ] {
        for (at, size) in [(start - UNIT, UNIT), (start, 2 * UNIT), (start + UNIT, UNIT), (start, u64::MAX)] {
            assert_eq!(
                call(&mut service, &kernel, function, &[at, size, GUEST]),
                Err(Errno::NoEntry),
                "{function:?}"
            );
        }
        assert!(!kernel.made(function));
        call(&mut service, &kernel, function, &[start, UNIT, GUEST]).expect("a page of the module");
        assert!(kernel.made(function));
    }
}

#[test]
fn what_needs_memory_of_the_caller_and_what_is_no_call_is_not_made() {
    let (mut service, kernel) = (Service::new(), Fake::new());
    let mut refused = 0;
    for entry in abi::TABLE {
        if let Err(errno) = call(&mut service, &kernel, entry.function, &[]) {
            // The calls about memory are refused because there is no page.
            refused += u32::from(errno == Errno::NotAllowed);
            assert!(!kernel.made(entry.function), "{}", entry.name);
        }
    }
    assert_eq!(refused, 7);
    for id in [0, 0x8400_0008, 0xc600_ffff, 1 << 32 | u64::from(Function::Version.id())] {
        assert_eq!(ask(&mut service, &kernel, Request::Call, &[id]), Err(Errno::NotAllowed), "{id:#x}");
    }
}

#[test]
fn the_oracle_is_the_hypervisors_to_refuse() {
    let (mut service, kernel) = (Service::new(), Fake::new());
    let words = [abi::oracle::FUNCTION.into(), abi::oracle::request::ALL];
    let answer = ask(&mut service, &kernel, Request::Call, &words).expect("it is made");
    assert_eq!(answer[0], Status::NotSupported.to_register());
    assert_eq!(*kernel.calls.borrow(), [abi::oracle::FUNCTION]);
}

#[test]
fn only_what_uses_no_page_is_served_beside_others() {
    let (mut service, kernel) = (Service::new(), Fake::new());
    let [start, ..] = ask(&mut service, &kernel, Request::Allocate, &[UNIT]).expect("a page");
    for request in Request::ALL {
        let words = match request {
            Request::Call => [Function::MemDonate.id().into(), start, UNIT, GUEST, 0],
            _ => [0; 5],
        };
        let (mut alone, mut beside) = (words, words);
        let number = request.number();
        let outcome = service.serve_beside(&kernel, number, &mut beside);
        if is_served_beside(number) {
            assert_eq!((outcome, beside), (service.serve(&kernel, number, &mut alone), alone), "{request:?}");
        } else {
            assert_eq!((outcome, beside), (Err(Errno::NoRequest), words), "{request:?}");
        }
    }
    assert!(!is_served_beside(0x5401) && kernel.made(Function::MemDonate));
}

#[test]
fn a_device_that_linux_drives_stays() {
    let (mut service, kernel) = (Service::new(), Fake { driven: Some(0x10), ..Fake::new() });
    assert_eq!(call(&mut service, &kernel, Function::StreamAttach, &[0, 0x10, GUEST]), Err(Errno::Busy));
    assert!(!kernel.made(Function::StreamAttach));
    call(&mut service, &kernel, Function::StreamAttach, &[0, 0x18, GUEST]).expect("nobody drives it");
    call(&mut service, &kernel, Function::StreamAttach, &[1, 0x10, GUEST])
        .expect("for the hypervisor to refuse");
}

#[test]
fn pages_are_whole_units_and_as_many_as_the_table_has_places() {
    let (mut service, kernel) = (Service::new(), Fake { unit: 1 << 16, ..Fake::new() });
    for size in [0, 1, UNIT, 3 << 16, MAX_BYTES * 2, u64::MAX] {
        assert_eq!(ask(&mut service, &kernel, Request::Allocate, &[size]), Err(Errno::Invalid), "{size:#x}");
    }
    for index in 0..Pages::MAX as u64 {
        let [start, ..] = ask(&mut service, &kernel, Request::Allocate, &[1 << 16]).expect("a place");
        let listed = ask(&mut service, &kernel, Request::Pages, &[index]).expect("it is in the list");
        assert_eq!(listed, [start, 1 << 16, 0, 0, 0]);
    }
    assert_eq!(ask(&mut service, &kernel, Request::Allocate, &[1 << 16]), Err(Errno::NoSpace));
    assert_eq!(ask(&mut service, &kernel, Request::Pages, &[Pages::MAX as u64]), Err(Errno::NoEntry));
}
