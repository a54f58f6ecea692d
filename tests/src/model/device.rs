//! Devices: DMA reads and writes of 8 bytes, at once or with a delay between translation and arrival.

use super::Machine;
use super::smmu::InFlight;
use super::smmu::translate::Translated;

/// How a device's access ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dma {
    /// It reached this physical address.
    Reached(u64),
    /// The SMMU aborted it.
    Aborted,
}

impl Machine {
    /// A device's write of 64 bits. With [`Machine::dma_latency_ns`] it is translated now and arrives later.
    pub fn dma_write(&mut self, index: usize, stream: u32, address: u64, value: u64) -> Dma {
        let latency = self.dma_latency_ns;
        let now = self.now_ns;
        let Some((smmu, mut bus)) = self.smmu(index) else { return Dma::Aborted };
        let Translated::To(target) = smmu.translate(&mut bus, stream, address, true) else {
            return Dma::Aborted;
        };
        if latency != 0 {
            smmu.in_flight.push(InFlight { address: target, value: Some(value), lands_ns: now + latency });
            return Dma::Reached(target);
        }
        self.arrive(index, stream, target, value);
        Dma::Reached(target)
    }

    /// A device's write of 32 bits at a multiple of 4, at once.
    pub fn dma_write_u32(&mut self, index: usize, stream: u32, address: u64, value: u32) -> Dma {
        let Some((smmu, mut bus)) = self.smmu(index) else { return Dma::Aborted };
        let Translated::To(target) = smmu.translate(&mut bus, stream, address, true) else {
            return Dma::Aborted;
        };
        let old = self.memory.read(target).unwrap_or(0);
        let shift = 8 * (target & 4);
        self.arrive(index, stream, target, old & !(0xffff_ffff << shift) | u64::from(value) << shift);
        Dma::Reached(target)
    }

    fn arrive(&mut self, index: usize, stream: u32, target: u64, value: u64) {
        if self.memory.write(target, value) {
            return;
        }
        let translater = super::ITS.start + 0x1_0040;
        if target & !7 == translater {
            self.doorbells += 1;
        } else {
            self.violations.record(format!(
                "stream {stream:#x} behind SMMU {index} writes {target:#x}, which is not RAM"
            ));
        }
    }

    /// A device's read of 64 bits: what it got, or `None` if it was aborted or nothing is there.
    pub fn dma_read(&mut self, index: usize, stream: u32, address: u64) -> Option<u64> {
        let (smmu, mut bus) = self.smmu(index)?;
        match smmu.translate(&mut bus, stream, address, false) {
            Translated::To(target) => self.memory.read(target),
            Translated::Aborted => None,
        }
    }

    /// Where an access of the host's CPU goes through its stage 2.
    pub fn cpu_translate(&mut self, address: u64, write: bool) -> Result<u64, super::cpu::CpuFault> {
        self.cpu.translate(&self.memory, &mut self.violations, address, write)
    }
}
