//! From a shape to QEMU's arguments.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::{Device, RootBus, Shape};

/// Bytes of each disk's image. It takes up what is written to it.
const DISK_BYTES: u64 = 64 << 20;

/// QEMU's id of an SMMU's root bus.
fn bus_id(root: &RootBus) -> String {
    format!("pcie.{}", root.index)
}

/// The image of the NVMe behind an SMMU.
fn nvme_image(directory: &Path, root: &RootBus) -> PathBuf {
    directory.join(format!("nvme{}.img", root.index))
}

/// The image of the virtio disk.
fn virtio_image(directory: &Path) -> PathBuf {
    directory.join("virtio.img")
}

/// The image of the disk behind virtio-mmio.
fn mmio_image(directory: &Path) -> PathBuf {
    directory.join("mmio.img")
}

/// Makes the images of the machine's disks, empty and sparse.
///
/// # Errors
///
/// A file cannot be made.
pub fn make_images(shape: &Shape, directory: &Path) -> Result<()> {
    for root in shape.root_buses() {
        for device in shape.devices(&root) {
            match device {
                Device::Nvme => make_image(&nvme_image(directory, &root))?,
                Device::VirtioDisk => make_image(&virtio_image(directory))?,
                Device::IommuTest | Device::Edu => {}
            }
        }
    }
    if shape.has_mmio_disk() { make_image(&mmio_image(directory)) } else { Ok(()) }
}

fn make_image(image: &Path) -> Result<()> {
    let file = File::create(image).with_context(|| format!("cannot make {}", image.display()))?;
    file.set_len(DISK_BYTES).with_context(|| format!("cannot make {} larger", image.display()))
}

/// The machine's arguments: board, CPUs, memory, SMMUs, and the devices behind them with their images in `directory`.
pub fn arguments(shape: &Shape, directory: &Path) -> Vec<String> {
    let mut arguments: Vec<String> = Vec::new();
    let mut option = |name: &str, value: String| arguments.extend([name.to_owned(), value]);
    option("-M", "virt,virtualization=on,gic-version=3".into());
    option("-cpu", shape.cpu().qemu().into());
    option("-smp", shape.cpus().to_string());
    option("-m", format!("{}M", shape.memory().mib()));
    for root in shape.root_buses() {
        let (index, bus) = (root.index, bus_id(&root));
        if index != 0 {
            let first_bus = root.first_bus();
            option(
                "-device",
                format!("pxb-pcie,id={bus},bus_nr={first_bus},bus=pcie.0,addr={:#x}", 0x10 + index),
            );
        }
        option("-device", format!("arm-smmuv3,primary-bus={bus},id=s{index},stage=nested"));
        for device in shape.devices(&root) {
            let slot = device.slot();
            let place = if index == 0 {
                format!("bus={bus},addr={slot:#x}")
            } else {
                // A pxb takes only bridges; `chassis` and `slot` together name a port uniquely on the machine.
                let port = format!("rp{index}.{slot}");
                option(
                    "-device",
                    format!("pcie-root-port,id={port},bus={bus},addr={slot:#x},chassis={index},slot={slot}"),
                );
                format!("bus={port}")
            };
            match device {
                Device::IommuTest => option("-device", format!("iommu-testdev,{place}")),
                Device::Edu => option("-device", format!("edu,dma_mask=0xffffffffffff,{place}")),
                Device::Nvme => {
                    option("-drive", drive(&format!("disk{index}"), &nvme_image(directory, &root)));
                    option("-device", format!("nvme,drive=disk{index},serial=nvme{index},{place}"));
                }
                Device::VirtioDisk => {
                    option("-drive", drive("virtio", &virtio_image(directory)));
                    // Without `iommu_platform` it would do DMA past the SMMU.
                    let device = "virtio-blk-pci,drive=virtio,iommu_platform=on,disable-legacy=on";
                    option("-device", format!("{device},{place}"));
                }
            }
        }
    }
    if shape.has_mmio_disk() {
        option("-drive", drive("mmio", &mmio_image(directory)));
        option("-device", "virtio-blk-device,drive=mmio,bus=virtio-mmio-bus.0".into());
    }
    arguments
}

/// A disk's image, which goes with the run: nothing of it has to reach this machine's disk, for which a guest that flushes it would
/// wait, many seconds where a build was just written.
fn drive(id: &str, image: &Path) -> String {
    format!("if=none,id={id},format=raw,cache=unsafe,file={}", escape(image))
}

/// The argument that puts a file into memory as it is.
pub fn loader(file: &Path, address: u64) -> [String; 2] {
    ["-device".into(), format!("loader,file={},addr={address:#x},force-raw=on", escape(file))]
}

/// A path as QEMU's option parser reads it: a comma is written twice.
fn escape(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::memory_size::MemorySize;

    #[test]
    fn the_virtio_disk_is_one_and_goes_through_an_smmu() {
        let shape = Shape::new(3, 2, MemorySize::DEFAULT).expect("a valid shape");
        let virtio = |shape: &Shape| -> Vec<String> {
            arguments(shape, Path::new("/run")).into_iter().filter(|a| a.starts_with("virtio-")).collect()
        };
        assert!(virtio(&shape).is_empty());
        let [disk] = &virtio(&shape.with_virtio_disk())[..] else { panic!("one disk") };
        assert!(disk.contains("iommu_platform=on,disable-legacy=on,bus=pcie.0"), "{disk}");
    }

    #[test]
    fn the_disk_behind_virtio_mmio_is_there_when_it_is_wanted() {
        let shape = Shape::new(1, 2, MemorySize::DEFAULT).expect("a valid shape");
        let has_disk = |shape: &Shape| {
            arguments(shape, Path::new("/run"))
                .iter()
                .any(|argument| argument.starts_with("virtio-blk-device,"))
        };
        assert!(!has_disk(&shape) && has_disk(&shape.with_mmio_disk()));
    }

    #[test]
    fn no_disk_waits_for_that_of_this_machine() {
        let shape = Shape::new(3, 2, MemorySize::DEFAULT).expect("a valid shape");
        let arguments = arguments(&shape.with_virtio_disk().with_mmio_disk(), Path::new("/run"));
        let drives = arguments.iter().filter(|argument| argument.starts_with("if=none,"));
        assert_eq!(drives.filter(|drive| drive.contains(",cache=unsafe,")).count(), 5);
    }

    #[test]
    fn every_smmu_has_every_device_and_no_id_is_used_twice() {
        for smmus in 1..=super::super::MAX_SMMUS {
            let shape = Shape::new(smmus, 2, MemorySize::DEFAULT).expect("a valid shape");
            let arguments = arguments(&shape, Path::new("/run,1"));
            let count = |prefix: &str| arguments.iter().filter(|a| a.starts_with(prefix)).count();
            for device in ["arm-smmuv3,", "iommu-testdev,", "edu,", "nvme,"] {
                assert_eq!(count(device), usize::from(smmus), "{device}");
            }
            assert_eq!(count("pcie-root-port,"), usize::from(smmus - 1) * Device::ALL.len());
            let mut ids: Vec<&str> =
                arguments.iter().flat_map(|a| a.split(',')).filter(|part| part.starts_with("id=")).collect();
            ids.sort_unstable();
            let all = ids.len();
            ids.dedup();
            assert_eq!(ids.len(), all);
            assert!(arguments.iter().any(|a| a.ends_with("file=/run,,1/nvme0.img")));
        }
    }
}
