//! Each register, with each of its bits, and what is none (IHI 0070, 6.2 and 6.3). Masks and guards are written down from there, and not the emulation's own.

extern crate std;

use std::vec::Vec;

use smmuv3::registers::{CR0_OFFSET, CR0ACK_OFFSET, IRQ_CTRL_OFFSET, IRQ_CTRLACK_OFFSET, PAGE1};

use super::driver::{CMDQEN, EVENTQEN, SMMUEN};
use super::rig::Rig;

/// Bytes of the register space: two pages of 64 KiB.
const SPACE_BYTES: u64 = 2 * PAGE1;
const CMDQ_BASE: u64 = 0x90;
const CMDQ_PROD: u64 = 0x98;
const CMDQ_CONS: u64 = 0x9c;
/// IRQ_CTRL.
const GERROR_IRQEN: u32 = 1 << 0;
const EVENTQ_IRQEN: u32 = 1 << 2;

/// What turns something on, and with it guards registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Enable {
    Cr0(u32),
    IrqCtrl(u32),
}

const ENABLES: [Enable; 5] = [
    Enable::Cr0(SMMUEN),
    Enable::Cr0(EVENTQEN),
    Enable::Cr0(CMDQEN),
    Enable::IrqCtrl(GERROR_IRQEN),
    Enable::IrqCtrl(EVENTQ_IRQEN),
];

/// A word that can be written: where, where it can be seen too, its bits, and which of them an enable guards.
struct Word {
    offset: u64,
    alias: Option<u64>,
    bits: u32,
    guards: &'static [(Enable, u32)],
}

const fn word(offset: u64, bits: u32, guards: &'static [(Enable, u32)]) -> Word {
    Word { offset, alias: None, bits, guards }
}

const ALL: u32 = u32::MAX;
const BY_SMMUEN: &[(Enable, u32)] = &[(Enable::Cr0(SMMUEN), ALL)];
const BY_CMDQEN: &[(Enable, u32)] = &[(Enable::Cr0(CMDQEN), ALL)];
const BY_EVENTQEN: &[(Enable, u32)] = &[(Enable::Cr0(EVENTQEN), ALL)];
const BY_GERROR_IRQEN: &[(Enable, u32)] = &[(Enable::IrqCtrl(GERROR_IRQEN), ALL)];
const BY_EVENTQ_IRQEN: &[(Enable, u32)] = &[(Enable::IrqCtrl(EVENTQ_IRQEN), ALL)];
/// CR1.TABLE_*, and CR1.QUEUE_* (6.3.11).
const CR1_GUARDS: &[(Enable, u32)] =
    &[(Enable::Cr0(SMMUEN), 0xfc0), (Enable::Cr0(CMDQEN), 0x3f), (Enable::Cr0(EVENTQEN), 0x3f)];

const WORDS: [Word; 23] = [
    word(0x28, 0xfff, CR1_GUARDS),
    // RECINVSID: there is neither HYP nor BTM.
    word(0x2c, 0b010, BY_SMMUEN),
    // There is no PRI.
    Word { alias: Some(IRQ_CTRLACK_OFFSET), ..word(IRQ_CTRL_OFFSET, 0b101, &[]) },
    word(0x68, 0xffff_fffc, BY_GERROR_IRQEN),
    word(0x6c, 0x00ff_ffff, BY_GERROR_IRQEN),
    word(0x70, ALL, BY_GERROR_IRQEN),
    word(0x74, 0x3f, BY_GERROR_IRQEN),
    word(0x80, 0xffff_ffc0, BY_SMMUEN),
    word(0x84, 0x400f_ffff, BY_SMMUEN),
    word(0x88, 0x0003_07ff, BY_SMMUEN),
    word(CMDQ_BASE, ALL, BY_CMDQEN),
    word(0x94, 0x400f_ffff, BY_CMDQEN),
    word(CMDQ_PROD, 0x000f_ffff, &[]),
    word(CMDQ_CONS, 0x000f_ffff, BY_CMDQEN),
    word(0xa0, ALL, BY_EVENTQEN),
    word(0xa4, 0x400f_ffff, BY_EVENTQEN),
    word(0xb0, 0xffff_fffc, BY_EVENTQ_IRQEN),
    word(0xb4, 0x00ff_ffff, BY_EVENTQ_IRQEN),
    word(0xb8, ALL, BY_EVENTQ_IRQEN),
    word(0xbc, 0x3f, BY_EVENTQ_IRQEN),
    Word { alias: Some(0xa8), ..word(PAGE1 + 0xa8, 0x800f_ffff, BY_EVENTQEN) },
    Word { alias: Some(0xac), ..word(PAGE1 + 0xac, 0x800f_ffff, &[]) },
    // It acknowledges errors that are active: there is none.
    word(0x64, 0, &[]),
];

/// Registers that can only be read, and of these tests all the same (CR0 has its own): IDR0 to AIDR but IDR2 and IDR4, CR0ACK, GBPA, IRQ_CTRLACK, GERROR.
const READ_ONLY: [u64; 10] =
    [0x00, 0x04, 0x0c, 0x14, 0x18, 0x1c, CR0ACK_OFFSET, 0x44, IRQ_CTRLACK_OFFSET, 0x60];

/// An SMMU out of reset, whose command queue has 2^19 entries: of CMDQ_CONS there are as many bits as the queue needs.
fn rig() -> Rig {
    let mut rig = Rig::new();
    rig.write(CMDQ_BASE, 19);
    rig
}

/// All words of the register space.
fn all(rig: &mut Rig) -> Vec<u32> {
    (0..SPACE_BYTES).step_by(4).map(|offset| rig.read(offset)).collect()
}

/// The offsets of words that differ.
fn changed(before: &[u32], after: &[u32]) -> Vec<u64> {
    let words = (0..).step_by(4).zip(before.iter().zip(after));
    words.filter(|(_, (before, after))| before != after).map(|(offset, _)| offset).collect()
}

#[test]
fn each_bit_of_each_register_is_kept_or_reads_as_zero() {
    for Word { offset, alias, bits, .. } in WORDS {
        for bit in (0..32).map(|bit| 1 << bit).chain([ALL, 0]) {
            let mut rig = rig();
            let before = all(&mut rig);
            rig.write(offset, bit);
            assert_eq!(rig.read(offset), bit & bits, "{bit:#x} at {offset:#x}");
            for changed in changed(&before, &all(&mut rig)) {
                assert!(
                    changed == offset || Some(changed) == alias,
                    "{bit:#x} at {offset:#x} changes {changed:#x}"
                );
            }
            if let Some(alias) = alias {
                assert_eq!(rig.read(alias), bit & bits, "{bit:#x} at {offset:#x}, seen at {alias:#x}");
            }
        }
    }
}

/// 6.3.9: there are SMMUEN, EVENTQEN, CMDQEN and ATSCHK; and CR0ACK says when what they ask for is done.
#[test]
fn each_bit_of_cr0_is_acknowledged_or_reads_as_zero() {
    for bit in (0..32).map(|bit| 1 << bit).chain([ALL, 0]) {
        let mut rig = rig();
        rig.write(CR0_OFFSET, bit);
        for offset in [CR0_OFFSET, CR0ACK_OFFSET] {
            assert_eq!(rig.read(offset), bit & 0b1_1101, "{bit:#x} in CR0, at {offset:#x}");
        }
    }
}

#[test]
fn a_register_is_guarded_while_what_it_is_for_is_on_and_at_no_other_time() {
    for enable in ENABLES {
        for Word { offset, bits, guards, .. } in WORDS {
            // A store that adds commands has them carried out; and what enables interrupts is not written beside itself.
            let is_own = match enable {
                Enable::Cr0(CMDQEN) => offset == CMDQ_PROD,
                Enable::IrqCtrl(_) => offset == IRQ_CTRL_OFFSET,
                Enable::Cr0(_) => false,
            };
            if is_own {
                continue;
            }
            let mut rig = rig();
            match enable {
                Enable::Cr0(bit) => rig.write(CR0_OFFSET, bit),
                Enable::IrqCtrl(bit) => rig.write(IRQ_CTRL_OFFSET, bit),
            }
            let before = rig.read(offset);
            let guarded = guards.iter().find(|(by, _)| *by == enable).map_or(0, |(_, guarded)| *guarded);
            // Another value in every bit.
            rig.write(offset, !before);
            let expected = (before & guarded | !before & !guarded) & bits;
            assert_eq!(rig.read(offset), expected, "{:#x} at {offset:#x} with {enable:x?}", !before);
        }
    }
}

#[test]
fn what_is_no_register_or_only_read_keeps_nothing() {
    let mut rig = rig();
    let before = all(&mut rig);
    let is_known = |offset: u64| {
        let is_here = |word: &Word| word.offset == offset || word.alias == Some(offset);
        offset == CR0_OFFSET || WORDS.iter().any(is_here)
    };
    for offset in
        (0..SPACE_BYTES).step_by(4).filter(|offset| !is_known(*offset) || READ_ONLY.contains(offset))
    {
        rig.write(offset, ALL);
        let is_register = READ_ONLY.contains(&offset);
        assert!(is_register || rig.read(offset) == 0, "{offset:#x} reads as zero");
    }
    assert_eq!(changed(&before, &all(&mut rig)), []);
}

#[test]
fn registers_of_64_bits_go_by_halves_or_whole() {
    for offset in [0x68, 0x80, CMDQ_BASE, 0xa0, 0xb0] {
        let mut whole = rig();
        whole.write_u64(offset, u64::MAX);
        let mut halves = rig();
        halves.write(offset, ALL);
        halves.write(offset + 4, ALL);
        assert_eq!(all(&mut whole), all(&mut halves), "{offset:#x}");
        let value = u64::from(halves.read(offset + 4)) << 32 | u64::from(halves.read(offset));
        assert_eq!(whole.smmu.read(&whole.host, offset, 8), value, "{offset:#x}");
    }
}

/// Other sizes, and addresses that are no multiple of the size: loads give zero, stores do nothing (6.2).
#[test]
fn other_sizes_and_alignments_do_nothing() {
    let mut rig = rig();
    for Word { offset, bits, .. } in WORDS {
        rig.write(offset, bits);
    }
    let before = all(&mut rig);
    for offset in (0..0x100).chain(PAGE1..PAGE1 + 0x100) {
        for size_bytes in [1, 2, 4, 8, 16]
            .into_iter()
            .filter(|size| *size != 4 && *size != 8 || offset % u64::from(*size) != 0)
        {
            assert_eq!(rig.smmu.read(&rig.host, offset, size_bytes), 0, "{size_bytes} bytes at {offset:#x}");
            rig.store(offset, size_bytes, 0);
            rig.store(offset, size_bytes, u64::MAX);
        }
    }
    assert_eq!(changed(&before, &all(&mut rig)), []);
}
