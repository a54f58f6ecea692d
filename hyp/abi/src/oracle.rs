//! The oracle's call: what checks the hypervisor from inside while it is fuzzed.
//!
//! It is no part of the interface: only an image that was built with the feature `oracle` of `hyp` answers it, and the release image
//! says `NOT_SUPPORTED`, as it does of any other function that there is not.

use crate::status::documented;

/// The function id. No function of the interface has it.
pub const FUNCTION: u32 = 0xc600_fff0;

/// What to do: `X1` of the call.
pub mod request {
    /// Check one page (`X2`, an address, or [`NO_PAGE`]) and one stream (`X3` bits 31:0, on the SMMU in 63:32), and what counts everything. As
    /// fast as a call.
    pub const STEP: u64 = 0;
    /// Check everything. The locks are held meanwhile, so no call is half way; it is not bounded as calls are.
    pub const ALL: u64 = 1;
    /// Answer in `X1` a digest of all that calls can change and see. Two are equal when nothing was changed in between.
    pub const DIGEST: u64 = 2;
    /// The address of [`STEP`] when no page is to be checked.
    pub const NO_PAGE: u64 = u64::MAX;
}

documented! {
    /// What is wrong: `X0` of the answer, 0 being that nothing is. `X1` to `X3` are what the text says, in that order.
    Wrong: u64 {
        Request = 1, "the oracle does not know this request";
        PageState = 2, "a page's state is none that is defined (page, state)";
        PageOwner = 3, "a page belongs to or is shared with a guest that is not there (page, state)";
        GuestPages = 4, "a guest has not as many pages as it counts (guest, counted, found)";
        Kept = 5, "a page that the hypervisor keeps is not its own (page, state)";
        Extra = 6, "a table maps what its owner may not reach (domain or -1 for the CPUs, input address, output address)";
        Missing = 7, "a table does not map all that its owner may reach (domain or -1 for the CPUs, pages that it maps, pages that it should)";
        Leaf = 8, "a leaf leads elsewhere or has other attributes than it should (domain or -1 for the CPUs, input address, output address)";
        Table = 9, "a table descriptor says something else of its table than what is in it (table, entries it says, entries there are)";
        Mappings = 10, "pages of a guest are not mapped as often as is counted (guest, counted, found)";
        DomainPages = 11, "a domain does not map as much as it counts (domain, counted, found)";
        PoolCount = 12, "pages of the pool are lost: (pages that are taken, pages that somebody has, pages that are free)";
        PoolTwice = 13, "a page of the pool is in use twice, or is in use and free (page, what has it)";
        PoolForeign = 14, "what is in use as memory of the hypervisor is not its own (page, what has it)";
        TablePages = 15, "page tables take not as many pages as are counted (counted, found)";
        Entry = 16, "a stream table entry is not what its stream is attached to (SMMU, stream, first word that differs)";
        EntryTag = 17, "a stream table entry has a VMID that is nobody's (SMMU, stream, VMID)";
        DomainStreams = 18, "a domain has not as many streams as it counts (domain, counted, found)";
        TagOwner = 19, "a VMID is not that of whom it is said to be (SMMU, VMID, what the table of VMIDs says)";
        TagCount = 20, "not as many VMIDs are taken as are counted (SMMU, counted, found)";
        ArrayUsers = 21, "an invalidation array has not as many users of a VMID as there are streams (SMMU, VMID, users, which say what streams are)";
        GuestStreams = 22, "a stream of a guest is not on the list of them, or the other way round (SMMU, stream)";
        VirtualStreams = 23, "a vSMMU and its streams do not know each other (SMMU, stream, place of the vSMMU)";
        Objects = 24, "a vSMMU or domain stands on what is not there, or counts what stands on it wrongly (place, counted, found)";
        Pins = 25, "pages are not pinned as often as the interrupt controller uses them (counted, found)";
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oracle_is_no_function_of_the_interface() {
        assert_eq!(crate::Function::from_id(FUNCTION), None);
    }

    #[test]
    fn what_is_wrong_is_no_status() {
        for wrong in Wrong::ALL {
            assert_eq!(Wrong::from_register(wrong.to_register()), Some(*wrong));
            assert_eq!(crate::Status::from_register(wrong.to_register()), None);
        }
        assert_eq!(Wrong::from_register(0), None);
    }
}
