# Disks behind all SMMUs, all at once.

check_disks() {
    need_smmus
    local function jobs= seen= status=0
    for function in $(disks); do
        (exercise $function 4 >/tmp/$function.result || echo "$function" >>/tmp/disks.failed) &
    done
    wait
    for function in $(disks); do
        seen="$seen $(cat /tmp/$function.result)"
    done
    [ -n "$seen" ] || { echo "no disk"; return 1; }
    [ ! -e /tmp/disks.failed ] || status=1
    rm -f /tmp/disks.failed /tmp/*.result
    echo "4 MiB three times on$seen"
    return $status
}

check disks "what was written at random, read back from every disk, all at once"
