//! Reset, attach and detach.

use super::{boot, good, kinds, stage1};
use tests::bench::{IMAGE, POOL, SCRATCH, Shape};
use tests::driver::{ABORT, BYPASS, Driver, tlbi_asid};

#[test]
fn a_probe_and_an_attach_let_a_device_reach_what_both_stages_give() {
    for config in kinds() {
        let bench = boot(&Shape::of(2, config));
        let stage1 = stage1(&bench, SCRATCH, 1);
        let (va, page) = (stage1.va(1), stage1.page(1));
        for smmu in 0..2 {
            let mut driver = Driver::started(&bench, smmu);
            good(&bench, "reset");
            assert_eq!(bench.dma(smmu, 0, va), None, "no STE");
            driver.write_entry(0, ABORT);
            assert_eq!(bench.dma(smmu, 0, va), None, "an STE that aborts");
            driver.attach(0, &stage1);
            assert_eq!(bench.dma(smmu, 0, va), Some(page));
            assert_eq!(bench.dma(smmu, 1, va), None, "the other device");
            good(&bench, "attached");
            // Stage 1 maps it, and stage 2 does not.
            for foreign in [IMAGE, POOL, driver.register(0) & !0xffff] {
                driver.map(&stage1, 2, foreign & !(bench.unit() - 1));
                driver.run(&[tlbi_asid(1)]);
                assert_eq!(bench.dma(smmu, 0, stage1.va(2)), None, "{foreign:#x}");
            }
            driver.map(&stage1, 2, stage1.page(2));
            driver.run(&[tlbi_asid(1)]);
            assert_eq!(bench.dma(smmu, 0, stage1.va(2)), Some(stage1.page(2)), "the control");
            driver.write_entry(1, BYPASS);
            assert_eq!(bench.dma(smmu, 1, page), Some(page), "an IPA");
            assert_eq!(bench.dma(smmu, 1, IMAGE), None, "an IPA of EL2's");
            good(&bench, "warm");
            driver.write_entry(0, ABORT);
            assert_eq!(bench.dma(smmu, 0, va), None, "detached");
            assert_eq!(bench.dma(smmu, 1, page), Some(page), "the control");
            good(&bench, "detached");
            driver.shut_down();
            assert_eq!(bench.dma(smmu, 1, page), None, "SMMUEN = 0");
            good(&bench, "shut down");
        }
    }
}
