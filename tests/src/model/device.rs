//! Devices: DMA reads and writes of 8 bytes, at once or with a delay between translation and arrival, with and without ATS.

use super::Machine;
use super::smmu::InFlight;
use super::smmu::ats::AtsReply;
use super::smmu::translate::{Origin, Translated};

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
    ///
    /// `origin` is a StreamID, or a StreamID with a SubstreamID.
    pub fn dma_write(&mut self, index: usize, origin: impl Into<Origin>, address: u64, value: u64) -> Dma {
        let origin = origin.into();
        let Some((smmu, mut bus)) = self.smmu(index) else { return Dma::Aborted };
        let translated = smmu.translate(&mut bus, origin, address, true);
        self.send(index, origin.stream, translated, value)
    }

    fn send(&mut self, index: usize, stream: u32, translated: Translated, value: u64) -> Dma {
        let Translated::To(target) = translated else { return Dma::Aborted };
        if self.dma_latency_ns == 0 {
            self.arrive(index, stream, target, value);
        } else {
            let lands_ns = self.now_ns + self.dma_latency_ns;
            self.smmus[index].in_flight.push(InFlight { address: target, value: Some(value), lands_ns });
        }
        Dma::Reached(target)
    }

    /// A device's write of 32 bits at a multiple of 4, at once.
    pub fn dma_write_u32(
        &mut self,
        index: usize,
        origin: impl Into<Origin>,
        address: u64,
        value: u32,
    ) -> Dma {
        let origin = origin.into();
        let Some((smmu, mut bus)) = self.smmu(index) else { return Dma::Aborted };
        let Translated::To(target) = smmu.translate(&mut bus, origin, address, true) else {
            return Dma::Aborted;
        };
        let old = self.memory.read(target).unwrap_or(0);
        let shift = 8 * (target & 4);
        let value = old & !(0xffff_ffff << shift) | u64::from(value) << shift;
        self.arrive(index, origin.stream, target, value);
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
    pub fn dma_read(&mut self, index: usize, origin: impl Into<Origin>, address: u64) -> Option<u64> {
        let (smmu, mut bus) = self.smmu(index)?;
        match smmu.translate(&mut bus, origin, address, false) {
            Translated::To(target) => self.memory.read(target),
            Translated::Aborted => None,
        }
    }

    /// A device's Translation Request. Its ATC keeps what it gets.
    pub fn ats_request(&mut self, index: usize, origin: impl Into<Origin>, address: u64) -> AtsReply {
        match self.smmu(index) {
            Some((smmu, mut bus)) => smmu.ats_request(&mut bus, origin, address),
            None => AtsReply::Refused,
        }
    }

    /// A device's write of 64 bits that it says is translated already: to an address of its own choice.
    pub fn dma_translated(
        &mut self,
        index: usize,
        origin: impl Into<Origin>,
        address: u64,
        value: u64,
    ) -> Dma {
        let origin = origin.into();
        let Some((smmu, mut bus)) = self.smmu(index) else { return Dma::Aborted };
        let translated = smmu.translated(&mut bus, origin, address, true);
        self.send(index, origin.stream, translated, value)
    }

    /// As [`Machine::dma_translated`], a read of 64 bits.
    pub fn dma_read_translated(
        &mut self,
        index: usize,
        origin: impl Into<Origin>,
        address: u64,
    ) -> Option<u64> {
        let (smmu, mut bus) = self.smmu(index)?;
        match smmu.translated(&mut bus, origin, address, false) {
            Translated::To(target) => self.memory.read(target),
            Translated::Aborted => None,
        }
    }

    /// A write of 64 bits by a device that uses its ATC: it asks for a translation if it has none, and sends a Translated request.
    pub fn dma_through_atc(
        &mut self,
        index: usize,
        origin: impl Into<Origin>,
        address: u64,
        value: u64,
    ) -> Dma {
        let origin = origin.into();
        let held = self.smmus.get(index).and_then(|smmu| smmu.atc.find(origin, address)).copied();
        let entry = match held {
            Some(entry) => entry,
            None => match self.ats_request(index, origin, address) {
                AtsReply::Translated(entry) => entry,
                AtsReply::NotMapped | AtsReply::Refused => return Dma::Aborted,
            },
        };
        if !entry.writable {
            return Dma::Aborted;
        }
        self.dma_translated(index, origin, entry.translate(address), value)
    }

    /// Where an access of the host's CPU goes through its stage 2.
    pub fn cpu_translate(&mut self, address: u64, write: bool) -> Result<u64, super::cpu::CpuFault> {
        self.cpu.translate(&self.memory, &mut self.violations, address, write)
    }
}
