//! A GIC that does what it is told, and says where it would read and write memory.

extern crate std;

use std::boxed::Box;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::vec::Vec;

use abi::{Function, Status};
use smmuv3::address::{PhysAddr, PhysRange};
use smmuv3::memory::Memory;

use crate::gic::{Access, Answer};
use crate::hypercall;
use crate::hypervisor::{Boot, BootError, Hypervisor};
use crate::memory::tests::platform::{RAM, TestPlatform, machine, range};
use crate::platform::{Heap, Platform};

pub const GICD: u64 = 0x0800_0000;
pub const GICR: u64 = 0x080a_0000;
/// The second Redistributor.
pub const GICR_1: u64 = GICR + 0x2_0000;
pub const ITS: u64 = 0x0808_0000;
/// The hypervisor's pool: large enough for tables of 16-bit DeviceIDs.
pub const POOL: u64 = RAM + (32 << 20);
pub const POOL_BYTES: u64 = 16 << 20;

const ENTRY_BYTES: u64 = 8;

#[derive(Default)]
pub struct State {
    registers: BTreeMap<u64, u64>,
    /// ITTs by DeviceID: where, and log2 of the entries.
    pub devices: BTreeMap<u64, (u64, u64)>,
    mapped: BTreeMap<(u64, u64), u64>,
    /// LPIs that were made pending.
    pub delivered: Vec<u64>,
    /// What Redistributors read and write: the pending table of each that has LPIs on, and every configuration table that one of
    /// them was given since all were off. They have it in common, and which one counts is UNPREDICTABLE.
    pub lpi_tables: Vec<PhysRange>,
    /// The pending tables among these, by RD_base.
    pending_tables: BTreeMap<u64, PhysRange>,
    /// EnableLPIs can be cleared.
    pub lpis_can_end: bool,
    /// The ITS consumes no command.
    pub stuck: bool,
    /// The ITS stops at commands with this number (GITS_CREADR.Stalled).
    pub rejects: Option<u64>,
    /// How often GICR_CTLR.RWP reads as 1 after EnableLPIs was cleared; as long as it does the tables are in use.
    pub write_pending: u32,
    /// What is left of that.
    pub pending_reads: u32,
    /// How often GITS_CTLR.Quiescent reads as 0 after an ITS was turned off.
    pub turns_off_in: u32,
    /// What is left of that.
    quiescent_in: u32,
    now_ns: u64,
}

impl State {
    pub fn register(&self, address: u64) -> u64 {
        self.registers.get(&address).copied().unwrap_or(0)
    }

    /// What an ITS may touch is the hypervisor's own.
    fn own(start: u64, size_bytes: u64) {
        assert!(start >= POOL && start + size_bytes <= POOL + POOL_BYTES, "the ITS at {start:#x}");
    }

    fn consume(&mut self, memory: &TestPlatform) {
        let (cbaser, cwriter) = (self.register(ITS + 0x80), self.register(ITS + 0x88) & 0xf_ffe0);
        let base = cbaser & 0x000f_ffff_ffff_f000;
        let size_bytes = ((cbaser & 0xff) + 1) << 12;
        // Retry.
        if self.register(ITS + 0x88) & 1 != 0 {
            let at = self.register(ITS + 0x90) & !1;
            self.registers.insert(ITS + 0x90, at);
        }
        while self.register(ITS) & 1 != 0 && !self.stuck && self.register(ITS + 0x90) != cwriter {
            assert!(cbaser >> 63 == 1);
            let at = self.register(ITS + 0x90);
            if at & 1 != 0 {
                return;
            }
            Self::own(base + at, 32);
            let words = [0, 8, 16, 24].map(|word| memory.read_u64(PhysAddr(base + at + word)));
            if self.rejects == Some(words[0] & 0xff) {
                self.registers.insert(ITS + 0x90, at | 1);
                return;
            }
            self.command(words);
            self.registers.insert(ITS + 0x90, (at + 32) % size_bytes);
        }
    }

    /// Start and bytes of the table of GITS_BASER<n>.
    fn table(&self, n: u64, wanted: u64) -> (u64, u64) {
        let baser = self.register(ITS + 0x100 + 8 * n);
        assert_eq!((baser >> 63, baser >> 62 & 1, baser >> 56 & 7), (1, 0, wanted));
        let page = [1 << 12, 1 << 14, 1 << 16][(baser >> 8 & 3) as usize];
        let table = (baser & 0x0000_ffff_ffff_f000, ((baser & 0xff) + 1) * page);
        Self::own(table.0, table.1);
        table
    }

    /// Nothing else of the ITS is where an ITT is.
    fn alone(&self, device: u64, start: u64, size_bytes: u64) {
        let ends = |(other, bytes): (u64, u64)| other + bytes <= start || start + size_bytes <= other;
        let queue = (self.register(ITS + 0x80) & 0x000f_ffff_ffff_f000, 0x1_0000);
        assert!([self.table(0, 1), self.table(1, 4), queue].into_iter().all(ends), "an ITT in a table");
        let mut others = self.devices.iter().filter(|(other, _)| **other != device);
        assert!(others.all(|(_, (at, log2))| ends((*at, ENTRY_BYTES << log2))), "two ITTs in one place");
    }

    fn command(&mut self, [first, second, third, fourth]: [u64; 4]) {
        let (devices, collections) = (self.table(0, 1), self.table(1, 4));
        let is_about_device = !matches!(first & 0xff, 0x05 | 0x09 | 0x0d | 0x0e);
        assert!(!is_about_device || (first >> 32) * ENTRY_BYTES < devices.1, "there is no such device");
        // MAPC, MAPTI, MAPI, MOVI and INVALL.
        if matches!(first & 0xff, 0x01 | 0x09 | 0x0a | 0x0b | 0x0d) {
            assert!((third & 0xffff) * ENTRY_BYTES < collections.1, "there is no such collection");
        }
        // The Redistributors are processors 0 and 1.
        let target = |word: u64| match word >> 16 & 0xf_ffff_ffff {
            0 => GICR,
            1 => GICR_1,
            other => panic!("there is no Redistributor {other}"),
        };
        match first & 0xff {
            0x05 => drop(target(third)),
            0x09 if third >> 63 == 1 => drop(target(third)),
            0x0e => {
                let have_tables =
                    [third, fourth].iter().all(|word| self.pending_tables.contains_key(&target(*word)));
                assert!(have_tables, "MOVALL without pending tables");
            }
            0x0a | 0x0b => {
                let intid = if first & 0xff == 0x0a { second >> 32 } else { second & 0xffff_ffff };
                assert!((8192..1 << 16).contains(&intid), "{intid} is no LPI");
            }
            _ => {}
        }
        let (device, event) = (first >> 32, second & 0xffff_ffff);
        let itt = self.devices.get(&device).copied();
        let touch = || {
            let (start, log2) = itt.expect("a command about a device that is not mapped");
            assert!(event >> log2 == 0, "an event that the ITT has no entry for");
            Self::own(start, ENTRY_BYTES << log2);
        };
        match first & 0xff {
            0x08 if third >> 63 == 1 => {
                let log2 = (second & 0x1f) + 1;
                let start = third & 0x000f_ffff_ffff_ff00;
                Self::own(start, ENTRY_BYTES << log2);
                self.alone(device, start, ENTRY_BYTES << log2);
                self.devices.insert(device, (start, log2));
            }
            0x08 => drop(self.devices.remove(&device)),
            0x0a => {
                touch();
                self.mapped.insert((device, event), second >> 32);
            }
            0x03 => {
                touch();
                self.delivered.extend(self.mapped.get(&(device, event)));
            }
            0x01 | 0x04 | 0x0b | 0x0c | 0x0f => touch(),
            0x05 | 0x09 | 0x0d | 0x0e => {}
            other => panic!("ITS command {other:#x}"),
        }
    }

    fn lpis(&mut self, base: u64, ctlr: u32) {
        match (ctlr & 1 != 0, self.pending_tables.get(&base).copied()) {
            (true, None) => {
                let (prop, pend) = (self.register(base + 0x70), self.register(base + 0x78));
                let bits = (prop & 0x1f) + 1;
                // They may have one register in common, and one table read as far as the other says.
                let mut others = self.pending_tables.keys().map(|other| self.register(other + 0x70));
                assert!(others.all(|other| (other & 0x1f) + 1 == bits), "UNPREDICTABLE: IDbits differ");
                let pending = range(pend & 0x000f_ffff_ffff_0000, (1 << bits) / 8);
                self.lpi_tables.extend([range(prop & 0x000f_ffff_ffff_f000, (1 << bits) - 8192), pending]);
                self.pending_tables.insert(base, pending);
            }
            (false, Some(_)) if self.lpis_can_end => {
                self.pending_reads = self.write_pending;
                if self.pending_reads == 0 {
                    self.end_lpis(base);
                }
            }
            _ => {}
        }
        let is_ending = ctlr & 1 == 0 && self.lpis_can_end;
        let ctlr = ctlr & !1 | u32::from(self.pending_tables.contains_key(&base) && !is_ending);
        self.registers.insert(base, u64::from(ctlr) | if self.lpis_can_end { 1 << 1 } else { 0 });
    }

    /// A Redistributor that was told to turn LPIs off has done it.
    fn end_lpis(&mut self, base: u64) {
        let Some(pending) = self.pending_tables.remove(&base) else { return };
        let index = self.lpi_tables.iter().position(|table| *table == pending);
        self.lpi_tables.remove(index.expect("it was added with the other"));
        if self.pending_tables.is_empty() {
            self.lpi_tables.clear();
        }
    }
}

#[derive(Default)]
pub struct GicPlatform {
    memory: TestPlatform,
    pub gic: Mutex<State>,
}

impl Memory for GicPlatform {
    fn read_u64(&self, address: PhysAddr) -> u64 {
        self.memory.read_u64(address)
    }

    fn write_u64(&self, address: PhysAddr, value: u64) {
        self.memory.write_u64(address, value);
    }

    fn full_barrier(&self) {}
}

const fn is_gic(address: PhysAddr) -> bool {
    address.0 >= GICD && address.0 < GICR_1 + 0x2_0000
}

impl Platform for GicPlatform {
    fn cpu(&self) -> u16 {
        0
    }

    fn cpus(&self) -> u16 {
        1
    }

    fn read_host_u64(&self, address: PhysAddr) -> u64 {
        assert!(!(POOL..POOL + POOL_BYTES).contains(&address.0), "{address} is not the host's");
        self.memory.read_u64(address)
    }

    fn write_host_u64(&self, address: PhysAddr, value: u64) {
        self.memory.write_host_u64(address, value);
    }

    fn write_host_u32(&self, address: PhysAddr, value: u32) {
        self.memory.write_host_u32(address, value);
    }

    fn wipe(&self, range: PhysRange) {
        self.memory.wipe(range);
    }

    fn read_register_u32(&self, address: PhysAddr) -> u32 {
        if !is_gic(address) {
            return self.memory.read_register_u32(address);
        }
        let mut gic = self.gic.lock().unwrap();
        let value = gic.register(address.0) as u32;
        if address.0 == ITS && gic.quiescent_in != 0 {
            gic.quiescent_in -= 1;
            return value & !(1 << 31);
        }
        if address.0 == GICR && gic.pending_reads != 0 {
            gic.pending_reads -= 1;
            if gic.pending_reads == 0 {
                gic.end_lpis(GICR);
            }
            // GICR_CTLR.RWP.
            return value | 1 << 3;
        }
        value
    }

    fn write_register_u32(&self, address: PhysAddr, value: u32) {
        if !is_gic(address) {
            return self.memory.write_register_u32(address, value);
        }
        let mut gic = self.gic.lock().unwrap();
        match address.0 {
            ITS => {
                let is_on = gic.register(ITS) & 1 != 0;
                assert!(is_on || value & 1 == 0 || gic.quiescent_in == 0, "turned on before it is quiescent");
                if is_on && value & 1 == 0 {
                    gic.quiescent_in = gic.turns_off_in;
                }
                gic.registers.insert(ITS, u64::from(value & 1 | (!value & 1) << 31));
                gic.consume(&self.memory);
            }
            base @ (GICR | GICR_1) => gic.lpis(base, value),
            other => drop(gic.registers.insert(other, value.into())),
        }
    }

    fn read_register_u64(&self, address: PhysAddr) -> u64 {
        self.gic.lock().unwrap().register(address.0)
    }

    fn write_register_u64(&self, address: PhysAddr, value: u64) {
        let mut gic = self.gic.lock().unwrap();
        if let base @ (GICR | GICR_1) = address.0 & !0x1_ffff
            && matches!(address.0 - base, 0x70 | 0x78)
        {
            assert!(!gic.pending_tables.contains_key(&base), "{address} is written while LPIs are on");
            assert!(base != GICR || gic.pending_reads == 0, "{address} is written before LPIs are off");
        }
        let fixed = match address.0 - ITS {
            0x100 => 1 << 56 | (ENTRY_BYTES - 1) << 48,
            0x108 => 4 << 56 | (ENTRY_BYTES - 1) << 48,
            0x110..0x140 => return,
            _ => 0,
        };
        let value = if fixed == 0 { value } else { value & !(0b111 << 56 | 0x1f << 48) | fixed };
        gic.registers.insert(address.0, value);
        if address.0 == ITS + 0x80 {
            gic.registers.insert(ITS + 0x90, 0);
        }
        gic.consume(&self.memory);
    }

    fn invalidate_host_stage2(&self, range: PhysRange) {
        self.memory.invalidate_host_stage2(range);
    }

    fn now_ns(&self) -> u64 {
        self.gic.lock().unwrap().now_ns
    }

    fn relax(&self) {
        self.gic.lock().unwrap().now_ns += 1_000_000;
    }

    fn heap_add(&self, heap: Heap, range: PhysRange) {
        self.memory.heap_add(heap, range);
    }

    fn heap_take(&self, heap: Heap, order: u8) -> Option<PhysAddr> {
        self.memory.heap_take(heap, order)
    }

    fn heap_give(&self, heap: Heap, run: PhysAddr, order: u8) {
        let end = run.0 + (4096 << order);
        let gic = self.gic.lock().unwrap();
        assert!(gic.devices.values().all(|(itt, _)| !(run.0..end).contains(itt)), "an ITT in use is freed");
        drop(gic);
        self.memory.heap_give(heap, run, order);
    }
}

/// The hypervisor on a machine with this GIC, and its host.
pub struct Scene(pub Box<Hypervisor<GicPlatform>>);

impl Scene {
    pub fn new(prepare: impl Fn(&mut State)) -> Self {
        Self::try_new(prepare).unwrap()
    }

    pub fn try_new(prepare: impl Fn(&mut State)) -> Result<Self, BootError> {
        let platform = GicPlatform::default();
        let mut machine = machine(&platform.memory);
        machine.redistributors.clear();
        machine.redistributors.push(range(GICR, 0x4_0000)).unwrap();
        {
            let mut gic = platform.gic.lock().unwrap();
            // GICD_TYPER: LPIs, INTIDs of 16 bits.
            gic.registers.insert(GICD + 4, 15 << 19 | 1 << 17);
            // GICR_TYPER: PLPIS, the second one's Processor_Number and Last.
            gic.registers.insert(GICR + 8, 1);
            gic.registers.insert(GICR_1 + 8, 1 << 8 | 1 << 4 | 1);
            gic.registers.insert(ITS, 1 << 31);
            // GITS_TYPER: Devbits and ID_bits 16, entries of 8 bytes, physical LPIs.
            gic.registers.insert(ITS + 8, 15 << 13 | 15 << 8 | (ENTRY_BYTES - 1) << 4 | 1);
            gic.registers.insert(ITS + 0x100, 1 << 56 | (ENTRY_BYTES - 1) << 48);
            gic.registers.insert(ITS + 0x108, 4 << 56 | (ENTRY_BYTES - 1) << 48);
            prepare(&mut gic);
        }
        let mut hypervisor = Box::new(Hypervisor::new(platform));
        let pool = [range(POOL, POOL_BYTES)];
        hypervisor.start(Boot { machine: &machine, pa_bits: 48, image: &[], pool: &pool })?;
        Ok(Self(hypervisor))
    }

    pub fn platform(&self) -> &GicPlatform {
        self.0.platform()
    }

    /// The host's store, made again as often as it traps; how often.
    pub fn store(&self, address: u64, size_bytes: u8, value: u64) -> u32 {
        for times in 1..10_000 {
            match self.0.emulate(PhysAddr(address), Access { size_bytes, write: Some(value) }) {
                Some(Answer::Again) => {}
                Some(Answer::Done(_)) => return times,
                None => panic!("{address:#x} is not emulated"),
            }
        }
        panic!("a store that never ends");
    }

    pub fn load(&self, address: u64, size_bytes: u8) -> u64 {
        match self.0.emulate(PhysAddr(address), Access { size_bytes, write: None }) {
            Some(Answer::Done(value)) => value,
            other => panic!("a load at {address:#x}: {other:?}"),
        }
    }

    pub fn call(&self, function: Function, arguments: [u64; 4]) -> Result<u64, Status> {
        let hypercall::Answer { x: [x0, x1, ..] } = self.0.hypercall(function.id(), arguments);
        match Status::from_register(x0).unwrap() {
            Status::Success => Ok(x1),
            status => Err(status),
        }
    }

    /// Free pages of the pool.
    pub fn free(&self) -> u64 {
        self.call(Function::PoolState, [0; 4]).unwrap()
    }

    /// Whether what the Redistributor reads and writes cannot leave the host.
    pub fn assert_lpi_tables_stay(&self) {
        let tables = self.platform().gic.lock().unwrap().lpi_tables.clone();
        for table in tables {
            for page in (table.start().0 & !0xfff..=table.last().0).step_by(4096) {
                let donated = self.call(Function::MemDonate, [page, 4096, 1, 0]);
                assert!(donated.is_err(), "{page:#x} is in use by a Redistributor");
                let [owner, sharer] = {
                    let hypercall::Answer { x: [_, owner, sharer, ..] } =
                        self.0.hypercall(Function::MemQuery.id(), [page, 0, 0, 0]);
                    [owner, sharer]
                };
                assert_eq!(owner, 0, "{page:#x} is the host's");
                assert_ne!(sharer, 0, "and pinned");
            }
        }
    }
}

impl State {
    /// Firmware left LPIs on; once they are off GICR_CTLR.RWP reads as 1 this often.
    pub fn leave_lpis_on(&mut self, write_pending: u32) {
        (self.lpis_can_end, self.write_pending) = (true, write_pending);
        for (register, value) in [(0x70, RAM | 15), (0x78, RAM + 0x10_0000)] {
            self.registers.insert(GICR + register, value);
        }
        self.lpis(GICR, 1);
    }

    /// The GIC has no LPIs (GICD_TYPER.LPIS, GICR_TYPER.PLPIS).
    pub fn hide_lpis(&mut self) {
        self.registers.insert(GICD + 4, 15 << 19);
        self.registers.insert(GICR + 8, 0);
        self.registers.insert(GICR_1 + 8, 1 << 8 | 1 << 4);
    }
}
