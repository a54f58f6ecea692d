//! What EL2 says: a PL011 (or SBSA UART, which has the same data and flag registers).
//!
//! The UART is the host's as well, who may turn it off or stop its clock. So no record takes longer than
//! [`RECORD_NS`], the rest of it is dropped, and from then on the console waits for nothing until a byte goes through again.

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use log::{Level, LevelFilter, Log, Metadata, Record};
use smmuv3::address::PhysAddr;
use spin::Mutex;

use super::platform::{self, device_read_u32, device_write_u32};

/// PL011 registers (DDI 0183, 3.2), offsets in bytes.
const UARTDR: u64 = 0x00;
const UARTFR: u64 = 0x18;
const UARTCR: u64 = 0x30;
/// UARTFR.TXFF: no room for a byte.
const TRANSMIT_FULL: u32 = 1 << 5;
/// UARTCR.{TXE, UARTEN}.
const TRANSMIT_ENABLE: u32 = 1 << 8 | 1;

/// How long one record may take, and as long again may it wait for others: 230 bytes at 115,200 baud.
const RECORD_NS: u64 = 20_000_000;
/// How long a report at the hypervisor's end may take.
const REPORT_NS: u64 = 1_000_000_000;

/// Base of the UART; 0 when there is none.
static BASE: AtomicU64 = AtomicU64::new(0);
/// The last byte did not go through.
static STUCK: AtomicBool = AtomicBool::new(false);
static LINE: Mutex<()> = Mutex::new(());

struct Console;
static CONSOLE: Console = Console;

/// Starts the console on the UART at `base`, which is mapped.
pub fn start(base: PhysAddr) {
    BASE.store(base.0, Ordering::Relaxed);
    if log::set_logger(&CONSOLE).is_ok() {
        log::set_max_level(LevelFilter::Info);
    }
}

/// Turns the transmitter on again, whatever the host did, for a report that takes at most [`REPORT_NS`].
pub fn take_over() -> Uart {
    let base = BASE.load(Ordering::Relaxed);
    if base != 0 {
        STUCK.store(false, Ordering::Relaxed);
        let control = device_read_u32(PhysAddr(base + UARTCR));
        device_write_u32(PhysAddr(base + UARTCR), control | TRANSMIT_ENABLE);
    }
    Uart::until(REPORT_NS)
}

/// Writes bytes to the UART without a lock, up to a deadline; what is left then is an error.
pub struct Uart {
    base: u64,
    since: u64,
    limit_ns: u64,
}

impl Uart {
    fn until(limit_ns: u64) -> Self {
        Self { base: BASE.load(Ordering::Relaxed), since: platform::now_ns(), limit_ns }
    }

    fn is_late(&self) -> bool {
        platform::now_ns().wrapping_sub(self.since) > self.limit_ns
    }

    fn put(&self, byte: u8) -> fmt::Result {
        while device_read_u32(PhysAddr(self.base + UARTFR)) & TRANSMIT_FULL != 0 {
            if STUCK.load(Ordering::Relaxed) || self.is_late() {
                STUCK.store(true, Ordering::Relaxed);
                return Err(fmt::Error);
            }
            core::hint::spin_loop();
        }
        STUCK.store(false, Ordering::Relaxed);
        device_write_u32(PhysAddr(self.base + UARTDR), u32::from(byte));
        Ok(())
    }
}

impl Write for Uart {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if self.base != 0 {
            for byte in text.bytes() {
                if byte == b'\n' {
                    self.put(b'\r')?;
                }
                self.put(byte)?;
            }
        }
        Ok(())
    }
}

impl Log for Console {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= Level::Info
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let mark = match record.level() {
            Level::Error => "error: ",
            Level::Warn => "warning: ",
            _ => "",
        };
        let wait = Uart::until(RECORD_NS);
        let _line = loop {
            if let Some(line) = LINE.try_lock() {
                break line;
            }
            if wait.is_late() {
                return;
            }
            core::hint::spin_loop();
        };
        // An error is that time is up.
        let _ = writeln!(Uart::until(RECORD_NS), "hyp: {mark}{}", record.args());
    }

    fn flush(&self) {}
}
