//! How the drivers reach registers and memory.

use crate::host::Abort;

/// Loads and stores of a CPU, any of which the hypervisor may refuse.
///
/// Addresses are physical, in bytes and aligned to the access. Each access is one instruction, in program order with the others, and seen by
/// devices in that order.
pub trait Bus {
    /// Reads 32 bits.
    fn read_u32(&self, address: u64) -> Result<u32, Abort>;
    /// Writes 32 bits.
    fn write_u32(&self, address: u64, value: u32) -> Result<(), Abort>;
    /// Reads 64 bits.
    fn read_u64(&self, address: u64) -> Result<u64, Abort>;
    /// Writes 64 bits.
    fn write_u64(&self, address: u64, value: u64) -> Result<(), Abort>;
    /// A clock that never goes back, in nanoseconds.
    fn now_ns(&self) -> u64;

    /// Polls until `done` says so; `false` if it did not within the time.
    fn wait(&self, timeout_ns: u64, mut done: impl FnMut() -> Result<bool, Abort>) -> Result<bool, Abort>
    where
        Self: Sized,
    {
        let begin = self.now_ns();
        loop {
            if done()? {
                return Ok(true);
            }
            if self.now_ns().saturating_sub(begin) > timeout_ns {
                return Ok(false);
            }
            core::hint::spin_loop();
        }
    }
}
