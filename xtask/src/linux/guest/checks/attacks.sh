# Root has devices write where no device of the host's may: to the hypervisor's memory, to a page that a guest has, to registers. Every
# attack must fault, Linux's own driver must report it as one event, and the place must not have the value; and what attacks must be
# able to: the same program writes to memory of its own, and to the page when it is the host's.

attacks=0
# Lines that the driver writes of one event.
LINES_OF_EVENT=7

# What the driver said since this was asked last. It empties the kernel's log, so that nothing is looked through twice.
driver_said() { dmesg -c | grep 'arm-smmu-v3 '; }

# Whether it said nothing.
driver_is_quiet() {
    local said
    said=$(driver_said)
    [ -z "$said" ] || { echo "without an attack the driver said: $said"; return 1; }
}

# is WANTED COMMAND...: whether a command says just that.
is() {
    local wanted=$1 said
    shift
    said=$("$@" 2>&1)
    [ "$said" != "$wanted" ] || return 0
    echo "$*: $said, not $wanted"
    return 1
}

# throttle EVENTS: waits until the driver reports so many. It reports no more than ten in five seconds: seven here, and perhaps three of the
# window before.
window=0 in_window=0
throttle() {
    local left=$((550 - ($(now) - window)))
    if [ $left -gt 0 ] && [ $((in_window + $1)) -gt 7 ]; then
        sleep $((left / 100 + 1))
        left=0
    fi
    [ $left -gt 0 ] || window=$(now) in_window=0
    in_window=$((in_window + $1))
}

# reported FUNCTION ADDRESS...: whether the driver says that writes of a function to these addresses faulted, in this order, and nothing else.
reported() {
    local function=$1 tries=0 said= address expected=
    shift
    for address in "$@"; do
        expected="$expected*: event: F_TRANSLATION client: $function sid: * iova: $(printf '%#x' $address) ipa: 0x0
*"
    done
    while [ $(echo "$said" | grep -c ' stag: ') -lt $# ] && [ $tries -lt 50 ]; do
        [ $tries -eq 0 ] || sleep 0.1
        said="$said$(driver_said)
"
        tries=$((tries + 1))
    done
    attacks=$((attacks + $#))
    case $said in
        $expected) [ $(echo "$said" | grep -c .) -eq $((LINES_OF_EVENT * $#)) ] && return ;;
    esac
    echo "$*: the driver said: $said"
    return 1
}

# in_vain FUNCTION ADDRESS: whether a write to a physical address faults and the value is not there, as the device itself sees it.
in_vain() {
    throttle 1
    driver_is_quiet && is faulted hyp-dma write $1 $2 $2 && reported $1 $2 && is "the value is not there" hyp-dma look $1 $2
}

# A page that the host gives to a guest: written to before and after, not meanwhile.
attack_donated() {
    local function=$1 guest page
    guest=$(hyp-iommu guest create) && page=$(hyp-iommu allocate 4K) || { echo "no guest with a page"; return 1; }
    is landed hyp-dma write $function $page $page || return 1
    is 0x0000000012345678 hyp-iommu read $page || return 1
    hyp-iommu donate $page 4K $guest || return 1
    is "guest $guest" hyp-iommu owner $page || return 1
    in_vain $function $page || return 1
    hyp-iommu reclaim $page 4K $guest || return 1
    is 0x0000000000000000 hyp-iommu read $page || return 1
    is landed hyp-dma write $function $page $page || return 1
    hyp-iommu free $page && hyp-iommu guest destroy $guest
}

# attack_by_vfio FUNCTION: with the stage 1 of a VFIO program, which maps what it should not. Its own page lands, and the last time that
# was unmapped.
attack_by_vfio() {
    local function=$1 iova=0x123400000 neighbour own="landed, the value is there"
    neighbour=$(neighbour_of $function)
    throttle 3
    driver_is_quiet || return 1
    if above_hypervisor; then
        is "$own; faulted; faulted; faulted" hyp-dma attack $function $(group_of $function) $(hypervisor_memory) $neighbour || return 1
        reported $function $iova $iova $((iova + 0x80))
    else
        is "$own; faulted; landed" hyp-dma attack $function $(group_of $function) $neighbour || return 1
        reported $function $iova
    fi
}

# A register of an edu that can be written: no driver of Linux's has it, and so /dev/mem does.
neighbour_of() {
    local edu
    edu=$functions/$(edu_of $1)
    echo 1 >$edu/enable
    printf '%#x' $(($(cut -d' ' -f1 $edu/resource | head -n 1) + 0x80))
}

# attack_directly FUNCTION: without a stage 1, so that an I/O address is the physical one.
attack_directly() {
    local function=$1 registers
    is "landed, the value is there" hyp-dma own $function || return 1
    # SMMU_GERROR_IRQ_CFG1: a word that can be written, and is used by nobody where the SMMU sends no MSIs.
    registers=$(printf '%#x' $((0x$(smmu_of $function) + 0x68)))
    if above_hypervisor; then
        # This also sees what came of the attack by VFIO.
        in_vain $function $(hypervisor_memory) || return 1
        is "the value is not there" hyp-dma look $function $(neighbour_of $function) || return 1
        in_vain $function $registers && attack_donated $function
    else
        is landed hyp-dma write $function $registers $registers
    fi
}

# attack FUNCTION
attack() {
    local function=$1 type first status
    to_vfio $function && attack_by_vfio $function
    status=$?
    from_vfio $function && [ $status -eq 0 ] || return 1
    type=/sys/kernel/iommu_groups/$(group_of $function)/type
    first=$(cat $type)
    echo identity >$type || return 1
    attack_directly $function || return 1
    echo $first >$type
}

check_attacks() {
    need_smmus
    local function count=0
    driver_said >/dev/null
    for function in $(testdevs); do
        # `refused` counts in this shell: only words go into the file.
        attack $function >/tmp/attack 2>&1 || { echo "$function: $(cat /tmp/attack)"; return 1; }
        count=$((count + 1))
    done
    [ $count -ne 0 ] || { echo "there is no iommu-testdev"; return 2; }
    driver_is_quiet || return 1
    if above_hypervisor; then
        echo "$attacks attacks by $count devices faulted, each with an event"
    else
        echo "no hypervisor: $count devices wrote to registers of SMMUs and of other devices; nothing is donated, and there is no memory of a hypervisor; $attacks writes to unmapped addresses faulted"
    fi
}

check attacks "devices that root tells to write where none of the host's may fault, with an event each, and change nothing"
