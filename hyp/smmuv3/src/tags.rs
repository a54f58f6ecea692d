//! Tags: which VMID a domain has on one SMMU.
//!
//! A tag lives as long as an entry for it stands in the domain's invalidation array. It is flushed before it is freed, so
//! a number that no domain has is in no IOTLB.

/// Domains that an SMMU can serve at once.
pub const MAX_DOMAINS: usize = 65;

/// VMIDs that are numbered out: never more are in use than there are domains, and the lowest free one is taken.
const NUMBERS: usize = 128;

/// The VMIDs of one SMMU.
#[derive(Debug)]
pub struct Vmids {
    /// VMID by domain; 0, which stays reserved for bypass, is none.
    by_domain: [u16; MAX_DOMAINS],
    /// One bit a number: taken.
    taken: u128,
    /// Largest VMID, bounded by [`NUMBERS`].
    max: u16,
}

/// Every VMID of the SMMU is in use, or there is no such domain; nothing is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exhausted;

impl Vmids {
    /// All free but 0 and `reserved`, on an SMMU whose VMIDs have `vmid_bits` bits (8 or 16).
    pub const fn new(vmid_bits: u8, reserved: &[u16]) -> Self {
        let max = if vmid_bits >= 7 { NUMBERS as u16 - 1 } else { (1 << vmid_bits) - 1 };
        let mut taken = 1;
        let mut index = 0;
        while index < reserved.len() {
            if (reserved[index] as usize) < NUMBERS {
                taken |= 1 << reserved[index];
            }
            index += 1;
        }
        Self { by_domain: [0; MAX_DOMAINS], taken, max }
    }

    /// The VMID of a domain, if it has one. Never allocates.
    pub fn find(&self, domain: usize) -> Option<u16> {
        self.by_domain.get(domain).copied().filter(|vmid| *vmid != 0)
    }

    /// The VMID of a domain, and whether this call allocated it.
    ///
    /// # Errors
    /// [`Exhausted`]; nothing is changed.
    pub fn allocate(&mut self, domain: usize) -> Result<(u16, bool), Exhausted> {
        if let Some(vmid) = self.find(domain) {
            return Ok((vmid, false));
        }
        let place = self.by_domain.get_mut(domain).ok_or(Exhausted)?;
        let vmid = self.taken.trailing_ones() as u16;
        if vmid > self.max {
            return Err(Exhausted);
        }
        self.taken |= 1 << vmid;
        *place = vmid;
        Ok((vmid, true))
    }

    /// Frees the VMID of a domain, which the caller has flushed. A domain without one is left alone.
    pub fn free(&mut self, domain: usize) {
        if let Some(place) = self.by_domain.get_mut(domain)
            && *place != 0
        {
            self.taken &= !(1 << *place);
            *place = 0;
        }
    }

    /// How many VMIDs are in use by domains.
    pub fn in_use(&self) -> usize {
        self.by_domain.iter().filter(|vmid| **vmid != 0).count()
    }

    /// The largest VMID that is given out.
    pub const fn max(&self) -> u16 {
        self.max
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_free_number_is_taken_and_found_again() {
        let mut vmids = Vmids::new(16, &[1]);
        assert_eq!(vmids.find(0), None);
        assert_eq!(vmids.allocate(0), Ok((2, true)));
        assert_eq!(vmids.allocate(7), Ok((3, true)));
        assert_eq!(vmids.allocate(0), Ok((2, false)));
        vmids.free(0);
        vmids.free(0);
        assert_eq!((vmids.find(0), vmids.find(7), vmids.in_use()), (None, Some(3), 1));
        assert_eq!(vmids.allocate(1), Ok((2, true)), "a freed number is used again at once");
    }

    #[test]
    fn exhaustion_leaves_everything_as_it_was() {
        let mut vmids = Vmids::new(2, &[1]);
        assert_eq!(vmids.allocate(0), Ok((2, true)));
        assert_eq!(vmids.allocate(1), Ok((3, true)));
        assert_eq!(vmids.allocate(2), Err(Exhausted));
        assert_eq!(vmids.allocate(MAX_DOMAINS), Err(Exhausted));
        assert_eq!((vmids.in_use(), vmids.find(2)), (2, None));
    }

    #[test]
    fn every_domain_gets_a_vmid_of_8_bits() {
        let mut vmids = Vmids::new(8, &[1]);
        assert!((0..MAX_DOMAINS).all(|domain| vmids.allocate(domain).is_ok()));
    }
}
