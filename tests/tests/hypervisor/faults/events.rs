//! Floods of events: the work of a call is bounded, counts are right, and nothing of a guest's is shown.

use super::world::{State, World};
use abi::{Function, Statistic, Status};
use std::collections::BTreeMap;
use tests::bench::{Bench, SCRATCH, Shape};
use tests::model::smmu::config::SmmuConfig;
use tests::oracle;

/// An address that is in nobody's table.
const NOWHERE: u64 = 0x3000_0000;
/// Accesses of EL2 to memory and registers in one EVENT_READ, at most: 256 events of 4 words from the queues, one lookup of a stream each, and a few
/// registers of each SMMU.
const MOST_ACCESSES: u64 = 256 * 8 + 32;

/// A device makes this many accesses that fault.
fn flood(bench: &Bench, smmu: usize, device: usize, count: u64) {
    let stream = bench.devices[smmu][device].stream;
    for n in 0..count {
        let _ = bench.machine().dma_read(smmu, stream, NOWHERE + ((n % 64) << 12));
    }
}

/// One EVENT_READ, bounded: StreamID and SMMU of the event, and how many were lost before it.
fn read(bench: &Bench) -> Option<((u64, u64), u64)> {
    let before = bench.machine().accesses;
    let read = bench.call(Function::EventRead, [0; 4]);
    let accesses = bench.machine().accesses - before;
    assert!(accesses <= MOST_ACCESSES, "{accesses} accesses");
    match read {
        Ok([source, _, _, lost]) => Some(((source >> 40 & 0xff, source >> 8 & 0xffff_ffff), lost)),
        Err(status) => {
            assert_eq!(status, Status::Empty);
            None
        }
    }
}

/// Reads until there is nothing left: events by SMMU and StreamID, and how many were said to be lost.
fn drain(bench: &Bench) -> (BTreeMap<(u64, u64), u64>, u64) {
    let (mut found, mut lost) = (BTreeMap::new(), 0);
    for _ in 0..100_000 {
        let Some((of, missed)) = read(bench) else { return (found, lost) };
        *found.entry(of).or_default() += 1;
        lost += missed;
    }
    panic!("there is no end of events");
}

fn world(queue: u32) -> World {
    let config = SmmuConfig::qemu().queues(8, queue);
    World::on(&Shape { relax_ns: 200_000, ..Shape::of(2, config) }, State::Busy)
}

/// Events that SMMUs have written since the machine is on.
fn written(bench: &Bench) -> u64 {
    bench.machine().smmus.iter().map(|smmu| smmu.events.len() as u64).sum()
}

#[test]
fn every_event_of_a_flood_is_read_or_counted() {
    for queue in [2, 5, 7, 10] {
        for count in [1, 3, 4, 5, 100, 127, 128, 129, 255, 256, 257, 1_000, 10_000] {
            let world = world(queue);
            let bench = &world.bench;
            let _ = drain(bench);
            let (read_before, lost_before) =
                (bench.statistic(Statistic::Events), bench.statistic(Statistic::EventsLost));
            let before = written(bench);
            flood(bench, 0, 1, count);
            let wrote = written(bench) - before;
            let overflowed = u64::from(wrote < count);
            let (found, lost) = drain(bench);
            let name = format!("{count} events, queue 2^{queue}");
            let stream = u64::from(bench.devices[0][1].stream);
            // What an SMMU could write is read; the rest it says only once that it lost.
            assert_eq!(found.get(&(0, stream)).copied().unwrap_or(0), wrote, "{name}: {found:x?}");
            assert_eq!(bench.statistic(Statistic::Events) - read_before, wrote, "{name}");
            assert_eq!(bench.statistic(Statistic::EventsLost) - lost_before, overflowed, "{name}");
            assert!(lost <= overflowed, "{name}");
            oracle::check(bench).unwrap_or_else(|text| panic!("{name}: {text}"));
        }
    }
}

#[test]
fn a_flood_that_nobody_reads_fills_the_ring_and_is_counted() {
    let world = world(7);
    let bench = &world.bench;
    let _ = drain(bench);
    let read_before = bench.statistic(Statistic::Events);
    let before = written(bench);
    // A donation drains while it waits; nobody reads.
    for n in 0..8 {
        flood(bench, 0, 1, 100);
        let page = SCRATCH + (10 << 21) + n * world.unit;
        bench.machine().smmus[0].arm(0, tests::model::smmu::Fault::Late(1_000_000));
        bench.whole(Function::MemDonate, page, world.unit, world.guest).unwrap();
    }
    let wrote = written(bench) - before;
    assert!(wrote > 256, "{wrote} events");
    let (found, lost) = drain(bench);
    let shown: u64 = found.values().sum();
    assert_eq!(shown + lost, wrote, "shown {shown}, lost {lost}");
    assert_eq!(bench.statistic(Statistic::Events) - read_before, wrote);
}

/// A flood of a guest's device, while its stream is attached, changes over and leaves, shows nothing to the host and hides nothing of its own for good.
#[test]
fn nothing_of_a_guest_is_shown() {
    for queue in [2, 7] {
        let world = world(queue);
        let bench = &world.bench;
        let guests = [0, 1].map(|device| (1, u64::from(bench.devices[1][device].stream)));
        let _ = drain(bench);
        let clean = |when: &str| {
            let (found, _) = drain(bench);
            assert!(!guests.iter().any(|stream| found.contains_key(stream)), "{when}: {found:x?}");
        };
        flood(bench, 1, 0, 1_000);
        flood(bench, 1, 1, 1_000);
        clean("attached");
        flood(bench, 1, 0, 100);
        bench.replace(1, 0, world.guest).unwrap();
        flood(bench, 1, 0, 100);
        clean("replaced");
        flood(bench, 1, 0, 1_000);
        flood(bench, 1, 1, 1_000);
        for device in 0..2 {
            bench.detach(1, device).unwrap();
        }
        clean("detached");
        // The control: what comes now is the host's to know.
        flood(bench, 1, 1, 10);
        let (found, _) = drain(bench);
        assert!(found.get(&guests[1]).copied().unwrap_or(0) > 0, "{found:x?}");
    }
}
