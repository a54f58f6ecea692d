# What root can do with hyp-iommu and its module, and what it cannot.

# says WANTED COMMAND...: whether a command says just that.
says() {
    local wanted=$1 said
    shift
    said=$("$@" 2>&1)
    [ "$said" = "$wanted" ] || { echo "$*: '$said', not '$wanted'"; return 1; }
}

# begins WANTED COMMAND...: whether what it says begins so.
begins() {
    local wanted=$1 said
    shift
    said=$("$@" 2>&1)
    case $said in "$wanted"*) ;; *) echo "$*: '$said', not '$wanted...'"; return 1 ;; esac
}

# refuses WHY COMMAND...: whether a command fails and says that.
refuses() {
    local why=$1 said
    shift
    said=$("$@" 2>&1) && { echo "$*: it was done: $said"; return 1; }
    case $said in *"$why"*) ;; *) echo "$*: '$said', not '$why'"; return 1 ;; esac
}

# A page that goes to a guest and comes back. Meanwhile Linux has it not, and keeps it.
donate_and_reclaim() {
    local guest page
    guest=$(hyp-iommu guest create) && page=$(hyp-iommu allocate 4K) || { echo "no guest with a page"; return 1; }
    says "" hyp-iommu write $page 0x1122334455667788 || return 1
    says 0x1122334455667788 hyp-iommu read $page || return 1
    says "" hyp-iommu donate $page 4K $guest || return 1
    says "$page, 0x1000 bytes: guest $guest" hyp-iommu memory || return 1
    refuses "WrongState" hyp-iommu donate $page 4K $guest || return 1
    refuses "reclaim" hyp-iommu read $page || return 1
    refuses "reclaim" hyp-iommu free $page || return 1
    # The module stays as long as it has pages out.
    refuses "unavailable" rmmod hyp_iommu || return 1
    refuses "Busy" hyp-iommu guest destroy $guest || return 1
    says "" hyp-iommu reclaim $page 4K $guest || return 1
    says 0x0000000000000000 hyp-iommu read $page || return 1
    says "" hyp-iommu free $page || return 1
    refuses "the module has no pages there" hyp-iommu donate $page 4K $guest || return 1
    says "" hyp-iommu guest destroy $guest && says "" hyp-iommu memory
}

# attach_and_detach FUNCTION: calls have its stream when Linux has let go of it, and it comes back.
attach_and_detach() {
    local function=$1 smmu stream guest status
    smmu=$(hyp-iommu smmus | sed -n "s/^SMMU \([0-9]*\): registers at 0x$(smmu_of $function),.*/\1/p")
    # On this machine a StreamID is what PCI calls a Requester ID.
    stream=$(echo $function | sed 's/^.*:\(..\):\(..\)\.\(.\)$/0x\1 0x\2 \3/')
    set -- $stream
    stream=$(printf '%#x' $(($1 << 8 | $2 << 3 | $3)))
    guest=$(hyp-iommu guest create) || { echo "no guest"; return 1; }
    case $(hyp-iommu stream $smmu $stream) in *"of the host's driver"*) ;; *) echo "StreamID $stream of SMMU $smmu is not the host's"; return 1 ;; esac
    if [ -e $functions/$function/driver ]; then
        refuses "unbind" hyp-iommu attach $smmu $stream $guest || return 1
        says "" hyp-iommu guest destroy $guest
        return
    fi
    refuses "Busy" hyp-iommu attach $smmu $stream $guest || return 1
    refuses "UnknownDomain" hyp-iommu attach $smmu $stream 0x10000000041 || return 1
    stream_of_a_call $function $smmu $stream $guest
    status=$?
    # Only then: while a guest has a function, Linux must not look for functions there.
    says "" hyp-iommu guest teardown $guest || return 1
    echo 1 >/sys/bus/pci/rescan
    [ $status -eq 0 ] && to_vfio $function && {
        # It is Linux's again: a VFIO program has it write to its own page.
        case $(hyp-dma vfio $function $(group_of $function)) in "landed, the value is there"*) ;; *) status=1 ;; esac
        from_vfio $function && [ $status -eq 0 ]
    }
}

# stream_of_a_call FUNCTION SMMU STREAM GUEST: first in the host's domain, then in the guest's.
stream_of_a_call() {
    local function=$1 smmu=$2 stream=$3 guest=$4 name="SMMU $2, StreamID $3" registers
    hyp-dma enable $function || return 1
    registers=$(cut -d' ' -f1 $functions/$function/resource | head -n 1)
    echo 1 >$functions/$function/remove
    says "$name: unattached, its DMA faults" hyp-iommu stream $smmu $stream || return 1
    says "faulted, the value is not there" hyp-dma at $registers || return 1

    begins "$name: domain 0 (the host's), VMID " hyp-iommu attach $smmu $stream 0 || return 1
    says "landed, the value is there" hyp-dma at $registers || return 1
    says faulted hyp-dma at $registers $(hypervisor_memory) || return 1
    says "F_TRANSLATION SMMU $smmu StreamID $stream write $(hypervisor_memory)" hyp-iommu events || return 1
    says "" hyp-iommu events || return 1
    says "$name: unattached, its DMA faults" hyp-iommu detach $smmu $stream || return 1
    says "faulted, the value is not there" hyp-dma at $registers || return 1

    begins "$name: domain $guest (memory of guest $guest), VMID " hyp-iommu attach $smmu $stream $guest || return 1
    begins "domain $guest (memory of guest $guest): 1 streams, 0 vSMMUs, VMID " hyp-iommu domain $guest || return 1
    refuses "Busy" hyp-iommu attach $smmu $stream $guest || return 1
    refuses "Busy" hyp-iommu guest destroy $guest || return 1
    says "$name: unattached, its DMA faults" hyp-iommu detach $smmu $stream
}

check_calls() {
    need_smmus
    above_hypervisor || { echo "no hypervisor"; return 2; }
    local nodes function count=0
    nodes=$(ls -d /sys/firmware/devicetree/base/smmuv3@* | wc -l)
    [ $(hyp-iommu smmus | grep -c translating) -eq $nodes ] || { hyp-iommu smmus; return 1; }
    says "crw-------" sh -c "ls -l /dev/hyp-iommu | cut -c1-10" || return 1
    donate_and_reclaim || return 1
    for function in $(testdevs) $(disks); do
        attach_and_detach $function || { echo "$function: see above"; return 1; }
        count=$((count + 1))
    done
    [ $(hyp-iommu statistics | wc -l) -gt 10 ] || { hyp-iommu statistics; return 1; }
    echo "$(hyp-iommu version | head -n 2 | tr '\n' ';')$nodes SMMUs, pages there and back, $count devices"
}

check calls "what hyp-iommu is told to do done, and what would hurt Linux refused"
