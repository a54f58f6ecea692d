//! A PCI function through VFIO: its registers, and an address space of its own for its DMA (`include/uapi/linux/vfio.h`).

use alloc::format;
use alloc::string::String;

use super::file::{Access, File};
use super::memory::{Own, PAGE_BYTES, Registers};
use crate::device::Errno;

/// `_IO(';', 100 + n)`.
const fn request(n: u32) -> u32 {
    0x3b << 8 | (100 + n)
}

const SET_IOMMU: u32 = request(2);
const GROUP_SET_CONTAINER: u32 = request(4);
const GROUP_GET_DEVICE_FD: u32 = request(6);
const DEVICE_GET_REGION_INFO: u32 = request(8);
const IOMMU_MAP_DMA: u32 = request(13);
const IOMMU_UNMAP_DMA: u32 = request(14);

/// VFIO_TYPE1v2_IOMMU.
const TYPE1V2: u64 = 3;
/// VFIO_PCI_CONFIG_REGION_INDEX.
const CONFIG_REGION: u32 = 7;
/// VFIO_DMA_MAP_FLAG_READ and _WRITE.
const READ_WRITE: u32 = 3;

#[repr(C)]
struct RegionInfo {
    argument_bytes: u32,
    flags: u32,
    index: u32,
    capability: u32,
    size: u64,
    offset: u64,
}

#[repr(C)]
struct Map {
    argument_bytes: u32,
    flags: u32,
    virtual_address: u64,
    iova: u64,
    size: u64,
}

#[repr(C)]
struct Unmap {
    argument_bytes: u32,
    flags: u32,
    iova: u64,
    size: u64,
}

/// A function with an empty address space.
#[derive(Debug)]
pub struct Function {
    // In the order in which they are closed.
    device: File,
    _group: File,
    container: File,
}

impl Function {
    /// Opens a function, for example `0000:00:02.0`, that is bound to `vfio-pci`, by the number of its IOMMU group.
    ///
    /// # Errors
    ///
    /// What could not be done.
    pub fn open(name: &str, group: u64) -> Result<Self, String> {
        let step = |what: &'static str| {
            move |Errno(number): Errno| {
                format!("VFIO: {what}: Linux's error {number}; is the function bound to vfio-pci?")
            }
        };
        let container = File::open("/dev/vfio/vfio", Access::ReadWrite)?;
        let group = File::open(&format!("/dev/vfio/{group}"), Access::ReadWrite)?;
        let mut descriptor = container.descriptor() as u32;
        // SAFETY: the request reads a descriptor of 32 bits.
        unsafe { group.control(GROUP_SET_CONTAINER, (&raw mut descriptor) as u64) }
            .map_err(step("the group does not go into the container"))?;
        // SAFETY: the argument is a number.
        unsafe { container.control(SET_IOMMU, TYPE1V2) }
            .map_err(step("the container has no IOMMU of type 1"))?;
        let terminated = format!("{name}\0");
        // SAFETY: the request reads a text that ends with NUL.
        let device = unsafe { group.control(GROUP_GET_DEVICE_FD, terminated.as_ptr() as u64) }
            .map_err(step("the group does not have the function"))?;
        Ok(Self { device: File::of(device), _group: group, container })
    }

    /// Where a region is in the function's file.
    fn region(&self, index: u32) -> Result<u64, Errno> {
        let argument_bytes = size_of::<RegionInfo>() as u32;
        let mut info = RegionInfo { argument_bytes, flags: 0, index, capability: 0, size: 0, offset: 0 };
        // SAFETY: the request reads and writes as many bytes as the structure's first field says.
        unsafe { self.device.control(DEVICE_GET_REGION_INFO, (&raw mut info) as u64) }?;
        Ok(info.offset)
    }

    /// Lets the function do DMA and answer accesses, and maps the first page of a BAR.
    ///
    /// # Errors
    ///
    /// What could not be done.
    pub fn enable(&self, bar: u32) -> Result<Registers, String> {
        let step = |Errno(number): Errno| format!("VFIO: the function's registers: Linux's error {number}");
        let config = self.region(CONFIG_REGION).map_err(step)?;
        super::enable(&self.device, config)?;
        Registers::new(&self.device, self.region(bar).map_err(step)?).map_err(step)
    }

    /// Maps a page for the function's DMA.
    ///
    /// # Errors
    ///
    /// The error number.
    pub fn map_own(&self, page: &Own, iova: u64) -> Result<(), Errno> {
        self.map(page.address(), iova)
    }

    /// Maps what is mapped there for this program, whatever it is.
    ///
    /// # Errors
    ///
    /// The error number.
    pub fn map_registers(&self, registers: &Registers, iova: u64) -> Result<(), Errno> {
        self.map(registers.address(), iova)
    }

    fn map(&self, virtual_address: u64, iova: u64) -> Result<(), Errno> {
        let argument_bytes = size_of::<Map>() as u32;
        let mut map = Map { argument_bytes, flags: READ_WRITE, virtual_address, iova, size: PAGE_BYTES };
        // SAFETY: the request reads as many bytes as the structure's first field says. The page lives in a value that reads and writes it
        // as what a device may change.
        unsafe { self.container.control(IOMMU_MAP_DMA, (&raw mut map) as u64) }.map(|_| ())
    }

    /// Takes a mapping away.
    ///
    /// # Errors
    ///
    /// The error number.
    pub fn unmap(&self, iova: u64) -> Result<(), Errno> {
        let argument_bytes = size_of::<Unmap>() as u32;
        let mut unmap = Unmap { argument_bytes, flags: 0, iova, size: PAGE_BYTES };
        // SAFETY: the request reads and writes as many bytes as the structure's first field says.
        unsafe { self.container.control(IOMMU_UNMAP_DMA, (&raw mut unmap) as u64) }.map(|_| ())
    }
}
