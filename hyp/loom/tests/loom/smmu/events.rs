//! An event of a guest's stream, which leaves the guest while another CPU reads events.
//!
//! Whoever finds the event in the queue asks whose it is, with the lock of the events and no other: by the VMID in the STE, by whose that VMID is, and by
//! which stream is leaving. Meanwhile all of these change. It must be nobody's to see. Then one thing is left out or done in the wrong order, and loom must
//! find that somebody sees it.

use std::cell::Cell;
use std::sync::Arc;

use loom::sync::Mutex;
use loom::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use smmuv3::address::PhysAddr;
use smmuv3::memory::Memory;

use super::PARKED_VMID;
use super::readers::{NO_STREAM, Reader, Readers};
use super::vmids::{VmidOwner, VmidTable};
use crate::must_find::must_find;

const STREAM: u32 = 8;
/// VMIDs of two domains of the guest's, and of the host's driver.
const GUEST: u16 = 2;
const GUESTS_OTHER: u16 = 3;
const DRIVER: u16 = 4;
/// Where the words of VMIDs are.
const WORDS: PhysAddr = PhysAddr(0x1000);
/// How many there are here.
const VMIDS: u64 = 5;

/// What is left out, or done in the wrong order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mistake {
    None,
    /// No full barrier after it is said that the stream is leaving.
    LeavingBarrier,
    /// No barrier before it is looked which stream is leaving.
    LookBarrier,
    /// That the stream is leaving is said when its STE has changed.
    LeavingLate,
    /// That it has left is said before its events were taken.
    LeftEarly,
    /// That it is leaving is not said where it goes to another domain of the guest's.
    StaysWithGuest,
}

thread_local! {
    /// Of the model that runs on this thread: all of its threads do.
    static MISTAKE: Cell<Mistake> = const { Cell::new(Mistake::None) };
}

/// The barriers of the sources.
pub fn fence(ordering: Ordering) {
    let left_out = match MISTAKE.get() {
        Mistake::LeavingBarrier => Some(Ordering::SeqCst),
        Mistake::LookBarrier => Some(Ordering::Acquire),
        _ => None,
    };
    if left_out != Some(ordering) {
        loom::sync::atomic::fence(ordering);
    }
}

/// Where the stream goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// To nobody.
    Detached,
    /// To another domain of the guest's.
    Replaced,
}

/// What the CPUs share.
struct Scene {
    readers: Readers,
    /// The VMID in the STE.
    ste: AtomicU64,
    words: Vec<AtomicU64>,
    /// The event waits in the SMMU's queue; the lock is that of the events.
    queue: Mutex<bool>,
}

impl Memory for Scene {
    fn read_u64(&self, address: PhysAddr) -> u64 {
        self.word(address).expect("a VMID of this model").load(Ordering::Relaxed)
    }

    fn write_u64(&self, address: PhysAddr, value: u64) {
        // Of the others only that they are nobody's is written.
        match self.word(address) {
            Some(word) => word.store(value, Ordering::Relaxed),
            None => assert_eq!(value, 0),
        }
    }

    fn full_barrier(&self) {
        loom::sync::atomic::fence(Ordering::SeqCst);
    }

    fn read_acquire_u64(&self, address: PhysAddr) -> u64 {
        self.word(address).expect("a VMID of this model").load(Ordering::Acquire)
    }

    fn write_release_u64(&self, address: PhysAddr, value: u64) {
        self.word(address).expect("a VMID of this model").store(value, Ordering::Release);
    }
}

impl Scene {
    fn new(driver: u16) -> Self {
        let words = (0..VMIDS).map(|_| AtomicU64::new(0)).collect();
        let readers = Readers {
            vmids: VmidTable::NONE,
            leaving: AtomicU64::new(NO_STREAM),
            driver_vmid: AtomicU16::new(driver),
        };
        let ste = AtomicU64::new(GUEST.into());
        let mut scene = Self { readers, ste, words, queue: Mutex::new(true) };
        scene.readers.vmids = VmidTable::at(WORDS);
        for vmid in [GUEST, GUESTS_OTHER] {
            scene.readers.vmids.set(&scene, vmid, VmidOwner::Domain(vmid), true);
        }
        scene.readers.vmids.set(&scene, DRIVER, VmidOwner::Domain(0), false);
        scene
    }

    fn word(&self, address: PhysAddr) -> Option<&AtomicU64> {
        self.words.get(((address.0 - WORDS.0) / 8) as usize)
    }

    /// Takes the event, if it is there still.
    fn read_events(&self) {
        let mut waits = self.queue.lock().unwrap();
        if std::mem::take(&mut *waits) {
            let vmid = || Some(self.ste.load(Ordering::Relaxed) as u16);
            let reader = self.readers.of(self, STREAM, vmid);
            assert_eq!(reader, Reader::Nobody, "somebody sees an event of a guest's");
        }
    }

    /// The stream leaves its domain, as `Iommu::while_leaving` has it: the STE changes, the SMMU says that it is done, and the VMID is free.
    fn leave(&self, way: Way) {
        let mistake = MISTAKE.get();
        let says = mistake != Mistake::StaysWithGuest || way == Way::Detached;
        if says && mistake != Mistake::LeavingLate {
            self.readers.set_leaving(Some(STREAM));
        }
        let next = if way == Way::Detached { PARKED_VMID } else { GUESTS_OTHER };
        self.ste.store(next.into(), Ordering::Relaxed);
        if mistake == Mistake::LeavingLate {
            self.readers.set_leaving(Some(STREAM));
        }
        self.readers.vmids.set(self, GUEST, VmidOwner::Nobody, false);
        if mistake == Mistake::LeftEarly {
            self.readers.set_leaving(None);
        }
        self.read_events();
        if says {
            self.readers.set_leaving(None);
        }
    }
}

fn explore(mistake: Mistake, way: Way, driver: u16) {
    MISTAKE.set(mistake);
    loom::model(move || {
        let scene = Arc::new(Scene::new(driver));
        let other = scene.clone();
        let reader = loom::thread::spawn(move || other.read_events());
        scene.leave(way);
        reader.join().unwrap();
    });
}

/// Every order, with every stale value: no bound.
#[test]
fn an_event_of_a_stream_that_leaves_a_guest_is_nobodys() {
    for way in [Way::Detached, Way::Replaced] {
        for driver in [0, DRIVER] {
            explore(Mistake::None, way, driver);
        }
    }
}

#[test]
fn each_mistake_shows_the_event_to_somebody() {
    for (mistake, way) in [
        (Mistake::LeavingBarrier, Way::Detached),
        (Mistake::LookBarrier, Way::Detached),
        (Mistake::LeavingLate, Way::Detached),
        (Mistake::LeftEarly, Way::Detached),
        (Mistake::StaysWithGuest, Way::Replaced),
    ] {
        for driver in [0, DRIVER] {
            must_find(mistake, "somebody sees", || explore(mistake, way, driver));
            MISTAKE.set(Mistake::None);
        }
    }
}
