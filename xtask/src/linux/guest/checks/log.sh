# What the kernel said in all this time.

# After a crash SMMUs were on, which `again` demands; that is no complaint then.
without_left_on() {
    if [ "$(value_of again)" = crash ]; then grep -v "$left_on"; else cat; fi
}

# Lines that are complaints. `dmesg -r` begins them with <LEVEL>: 0 to 4 are a warning or worse.
complaints() {
    dmesg -r | without_left_on | grep -iE \
        -e '^<[0-4]>.*arm-smmu-v3' \
        -e 'arm-smmu-v3.*(error|timeout|timed out|failed|unexpected|event 0x|gerror|unhandled)' \
        -e 'cut here|BUG:|Oops|Call trace|soft lockup|stall(s|ed) on|blocked for more than' \
        -e 'I/O error|nvme.*timeout'
}

check_log() {
    local bad driver
    # A log whose beginning was overwritten, or a driver that says nothing, would be no proof of anything.
    driver=$(dmesg -r | grep -c '^<[5-7]>.*arm-smmu-v3')
    [ $driver -ne 0 ] || { echo "no line of arm-smmu-v3"; return 1; }
    bad=$(complaints)
    if [ -n "$bad" ]; then
        echo "$(echo "$bad" | wc -l) lines, the first: $(echo "$bad" | head -n 3)"
        return 1
    fi
    echo "$(dmesg | wc -l) lines, $driver of arm-smmu-v3, none of them"
}

check log "no warning or worse of arm-smmu-v3, no complaint of a disk or of the kernel itself in its log"
