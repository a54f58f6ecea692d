//! Errata of SMMU implementations that change what may be used of them, as the makers' errata notices give them.
//!
//! Cavium's 74, registers of page 1 in page 0, is not here: only a device tree tells of it (`cavium,cn9900-broken-page1-regspace`), and that is
//! refused, because property names end at 31 characters.

use super::{Features, IdRegisters};
use crate::registers::IIDR;

/// Whom an erratum concerns.
enum Affected {
    /// An implementation by Arm: its number, and the first revision (r, p) without the erratum.
    Arm { product: u32, fixed_in: (u32, u32) },
    /// A part that no ID register tells from others: a `compatible` string of its device-tree node.
    Compatible(&'static str),
}

/// One erratum, and what it takes from the features or adds to the care that is needed.
struct Erratum {
    affected: Affected,
    apply: fn(&mut Features),
}

/// Arm's JEP106 code in IIDR.
const IMPLEMENTER_ARM: u32 = 0x43b;

/// No revision is without the erratum.
const NEVER: (u32, u32) = (u32::MAX, 0);

const MMU_600: u32 = 0x483;
const MMU_700: u32 = 0x487;
const MMU_L1: u32 = 0x48a;
const MMU_S3: u32 = 0x498;

const ERRATA: &[Erratum] = &[
    // 1076982: wake-up events.
    Erratum {
        affected: Affected::Arm { product: MMU_600, fixed_in: (0, 3) },
        apply: |features| features.sev = false,
    },
    // 1209401: nested translation.
    Erratum {
        affected: Affected::Arm { product: MMU_600, fixed_in: (2, 0) },
        apply: |features| features.nested = false,
    },
    // 2268618 and 2812531: nested translation; 2812531: a batch that no CMD_SYNC closes.
    Erratum {
        affected: Affected::Arm { product: MMU_700, fixed_in: (1, 1) },
        apply: |features| {
            features.nested = false;
            features.sync_before_last_slot = true;
        },
    },
    // 2812531, 3777127; 3878312; 3995052: broadcast TLB maintenance.
    Erratum {
        affected: Affected::Arm { product: MMU_700, fixed_in: NEVER },
        apply: |features| features.broadcast_tlb = false,
    },
    Erratum {
        affected: Affected::Arm { product: MMU_L1, fixed_in: NEVER },
        apply: |features| features.broadcast_tlb = false,
    },
    Erratum {
        affected: Affected::Arm { product: MMU_S3, fixed_in: NEVER },
        apply: |features| features.broadcast_tlb = false,
    },
    // NVIDIA T264-SMMU-3: what is invalidated while traffic uses it may survive.
    Erratum {
        affected: Affected::Compatible("nvidia,tegra264-smmu"),
        apply: |features| features.repeat_invalidations = true,
    },
];

/// Takes the errata that IIDR tells of into account.
pub(super) fn apply_by_id(features: &mut Features, ids: &IdRegisters) {
    let revision = (IIDR::VARIANT.read(ids.iidr), IIDR::REVISION.read(ids.iidr));
    apply(features, |affected| match *affected {
        Affected::Arm { product, fixed_in } => {
            IIDR::IMPLEMENTER.read(ids.iidr) == IMPLEMENTER_ARM
                && IIDR::PRODUCT.read(ids.iidr) == product
                && revision < fixed_in
        }
        Affected::Compatible(_) => false,
    });
}

/// A part with errata that no ID register tells of: only the device tree names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part(&'static str);

impl Part {
    /// The part that a `compatible` string of the SMMU's node names; `None` for one without such errata.
    pub fn named(compatible: &str) -> Option<Self> {
        ERRATA.iter().find_map(|erratum| match erratum.affected {
            Affected::Compatible(part) if part == compatible => Some(Self(part)),
            Affected::Compatible(_) | Affected::Arm { .. } => None,
        })
    }
}

/// Takes the errata of a part into account.
pub(super) fn apply_by_part(features: &mut Features, Part(name): Part) {
    apply(features, |affected| matches!(*affected, Affected::Compatible(part) if part == name));
}

fn apply(features: &mut Features, is_affected: impl Fn(&Affected) -> bool) {
    for erratum in ERRATA.iter().filter(|erratum| is_affected(&erratum.affected)) {
        (erratum.apply)(features);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Features of Arm's product in revision rNpM whose registers promise everything that an erratum takes.
    fn arm(product: u32, variant: u32, revision: u32) -> Features {
        let mut features = Features { nested: true, sev: true, broadcast_tlb: true, ..Features::NONE };
        let iidr = product << 20 | variant << 16 | revision << 12 | IMPLEMENTER_ARM;
        apply_by_id(&mut features, &IdRegisters { iidr, ..IdRegisters::default() });
        features
    }

    #[test]
    fn nesting_is_off_before_the_revision_that_mends_it() {
        let nested = |product, variant, revision| arm(product, variant, revision).nested;
        assert!(!nested(MMU_600, 0, 2) && !nested(MMU_600, 1, 9) && nested(MMU_600, 2, 0));
        assert!(!nested(MMU_700, 0, 0) && !nested(MMU_700, 1, 0) && nested(MMU_700, 1, 1));
        assert!(nested(0x484, 0, 0), "another product");
    }

    #[test]
    fn each_quirk_is_that_of_its_product() {
        assert!(arm(MMU_700, 1, 0).sync_before_last_slot && !arm(MMU_700, 1, 1).sync_before_last_slot);
        assert!(!arm(MMU_600, 0, 0).sync_before_last_slot);
        assert!(!arm(MMU_600, 0, 2).sev && arm(MMU_600, 0, 3).sev && arm(MMU_600, 1, 0).sev);
        for product in [MMU_700, MMU_L1, MMU_S3] {
            assert!(!arm(product, 15, 15).broadcast_tlb);
        }
        assert!(arm(MMU_600, 0, 0).broadcast_tlb);
    }

    #[test]
    fn another_maker_may_use_the_same_numbers() {
        let mut features = Features { nested: true, ..Features::NONE };
        apply_by_id(&mut features, &IdRegisters { iidr: MMU_600 << 20 | 0x123, ..IdRegisters::default() });
        assert!(features.nested);
    }

    #[test]
    fn the_device_tree_tells_of_what_registers_do_not() {
        let mut features = Features::NONE;
        assert_eq!(Part::named("arm,smmu-v3"), None);
        assert_eq!(features, Features::NONE);
        apply_by_part(&mut features, Part::named("nvidia,tegra264-smmu").unwrap());
        assert!(features.repeat_invalidations);
    }
}
