//! Running a model in every order.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use crate::bus::number_thread;
use crate::mistake::Mistake;
use crate::must_find::must_find;
use crate::world::World;

/// Words of stack: to boot on, and for what calls EL2.
const BOOT_STACK: usize = 0x2_0000;
const STACK: usize = 0x4000;

/// What a CPU or a device does.
pub type Act = fn(&World);

/// A machine, what CPUs and devices do on it at once, and what came of it, when [`World::check`] finds it good.
#[derive(Clone, Copy)]
pub struct Model {
    pub prepare: fn(Mistake) -> World,
    pub acts: &'static [Act],
    pub end: fn(&World) -> &'static str,
}

impl Model {
    /// Tries every order in which a thread that could go on is stopped so many times at the most. All of these things come of it, and no others.
    pub fn explore(self, preemptions: usize, outcomes: &[&str]) {
        let (orders, seen) = self.try_all(Mistake::None, preemptions);
        println!("{orders} orders");
        assert_eq!(seen.iter().copied().collect::<Vec<_>>(), outcomes);
    }

    /// How many orders there are, and what came of them.
    fn try_all(self, mistake: Mistake, preemptions: usize) -> (u64, BTreeSet<&'static str>) {
        in_every_order(preemptions, move || self.run(mistake))
    }

    fn run(self, mistake: Mistake) -> &'static str {
        let world = Arc::new((self.prepare)(mistake));
        world.explore();
        let others: Vec<_> = (1..)
            .zip(&self.acts[1..])
            .map(|(number, act)| {
                let world = world.clone();
                spawn_other(number, move || act(&world))
            })
            .collect();
        self.acts[0](&world);
        for other in others {
            other.join().unwrap();
        }
        world.check();
        (self.end)(&world)
    }

    /// With the mistake the model fails, and says this.
    pub fn finds(self, mistake: Mistake, complaint: &str, preemptions: usize) {
        must_find(mistake, complaint, || {
            self.try_all(mistake, preemptions);
        });
    }
}

/// Runs something in every order in which a thread that could go on is stopped so many times at the most: how many there are, and what came of
/// them.
pub fn in_every_order<T: Ord + Send + 'static>(
    preemptions: usize,
    run: impl Fn() -> T + Clone + Send + Sync + 'static,
) -> (u64, BTreeSet<T>) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.max_branches = 10_000;
    let seen = Arc::new(Mutex::new((0, BTreeSet::new())));
    let all = seen.clone();
    builder.check(move || {
        let (seen, run) = (seen.clone(), run.clone());
        // The first thread of a model has too small a stack.
        let first = spawn(BOOT_STACK, move || {
            let came = run();
            let mut seen = seen.lock().unwrap();
            seen.0 += 1;
            seen.1.insert(came);
        });
        first.join().unwrap();
    });
    let mut all = all.lock().unwrap();
    std::mem::take(&mut *all)
}

/// A thread for another CPU, or for a device.
pub fn spawn_other<T: Send + 'static>(
    number: usize,
    act: impl FnOnce() -> T + Send + 'static,
) -> loom::thread::JoinHandle<T> {
    spawn(STACK, move || {
        number_thread(number);
        act()
    })
}

fn spawn<T: Send + 'static>(
    stack: usize,
    act: impl FnOnce() -> T + Send + 'static,
) -> loom::thread::JoinHandle<T> {
    loom::thread::Builder::new().stack_size(stack).spawn(act).unwrap()
}
