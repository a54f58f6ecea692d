//! The event queue of a driver, and what it reads there (IHI 0070, 7.2 and 7.3).

use super::{Driver, reg};

/// An event as Linux's handler looks at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Its number (7.3).
    pub number: u8,
    /// StreamID.
    pub stream: u32,
    /// InputAddr; FetchAddr of F_STE_FETCH and F_CD_FETCH.
    pub address: u64,
    /// Word 1.
    pub word1: u64,
    /// Word 3.
    pub word3: u64,
}

impl From<[u64; 4]> for Fault {
    fn from([word0, word1, word2, word3]: [u64; 4]) -> Self {
        let number = word0 as u8;
        let fetch = matches!(number, 0x03 | 0x09);
        Self {
            number,
            stream: (word0 >> 32) as u32,
            address: if fetch { word3 } else { word2 },
            word1,
            word3,
        }
    }
}

/// Numbers and StreamIDs of events.
pub fn faults(events: &[Fault]) -> Vec<(u8, u32)> {
    events.iter().map(|event| (event.number, event.stream)).collect()
}

impl Driver<'_> {
    /// arm_smmu_evtq_thread: all events, and an overflow noticed and acknowledged.
    pub fn events(&mut self) -> Vec<Fault> {
        let mut events = Vec::new();
        let mask = (2u32 << self.layout.events_log2) - 1;
        loop {
            let prod = self.read(reg::EVENTQ_PROD);
            if (prod ^ self.cons) >> 31 != 0 {
                self.overflows += 1;
            }
            if (prod ^ self.cons) & mask == 0 {
                self.cons = self.cons & mask | prod & 1 << 31;
                self.write(reg::EVENTQ_CONS, self.cons);
                return events;
            }
            while (prod ^ self.cons) & mask != 0 {
                let at = self.layout.events + u64::from(self.cons & (mask >> 1)) * 32;
                events.push(Fault::from([0, 8, 16, 24].map(|offset| self.load(at + offset))));
                self.cons = self.cons & 1 << 31 | (self.cons + 1) & mask;
            }
            self.cons = self.cons & mask | prod & 1 << 31;
            self.write(reg::EVENTQ_CONS, self.cons);
        }
    }
}
