# What `bench=` on the kernel's command line asks for: the time of transfers, or transfers in phases that the log of the
# emulator is cut by, or nothing but a boot. Those by a disk are on the first NVMe, one at a time and past the page cache.

# transfer read|write|pipe KIB COUNT: by the disk, or from one program to another, which no device and no EL2 has a part in.
transfer() {
    case $1 in
        pipe) dd if=/dev/zero bs=${2}k count=$3 | dd of=/dev/null bs=${2}k ;;
        read) dd if=/dev/$disk of=/dev/null bs=${2}k count=$3 iflag=direct ;;
        write) dd if=/dev/zero of=/dev/$disk bs=${2}k count=$3 oflag=direct conv=notrunc ;;
    esac 2>/tmp/said && return
    cat /tmp/said
    return 1
}

# Writes a line to the kernel's log, which has microseconds where all else has hundredths of a second.
stamp() {
    echo "stamp $1" >/dev/kmsg
}

# Microseconds from boot to the last such line.
stamped() {
    dmesg | sed -n "s/^\[ *\([0-9]*\)\.\([0-9]*\)\] stamp $1\$/\1\2/p" | tail -n 1 | sed 's/^0*//'
}

# The disk's image has all its bytes and the driver its memory when this is done.
warm_up() {
    transfer write 64 1000 && transfer read 4 100
}

# Several rounds of each kind, so that a machine which does other things too has a quiet moment for one of them.
bench_time() {
    local round kib count kind
    warm_up || return 1
    for round in 1 2 3 4 5; do
        for kind in read-4k write-4k read-64k write-64k pipe-64k; do
            case $kind in
                pipe-*) count=500 ;;
                *-4k) count=800 ;;
                *) count=200 ;;
            esac
            kib=${kind#*-}
            stamp begin
            transfer ${kind%-*} ${kib%k} $count || return 1
            stamp end
            echo "measure: $kind-ns $((($(stamped end) - $(stamped begin)) * 1000 / count))"
        done
    done
}

# A phase lasts from its line to the next one. The pause is for the UART, so that no end of a line falls into a phase.
bench_phases() {
    local kind count
    warm_up || return 1
    for kind in read write; do
        for count in 500 1000; do
            echo "phase: $kind-4k $count"
            sleep 0.1
            transfer $kind 4 $count || return 1
            sleep 0.1
            echo "phase: end 0"
            sleep 0.1
        done
    done
}

bench_boot() {
    true
}

bench() {
    local disk
    case $1 in
        time | phases | boot) ;;
        *) echo "bench=$1: there is no such measurement; there are time phases boot"; return 1 ;;
    esac
    # Without its SMMU driver Linux boots and has no disk.
    [ $1 = boot ] || disk=$(first_nvme) || { echo "no NVMe"; return 1; }
    bench_$1
}

if bench $(value_of bench); then echo "outcome: pass"; else echo "outcome: fail"; fi
