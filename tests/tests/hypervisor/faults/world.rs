//! Two SMMUs, a host and a guest with everything that calls can make, and for each function calls that succeed there.

use abi::{Function, Status, attach};
use tests::bench::{Bench, COMMANDS, SCRATCH, Shape};
use tests::model::device::Dma;
use tests::model::smmu::config::SmmuConfig;
use tests::nest::{ARENA, Nest};
use tests::owner::{BYPASS, EATS, Stage1};

/// A block of 2 MiB.
pub const BLOCK: u64 = 2 << 20;

/// Where a block of the guest's is in its domain.
const LARGE: u64 = 0x6000_0000;

/// Whether streams are attached, and caches are warm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// All objects are there, and no stream is attached.
    Idle,
    /// The host's stream behind SMMU 0 is nested, the guest's behind SMMU 1 are nested and not.
    Busy,
}

/// What there is.
pub struct World {
    pub bench: Bench,
    pub state: State,
    pub unit: u64,
    pub guest: u64,
    /// A domain of the guest, with its tables and pages at [`ARENA`].
    pub domain: u64,
    /// A vSMMU on the host's domain, and one on the guest's.
    pub host: Nest,
    pub theirs: Nest,
    pub nested: [u64; 2],
    /// Nothing needs these.
    pub spare_guest: u64,
    pub spare_domain: u64,
    pub spare_vsmmu: u64,
    pub spare_nested: u64,
}

/// A call: what it is called, and its arguments; `None` where it makes no sense.
pub type Call = (&'static str, fn(&World) -> Option<[u64; 4]>);

impl State {
    /// Both, for calls that make sense in one of them only: the first attach of a stream to a guest, and what needs one.
    pub const ALL: [Self; 2] = [Self::Idle, Self::Busy];
}

impl World {
    /// Boots it.
    pub fn new(config: SmmuConfig, state: State) -> Self {
        Self::on(&Self::shape(config), state)
    }

    /// Two SMMUs.
    pub fn shape(config: SmmuConfig) -> Shape {
        Shape { relax_ns: 200_000, ..Shape::of(2, config) }
    }

    /// Boots it on a machine of two SMMUs. Where it trusts devices, all streams have ATS, and warm ATCs when they are attached.
    pub fn on(shape: &Shape, state: State) -> Self {
        let bench = Bench::boot(shape).unwrap_or_else(|error| panic!("{error}"));
        let unit = bench.unit();
        let guest = bench.guest().unwrap();
        // Its tables and data are the last units of the first block: what is donated here is in pieces already.
        let domain = bench.guest_domain(guest, 16, Stage1::UNITS).unwrap();
        let host = bench.nest(0, 0, SCRATCH, 1).unwrap();
        let theirs = bench.nest(1, domain, ARENA, 1).unwrap();
        let ats = !shape.trusted.is_empty();
        let nested = [&host, &theirs].map(|nest| {
            let [word0, word1] = nest.stage1.words();
            bench.nested(nest.vsmmu, [word0, if ats { word1 | EATS } else { word1 }]).unwrap()
        });
        bench.whole(Function::MemDonate, SCRATCH + 4 * BLOCK, 2 * unit, guest).unwrap();
        bench.whole(Function::MemShare, SCRATCH + 5 * BLOCK, 2 * unit, guest).unwrap();
        bench.whole(Function::MemShare, SCRATCH + 5 * BLOCK + 4 * unit, unit, 0).unwrap();
        bench.whole(Function::MemDonate, SCRATCH + 2 * BLOCK, BLOCK, guest).unwrap();
        bench.whole(Function::MemShare, SCRATCH + 3 * BLOCK, BLOCK, guest).unwrap();
        bench.whole(Function::MemDonate, SCRATCH + 8 * BLOCK, BLOCK, guest).unwrap();
        bench.map(domain, LARGE, SCRATCH + 8 * BLOCK, BLOCK).unwrap();
        let spare_guest = bench.guest().unwrap();
        let spare_domain = bench.domain(guest, 0).unwrap();
        let spare_vsmmu = bench.vsmmu(0, domain).unwrap();
        let spare_nested = bench.nested(theirs.vsmmu, BYPASS).unwrap();
        if state == State::Busy {
            bench.attach(0, 0, nested[0]).unwrap();
            bench.attach(1, 0, nested[1]).unwrap();
            bench.attach_with(1, 1, domain, if ats { attach::ATS } else { 0 }).unwrap();
            for n in 0..4 {
                assert!(bench.dma(0, 0, host.stage1.va(n)).is_some());
                assert!(bench.dma(1, 0, theirs.stage1.va(n)).is_some());
                assert!(bench.dma(1, 1, theirs.stage1.page(n)).is_some());
                if ats {
                    let filled = [
                        (0, 0, host.stage1.va(n)),
                        (1, 0, theirs.stage1.va(n)),
                        (1, 1, theirs.stage1.page(n)),
                    ];
                    for (smmu, device, address) in filled {
                        let stream = bench.devices[smmu][device].stream;
                        let reached = bench.machine().dma_through_atc(smmu, stream, address, 0);
                        assert!(matches!(reached, Dma::Reached(_)), "the ATC of stream {stream:#x}");
                    }
                }
            }
        }
        for block in 0..8 {
            bench.warm(SCRATCH + block * BLOCK);
        }
        Self {
            bench,
            state,
            unit,
            guest,
            domain,
            host,
            theirs,
            nested,
            spare_guest,
            spare_domain,
            spare_vsmmu,
            spare_nested,
        }
    }

    fn stream(&self, smmu: usize, device: usize) -> u64 {
        self.bench.devices[smmu][device].stream.into()
    }

    /// Arguments where streams are attached.
    fn busy(&self, arguments: [u64; 4]) -> Option<[u64; 4]> {
        (self.state == State::Busy).then_some(arguments)
    }

    /// Arguments where none is.
    fn idle(&self, arguments: [u64; 4]) -> Option<[u64; 4]> {
        (self.state == State::Idle).then_some(arguments)
    }

    /// Commands of an owner of a vSMMU, in a page of the host's; how many.
    fn write_commands(&self) -> u64 {
        let commands = [[0x06, 0], [0x10, 0], [0x46, 0]];
        let mut machine = self.bench.machine();
        for (word, offset) in commands.iter().flatten().zip((0..).step_by(8)) {
            machine.memory.write(COMMANDS + offset, *word);
        }
        commands.len() as u64
    }

    /// Attaches the second stream behind SMMU 0 to the guest. Its BAR and that of the first one behind SMMU 1 fill a block: when both are out of the
    /// host's stage 2, that has no table there any more.
    fn fill_a_block(&self) {
        self.bench.call(Function::VsmmuRemoveStream, [self.host.vsmmu, 1, 0, 0]).unwrap();
        self.bench.attach(0, 1, self.guest).unwrap();
    }

    /// Takes away the tables that are kept for top ups: as many top ups as there can be while nothing can be allocated.
    fn use_up_what_is_kept(&self) {
        self.bench.machine().failing_allocation = Some((0, true));
        let mut pages = [1, 7, 9, 10, 11].into_iter().map(|block| SCRATCH + block * BLOCK);
        let refused =
            pages.find_map(|page| self.bench.call(Function::PoolTopUp, [page, self.unit, 0, 0]).err());
        self.bench.machine().failing_allocation = None;
        assert!(refused.is_none_or(|status| status == Status::NoMemory), "{refused:?}");
    }

    /// Empties the pool: by new domains, whose roots may be large, and then by tables for one page at address after address of one of them.
    pub fn empty_the_pool(&self) {
        for _ in 0..100 {
            let _ = self.bench.domain(self.guest, 0);
        }
        // What a table of leaves covers.
        let table = self.unit * self.unit / 8;
        let page = |n: u64| SCRATCH + 8 * BLOCK + n * self.unit % BLOCK;
        let mut places = (1..).map(|n| [self.spare_domain, n * table, page(n), self.unit]);
        let refused = places.find_map(|place| self.bench.call(Function::DomainMap, place).err());
        assert_eq!(refused, Some(Status::NoMemory));
    }

    /// Adds half a block that nothing else uses to the pool.
    pub fn fill_the_pool(&self) {
        self.bench.whole(Function::PoolTopUp, SCRATCH + 10 * BLOCK + BLOCK / 2, BLOCK / 2, 0).unwrap();
    }

    /// Makes a call.
    pub fn call(&self, function: Function, arguments: [u64; 4]) -> Result<[u64; 4], (Status, u64)> {
        self.bench.call_detail(function, arguments)
    }
}

const ATTACH: &[Call] = &[
    ("the host's domain, in a new span", |_| Some([0, 0x77, 0, 0])),
    ("the host's domain", |w| Some([0, w.stream(0, 1), 0, 0])),
    ("a guest's memory", |w| w.idle([1, w.stream(1, 0), w.guest, 0])),
    ("a guest's domain", |w| w.idle([1, w.stream(1, 1), w.domain, 0])),
    ("a nested domain", |w| Some([0, w.stream(0, 1), w.nested[0], 0])),
    ("a guest's nested domain", |w| w.idle([1, w.stream(1, 1), w.nested[1], 0])),
    ("instead of a nested domain", |w| w.busy([1, w.stream(1, 0), w.guest, attach::REPLACE])),
    ("a nested domain instead", |w| w.busy([1, w.stream(1, 1), w.nested[1], attach::REPLACE])),
    ("within a vSMMU", |w| w.busy([1, w.stream(1, 0), w.spare_nested, attach::REPLACE])),
];

const DETACH: &[Call] = &[
    ("from a nested domain", |w| w.busy([0, w.stream(0, 0), 0, 0])),
    ("from a guest's nested domain", |w| w.busy([1, w.stream(1, 0), 0, 0])),
    ("from a guest's domain", |w| w.busy([1, w.stream(1, 1), 0, 0])),
    ("from a guest that has a whole block of BARs", |w| {
        w.busy([0; 4])?;
        w.fill_a_block();
        Some([0, w.stream(0, 1), 0, 0])
    }),
];

const DONATE: &[Call] = &[
    ("a page", |w| Some([SCRATCH + 6 * BLOCK + 0x3_0000, w.unit, w.guest, 0])),
    ("a page beside others", |w| Some([SCRATCH + 4 * BLOCK + 2 * w.unit, w.unit, w.guest, 0])),
    ("a block", |w| Some([SCRATCH + 6 * BLOCK, BLOCK, w.guest, 0])),
    ("the end of a block", |w| Some([SCRATCH + 7 * BLOCK - 0x2_0000, 0x2_0000, w.guest, 0])),
    ("pages of a stage 1", |w| Some([w.host.stage1.page(1), w.unit, w.guest, 0])),
    ("tables of a stage 1", |w| Some([w.host.stage1.last(), w.unit, w.guest, 0])),
];

/// Calls of a function that succeed. A function without any is a mistake that [`FUNCTIONS`] cannot have.
pub fn calls(function: Function) -> &'static [Call] {
    match function {
        Function::CallUid => &[],
        Function::Version | Function::Features | Function::SmmuCount | Function::PoolState => {
            &[("", |_| Some([0; 4]))]
        }
        Function::Statistics => &[("the first", |_| Some([0; 4])), ("table pages", |_| Some([9, 0, 0, 0]))],
        Function::MemQuery => &[("", |_| Some([SCRATCH, 0, 0, 0]))],
        Function::SmmuDescribe | Function::SmmuTags | Function::SmmuFeatures => {
            &[("", |_| Some([1, 0, 0, 0]))]
        }
        Function::StreamQuery => &[("", |w| Some([1, w.stream(1, 0), 0, 0]))],
        // There is one: the caches were warmed where nothing is mapped.
        Function::EventRead => &[("", |_| Some([0; 4]))],
        Function::DomainQuery => &[("", |w| Some([w.domain, ARENA, 0, 0]))],
        Function::DomainDescribe => &[("", |w| Some([w.domain, 0, 0, 0]))],
        Function::DomainTag => &[("", |w| Some([w.domain, 1, 0, 0]))],
        Function::VsmmuQueryStream => &[("", |w| Some([w.host.vsmmu, 1, 0, 0]))],
        Function::MemShare => &[
            ("a page", |w| Some([SCRATCH + 6 * BLOCK + 0x3_0000, w.unit, w.guest, 0])),
            ("a block", |w| Some([SCRATCH + 6 * BLOCK, BLOCK, w.guest, 0])),
            ("a page with the hypervisor", |w| Some([SCRATCH + 6 * BLOCK, w.unit, 0, 0])),
        ],
        Function::MemUnshare => &[
            ("a page of a block", |w| Some([SCRATCH + 3 * BLOCK + 0x2_0000, w.unit, w.guest, 0])),
            ("a page", |w| Some([SCRATCH + 5 * BLOCK, w.unit, w.guest, 0])),
            ("a page of the hypervisor's", |w| Some([SCRATCH + 5 * BLOCK + 4 * w.unit, w.unit, 0, 0])),
        ],
        Function::MemDonate => DONATE,
        Function::MemReclaim => &[
            ("a page of a block", |w| Some([SCRATCH + 2 * BLOCK + 0x2_0000, w.unit, w.guest, 0])),
            ("a page", |w| Some([SCRATCH + 4 * BLOCK, w.unit, w.guest, 0])),
            ("all pages", |w| Some([SCRATCH + 4 * BLOCK, 2 * w.unit, w.guest, 0])),
        ],
        Function::StreamAttach => ATTACH,
        Function::StreamDetach => DETACH,
        Function::PoolTopUp => &[
            ("a page", |w| Some([SCRATCH + 6 * BLOCK, w.unit, 0, 0])),
            ("a block", |_| Some([SCRATCH + 7 * BLOCK, BLOCK, 0, 0])),
            ("a page, with nothing kept", |w| {
                w.use_up_what_is_kept();
                Some([SCRATCH + 6 * BLOCK, w.unit, 0, 0])
            }),
        ],
        Function::PoolGiveBack => &[("a page", |w| {
            w.bench.whole(Function::PoolTopUp, SCRATCH + 7 * BLOCK, BLOCK, 0).ok()?;
            Some([w.unit, 0, 0, 0])
        })],
        Function::GuestCreate => &[("", |_| Some([0; 4]))],
        Function::GuestDestroy => &[("", |w| Some([w.spare_guest, 0, 0, 0]))],
        Function::GuestTeardown => &[
            ("of much", |w| Some([w.guest, 0, 0, 0])),
            ("of nothing", |w| Some([w.spare_guest, 0, 0, 0])),
            ("of a whole block of BARs", |w| {
                w.busy([0; 4])?;
                w.fill_a_block();
                Some([w.guest, 0, 0, 0])
            }),
        ],
        Function::DomainCreate => &[("", |w| Some([w.guest, 0, 0, 0]))],
        Function::DomainCreateNested => &[("", |w| Some([w.host.vsmmu, BYPASS[0], BYPASS[1], 0]))],
        Function::DomainDestroy => &[
            ("of a guest", |w| Some([w.spare_domain, 0, 0, 0])),
            ("that is nested", |w| Some([w.spare_nested, 0, 0, 0])),
        ],
        Function::DomainMap => &[
            ("a block", |w| Some([w.spare_domain, LARGE, SCRATCH + 2 * BLOCK, BLOCK])),
            ("a page", |w| Some([w.domain, 0x7000_0000, SCRATCH + 4 * BLOCK, w.unit])),
            ("where nothing is", |w| Some([w.spare_domain, 0x7000_0000, SCRATCH + 4 * BLOCK, 2 * w.unit])),
        ],
        Function::DomainUnmap => &[
            ("a page of a stage 1", |w| Some([w.domain, w.theirs.stage1.page(2), w.unit, 0])),
            ("CDs", |w| Some([w.domain, w.theirs.stage1.cds(), w.unit, 0])),
            ("a page of many", |w| Some([w.domain, LARGE + 0x2_0000, w.unit, 0])),
        ],
        Function::VsmmuCreate => &[
            ("on the host's domain", |_| Some([1, 0, 0, 0])),
            ("on a guest's", |w| Some([0, w.domain, 0, 0])),
        ],
        Function::VsmmuDestroy => &[("", |w| Some([w.spare_vsmmu, 0, 0, 0]))],
        Function::VsmmuAddStream => &[
            ("a stream", |w| Some([w.theirs.vsmmu, 77, 0x40, 0])),
            ("one more than fit into a page", |w| {
                // Two are there, in the map of the SMMU and in that of the vSMMU.
                for n in 2..256 {
                    w.bench
                        .call(Function::VsmmuAddStream, [w.host.vsmmu, 0x1000 + n, 0x1000 + n, 0])
                        .unwrap();
                }
                Some([w.host.vsmmu, 77, 0x40, 0])
            }),
        ],
        Function::VsmmuRemoveStream => &[("", |w| Some([w.host.vsmmu, 1, 0, 0]))],
        Function::VsmmuInvalidate => &[("", |w| Some([w.theirs.vsmmu, COMMANDS, w.write_commands(), 0]))],
    }
}
