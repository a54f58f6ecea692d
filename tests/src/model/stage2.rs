//! Stage-2 translation tables, decoded from raw descriptors (DDI 0487, D8.2 and D8.3). CPU and SMMU share the format.

use super::memory::PhysMemory;

/// How a stage-2 walk is configured: the fields that VTCR_EL2/VTTBR_EL2 and an STE have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Stage2Config {
    /// log2 of the granule: 12, 14 or 16.
    pub granule_log2: u32,
    /// Level of the first lookup.
    pub start_level: u32,
    /// Width of an input address.
    pub ia_bits: u32,
    /// Width of an output address.
    pub oa_bits: u32,
    /// Address of the first table.
    pub root: u64,
    /// Access flag faults are off (STE.S2AFFD).
    pub access_flag_fault_disabled: bool,
}

/// Output sizes by their encoding (IHI 0070, SMMU_IDR5.OAS and STE.S2PS; DDI 0487, VTCR_EL2.PS).
pub const OUTPUT_BITS: [u32; 7] = [32, 36, 40, 42, 44, 48, 52];

impl Stage2Config {
    /// Decodes T0SZ, SL0, TG and PS as VTCR_EL2 and the STE encode them. `pa_bits` is what the implementation has.
    ///
    /// The error says which rule the fields break (DDI 0487, D8.2.7 to D8.2.11: start level, input size, concatenation).
    pub fn decode(t0sz: u32, sl0: u32, tg: u32, ps: u32, root: u64, pa_bits: u32) -> Result<Self, String> {
        // DDI 0487, VTCR_EL2.TG0 and IHI 0070, STE.S2TG: 0b00 4 KiB, 0b01 64 KiB, 0b10 16 KiB.
        let granule_log2 = match tg {
            0 => 12,
            1 => 16,
            2 => 14,
            _ => return Err("TG is reserved".into()),
        };
        let ia_bits = 64 - t0sz;
        if ia_bits > 48 {
            return Err(format!("input size {ia_bits} bits is above 48"));
        }
        // DDI 0487, VTCR_EL2.SL0: the largest start level depends on the granule and needs a large enough PA range.
        let start_level = match (granule_log2, sl0) {
            (12, 0) => 2,
            (12, 1) => 1,
            (12, 2) if pa_bits >= 44 => 0,
            (14 | 16, 0) => 3,
            (14 | 16, 1) => 2,
            (14, 2) if pa_bits >= 42 => 1,
            (16, 2) if pa_bits >= 44 => 1,
            _ => return Err(format!("SL0 {sl0} is reserved for this granule and {pa_bits} bits of PA")),
        };
        let shift = level_shift(granule_log2, start_level);
        let index_bits = i64::from(ia_bits) - i64::from(shift);
        // D8.2.9: from 1 index bit to as many as 16 concatenated tables resolve.
        if index_bits < 1 || index_bits > i64::from(granule_log2 - 3 + 4) {
            return Err(format!("T0SZ {t0sz} does not fit start level {start_level}"));
        }
        let Some(&oa) = OUTPUT_BITS.get(ps as usize) else { return Err(format!("PS {ps} is reserved")) };
        let oa_bits = oa.min(pa_bits).min(48);
        let config =
            Self { granule_log2, start_level, ia_bits, oa_bits, root, access_flag_fault_disabled: false };
        if root & (config.root_bytes().max(16) - 1) != 0 {
            return Err(format!(
                "table base {root:#x} is not a multiple of its {:#x} bytes",
                config.root_bytes()
            ));
        }
        Ok(config)
    }

    /// From VTCR_EL2 and VTTBR_EL2 (DDI 0487, D24.2): T0SZ \[5:0], SL0 \[7:6], TG0 \[15:14], PS \[18:16]; BADDR \[47:1].
    pub fn from_registers(vtcr: u64, vttbr: u64, pa_bits: u32) -> Result<Self, String> {
        Self::decode(
            (vtcr & 63) as u32,
            (vtcr >> 6 & 3) as u32,
            (vtcr >> 14 & 3) as u32,
            (vtcr >> 16 & 7) as u32,
            vttbr & 0x0000_ffff_ffff_fffe,
            pa_bits,
        )
    }

    /// Bytes of the first table, with what is concatenated to it.
    pub fn root_bytes(&self) -> u64 {
        8 << (self.ia_bits - level_shift(self.granule_log2, self.start_level))
    }
}

/// log2 of what one entry of a table at `level` maps.
pub fn level_shift(granule_log2: u32, level: u32) -> u32 {
    granule_log2 + (3 - level) * (granule_log2 - 3)
}

/// Why a walk found no leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WalkFault {
    /// No valid descriptor at this level, or the input address is out of range.
    Translation(u32),
    /// The output address, or a table's, has more bits than allowed.
    AddressSize(u32),
    /// The access flag is clear.
    Access(u32),
    /// A descriptor could not be read.
    ExternalAbort(u32),
}

/// A leaf that a walk found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// First input address that it maps.
    pub ia: u64,
    /// First output address.
    pub output: u64,
    /// log2 of its size.
    pub size_log2: u32,
    /// Its level.
    pub level: u32,
    /// The raw descriptor.
    pub descriptor: u64,
}

impl Leaf {
    /// Whether it maps the input address.
    pub fn covers(&self, ia: u64) -> bool {
        ia >> self.size_log2 == self.ia >> self.size_log2
    }

    /// Output for an input address it covers.
    pub fn translate(&self, ia: u64) -> u64 {
        self.output | ia & ((1 << self.size_log2) - 1)
    }

    /// S2AP[0] (DDI 0487, D8.4.2): reads are allowed.
    pub fn readable(&self) -> bool {
        self.descriptor >> 6 & 1 == 1
    }

    /// S2AP[1]: writes are allowed.
    pub fn writable(&self) -> bool {
        self.descriptor >> 7 & 1 == 1
    }

    /// Stage-2 MemAttr[3:0] without FWB (DDI 0487, D8.6.5).
    pub fn memory_attribute(&self) -> u64 {
        self.descriptor >> 2 & 15
    }

    /// XN[1] (DDI 0487, D8.4.3): not executable.
    pub fn execute_never(&self) -> bool {
        self.descriptor >> 54 & 1 == 1
    }
}

/// A table that a walk read, as a walk cache keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableRef {
    /// First input address that the table resolves.
    pub ia: u64,
    /// log2 of what the whole table resolves.
    pub size_log2: u32,
    /// Level of the descriptors in it.
    pub level: u32,
    /// Its address.
    pub address: u64,
}

impl TableRef {
    /// The first table, with what is concatenated to it.
    fn root(config: &Stage2Config) -> Self {
        Self { ia: 0, size_log2: config.ia_bits, level: config.start_level, address: config.root }
    }
}

const ADDRESS: u64 = 0x0000_ffff_ffff_f000;

/// Walks for one input address, from `from` (a cached table that covers it) or the root.
///
/// Tables read below the root are added to `tables`. Oddities that hardware tolerates or leaves open, but that nobody
/// means, are added to `oddities`.
pub fn walk(
    memory: &PhysMemory,
    config: &Stage2Config,
    ia: u64,
    from: Option<TableRef>,
    tables: &mut Vec<TableRef>,
    oddities: &mut Vec<String>,
) -> Result<Leaf, WalkFault> {
    let g = config.granule_log2;
    if ia >> config.ia_bits != 0 {
        return Err(WalkFault::Translation(config.start_level));
    }
    let (mut level, mut table) = from.map_or((config.start_level, config.root), |t| (t.level, t.address));
    loop {
        let shift = level_shift(g, level);
        let index_bits = if level == config.start_level { config.ia_bits - shift } else { g - 3 };
        let index = ia >> shift & ((1 << index_bits) - 1);
        let at = table + index * 8;
        let Some(descriptor) = memory.read(at) else { return Err(WalkFault::ExternalAbort(level)) };
        // D8.3.1: bit 0 valid; bit 1 table or page, else block. A level-3 block encoding is reserved and invalid.
        let leaf = match (descriptor & 3, level) {
            (0b01, 1 | 2) if g == 12 || level == 2 => true,
            (0b11, 3) => true,
            (0b11, _) => false,
            _ => return Err(WalkFault::Translation(level)),
        };
        if leaf {
            let size_log2 = shift;
            let output = descriptor & ADDRESS & !((1u64 << size_log2) - 1);
            if output != descriptor & ADDRESS & !((1u64 << g) - 1) {
                oddities.push(format!(
                    "leaf at {at:#x} of level {level} has RES0 address bits set: {descriptor:#x}"
                ));
            }
            if output >> config.oa_bits != 0 {
                return Err(WalkFault::AddressSize(level));
            }
            if descriptor >> 10 & 1 == 0 && !config.access_flag_fault_disabled {
                return Err(WalkFault::Access(level));
            }
            if descriptor >> 52 & 1 == 1 {
                oddities
                    .push(format!("leaf at {at:#x} has the Contiguous bit, which the model does not know"));
            }
            return Ok(Leaf { ia: ia >> size_log2 << size_log2, output, size_log2, level, descriptor });
        }
        // D8.3.1: a table descriptor's bits 58:51 and 11:2 are IGNORED, 50:48 RES0 (no 52-bit addresses), 63:59 RES0 in stage 2.
        if descriptor >> 59 != 0 || descriptor >> 48 & 7 != 0 {
            oddities.push(format!("table descriptor at {at:#x} has RES0 bits set: {descriptor:#x}"));
        }
        let next = descriptor & ADDRESS & !((1u64 << g) - 1);
        if next >> config.oa_bits != 0 {
            return Err(WalkFault::AddressSize(level));
        }
        if next != descriptor & ADDRESS {
            oddities.push(format!(
                "table descriptor at {at:#x} points to {descriptor:#x}, not a multiple of the granule"
            ));
        }
        level += 1;
        table = next;
        let size_log2 = shift;
        tables.push(TableRef { ia: ia >> size_log2 << size_log2, size_log2, level, address: table });
    }
}

/// Every leaf of a table, in the order of input addresses, straight from memory.
pub fn all_leaves(memory: &PhysMemory, config: &Stage2Config) -> Vec<Leaf> {
    let mut leaves = Vec::new();
    add_leaves(memory, config, TableRef::root(config), &mut leaves);
    leaves
}

/// Adds the leaves below a table: what a walk finds for the first input address of each of its entries, from this table on.
fn add_leaves(memory: &PhysMemory, config: &Stage2Config, table: TableRef, leaves: &mut Vec<Leaf>) {
    let shift = level_shift(config.granule_log2, table.level);
    let (mut tables, mut oddities) = (Vec::new(), Vec::new());
    for n in 0..1u64 << (table.size_log2 - shift) {
        // Most entries of most tables are 0.
        if memory.read(table.address + n * 8).is_none_or(|descriptor| descriptor & 1 == 0) {
            continue;
        }
        tables.clear();
        let found = walk(memory, config, table.ia + (n << shift), Some(table), &mut tables, &mut oddities);
        match (tables.first(), found) {
            (Some(below), _) => add_leaves(memory, config, *below, leaves),
            (None, Ok(leaf)) => leaves.push(leaf),
            (None, Err(_)) => {}
        }
    }
}
