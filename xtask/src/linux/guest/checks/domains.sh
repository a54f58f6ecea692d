# IOMMU domains of each kind for each disk: bypass of stage 1, translated strictly, and translated with deferred flushes.

# in_domain FUNCTION TYPE: the disk in a domain of that type.
in_domain() {
    local function=$1 type=$2 group driver
    group=/sys/kernel/iommu_groups/$(group_of $function)
    driver=$(readlink -f $functions/$function/driver)
    echo $function >$driver/unbind || return 1
    echo $type >$group/type || return 1
    [ "$(cat $group/type)" = $type ] || { echo "$function: $(cat $group/type) and not $type"; return 1; }
    echo $function >$driver/bind || return 1
    exercise $function 1
}

check_domains() {
    need_smmus
    local function first type
    for function in $(disks); do
        first=$(cat /sys/kernel/iommu_groups/$(group_of $function)/type)
        for type in identity DMA DMA-FQ identity $first; do
            in_domain $function $type >/tmp/domains 2>&1 || { echo "$function, $type: $(cat /tmp/domains)"; return 1; }
        done
    done
    echo "identity, DMA and DMA-FQ on $(disks | wc -l) disks"
}

check domains "each disk well in a domain of each type"
