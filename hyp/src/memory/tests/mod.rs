//! Ownership against a machine in memory.
//!
//! Invariants: a unit is in the tables of its owner, and of the one it is shared with, and in no other; a call that
//! fails leaves owners and translations as they were; nothing is mapped for a new owner before every cache has forgotten
//! the old one and the memory is wiped.

#![cfg_attr(not(test), allow(dead_code, unused_imports))]

extern crate std;

mod bounds;
mod hold;
pub(crate) mod platform;

use abi::{GuestHandle, Recipient, Status};
use smmuv3::address::{PhysAddr, PhysRange};
use smmuv3::memory::Memory;
use smmuv3::pgtable::{Blocks, Granule, PageTable};

use super::frame::{Owner, PageState};
use super::pool::Pool;
use super::transition::{Mapping, Reserves, Tables};
use super::*;
use crate::devicetree::Machine;
use platform::{DOORBELL, Did, POOL, POOL_BYTES, RAM, RAM_BYTES, SMMU, TestPlatform, machine, range};

const PAGE: u64 = 4096;
const BLOCK: u64 = 2 << 20;

type Cx<'a> = Context<'a, TestPlatform, TestPlatform>;

/// Takes all pages of the pool.
fn drain(cx: &Cx<'_>) -> std::vec::Vec<PhysAddr> {
    core::iter::from_fn(|| cx.pool.take(cx.platform, 0).ok()).collect()
}

/// Gives them back.
fn refill(cx: &Cx<'_>, taken: std::vec::Vec<PhysAddr>) {
    taken.into_iter().for_each(|page| cx.pool.give(cx.platform, page, 0));
}

struct World {
    p: TestPlatform,
    pool: Pool,
    ownership: Ownership,
}

impl World {
    fn new(granule: Granule, blocks: Blocks) -> Self {
        Self::with_devices(granule, blocks, |_| {})
    }

    fn with_devices(granule: Granule, blocks: Blocks, add: impl FnOnce(&mut Machine)) -> Self {
        let (p, pool, mut ownership) = (TestPlatform::default(), Pool::new(), Ownership::new());
        let mut machine = machine(&p);
        add(&mut machine);
        let own = [range(POOL, POOL_BYTES), range(0x080a_0000, PAGE)];
        let layout = Layout::new(&machine, granule, own.into_iter()).unwrap();
        let table_bytes = layout.frame_table_bytes();
        assert!(pool.add_boot(&p, range(POOL + table_bytes, POOL_BYTES - table_bytes)));
        layout.build(&mut ownership, &p, &pool, PhysAddr(POOL), 44, 44, blocks).unwrap();
        p.did();
        Self { p, pool, ownership }
    }

    fn with<T>(&mut self, f: impl FnOnce(&mut Ownership, &Cx<'_>) -> T) -> T {
        let cx = Context { platform: &self.p, pool: &self.pool, caches: &self.p };
        f(&mut self.ownership, &cx)
    }

    fn change(&mut self, change: Change, range: PhysRange) -> Result<(), Failure> {
        let run = self.run(range);
        self.with(|ownership, cx| ownership.change(cx, change, &run))
    }

    fn run(&self, range: PhysRange) -> FrameRun {
        self.ownership.frames.run(range).unwrap()
    }

    fn top_up(&mut self, range: PhysRange) -> Result<(), Failure> {
        let run = self.run(range);
        self.with(|ownership, cx| ownership.top_up(cx, &run))
    }

    fn step(&self, start: u64, size_bytes: u64) -> Result<PhysRange, Status> {
        self.ownership.step(start, size_bytes).map(|run| run.range())
    }

    fn guest(&mut self) -> GuestHandle {
        self.with(|ownership, cx| ownership.create_guest(cx)).unwrap()
    }

    fn maps(&self, table: &PageTable, address: u64) -> bool {
        let leaf = table.lookup(&self.p, address);
        assert!(leaf.is_none_or(|leaf| leaf.output.0 == address), "not the identity");
        leaf.is_some()
    }

    /// Whether the host's CPUs, the host's domain and the guest's domain reach an address.
    fn reach(&self, guest: GuestHandle, address: u64) -> (bool, bool, bool) {
        let cpu = self.maps(&self.ownership.cpu, address);
        let io = self.maps(&self.ownership.io, address);
        (cpu, io, self.maps(self.ownership.guest_table(guest).unwrap(), address))
    }

    fn owner(&self, address: u64) -> (Owner, Option<Recipient>) {
        self.ownership.query(&self.p, PhysAddr(address)).unwrap()
    }
}

fn worlds() -> [World; 3] {
    [
        World::new(Granule::Size4K, Blocks::InPlace),
        World::new(Granule::Size4K, Blocks::Never),
        World::new(Granule::Size16K, Blocks::InPlace),
    ]
}

const HOST: (bool, bool, bool) = (true, true, false);
const GUEST: (bool, bool, bool) = (false, false, true);
const SHARED: (bool, bool, bool) = (true, true, true);
const NONE: (bool, bool, bool) = (false, false, false);

#[test]
fn the_host_gets_ram_and_devices_but_not_what_is_kept() {
    for world in worlds() {
        let cpu = |address| world.maps(&world.ownership.cpu, address);
        let io = |address| world.maps(&world.ownership.io, address);
        for address in [RAM, POOL - PAGE, POOL + POOL_BYTES, RAM + RAM_BYTES - PAGE] {
            assert!(cpu(address) && io(address), "{address:#x}");
        }
        for address in [POOL, POOL + POOL_BYTES - 1, SMMU, SMMU + 0x1_ffff, 0x0902_0000, 0x0a00_0000] {
            assert!(!cpu(address) && !io(address), "{address:#x}");
        }
        // Device space: the UART, the Distributor, SGI_base, nothing in particular; not the ITS, not RD_base.
        for address in [0, 0x0900_0000, 0x0800_0000, 0x080b_0000, 0x0a00_1000, 0xffff_f000] {
            assert!(cpu(address) && !io(address), "{address:#x}");
        }
        assert!(!cpu(0x0808_0000) && !cpu(0x080a_0000) && cpu(0x080a_1000));
        assert!(io(DOORBELL) && !cpu(DOORBELL) && !io(DOORBELL + 0x1_0000) && !io(DOORBELL - 0x1_0000));
        assert_eq!(world.owner(RAM), (Owner::Host, None));
        assert_eq!(world.owner(POOL), (Owner::Hypervisor, None));
        assert_eq!(world.ownership.query(&world.p, PhysAddr(SMMU)), Err(Status::NotRam));
    }
}

#[test]
fn a_donation_takes_maps_and_wipes_in_this_order_and_reclaim_joins_again() {
    for mut world in worlds() {
        let guest = world.guest();
        let (tables, free) = (world.ownership.table_pages(), world.pool.state().free);
        let unit = world.ownership.unit_bytes();
        let page = range(RAM + 5 * BLOCK + 3 * unit, unit);
        let start = page.start().0;
        world.p.write_u64(page.start(), 0x5ec2e7);
        world.p.did();

        world.change(Change::Donate(guest), page).unwrap();
        assert_eq!(world.reach(guest, start), GUEST);
        assert_eq!(world.reach(guest, start - 1), HOST);
        assert_eq!(world.reach(guest, start + unit), HOST);
        assert_eq!(world.owner(start), (Owner::Guest(guest), None));
        assert_eq!(world.p.read_u64(page.start()), 0);
        let did = world.p.did();
        let at = |wanted: Did| did.iter().rposition(|did| *did == wanted);
        let forget = |did: &Did| matches!(did, Did::Forget(crate::iommu::HOST, first, last) if *first <= start && start < *last);
        let forgotten = did.iter().position(forget);
        assert!(at(Did::CpuTlbi(page)).is_some());
        assert!(at(Did::CpuTlbi(page)) < forgotten && forgotten < at(Did::Wipe(page)), "{did:?}");

        world.change(Change::Reclaim(guest), page).unwrap();
        assert_eq!(world.reach(guest, start), HOST);
        assert_eq!(world.owner(start), (Owner::Host, None));
        let did = world.p.did();
        let forgotten = did.iter().position(|did| matches!(did, Did::Forget(DomainIndex(1..=64), ..)));
        assert!(forgotten.is_some() && forgotten < did.iter().position(|did| *did == Did::Wipe(page)));
        assert_eq!((world.ownership.table_pages(), world.pool.state().free), (tables, free), "joined");
    }
}

#[test]
fn ranges_cross_blocks_in_bounded_steps() {
    let mut world = World::new(Granule::Size4K, Blocks::InPlace);
    let guest = world.guest();
    let (start, size) = (RAM + BLOCK - PAGE, 2 * BLOCK + 2 * PAGE);
    let mut at = start;
    let mut steps = std::vec::Vec::new();
    while at < start + size {
        let step = world.step(at, start + size - at).unwrap();
        world.change(Change::Donate(guest), step).unwrap();
        steps.push(step.size_bytes());
        at += step.size_bytes();
    }
    // To the first multiple of a step, one step, and what is left is another.
    assert_eq!(steps, [PAGE, BLOCK, BLOCK, PAGE]);
    for address in [start, start + PAGE, start + BLOCK, start + size - 1] {
        assert_eq!(world.reach(guest, address), GUEST);
    }
    assert_eq!((world.reach(guest, start - 1), world.reach(guest, start + size)), (HOST, HOST));
}

#[test]
fn shares_add_a_mapping_and_unshares_take_it_away() {
    for mut world in worlds() {
        let guest = world.guest();
        let unit = world.ownership.unit_bytes();
        let two = range(RAM + unit, 2 * unit);
        let with = Recipient::Guest(guest);
        world.p.write_u64(two.start(), 7);
        world.change(Change::Share(with), two).unwrap();
        assert_eq!(world.reach(guest, two.start().0), SHARED);
        assert_eq!(world.owner(two.start().0), (Owner::Host, Some(with)));
        for change in [Change::Donate(guest), Change::Share(with), Change::TopUp, Change::Reclaim(guest)] {
            assert_eq!(world.change(change, two), Err(Status::WrongState.into()));
        }
        let refused = world.with(|ownership, cx| ownership.destroy_guest(cx, guest));
        assert_eq!(refused, Err(Status::Busy));
        world.change(Change::Unshare(with), two).unwrap();
        assert_eq!(world.reach(guest, two.start().0), HOST);
        assert_eq!(world.p.read_u64(two.start()), 7, "a share is not wiped");

        world.change(Change::Share(Recipient::Hypervisor), two).unwrap();
        assert_eq!(world.change(Change::Unshare(with), two), Err(Status::WrongState.into()));
        world.change(Change::Unshare(Recipient::Hypervisor), two).unwrap();
        world.with(|ownership, cx| ownership.destroy_guest(cx, guest)).unwrap();
        assert_eq!(world.change(Change::Donate(guest), two), Err(Status::UnknownGuest.into()));
    }
}

#[test]
fn a_refused_change_changes_nothing() {
    let mut world = World::new(Granule::Size4K, Blocks::InPlace);
    let (guest, other) = (world.guest(), world.guest());
    world.change(Change::Donate(guest), range(RAM + BLOCK + PAGE, PAGE)).unwrap();
    let before = world.p.words();
    world.p.did();
    let whole = range(RAM + BLOCK, BLOCK);
    for change in [Change::Donate(other), Change::Reclaim(guest), Change::TopUp] {
        assert_eq!(world.change(change, whole), Err(Status::WrongState.into()));
    }
    let page = range(RAM + BLOCK + PAGE, PAGE);
    assert_eq!(world.change(Change::Reclaim(other), page), Err(Status::WrongState.into()));
    assert_eq!(world.change(Change::Donate(other), range(POOL, PAGE)), Err(Status::WrongState.into()));
    assert_eq!(world.step(RAM + 1, PAGE), Err(Status::Unaligned));
    assert_eq!(world.step(RAM, 0), Err(Status::Unaligned));
    assert_eq!(world.step(u64::MAX - PAGE + 1, 2 * PAGE), Err(Status::Unaligned));
    assert_eq!(world.step(RAM + RAM_BYTES - PAGE, 2 * PAGE), Err(Status::NotRam));
    assert_eq!(world.step(SMMU, PAGE), Err(Status::NotRam));
    assert!(world.p.did().is_empty());
    assert_eq!(world.p.words(), before);
}

#[test]
fn without_pages_the_answer_is_how_many_are_missing() {
    for mut world in worlds() {
        let guest = world.guest();
        let mut taken = std::vec::Vec::new();
        while let Ok(run) = world.pool.take(&world.p, 0) {
            taken.push(run);
        }
        let page = range(RAM + 2 * BLOCK, world.ownership.unit_bytes());
        let before = world.p.words();
        let failure = world.change(Change::Donate(guest), page).unwrap_err();
        assert_eq!(failure.status, Status::NoMemory);
        assert!(failure.detail > 0);
        assert_eq!(world.p.words(), before);
        assert_eq!(world.reach(guest, page.start().0), HOST);
        // With one page less than that it fails still, with all of them it does not (a table of 16 KiB is one run).
        if world.ownership.unit_bytes() == PAGE {
            for _ in 1..failure.detail {
                world.pool.give(&world.p, taken.pop().unwrap(), 0);
            }
            let again = world.change(Change::Donate(guest), page).unwrap_err();
            assert_eq!((again.status, again.detail), (Status::NoMemory, 1));
            world.pool.give(&world.p, taken.pop().unwrap(), 0);
            world.change(Change::Donate(guest), page).unwrap();
            assert_eq!(world.pool.state().free, 0);
        }
    }
}

#[test]
fn a_failed_invalidation_restores_the_old_mapping() {
    for mut world in worlds() {
        let guest = world.guest();
        let unit = world.ownership.unit_bytes();
        for target in [range(RAM + 3 * BLOCK + unit, unit), range(RAM + 4 * BLOCK, BLOCK)] {
            let start = target.start().0;
            world.p.write_u64(target.start(), 9);
            // Once for the change alone, twice for the second try of the freed tables too.
            for failures in [1, 3] {
                world.p.fail_next(failures);
                assert_eq!(world.change(Change::Donate(guest), target), Err(Status::Hardware.into()));
                world.p.fail_next(0);
                assert_eq!(world.reach(guest, start), HOST);
                assert_eq!(world.reach(guest, target.last().0), HOST);
                assert_eq!(world.owner(start), (Owner::Host, None));
                assert_eq!(world.p.read_u64(target.start()), 9, "not wiped");
            }
            world.change(Change::Donate(guest), target).unwrap();
            world.p.fail_next(1);
            assert_eq!(world.change(Change::Reclaim(guest), target), Err(Status::Hardware.into()));
            assert_eq!(world.reach(guest, start), GUEST);
            world.change(Change::Reclaim(guest), target).unwrap();
            assert_eq!(world.reach(guest, start), HOST);
        }
    }
}

#[test]
fn what_cannot_be_restored_is_quarantined_and_counted() {
    // The unmapping empties a table, which the failed SMMU may still walk, and the pool has no other to put there.
    let mut world = World::new(Granule::Size4K, Blocks::Never);
    let guest = world.guest();
    let block = range(RAM + 4 * BLOCK, BLOCK);
    while world.pool.take_kept(&world.p, 0).is_ok() {}
    world.p.fail_next(3);
    assert_eq!(world.change(Change::TopUp, block), Err(Status::Hardware.into()));
    world.p.fail_next(0);
    assert_eq!(world.reach(guest, block.start().0), NONE);
    assert_eq!(world.reach(guest, block.last().0), NONE);
    assert_eq!(world.owner(block.start().0), (Owner::Nobody, None));
    assert_eq!(world.ownership.quarantined_pages(), 512 + 1, "the pages and the table");
    assert_eq!(world.pool.state().free, 0);
    for change in [Change::Donate(guest), Change::Reclaim(guest), Change::GiveBack] {
        assert_eq!(world.change(change, block), Err(Status::WrongState.into()));
    }
    // If the SMMU recovers the table serves again.
    let block = range(RAM + 5 * BLOCK, BLOCK);
    world.p.fail_next(1);
    assert_eq!(world.change(Change::TopUp, block), Err(Status::Hardware.into()));
    assert_eq!(world.reach(guest, block.start().0), HOST);
    assert_eq!(world.owner(block.start().0), (Owner::Host, None));
}

/// A world where a page is shared with a guest that has no other of its block, and the share could neither be ended nor restored: its table was
/// emptied and lost, and the pool has no other. What was taken from the pool.
fn with_half_ended_share(blocks: Blocks) -> (World, GuestHandle, PhysRange, std::vec::Vec<PhysRange>) {
    let mut world = World::new(Granule::Size4K, blocks);
    let guest = world.guest();
    let page = range(RAM + 5 * BLOCK - PAGE, PAGE);
    let with = Recipient::Guest(guest);
    world.change(Change::Share(with), page).unwrap();
    // The tables above have something to lead to.
    world.change(Change::Share(with), range(RAM + 7 * BLOCK, PAGE)).unwrap();
    let mut taken = std::vec::Vec::new();
    while let Ok(run) = world.pool.take_kept(&world.p, 0) {
        taken.push(range(run.0, PAGE));
    }
    world.p.fail_next(3);
    assert_eq!(world.change(Change::Unshare(with), page), Err(Status::Hardware.into()));
    world.p.fail_next(0);
    (world, guest, page, taken)
}

#[test]
fn a_share_that_cannot_be_ended_takes_the_page_from_the_host_too() {
    // The host's blocks cannot be split without tables either, those of its CPUs or those of its devices: then all stays as it is, and nothing of
    // the host's is lost.
    for blocks in [Blocks::InPlace, Blocks::Never] {
        let (mut world, guest, page, _) = with_half_ended_share(blocks);
        assert_eq!(world.owner(page.start().0), (Owner::Host, Some(Recipient::Guest(guest))), "{blocks:?}");
        assert_eq!(world.reach(guest, page.start().0), HOST, "{blocks:?}");
        assert_eq!(world.change(Change::Donate(guest), page), Err(Status::WrongState.into()));
    }
}

#[test]
fn a_share_that_could_not_be_ended_is_forgotten_with_whatever_range_it_ends_in() {
    let (mut world, guest, page, taken) = with_half_ended_share(Blocks::InPlace);
    for run in taken {
        world.pool.give(&world.p, run.start(), 0);
    }
    let with = Recipient::Guest(guest);
    let next = range(page.start().0 + PAGE, PAGE);
    world.change(Change::Share(with), next).unwrap();
    world.p.did();
    let both = range(page.start().0, 2 * PAGE);
    world.change(Change::Unshare(with), both).unwrap();
    let covers = |did: &Did| {
        matches!(did, Did::Forget(domain, first, last)
            if *domain != crate::iommu::HOST && *first <= both.start().0 && both.last().0 <= *last)
    };
    let did = world.p.did();
    assert!(did.iter().any(covers), "{did:?}");
}

#[test]
fn the_pool_takes_pages_and_gives_them_back_wiped() {
    for mut world in worlds() {
        let guest = world.guest();
        let before = world.pool.state();
        let block = range(RAM + 6 * BLOCK, BLOCK);
        world.top_up(block).unwrap();
        assert_eq!(world.reach(guest, block.start().0), NONE);
        assert_eq!(world.pool.state().donated, 512);
        assert_eq!(world.owner(block.start().0), (Owner::Hypervisor, None));
        let back = world.with(|ownership, cx| ownership.give_back(cx, 9)).unwrap();
        assert_eq!(back, block.start());
        assert_eq!(world.reach(guest, block.start().0), HOST);
        assert_eq!((world.pool.state().donated, world.pool.state().total), (0, before.total));
        let empty = world.with(|ownership, cx| ownership.give_back(cx, 2));
        assert_eq!(empty, Err(Status::Empty.into()));
    }
}

#[test]
fn an_empty_pool_can_be_topped_up() {
    for mut world in worlds() {
        let guest = world.guest();
        let (unit, before) = (world.ownership.unit_bytes(), world.pool.state());
        let per_unit = unit / PAGE;
        let target = range(RAM + 2 * BLOCK, unit);
        let taken = world.with(|_, cx| drain(cx));
        let (kept, words) = (world.pool.kept(), world.p.words());
        let refused = world.change(Change::Donate(guest), target).unwrap_err();
        assert!(refused.status == Status::NoMemory && refused.detail > 0);
        assert_eq!((world.pool.kept(), world.p.words()), (kept, words));

        // Of a block that no other page is of: what is kept splits it, and is filled up first.
        let bank = RAM + 8 * BLOCK;
        world.top_up(range(bank, unit)).unwrap();
        assert_eq!(world.reach(guest, bank), NONE);
        let state = world.pool.state();
        assert!(world.pool.kept() + state.free <= kept + per_unit && state.donated == per_unit);
        let mut given = 1;
        while let Err(failure) = world.change(Change::Donate(guest), target) {
            assert_eq!(failure.status, Status::NoMemory);
            let rest = (failure.detail * PAGE).next_multiple_of(unit);
            world.top_up(range(bank + given * unit, rest)).unwrap();
            given += rest / unit;
            assert!(given <= 8, "each refusal told too little");
        }
        assert_eq!(world.pool.kept(), kept, "filled before others get pages");
        assert_eq!(world.reach(guest, target.start().0), GUEST);

        // All that the host gave can come back, and what is kept is the hypervisor's own again.
        world.change(Change::Reclaim(guest), target).unwrap();
        world.with(|_, cx| refill(cx, taken));
        let order = per_unit.ilog2() as u8;
        for _ in 0..given {
            world.with(|ownership, cx| ownership.give_back(cx, order)).unwrap();
        }
        let empty = world.with(|ownership, cx| ownership.give_back(cx, order));
        assert_eq!(empty, Err(Status::Empty.into()));
        assert_eq!((world.pool.state(), world.pool.kept()), (before, kept));
    }
}

#[test]
fn what_is_kept_lasts_for_the_worst_step() {
    // Over the end of a block, with every block in one piece, and an SMMU that fails.
    let mut world = World::new(Granule::Size4K, Blocks::InPlace);
    let kept = world.pool.kept();
    while world.pool.take(&world.p, 0).is_ok() {}
    let across = range(RAM + 9 * BLOCK - PAGE, BLOCK);
    world.p.fail_next(1);
    assert_eq!(world.top_up(across), Err(Status::Hardware.into()));
    world.p.fail_next(0);
    assert_eq!(world.owner(across.start().0), (Owner::Host, None), "nothing is lost");
    assert!(world.ownership.host_reaches(&world.p, across.last()));
    world.top_up(across).unwrap();
    assert_eq!(world.pool.kept(), kept);
}

#[test]
fn the_host_can_give_only_so_many_pages() {
    let mut world = World::new(Granule::Size4K, Blocks::InPlace);
    for index in 0..16 {
        world.top_up(range(RAM + index * BLOCK, BLOCK)).unwrap();
    }
    assert_eq!(world.pool.state().donated, 16 * 512);
    assert!(world.pool.has_room_for((16_384 - 16 * 512) * PAGE));
    assert!(!world.pool.has_room_for((16_385 - 16 * 512) * PAGE));
    assert!(!world.pool.has_room_for(u64::MAX));
}

#[test]
fn free_runs_are_found_whatever_their_order_was() {
    let mut world = World::new(Granule::Size4K, Blocks::InPlace);
    let (p, pool) = (&world.p, &world.pool);
    let all = pool.state().free;
    let mut runs = std::vec::Vec::new();
    while let Ok(run) = pool.take(p, 2) {
        runs.push((run, 2));
    }
    while let Ok(run) = pool.take(p, 0) {
        runs.push((run, 0));
    }
    assert_eq!((pool.state().free, pool.take(p, 0)), (0, Err(pool::OutOfPages { missing: 1 })));
    assert_eq!(pool.take(p, 3), Err(pool::OutOfPages { missing: 8 }));
    for (run, order) in runs {
        pool.give(p, run, order);
    }
    assert_eq!(pool.state().free, all);
    for _ in 0..all {
        pool.take(p, 0).unwrap();
    }
    world.ownership.begin_end();
    assert!(world.ownership.is_ending());
}

#[test]
fn the_end_wipes_guests_and_refuses_changes() {
    let mut world = World::new(Granule::Size4K, Blocks::InPlace);
    let guest = world.guest();
    let (block, page) = (range(RAM + BLOCK, BLOCK), range(RAM + 9 * BLOCK + 7 * PAGE, PAGE));
    world.change(Change::Donate(guest), block).unwrap();
    world.change(Change::Donate(guest), page).unwrap();
    for address in [block.start(), PhysAddr(block.last().0 - 7), page.start()] {
        world.p.write_u64(address, 1);
    }
    world.p.write_u64(PhysAddr(RAM), 2);
    world.ownership.begin_end();
    assert_eq!(world.change(Change::Reclaim(guest), page), Err(Status::Busy.into()));
    let mut steps = 0;
    while world.ownership.wipe_step(&world.p) == Progress::Again {
        steps += 1;
        assert!(steps < 10);
    }
    for address in [block.start(), PhysAddr(block.last().0 - 7), page.start()] {
        assert_eq!(world.p.read_u64(address), 0);
    }
    assert_eq!(world.p.read_u64(PhysAddr(RAM)), 2);
    assert_eq!(world.ownership.wipe_step(&world.p), Progress::Done);
}

#[test]
fn states_are_told_apart_in_every_lane() {
    let p = TestPlatform::default();
    let mut frames = frame::FrameTable::new(12);
    assert!(frames.add_bank(range(RAM, 1 << 20), PhysAddr(RAM)));
    assert!(!frames.add_bank(range(RAM + 1, 1 << 20), PhysAddr(RAM)));
    let guest = GuestHandle::from_register(64).unwrap();
    let state = PageState::guest(guest);
    for (first, units) in [(0, 1), (3, 1), (2, 5), (4, 4), (1, 255), (255, 1), (0, 256)] {
        let run = frames.run(range(RAM + first * PAGE, units * PAGE)).unwrap();
        assert!(frames.all(&p, &run, PageState::HOST) && !frames.all(&p, &run, state));
        frames.fill(&p, &run, state);
        assert!(frames.all(&p, &run, state));
        for unit in 0..256 {
            let inside = (first..first + units).contains(&unit);
            let expected = if inside { state } else { PageState::HOST };
            assert_eq!(frames.state(&p, PhysAddr(RAM + unit * PAGE)), Some(expected));
        }
        frames.fill(&p, &run, PageState::HOST);
    }
    assert!(frames.run(range(RAM + (1 << 20) - PAGE, 2 * PAGE)).is_none());
    assert_eq!(PageState::shared(Recipient::Hypervisor).sharer(), Some(Recipient::Hypervisor));
    assert_eq!((PageState::NOBODY.owner(), state.owner()), (Owner::Nobody, Owner::Guest(guest)));
}
