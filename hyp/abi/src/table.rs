//! What each call takes, answers and means: the source of `docs/hypercalls.md`.

use crate::{Function, Status};

/// A register of a call or of its answer.
#[derive(Clone, Copy, Debug)]
pub struct Argument {
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

const fn register(name: &'static str, doc: &'static str) -> Argument {
    Argument { name, doc }
}

const START: Argument =
    register("start", "physical address of the first byte; a multiple of the ownership unit");
const SIZE: Argument = register("size", "bytes; a multiple of the ownership unit, not 0");
const DONE: Argument =
    register("done", "bytes changed, from `start`; less than `size` when the range is longer than one step");
const SMMU: Argument =
    register("smmu", "index of the SMMU, 0 to `SMMU_COUNT` - 1, in the order of the device tree");
const STREAM: Argument = register("stream", "StreamID on that SMMU");
const GUEST: Argument = register("guest", "handle of a guest");
const RANGE_ERRORS: [Status; 3] = [Status::Unaligned, Status::NotRam, Status::WrongState];

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
                "bits of `abi::features`: 0 range invalidation, 1 blocks in the I/O page tables",
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
        arguments: &[register("index", "of `abi::Statistic`")],
        results: &[register("value", "its value")],
        errors: &[Status::Invalid],
    },
    Call {
        function: Function::MemShare,
        name: "MEM_SHARE",
        doc: "The host lets the hypervisor or a guest use pages that the host owns and keeps. Each page must be the host's and not shared. The range is done in steps; call again with the rest.",
        arguments: &[START, SIZE, register("with", "0 the hypervisor, else a guest's handle")],
        results: &[DONE],
        errors: &[
            RANGE_ERRORS[0],
            RANGE_ERRORS[1],
            RANGE_ERRORS[2],
            Status::UnknownGuest,
            Status::NoMemory,
            Status::Hardware,
        ],
    },
    Call {
        function: Function::MemUnshare,
        name: "MEM_UNSHARE",
        doc: "The host ends a share. Each page must be the host's and shared with the one that is named; that one's DMA no longer reaches it when the call returns.",
        arguments: &[START, SIZE, register("with", "0 the hypervisor, else a guest's handle")],
        results: &[DONE],
        errors: &[
            RANGE_ERRORS[0],
            RANGE_ERRORS[1],
            RANGE_ERRORS[2],
            Status::UnknownGuest,
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
            Status::NoMemory,
            Status::Hardware,
        ],
    },
    Call {
        function: Function::MemReclaim,
        name: "MEM_RECLAIM",
        doc: "The host takes pages of a guest back: the guest's domain and every cache forget them, they are wiped, and only then are they the host's again. Each page must be owned by that guest.",
        arguments: &[START, SIZE, GUEST],
        results: &[DONE],
        errors: &[
            RANGE_ERRORS[0],
            RANGE_ERRORS[1],
            RANGE_ERRORS[2],
            Status::UnknownGuest,
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
        doc: "Lets a stream into a domain. The stream must be unattached. For a guest's domain the stream must be that of a PCI function behind a root port the device tree names: while it is attached, the config space of the function and of every bridge of its root complex, and the function's BARs, are out of the host's stage 2.",
        arguments: &[
            SMMU,
            STREAM,
            register("domain", "0 the host's shared domain, else the handle of the guest whose domain it is"),
        ],
        results: &[],
        errors: &[
            Status::UnknownSmmu,
            Status::UnknownStream,
            Status::UnknownGuest,
            Status::Busy,
            Status::NoSpace,
            Status::NoMemory,
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
        arguments: &[register("size", "bytes: a power of two, from the ownership unit to one step")],
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
];
