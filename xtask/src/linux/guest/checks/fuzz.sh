# Root attacks the hypervisor with whatever calls the module makes, and with devices that Linux has let go of, while Linux uses its disks.
# `fuzz=` on the kernel's command line has words of `hyp-iommu fuzz` with commas between them.

# as_words FUNCTION: the address of its SMMU, its StreamID and the address of its registers, with commas between them.
as_words() {
    local function=$1
    # On this machine a StreamID is what PCI calls a Requester ID.
    set -- $(echo $function | sed 's/^.*:\(..\):\(..\)\.\(.\)$/0x\1 0x\2 \3/')
    printf '0x%s,%#x,%s' $(smmu_of $function) $(($1 << 8 | $2 << 3 | $3)) $(cut -d' ' -f1 $functions/$function/resource | head -n 1)
}

# let_go KIND FUNCTION...: has Linux let go of functions, and says them as words.
let_go() {
    local kind=$1 function
    shift
    for function in "$@"; do
        hyp-dma enable $function || return 1
        echo "$kind=$(as_words $function)"
        echo 1 >$functions/$function/remove
    done
}

# use_disk FUNCTION: uses a disk until the attack is over, at least once, and says how often.
use_disk() {
    local function=$1 rounds=0 said
    while true; do
        said=$(exercise $function 1) || { echo "round $rounds: $said" >>/tmp/fuzz.failed; return; }
        rounds=$((rounds + 1))
        [ -e /tmp/fuzz.runs ] || break
    done
    echo $rounds >>/tmp/fuzz.rounds
}

check_fuzz() {
    need_smmus
    above_hypervisor || { echo "no hypervisor"; return 2; }
    local words devices before function status
    words=$(value_of fuzz | tr , ' ')
    before=$(ls $functions | wc -l)
    let_go testdev $(testdevs) >/tmp/fuzz.devices && let_go edu $(functions_of 0x1234 0x11e8) >>/tmp/fuzz.devices ||
        { cat /tmp/fuzz.devices; return 1; }
    touch /tmp/fuzz.runs /tmp/fuzz.rounds
    for function in $(disks); do use_disk $function & done
    # On the console, so that it is seen while it goes on.
    hyp-iommu fuzz ${words:-steps=250} $(cat /tmp/fuzz.devices) >/dev/console 2>&1
    status=$?
    rm /tmp/fuzz.runs
    wait
    hyp-iommu events >/dev/null
    echo 1 >/sys/bus/pci/rescan
    [ $status -eq 0 ] || echo "see above"
    [ ! -e /tmp/fuzz.failed ] || { status=1; cat /tmp/fuzz.failed; }
    [ $(ls $functions | wc -l) -eq $before ] || { status=1; echo "$before functions before it, $(ls $functions | wc -l) after it"; }
    [ -z "$(hyp-iommu memory)" ] || { status=1; hyp-iommu memory; }
    echo "$(wc -l </tmp/fuzz.rounds) disks written and read $(($(tr '\n' '+' </tmp/fuzz.rounds)0)) times meanwhile, $(wc -l </tmp/fuzz.devices) devices back"
    return $status
}

check fuzz "nothing found by random calls, accesses and DMA of root's, every disk well meanwhile, and every page and device Linux's again"
