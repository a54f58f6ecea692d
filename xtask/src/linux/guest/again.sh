# What `again=` on the kernel's command line asks for: Linux uses its disks, ends in that way, and the Linux that comes after it
# says whether it is well. What the first one tells the second stands on a disk, which keeps it.

# Where kexec puts the new kernel at the lowest. Below are the tables of LPIs, which the first kernel has from the start of memory: a new
# kernel that lies over them takes them, by what Linux does where no firmware table says that they are reserved, for its own.
kexec_from=0x50000000

# The last 4 KiB of a disk of 64 MiB: no check writes there.
mark_block=16383

# The mark on a disk, if there is one.
mark_of() {
    dd if=/dev/$1 bs=4k skip=$mark_block count=1 iflag=direct 2>/dev/null | tr -d '\0'
}

# mark DISK TEXT: writes it past the page cache, and looks.
mark() {
    echo "$2" >/tmp/mark
    truncate -s 4096 /tmp/mark
    dd if=/tmp/mark of=/dev/$1 bs=4k seek=$mark_block oflag=direct conv=notrunc 2>/dev/null
    [ "$(mark_of $1)" = "$2" ]
}

# Ends this Linux. With kexec a word tells the next one that it was not the firmware who started it. `crash` leaves all devices
# and SMMUs as they are; else drivers are told.
leave() {
    local line options
    line="$(cat /proc/cmdline) started-by-kexec"
    case $how in
        reboot) reboot -f ;;
        kexec | crash)
            [ $how = kexec ] && options=--load || options=--load-panic
            # With half of the CPUs it has its tables of LPIs elsewhere, while the CPUs that it leaves out have theirs on where they were.
            [ $how = crash ] || line="$line nr_cpus=$((($(nproc) + 1) / 2))"
            kexec --kexec-syscall $options /boot/Image --mem-min=$kexec_from --initrd=/sys/firmware/initrd \
                --command-line="$line" || return 1
            # What the UART still has to say.
            sleep 0.2
            [ $how = kexec ] && kexec --exec || echo c >/proc/sysrq-trigger
            ;;
    esac
    # Nothing of this comes back.
    sleep 10
    return 1
}

first_time() {
    local function
    for function in $(disks); do
        (exercise $function 1 >/tmp/$function.first || cat /tmp/$function.first >>/tmp/first) &
    done
    wait
    [ ! -e /tmp/first ] || { cat /tmp/first; return; }
    mark $disk "ended by $how" || { echo "$disk does not keep a mark"; return; }
    echo "the first Linux has used $(disks | wc -l) disks, and ends by $how"
    leave || echo "it has not ended"
}

check_again() {
    [ "$(mark_of $disk)" = "ended by $how" ] || { echo "the mark says: $(mark_of $disk)"; return 1; }
    if [ $how = reboot ]; then
        ! on_command_line started-by-kexec || { echo "kexec has started it"; return 1; }
    else
        on_command_line started-by-kexec || { echo "the firmware has started it"; return 1; }
    fi
    local count
    count=$(dmesg | grep -c "$left_on")
    # Only a crash leaves them on.
    if [ $how = crash ]; then
        [ $count -eq $(value_of smmus) ] || { echo "$count SMMUs were on, not $(value_of smmus)"; return 1; }
    else
        [ $count -eq 0 ] || { echo "$count SMMUs were on"; return 1; }
    fi
    echo "$count SMMUs still on, and the mark of the first one, which ended by $how"
}

how=$(value_of again)
disk=$(first_nvme)
case $how in
    reboot | kexec | crash)
        if [ -z "$(mark_of $disk)" ]; then
            echo "FAIL again: $(first_time | tee /dev/console)"
            failed=$((failed + 1))
        else
            report again "a second Linux, started by what ended the first"
        fi
        ;;
    *)
        echo "FAIL again=$how: there is no such end; there are reboot kexec crash"
        failed=$((failed + 1))
        ;;
esac
