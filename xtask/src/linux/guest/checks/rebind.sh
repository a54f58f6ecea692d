# Drivers that let go of their devices and take them again: each time Linux attaches the stream anew.

check_rebind() {
    need_smmus
    local rounds=3 round function driver
    for round in $(seq $rounds); do
        for function in $(disks); do
            driver=$functions/$function/driver
            driver=$(readlink -f $driver)
            echo $function >$driver/unbind || return 1
            [ -z "$(block_of $function)" ] || { echo "$function still has a block device"; return 1; }
            echo $function >$driver/bind || return 1
            exercise $function 1 >/tmp/rebind || { echo "round $round: $(cat /tmp/rebind)"; return 1; }
        done
    done
    echo "$rounds rounds on $(disks | wc -l) disks"
}

check rebind "each disk's driver unbound and bound again, and the disk well"
