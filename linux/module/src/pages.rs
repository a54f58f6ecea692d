//! Pages that Linux's allocator gave to the module.
//!
//! They belong to the module, not to the program that asked: a guest that has them outlives the program. They go back to the allocator only
//! when the hypervisor says that they are the host's again and not shared.

/// Neighbouring pages, allocated and freed together; as many bytes as a power of two, and aligned to that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Physical address of the first byte.
    pub start: u64,
    /// Bytes.
    pub size: u64,
}

impl Run {
    /// Whether an address is in it.
    const fn contains(&self, address: u64) -> bool {
        address >= self.start && address - self.start < self.size
    }

    /// The address after the last byte.
    const fn end(&self) -> u64 {
        self.start.saturating_add(self.size)
    }
}

/// All runs, in no order.
#[derive(Debug)]
pub struct Pages {
    runs: [Option<Run>; Self::MAX],
}

impl Pages {
    /// The most runs at once.
    pub const MAX: usize = 256;

    /// None.
    pub const fn new() -> Self {
        Self { runs: [None; Self::MAX] }
    }

    /// Whether another run has a place.
    pub fn has_place(&self) -> bool {
        self.runs.iter().any(Option::is_none)
    }

    /// Notes a run; nothing happens when there is no place.
    pub fn add(&mut self, run: Run) {
        if let Some(place) = self.runs.iter_mut().find(|place| place.is_none()) {
            *place = Some(run);
        }
    }

    /// The run that begins at an address.
    pub fn beginning_at(&self, start: u64) -> Option<Run> {
        self.runs.iter().flatten().copied().find(|run| run.start == start)
    }

    /// Forgets the run that begins at an address.
    pub fn remove(&mut self, start: u64) {
        for place in &mut self.runs {
            if place.is_some_and(|run| run.start == start) {
                *place = None;
            }
        }
    }

    /// Whether a range is all in runs, of which each begins where the one before ends. One without bytes is where its first address is.
    pub fn contain(&self, start: u64, size: u64) -> bool {
        let Some(end) = start.checked_add(size) else { return false };
        let mut at = start;
        loop {
            let Some(run) = self.runs.iter().flatten().find(|run| run.contains(at)) else { return false };
            at = run.end();
            if at >= end {
                return true;
            }
        }
    }

    /// The run with an index, in the order of their places.
    pub fn nth(&self, index: u64) -> Option<Run> {
        self.runs.iter().flatten().copied().nth(usize::try_from(index).ok()?)
    }
}

impl Default for Pages {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_in_neighbouring_runs_or_not_there() {
        let mut pages = Pages::new();
        pages.add(Run { start: 0xa000, size: 0x1000 });
        pages.add(Run { start: 0x8000, size: 0x2000 });
        pages.add(Run { start: 0xc000, size: 0x1000 });
        let there = [(0x8000, 0x2000), (0x9000, 0x1000), (0xa000, 0x1000), (0x8000, 0x3000), (0x9ff8, 0x10)];
        for (start, size) in there {
            assert!(pages.contain(start, size), "{start:#x} {size:#x}");
        }
        let not_there = [
            (0x8000, 0x3001),
            (0x7000, 0x1000),
            (0x7000, 0x2000),
            (0xa000, 0x3000),
            (0xb000, 1),
            (0xb000, 0),
        ];
        for (start, size) in not_there.into_iter().chain([(0x9000, u64::MAX), (u64::MAX, 2), (u64::MAX, 0)]) {
            assert!(!pages.contain(start, size), "{start:#x} {size:#x}");
        }
    }

    #[test]
    fn a_place_is_used_again() {
        let mut pages = Pages::new();
        for index in 0..Pages::MAX as u64 {
            assert!(pages.has_place());
            pages.add(Run { start: index << 12, size: 1 << 12 });
        }
        assert!(!pages.has_place());
        pages.remove(0x3000);
        assert!(pages.has_place() && pages.beginning_at(0x3000).is_none());
        pages.add(Run { start: 0x100_0000, size: 1 << 12 });
        assert_eq!(pages.nth(3), Some(Run { start: 0x100_0000, size: 1 << 12 }));
        assert_eq!(pages.nth(Pages::MAX as u64), None);
    }
}
