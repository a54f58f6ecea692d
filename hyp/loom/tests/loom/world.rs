//! The hypervisor on a machine that is as small as it can be: one or two SMMUs of the model with two devices each, a few pages, and a guest.

use abi::{DomainHandle, Function, Principal, Status};
use hyp_loom::devicetree::{self, IommuMap, PcieNode, SmmuInterrupts, SmmuNode};
use hyp_loom::esr::{HostAbort, Syndrome};
use hyp_loom::hypervisor::{AbortAction, Boot, Hypervisor};
use hyp_loom::list::List;
use smmuv3::address::{PhysAddr, PhysRange};
use tests::model::device::Dma;
use tests::model::memory::Span;
use tests::model::smmu::config::SmmuConfig;
use tests::model::stage2::Stage2Config;
use tests::model::{ECAM, GICD, GICR, Machine, RAM_BASE, SMMU_BASE, SMMU_BYTES, UART, pci};

use crate::bus::{Actor, Bus};
use crate::look;
use crate::mistake::Mistake;

/// The pool, at the beginning of RAM.
const POOL: u64 = RAM_BASE;
/// Its bytes.
const POOL_BYTES: u64 = 1 << 20;
/// Bytes of RAM: two blocks.
const RAM_BYTES: u64 = 4 << 20;
/// Where the hypervisor keeps who owns each page: at the beginning of the pool.
pub const FRAME_TABLE: Span = Span::new(POOL, PAGE);
/// Bytes of a page.
pub const PAGE: u64 = 0x1000;
/// Pages of the host's, in a block of which one page is a guest's already: no table is split when another of them changes its owner.
pub const PAGES: [u64; 6] = {
    let first = RAM_BASE + (2 << 20);
    [first, first + PAGE, first + 2 * PAGE, first + 3 * PAGE, first + 4 * PAGE, first + 5 * PAGE]
};
/// Of a world [with domains](World::with_domains): a page that the guest has and has mapped, one that it has, and one of the host's.
pub const MAPPED: u64 = PAGES[1];
pub const GIVEN: u64 = PAGES[2];
pub const HOSTS: u64 = PAGES[4];
/// The page of the block that is a guest's.
const SPLITTER: u64 = PAGES[0] + 0x10_0000;
/// Where domains of the guest map pages.
pub const IPAS: [u64; 2] = [0x1_0000, 0x1_1000];
/// What devices store.
const DMA_VALUE: u64 = 0xd0d0_d0d0_d0d0_d0d0;
/// Physical address bits of the CPUs.
const PA_BITS: u8 = 44;
/// What an SMMU takes for a command: longer than it takes to post one, so that it is done when a CPU waits for it.
const COMMAND_NS: u64 = 1_500;

/// A device: its SMMU, and its StreamID.
pub type Device = (usize, u32);

/// StreamIDs of the devices behind each SMMU.
const STREAMS: [u32; 2] = [1, 2];

/// The Requester ID of a device.
const fn rid((smmu, stream): Device) -> u32 {
    (2 * smmu as u32 + stream) << 3
}

/// The hypervisor, and what is on the machine.
pub struct World {
    pub hypervisor: Box<Hypervisor<Bus>>,
    /// Handles of the guest, and of its domains and vSMMU.
    pub guest: u64,
    pub domains: Vec<u64>,
    pub vsmmu: u64,
}

fn devices(smmus: usize) -> impl Iterator<Item = Device> {
    (0..smmus).flat_map(|smmu| STREAMS.map(|stream| (smmu, stream)))
}

fn range(start: u64, size: u64) -> PhysRange {
    PhysRange::new(PhysAddr(start), size).unwrap()
}

fn list<T: Copy, const N: usize>(items: impl IntoIterator<Item = T>) -> List<T, N> {
    let mut list = List::new();
    items.into_iter().for_each(|item| list.push(item).unwrap_or_else(|_| panic!("no room")));
    list
}

/// What the boot configuration says: a PCI bus with a function for each SMMU, whose other Requester IDs are StreamIDs that there are not.
fn tree(smmus: usize) -> devicetree::Machine {
    let phandle = |smmu: usize| 0x100 + smmu as u32;
    let maps = devices(smmus)
        .map(|(smmu, stream)| IommuMap {
            rid_base: rid((smmu, stream)),
            phandle: phandle(smmu),
            stream_base: stream,
            length: 1,
        })
        .chain([IommuMap { rid_base: 0, phandle: phandle(0), stream_base: 0x8000_0000, length: 0x100 }]);
    devicetree::Machine {
        memory: list([range(RAM_BASE, RAM_BYTES)]),
        reserved: List::new(),
        uart: Some(range(UART.start, UART.size())),
        gicd: range(GICD.start, GICD.size()),
        redistributors: list([range(GICR.start, 0x2_0000)]),
        its: List::new(),
        doorbells: List::new(),
        ats_trusted: List::new(),
        smmus: list((0..smmus).map(|smmu| SmmuNode {
            registers: range(SMMU_BASE + SMMU_BYTES * smmu as u64, SMMU_BYTES),
            phandle: phandle(smmu),
            part: None,
            interrupts: SmmuInterrupts::default(),
        })),
        fw_cfg: List::new(),
        virtio_mmio: List::new(),
        pcie: list([PcieNode {
            ecam: range(ECAM.start, 1 << 20),
            first_bus: 0,
            last_bus: 0,
            domain: 0,
            windows: List::new(),
            iommu_map: list(maps),
            iommu_map_mask: 0xffff,
        }]),
        cpus: list([0, 1]),
        kernel: None,
        ramdisk: None,
        psci_smc: true,
    }
}

impl World {
    /// Boots it, and makes the guest, of a machine with so many SMMUs.
    pub fn boot(smmus: usize, mistake: Mistake) -> Self {
        let config = SmmuConfig::qemu().stream_bits(2).slow(COMMAND_NS);
        let mut machine = Machine::new(RAM_BYTES, &vec![config; smmus], &vec![STREAMS.to_vec(); smmus]);
        for device in devices(smmus) {
            let page = ECAM.start + (u64::from(rid(device)) << 12);
            machine.functions.insert(page, pci::Function::device(0x1b36, 5, &[]));
        }
        // GICR_TYPER.Last.
        machine.registers.insert(GICR.start + 8, 1 << 4);
        let mut hypervisor = Box::new(Hypervisor::new(Bus::new(machine, mistake)));
        let boot =
            Boot { machine: &tree(smmus), pa_bits: PA_BITS, image: &[], pool: &[range(POOL, POOL_BYTES)] };
        hypervisor.start(boot).unwrap_or_else(|error| panic!("{error}"));
        let table = hypervisor.host_stage2();
        let geometry = table.geometry();
        let vtcr = u64::from(geometry.t0sz())
            | u64::from(geometry.sl0()) << 6
            | u64::from(geometry.tg()) << 14
            | u64::from(geometry.ps()) << 16;
        let stage2 = Stage2Config::from_registers(vtcr, table.root().0, PA_BITS.into()).unwrap();
        hypervisor.platform().machine().cpu.stage2 = Some(stage2);
        let mut world = Self { hypervisor, guest: 0, domains: Vec::new(), vsmmu: 0 };
        world.guest = world.call(Function::GuestCreate, [0; 4]).unwrap()[0];
        world.donate(SPLITTER).unwrap();
        world
    }

    /// One SMMU, and a guest with two pages and two domains, of which the first maps one of the pages and has this stream.
    pub fn with_domains(stream: Device) -> Self {
        let mut world = Self::boot(1, Mistake::None);
        let domain = world.add_domain();
        world.add_domain();
        world.donate(MAPPED).unwrap();
        world.donate(GIVEN).unwrap();
        world.map(domain, IPAS[0], MAPPED).unwrap();
        world.attach(stream, domain, 0).unwrap();
        world
    }

    /// From here on loom decides who goes on.
    pub fn explore(&self) {
        self.bus().explore(&PAGES);
    }

    pub fn bus(&self) -> &Bus {
        self.hypervisor.platform()
    }

    /// A hypercall.
    pub fn call(&self, function: Function, arguments: [u64; 4]) -> Result<[u64; 4], Status> {
        self.bus().enter();
        let [x0, x1, x2, x3, x4] = self.hypervisor.hypercall(function.id(), arguments).x;
        self.bus().leave();
        match Status::from_register(x0).unwrap() {
            Status::Success => Ok([x1, x2, x3, x4]),
            status => Err(status),
        }
    }

    pub fn donate(&self, page: u64) -> Result<(), Status> {
        self.call(Function::MemDonate, [page, PAGE, self.guest, 0]).map(drop)
    }

    pub fn reclaim(&self, page: u64) -> Result<(), Status> {
        self.call(Function::MemReclaim, [page, PAGE, self.guest, 0]).map(drop)
    }

    /// Takes the guest apart. Every step is one that the interface knows: the guest is there until it is gone.
    pub fn take_apart(&self) {
        let mut steps = 0;
        while self.call(Function::GuestTeardown, [self.guest, 0, 0, 0]).unwrap()[0] != 0 {
            steps += 1;
            assert!(steps < 10, "the guest does not end");
        }
    }

    /// Makes one more of the guest's domains.
    pub fn add_domain(&mut self) -> u64 {
        let [domain, ..] = self.call(Function::DomainCreate, [self.guest, 0, 0, 0]).unwrap();
        self.domains.push(domain);
        domain
    }

    pub fn map(&self, domain: u64, ipa: u64, page: u64) -> Result<(), Status> {
        self.call(Function::DomainMap, [domain, ipa, page, PAGE]).map(drop)
    }

    pub fn unmap(&self, domain: u64, ipa: u64) -> Result<(), Status> {
        self.call(Function::DomainUnmap, [domain, ipa, PAGE, 0]).map(drop)
    }

    pub fn attach(&self, (smmu, stream): Device, domain: u64, flags: u64) -> Result<(), Status> {
        self.call(Function::StreamAttach, [smmu as u64, stream.into(), domain, flags]).map(drop)
    }

    pub fn detach(&self, (smmu, stream): Device) -> Result<(), Status> {
        self.call(Function::StreamDetach, [smmu as u64, stream.into(), 0, 0]).map(drop)
    }

    /// An access of the host's to a register of an emulated SMMU, made again until it is done; what is loaded.
    fn access_register(&self, smmu: usize, offset: u64, bytes: u64, stored: Option<u64>) -> u64 {
        let address = SMMU_BASE + SMMU_BYTES * smmu as u64 + offset;
        // ESR_EL2 (DDI 0487, D24.2.40): data abort from EL1, IL, ISV, SAS, SRT = 5, SF, WnR, translation fault at level 3.
        let write = u64::from(stored.is_some()) << 6 | u64::from(bytes.trailing_zeros()) << 22;
        let abort = HostAbort {
            syndrome: Syndrome(0x24 << 26 | 1 << 25 | 1 << 24 | 5 << 16 | 1 << 15 | write | 0x07),
            far: address,
            hpfar: (address >> 12) << 4,
            stored: stored.unwrap_or(0),
        };
        loop {
            self.bus().enter();
            let action = self.hypervisor.usual_host_abort(&abort);
            let action = action.unwrap_or_else(|| self.hypervisor.host_abort(&abort));
            self.bus().leave();
            match action {
                AbortAction::Retry => {}
                AbortAction::Emulated { register } => return register.map_or(0, |(_, value)| value),
                AbortAction::Inject => panic!("no register at {address:#x}"),
            }
        }
    }

    pub fn store_register(&self, smmu: usize, offset: u64, bytes: u64, value: u64) {
        self.access_register(smmu, offset, bytes, Some(value));
    }

    pub fn load_register(&self, smmu: usize, offset: u64) -> u32 {
        self.access_register(smmu, offset, 4, None) as u32
    }

    /// Puts a word into memory before anything goes on.
    pub fn fill(&self, address: u64, word: u64) {
        assert!(self.bus().machine().memory.write(address, word));
    }

    /// What is in memory when everything is over.
    pub fn load(&self, address: u64) -> u64 {
        self.bus().machine().memory.read(address).unwrap()
    }

    /// A store of a device; where it arrives.
    pub fn dma(&self, actor: Actor, (smmu, stream): Device, address: u64) -> Option<u64> {
        self.bus().act(|machine| match machine.dma_write(smmu, stream, address, DMA_VALUE) {
            Dma::Reached(at) => {
                self.bus().reached(actor, at);
                Some(at)
            }
            Dma::Aborted => None,
        })
    }

    /// A store of a CPU of the host's; whether it is let through.
    pub fn cpu_store(&self, address: u64, value: u64) -> bool {
        self.bus().act(|machine| {
            let target = machine.cpu_translate(address, true);
            target.is_ok_and(|target| {
                self.bus().reached(Actor::Host, target);
                machine.memory.write(target, value)
            })
        })
    }

    /// Who owns a page of [`PAGES`], and nobody else does.
    pub fn owner(&self, page: u64) -> Actor {
        match self.call(Function::MemQuery, [page, 0, 0, 0]) {
            Ok([0, 0, ..]) => Actor::Host,
            Ok([guest, 0, ..]) if guest == self.guest => Actor::Guest,
            other => panic!("{page:#x}: {other:?}"),
        }
    }

    /// When all calls have ended: no table and no cache leads anybody to a page that is not its own.
    pub fn check(&self) {
        // What is still under way is done.
        self.bus().machine().advance(1_000_000);
        let owners = PAGES.map(|page| (page, self.owner(page)));
        let owner_at = |address: u64| {
            owners.iter().find(|(page, _)| *page == address / PAGE * PAGE).map(|(_, owner)| *owner)
        };
        let actor_of = |(smmu, stream): Device| {
            let state = self.call(Function::StreamQuery, [smmu as u64, stream.into(), 0, 0]).unwrap();
            match DomainHandle::from_register(state[1]).map(DomainHandle::owner) {
                Some(Principal::Guest(_)) => Actor::Guest,
                Some(Principal::Host) | None => Actor::Host,
            }
        };
        let smmus = self.bus().machine().smmus.len();
        let devices: Vec<_> = devices(smmus).map(|device| (device, actor_of(device))).collect();
        let machine = &mut *self.bus().machine();
        for (page, owner) in owners {
            assert_eq!(
                look::is_hosts(machine, page),
                owner == Actor::Host,
                "the host's stage 2 at {page:#x}"
            );
            let cached = machine.cpu.leaves.iter().any(|leaf| leaf.covers(page));
            assert!(!cached || owner == Actor::Host, "a CPU's TLB has {page:#x}");
        }
        for ((smmu, stream), actor) in devices {
            for address in PAGES.into_iter().chain(IPAS) {
                let Ok(reached) = machine.evaluate(smmu, stream, address, true) else { continue };
                let owner = owner_at(reached);
                assert!(owner == Some(actor), "{actor:?}'s stream {stream} reaches {reached:#x}: {owner:?}");
            }
        }
        for smmu in 0..smmus {
            let stale = machine.stale(smmu).first().map(ToString::to_string);
            assert!(stale.is_none(), "SMMU {smmu} caches {}", stale.unwrap_or_default());
        }
        assert_eq!(machine.violations.all(), [""; 0]);
    }

    /// What all calls so far have changed. The oracle finds everything right.
    pub fn digest(&self) -> u64 {
        let oracle = self.hypervisor.oracle();
        oracle.check_all().unwrap_or_else(|finding| panic!("{finding}"));
        oracle.digest()
    }
}
