//! PCI enumeration behind one root complex: bus numbers, bridge windows and BARs, all given out here.

use crate::bus::Bus;
use crate::host::Abort;

/// The most functions found behind one root complex.
pub const MAX_FUNCTIONS: usize = 32;
/// The most bridges above a function.
pub const MAX_DEPTH: usize = 4;

/// A root complex as the device tree describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RootComplex {
    /// Physical address of the config space of bus `first_bus`.
    pub ecam: u64,
    /// First bus number.
    pub first_bus: u8,
    /// Last bus number.
    pub last_bus: u8,
    /// First byte of the window for 32-bit memory, CPU and PCI address being the same.
    pub window: u64,
    /// Bytes of it.
    pub window_size: u64,
}

impl RootComplex {
    /// Physical address of a function's config space.
    pub fn config_page(&self, bus: u8, devfn: u8) -> u64 {
        let bus = u64::from(bus.wrapping_sub(self.first_bus));
        self.ecam + (bus << 20) + (u64::from(devfn) << 12)
    }
}

/// A function that is not a bridge.
#[derive(Clone, Copy, Debug, Default)]
pub struct Function {
    /// Bus number in bits 15:8, device and function in bits 7:0: what the SMMU sees as its StreamID.
    pub requester: u16,
    /// Vendor.
    pub vendor: u16,
    /// Device.
    pub device: u16,
    /// Class, subclass and programming interface.
    pub class: u32,
    /// Physical address of BAR 0; 0 if it has none.
    pub bar0: u64,
    /// Config pages of the bridges above it, from the root down.
    pub bridges: [Option<u64>; MAX_DEPTH],
    /// Its own config page.
    pub config_page: u64,
}

/// What is behind a root complex.
#[derive(Clone, Copy, Debug)]
pub struct Functions {
    list: [Option<Function>; MAX_FUNCTIONS],
}

impl Functions {
    /// The functions, in the order of the scan.
    pub fn iter(&self) -> impl Iterator<Item = &Function> {
        self.list.iter().flatten()
    }
}

const ID: u64 = 0x00;
const COMMAND: u64 = 0x04;
const CLASS: u64 = 0x08;
const HEADER: u64 = 0x0c;
const BARS: u64 = 0x10;
const BUS_NUMBERS: u64 = 0x18;
const MEMORY_WINDOW: u64 = 0x20;
const PREFETCHABLE_WINDOW: u64 = 0x24;

const COMMAND_MEMORY: u32 = 1 << 1;
/// Memory space, bus master, no INTx.
const COMMAND_ON: u32 = COMMAND_MEMORY | 1 << 2 | 1 << 10;
const MIB: u64 = 1 << 20;
/// BARs are kept apart by the largest granule, so that one can be taken from the CPU without its neighbour.
const BAR_ALIGN: u64 = 0x1_0000;

struct Scan<'a, B> {
    bus: &'a B,
    root: RootComplex,
    next_bus: u8,
    next_address: u64,
    found: Functions,
    count: usize,
}

/// Finds every function, and gives out bus numbers, windows and BARs. What does not fit the window gets no address, what does not fit
/// the list is passed over.
///
/// # Errors
/// [`Abort`] if config space is out of reach.
pub fn enumerate(bus: &impl Bus, root: RootComplex) -> Result<Functions, Abort> {
    let mut scan = Scan {
        bus,
        root,
        next_bus: root.first_bus,
        // Address 0 and the first MiB of the window stay free: an unassigned BAR is there.
        next_address: root.window.next_multiple_of(MIB),
        found: Functions { list: [None; MAX_FUNCTIONS] },
        count: 0,
    };
    scan.scan_bus(root.first_bus, [None; MAX_DEPTH], 0)?;
    Ok(scan.found)
}

/// Lets a function no longer answer for the addresses in its BARs.
///
/// # Errors
/// [`Abort`] if its config space is out of reach.
pub fn stop_decoding(bus: &impl Bus, function: &Function) -> Result<(), Abort> {
    bus.write_u32(function.config_page + COMMAND, COMMAND_ON & !COMMAND_MEMORY)
}

impl<B: Bus> Scan<'_, B> {
    fn scan_bus(&mut self, number: u8, above: [Option<u64>; MAX_DEPTH], depth: usize) -> Result<(), Abort> {
        for device in 0..32 {
            let mut functions = 1;
            let mut function = 0;
            while function < functions {
                let devfn = device << 3 | function;
                let config = self.root.config_page(number, devfn);
                let id = self.bus.read_u32(config + ID)?;
                if id as u16 != 0xffff {
                    let header = self.bus.read_u32(config + HEADER)? >> 16 & 0xff;
                    if function == 0 && header & 0x80 != 0 {
                        functions = 8;
                    }
                    if header & 0x7f == 1 {
                        self.bridge(number, config, above, depth)?;
                    } else {
                        self.endpoint(u16::from(number) << 8 | u16::from(devfn), config, id, above)?;
                    }
                }
                function += 1;
            }
        }
        Ok(())
    }

    fn bridge(
        &mut self,
        primary: u8,
        config: u64,
        mut above: [Option<u64>; MAX_DEPTH],
        depth: usize,
    ) -> Result<(), Abort> {
        let Some(place) = above.get_mut(depth) else {
            return Ok(());
        };
        *place = Some(config);
        if self.next_bus >= self.root.last_bus {
            return Ok(());
        }
        self.bars(config, 2)?;
        self.next_bus += 1;
        let secondary = self.next_bus;
        let numbers = |last: u8| u32::from(last) << 16 | u32::from(secondary) << 8 | u32::from(primary);
        self.bus.write_u32(config + BUS_NUMBERS, numbers(self.root.last_bus))?;
        let begin = self.next_address.next_multiple_of(MIB);
        self.next_address = begin;
        self.scan_bus(secondary, above, depth + 1)?;
        self.bus.write_u32(config + BUS_NUMBERS, numbers(self.next_bus))?;
        let end = self.next_address.next_multiple_of(MIB);
        self.next_address = end;
        // Base above limit: no window.
        let window =
            if end > begin { (end - 1) as u32 & 0xfff0_0000 | begin as u32 >> 16 & 0xfff0 } else { 0xfff0 };
        self.bus.write_u32(config + MEMORY_WINDOW, window)?;
        self.bus.write_u32(config + PREFETCHABLE_WINDOW, 0xfff0)?;
        self.bus.write_u32(config + COMMAND, COMMAND_ON)
    }

    fn endpoint(
        &mut self,
        requester: u16,
        config: u64,
        id: u32,
        bridges: [Option<u64>; MAX_DEPTH],
    ) -> Result<(), Abort> {
        let bar0 = self.bars(config, 6)?;
        self.bus.write_u32(config + COMMAND, COMMAND_ON)?;
        if let Some(place) = self.found.list.get_mut(self.count) {
            *place = Some(Function {
                requester,
                vendor: id as u16,
                device: (id >> 16) as u16,
                class: self.bus.read_u32(config + CLASS)? >> 8,
                bar0,
                bridges,
                config_page: config,
            });
            self.count += 1;
        }
        Ok(())
    }

    /// Sizes and places the first `count` BARs, and answers where BAR 0 is.
    fn bars(&mut self, config: u64, count: u64) -> Result<u64, Abort> {
        let mut bar0 = 0;
        let mut index = 0;
        while index < count {
            let register = config + BARS + 4 * index;
            self.bus.write_u32(register, !0)?;
            let answer = self.bus.read_u32(register)?;
            let is_memory = answer & 1 == 0;
            let is_wide = is_memory && answer >> 1 & 3 == 2;
            let size = u64::from((answer & !0xf).wrapping_neg());
            let at = self.next_address.next_multiple_of(size.max(BAR_ALIGN));
            if answer != 0 && is_memory && at + size <= self.root.window + self.root.window_size {
                self.bus.write_u32(register, at as u32)?;
                self.next_address = at + size;
                if index == 0 {
                    bar0 = at;
                }
            } else {
                self.bus.write_u32(register, 0)?;
            }
            if is_wide {
                self.bus.write_u32(register + 4, 0)?;
                index += 1;
            }
            index += 1;
        }
        Ok(bar0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::cell::RefCell;

    const ROOT: RootComplex = RootComplex {
        ecam: 0x1000_0000,
        first_bus: 8,
        last_bus: 15,
        window: 0x8000_0000,
        window_size: 0x100_0000,
    };

    /// A root port at 08:01.0 and, on whatever bus that makes, one function with a 64-bit BAR of 16 KiB.
    #[derive(Default)]
    struct Bridge {
        numbers: RefCell<u32>,
        window: RefCell<u32>,
        bar: RefCell<u32>,
        command: RefCell<u32>,
    }

    impl Bridge {
        fn endpoint(&self) -> u64 {
            ROOT.config_page((*self.numbers.borrow() >> 8) as u8, 0)
        }
    }

    impl Bus for Bridge {
        fn read_u32(&self, address: u64) -> Result<u32, Abort> {
            let port = ROOT.config_page(8, 1 << 3);
            let endpoint = self.endpoint();
            Ok(match address {
                _ if address == port => 0x000c_1b36,
                _ if address == port + HEADER => 1 << 16,
                _ if address & !0xfff == port => 0,
                _ if *self.numbers.borrow() == 0 => !0,
                _ if address == endpoint => 0x0010_1b36,
                _ if address == endpoint + CLASS => 0x0108_0200,
                _ if address == endpoint + BARS && *self.bar.borrow() == !0 => 0xffff_c004,
                _ if address & !0xfff == endpoint => 0,
                _ => !0,
            })
        }

        fn write_u32(&self, address: u64, value: u32) -> Result<(), Abort> {
            let port = ROOT.config_page(8, 1 << 3);
            let endpoint = self.endpoint();
            let register = match address {
                _ if address == port + BUS_NUMBERS => &self.numbers,
                _ if address == port + MEMORY_WINDOW => &self.window,
                _ if address == endpoint + BARS => &self.bar,
                _ if address == endpoint + COMMAND => &self.command,
                _ => return Ok(()),
            };
            register.replace(value);
            Ok(())
        }

        fn read_u64(&self, _: u64) -> Result<u64, Abort> {
            Err(Abort)
        }

        fn write_u64(&self, _: u64, _: u64) -> Result<(), Abort> {
            Err(Abort)
        }

        fn now_ns(&self) -> u64 {
            0
        }
    }

    #[test]
    fn a_function_behind_a_root_port_gets_a_bus_a_window_and_a_bar() {
        let bus = Bridge::default();
        let found = enumerate(&bus, ROOT).unwrap();
        let mut functions = found.iter();
        let function = functions.next().unwrap();
        assert!(functions.next().is_none());
        assert_eq!((function.vendor, function.device, function.class), (0x1b36, 0x0010, 0x01_0802));
        assert_eq!(function.requester, 9 << 8);
        assert_eq!(function.bridges[0], Some(ROOT.config_page(8, 8)));
        assert_eq!(function.config_page, ROOT.config_page(9, 0));
        assert_eq!(u64::from(*bus.bar.borrow()), function.bar0);
        assert_eq!(*bus.numbers.borrow(), 9 << 16 | 9 << 8 | 8, "subordinate, secondary, primary");
        let window = *bus.window.borrow();
        let (base, limit) = (u64::from(window & 0xfff0) << 16, u64::from(window & 0xfff0_0000) | 0xf_ffff);
        assert!(base <= function.bar0 && function.bar0 + 0x3fff <= limit, "{base:#x}..={limit:#x}");
        assert_eq!(*bus.command.borrow(), COMMAND_ON);
    }
}
