//! Memory of the module's for an attack: eight neighbouring blocks.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use host_shim::host::SCRATCH_BYTES;
use hyp_iommu_uapi::{MAX_BYTES, Request};

use crate::device::Device;

/// Blocks that must be neighbours.
const BLOCKS: usize = (SCRATCH_BYTES / MAX_BYTES) as usize;
/// Blocks that are taken at the most until there are.
const MOST: usize = 128;

/// Takes [`SCRATCH_BYTES`] bytes of neighbouring blocks: where they begin. Linux's allocator gives one at a time, mostly next to one that it gave before.
///
/// # Errors
///
/// Linux has no such memory; nothing is taken then.
pub fn take<D: Device + ?Sized>(device: &D) -> Result<u64, String> {
    let mut blocks = Vec::new();
    let mut found = Err("no eight of them are neighbours".into());
    while blocks.len() < MOST {
        match device.request(Request::Allocate, [MAX_BYTES, 0, 0, 0, 0]) {
            Ok([start, ..]) => blocks.push(start),
            Err(errno) => {
                found = Err(errno.to_string());
                break;
            }
        }
        blocks.sort_unstable();
        let neighbours = |run: &&[u64]| run.windows(2).all(|pair| pair[1] - pair[0] == MAX_BYTES);
        if let Some(run) = blocks.windows(BLOCKS).find(neighbours) {
            found = Ok(run[0]);
            break;
        }
    }
    let kept =
        |start: u64| found.as_ref().is_ok_and(|first| (*first..*first + SCRATCH_BYTES).contains(&start));
    for &start in blocks.iter().filter(|start| !kept(**start)) {
        give(device, start)?;
    }
    found.map_err(|why: String| format!("after {} blocks of 2M, {why}", blocks.len()))
}

/// Gives memory back that [`take`] took.
///
/// # Errors
///
/// The module does not take a block: a page of it is not the host's.
pub fn give_back<D: Device + ?Sized>(device: &D, start: u64) -> Result<(), String> {
    (0..BLOCKS as u64).try_for_each(|n| give(device, start + n * MAX_BYTES))
}

fn give<D: Device + ?Sized>(device: &D, start: u64) -> Result<(), String> {
    let freed = device.request(Request::Free, [start, 0, 0, 0, 0]);
    freed.map(drop).map_err(|errno| format!("the block at {start:#x} cannot be freed: {errno}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Errno;
    use core::cell::RefCell;
    use hyp_iommu_uapi::Record;

    /// Gives these blocks, by number, from the last one on.
    struct Fake(RefCell<(Vec<u64>, Vec<u64>)>);

    impl Fake {
        fn new(numbers: impl IntoIterator<Item = u64>) -> Self {
            let mut free: Vec<u64> = numbers.into_iter().map(|n| n * MAX_BYTES).collect();
            free.reverse();
            Self(RefCell::new((free, Vec::new())))
        }

        fn taken(&self) -> Vec<u64> {
            let mut taken = self.0.borrow().1.clone();
            taken.sort_unstable();
            taken
        }
    }

    impl Device for Fake {
        fn request(&self, request: Request, [word, ..]: Record) -> Result<Record, Errno> {
            let (free, taken) = &mut *self.0.borrow_mut();
            match request {
                Request::Allocate => {
                    let start = free.pop().ok_or(Errno::NO_MEMORY)?;
                    taken.push(start);
                    Ok([start, word, 0, 0, 0])
                }
                Request::Free => {
                    let place = taken.iter().position(|start| *start == word).ok_or(Errno::NO_ENTRY)?;
                    taken.remove(place);
                    Ok([0; 5])
                }
                other => panic!("{other:?} is not expected"),
            }
        }
    }

    #[test]
    fn eight_neighbours_are_kept_and_the_rest_is_given_back() {
        let device = Fake::new([50, 3, 20, 27, 21, 26, 22, 25, 60, 23, 24, 70]);
        assert_eq!(take(&device), Ok(20 * MAX_BYTES));
        assert_eq!(device.taken(), (20..28).map(|n| n * MAX_BYTES).collect::<Vec<_>>());
        give_back(&device, 20 * MAX_BYTES).expect("all are there");
        assert!(device.taken().is_empty());
    }

    #[test]
    fn without_neighbours_nothing_is_kept() {
        for (device, why) in [
            (Fake::new((0..7).chain(8..15)), "Linux has no such pages free"),
            (Fake::new((0..500).map(|n| 2 * n)), "no eight of them are neighbours"),
        ] {
            let error = take(&device).expect_err(why);
            assert!(error.contains(why), "{error}");
            assert!(device.taken().is_empty());
        }
    }
}
