//! The invalidation module: which caches a change to a domain's page table must reach, and how it reaches them.
//!
//! A domain owns one sorted [`Array`] of the caches that may hold its translations ([`Entry`]): tags of IOTLBs, context
//! descriptors of nested streams, ATCs. Attach and detach edit it, one at a time; everybody who changes the page
//! table walks it with [`invalidate`], at any time and without waiting for them. The order that makes this safe:
//!
//! * whoever takes a translation away stores the descriptors, passes a full barrier, and then loads the array;
//! * whoever attaches a stream publishes the array with its entries, passes a full barrier, and then stores the STE or CD.
//!
//! So either the walk sees the entry, or the SMMU that uses it sees the new descriptors.
//!
//! # Attach, replace, detach
//! One order serves all three. To attach begins without an old domain, to detach ends without a new one.
//!
//! 1. [`Array::merge`] the stream's entries into the new domain's array, and publish it ([`Retired::replace`]).
//! 2. Write the STE or CD, and make the SMMU forget the old one.
//! 3. Flush the ATC of a stream that had ATS and has it still. One that comes to have it is flushed before step 2; one that has it
//!    no more need not be, since its Translated requests abort.
//! 4. A tag of the old domain whose only user is the stream is flushed ([`Entry::flush`], [`run`]). It is in the array still, so
//!    that nothing has changed when the SMMU fails. If others use the tag, and the stream is the only user of [`Target::S2VmidS1Clear`] under
//!    it, that is: nobody else would flush what stage 1 was combined with, and a stage 1 that comes back would find it.
//! 5. [`Array::unref`] the stream's entries from the old domain's array. With ATCs among them, [`Readers::await_readers`].
//! 6. Free the tags that have no users left, and [`Retired::tidy`].
//!
//! So a tag that stands in no array has no entry in any IOTLB, and one without [`Target::S2VmidS1Clear`] none of a stage 1.

mod array;
mod configuration;
mod entry;
mod queues;
mod readers;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod tests;
mod walk;

pub use array::{Array, ArrayPages, Cell, ENTRY_BYTES, NotThere, OutOfMemory};
pub use configuration::{bring_up, forget_atc, forget_cd, forget_ste};
pub use entry::{BadEntries, Entry, StreamEntries, Tag, Target, World};
pub use queues::{BATCH_COMMANDS, Batch, Queues, Traits, run};
pub use readers::{DomainIndex, Readers, Retired};
pub use walk::{Domain, InvalidationFailed, invalidate};

/// Most SMMUs of a machine.
pub const MAX_SMMUS: usize = 64;
