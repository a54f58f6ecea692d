# What the kernel said in all this time.

check_log() {
    local bad
    bad=$(dmesg | grep -iE \
        -e 'arm-smmu-v3.*(error|timeout|timed out|failed|unexpected|event 0x|gerror|unhandled)' \
        -e 'cut here|BUG:|Oops|Call trace|soft lockup|stall(s|ed) on|blocked for more than' \
        -e 'I/O error|nvme.*timeout')
    if [ -n "$bad" ]; then
        echo "$(echo "$bad" | wc -l) lines, the first: $(echo "$bad" | head -n 3)"
        return 1
    fi
    echo "$(dmesg | wc -l) lines, none of them"
}

check log "no complaint of arm-smmu-v3, of a disk or of the kernel itself in its log"
