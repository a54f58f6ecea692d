//! Lines on the PL011.

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicU64, Ordering};
use spin::Mutex;

/// Where QEMU's `virt` has it, until the device tree is read.
pub const DEFAULT_UART: u64 = 0x0900_0000;

static UART: AtomicU64 = AtomicU64::new(DEFAULT_UART);
static LINE: Mutex<()> = Mutex::new(());

const DATA: u64 = 0x00;
const FLAGS: u64 = 0x18;
const FLAG_FULL: u32 = 1 << 5;
/// Polls of a full FIFO before a byte is dropped.
const PATIENCE: u32 = 1 << 20;

/// Says where the PL011 is.
pub fn init(address: u64) {
    UART.store(address, Ordering::Relaxed);
}

/// Lets a CPU print that was interrupted while it, or another, was printing.
pub fn force_unlock() {
    // SAFETY: called on the way to the end of the machine only; at worst two lines get mixed.
    unsafe { LINE.force_unlock() };
}

struct Uart(u64);

impl Uart {
    fn put(&self, byte: u8) {
        let (data, flags) = ((self.0 + DATA) as *mut u32, (self.0 + FLAGS) as *const u32);
        for _ in 0..PATIENCE {
            // SAFETY: the PL011's flag register, which the host owns.
            if unsafe { flags.read_volatile() } & FLAG_FULL == 0 {
                break;
            }
        }
        // SAFETY: its data register.
        unsafe { data.write_volatile(u32::from(byte)) };
    }
}

impl Write for Uart {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if byte == b'\n' {
                self.put(b'\r');
            }
            self.put(byte);
        }
        Ok(())
    }
}

/// Prints one line, whole. With the MMU off the lock is not taken, because exclusives need cached memory; there is one CPU then.
pub fn line(arguments: fmt::Arguments<'_>) {
    let _guard = super::mmu::is_on().then(|| LINE.lock());
    let mut uart = Uart(UART.load(Ordering::Relaxed));
    // A UART never refuses.
    let _ = writeln!(uart, "{arguments}");
}

/// Prints a line.
macro_rules! println {
    ($($argument:tt)*) => { $crate::image::console::line(format_args!($($argument)*)) };
}
pub(super) use println;
