//! Attacks by way of the module itself, on the model machine, and on hypervisors that answer what none may.

extern crate std;
use super::*;

use alloc::boxed::Box;
use alloc::string::ToString;
use std::collections::BTreeMap;
use std::sync::{Mutex, RwLock};
use std::thread;
use std::time::Instant;

use ::tests::bench::{Bench, IMAGE, IMAGE_BYTES, POOL, POOL_BYTES, RAM_BYTES, Shape};
use ::tests::model::RAM_BASE;
use ::tests::model::smmu::config::SmmuConfig;
use abi::{Function, Status};
use host_shim::call::{Caller, Calls};
use host_shim::host::{Device as Kind, Dma, SCRATCH_BYTES, Transfer};
use host_shim::hostile::Action;
use hyp_iommu_module::pages;
use hyp_iommu_module::service::{Kernel, Service, is_served_beside};
use hyp_iommu_uapi::{MAX_BYTES, Record};
use options::Loose;

/// Where the registers of the devices are, which the model machine does not have: those of one SMMU's after the other's.
const REGISTERS: u64 = 0x20_0000_0000;
const TESTDEV: u64 = 0x1000;
const OF_SMMU: u64 = 0x2000;
/// Registers of the devices (see [`host_shim::devices`]).
const TRIGGER: u64 = 0x00;
const RESULT: u64 = 0x10;
const COMMAND: u64 = 0x98;

/// What comes of the answer of a call with this function id and these arguments.
type Lie = fn(u32, [u64; 4], [u64; 5]) -> [u64; 5];

/// Linux on the model machine, with the module and what `lie` makes of the hypervisor's answers.
struct World {
    bench: Bench,
    service: RwLock<Service>,
    allocated: Mutex<u64>,
    registers: Mutex<BTreeMap<u64, u64>>,
    pages: Mutex<Vec<u64>>,
    said: Mutex<Vec<String>>,
    begun: Instant,
    /// How much faster than ours its clock is.
    speed: u32,
    lie: Lie,
}

impl World {
    fn new(lie: Lie) -> Self {
        Self {
            bench: Bench::boot(&Shape::of(2, SmmuConfig::qemu())).expect("the machine boots"),
            service: RwLock::new(Service::new()),
            allocated: Mutex::new(0),
            registers: Mutex::default(),
            pages: Mutex::default(),
            said: Mutex::default(),
            begun: Instant::now(),
            speed: 4,
            lie,
        }
    }

    fn honest() -> Self {
        Self::new(|_, _, answer| answer)
    }

    /// What root types, with all devices.
    fn options(&self, typed: &str) -> Options {
        let mut options = Options::parse(&typed.split_whitespace().collect::<Vec<_>>()).expect("words");
        for smmu in 0..2 {
            let base = self.bench.describe_smmu(smmu).expect("it is there").base;
            for (kind, registers) in [(Kind::Immediate, TESTDEV), (Kind::Delayed, 0)] {
                let stream = self.bench.stream(smmu, kind).expect("it is there");
                let registers = REGISTERS + smmu as u64 * OF_SMMU + registers;
                options.devices.push(Loose { kind, smmu: base, stream, registers });
            }
        }
        options
    }

    /// As root types it.
    fn attack(&self, typed: &str) -> Result<String, String> {
        let run = |start, size| Run { start, size };
        let kept = Vec::from([run(IMAGE, IMAGE_BYTES), run(POOL, POOL_BYTES)]);
        let layout = Layout { memory: Vec::from([run(RAM_BASE, RAM_BYTES)]), kept };
        super::run(&self.options(typed), self, self, layout)
    }

    fn has_said(&self, text: &str) -> bool {
        self.said.lock().unwrap().iter().any(|line| line.contains(text))
    }

    /// What a device does when one of its registers is accessed.
    fn device(&self, register: u64) {
        let registers = self.registers.lock().unwrap();
        let at = |offset: u64| registers.get(&(register & !0xfff | offset)).copied().unwrap_or(0);
        let smmu = ((register - REGISTERS) / OF_SMMU) as usize;
        let wide = |low| at(low) | at(low + 4) << 32;
        match (register & TESTDEV, register & 0xfff) {
            (TESTDEV, TRIGGER) => {
                let ended = match self.bench.dma_write_at(smmu, wide(4), wide(0x1c)) {
                    Dma::Landed => 0,
                    Dma::Elsewhere => 0xdead_0004,
                    _ => 0xdead_0002,
                };
                drop(registers);
                self.registers.lock().unwrap().insert(register | RESULT, ended);
            }
            (0, COMMAND) => {
                // Bit 1 of the command: from the device's buffer to memory.
                let to_memory = at(COMMAND) & 2 != 0;
                let transfer =
                    if to_memory { Transfer::ToMemory(at(0x88)) } else { Transfer::FromMemory(at(0x80)) };
                // A guest has the device: the CPU would have aborted.
                let _ = self.bench.start(smmu, transfer);
            }
            _ => {}
        }
    }

    fn is_mapped(&self, address: u64) -> Result<(), Abort> {
        let pages = self.pages.lock().unwrap();
        if pages.contains(&(address & !0xfff)) { Ok(()) } else { Err(Abort) }
    }
}

impl Caller for World {
    fn call_raw(&self, id: u32, arguments: [u64; 4]) -> [u64; 5] {
        (self.lie)(id, arguments, self.bench.call_raw(id, arguments))
    }
}

impl Kernel for World {
    fn allocate(&self, size: u64) -> Option<u64> {
        let mut allocated = self.allocated.lock().unwrap();
        let start = (*allocated < SCRATCH_BYTES).then(|| self.bench.scratch() + *allocated)?;
        *allocated += size;
        Some(start)
    }

    fn free(&self, run: pages::Run) {
        *self.allocated.lock().unwrap() -= run.size;
    }

    fn load(&self, address: u64) -> u64 {
        self.bench.cpu_load(address, 8).expect("it is the host's")
    }

    fn store(&self, address: u64, value: u64) {
        self.bench.cpu_store(address, 8, value).expect("it is the host's");
    }

    fn has_driver(&self, _: u64, _: u64) -> bool {
        false
    }
}

impl Device for World {
    fn request(&self, request: Request, mut record: Record) -> Result<Record, Errno> {
        let number = request.number();
        let served = if is_served_beside(number) {
            self.service.read().unwrap().serve_beside(self, number, &mut record)
        } else {
            self.service.write().unwrap().serve(self, number, &mut record)
        };
        served.map(|()| record).map_err(|errno| Errno(errno as i32))
    }
}

impl System for World {
    fn load(&self, address: u64, bytes: u8) -> Result<u64, Abort> {
        self.is_mapped(address)?;
        if address < REGISTERS {
            return self.bench.cpu_load(address, bytes);
        }
        self.device(address);
        Ok(self.registers.lock().unwrap().get(&address).copied().unwrap_or(0))
    }

    fn store(&self, address: u64, bytes: u8, value: u64) -> Result<(), Abort> {
        self.is_mapped(address)?;
        if address < REGISTERS {
            return self.bench.cpu_store(address, bytes, value);
        }
        self.registers.lock().unwrap().insert(address, value);
        if address & 0xfff == COMMAND {
            self.device(address);
        }
        Ok(())
    }

    /// The model machine's devices are elsewhere than QEMU's, so of what is not a device only the hypervisor's memory is mapped.
    fn map(&self, pages: &[u64]) -> Result<usize, String> {
        let kept = IMAGE..POOL + POOL_BYTES;
        let mapped: Vec<u64> =
            pages.iter().copied().filter(|page| kept.contains(page) || *page >= REGISTERS).collect();
        *self.pages.lock().unwrap() = mapped.clone();
        Ok(mapped.len())
    }

    fn now_ns(&self) -> u64 {
        (self.begun.elapsed() * self.speed).as_nanos() as u64
    }

    fn cpus(&self) -> u64 {
        2
    }

    fn share<T: Sync + 'static>(&self, value: T) -> Result<&'static T, String> {
        Ok(Box::leak(Box::new(value)))
    }

    fn on_each_cpu(&self, count: u64, job: &(dyn Fn(u64) + Sync)) -> Result<(), String> {
        thread::scope(|scope| {
            let threads: Vec<_> = (0..count).map(|cpu| scope.spawn(move || job(cpu))).collect();
            let ended: Vec<_> = threads.into_iter().map(thread::ScopedJoinHandle::join).collect();
            if ended.iter().all(Result::is_ok) { Ok(()) } else { Err("a thread panicked".into()) }
        })
    }

    fn say(&self, line: fmt::Arguments<'_>) {
        self.said.lock().unwrap().push(line.to_string());
    }
}

#[test]
fn an_attack_by_the_module_finds_nothing_and_leaves_nothing() {
    for (seed, cpus) in [(1, 1), (2, 1), (3, 2)] {
        let world = World::honest();
        let ended = world.attack(&format!("oracle seed={seed} cpus={cpus} steps=1500 every=100"));
        let said = ended.unwrap_or_else(|error| panic!("seed {seed}: {error}: {:#?}", world.said));
        assert!(said.contains("all 4096 pages are the host's again"), "{said}");
        assert!(world.has_said("with the hypervisor's oracle"));
        assert_eq!(*world.allocated.lock().unwrap(), 0, "Linux has its memory again");
        world.bench.settle();
        ::tests::oracle::check(&world.bench).expect("all is as it should be");
        let said = world.said.lock().unwrap().join("\n");
        for name in ["MEM_DONATE", "STREAM_ATTACH", "GUEST_CREATE", "POOL_TOP_UP", "DOMAIN_CREATE"] {
            assert!(!said.contains(&format!("fuzz: {name}: 0 of")), "seed {seed}: no {name} succeeded");
        }
    }
}

#[test]
fn what_no_hypervisor_may_answer_is_found() {
    // A status that its function does not have; a word that is no status.
    let lies: [(Lie, &str); 2] = [
        (
            |id, _, answer| {
                if id == Function::PoolState.id() {
                    [Status::UnknownVsmmu.to_register(), 0, 0, 0, 0]
                } else {
                    answer
                }
            },
            "which is not documented",
        ),
        (
            |id, _, answer| if id == Function::DomainQuery.id() { [77, 0, 0, 0, 0] } else { answer },
            "which is no status",
        ),
    ];
    for (lie, why) in lies {
        let world = World::new(lie);
        assert_eq!(world.attack("seed=1 cpus=1"), Err("fuzz: something was found".into()));
        assert!(world.has_said("FAIL fuzz: CPU 0, step ") && world.has_said(why));
    }
}

#[test]
fn an_oracle_that_complains_is_believed() {
    let world = World::new(|id, [what, ..], answer| {
        let all = id == abi::oracle::FUNCTION && what == abi::oracle::request::ALL;
        if all { [abi::oracle::Wrong::PageOwner.to_register(), 1, 2, 0, 0] } else { answer }
    });
    assert!(world.attack("cpus=1 steps=10").is_err());
    assert!(world.has_said("FAIL fuzz: at the end: oracle: a page belongs to"), "{:?}", world.said);
}

#[test]
fn a_page_that_does_not_come_back_is_found() {
    let world = World::new(|id, _, answer| match answer {
        [0, 0, 0, ..] if id == Function::MemQuery.id() => [0, 0, 5, 0, 0],
        answer => answer,
    });
    let error = world.attack("cpus=1 steps=10").expect_err("nothing is the host's alone");
    assert!(error.contains("is not the host's alone again: owner 0x0, shared with 0x5"), "{error}");
    assert!(world.has_said("FAIL fuzz: at the end: "));
}

#[test]
fn without_an_oracle_it_is_said_and_refused_if_there_must_be_one() {
    let world = World::new(|id, _, answer| match id {
        abi::oracle::FUNCTION => [Status::NotSupported.to_register(), 0, 0, 0, 0],
        _ => answer,
    });
    assert!(world.attack("oracle").expect_err("there is none").contains("cargo xtask fuzz --host linux"));
    world.attack("steps=20").expect("it goes without");
    assert!(world.has_said("without an oracle"));
}

#[test]
fn what_others_have_is_left_alone() {
    let world = World::honest();
    let guest = world.bench.create_guest().expect("a guest");
    let error = world.attack("").expect_err("there is a guest");
    assert!(error.contains("hyp-iommu guest teardown"), "{error}");
    world.bench.destroy_guest(guest).expect("it has nothing");
    let [page, ..] = world.request(Request::Allocate, [MAX_BYTES, 0, 0, 0, 0]).expect("pages");
    let error = world.attack("").expect_err("there are pages");
    assert!(error.contains("hyp-iommu free START"), "{error}");
    world.request(Request::Free, [page, 0, 0, 0, 0]).expect("they are there");
    let options = Options::parse(&["testdev=1,2,3"]).expect("words");
    let error = run(&options, &world, &world, Layout::default()).expect_err("there is no such SMMU");
    assert!(error.contains("0x1 is no SMMU's address"), "{error}");
    assert_eq!(*world.allocated.lock().unwrap(), 0);
}

#[test]
fn a_process_that_keeps_a_device_is_not_waited_for_in_vain() {
    let world = World { speed: 1000, ..World::honest() };
    let options = world.options("steps=1000");
    let host = Linux::new(&world, &world, world.bench.scratch(), &options.devices, Vec::new(), Vec::new());
    let (host, shared) = (host.expect("SMMUs"), Shared::new());
    let _kept = shared.devices.each_ref().map(|device| device.lock());
    Attack::new(&host, &world, &options, &shared, 1, false).on_cpu(0);
    assert!(world.has_said("another CPU does not give its devices back"), "{:?}", world.said);
}

#[test]
fn linux_is_spared() {
    let world = World::honest();
    let run = |start, size| Run { start, size };
    let base = world.bench.describe_smmu(0).expect("it is there").base;
    let loose = Loose { kind: Kind::Immediate, smmu: base, stream: 8, registers: REGISTERS };
    let scratch = world.bench.scratch();
    let (memory, kept) = (Vec::from([run(RAM_BASE, RAM_BYTES)]), Vec::from([run(POOL, POOL_BYTES)]));
    let host = Linux::new(&world, &world, scratch, &[loose], memory, kept).expect("an SMMU");
    let write = |address| host.can(&Action::Write { smmu: 0, substream: 0, address });
    assert!(write(scratch) && write(POOL) && write(0x905_0000) && write(RAM_BASE + RAM_BYTES));
    assert!(!write(scratch - 8) && !write(scratch + SCRATCH_BYTES) && !write(IMAGE));
    assert!(!host.can(&Action::Write { smmu: 1, substream: 0, address: scratch }), "it has no device");
    assert!(!host.can(&Action::Start { smmu: 0, transfer: Transfer::ToMemory(scratch) }), "nor that one");
    let load = |address| host.can(&Action::Load { address, bytes: 8 });
    assert!(load(scratch) && load(POOL) && !load(scratch - 8) && !load(0x900_0000));
}
