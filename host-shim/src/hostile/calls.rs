//! Hypercalls with arguments from the table of the interface.

use super::action::Action;
use super::knowledge::Knowledge;
use super::step::Choices;
use abi::{Argument, Call, Function, Kind, TABLE};
use smmuv3::command::opcode;

/// Calls that make more of the others possible: half of all calls are of these.
const FAVOURED: [Function; 24] = [
    Function::GuestCreate,
    Function::GuestTeardown,
    Function::GuestTeardown,
    Function::MemDonate,
    Function::MemDonate,
    Function::MemDonate,
    Function::MemReclaim,
    Function::MemReclaim,
    Function::MemShare,
    Function::MemUnshare,
    Function::PoolTopUp,
    Function::PoolGiveBack,
    Function::StreamAttach,
    Function::StreamAttach,
    Function::StreamAttach,
    Function::StreamDetach,
    Function::StreamDetach,
    Function::DomainCreate,
    Function::DomainMap,
    Function::DomainMap,
    Function::DomainUnmap,
    Function::VsmmuCreate,
    Function::VsmmuAddStream,
    Function::DomainCreateNested,
];

/// How many guests there are mostly.
const GUESTS: usize = 4;

/// How many may be half taken apart before another one is made.
const ENDINGS: usize = 2;

/// A call of any function, or of one that there is not.
pub fn any(choices: &mut Choices<'_>, known: &Knowledge) -> Action {
    let how = choices.byte();
    let function = match how {
        0..124 => choices.of(&FAVOURED).unwrap_or(Function::Version),
        124..252 => {
            let n = choices.below(TABLE.len() as u64);
            TABLE.get(n as usize).map_or(Function::Version, |call| call.function)
        }
        _ => {
            // Of the range of the interface, or any.
            let id =
                if choices.seldom(64) { choices.word() as u32 } else { 0xc600_0000 | choices.byte() as u32 };
            return Action::Call { id, arguments: [choices.word(), choices.word(), choices.half(), 0] };
        }
    };
    // Few guests, that live long, are more to attack than many that own nothing.
    let function = match function {
        Function::GuestCreate if known.endings() >= ENDINGS => Function::GuestTeardown,
        Function::GuestCreate if known.guests() >= GUESTS && !choices.seldom(16) => Function::MemDonate,
        Function::GuestTeardown if known.ending().is_none() && !choices.seldom(16) => Function::MemReclaim,
        function => function,
    };
    let arguments = Call::of(function).map_or(&[][..], |call| call.arguments);
    let mut registers = registers(choices, known, arguments);
    if !choices.seldom(64) {
        let_it_succeed(choices, known, function, &mut registers);
    }
    Action::Call { id: function.id(), arguments: registers }
}

/// Has a call go on from what earlier ones did, where at random it hardly would.
fn let_it_succeed(
    choices: &mut Choices<'_>,
    known: &Knowledge,
    function: Function,
    registers: &mut [u64; 4],
) {
    let [x1, x2, x3, x4] = registers;
    match function {
        Function::MemReclaim | Function::MemUnshare => {
            let held =
                if function == Function::MemReclaim { known.given(choices) } else { known.shared(choices) };
            if let Some(held) = held {
                (*x1, *x2, *x3) = (held.start, held.size, held.by);
            }
        }
        Function::DomainMap => {
            if let Some(held) = known.given(choices)
                && let Some(domain) = known.domain_of(held.by)
            {
                // Also what is given in part.
                let more = if choices.seldom(16) { known.places().unit } else { 0 };
                (*x1, *x3, *x4) = (domain, held.start, held.size + more);
            }
        }
        Function::DomainUnmap => {
            if let Some(held) = known.mapped(choices) {
                (*x1, *x2, *x3) = (held.by, held.start, held.size);
            }
        }
        Function::PoolTopUp => (*x1, *x2) = known.far(choices),
        Function::GuestTeardown => *x1 = known.ending().unwrap_or(*x1),
        _ => {}
    }
}

/// Arguments, of which one may be anything at all.
fn registers(choices: &mut Choices<'_>, known: &Knowledge, arguments: &[Argument]) -> [u64; 4] {
    let mut registers = [0; 4];
    let mut before = Before { smmu: 0, page: None };
    for (register, argument) in registers.iter_mut().zip(arguments) {
        *register = of_kind(choices, known, argument.kind, &mut before);
    }
    if choices.seldom(8) {
        let n = choices.below(4) as usize;
        if let Some(register) = registers.get_mut(n) {
            *register = known.anything(choices);
        }
    }
    registers
}

/// What the arguments before say of one.
struct Before {
    smmu: usize,
    page: Option<u64>,
}

fn of_kind(choices: &mut Choices<'_>, known: &Knowledge, kind: Kind, before: &mut Before) -> u64 {
    match kind {
        Kind::Number(count) => choices.half() % count.max(1),
        Kind::Bits(bits) => u64::from(choices.byte()) & bits,
        Kind::Page => {
            let page = known.page(choices);
            before.page = Some(page);
            page
        }
        Kind::Commands => known.places().commands(),
        Kind::Size => known.size(choices, before.page),
        Kind::Ipa => known.ipa(choices),
        Kind::Smmu => {
            before.smmu = known.smmu(choices);
            before.smmu as u64
        }
        Kind::Stream => known.stream(choices, before.smmu),
        Kind::VirtualStream => choices.below(4),
        Kind::Guest => known.guest(choices),
        Kind::Recipient => {
            if choices.seldom(64) {
                0
            } else {
                known.guest(choices)
            }
        }
        Kind::Domain => known.domain(choices),
        Kind::Vsmmu => {
            let (vsmmu, smmu) = known.vsmmu(choices);
            before.smmu = smmu;
            vsmmu
        }
        Kind::Entry(word) => entry_word(choices, known, word),
    }
}

/// Word 0 or 1 of an STE as an owner gives it (IHI 0070, 5.2): mostly what is legal.
pub fn entry_word(choices: &mut Choices<'_>, known: &Knowledge, word: u8) -> u64 {
    let how = choices.byte();
    if how >= 248 {
        return choices.word();
    }
    if word == 0 {
        // V and Config: abort, bypass, stage 1; S1Fmt, S1ContextPtr, S1CDMax.
        return match how % 8 {
            0 => 1,
            1 | 2 => 1 | 0b100 << 1,
            _ => {
                let cd_max = if choices.seldom(64) { choices.below(32) } else { 2 * choices.below(2) };
                let format = if choices.seldom(32) { choices.below(4) } else { 0 };
                1 | 0b101 << 1 | format << 4 | known.places().contexts() | cd_max << 59
            }
        };
    }
    // S1DSS, attributes of the descriptors' table, EATS, SHCFG = incoming.
    let ats = if how % 8 == 7 { 1 << 28 } else { 0 };
    1 << 44 | ats | choices.below(3) | u64::from(choices.byte() & 0x3c)
}

/// Commands of a vSMMU's owner.
pub fn invalidate(choices: &mut Choices<'_>, known: &Knowledge) -> Action {
    let (vsmmu, _) = known.vsmmu(choices);
    Action::Invalidate { vsmmu, commands: [(); 2].map(|()| command(choices, known, choices_stream)) }
}

fn choices_stream(choices: &mut Choices<'_>) -> u64 {
    choices.below(4)
}

/// A command (IHI 0070, 4.1 to 4.7): mostly a legal one, of a stream that `stream` chooses.
pub fn command(
    choices: &mut Choices<'_>,
    known: &Knowledge,
    stream: impl Fn(&mut Choices<'_>) -> u64,
) -> [u64; 2] {
    let code = |opcode: u8| u64::from(opcode);
    let asid = |choices: &mut Choices<'_>| (1 + choices.below(2)) << 48;
    match choices.below(16) {
        0 | 1 => [code(opcode::CFGI_STE) | stream(choices) << 32, 1],
        2 => [code(opcode::CFGI_CD_ALL) | stream(choices) << 32, 0],
        3 | 4 => [code(opcode::CFGI_CD) | choices.below(4) << 12 | stream(choices) << 32, 1],
        5 => [code(opcode::CFGI_STE_RANGE) | stream(choices) << 32, choices.below(32)],
        6 => [code(opcode::TLBI_NH_ALL), 0],
        7 => [code(opcode::TLBI_NSNH_ALL), 0],
        8 => [code(opcode::TLBI_NH_ASID) | asid(choices), 0],
        9 => {
            let leaf = choices.below(2);
            [
                code(opcode::TLBI_NH_VA) | asid(choices),
                known.places().virtual_address(choices.below(5)) | leaf,
            ]
        }
        10 => {
            // NUM, SCALE; TG, TTL.
            let range = choices.half();
            let granule = u64::from((known.places().log2() - 10) / 2) << 10;
            let low = code(opcode::TLBI_NH_VAA) | (range & 0x1f) << 12 | (range >> 5 & 0x1f) << 20;
            [low, known.places().virtual_address(choices.below(5)) | granule | (range >> 10 & 3) << 8]
        }
        11 => [code(opcode::ATC_INV) | stream(choices) << 32, choices.below(53)],
        12 | 13 => [code(opcode::SYNC), 0],
        // CS = 0b01: an MSI, to a place of the host's or anywhere.
        14 => [code(opcode::SYNC) | 1 << 12 | u64::from(choices.byte()) << 32, known.page(choices)],
        _ => {
            // With all bits at random most are illegal; with none of them more are legal.
            let (opcode, plain) = (choices.below(0x88), choices.below(2) == 0);
            if plain { [opcode, 0] } else { [choices.word() & !0xff | opcode, choices.word()] }
        }
    }
}
