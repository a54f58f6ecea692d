//! Properties that the tests try with random values, as functions of bytes that a fuzzer chooses: see [`smmuv3::fuzzing`].

pub use crate::devicetree::tests::fuzz as devicetree;
pub use crate::emulation::tests::hostile::fuzz as emulated_smmu;
pub use crate::gic::tests::its::fuzz as its;
pub use crate::gic::tests::lpis::fuzz as redistributors;
pub use crate::pci::tests::buses::fuzz as pci_buses;
