# Whether Linux drives every SMMU that it can see, and every disk is behind one.

check_smmus() {
    need_smmus
    local nodes bound listed function alone=
    nodes=$(ls -d /sys/firmware/devicetree/base/smmuv3@* | wc -l)
    bound=$(ls -d /sys/bus/platform/drivers/arm-smmu-v3/*.smmuv3 2>/dev/null | wc -l)
    listed=$(ls /sys/class/iommu | grep -c '^smmu3')
    for function in $(disks); do
        [ -e $functions/$function/iommu_group ] || alone="$alone $function"
    done
    echo "$nodes in the device tree, $bound bound, $listed in use${alone:+, disks without IOMMU group:$alone}"
    [ $nodes -eq $bound ] && [ $nodes -eq $listed ] && [ -z "$alone" ]
}

check smmus "every SMMU of the device tree bound by arm-smmu-v3, and every disk behind one"
