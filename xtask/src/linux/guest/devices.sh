# The machine's SMMUs and disks, and what is done to disks. A function is a PCI address such as 0001:09:00.0.

functions=/sys/bus/pci/devices

# What arm-smmu-v3 says of an SMMU that it finds enabled.
left_on='SMMU currently enabled! Resetting'

# Whether the device tree has an SMMU.
smmus_visible() {
    ls -d /sys/firmware/devicetree/base/smmuv3@* >/dev/null 2>&1
}

# Whether the hypervisor is below: it says in the device tree which memory it keeps for itself.
above_hypervisor() {
    ls -d /sys/firmware/devicetree/base/reserved-memory/hypervisor@* >/dev/null 2>&1
}

# Where the memory begins that the hypervisor keeps for itself.
hypervisor_memory() {
    echo 0x$(ls /sys/firmware/devicetree/base/reserved-memory | sed -n 's/^hypervisor@//p' | head -n 1)
}

# Ends a check that needs one, as failed: the machine has SMMUs, so somebody hides them.
need_smmus() {
    smmus_visible && return
    echo "no SMMU in the device tree"
    exit 1
}

# All functions with a disk: NVMe, and virtio's block device.
disks() {
    local function
    for function in $functions/*; do
        case $(cat $function/class),$(cat $function/vendor) in
            0x010802,* | 0x01????,0x1af4) basename $function ;;
        esac
    done
}

# All functions of a vendor with a device ID.
functions_of() {
    local function
    for function in $functions/*; do
        [ "$(cat $function/vendor),$(cat $function/device)" != "$1,$2" ] || basename $function
    done
}

# Devices that write to memory when they are told to: QEMU's iommu-testdev. No driver of Linux's knows them.
testdevs() {
    functions_of 0x1b36 0x0005
}

# The edu of the same PCI domain as a function.
edu_of() {
    functions_of 0x1234 0x11e8 | grep "^${1%%:*}:" | head -n 1
}

# Where the registers of a function's SMMU begin, without 0x.
smmu_of() {
    basename "$(readlink -f $functions/$1/iommu/device)" .smmuv3
}

# A function without a driver goes to VFIO, and back.
to_vfio() {
    echo vfio-pci >$functions/$1/driver_override
    echo $1 >/sys/bus/pci/drivers/vfio-pci/bind || return 1
    [ -c /dev/vfio/$(group_of $1) ] || { echo "there is no /dev/vfio/$(group_of $1)"; return 1; }
}
from_vfio() {
    echo $1 >/sys/bus/pci/drivers/vfio-pci/unbind || return 1
    echo >$functions/$1/driver_override
}

# The block device of a function: its name below /dev.
block_of() {
    local block
    for block in /sys/block/*; do
        case $(readlink -f $block) in */$1/*) basename $block ;; esac
    done
}

# The block device of the first NVMe.
first_nvme() {
    local function
    for function in $(disks); do
        [ "$(driver_of $function)" = nvme ] || continue
        wait_for_block $function
        return
    done
    return 1
}

# Waits up to 20 seconds for a function's block device, and says its name.
wait_for_block() {
    local tries=0 block
    while [ $tries -lt 200 ]; do
        block=$(block_of $1)
        if [ -n "$block" ] && [ "$(cat /sys/block/$block/size)" -gt 0 ]; then
            echo $block
            return 0
        fi
        sleep 0.1
        tries=$((tries + 1))
    done
    echo "$1 has no block device"
    return 1
}

# The driver that a function is bound to.
driver_of() {
    basename "$(readlink $functions/$1/driver)"
}

# The IOMMU group of a function.
group_of() {
    basename "$(readlink $functions/$1/iommu_group)"
}

# The type of the domain that a function is in: identity, DMA or DMA-FQ.
domain_of() {
    cat /sys/kernel/iommu_groups/$(group_of $1)/type
}

# The type that the kernel's command line asks for; nothing if that leaves it to the kernel.
domain_wanted() {
    case $(value_of iommu.passthrough),$(value_of iommu.strict) in
        1,*) echo identity ;;
        *,1) echo DMA ;;
        *,0) echo DMA-FQ ;;
    esac
}

# exercise FUNCTION MIB: writes random data past the page cache, reads it back, and compares.
exercise() {
    local function=$1 mib=$2 block size skip=0
    local out=/tmp/$function.out back=/tmp/$function.back
    block=$(wait_for_block $function) || { echo "$block"; return 1; }
    dd if=/dev/urandom of=$out bs=1M count=$mib 2>/dev/null || return 1
    # In pieces of several sizes: of one page, of some, and larger than one command may be.
    for size in 4 64 1024; do
        dd if=$out of=/dev/$block bs=${size}k oflag=direct conv=notrunc 2>/tmp/$function.said ||
            { echo "$block: writing: $(tail -n 1 /tmp/$function.said)"; return 1; }
        dd if=/dev/$block of=$back bs=${size}k count=$((mib * 1024 / size)) iflag=direct 2>/tmp/$function.said ||
            { echo "$block: reading: $(tail -n 1 /tmp/$function.said)"; return 1; }
        cmp $out $back >/tmp/$function.said 2>&1 ||
            { echo "$block: read other data than was written in pieces of $size KiB"; return 1; }
    done
    rm -f $out $back /tmp/$function.said
    echo $block
}
