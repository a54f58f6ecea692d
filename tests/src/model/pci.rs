//! PCI config space as far as sizing BARs and walking bridges needs it (PCI Local Bus 3.0, 6.1 and 6.2.5).

use std::collections::HashMap;

/// One function's config space: 1024 words, and which bits a write changes.
#[derive(Clone, Debug)]
pub struct Function {
    words: Vec<u32>,
    writable: HashMap<usize, u32>,
}

impl Function {
    /// A device (header type 0) with 32-bit memory BARs of these sizes in bytes at these addresses.
    pub fn device(vendor: u16, device: u16, bars: &[(u32, u32)]) -> Self {
        let mut function = Self { words: vec![0; 1024], writable: HashMap::new() };
        function.words[0] = u32::from(vendor) | u32::from(device) << 16;
        function.words[1] = 0x0010_0006;
        function.words[2] = 0xff00_0000;
        for (n, &(address, size)) in bars.iter().enumerate() {
            function.words[4 + n] = address;
            function.writable.insert(4 + n, !(size - 1));
        }
        function.writable.insert(1, 0x0000_0547);
        function
    }

    /// The same, as one of several functions of its device (Header Type, bit 7).
    pub fn one_of_several(mut self) -> Self {
        self.words[3] |= 1 << 23;
        self
    }

    /// A bridge (header type 1) with its bus numbers.
    pub fn bridge(primary: u8, secondary: u8, subordinate: u8) -> Self {
        let mut function = Self { words: vec![0; 1024], writable: HashMap::new() };
        function.words[0] = 0x000c_1b36;
        function.words[1] = 0x0010_0006;
        function.words[2] = 0x0604_0000;
        function.words[3] = 0x0001_0000;
        function.words[6] = u32::from(primary) | u32::from(secondary) << 8 | u32::from(subordinate) << 16;
        // A PCI Express capability at 0x40: version 2, Device/Port Type 4, a root port (PCIe 5.0, 7.5.3.2).
        function.words[13] = 0x40;
        function.words[16] = 0x10 | (2 | 4 << 4) << 16;
        function.writable.insert(6, 0x00ff_ffff);
        function.writable.insert(8, 0xfff0_fff0);
        function.writable.insert(1, 0x0000_0547);
        function
    }

    /// Reads a word by byte offset.
    pub fn read(&self, offset: u64) -> u32 {
        self.words[(offset / 4 % 1024) as usize]
    }

    /// Writes a word by byte offset; read-only bits stay.
    pub fn write(&mut self, offset: u64, value: u32) {
        let word = (offset / 4 % 1024) as usize;
        let mask = self.writable.get(&word).copied().unwrap_or(0);
        self.words[word] = self.words[word] & !mask | value & mask;
    }
}
