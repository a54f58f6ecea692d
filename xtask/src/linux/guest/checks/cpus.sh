# CPUs that go off and on again.

check_cpus() {
    local rounds=3 round cpu count before
    before=$(nproc)
    [ $before -gt 1 ] || { echo "one CPU only"; return 2; }
    for round in $(seq $rounds); do
        for cpu in /sys/devices/system/cpu/cpu[1-9]*; do
            echo 0 >$cpu/online || return 1
        done
        count=$(nproc)
        [ $count -eq 1 ] || { echo "$count CPUs are on, not 1"; return 1; }
        for cpu in /sys/devices/system/cpu/cpu[1-9]*; do
            echo 1 >$cpu/online || return 1
        done
        count=$(nproc)
        [ $count -eq $before ] || { echo "$count CPUs are on, not $before"; return 1; }
    done
    echo "$rounds rounds with $((before - 1)) CPUs"
}

check cpus "all CPUs but the first turned off and on again"
