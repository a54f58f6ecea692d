//! The command queue of a driver, and commands as Linux writes them (IHI 0070, chapter 4).

use super::{Driver, reg};

/// CMD_CFGI_STE with Leaf.
pub const fn cfgi_ste(stream: u32) -> [u64; 2] {
    [0x03 | (stream as u64) << 32, 1]
}

/// CMD_TLBI_NSNH_ALL.
pub const fn tlbi_nsnh_all() -> [u64; 2] {
    [0x30, 0]
}

/// CMD_TLBI_NH_ASID, whose VMID Linux leaves 0.
pub const fn tlbi_asid(asid: u64) -> [u64; 2] {
    [0x11 | asid << 48, 0]
}

/// CMD_TLBI_NH_VA of one leaf, without a range.
pub const fn tlbi_va(asid: u64, address: u64) -> [u64; 2] {
    [0x12 | asid << 48, address | 1]
}

/// CMD_TLBI_NH_VA of `count` last-level pages of `1 << log2` bytes, as __arm_smmu_tlb_inv_range cuts them (4.4.1.1): NUM \[16:12], SCALE \[24:20];
/// TTL \[9:8] = 3, TG \[11:10], Leaf.
pub fn tlbi_range(asid: u64, address: u64, log2: u32, count: u64) -> Vec<[u64; 2]> {
    let (mut address, mut count, mut commands) = (address, count, Vec::new());
    let granule = u64::from((log2 - 10) / 2) << 10;
    while count != 0 {
        let scale = u64::from(count.trailing_zeros());
        let num = (count >> scale) & 0x1f;
        commands.push([0x12 | (num - 1) << 12 | scale << 20 | asid << 48, address | granule | 3 << 8 | 1]);
        count -= num << scale;
        address += num << scale << log2;
    }
    commands
}

/// CMD_SYNC with an MSI: CS = SIG_IRQ, MSH inner, MSIAttr write-back, MSIData; MSIAddress.
pub const fn sync_to(address: u64, data: u32) -> [u64; 2] {
    [0x46 | 1 << 12 | 3 << 22 | 0xf << 24 | (data as u64) << 32, address]
}

impl Driver<'_> {
    /// Where an entry of the command queue is.
    pub fn slot(&self, index: u32) -> u64 {
        self.layout.commands + u64::from(index & ((1 << self.layout.commands_log2) - 1)) * 16
    }

    /// Puts commands into the queue, and does not tell the SMMU.
    pub fn put(&mut self, commands: &[[u64; 2]]) {
        for [low, high] in commands {
            let slot = self.slot(self.prod);
            assert!(self.store(slot, *low) && self.store(slot + 8, *high), "{slot:#x} is not the host's");
            self.prod = (self.prod + 1) & ((2 << self.layout.commands_log2) - 1);
        }
    }

    /// Tells the SMMU of what was put.
    pub fn submit(&self) {
        self.write(reg::CMDQ_PROD, self.prod);
    }

    /// Puts commands and a CMD_SYNC whose MSI goes to its own slot, submits, and answers whether the MSI came.
    pub fn send(&mut self, commands: &[[u64; 2]]) -> bool {
        self.put(commands);
        let slot = self.slot(self.prod);
        self.put(&[sync_to(slot, 0)]);
        self.submit();
        self.load(slot) as u32 == 0
    }

    /// arm_smmu_cmdq_issue_cmdlist with a CMD_SYNC, which is complete on return.
    pub fn run(&mut self, commands: &[[u64; 2]]) {
        // As many as fit beside the CMD_SYNC.
        for part in commands.chunks((1 << self.layout.commands_log2) - 1) {
            assert!(self.send(part), "{part:x?} and its CMD_SYNC: errors {:#x}", self.errors());
            assert_eq!((self.errors(), self.consumed().0), (0, self.prod));
        }
    }

    /// CMDQ_CONS: RD and ERR.
    pub fn consumed(&self) -> (u32, u32) {
        let cons = self.read(reg::CMDQ_CONS);
        (cons & 0xf_ffff, cons >> 24 & 0x7f)
    }

    /// The global errors that are active.
    pub fn errors(&self) -> u32 {
        self.read(reg::GERROR) ^ self.read(reg::GERRORN)
    }

    /// Acknowledges all global errors.
    pub fn acknowledge(&self) {
        self.write(reg::GERRORN, self.read(reg::GERROR));
    }

    /// arm_smmu_cmdq_skip_err: the command that stopped the queue becomes a CMD_SYNC, and the queue goes on.
    pub fn skip_error(&mut self) {
        let slot = self.slot(self.consumed().0);
        assert!(self.store(slot, 0x46) && self.store(slot + 8, 0));
        self.acknowledge();
    }
}
