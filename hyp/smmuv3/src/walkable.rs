//! Whether an SMMU can walk a page table: decided from the table's own configuration, so that a domain can be shared by SMMUs that
//! differ in everything else.

use crate::features::Features;
use crate::pgtable::{Blocks, Geometry, Granule, PageTable};

/// What of a stage-2 table an SMMU cannot walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unwalkable {
    /// It has no stage 2, or no VMSAv8-64 tables.
    Format,
    /// It has not the granule (IDR5).
    Granule,
    /// Its IPAs are narrower than the table's input addresses (3.4).
    InputSize,
    /// Its output addresses are narrower than the table's (IDR5.OAS).
    OutputSize,
    /// The table's blocks are split and joined in place, and it has not BBML 2 (IDR3).
    Blocks,
    /// Its walks are not coherent with the CPUs that write the table (IDR0.COHACC).
    Coherency,
}

/// Whether an SMMU with these features can walk a stage-2 table.
///
/// # Errors
/// The first thing that it cannot.
pub const fn stage2(table: &PageTable, features: &Features) -> Result<(), Unwalkable> {
    let geometry: &Geometry = table.geometry();
    if !features.stage2 || !features.aarch64_tables {
        return Err(Unwalkable::Format);
    }
    let granules = &features.granules;
    let granule = match geometry.granule() {
        Granule::Size4K => granules.size_4k,
        Granule::Size16K => granules.size_16k,
        Granule::Size64K => granules.size_64k,
    };
    if !granule {
        return Err(Unwalkable::Granule);
    }
    if geometry.ia_bits() > features.ias_bits() {
        return Err(Unwalkable::InputSize);
    }
    if geometry.oa_bits() > features.oas_bits {
        return Err(Unwalkable::OutputSize);
    }
    match table.blocks() {
        Blocks::Never => {}
        Blocks::InPlace if features.break_before_make_level >= 2 => {}
        // Break-before-make is never done to memory that devices may be using.
        Blocks::InPlace | Blocks::BreakBeforeMake => return Err(Unwalkable::Blocks),
    }
    if !features.coherent {
        return Err(Unwalkable::Coherency);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::PhysAddr;
    use crate::features::{Granules, IdRegisters};

    #[test]
    fn each_thing_that_a_table_needs_is_looked_for() {
        let ids = IdRegisters {
            idr0: 0x0d44_101b,
            idr1: 0x0273_0010,
            idr3: 0x1414,
            idr5: 0x74,
            ..IdRegisters::default()
        };
        let able = Features::probe(&ids);
        let geometry = Geometry::stage2(Granule::Size4K, 40, 44).unwrap();
        let pages = PageTable::new(geometry, Blocks::Never, PhysAddr(0x1000));
        let blocks = PageTable::new(geometry, Blocks::InPlace, PhysAddr(0x1000));
        assert_eq!(stage2(&pages, &able), Ok(()));
        assert_eq!(stage2(&blocks, &able), Ok(()));
        let without = |change: fn(&mut Features)| {
            let mut features = able;
            change(&mut features);
            (stage2(&pages, &features), stage2(&blocks, &features))
        };
        let both = |reason| (Err(reason), Err(reason));
        assert_eq!(without(|f| f.stage2 = false), both(Unwalkable::Format));
        assert_eq!(without(|f| f.aarch64_tables = false), both(Unwalkable::Format));
        assert_eq!(
            without(|f| f.granules = Granules { size_4k: false, ..Granules::ALL }),
            both(Unwalkable::Granule)
        );
        assert_eq!(without(|f| (f.oas_bits, f.aarch32_tables) = (36, false)), both(Unwalkable::InputSize));
        assert_eq!(without(|f| f.oas_bits = 42), both(Unwalkable::OutputSize));
        assert_eq!(without(|f| f.coherent = false), both(Unwalkable::Coherency));
        assert_eq!(without(|f| f.break_before_make_level = 1), (Ok(()), Err(Unwalkable::Blocks)));
    }
}
