//! What EL2 says: a PL011 (or SBSA UART, which has the same data and flag registers).
//!
//! The UART is the host's as well, who may turn it off or stop its clock. So no write waits longer than
//! [`WAIT_NS`], and once a wait was in vain the console drops what follows until a byte goes through again.

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

/// How long one byte may take: more than a FIFO at 1,200 baud needs for one.
const WAIT_NS: u64 = 20_000_000;

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

/// Turns the transmitter on again, whatever the host did. For last words.
pub fn take_over() {
    let base = BASE.load(Ordering::Relaxed);
    if base != 0 {
        STUCK.store(false, Ordering::Relaxed);
        let control = device_read_u32(PhysAddr(base + UARTCR));
        device_write_u32(PhysAddr(base + UARTCR), control | TRANSMIT_ENABLE);
    }
}

/// Writes bytes to the UART without a lock.
pub struct Uart;

impl Uart {
    fn put(base: u64, byte: u8) {
        let full = || device_read_u32(PhysAddr(base + UARTFR)) & TRANSMIT_FULL != 0;
        if full() {
            if STUCK.load(Ordering::Relaxed) {
                return;
            }
            let since = platform::now_ns();
            while full() {
                if platform::now_ns().wrapping_sub(since) > WAIT_NS {
                    STUCK.store(true, Ordering::Relaxed);
                    return;
                }
                core::hint::spin_loop();
            }
        }
        STUCK.store(false, Ordering::Relaxed);
        device_write_u32(PhysAddr(base + UARTDR), u32::from(byte));
    }
}

impl Write for Uart {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let base = BASE.load(Ordering::Relaxed);
        if base != 0 {
            for byte in text.bytes() {
                if byte == b'\n' {
                    Self::put(base, b'\r');
                }
                Self::put(base, byte);
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
        let _line = LINE.lock();
        // `Uart` never fails; an error could only come from what is printed.
        let _ = writeln!(Uart, "hyp: {mark}{}", record.args());
    }

    fn flush(&self) {}
}
