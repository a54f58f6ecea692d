//! Tells QEMU's `iommu-testdev` to write to memory, as root may: `hyp-dma help`. The checks of Linux use it.

#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
extern crate alloc;

#[cfg(target_os = "none")]
mod program {
    use alloc::format;
    use alloc::string::String;
    use alloc::vec::Vec;
    use core::iter;
    use host_shim::devices::testdev;
    use host_shim::host::{DMA_VALUE, Dma};
    use hyp_iommu::device::Errno;
    use hyp_iommu::number;
    use hyp_iommu::system::vfio::Function;
    use hyp_iommu::system::{self, Access, File, Own, PAGE_BYTES, Registers};

    const HELP: &str = "\
hyp-dma write FUNCTION IOVA PHYSICAL   has it write to IOVA, and says whether that landed at PHYSICAL
hyp-dma own FUNCTION                   the same with a page of its own, at its physical address
hyp-dma enable FUNCTION                lets it do DMA, and answer accesses of its registers
hyp-dma at REGISTERS                   as `own`, by the address of the registers, when Linux does not know the function
hyp-dma at REGISTERS PHYSICAL          the same to a physical address
hyp-dma look FUNCTION PHYSICAL         has it write to a page of its own, and says whether PHYSICAL has the same value
hyp-dma vfio FUNCTION GROUP            maps a page of its own with VFIO, and has it write there
hyp-dma attack FUNCTION GROUP [PHYSICAL ...]   the same, then when it is unmapped, then to physical memory that is mapped by way of /dev/mem
A function is for example 0000:00:02.0; the value that is written is 0x12345678.";

    /// Where a page is mapped with VFIO. No address of RAM, so that nothing but the mapping leads anywhere.
    const IOVA: u64 = 0x1_2340_0000;

    /// Has the device write: how it ended, in a word.
    fn write(registers: &Registers, iova: u64, physical: u64) -> String {
        match testdev::write(registers, 0, iova, physical) {
            Ok(Dma::Landed) => "landed".into(),
            Ok(Dma::Faulted) => "faulted".into(),
            Ok(Dma::Elsewhere) => "elsewhere".into(),
            other => format!("{other:?}"),
        }
    }

    /// What [`write_own`] says when all is well.
    const LANDED: &str = "landed, the value is there";

    /// Writes to a page of our own at an I/O address: how it ended, and whether the CPU sees it.
    fn write_own(registers: &Registers, iova: u64, page: &mut Own) -> String {
        page.set(0, 0);
        let ended = write(registers, iova, page.physical());
        let seen = if page.get(0) == DMA_VALUE { "the value is there" } else { "the value is not there" };
        format!("{ended}, {seen}")
    }

    /// A function in the hands of VFIO, with a page of our own mapped at [`IOVA`].
    struct ByVfio {
        registers: Registers,
        function: Function,
        page: Own,
    }

    fn refused(Errno(number): Errno) -> String {
        format!("VFIO does not map it: Linux's error {number}")
    }

    /// A page of physical memory that Linux does not use itself.
    fn memory(start: u64) -> Result<Registers, String> {
        let memory = Registers::new(&File::open("/dev/mem", Access::ReadWrite)?, start);
        memory.map_err(|Errno(number)| format!("/dev/mem does not map {start:#x}: Linux's error {number}"))
    }

    impl ByVfio {
        fn new(name: &str, group: &str) -> Result<Self, String> {
            let function = Function::open(name, number::parse(group)?)?;
            let registers = function.enable(0)?;
            let page = Own::new()?;
            function.map_own(&page, IOVA).map_err(refused)?;
            Ok(Self { registers, function, page })
        }

        /// Writes to the page.
        fn own(&mut self) -> String {
            write_own(&self.registers, IOVA, &mut self.page)
        }

        /// Writes to the page when it is mapped no more, or to what is at a physical address and mapped in its place.
        fn attack(&self, physical: Option<u64>) -> Result<String, String> {
            self.function.unmap(IOVA).map_err(refused)?;
            let Some(physical) = physical else {
                return Ok(write(&self.registers, IOVA, self.page.physical()));
            };
            let (start, offset) = (physical & !(PAGE_BYTES - 1), physical % PAGE_BYTES);
            let memory = memory(start)?;
            self.function.map_registers(&memory, IOVA).map_err(refused)?;
            Ok(write(&self.registers, IOVA + offset, physical))
        }
    }

    /// Each attack after a write to the page, so that the SMMU has that in its caches.
    fn attack_by_vfio(name: &str, group: &str, physical: &[&str]) -> Result<String, String> {
        let mut by_vfio = ByVfio::new(name, group)?;
        let mut said = by_vfio.own();
        let physical: Vec<u64> = physical.iter().map(|text| number::parse(text)).collect::<Result<_, _>>()?;
        for place in iter::once(None).chain(physical.into_iter().map(Some)) {
            said += &format!("; {}", by_vfio.attack(place)?);
            if place.is_some() {
                by_vfio.function.unmap(IOVA).map_err(refused)?;
            }
            by_vfio.function.map_own(&by_vfio.page, IOVA).map_err(refused)?;
            if by_vfio.own() != LANDED {
                said += ", and then its own page is out of its reach";
            }
        }
        Ok(format!("{said}\n"))
    }

    fn main(typed: &[&str]) -> Result<String, String> {
        match *typed {
            ["write", function, iova, physical] => {
                let (iova, physical) = (number::parse(iova)?, number::parse(physical)?);
                Ok(format!("{}\n", write(&system::function(function)?, iova, physical)))
            }
            ["own", function] => {
                let (registers, mut page) = (system::function(function)?, Own::new()?);
                let physical = page.physical();
                Ok(format!("{}\n", write_own(&registers, physical, &mut page)))
            }
            ["enable", function] => system::function(function).map(|_| String::new()),
            ["at", registers, physical] => {
                let physical = number::parse(physical)?;
                Ok(format!("{}\n", write(&memory(number::parse(registers)?)?, physical, physical)))
            }
            ["at", registers] => {
                let (registers, mut page) = (memory(number::parse(registers)?)?, Own::new()?);
                let physical = page.physical();
                Ok(format!("{}\n", write_own(&registers, physical, &mut page)))
            }
            ["look", function, physical] => {
                let (registers, page) = (system::function(function)?, Own::new()?);
                match &*write(&registers, page.physical(), number::parse(physical)?) {
                    "landed" => Ok("the value is there\n".into()),
                    "elsewhere" => Ok("the value is not there\n".into()),
                    other => Err(format!("the device cannot look: {other}")),
                }
            }
            ["vfio", function, group] => Ok(format!("{}\n", ByVfio::new(function, group)?.own())),
            ["attack", function, group, ref physical @ ..] => attack_by_vfio(function, group, physical),
            [] | ["help"] => Ok(format!("{HELP}\n")),
            _ => Err(format!("'{}' is nothing that hyp-dma does. There are:\n{HELP}", typed.join(" "))),
        }
    }

    hyp_iommu::program!(main);
}

#[cfg(not(target_os = "none"))]
fn main() -> std::process::ExitCode {
    eprintln!("This program runs in Linux: `cargo xtask run --host linux` builds it for that.");
    std::process::ExitCode::from(2)
}
