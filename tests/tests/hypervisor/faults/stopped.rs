//! A CPU that stops between any two operations of a call, with whatever locks it holds: firmware may do that to it, the host cannot. Devices and the
//! host's CPUs reach at that moment what they reached before the call or will after it, never two owners one page, and never memory that is still to
//! be wiped. Calls on other CPUs end, or wait for a lock without touching the machine, and end when the CPU goes on.

use super::world::{BLOCK, State, World, calls};
use abi::{Function, Status};
use std::collections::{BTreeMap, HashMap};
use std::thread;
use tests::bench::{Bench, RAM_BYTES, SCRATCH, Shape};
use tests::model::RAM_BASE;
use tests::model::memory::PhysMemory;
use tests::model::smmu::config::SmmuConfig;
use tests::model::stage2::{Leaf, Stage2Config, all_leaves};
use tests::oracle::{self, Owners};
use tests::record::owner_of;

const PAGES: usize = (RAM_BYTES >> 12) as usize;
/// Nobody: what a page that is nobody's, or a stream that is unattached, has.
const NOBODY: u64 = 0x101;
const HYPERVISOR: u64 = 0x100;
const SECRET: u64 = 0x5ec2_e75e_c2e7_5ec2;

/// Whose pages and streams are, at one end of a call.
struct End {
    owners: Owners,
    /// Pages that are the host's and not shared: most of them.
    is_plain: Vec<bool>,
    streams: BTreeMap<(usize, u32), u64>,
}

impl End {
    fn of(bench: &Bench) -> Self {
        let record = bench.record();
        let streams = record.streams.iter().map(|(stream, attached)| (*stream, owner_of(attached.domain)));
        let owners = Owners::read(bench).unwrap();
        let page = |n: usize| RAM_BASE + ((n as u64) << 12);
        let is_plain = (0..PAGES).map(|n| owners.of(page(n)) == Some((0, 0))).collect();
        Self { owners, is_plain, streams: streams.collect() }
    }

    fn owner(&self, page: usize) -> (u64, u64) {
        self.owners.of(RAM_BASE + ((page as u64) << 12)).unwrap_or((NOBODY, NOBODY))
    }

    /// Whether a principal may reach a page.
    fn allows(&self, principal: u64, page: usize) -> bool {
        let (owner, shared) = self.owner(page);
        owner == principal || owner == 0 && shared == principal && principal != 0
    }
}

fn mark(reached: &mut [bool], leaf: &Leaf) {
    let end = leaf.output + (1 << leaf.size_log2);
    for page in (leaf.output.max(RAM_BASE)..end.min(RAM_BASE + RAM_BYTES)).step_by(4096) {
        reached[((page - RAM_BASE) >> 12) as usize] = true;
    }
}

/// What tables map, each walked once.
type Walked = HashMap<Stage2Config, Vec<bool>>;

fn walked<'a>(known: &'a mut Walked, memory: &PhysMemory, config: Stage2Config) -> &'a [bool] {
    known.entry(config).or_insert_with(|| {
        let mut reached = vec![false; PAGES];
        all_leaves(memory, &config).iter().for_each(|leaf| mark(&mut reached, leaf));
        reached
    })
}

/// Pages that a stream reaches by its STE in memory or in the cache, by the tables and by what is cached.
fn reached_by(bench: &Bench, smmu: usize, stream: u32, known: &mut Walked) -> Vec<bool> {
    let mut machine = bench.machine();
    let in_memory = machine.decoded_in_memory(smmu, stream);
    let in_cache = machine.smmus[smmu].cached_meaning(stream);
    let mut reached = vec![false; PAGES];
    for meaning in in_memory.into_iter().chain(in_cache).map(|decoded| decoded.meaning) {
        let (Some(config), Some(vmid)) = (meaning.stage2(), meaning.vmid()) else { continue };
        for (reached, mapped) in reached.iter_mut().zip(walked(known, &machine.memory, config)) {
            *reached |= mapped;
        }
        for cached in machine.smmus[smmu].cached().filter(|cached| cached.vmid() == Some(vmid)) {
            if let Some(span) = cached.output() {
                let page = |address: u64| ((address - RAM_BASE) >> 12) as usize;
                if span.start >= RAM_BASE && span.end <= RAM_BASE + RAM_BYTES {
                    reached[page(span.start)..=page(span.end - 1)].fill(true);
                }
            }
        }
    }
    reached
}

/// Pages that the host's CPUs reach.
fn reached_by_cpus(bench: &Bench) -> Vec<bool> {
    let machine = bench.machine();
    let mut reached = vec![false; PAGES];
    let config = machine.cpu.stage2.unwrap();
    all_leaves(&machine.memory, &config).iter().for_each(|leaf| mark(&mut reached, leaf));
    machine.cpu.leaves.iter().for_each(|leaf| mark(&mut reached, leaf));
    reached
}

/// What must hold wherever a call stops.
fn check_confined(bench: &Bench, before: &End, after: &End) -> Result<(), String> {
    // Pages that devices or CPUs of a principal reach; streams that change over count as either's.
    let mut known = Walked::new();
    let mut reached: Vec<(Vec<u64>, String, Vec<bool>)> =
        vec![(vec![0], "the host's CPUs".into(), reached_by_cpus(bench))];
    for smmu in 0..2 {
        for stream in bench.devices[smmu].iter().map(|device| device.stream).chain([0x77]) {
            let of = |end: &End| end.streams.get(&(smmu, stream)).copied();
            let mut principals: Vec<u64> = [of(before), of(after)].into_iter().flatten().collect();
            principals.dedup();
            let name = format!("stream {stream:#x} behind SMMU {smmu} of {principals:x?}");
            reached.push((principals, name, reached_by(bench, smmu, stream, &mut known)));
        }
    }
    let is_hosts: Vec<bool> = reached.iter().map(|(principals, ..)| principals.contains(&0)).collect();
    for page in 0..PAGES {
        let is_plain = before.is_plain[page] && after.is_plain[page];
        if is_plain && reached.iter().zip(&is_hosts).all(|((.., pages), is_hosts)| *is_hosts || !pages[page])
        {
            continue;
        }
        let (old, new) = (before.owner(page), after.owner(page));
        let address = RAM_BASE + ((page as u64) << 12);
        let changes = old.0 != new.0;
        let mut holders = Vec::new();
        for (principals, name, _) in reached.iter().filter(|(_, _, pages)| pages[page]) {
            let may = |end: &End| principals.iter().any(|principal| end.allows(*principal, page));
            if !may(before) && !may(after) {
                return Err(format!("{name} reaches {address:#x} of {old:x?}, then of {new:x?}"));
            }
            if changes && !may(before) && bench.machine().memory.read(address) == Some(SECRET) {
                return Err(format!("{name} reaches {address:#x} before it is wiped"));
            }
            holders.push((may(before), may(after), name));
        }
        let is_old = holders.iter().find(|(before, after, _)| *before && !*after);
        let is_new = holders.iter().find(|(before, after, _)| !*before && *after);
        if let (true, Some((.., one)), Some((.., other))) = (changes, is_old, is_new) {
            return Err(format!("{one} and {other} both reach {address:#x}"));
        }
        if (old.0, new.0) == (HYPERVISOR, HYPERVISOR)
            && let Some((.., name)) = holders.first()
        {
            return Err(format!("{name} reaches {address:#x}, which is the hypervisor's"));
        }
    }
    Ok(())
}

/// A call on another CPU, while one is stopped, that has nothing to do with what the stopped one changes.
fn other_call(world: &World, turn: usize) -> Result<(), Status> {
    let bench = &world.bench;
    let page = SCRATCH + 11 * BLOCK;
    match turn % 5 {
        0 => bench.call(Function::MemQuery, [page, 0, 0, 0]).map(drop),
        1 => {
            let there = [Function::MemDonate, Function::MemReclaim];
            let mut moves =
                there.into_iter().map(|way| bench.whole(way, page, world.unit, world.spare_guest));
            match moves.find(Result::is_err) {
                // It is being taken apart.
                None | Some(Err(Status::UnknownGuest | Status::Busy)) => Ok(()),
                Some(moved) => moved,
            }
        }
        2 => match bench.call(Function::EventRead, [0; 4]) {
            Ok(_) | Err(Status::Empty) => Ok(()),
            Err(status) => Err(status),
        },
        3 => {
            bench.call(Function::StreamAttach, [0, 0x99, 0, 0])?;
            bench.call(Function::StreamDetach, [0, 0x99, 0, 0]).map(drop)
        }
        _ => bench.call(Function::SmmuTags, [1, 0, 0, 0]).map(drop),
    }
}

/// Stops a call at each of its operations.
fn stop_everywhere(shape: &Shape, state: State, function: Function) {
    for (name, arguments) in calls(function) {
        let name = format!("{function:?} {name}, {state:?}");
        let [world, dry] = [0, 1].map(|_| World::on(shape, state));
        let [Some(arguments), Some(dry_arguments)] = [&world, &dry].map(arguments) else {
            continue;
        };
        assert_eq!(arguments, dry_arguments, "{name}: both worlds are the same");
        let before = End::of(&world.bench);
        dry.call(function, dry_arguments).unwrap_or_else(|error| panic!("{name}: {error:?}"));
        let after = End::of(&dry.bench);
        for page in (0..PAGES).filter(|page| before.owner(*page).0 != after.owner(*page).0) {
            world.bench.machine().memory.write(RAM_BASE + ((page as u64) << 12), SECRET);
        }
        check_confined(&world.bench, &before, &before)
            .unwrap_or_else(|text| panic!("{name}, before: {text}"));
        let (bench, gate) = (&world.bench, &world.bench.hypervisor.platform().gate);
        let mut stops = 0;
        let mut waited = 0;
        thread::scope(|scope| {
            let _open = gate.open_at_end();
            let call = scope.spawn(|| gate.stopping(|| world.call(function, arguments)));
            let mut other: Option<thread::ScopedJoinHandle<'_, Result<(), Status>>> = None;
            let mut last_accesses = u64::MAX;
            while gate.await_stop() {
                stops += 1;
                // Where nothing was stored or told to an SMMU since the last stop, nothing is reached that was not then.
                let accesses = bench.machine().changes();
                if accesses != last_accesses {
                    last_accesses = accesses;
                    check_confined(bench, &before, &after)
                        .unwrap_or_else(|text| panic!("{name}, stopped before operation {stops}: {text}"));
                }
                if other.as_ref().is_none_or(|other| other.is_finished()) && stops % 7 == 0 {
                    if let Some(done) = other.take() {
                        assert_eq!(done.join().unwrap(), Ok(()), "{name}: a call on another CPU");
                    }
                    let (world, turn) = (&world, stops / 7);
                    let started = scope.spawn(move || other_call(world, turn));
                    waited += u32::from(!gate.ends_or_waits(&started, &name));
                    other = Some(started);
                }
                gate.step();
            }
            call.join().unwrap().unwrap_or_else(|error| panic!("{name}: {error:?}"));
            if let Some(done) = other {
                assert_eq!(done.join().unwrap(), Ok(()), "{name}: a call on another CPU");
            }
        });
        println!("{name}: {stops} stops, {waited} calls waited for a lock");
        assert!(stops > 0, "{name}: it does nothing");
        check_confined(bench, &after, &after).unwrap_or_else(|text| panic!("{name}, after: {text}"));
        oracle::check_state(bench).unwrap_or_else(|text| panic!("{name}: {text}"));
    }
}

/// The control: a page that the host's CPUs and devices reach, and that somebody else should have.
#[test]
fn a_page_that_is_reached_too_long_is_seen() {
    let [world, dry] = [0, 1].map(|_| World::new(SmmuConfig::qemu(), State::Busy));
    let page = world.host.stage1.page(1);
    let before = End::of(&world.bench);
    check_confined(&world.bench, &before, &before).unwrap();
    dry.bench.whole(Function::MemDonate, page, dry.unit, dry.guest).unwrap();
    let after = End::of(&dry.bench);
    check_confined(&dry.bench, &after, &after).unwrap();
    let error = check_confined(&world.bench, &after, &after).unwrap_err();
    assert!(error.starts_with("the host's CPUs reaches"), "{error}");
    // A stream that is somebody else's.
    let mut others = End::of(&world.bench);
    let stream = world.bench.devices[0][0].stream;
    others.streams.insert((0, stream), world.spare_guest);
    let error = check_confined(&world.bench, &others, &others).unwrap_err();
    assert!(error.starts_with("stream"), "{error}");
}

fn stop_in(shape: &Shape, functions: &[Function]) {
    for (function, state) in functions.iter().flat_map(|function| State::ALL.map(|state| (function, state))) {
        stop_everywhere(shape, state, *function);
    }
}

fn qemu() -> Shape {
    World::shape(SmmuConfig::qemu())
}

#[test]
fn a_cpu_that_stops_while_a_stream_changes_over() {
    stop_in(
        &qemu(),
        &[Function::StreamAttach, Function::StreamDetach, Function::GuestTeardown, Function::VsmmuInvalidate],
    );
}

/// With ATS, so with an `ATC_INV` at each step.
#[test]
fn a_cpu_that_stops_while_a_stream_with_ats_changes_over() {
    let config = SmmuConfig::qemu().with_ats().ssid_bits(4);
    let shape = World::shape(config).trusting(0, 0).trusting(1, 0).trusting(1, 1);
    stop_in(&shape, &[Function::StreamAttach, Function::StreamDetach]);
}

#[test]
fn a_cpu_that_stops_while_a_page_changes_hands() {
    stop_in(&qemu(), &[Function::MemDonate, Function::MemReclaim, Function::MemShare, Function::MemUnshare]);
}

#[test]
fn a_cpu_that_stops_while_a_domain_or_the_pool_changes() {
    stop_in(
        &qemu(),
        &[Function::DomainMap, Function::DomainUnmap, Function::PoolTopUp, Function::PoolGiveBack],
    );
}
