//! A driver that uses the SMMU as Linux's arm-smmu-v3 does, and with it the rules that such a driver relies on.

extern crate std;

use std::vec::Vec;

use smmuv3::command::{Command, LeafHints, TlbiRange, opcode};
use smmuv3::event::{EventKind, EventRecord};
use smmuv3::registers::{
    CMDQ_BASE_OFFSET, CMDQ_CONS_OFFSET, CMDQ_PROD_OFFSET, CR0_OFFSET, CR0ACK_OFFSET, CR1_OFFSET, CR2_OFFSET,
    EVENTQ_BASE_OFFSET, EVENTQ_CONS_OFFSET, EVENTQ_PROD_OFFSET, GBPA_OFFSET, GERROR_IRQ_CFG0_OFFSET,
    GERROR_OFFSET, IDR0, IDR0_OFFSET, IDR1, IDR1_OFFSET, IRQ_CTRL_OFFSET, IRQ_CTRLACK_OFFSET, PAGE1,
    STRTAB_BASE_CFG_OFFSET, STRTAB_BASE_OFFSET,
};
use smmuv3::ste::{Level1Descriptor, Stage1Claim};

use super::super::Interrupt;
use super::rig::{ABORT, BYPASS, Call, Host, RAM, Rig, VMID, of_parked_stream, of_set_stream, translate};
use crate::smmu::NoEvent;
use smmuv3::address::PhysAddr;

/// CR0.
pub(super) const SMMUEN: u32 = 1 << 0;
pub(super) const EVENTQEN: u32 = 1 << 2;
pub(super) const CMDQEN: u32 = 1 << 3;
/// GERROR.
pub(super) const CMDQ_ERR: u32 = 1 << 0;
pub(super) const MSI_CMDQ_ABT_ERR: u32 = 1 << 4;
pub(super) const SFM_ERR: u32 = 1 << 8;

/// Where the driver keeps what; a level-2 stream table each 64 KiB from `LEVEL_2` on.
pub(super) const COMMANDS: u64 = RAM.start + 0x100_0000;
pub(super) const EVENTS: u64 = RAM.start + 0x200_0000;
pub(super) const LEVEL_1: u64 = RAM.start + 0x300_0000;
pub(super) const LEVEL_2: u64 = RAM.start + 0x400_0000;
/// StreamID bits that index level 2.
const SPLIT: u8 = 8;
/// SSV of no command: the stream that a device in these tests has.
pub(super) const STREAM: u32 = 0x801;

/// The driver's own state.
pub(super) struct Driver {
    pub(super) rig: Rig,
    /// log2 of the entries of the command queue and of the event queue.
    pub(super) commands_log2: u32,
    pub(super) events_log2: u32,
    /// CMDQ_PROD.
    pub(super) producer: u32,
    /// EVENTQ_CONS, with OVACKFLG.
    consumer: u32,
    /// Overflows that the driver noticed.
    pub(super) overflows: u32,
}

impl Driver {
    /// A driver that has not touched the SMMU yet.
    pub(super) fn new(commands_log2: u32, events_log2: u32) -> Self {
        Self { rig: Rig::new(), commands_log2, events_log2, producer: 0, consumer: 0, overflows: 0 }
    }

    /// One whose SMMU is up.
    pub(super) fn started() -> Self {
        let mut driver = Self::new(8, 7);
        driver.reset();
        driver.rig.host.take_calls();
        driver
    }

    /// arm_smmu_device_reset.
    pub(super) fn reset(&mut self) {
        if self.rig.read(CR0_OFFSET) & SMMUEN != 0 {
            self.rig.write(GBPA_OFFSET, 1 << 31 | 1 << 20);
            assert_eq!(self.rig.read(GBPA_OFFSET) >> 31, 0, "UPDATE");
        }
        self.rig.write_cr0(0);
        self.rig.write(CR1_OFFSET, 0xd75);
        self.rig.write(CR2_OFFSET, 0b111);
        self.rig.write_u64(STRTAB_BASE_OFFSET, 1 << 62 | LEVEL_1);
        self.rig.write(STRTAB_BASE_CFG_OFFSET, 1 << 16 | u32::from(SPLIT) << 6 | 16);
        (self.producer, self.consumer) = (0, 0);
        self.rig.write_u64(CMDQ_BASE_OFFSET, 1 << 62 | COMMANDS | u64::from(self.commands_log2));
        self.rig.write(CMDQ_PROD_OFFSET, 0);
        self.rig.write(CMDQ_CONS_OFFSET, 0);
        self.rig.write_cr0(CMDQEN);
        self.run(&[Command::cfgi_all()]);
        self.run(&[Command::tlbi_nsnh_all()]);
        self.rig.write_u64(EVENTQ_BASE_OFFSET, 1 << 62 | EVENTS | u64::from(self.events_log2));
        self.rig.write(EVENTQ_PROD_OFFSET, 0);
        self.rig.write(EVENTQ_CONS_OFFSET, 0);
        self.rig.write_cr0(CMDQEN | EVENTQEN);
        self.rig.write(IRQ_CTRL_OFFSET, 0);
        assert_eq!(self.rig.read(IRQ_CTRLACK_OFFSET), 0);
        self.rig.write_u64(GERROR_IRQ_CFG0_OFFSET, 0);
        self.rig.write(IRQ_CTRL_OFFSET, 0b101);
        assert_eq!(self.rig.read(IRQ_CTRLACK_OFFSET), 0b101);
        self.rig.write_cr0(CMDQEN | EVENTQEN | SMMUEN);
    }

    /// arm_smmu_device_shutdown.
    pub(super) fn shut_down(&mut self) {
        self.rig.write_cr0(0);
    }

    fn host(&self) -> &Host {
        &self.rig.host
    }

    /// Where the entry of an index of the command queue lies.
    pub(super) fn slot(&self, index: u32) -> u64 {
        COMMANDS + u64::from(index & ((1 << self.commands_log2) - 1)) * 16
    }

    /// Puts commands into the queue, and does not tell the SMMU.
    pub(super) fn put(&mut self, commands: &[Command]) {
        for command in commands {
            let slot = self.slot(self.producer);
            self.host().store(slot, &command.0);
            self.producer = (self.producer + 1) & ((2 << self.commands_log2) - 1);
        }
    }

    /// Tells the SMMU of the commands that were put.
    pub(super) fn submit(&mut self) {
        self.rig.write(CMDQ_PROD_OFFSET, self.producer);
    }

    /// arm_smmu_cmdq_issue_cmdlist with a SYNC, whose MSI goes into its own slot, and which is waited for.
    pub(super) fn run(&mut self, commands: &[Command]) {
        self.put(commands);
        let slot = self.slot(self.producer);
        self.put(&[sync_to(slot, 0)]);
        self.submit();
        assert_eq!(self.rig.errors(), 0, "a command failed");
        assert_eq!(self.host().load(slot) as u32, 0, "the SYNC is not complete");
        assert_eq!(self.rig.command_consumer().0, self.producer);
    }

    /// Writes the level-1 descriptor of a stream, and answers where the STE is.
    pub(super) fn entry(&self, stream: u32) -> u64 {
        let table = LEVEL_2 + u64::from(stream >> SPLIT) * 0x1_0000;
        let descriptor = Level1Descriptor::new(PhysAddr(table), SPLIT);
        self.host().store(LEVEL_1 + u64::from(stream >> SPLIT) * 8, &[descriptor.0]);
        table + u64::from(stream & 0xff) * 64
    }

    /// arm_smmu_write_ste: the STE is written, then CFGI_STE is sent.
    pub(super) fn write_entry(&mut self, stream: u32, Stage1Claim(words): Stage1Claim) {
        let entry = self.entry(stream);
        self.host().store(entry, &words);
        self.run(&[Command::cfgi_ste(stream, true)]);
    }

    /// arm_smmu_evtq_thread: all events, and the overflow noticed and acknowledged.
    pub(super) fn read_events(&mut self) -> Vec<EventRecord> {
        let mut events = Vec::new();
        loop {
            let producer = self.rig.read(EVENTQ_PROD_OFFSET);
            if (producer ^ self.consumer) >> 31 != 0 {
                self.overflows += 1;
            }
            let wrap = (2 << self.events_log2) - 1;
            if (producer ^ self.consumer) & wrap == 0 {
                break;
            }
            while (producer ^ self.consumer) & wrap != 0 {
                let index = u64::from(self.consumer & (wrap >> 1));
                let at = EVENTS + index * 32;
                events.push(EventRecord([0, 8, 16, 24].map(|offset| self.host().load(at + offset))));
                self.consumer = self.consumer & 1 << 31 | (self.consumer + 1) & wrap;
            }
            self.consumer = self.consumer & wrap | producer & 1 << 31;
            self.rig.write(EVENTQ_CONS_OFFSET, self.consumer);
        }
        events
    }
}

/// A SYNC with an MSI.
pub(super) fn sync_to(address: u64, data: u32) -> Command {
    Command([0x0fc0_1046 | u64::from(data) << 32, address])
}

/// A TLBI_NH_VA of a page.
pub(super) fn tlbi_va(vmid: u16, page: u64) -> Command {
    let hints = LeafHints::new(0, 0, true);
    Command::tlbi_nh_va(vmid, 7, TlbiRange { address: page << 12, num: 0, scale: 0, hints })
}

#[test]
fn the_probe_finds_an_smmu_with_stage_1_alone() {
    let mut rig = Rig::new();
    let idr0 = rig.read(IDR0_OFFSET);
    assert_eq!((IDR0::S1P.read(idr0), IDR0::S2P.read(idr0)), (1, 0));
    assert_eq!((IDR0::MSI.read(idr0), IDR0::SEV.read(idr0), IDR0::ST_LEVEL.read(idr0)), (1, 0, 1));
    let idr1 = rig.read(IDR1_OFFSET);
    assert_eq!((IDR1::SIDSIZE.read(idr1), IDR1::CMDQS.read(idr1), IDR1::EVENTQS.read(idr1)), (16, 19, 19));
    assert_eq!(rig.read(0x1c), 1, "SMMUv3.1");
}

#[test]
fn a_reset_forgets_everything_and_then_translates() {
    let mut driver = Driver::new(8, 7);
    let entry = driver.entry(STREAM);
    driver.rig.host.store(entry, &translate(0x4123_0000).0);
    driver.reset();
    let tlbi = Call::Invalidate([Command::tlbi_nh_all(VMID)].into());
    let set = Call::SetStream(STREAM, Some(translate(0x4123_0000)));
    let calls = driver.rig.host.take_calls();
    let changes: Vec<_> = calls.into_iter().filter(|call| !matches!(call, Call::WriteWord(..))).collect();
    assert_eq!(changes, [tlbi, set], "streams without a valid STE abort already");
    assert!(driver.rig.smmu.is_active());
}

#[test]
fn a_reset_may_follow_any_state() {
    let mut driver = Driver::started();
    driver.write_entry(STREAM, BYPASS);
    driver.put(&[Command([0xff, 0])]);
    driver.submit();
    assert_eq!(driver.rig.errors(), CMDQ_ERR);
    driver.rig.acknowledge();
    assert_eq!(driver.rig.command_consumer(), (driver.producer - 1, 1), "it is illegal still");
    // A kernel that was started by another one, which left everything on.
    driver.rig.write_cr0(0);
    driver.rig.acknowledge();
    driver.reset();
    assert_eq!(driver.rig.host.stream(STREAM), Some(BYPASS), "its STE is still there");
    driver.reset();
    driver.shut_down();
    assert_eq!(driver.rig.host.stream(STREAM), None);
    driver.reset();
    assert_eq!(driver.rig.host.stream(STREAM), Some(BYPASS));
}

#[test]
fn an_entry_counts_once_it_is_invalidated() {
    let mut driver = Driver::started();
    let entry = driver.entry(STREAM);
    driver.rig.host.store(entry, &BYPASS.0);
    assert_eq!(driver.rig.host.stream(STREAM), None);
    driver.run(&[Command::cfgi_ste(STREAM, true)]);
    assert_eq!(driver.rig.host.stream(STREAM), Some(BYPASS));
    driver.write_entry(STREAM, translate(0x4123_0000));
    assert_eq!(driver.rig.host.stream(STREAM), Some(translate(0x4123_0000)));
    driver.write_entry(STREAM, ABORT);
    assert_eq!(driver.rig.host.stream(STREAM), None);
}

#[test]
fn a_batch_is_forwarded_once_and_its_sync_is_told_in_the_queue_itself() {
    let mut driver = Driver::started();
    let pages: Vec<_> = (0..40).map(|page| tlbi_va(0, page)).collect();
    let slot = driver.slot(driver.producer + 40);
    driver.run(&pages);
    let forwarded: Vec<_> = (0..40).map(|page| tlbi_va(VMID, page)).collect();
    assert_eq!(driver.rig.host.take_calls(), [Call::Invalidate(forwarded), Call::WriteWord(slot, 0)]);
}

#[test]
fn the_command_queue_wraps_as_often_as_one_likes() {
    for commands_log2 in [1, 2, 5, 8, 10] {
        let mut driver = Driver::new(commands_log2, 4);
        driver.reset();
        driver.rig.host.take_calls();
        let room = (1 << driver.commands_log2) - 1;
        for round in 0..300u64 {
            let count = round * 7 % room + 1;
            let pages: Vec<_> = (0..count).map(|page| tlbi_va(3, round << 20 | page)).collect();
            driver.run(&pages);
            let all = driver.rig.host.take_invalidations().concat();
            assert_eq!(
                all,
                pages
                    .iter()
                    .map(|Command([w0, w1])| Command([w0 & !(0xffff << 32) | u64::from(VMID) << 32, *w1]))
                    .collect::<Vec<_>>()
            );
        }
    }
}

#[test]
fn a_load_that_looks_at_the_smmu_has_no_short_way() {
    let mut driver = Driver::new(8, 3);
    driver.reset();
    driver.write_entry(STREAM, BYPASS);
    let looking: Vec<_> =
        (0..2 * PAGE1).step_by(4).filter(|at| driver.rig.smmu.peek(*at, 4).is_none()).collect();
    assert_eq!(looking, [GERROR_OFFSET, EVENTQ_PROD_OFFSET - PAGE1, EVENTQ_PROD_OFFSET]);
    assert_eq!([1, 2, 8].map(|size_bytes| driver.rig.smmu.peek(CR0_OFFSET, size_bytes)), [None; 3]);
    assert_eq!(driver.rig.smmu.peek(CR0_OFFSET + 2, 4), None, "not aligned");
    for offset in (0..2 * PAGE1).step_by(4) {
        driver.rig.read(offset);
    }
    assert_eq!(driver.rig.smmu.peek(CR0_OFFSET, 4), Some(driver.rig.read(CR0_OFFSET)));
}

#[test]
fn events_arrive_in_order_and_wrap() {
    let mut driver = Driver::new(8, 3);
    driver.reset();
    driver.write_entry(STREAM, BYPASS);
    let mut next = 0;
    for round in 0..100u64 {
        let count = round % 9;
        for _ in 0..count {
            next += 1;
            let words = [u64::from(STREAM) << 32 | 0x10, 2 << 40, next << 12, 0];
            driver.rig.host.events.borrow_mut().push_back(of_set_stream(words));
        }
        driver.rig.smmu.deliver_events(&driver.rig.host);
        let addresses: Vec<_> = driver.read_events().iter().map(|event| event.0[2] >> 12).collect();
        assert_eq!(addresses, (next - count + 1..=next).collect::<Vec<_>>());
    }
    assert_eq!(driver.overflows, 0);
}

#[test]
fn events_behind_many_that_are_not_shown_are_told_of() {
    let mut driver = Driver::started();
    driver.write_entry(STREAM, ABORT);
    let shown = |address: u64| [u64::from(STREAM + 1) << 32 | 0x10, 2 << 40, address, 0];
    for hidden in [31, 32, 33, 100] {
        let hidden = core::iter::repeat_n(of_parked_stream(STREAM), hidden);
        driver.rig.host.events.borrow_mut().extend(hidden.chain([of_set_stream(shown(0x1000))]));
        driver.rig.host.take_calls();
        let mut told = driver.read_events();
        // The driver comes back for an interrupt only.
        while driver.rig.host.take_interrupts().contains(&Interrupt::EventQueue) {
            told.extend(driver.read_events());
        }
        assert_eq!(told, [EventRecord(shown(0x1000))]);
    }
    // What it finds something in it looks at again by itself.
    let many = (0..100).map(|address| of_set_stream(shown(address << 12)));
    driver.rig.host.events.borrow_mut().extend(many);
    assert_eq!(driver.read_events().len(), 100);
    assert_eq!(driver.rig.host.take_interrupts(), []);
    // Others' events only, and perhaps more.
    driver.rig.host.no_event.set(NoEvent::MayBeMore);
    assert_eq!(driver.read_events(), []);
    assert_eq!(driver.rig.host.take_interrupts(), [Interrupt::EventQueue]);
    driver.rig.write(IRQ_CTRL_OFFSET, 0);
    assert_eq!(driver.read_events(), []);
    assert_eq!(driver.rig.host.take_interrupts(), [], "none is wanted");
}

#[test]
fn a_driver_that_is_too_slow_notices_and_goes_on() {
    let mut driver = Driver::new(8, 3);
    driver.reset();
    driver.write_entry(STREAM, BYPASS);
    for round in 1..=4 {
        for address in 0..20 {
            let words = [u64::from(STREAM) << 32 | 0x10, 2 << 40, address << 12, 0];
            driver.rig.host.events.borrow_mut().push_back(of_set_stream(words));
        }
        driver.rig.smmu.deliver_events(&driver.rig.host);
        let addresses: Vec<_> = driver.read_events().iter().map(|event| event.0[2] >> 12).collect();
        assert_eq!(addresses, (0..8).collect::<Vec<_>>(), "the first are kept");
        assert_eq!(driver.overflows, round);
    }
}

#[test]
fn a_transaction_without_an_entry_is_told_and_shutting_down_ends_that() {
    let mut driver = Driver::started();
    driver.entry(STREAM);
    driver.rig.host.events.borrow_mut().push_back(of_parked_stream(STREAM));
    let bad_ste = EventRecord::configuration(EventKind::BAD_STE, STREAM, None);
    assert_eq!(driver.read_events(), [bad_ste]);
    // It was taken before an entry was there that passes.
    driver.write_entry(STREAM, BYPASS);
    driver.rig.host.events.borrow_mut().push_back(of_parked_stream(STREAM));
    assert_eq!(driver.read_events(), []);
    driver.shut_down();
    assert_eq!(driver.rig.read(CR0ACK_OFFSET), 0);
    driver.rig.host.events.borrow_mut().push_back(of_parked_stream(STREAM));
    driver.rig.smmu.deliver_events(&driver.rig.host);
    driver.reset();
    assert_eq!(driver.read_events(), []);
}

/// The driver's handler for events finds out, too, that there will be none any more.
#[test]
fn an_smmu_that_is_found_dead_is_in_service_failure_mode() {
    for offset in [GERROR_OFFSET, EVENTQ_PROD_OFFSET] {
        let mut driver = Driver::started();
        driver.rig.host.is_dead.set(true);
        driver.rig.host.take_calls();
        driver.rig.read(offset);
        assert_eq!(driver.rig.host.take_interrupts(), [Interrupt::GlobalError]);
        assert_eq!(driver.rig.errors(), SFM_ERR);
        driver.rig.acknowledge();
        assert_eq!(driver.rig.errors(), 0);
    }
}

#[test]
fn a_global_error_interrupts_and_is_acknowledged() {
    let mut driver = Driver::started();
    driver.put(&[tlbi_va(0, 1), Command([0xff, 0]), tlbi_va(0, 2)]);
    let illegal = driver.slot(driver.producer - 2);
    driver.submit();
    assert_eq!(
        driver.rig.host.take_calls(),
        [Call::Invalidate([tlbi_va(VMID, 1)].into()), Call::Raise(Interrupt::GlobalError)]
    );
    assert_eq!(driver.rig.errors(), CMDQ_ERR);
    // arm_smmu_cmdq_skip_err: what is illegal becomes a SYNC.
    driver.rig.host.store(illegal, &Command::sync().0);
    assert_eq!(driver.rig.host.load(illegal) as u8, opcode::SYNC);
    driver.rig.acknowledge();
    assert_eq!(driver.rig.errors(), 0);
    assert_eq!(driver.rig.host.take_calls(), [Call::Invalidate([tlbi_va(VMID, 2)].into())]);
    assert_eq!(driver.rig.command_consumer().0, driver.producer);
}
