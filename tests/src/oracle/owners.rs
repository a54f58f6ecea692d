//! Who owns each page, by MEM_QUERY.

use crate::bench::Bench;
use crate::model::RAM_BASE;
use abi::Function;

/// What MEM_QUERY says of every page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owners(pub(super) Vec<(u64, u64)>);

impl Owners {
    /// Asks for every page of RAM.
    ///
    /// # Errors
    /// A page of which nothing is known.
    pub fn read(bench: &Bench) -> Result<Self, String> {
        let unit = bench.unit();
        let mut owners = Vec::with_capacity((bench.ram.size() >> 12) as usize);
        for address in (bench.ram.start..bench.ram.end).step_by(unit as usize) {
            let said = Self::ask(bench, address)?;
            owners.extend(std::iter::repeat_n(said, (unit >> 12) as usize));
        }
        Ok(Self(owners))
    }

    /// Who owns the page at an address, and with whom it is shared: past everything that is recorded of calls.
    pub(super) fn ask(bench: &Bench, address: u64) -> Result<(u64, u64), String> {
        let query = Function::MemQuery.id();
        let [status, owner, shared, ..] = bench.hypervisor.hypercall(query, [address, 0, 0, 0]).x;
        if status == 0 {
            Ok((owner, shared))
        } else {
            Err(format!("MEM_QUERY of {address:#x} answered {status:#x}"))
        }
    }

    /// Whether a memory domain (0 the host's) has the page at an address of RAM.
    pub(crate) fn allows(&self, domain: u64, address: u64) -> bool {
        let Some(&(owner, shared)) = self.0.get(((address - RAM_BASE) >> 12) as usize) else { return false };
        owner == domain || domain != 0 && owner == 0 && shared == domain
    }

    /// As [`Owners::of`], to be changed.
    pub(super) fn of_mut(&mut self, address: u64) -> Option<&mut (u64, u64)> {
        self.0.get_mut((address.checked_sub(RAM_BASE)? >> 12) as usize)
    }

    /// Who owns a page, and with whom it is shared.
    pub fn of(&self, address: u64) -> Option<(u64, u64)> {
        self.0.get(((address - RAM_BASE) >> 12) as usize).copied()
    }

    /// How many pages nobody has in `after` that somebody had.
    ///
    /// # Errors
    /// A page that somebody else has then.
    pub fn lost(&self, after: &Self) -> Result<u64, String> {
        const NOBODY: (u64, u64) = (0x101, 0);
        let mut lost = 0;
        for (n, (old, new)) in self.0.iter().zip(&after.0).enumerate().filter(|(_, (old, new))| old != new) {
            if *new != NOBODY {
                return Err(format!(
                    "page {:#x} was {old:x?} and is {new:x?}",
                    RAM_BASE + ((n as u64) << 12)
                ));
            }
            lost += 1;
        }
        Ok(lost)
    }
}
