//! From the device tree to the first instruction of the host, and the same for every other CPU.

use core::arch::asm;
use core::cell::UnsafeCell;
use core::fmt::Display;
use core::mem::MaybeUninit;
use core::slice;
use core::sync::atomic::Ordering;

use hyp::devicetree::{self, HostTree, Machine};
use hyp::hypervisor::{Boot, Hypervisor};
use smmuv3::address::{PhysAddr, PhysRange};

use super::carve::{self, Taken};
use super::cpu::{self, Cpu};
use super::kernel::{Image, KernelError};
use super::mmu::{self, MapError, Mmu, Rights};
use super::panic::REPORTING;
use super::platform::Aarch64;
use super::registers::{dsb, feature, read_counter, read_sysreg};
use super::{console, el1, entry, platform, psci};

/// Bytes that the host's device tree may be longer than the machine's.
const TREE_GROWTH_BYTES: u64 = 0x1_0000;
/// The largest device tree of the boot protocol.
const MAX_TREE_BYTES: u64 = 2 << 20;
const PAGE_BYTES: u64 = 0x1000;
/// Bytes of a device tree header, and a multiple of 8.
const HEADER_BYTES: u64 = 40;

struct Slot(UnsafeCell<MaybeUninit<Hypervisor<Aarch64>>>);

// SAFETY: written by the first CPU alone before EL1 or any other CPU runs; from then on only shared references are made,
// and `Hypervisor` is `Sync`.
unsafe impl Sync for Slot where Hypervisor<Aarch64>: Sync {}

/// Filled at boot: with a value from the start it would be 100 KiB of the image instead of zero-initialised memory.
static HYPERVISOR: Slot = Slot(UnsafeCell::new(MaybeUninit::uninit()));

/// The hypervisor. Only for what happens after [`boot_primary`] has started it.
#[inline]
pub fn hypervisor() -> &'static Hypervisor<Aarch64> {
    // SAFETY: nothing calls this before `boot_primary` has filled the slot and let go of its exclusive reference.
    unsafe { (*HYPERVISOR.0.get()).assume_init_ref() }
}

/// Puts an empty hypervisor in its place.
///
/// # Safety
///
/// Called once, before anything refers to it.
#[inline(never)]
unsafe fn make_hypervisor() {
    // SAFETY: the caller's contract makes this the only reference.
    unsafe { (*HYPERVISOR.0.get()).write(Hypervisor::new(Aarch64::new())) };
}

/// The first CPU's way to EL1. `device_tree` is what the boot loader left in X0, `entry_ticks` the counter at entry.
///
/// Called with translation off, on the boot stack.
pub extern "C" fn boot_primary(device_tree: u64, entry_ticks: u64) -> ! {
    // SAFETY: this is the one call, and translation is off.
    let mut mmu = unsafe { Mmu::new() };
    let mapped = map_first(&mut mmu, device_tree);
    let Ok(tree) = mapped else {
        // Without a device tree there is no console to say so on.
        // SAFETY: `park` never returns and touches nothing.
        unsafe { entry::park() }
    };
    // SAFETY: image, stacks and device tree are mapped, each with the rights it needs.
    unsafe { mmu.enable() };

    platform::look_at_cpu();
    platform::start_event_stream();
    // SAFETY: this is the one call, and nothing refers to it yet.
    unsafe { make_hypervisor() };
    start(&mut mmu, tree, entry_ticks)
}

/// The rest of it, apart from [`make_hypervisor`]: both want much of the boot stack, and together nearly all of it.
#[inline(never)]
fn start(mmu: &mut Mmu, tree: PhysRange, entry_ticks: u64) -> ! {
    // SAFETY: the tree is mapped and nobody writes it: EL1 does not run yet.
    let tree_bytes =
        unsafe { slice::from_raw_parts(tree.start().0 as *const u8, tree.size_bytes() as usize) };
    let machine = devicetree::read_machine(tree_bytes).unwrap_or_else(|error| stop(&error));
    if let Some(uart) = machine.uart {
        mmu.map(uart, Rights::Device).unwrap_or_else(|error| stop(&error));
        console::start(uart.start());
    }
    log::info!("version {}, device tree at {tree}", env!("CARGO_PKG_VERSION"));
    map_machine(mmu, &machine).unwrap_or_else(|error| stop(&error));
    let own = register_cpus(&machine).unwrap_or_else(|error| stop(&error));
    own.install();
    psci::look_at_firmware().unwrap_or_else(|error| stop(&error));

    let image = mmu::image().unwrap_or_else(|| stop(&"the image is empty"));
    let share = carve::share(&machine, image, tree).unwrap_or_else(|error| stop(&error));
    let boot = Boot { machine: &machine, pa_bits: pa_bits(), image: &[share.image], pool: &[share.pool] };
    // SAFETY: `make_hypervisor` has filled it, and this is the one reference: neither EL1 nor another CPU runs before its last use.
    let empty = unsafe { (*HYPERVISOR.0.get()).assume_init_mut() };
    empty.start(boot).unwrap_or_else(|error| stop(&error));

    let hypervisor = hypervisor();
    let host = place_host(hypervisor, &machine, tree, tree_bytes, share.all);
    enter_stage2().unwrap_or_else(|error| stop(&error));
    hypervisor.set_boot_ticks(read_counter().wrapping_sub(entry_ticks));
    el1::enter(host.kernel, host.tree)
}

/// Every other CPU's way to EL1, with translation on and on its own stack.
///
/// A CPU on which the host cannot run is turned off again, alone: guests may have memory by now, which only the host's own
/// ways to end the machine wipe.
pub extern "C" fn boot_secondary(own: &'static Cpu) -> ! {
    platform::start_event_stream();
    let entered = platform::compare_cpu().and_then(|()| enter_stage2());
    let (start, context) = own.take_start();
    if let Err(reason) = entered {
        if !own.refusal_logged.swap(true, Ordering::Relaxed) {
            log::error!("CPU {:#x} stays off: {reason}", cpu::own_affinity());
        }
        psci::cpu_off()
    }
    if REPORTING.load(Ordering::Acquire) != 0 {
        // SAFETY: `park` never returns and touches nothing.
        unsafe { entry::park() }
    }
    el1::enter(start, context)
}

/// Sets this CPU up for the host. The error is why the host cannot run on it.
fn enter_stage2() -> Result<(), &'static str> {
    let table = hypervisor().host_stage2();
    let (geometry, root) = (table.geometry(), table.root());
    // Both limits of VTCR_EL2 (DDI 0487, D8.2): output and input addresses.
    if geometry.ia_bits() > pa_bits()
        || u64::from(geometry.ps()) > feature(read_sysreg!("id_aa64mmfr0_el1"), 0)
    {
        return Err("it has fewer physical address bits than the host's address space");
    }
    el1::set_stage2(geometry, root);
    el1::prepare()?;
    el1::forget_translations();
    Ok(())
}

/// Physical address bits of this CPU (ID_AA64MMFR0_EL1.PARange). EL2 itself reaches 48.
fn pa_bits() -> u8 {
    match feature(read_sysreg!("id_aa64mmfr0_el1"), 0) {
        0 => 32,
        1 => 36,
        2 => 40,
        3 => 42,
        4 => 44,
        _ => 48,
    }
}

/// Says why the machine cannot be booted, and turns it off.
fn stop(reason: &dyn Display) -> ! {
    log::error!("{reason}");
    log::error!("the machine is turned off");
    psci::system_off()
}

/// Maps what the first steps with translation on need. Returns the device tree.
fn map_first(mmu: &mut Mmu, device_tree: u64) -> Result<PhysRange, ()> {
    mmu.map_image().map_err(drop)?;
    // An ELF loader leaves X0 = 0 and the tree at the start of RAM, which is taken to begin on a GiB boundary.
    let image = mmu::image().ok_or(())?;
    let at = if device_tree != 0 { device_tree } else { image.start().0 & !((1 << 30) - 1) };
    if !at.is_multiple_of(8) {
        return Err(());
    }
    // The loader may have left the tree in its caches, which are off here.
    for word in (at..at.saturating_add(HEADER_BYTES)).step_by(8) {
        // SAFETY: cleaning changes no contents.
        unsafe { asm!("dc civac, {}", in(reg) word, options(nostack, preserves_flags)) };
    }
    dsb();
    // SAFETY: the boot protocol has X0 point at a device tree in RAM; at worst 40 bytes at the start of RAM are read.
    let header = unsafe { slice::from_raw_parts(at as *const u8, HEADER_BYTES as usize) };
    let size = devicetree::total_size_bytes(header).ok_or(())? as u64;
    let tree = PhysRange::new(PhysAddr(at), size.min(MAX_TREE_BYTES)).ok_or(())?;
    mmu.map(tree, Rights::Data).map_err(drop)?;
    Ok(tree)
}

/// Maps RAM and the device registers that EL2 uses.
fn map_machine(mmu: &mut Mmu, machine: &Machine) -> Result<(), MapError> {
    for ram in machine.memory.iter() {
        mmu.map_ram(*ram)?;
    }
    for smmu in machine.smmus.iter() {
        mmu.map(smmu.registers, Rights::Device)?;
    }
    mmu.map(machine.gicd, Rights::Device)?;
    for redistributors in machine.redistributors.iter() {
        mmu.map(*redistributors, Rights::Device)?;
    }
    for its in machine.its.iter() {
        mmu.map(*its, Rights::Device)?;
    }
    for pcie in machine.pcie.iter() {
        mmu.map(pcie.ecam, Rights::Device)?;
    }
    Ok(())
}

/// Makes a `Cpu` for each CPU of the device tree; returns this one's.
fn register_cpus(machine: &Machine) -> Result<&'static Cpu, &'static str> {
    cpu::register(machine.cpus.iter().copied())
        .map_err(|_| "the machine has more CPUs than the image has stacks (32)")?;
    cpu::find(cpu::own_affinity()).ok_or("this CPU is not in the device tree")
}

/// Where the host begins.
struct Host {
    kernel: u64,
    tree: u64,
}

/// Puts the host's kernel and its device tree in place.
fn place_host(
    hypervisor: &Hypervisor<Aarch64>,
    machine: &Machine,
    tree: PhysRange,
    tree_bytes: &[u8],
    own: PhysRange,
) -> Host {
    let platform = hypervisor.platform();
    let Some(module) = machine.kernel else {
        stop(&"the device tree has no module \"multiboot,kernel\" in /chosen, so there is no host to start");
    };
    let mut taken = Taken::new();
    let fixed = [Some(own), Some(tree), Some(module), machine.ramdisk];
    for range in fixed.into_iter().flatten().chain(machine.reserved.iter().copied()) {
        if taken.push(range).is_err() {
            stop(&"the firmware reserves more pieces of memory than the hypervisor can avoid");
        }
    }
    let kernel = place_kernel(platform, machine, module, &taken).unwrap_or_else(|error| stop(&error));
    let _ = taken.push(kernel);

    let room = carve::find_room(machine, &taken, 0, tree.size_bytes() + TREE_GROWTH_BYTES);
    let room = room.unwrap_or_else(|| stop(&"no RAM is left for the host's device tree"));
    // SAFETY: the room is host RAM that nothing else is in, and EL1 does not run yet.
    let out = unsafe { slice::from_raw_parts_mut(room.start().0 as *mut u8, room.size_bytes() as usize) };
    let smmus = hypervisor.host_smmu_phandles();
    let changes = HostTree {
        reserved: &[own],
        initrd: machine.ramdisk,
        smmus: smmus.as_slice(),
        its: hypervisor.host_has_its(),
    };
    let written = devicetree::write_host_tree(tree_bytes, out, &changes).unwrap_or_else(|error| stop(&error));
    clean(platform, room.start(), written as u64);
    log::info!("host kernel at {kernel}, its device tree at {}", room.start());
    // SAFETY: instruction caches hold no stale line of the kernel after this.
    unsafe { asm!("ic ialluis", "dsb ish", "isb", options(nostack, preserves_flags)) };
    Host { kernel: kernel.start().0, tree: room.start().0 }
}

/// Leaves the kernel where it is if it may be there, else copies it. Returns the room that it takes.
fn place_kernel(
    platform: &Aarch64,
    machine: &Machine,
    module: PhysRange,
    taken: &Taken,
) -> Result<PhysRange, KernelError> {
    let is_ram = machine.memory.iter().any(|ram| ram.encloses(module));
    if !is_ram {
        return Err(KernelError::NotAnImage(module));
    }
    let size = module.size_bytes() as usize;
    // SAFETY: the module is in RAM, apart from the hypervisor's (`carve::share` saw to that), and EL1 does not run yet.
    let bytes = unsafe { slice::from_raw_parts(module.start().0 as *const u8, size) };
    let image = Image::read(module, bytes)?;
    let in_place = image.room_at(module.start()).filter(|room| {
        let others = taken.iter().filter(|range| **range != module);
        machine.memory.iter().any(|ram| ram.encloses(*room))
            && !others.into_iter().any(|range| range.overlaps(*room))
    });
    let room = match in_place {
        Some(room) => room,
        None => {
            let room = carve::find_room(machine, taken, image.text_offset_bytes, image.room_bytes)
                .ok_or(KernelError::NoRoom(image.room_bytes))?;
            // SAFETY: the room is host RAM that nothing else is in, at least as long as the module, and apart from it.
            let to = unsafe { slice::from_raw_parts_mut(room.start().0 as *mut u8, size) };
            to.copy_from_slice(bytes);
            room
        }
    };
    clean(platform, room.start(), module.size_bytes());
    Ok(room)
}

/// Cleans what the host reads with its caches off. `start` is a multiple of 4 KiB.
fn clean(platform: &Aarch64, start: PhysAddr, size_bytes: u64) {
    if let Some(range) = PhysRange::new(start, size_bytes.next_multiple_of(PAGE_BYTES)) {
        platform.clean_and_invalidate(range);
    }
}
