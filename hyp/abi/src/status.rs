//! What a call answers in `X0`.

/// Defines an enum of register values, whose documentation is also there at run time, for the printed reference.
macro_rules! documented {
    ($(#[$attribute:meta])* $name:ident: $repr:ty { $($variant:ident = $value:literal, $doc:literal;)* }) => {
        $(#[$attribute])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr($repr)]
        pub enum $name {
            $(#[doc = $doc] $variant = $value,)*
        }

        impl $name {
            /// Every value, in the order of the definition.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// What the value means.
            pub const fn doc(self) -> &'static str {
                match self {
                    $(Self::$variant => $doc,)*
                }
            }

            /// What a register value stands for; `None` if it is not defined.
            pub const fn from_register(value: u64) -> Option<Self> {
                match value.cast_signed() {
                    $($value => Some(Self::$variant),)*
                    _ => None,
                }
            }

            /// The register value.
            pub const fn to_register(self) -> u64 {
                self as $repr as u64
            }
        }
    };
}
pub(crate) use documented;

documented! {
    /// The outcome of a call. Negative values are errors, and an error has changed nothing but what
    /// [`Status::Hardware`] says.
    Status: i64 {
        Success = 0, "Done; for a range, `X1` says how many bytes of it (a caller goes on with the rest).";
        NotSupported = -1, "No such function (the value that DEN 0028 gives to an unknown function).";
        Unaligned = -2, "An address or a size is not a multiple of the ownership unit, is zero where that has no meaning, or wraps; or an address of a domain has more bits than `FEATURES` says.";
        NotRam = -3, "The range is not RAM that a host may own, or is outside the machine's address space.";
        WrongState = -4, "A page of the range is not in the state that the call starts from: it has another owner, is shared, is not shared, or is already where it should go.";
        NoMemory = -5, "Not enough free pages in EL2's pool: `X1` is how many more are needed.";
        UnknownGuest = -6, "No guest has this handle.";
        UnknownSmmu = -7, "There is no SMMU with this index.";
        UnknownStream = -8, "The SMMU has no such StreamID, or no PCI function behind it has it.";
        Busy = -9, "The stream, guest or page is in use in a way that excludes the call; undo that first.";
        NoSpace = -10, "A fixed table of EL2 is full (guests, domains, vSMMUs, VMIDs of an SMMU, held PCI functions, mappings of one page).";
        Invalid = -11, "An argument that is not an address, a size or a handle has a value that is not defined.";
        Hardware = -12, "Hardware failed or did not answer in time; the old state is restored, or the pages are quarantined and counted in `STATISTICS`.";
        Empty = -13, "There is nothing to read (no event is waiting).";
        UnknownDomain = -14, "No domain has this handle, or it is of a kind that the call is not for.";
        UnknownVsmmu = -15, "No vSMMU has this handle.";
        Incompatible = -16, "The SMMU cannot do what the domain needs: `X1` is the reason, of `abi::Reason`.";
        Illegal = -17, "A command, or a word of a stream table entry, says what its owner may not say: `X1` is its index, from 0.";
    }
}

impl Status {
    /// Where in [`Self::ALL`] it is.
    pub const fn place(self) -> usize {
        (self as i64).unsigned_abs() as usize
    }
}

documented! {
    /// Why an SMMU cannot serve a domain, in `X1` of [`Status::Incompatible`].
    Reason: u64 {
        Granule = 1, "It has not the granule of the domain's page table (IDR5).";
        InputSize = 2, "Its input addresses are narrower than those of the domain's page table (IDR5.OAS, IDR0.TTF).";
        OutputSize = 3, "Its output addresses are narrower than those of the domain's page table (IDR5.OAS).";
        Blocks = 4, "The domain's page table has blocks that are split in place, and it has not BBML 2 (IDR3).";
        Coherency = 5, "Its table walks are not coherent with the CPUs (IDR0.COHACC).";
        Format = 6, "It does not walk tables of this format or stage (IDR0).";
        Nesting = 7, "It cannot translate with two stages at once (IDR0, errata).";
        Ats = 8, "It has no ATS that leaves the device's requests to stage 2, and the boot configuration does not trust the stream.";
        Vsmmu = 9, "The domain is nested on a vSMMU of another SMMU, or the stream is not one of that vSMMU's.";
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_status_is_found_by_its_register_and_in_its_place() {
        for (place, status) in Status::ALL.iter().enumerate() {
            assert_eq!(Status::from_register(status.to_register()), Some(*status));
            assert_eq!(status.place(), place);
        }
        for value in [1, u64::MAX - 17, 1 << 63] {
            assert_eq!(Status::from_register(value), None);
        }
    }
}
