# The machine's SMMUs and disks, and what is done to disks. A function is a PCI address such as 0001:09:00.0.

functions=/sys/bus/pci/devices

# Whether the device tree has an SMMU.
smmus_visible() {
    ls -d /sys/firmware/devicetree/base/smmuv3@* >/dev/null 2>&1
}

# Ends a check that needs one.
need_smmus() {
    smmus_visible && return
    echo "no SMMU in the device tree"
    exit 2
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

# The block device of a function: its name below /dev.
block_of() {
    local block
    for block in /sys/block/*; do
        case $(readlink -f $block) in */$1/*) basename $block ;; esac
    done
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
