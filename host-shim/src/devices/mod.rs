//! Small drivers of devices that do DMA when they are told to.

pub mod edu;
pub mod gic;
pub mod nvme;
pub mod testdev;
