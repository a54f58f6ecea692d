# Whether Linux drives every SMMU that the machine has, and every disk is behind one, in a domain of the type that was asked for.

check_smmus() {
    local machine nodes bound listed function wanted types= wrong=
    machine=$(value_of smmus)
    nodes=$(ls -d /sys/firmware/devicetree/base/smmuv3@* 2>/dev/null | wc -l)
    bound=$(ls -d /sys/bus/platform/drivers/arm-smmu-v3/*.smmuv3 2>/dev/null | wc -l)
    listed=$(ls /sys/class/iommu | grep -c '^smmu3')
    echo "$machine in the machine, $nodes in the device tree, $bound bound, $listed in use"
    [ "$nodes" = "$machine" ] && [ $nodes -eq $bound ] && [ $nodes -eq $listed ] || return 1
    wanted=$(domain_wanted)
    for function in $(disks); do
        [ -e $functions/$function/iommu_group ] || { echo "$function is in no IOMMU group"; return 1; }
        types="$types, $function $(domain_of $function) in group $(group_of $function)"
        [ "$(domain_of $function)" = "${wanted:-$(domain_of $function)}" ] || wrong="$wrong $function"
    done
    echo "domains${wanted:+, all to be $wanted}: ${types#, }"
    [ -n "$types" ] && [ -z "$wrong" ]
}

check smmus "every SMMU of the machine bound by arm-smmu-v3, and every disk behind one, in a domain as iommu.strict and iommu.passthrough say"
