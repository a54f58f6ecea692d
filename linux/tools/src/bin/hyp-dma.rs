//! Tells QEMU's `iommu-testdev` to write to memory, as root may: `hyp-dma help`. The checks of Linux use it.

#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
extern crate alloc;

#[cfg(target_os = "none")]
mod program {
    use alloc::format;
    use alloc::string::String;
    use host_shim::devices::testdev;
    use host_shim::host::{DMA_VALUE, Dma};
    use hyp_iommu::number;
    use hyp_iommu::system::vfio::Function;
    use hyp_iommu::system::{self, Access, File, Own, PAGE_BYTES, Registers};

    const HELP: &str = "\
hyp-dma write FUNCTION IOVA PHYSICAL   has it write to IOVA, and says whether that landed at PHYSICAL
hyp-dma own FUNCTION                   the same with a page of its own, at its physical address
hyp-dma look FUNCTION PHYSICAL         has it write to a page of its own, and says whether PHYSICAL has the same value
hyp-dma vfio FUNCTION GROUP            maps a page of its own with VFIO, and has it write there
hyp-dma unmapped FUNCTION GROUP        the same after the page was unmapped again
hyp-dma vfio FUNCTION GROUP PHYSICAL   maps physical memory with VFIO by way of /dev/mem, and has it write there
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

    /// Writes to a page of our own at an I/O address: how it ended, and whether the CPU sees it.
    fn write_own(registers: &Registers, iova: u64, page: &mut Own) -> String {
        page.set(0, 0);
        let ended = write(registers, iova, page.physical());
        let seen = if page.get(0) == DMA_VALUE { "the value is there" } else { "the value is not there" };
        format!("{ended}, {seen}")
    }

    /// What a program maps with VFIO.
    enum Mapped {
        /// A page of its own.
        Own,
        /// The same, and takes the mapping away again.
        Unmapped,
        /// What is at a physical address.
        Physical(u64),
    }

    fn vfio(name: &str, group: &str, mapped: &Mapped) -> Result<String, String> {
        let function = Function::open(name, number::parse(group)?)?;
        let registers = function.enable(0)?;
        let mut page = Own::new()?;
        let refused =
            |error: hyp_iommu::device::Errno| format!("VFIO does not map it: Linux's error {}", error.0);
        if let Mapped::Physical(physical) = *mapped {
            let (start, offset) = (physical & !(PAGE_BYTES - 1), physical % PAGE_BYTES);
            let memory = Registers::new(&File::open("/dev/mem", Access::ReadWrite)?, start);
            let memory = memory
                .map_err(|error| format!("/dev/mem does not map {start:#x}: Linux's error {}", error.0))?;
            function.map_registers(&memory, IOVA).map_err(refused)?;
            return Ok(format!("{} at {:#x}\n", write(&registers, IOVA + offset, physical), IOVA + offset));
        }
        function.map_own(&page, IOVA).map_err(refused)?;
        if matches!(mapped, Mapped::Unmapped) {
            // Once while it is mapped, so that the SMMU may have it cached.
            write(&registers, IOVA, page.physical());
            function.unmap(IOVA).map_err(refused)?;
        }
        Ok(format!("{} at {IOVA:#x}\n", write_own(&registers, IOVA, &mut page)))
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
                Ok(format!("{} at {physical:#x}\n", write_own(&registers, physical, &mut page)))
            }
            ["look", function, physical] => {
                let (registers, page) = (system::function(function)?, Own::new()?);
                match &*write(&registers, page.physical(), number::parse(physical)?) {
                    "landed" => Ok("the value is there\n".into()),
                    "elsewhere" => Ok("the value is not there\n".into()),
                    other => Err(format!("the device cannot look: {other}")),
                }
            }
            ["vfio", function, group] => vfio(function, group, &Mapped::Own),
            ["vfio", function, group, physical] => {
                vfio(function, group, &Mapped::Physical(number::parse(physical)?))
            }
            ["unmapped", function, group] => vfio(function, group, &Mapped::Unmapped),
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
