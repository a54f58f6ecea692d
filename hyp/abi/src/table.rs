//! What each call takes, answers and means: the source of `docs/hypercalls.md`.

use crate::{Function, MAX_INVALIDATIONS, Statistic, Status, attach, domain_options};

/// What a register of a call stands for: what whoever makes calls at random chooses from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A number below this one.
    Number(u64),
    /// These bits, each of which may be set.
    Bits(u64),
    /// Physical address of a page.
    Page,
    /// Physical address of commands.
    Commands,
    /// Bytes, from the address before.
    Size,
    /// Address in a domain.
    Ipa,
    /// Index of an SMMU.
    Smmu,
    /// StreamID on the SMMU before, or on that of the vSMMU before.
    Stream,
    /// StreamID in a vSMMU.
    VirtualStream,
    /// Handle of a guest.
    Guest,
    /// Handle of a guest, or 0 for the hypervisor.
    Recipient,
    /// Handle of a domain of any kind.
    Domain,
    /// Handle of a vSMMU.
    Vsmmu,
    /// Word 0 or 1 of a stream table entry.
    Entry(u8),
}

/// A register of a call or of its answer.
#[derive(Clone, Copy, Debug)]
pub struct Argument {
    /// What it stands for.
    pub kind: Kind,
    /// Its name.
    pub name: &'static str,
    /// Its unit, range and meaning.
    pub doc: &'static str,
}

/// One call.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// The function.
    pub function: Function,
    /// Name in the documentation.
    pub name: &'static str,
    /// What it does, and what it leaves as it was.
    pub doc: &'static str,
    /// Arguments in `X1` and up.
    pub arguments: &'static [Argument],
    /// Results in `X1` and up, when `X0` is [`Status::Success`].
    pub results: &'static [Argument],
    /// What `X0` can be besides [`Status::Success`].
    pub errors: &'static [Status],
}

impl Call {
    /// The entry of a function: each has one.
    pub fn of(function: Function) -> Option<&'static Self> {
        TABLE.get(Self::place(function))
    }

    /// Where in [`TABLE`] the entry of a function is.
    pub fn place(function: Function) -> usize {
        PLACES.get(slot(function)).map_or(TABLE.len(), |place| usize::from(*place))
    }
}

const fn argument(kind: Kind, name: &'static str, doc: &'static str) -> Argument {
    Argument { kind, name, doc }
}

/// A result that is nothing but a number.
const fn register(name: &'static str, doc: &'static str) -> Argument {
    argument(Kind::Number(u64::MAX), name, doc)
}

const START: Argument =
    argument(Kind::Page, "start", "physical address of the first byte; a multiple of the ownership unit");
const SIZE: Argument = argument(Kind::Size, "size", "bytes; a multiple of the ownership unit, not 0");
const DONE: Argument =
    register("done", "bytes changed, from `start`; less than `size` when the range is longer than one step");
const SMMU: Argument =
    argument(Kind::Smmu, "smmu", "index of the SMMU, 0 to `SMMU_COUNT` - 1, in the order of the device tree");
const STREAM: Argument = argument(Kind::Stream, "stream", "StreamID on that SMMU");
const GUEST: Argument = argument(Kind::Guest, "guest", "handle of a guest");
const DOMAIN: Argument = argument(Kind::Domain, "domain", "handle of a domain");
const GUEST_DOMAIN: Argument = argument(Kind::Domain, "domain", "what `DOMAIN_CREATE` answered");
const IPA: Argument = argument(Kind::Ipa, "ipa", "address in the domain; a multiple of the ownership unit");
const VSMMU: Argument = argument(Kind::Vsmmu, "vsmmu", "handle of a vSMMU");
const VIRTUAL_STREAM: Argument =
    argument(Kind::VirtualStream, "virtual_stream", "StreamID in the vSMMU, 32 bits");
const RANGE_ERRORS: [Status; 3] = [Status::Unaligned, Status::NotRam, Status::WrongState];

/// The place of each function in [`TABLE`], by [`slot`].
const PLACES: [u8; 128] = {
    let mut places = [u8::MAX; 128];
    let mut place = 0;
    while place < TABLE.len() {
        places[slot(TABLE[place].function)] = place as u8;
        place += 1;
    }
    places
};

/// A number below 128 that no other function has: the last byte of its id, which is below 0x7f but for what is not of the interface's range.
const fn slot(function: Function) -> usize {
    match function {
        Function::CallUid => 0x7f,
        function => function as usize & 0x7f,
    }
}

/// Every call, in the order of the documentation.
pub const TABLE: &[Call] = &[
    Call {
        function: Function::CallUid,
        name: "CALL_UID",
        doc: "Which hypervisor this is. Unlike all other calls it answers in `W0` to `W3`, as DEN 0028 says, and has no status.",
        arguments: &[],
        results: &[],
        errors: &[],
    },
    Call {
        function: Function::Version,
        name: "VERSION",
        doc: "The version of this interface. It is also the empty call that the benchmark measures.",
        arguments: &[],
        results: &[register("version", "major in bits 31:16, minor in bits 15:0")],
        errors: &[],
    },
    Call {
        function: Function::Features,
        name: "FEATURES",
        doc: "What this machine's hypervisor can do, and its limits.",
        arguments: &[],
        results: &[
            register(
                "features",
                "bits of `abi::features`: 0 range invalidation, 1 blocks in the I/O page tables, 15:8 how many bits an address of a stage-2 domain has",
            ),
            register("unit", "ownership unit in bytes: the largest granule in use by a CPU or an SMMU"),
            register("step", "the most bytes that one call changes"),
            register("guests", "the most guests that can exist at once"),
        ],
        errors: &[],
    },
    Call {
        function: Function::Statistics,
        name: "STATISTICS",
        doc: "One counter.",
        arguments: &[argument(Kind::Number(Statistic::ALL.len() as u64), "index", "of `abi::Statistic`")],
        results: &[register("value", "its value")],
        errors: &[Status::Invalid],
    },
    Call {
        function: Function::MemShare,
        name: "MEM_SHARE",
        doc: "The host lets the hypervisor or a guest use pages that the host owns and keeps. Each page must be the host's and not shared. The range is done in steps; call again with the rest.",
        arguments: &[
            START,
            SIZE,
            argument(Kind::Recipient, "with", "0 the hypervisor, else a guest's handle"),
        ],
        results: &[DONE],
        errors: &[
            RANGE_ERRORS[0],
            RANGE_ERRORS[1],
            RANGE_ERRORS[2],
            Status::UnknownGuest,
            Status::Busy,
            Status::NoMemory,
            Status::Hardware,
        ],
    },
    Call {
        function: Function::MemUnshare,
        name: "MEM_UNSHARE",
        doc: "The host ends a share. Each page must be the host's and shared with the one that is named; that one's DMA no longer reaches it when the call returns.",
        arguments: &[
            START,
            SIZE,
            argument(Kind::Recipient, "with", "0 the hypervisor, else a guest's handle"),
        ],
        results: &[DONE],
        errors: &[
            RANGE_ERRORS[0],
            RANGE_ERRORS[1],
            RANGE_ERRORS[2],
            Status::UnknownGuest,
            Status::Busy,
            Status::NoMemory,
            Status::Hardware,
        ],
    },
    Call {
        function: Function::MemDonate,
        name: "MEM_DONATE",
        doc: "The host gives pages to a guest: they leave the host's stage 2 and the host's domain, every CPU TLB, IOTLB and ATC forgets them, they are wiped, and only then are they the guest's, at the same addresses in the guest's domain. Each page must be the host's and not shared.",
        arguments: &[START, SIZE, GUEST],
        results: &[DONE],
        errors: &[
            RANGE_ERRORS[0],
            RANGE_ERRORS[1],
            RANGE_ERRORS[2],
            Status::UnknownGuest,
            Status::Busy,
            Status::NoMemory,
            Status::Hardware,
        ],
    },
    Call {
        function: Function::MemReclaim,
        name: "MEM_RECLAIM",
        doc: "The host takes pages of a guest back: the guest's domain and every cache forget them, they are wiped, and only then are they the host's again. Each page must be owned by that guest, and mapped in none of the domains that were made for it.",
        arguments: &[START, SIZE, GUEST],
        results: &[DONE],
        errors: &[
            RANGE_ERRORS[0],
            RANGE_ERRORS[1],
            RANGE_ERRORS[2],
            Status::UnknownGuest,
            Status::Busy,
            Status::NoMemory,
            Status::Hardware,
        ],
    },
    Call {
        function: Function::MemQuery,
        name: "MEM_QUERY",
        doc: "Who owns a page of RAM, and with whom the host shares it.",
        arguments: &[START],
        results: &[
            register(
                "owner",
                "0 the host, 1 to 64 a guest's handle, 0x100 the hypervisor, 0x101 nobody (quarantined)",
            ),
            register("shared", "0 not shared, 1 to 64 with that guest, 0x100 with the hypervisor"),
        ],
        errors: &[Status::Unaligned, Status::NotRam],
    },
    Call {
        function: Function::SmmuCount,
        name: "SMMU_COUNT",
        doc: "How many SMMUs EL2 owns.",
        arguments: &[],
        results: &[register("count", "1 or more")],
        errors: &[],
    },
    Call {
        function: Function::SmmuDescribe,
        name: "SMMU_DESCRIBE",
        doc: "What an SMMU is.",
        arguments: &[SMMU],
        results: &[
            register("base", "physical address of its registers (not in the host's stage 2)"),
            register("stream_bits", "width of a StreamID in bits"),
            register("vmids", "bits 15:0 VMIDs in use, bits 31:16 the largest VMID"),
            register("state", "0 translating, 1 dead: it failed and aborts every transaction"),
        ],
        errors: &[Status::UnknownSmmu],
    },
    Call {
        function: Function::StreamAttach,
        name: "STREAM_ATTACH",
        doc: "Lets a stream into a domain. Without `REPLACE` the stream must be unattached. With it, the stream must be attached to a domain of the same principal, and changes over in one step: at no moment is it translated by anything but the old domain or the new, and if the call fails it is still in the old one, without ATS if its device did not answer an invalidation. It is hitless where IHI 0070 allows that (3.21.3.1): between two stage 1s of a vSMMU, and between stage 1 and bypass there; where the stage-2 table or VMID changes, the stream's transactions abort for the moment in which the entry is not valid. For a domain of a guest the stream must be that of a PCI function behind a root port the device tree names: while it is attached, the config space of the function and of every bridge of every root complex, and the BARs of the function and of bridges on root buses, are out of the host's stage 2. Any other bridge must have no BAR that the host can reach: give it the address 0. A nested domain takes streams of its vSMMU only. With `ATS` the device may ask for translations, if the boot configuration trusts the stream. `ATS` says nothing for a nested domain: there EATS of the stream table entry that its owner gave does, and is granted also where the SMMU leaves the use of what the device gets to stage 2 (split-stage ATS). If the SMMU does not even let itself be turned off while the stream changes over, the call fails, and the stream keeps its hold on both domains.",
        arguments: &[
            SMMU,
            STREAM,
            argument(
                Kind::Domain,
                "domain",
                "0 the host's shared domain, 1 to 64 the memory domain of that guest, else what `DOMAIN_CREATE` or `DOMAIN_CREATE_NESTED` answered",
            ),
            argument(
                Kind::Bits(attach::REPLACE | attach::ATS),
                "flags",
                "bits of `abi::attach`: 0 `REPLACE`, 1 `ATS`; others must be 0",
            ),
        ],
        results: &[],
        errors: &[
            Status::UnknownSmmu,
            Status::UnknownStream,
            Status::UnknownGuest,
            Status::UnknownDomain,
            Status::Busy,
            Status::WrongState,
            Status::NoSpace,
            Status::NoMemory,
            Status::Invalid,
            Status::Incompatible,
            Status::Hardware,
        ],
    },
    Call {
        function: Function::StreamDetach,
        name: "STREAM_DETACH",
        doc: "Takes a stream out of its domain: its DMA faults when the call returns. The stream must be attached.",
        arguments: &[SMMU, STREAM],
        results: &[],
        errors: &[
            Status::UnknownSmmu,
            Status::UnknownStream,
            Status::Busy,
            Status::WrongState,
            Status::NoMemory,
            Status::Hardware,
        ],
    },
    Call {
        function: Function::StreamQuery,
        name: "STREAM_QUERY",
        doc: "Which domain a stream is attached to.",
        arguments: &[SMMU, STREAM],
        results: &[
            register("attached", "0 unattached, 1 attached"),
            register("domain", "the domain's handle, if attached"),
            register("vmid", "the tag of that domain on this SMMU, if attached"),
        ],
        errors: &[Status::UnknownSmmu, Status::UnknownStream],
    },
    Call {
        function: Function::EventRead,
        name: "EVENT_READ",
        doc: "Drains the hardware event queues, then takes the oldest event. Events of streams that belong to a guest are counted, not shown.",
        arguments: &[],
        results: &[
            register(
                "source",
                "bits 7:0 event number (IHI 0070, 7.3), 39:8 StreamID, 47:40 index of the SMMU, 48 InputAddr is valid, 49 write, 50 stage 2",
            ),
            register("address", "InputAddr (IHI 0070, 7.3), if it is valid"),
            register("ipa", "IPA of a stage-2 fault, bits 11:0 zero"),
            register("lost", "events lost since the last call that took one"),
        ],
        errors: &[Status::Empty],
    },
    Call {
        function: Function::PoolState,
        name: "POOL_STATE",
        doc: "How EL2's page pool stands.",
        arguments: &[],
        results: &[
            register("free", "free pages of 4 KiB, without the few that are kept for top ups"),
            register("total", "all pages of the pool"),
            register("donated", "pages of it that the host gave"),
            register(
                "free_donated",
                "pages that the host gave and that are free to be taken back, without those kept for top ups",
            ),
        ],
        errors: &[],
    },
    Call {
        function: Function::PoolTopUp,
        name: "POOL_TOP_UP",
        doc: "The host gives pages to EL2's pool. They leave the host's stage 2 and the host's domain and are wiped, as with a donation. Each page must be the host's and not shared. A few pages are kept for the tables that a top up itself may need, so an empty pool can be filled: after `NO_MEMORY` top up and repeat until the call works, with pages that are neighbours or with whole blocks of 2 MiB.",
        arguments: &[START, SIZE],
        results: &[DONE],
        errors: &[
            RANGE_ERRORS[0],
            RANGE_ERRORS[1],
            RANGE_ERRORS[2],
            Status::NoMemory,
            Status::NoSpace,
            Status::Hardware,
        ],
    },
    Call {
        function: Function::PoolGiveBack,
        name: "POOL_GIVE_BACK",
        doc: "The host takes one run of free pages that it gave to the pool before. EL2 chooses which; they are wiped first.",
        arguments: &[argument(
            Kind::Size,
            "size",
            "bytes: a power of two, from the ownership unit to one step",
        )],
        results: &[register("start", "physical address of the pages, which are the host's again")],
        errors: &[Status::Unaligned, Status::Empty, Status::NoMemory, Status::Hardware],
    },
    Call {
        function: Function::GuestCreate,
        name: "GUEST_CREATE",
        doc: "A new guest that owns nothing, with an I/O page table of its own.",
        arguments: &[],
        results: &[GUEST],
        errors: &[Status::NoSpace, Status::NoMemory],
    },
    Call {
        function: Function::GuestDestroy,
        name: "GUEST_DESTROY",
        doc: "Ends a guest. It must own no memory, have no memory shared with it and no stream attached: reclaim, unshare and detach first.",
        arguments: &[GUEST],
        results: &[],
        errors: &[Status::UnknownGuest, Status::Busy, Status::Hardware],
    },
    Call {
        function: Function::GuestTeardown,
        name: "GUEST_TEARDOWN",
        doc: "A step of taking a guest apart, whatever it has: its streams are detached, its domains and vSMMUs end, its memory is forgotten by every cache, wiped and given back, what is shared with it is the host's alone again, and at last the guest ends. From the first step on every other call for the guest answers `BUSY`. Each step is bounded and complete in itself; call again until `left` is 0. `HARDWARE` is the answer for as long as an SMMU that does not answer may use what the guest has: that is not given back.",
        arguments: &[GUEST],
        results: &[register("left", "0 the guest is gone, 1 there is more to do")],
        errors: &[Status::UnknownGuest, Status::NoMemory, Status::Busy, Status::Hardware],
    },
    Call {
        function: Function::DomainCreate,
        name: "DOMAIN_CREATE",
        doc: "A new domain of a guest, with a stage-2 page table of its own that maps the MSI doorbell and nothing else. One domain serves streams behind every SMMU that can walk its table.",
        arguments: &[
            GUEST,
            argument(
                Kind::Bits(domain_options::BLOCKS),
                "options",
                "bits of `abi::domain_options`: 0 `BLOCKS`; others must be 0",
            ),
        ],
        results: &[argument(Kind::Domain, "domain", "its handle")],
        errors: &[Status::UnknownGuest, Status::Busy, Status::NoSpace, Status::NoMemory, Status::Invalid],
    },
    Call {
        function: Function::DomainCreateNested,
        name: "DOMAIN_CREATE_NESTED",
        doc: "A new domain on a vSMMU: stage 1 is what the vSMMU's owner says in the two words of a stream table entry (IHI 0070, 5.2), stage 2 is that of the vSMMU's parent. Of the words only V, Config (abort, bypass or stage 1), S1Fmt, S1ContextPtr, S1CDMax, S1DSS, S1CIR, S1COR, S1CSH, S1STALLD, SHCFG and EATS may be set, to what this SMMU has; EL2 fixes the rest. Addresses in them, and in what they lead to, are IPAs of the parent.",
        arguments: &[
            VSMMU,
            argument(Kind::Entry(0), "word0", "bits 63:0 of the entry"),
            argument(Kind::Entry(1), "word1", "bits 127:64 of the entry"),
        ],
        results: &[argument(Kind::Domain, "domain", "its handle")],
        errors: &[Status::UnknownVsmmu, Status::Busy, Status::NoSpace, Status::Illegal],
    },
    Call {
        function: Function::DomainDestroy,
        name: "DOMAIN_DESTROY",
        doc: "Ends a domain that a call made. It must have no stream, no vSMMU and nothing mapped.",
        arguments: &[DOMAIN],
        results: &[],
        errors: &[Status::UnknownDomain, Status::Busy],
    },
    Call {
        function: Function::DomainMap,
        name: "DOMAIN_MAP",
        doc: "Maps pages that the domain's guest owns at an address of the domain, where nothing is mapped. A page can be mapped up to 255 times, and cannot be reclaimed while it is.",
        arguments: &[GUEST_DOMAIN, IPA, START, SIZE],
        results: &[DONE],
        errors: &[
            Status::UnknownDomain,
            RANGE_ERRORS[0],
            RANGE_ERRORS[1],
            RANGE_ERRORS[2],
            Status::Busy,
            Status::NoSpace,
            Status::NoMemory,
            Status::Hardware,
        ],
    },
    Call {
        function: Function::DomainUnmap,
        name: "DOMAIN_UNMAP",
        doc: "Takes a mapping away: when the call returns, no device of the domain reaches the pages through it. Done as far as the pages follow each other in memory; call again with the rest. Each page of the range must be mapped.",
        arguments: &[GUEST_DOMAIN, IPA, SIZE],
        results: &[register("done", "bytes taken away, from `ipa`")],
        errors: &[
            Status::UnknownDomain,
            Status::Unaligned,
            Status::WrongState,
            Status::Busy,
            Status::NoMemory,
            Status::Hardware,
        ],
    },
    Call {
        function: Function::DomainQuery,
        name: "DOMAIN_QUERY",
        doc: "Where an address of a stage-2 domain leads.",
        arguments: &[DOMAIN, argument(Kind::Ipa, "ipa", "any address of the domain")],
        results: &[
            register("address", "the physical address"),
            register("size", "bytes of the leaf that says so"),
        ],
        errors: &[Status::UnknownGuest, Status::UnknownDomain, Status::WrongState],
    },
    Call {
        function: Function::DomainDescribe,
        name: "DOMAIN_DESCRIBE",
        doc: "What a domain is, and what uses it.",
        arguments: &[DOMAIN],
        results: &[
            register(
                "kind",
                "0 stage 2, 1 nested, 2 what the host's driver says in the stream table of an emulated SMMU",
            ),
            register(
                "parent",
                "of a nested domain the handle of its vSMMU, of an emulated SMMU's its index, else 0",
            ),
            register("streams", "streams that are attached"),
            register("users", "vSMMUs on top of it"),
        ],
        errors: &[Status::UnknownGuest, Status::UnknownDomain],
    },
    Call {
        function: Function::DomainTag,
        name: "DOMAIN_TAG",
        doc: "Which tag a domain has on an SMMU. It lives as long as the domain has a stream there; that of a nested domain is its vSMMU's and lives as long as that.",
        arguments: &[DOMAIN, SMMU],
        results: &[
            register("kind", "0 none, 1 a VMID of its own, 2 the VMID of a vSMMU"),
            register("vmid", "the VMID, if there is one"),
            register("users", "streams that use it"),
        ],
        errors: &[Status::UnknownGuest, Status::UnknownDomain, Status::UnknownSmmu],
    },
    Call {
        function: Function::VsmmuCreate,
        name: "VSMMU_CREATE",
        doc: "What a principal sees of an SMMU: StreamIDs of its own, stage 1 on top of a stage-2 domain, invalidation. It belongs to the owner of the domain, and has a VMID that lives as long as it does.",
        arguments: &[
            SMMU,
            argument(Kind::Domain, "domain", "handle of the stage-2 domain that it stands on"),
        ],
        results: &[argument(Kind::Vsmmu, "vsmmu", "its handle"), register("vmid", "its VMID on that SMMU")],
        errors: &[
            Status::UnknownSmmu,
            Status::UnknownGuest,
            Status::UnknownDomain,
            Status::Busy,
            Status::NoSpace,
            Status::Incompatible,
            Status::Hardware,
        ],
    },
    Call {
        function: Function::VsmmuDestroy,
        name: "VSMMU_DESTROY",
        doc: "Ends a vSMMU. It must have no nested domain and no StreamIDs.",
        arguments: &[VSMMU],
        results: &[],
        errors: &[Status::UnknownVsmmu, Status::Busy, Status::Hardware],
    },
    Call {
        function: Function::VsmmuAddStream,
        name: "VSMMU_ADD_STREAM",
        doc: "Gives a stream of the vSMMU's SMMU a StreamID in the vSMMU. The stream must be in no other vSMMU, and unattached or attached to a domain of the same principal.",
        arguments: &[VSMMU, VIRTUAL_STREAM, argument(Kind::Stream, "stream", "StreamID on the SMMU")],
        results: &[],
        errors: &[
            Status::UnknownVsmmu,
            Status::UnknownStream,
            Status::Invalid,
            Status::Busy,
            Status::NoSpace,
            Status::NoMemory,
        ],
    },
    Call {
        function: Function::VsmmuRemoveStream,
        name: "VSMMU_REMOVE_STREAM",
        doc: "Takes a StreamID out of a vSMMU. The stream must not be attached to a nested domain.",
        arguments: &[VSMMU, VIRTUAL_STREAM],
        results: &[],
        errors: &[Status::UnknownVsmmu, Status::UnknownStream, Status::Busy],
    },
    Call {
        function: Function::VsmmuQueryStream,
        name: "VSMMU_QUERY_STREAM",
        doc: "Which stream a StreamID of a vSMMU is.",
        arguments: &[VSMMU, VIRTUAL_STREAM],
        results: &[
            STREAM,
            register("nested", "1 if it is attached to a nested domain, else 0"),
            register("domain", "the nested domain's handle, if it is attached to one"),
        ],
        errors: &[Status::UnknownVsmmu, Status::UnknownStream],
    },
    Call {
        function: Function::VsmmuInvalidate,
        name: "VSMMU_INVALIDATE",
        doc: "Sends invalidation commands of a vSMMU's owner, in order, and waits until they are complete. Allowed are CMD_CFGI_CD, CMD_CFGI_CD_ALL, CMD_TLBI_NH_ALL, CMD_TLBI_NH_ASID, CMD_TLBI_NH_VA, CMD_TLBI_NH_VAA, CMD_TLBI_NSNH_ALL (which is CMD_TLBI_NH_ALL here), CMD_ATC_INV where the SMMU has ATS, and CMD_SYNC without interrupt, with the fields that IHI 0070 gives them on this SMMU and no others set. VMIDs are replaced by the vSMMU's, StreamIDs by the ones they stand for. All are read once and checked before the first is sent.",
        arguments: &[
            VSMMU,
            argument(
                Kind::Commands,
                "commands",
                "physical address of the commands, 16 bytes each, in one page of the host's; a multiple of 16",
            ),
            argument(Kind::Number(MAX_INVALIDATIONS + 1), "count", "how many, 1 to 64"),
        ],
        results: &[register("done", "how many: all of them")],
        errors: &[
            Status::UnknownVsmmu,
            Status::Unaligned,
            Status::NotRam,
            Status::WrongState,
            Status::Invalid,
            Status::Illegal,
            Status::Busy,
            Status::Hardware,
        ],
    },
    Call {
        function: Function::SmmuTags,
        name: "SMMU_TAGS",
        doc: "How many VMIDs of an SMMU are in use and free. One is in use for the streams that nobody attached and, where the SMMU can nest, one for those of the host's own driver; the others are those of domains and vSMMUs.",
        arguments: &[SMMU],
        results: &[register("used", "VMIDs in use"), register("free", "VMIDs that are free")],
        errors: &[Status::UnknownSmmu],
    },
    Call {
        function: Function::SmmuFeatures,
        name: "SMMU_FEATURES",
        doc: "What an SMMU can do for the owner of a vSMMU on it, as the ID registers of an SMMU with stage 1 alone would say (IHI 0070, 6.3): `S1P` is 0 where it cannot nest; stage 2, StreamWorld EL2, broadcast TLB maintenance, HTTU, PRI, MSIs, wake-up events and stalls are hidden (`STALL_MODEL` 0b01); `ATS` is there where it can be granted to a stream, `SIDSIZE` is 32, `CMDQS` stands for the most commands of one `VSMMU_INVALIDATE`. Errata are taken into account.",
        arguments: &[SMMU],
        results: &[
            register("idr0", "SMMU_IDR0"),
            register("idr1", "SMMU_IDR1"),
            register("idr3", "SMMU_IDR3"),
            register("idr5", "SMMU_IDR5"),
        ],
        errors: &[Status::UnknownSmmu],
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_function_has_its_entry() {
        for (place, call) in TABLE.iter().enumerate() {
            assert_eq!(Call::place(call.function), place, "{}", call.name);
            assert_eq!(Call::of(call.function).map(|of| of.name), Some(call.name));
        }
    }
}
