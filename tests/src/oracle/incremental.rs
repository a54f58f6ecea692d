//! The oracle a little at a time, for those who make thousands of calls a second: what a call has changed, or may have changed and taken back, is
//! looked at after it, and everything now and then and at the end.
//!
//! Who owns each page is counted from the calls alone. So an error that changed something is seen, and so is a success that did something else.
//! Of the steps whose number is a power of two the hypervisor's own digest says whether an error has changed anything at all.

use super::caches::check_vmids;
use super::{HYPERVISOR, Owners, View, check_with};
use crate::bench::{Bench, IMAGE, POOL, POOL_BYTES};
use crate::model::stage2::walk;
use abi::{Function, Status};
use host_shim::hostile::{Action, Outcome, oracle};
use smmuv3::address::PhysAddr;

/// Steps between two looks at everything.
const EVERYTHING_EVERY: u32 = 1000;

/// What calls have made of the pages, and what is known of the machine since it was last looked at.
#[derive(Debug)]
pub struct Incremental {
    owners: Owners,
    /// [`PhysMemory::clock`](crate::model::memory::PhysMemory::clock) when everything was looked at.
    seen: u64,
    /// The same before the step that is under way.
    before: u64,
    /// What the hypervisor had then, if it was asked.
    digest: Option<u64>,
    /// Since everything was looked at.
    steps: u32,
    /// How often everything was looked at.
    pub looks: u64,
}

impl Incremental {
    /// Of a machine whose host has done nothing yet.
    pub fn new(bench: &Bench) -> Self {
        let own = |page: u64| (IMAGE..POOL + POOL_BYTES).contains(&page);
        let pages = (bench.ram.start..bench.ram.end).step_by(4096);
        let owners = Owners(pages.map(|page| (if own(page) { HYPERVISOR } else { 0 }, 0)).collect());
        Self { owners, seen: 0, before: 0, digest: None, steps: 0, looks: 0 }
    }

    /// A step begins.
    pub fn begin(&mut self, bench: &Bench) {
        self.before = bench.machine().memory.clock();
        // It takes as long as some tens of calls. The inputs of libFuzzer are short.
        let is_asked = self.steps.is_power_of_two();
        self.digest = is_asked.then(|| bench.hypervisor.oracle().digest());
    }

    /// A step has ended.
    ///
    /// # Errors
    /// What does not agree, in words.
    pub fn end(&mut self, bench: &Bench, action: &Action, outcome: &Outcome) -> Result<(), String> {
        self.steps += 1;
        if let (Some(digest), Outcome::Answered([code, ..])) = (self.digest, outcome)
            && oracle::changes_nothing(*code)
            && bench.hypervisor.oracle().digest() != digest
        {
            let (function, status) = (action.function(), Status::from_register(*code));
            return Err(format!("{function:?} answers {status:?}, and has changed something"));
        }
        if let (Action::Call { arguments, .. }, Outcome::Answered(answer)) = (action, outcome)
            && let Some(function) = action.function()
        {
            self.after_call(bench, function, *arguments, *answer)?;
        }
        if self.steps == EVERYTHING_EVERY {
            return self.look_at_everything(bench);
        }
        self.ask_hypervisor(bench, action)?;
        if let Some(text) = bench.machine().violations.all().first() {
            return Err(format!("violation: {text}"));
        }
        (0..bench.devices.len()).try_for_each(|index| {
            let needless =
                bench.machine().smmus[index].needless.first().map(|text| format!("needless {text}"));
            let checked = needless.map_or_else(|| check_vmids(bench, index), Err);
            checked.map_err(|text| format!("SMMU {index}: {text}"))
        })
    }

    /// All steps are done.
    ///
    /// # Errors
    /// As [`Incremental::end`].
    pub fn finish(&mut self, bench: &Bench) -> Result<(), String> {
        if bench.machine().memory.clock() == self.seen { Ok(()) } else { self.look_at_everything(bench) }
    }

    /// What the hypervisor's own oracle finds in what the step was about: the page, the stream's STE, and the pool's counts.
    fn ask_hypervisor(&self, bench: &Bench, action: &Action) -> Result<(), String> {
        let (page, smmu, stream) = oracle::concerns(action, u64::from(self.steps));
        let devices = bench.devices.get(smmu);
        let stream = stream.or_else(|| {
            let devices = devices?;
            devices.get(self.steps as usize % devices.len()).map(|device| device.stream)
        });
        let checked = bench.hypervisor.oracle().check_step(page.map(PhysAddr), smmu, stream.unwrap_or(0));
        checked.map_err(|finding| format!("the hypervisor's own oracle: {finding}"))
    }

    fn look_at_everything(&mut self, bench: &Bench) -> Result<(), String> {
        self.steps = 0;
        self.looks += 1;
        let said = Owners::read(bench)?;
        check_with(bench, &said)?;
        let pages = (bench.ram.start..).step_by(4096).zip(said.0.iter().zip(&self.owners.0));
        for (page, (said, counted)) in pages {
            if said != counted {
                return Err(format!("page {page:#x} is {said:x?}'s, and calls made it {counted:x?}'s"));
            }
        }
        self.seen = bench.machine().memory.clock();
        Ok(())
    }

    fn after_call(
        &mut self,
        bench: &Bench,
        function: Function,
        [x1, x2, x3, _]: [u64; 4],
        [x0, r1, ..]: [u64; 5],
    ) -> Result<(), String> {
        let success = x0 == Status::Success.to_register();
        if function == Function::GuestTeardown {
            return self.after_teardown(bench, x1);
        }
        if !success {
            // What was stored may have been taken back: then all must be as the calls before made it.
            let changed = bench.machine().memory.clock() != self.before;
            return if changed { self.look_around(bench, x1 & !0xfff, x2 & !0xfff) } else { Ok(()) };
        }
        let (start, size, from, to) = match function {
            Function::MemShare => (x1, r1, (0, 0), (0, other(x3))),
            Function::MemUnshare => (x1, r1, (0, other(x3)), (0, 0)),
            Function::MemDonate => (x1, r1, (0, 0), (x3, 0)),
            Function::MemReclaim => (x1, r1, (x3, 0), (0, 0)),
            Function::PoolTopUp => (x1, r1, (0, 0), (HYPERVISOR, 0)),
            Function::PoolGiveBack => (r1, x1, (HYPERVISOR, 0), (0, 0)),
            _ => return Ok(()),
        };
        if size == 0
            || size > 2 << 20
            || matches!(function, Function::MemShare | Function::MemDonate) && size > x2
        {
            return Err(format!("{function:?} of {x2:#x} bytes did {size:#x}"));
        }
        for page in (start..start + size).step_by(4096) {
            let known = self.owners.of_mut(page).ok_or_else(|| format!("{page:#x} is no page"))?;
            if *known != from {
                return Err(format!("{function:?} of {page:#x}, which is {known:x?}'s"));
            }
            *known = to;
        }
        self.look_around(bench, start, size)
    }

    /// Looks at pages of a range, and at those beside it.
    fn look_around(&self, bench: &Bench, start: u64, size: u64) -> Result<(), String> {
        let unit = bench.unit();
        let view = View::of(bench, &self.owners);
        let (middle, end) = (start.wrapping_add(size / 2), start.wrapping_add(size));
        [start, middle & !(unit - 1), end.wrapping_sub(unit), start.wrapping_sub(unit), end]
            .into_iter()
            .filter(|page| bench.ram.contains(*page))
            .try_for_each(|page| look_at_page(&view, page))
    }

    /// A step of a teardown gives pages back, and does nothing else to any.
    fn after_teardown(&mut self, bench: &Bench, guest: u64) -> Result<(), String> {
        let unit = bench.unit();
        let theirs = |known: &(u64, u64)| guest != 0 && (*known == (guest, 0) || *known == (0, guest));
        let pages = (bench.ram.start..).step_by(4096).zip(&mut self.owners.0);
        for (page, known) in pages.filter(|(_, known)| theirs(known)) {
            let said = Owners::ask(bench, page & !(unit - 1))?;
            if said == (0, 0) {
                *known = said;
            } else if said != *known {
                return Err(format!("{page:#x} of {known:x?} is {said:x?}'s after a teardown's step"));
            }
        }
        Ok(())
    }
}

/// What MEM_QUERY, the CPUs' stage 2 and the tables of memory domains say of a page.
fn look_at_page(view: &View, page: u64) -> Result<(), String> {
    let bench = view.bench;
    let known = view.owners.of(page);
    let said = Owners::ask(bench, page)?;
    if Some(said) != known {
        return Err(format!("page {page:#x} is {said:x?}'s, and calls made it {known:x?}'s"));
    }
    let mut machine = bench.machine();
    let maps = |machine: &crate::model::Machine, config| {
        let leaf = walk(&machine.memory, &config, page, None, &mut Vec::new(), &mut Vec::new());
        leaf.ok().filter(|leaf| leaf.readable() && leaf.writable()).map(|leaf| leaf.translate(page))
    };
    let Some(stage2) = machine.cpu.stage2 else { return Err("the CPUs have no stage 2".into()) };
    if maps(&machine, stage2) != view.maps(0, page) {
        return Err(format!("the CPUs' stage 2 does not say of {page:#x} that it is {known:x?}'s"));
    }
    for smmu in 0..bench.devices.len() {
        for stream in bench.devices[smmu].map(|device| device.stream) {
            let Some(standing) = view.standing(smmu, stream) else { continue };
            // Others map pages at addresses of their own.
            if view.record.domain(standing.stage2).is_some() {
                continue;
            }
            let decoded = machine.decoded_in_memory(smmu, stream);
            let Some(config) = decoded.and_then(|decoded| decoded.meaning.stage2()) else { continue };
            if maps(&machine, config) != view.maps(standing.stage2, page) {
                let domain = standing.stage2;
                return Err(format!(
                    "the table of domain {domain:#x} is wrong about {page:#x} of {known:x?}"
                ));
            }
        }
    }
    Ok(())
}

/// With whom MEM_QUERY says that a page is shared, whose recipient was this.
const fn other(recipient: u64) -> u64 {
    if recipient == 0 { HYPERVISOR } else { recipient }
}
