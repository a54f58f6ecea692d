//! Stage-1 translation tables below TTB0, decoded from raw descriptors (DDI 0487, D8.2 and D8.3; VMSAv8-64, no LPA2).

use super::stage2::{WalkFault, level_shift};

/// How a stage-1 walk is configured: the fields of a CD that a walk needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Stage1Config {
    /// log2 of the granule: 12, 14 or 16 (TG0).
    pub granule_log2: u32,
    /// Width of an input address (64 - T0SZ).
    pub ia_bits: u32,
    /// Width of an output address (IPS, no more than OAS and 48).
    pub oa_bits: u32,
    /// Address of the first table (TTB0): an IPA when stage 2 translates too.
    pub root: u64,
    /// Walks are off (EPD0): every access has a translation fault.
    pub walks_off: bool,
    /// Access flag faults are off (AFFD).
    pub access_flag_fault_disabled: bool,
    /// APTable is obeyed (HAD0 = 0).
    pub hierarchical: bool,
    /// Bits 63:56 of an input address are ignored (TBI0).
    pub top_byte_ignored: bool,
}

impl Stage1Config {
    /// Level of the first lookup (DDI 0487, D8.2.7: as many levels as the input size needs).
    pub fn start_level(&self) -> u32 {
        4 - (self.ia_bits - self.granule_log2).div_ceil(self.granule_log2 - 3)
    }

    /// Bytes of the first table.
    pub fn root_bytes(&self) -> u64 {
        8 << (self.ia_bits - level_shift(self.granule_log2, self.start_level()))
    }

    /// The input address that walks see, or `None` if it is outside what TTB0 covers.
    pub fn input(&self, va: u64) -> Option<u64> {
        let va = if self.top_byte_ignored { va & 0x00ff_ffff_ffff_ffff } else { va };
        (va >> self.ia_bits == 0).then_some(va)
    }
}

/// What the table descriptors above a table take away (DDI 0487, D8.4.1, APTable).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TableLimits {
    /// APTable\[0]: no unprivileged access.
    pub privileged_only: bool,
    /// APTable\[1]: no writes.
    pub read_only: bool,
}

/// The 4 KiB (or less) of a table in which a walk read a descriptor. A walk cache keeps it with its physical address, which
/// combines both stages when there are two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stage1Table {
    /// First input address that these descriptors resolve.
    pub ia: u64,
    /// log2 of what they resolve.
    pub size_log2: u32,
    /// Level of the descriptors.
    pub level: u32,
    /// Address of the first of them, as stage 1 names it: an IPA when stage 2 translates too.
    pub ipa: u64,
    /// Its physical address.
    pub address: u64,
    /// What the descriptors above take away.
    pub limits: TableLimits,
}

/// A leaf that a stage-1 walk found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stage1Leaf {
    /// First input address that it maps.
    pub ia: u64,
    /// First output address: an IPA when stage 2 translates too.
    pub output: u64,
    /// log2 of its size.
    pub size_log2: u32,
    /// Its level.
    pub level: u32,
    /// The raw descriptor.
    pub descriptor: u64,
    /// What the table descriptors above take away.
    pub limits: TableLimits,
}

impl Stage1Leaf {
    /// nG (DDI 0487, D8.3.1, bit 11) is 0: the translation is for all ASIDs.
    pub fn global(&self) -> bool {
        self.descriptor >> 11 & 1 == 0
    }

    /// AP\[2:1] and APTable (DDI 0487, D8.4.1): whether a data access is allowed.
    pub fn allows(&self, write: bool, privileged: bool) -> bool {
        let unprivileged = self.descriptor >> 6 & 1 == 1 && !self.limits.privileged_only;
        let writable = self.descriptor >> 7 & 1 == 0 && !self.limits.read_only;
        (privileged || unprivileged) && (!write || writable)
    }
}

/// What a walk reads tables through.
pub trait Tables {
    /// Why an address of a table could not be translated.
    type Refusal;
    /// The physical address of a table's descriptors: through stage 2, if there is one.
    fn locate(&mut self, address: u64) -> Result<u64, Self::Refusal>;
    /// Reads a descriptor; `None` if nothing answers there.
    fn read(&mut self, address: u64) -> Option<u64>;
}

/// Why a stage-1 walk found no leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage1Fault<R> {
    /// A fault of stage 1 itself.
    Walk(WalkFault),
    /// A table's address could not be translated.
    Table(R),
}

const ADDRESS: u64 = 0x0000_ffff_ffff_f000;

/// Walks for one input address, from `from` (cached descriptors that cover it) or the root. Tables read are added to `tables`.
pub fn walk<T: Tables>(
    through: &mut T,
    config: &Stage1Config,
    va: u64,
    from: Option<Stage1Table>,
    tables: &mut Vec<Stage1Table>,
) -> Result<Stage1Leaf, Stage1Fault<T::Refusal>> {
    let g = config.granule_log2;
    let start = config.start_level();
    let fault = |fault| Err(Stage1Fault::Walk(fault));
    if config.walks_off {
        return fault(WalkFault::Translation(start));
    }
    let Some(va) = config.input(va) else { return fault(WalkFault::Translation(start)) };
    let mut known = from;
    let (mut level, mut limits) = from.map_or((start, TableLimits::default()), |t| (t.level, t.limits));
    let mut table = config.root;
    loop {
        let shift = level_shift(g, level);
        let index_bits = if level == start { config.ia_bits - shift } else { g - 3 };
        let index = va >> shift & ((1 << index_bits) - 1);
        let place = match known.take() {
            Some(place) => place,
            None => {
                let ipa = table + (index & !511) * 8;
                let address = through.locate(ipa).map_err(Stage1Fault::Table)?;
                let size_log2 = shift + index_bits.min(9);
                let place =
                    Stage1Table { ia: va >> size_log2 << size_log2, size_log2, level, ipa, address, limits };
                tables.push(place);
                place
            }
        };
        let Some(descriptor) = through.read(place.address + (index & 511) * 8) else {
            return fault(WalkFault::ExternalAbort(level));
        };
        // D8.3.1: bit 0 valid; bit 1 table or page, else block. A level-3 block encoding is reserved and invalid.
        let leaf = match (descriptor & 3, level) {
            (0b01, 1 | 2) if g == 12 || level == 2 => true,
            (0b11, 3) => true,
            (0b11, _) => false,
            _ => return fault(WalkFault::Translation(level)),
        };
        let mask = (1u64 << if leaf { shift } else { g }) - 1;
        let output = descriptor & ADDRESS & !mask;
        if output >> config.oa_bits != 0 {
            return fault(WalkFault::AddressSize(level));
        }
        if leaf {
            if descriptor >> 10 & 1 == 0 && !config.access_flag_fault_disabled {
                return fault(WalkFault::Access(level));
            }
            let ia = va >> shift << shift;
            return Ok(Stage1Leaf { ia, output, size_log2: shift, level, descriptor, limits });
        }
        // D8.3.1: APTable [62:61]; NSTable, XNTable and PXNTable do not matter for data of this Security state.
        if config.hierarchical {
            limits.privileged_only |= descriptor >> 61 & 1 == 1;
            limits.read_only |= descriptor >> 62 & 1 == 1;
        }
        level += 1;
        table = output;
    }
}
