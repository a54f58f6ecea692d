//! A job on all CPUs: the others are started for it and turn themselves off after it.

use super::{cpu, entry, psci};
use core::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

/// Bytes of a CPU's stack; `host-shim.ld` reserves them.
pub const STACK_BYTES: usize = 0x1_0000;
/// CPUs that have a stack.
pub const MAX_CPUS: usize = host_shim::hostile::MAX_CPUS;

/// How long CPUs may take to turn themselves off.
const OFF_NS: u64 = 2_000_000_000;

/// What the other CPUs are to do.
type Job = &'static (dyn Fn(usize) + Sync);

/// Words at the end of each stack that nobody writes as long as it is large enough: a page, since a frame that is larger writes to each of its own.
const LAST_WORDS: usize = 512;
/// What is there.
const UNTOUCHED: u64 = 0x5afe_57ac_5afe_57ac;

unsafe extern "C" {
    static __stacks_start: u8;
}

static JOB: AtomicPtr<Job> = AtomicPtr::new(core::ptr::null_mut());
static RUNNING: AtomicU32 = AtomicU32::new(0);

/// What starting CPUs came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartError {
    /// CPU_ON of this CPU answered this.
    Refused(u64, i64),
}

/// The last words of every stack.
fn last_words() -> impl Iterator<Item = (usize, *mut u64)> {
    let start = (&raw const __stacks_start).cast_mut();
    (0..MAX_CPUS).flat_map(move |cpu| {
        let stack = start.wrapping_add(cpu * STACK_BYTES).cast::<u64>();
        (0..LAST_WORDS).map(move |word| (cpu, stack.wrapping_add(word)))
    })
}

/// Marks the end of every stack. Called once, by the first CPU.
pub fn mark_stacks() {
    // SAFETY: stacks are what `host-shim.ld` reserves, and this CPU, the only one that goes on, has not got as far as the end of its own.
    last_words().for_each(|(_, word)| unsafe { word.write_volatile(UNTOUCHED) });
}

/// A CPU whose stack was too small, so that it wrote to what lies below.
pub fn overflowed() -> Option<usize> {
    // SAFETY: as above; other CPUs are off.
    let is_touched = |word: *mut u64| unsafe { word.read_volatile() } != UNTOUCHED;
    last_words().find(|(_, word)| is_touched(*word)).map(|(cpu, _)| cpu)
}

/// Another CPU, from `entry.rs`: on its stack, translation on.
pub extern "C" fn boot_secondary(index: usize) -> ! {
    cpu::set_index(index);
    let job = JOB.load(Ordering::Acquire);
    if !job.is_null() {
        // SAFETY: `run` keeps the job alive until every CPU that it started has counted itself out below.
        let job = unsafe { *job };
        job(index);
    }
    RUNNING.fetch_sub(1, Ordering::Release);
    psci::cpu_off()
}

/// Runs a job on this CPU, as index 0, and on those with these affinities, as 1 and up, and waits until all have done it and are
/// off; how many that were.
///
/// # Errors
/// The first CPU that could not be started; the job is done by the others.
pub fn run(
    others: impl Iterator<Item = u64> + Clone,
    job: &(dyn Fn(usize) + Sync),
) -> Result<usize, StartError> {
    // SAFETY: the lifetime is a lie that ends with this function, which returns only when RUNNING says that nobody uses the job.
    let job: Job = unsafe { core::mem::transmute::<&(dyn Fn(usize) + Sync), Job>(job) };
    let holder = job;
    JOB.store((&raw const holder).cast_mut(), Ordering::Release);
    let mut outcome = Ok(());
    let mut count = 1;
    for (index, affinity) in others.clone().take(MAX_CPUS - 1).enumerate() {
        RUNNING.fetch_add(1, Ordering::AcqRel);
        match psci::cpu_on(affinity, entry::secondary_entry as *const () as u64, index as u64 + 1) {
            psci::SUCCESS => count += 1,
            refused => {
                RUNNING.fetch_sub(1, Ordering::AcqRel);
                outcome = outcome.and(Err(StartError::Refused(affinity, refused)));
            }
        }
    }
    job(0);
    while RUNNING.load(Ordering::Acquire) != 0 {
        core::hint::spin_loop();
    }
    JOB.store(core::ptr::null_mut(), Ordering::Release);
    let begin = cpu::now_ns();
    for affinity in others.take(MAX_CPUS - 1) {
        while psci::affinity_info(affinity) == psci::SUCCESS && cpu::now_ns() - begin < OFF_NS {
            core::hint::spin_loop();
        }
    }
    outcome.map(|()| count)
}
