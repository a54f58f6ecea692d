//! Processes: one for each CPU, and memory that all of them see.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::calls::{Number, call, exit};
use super::memory::map_shared;
use crate::device::Errno;

/// SIGCHLD: what a parent is told the end of a process with.
const CHILD_ENDED: u64 = 17;
/// CPUs that Linux can be asked about here.
const MAX_CPUS: usize = 64;

/// The numbers of the CPUs that this program may use, at most 64.
pub fn cpus() -> Vec<usize> {
    let mut mask = [0_u64; 16];
    // SAFETY: the call writes at most as many bytes as the array has.
    let asked = unsafe {
        call(Number::SchedGetAffinity, [0, size_of_val(&mask) as u64, mask.as_mut_ptr() as u64, 0, 0, 0])
    };
    if asked.is_err() {
        return Vec::from([0]);
    }
    (0..MAX_CPUS).filter(|cpu| mask[0] >> cpu & 1 != 0).collect()
}

/// Stays on one CPU from now on.
fn stay_on(cpu: usize) {
    let mask = 1_u64 << (cpu % MAX_CPUS);
    // SAFETY: the call reads a word. Without it the process runs where Linux likes, which is no harm.
    let _ = unsafe {
        call(Number::SchedSetAffinity, [0, size_of_val(&mask) as u64, (&raw const mask) as u64, 0, 0, 0])
    };
}

/// Runs a job in a process of its own on each of these CPUs, with its place among them, until all have ended.
///
/// # Errors
///
/// A process could not be started, or ended by a signal or a panic; the others have ended.
pub fn on_each(cpus: &[usize], job: &dyn Fn(u64)) -> Result<(), String> {
    let mut started: usize = 0;
    let mut failed = None;
    for (place, &cpu) in (0..).zip(cpus) {
        // SAFETY: the child has a copy of this program, which has one thread; what is mapped as shared is made for that.
        match unsafe { call(Number::Clone, [CHILD_ENDED, 0, 0, 0, 0, 0]) } {
            Ok(0) => {
                stay_on(cpu);
                job(place);
                exit(0);
            }
            Ok(_) => started += 1,
            Err(Errno(number)) => failed = Some(format!("no process for CPU {cpu}: Linux's error {number}")),
        }
    }
    for _ in 0..started {
        let mut status: i32 = 0;
        // SAFETY: the call writes a status of 32 bits.
        let ended = unsafe { call(Number::Wait4, [u64::MAX, (&raw mut status) as u64, 0, 0, 0, 0]) };
        if ended.is_err() || status != 0 {
            // Bits 6:0 are the signal, 15:8 what was given to exit.
            failed = Some(format!(
                "a process ended by signal {}, with status {}",
                status & 0x7f,
                status >> 8 & 0xff
            ));
        }
    }
    failed.map_or(Ok(()), Err)
}

/// Puts a value where all processes that are started later see it.
///
/// # Errors
///
/// Linux has no memory.
pub fn share<T: Sync + 'static>(value: T) -> Result<&'static T, String> {
    let at = map_shared(size_of::<T>() as u64)
        .map_err(|Errno(number)| format!("no memory for all processes: Linux's error {number}"))?;
    let place = at as *mut T;
    // SAFETY: Linux mapped as many bytes there, at the beginning of a page, and nobody unmaps them. `T` may be used by threads at once, and
    // a process that is a copy of this one has every address that a value could have in it.
    unsafe {
        place.write(value);
        Ok(&*place)
    }
}
