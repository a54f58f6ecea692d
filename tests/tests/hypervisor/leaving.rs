//! A stream leaves where it stands while another CPU does something that is about it: that CPU stops before each of its operations in turn, and
//! the stream leaves meanwhile, as far as it can.

use crate::{boot, good};
use abi::{Function, Status};
use std::thread;
use tests::bench::{Bench, SCRATCH, Shape};
use tests::driver::{BYPASS, CMDQEN, Driver, EVENTQEN, SMMUEN, reg};
use tests::model::smmu::config::SmmuConfig;

/// Stops `act` before the operation of this number and has the stream leave. Answers how many operations `act` had, or the number.
fn stop_at<T: Send>(
    bench: &Bench,
    number: usize,
    act: impl FnOnce() -> T + Send,
    leave: impl FnOnce() -> Result<(), Status> + Send,
) -> (usize, T) {
    let gate = &bench.hypervisor.platform().gate;
    let mut stops = 0;
    thread::scope(|scope| {
        let open = gate.open_at_end();
        let acting = scope.spawn(|| gate.stopping(act));
        while gate.await_stop() {
            stops += 1;
            if stops == number {
                let leaving = scope.spawn(leave);
                gate.ends_or_waits(&leaving, &format!("stopped before operation {number}"));
                drop(open);
                let seen = acting.join().unwrap();
                assert_eq!(leaving.join().unwrap(), Ok(()));
                return (stops, seen);
            }
            gate.step();
        }
        (stops, acting.join().unwrap())
    })
}

/// EVENT_READ, while a stream of a guest's leaves that has an event to be drained: it must say that there is none.
fn read_while(leave: fn(&Bench, u64) -> Result<(), Status>, number: usize) -> usize {
    let bench = boot(&Shape::of(1, SmmuConfig::qemu()));
    let guest = bench.guest().unwrap();
    let other = bench.domain(guest, 0).unwrap();
    bench.attach(0, 0, guest).unwrap();
    assert_eq!(bench.machine().dma_read(0, bench.devices[0][0].stream, SCRATCH), None);
    let read = || bench.call(Function::EventRead, [0; 4]);
    let (stops, seen) = stop_at(&bench, number, read, || leave(&bench, other));
    assert_eq!(seen, Err(Status::Empty), "stopped before operation {number}");
    assert_eq!(bench.call(Function::EventRead, [0; 4]), Err(Status::Empty));
    good(&bench, "after");
    stops
}

/// Stops before each operation in turn: `stop_at` is told its number and answers as [`stop_at`].
fn stop_everywhere(stop_at: impl Fn(usize) -> usize) {
    let mut number = 1;
    while stop_at(number) == number {
        number += 1;
    }
    assert!(number > 10, "there were {number} operations only");
}

#[test]
fn what_a_detached_stream_of_a_guest_did_is_not_told() {
    stop_everywhere(|number| read_while(|bench, _| bench.detach(0, 0), number));
}

#[test]
fn what_a_stream_that_changes_between_domains_of_a_guest_did_is_not_told() {
    stop_everywhere(|number| read_while(|bench, other| bench.replace(0, 0, other), number));
}

#[test]
fn a_stream_that_comes_back_while_the_driver_turns_its_smmu_on_is_the_drivers() {
    stop_everywhere(|number| {
        let bench = boot(&Shape::of(1, SmmuConfig::qemu()));
        let mut driver = Driver::started(&bench, 0);
        driver.write_entry(0, BYPASS);
        driver.write(reg::CR0, CMDQEN | EVENTQEN);
        bench.attach(0, 0, 0).unwrap();
        let turn_on = || driver.write(reg::CR0, CMDQEN | EVENTQEN | SMMUEN);
        let (stops, ()) = stop_at(&bench, number, turn_on, || bench.detach(0, 0));
        // Where it was not stopped nobody has detached the stream.
        if stops == number {
            assert_eq!(bench.dma(0, 0, SCRATCH), Some(SCRATCH), "stopped before operation {number}");
        }
        stops
    });
}
