# VFIO takes every NVMe from its driver and gives it back.

# taken_and_given FUNCTION
taken_and_given() {
    local function=$1 driver group
    driver=$(readlink -f $functions/$function/driver)
    group=$(group_of $function)
    echo $function >$driver/unbind || return 1
    echo vfio-pci >$functions/$function/driver_override
    echo $function >/sys/bus/pci/drivers/vfio-pci/bind || return 1
    [ "$(driver_of $function)" = vfio-pci ] || { echo "$function is not bound to vfio-pci"; return 1; }
    [ -c /dev/vfio/$group ] || { echo "there is no /dev/vfio/$group"; return 1; }
    echo $function >/sys/bus/pci/drivers/vfio-pci/unbind || return 1
    [ ! -e /dev/vfio/$group ] || { echo "/dev/vfio/$group stays"; return 1; }
    echo >$functions/$function/driver_override
    echo $function >$driver/bind || return 1
    exercise $function 1
}

# dma_by_vfio FUNCTION: a program maps a page of its own with VFIO, and the device writes to it.
dma_by_vfio() {
    local function=$1 said
    to_vfio $function || return 1
    said=$(hyp-dma vfio $function $(group_of $function) 2>&1)
    from_vfio $function || return 1
    case $said in "landed, the value is there"*) ;; *) echo "$said"; return 1 ;; esac
}

check_vfio() {
    need_smmus
    local function count=0 writers=0
    [ -d /sys/bus/pci/drivers/vfio-pci ] || { echo "this kernel has no vfio-pci"; return 2; }
    for function in $(disks); do
        [ "$(driver_of $function)" = nvme ] || continue
        taken_and_given $function >/tmp/vfio 2>&1 || { echo "$function: $(cat /tmp/vfio)"; return 1; }
        count=$((count + 1))
    done
    for function in $(testdevs); do
        dma_by_vfio $function >/tmp/vfio 2>&1 || { echo "$function: $(cat /tmp/vfio)"; return 1; }
        writers=$((writers + 1))
    done
    echo "$count functions, and $writers devices wrote to pages that a program mapped for them"
    [ $count -ne 0 ] && [ $writers -ne 0 ]
}

check vfio "each NVMe bound to vfio-pci, given back, and well; and a device reaches what a VFIO program maps"
