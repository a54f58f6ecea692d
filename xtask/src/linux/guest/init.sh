#!/bin/sh
# The first process of Linux. It does what the kernel's command line says: `shell` for a shell on the console, `bench=NAME` for
# a measurement, else the checks, all or those of `checks=NAME,NAME`, with `again=HOW` once more after it was started anew; and then it turns the machine off.

/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
# From here on a line on the console is a line of ours; the kernel's are in its log, where a check looks at them.
dmesg -n 1

# The kernel's log has microseconds, /proc/uptime only hundredths of a second.
echo "first process" >/dev/kmsg
starts=$(dmesg | sed -n 's/^\[ *\([0-9]*\)\.\([0-9]*\)\] first process$/\1\2/p')
echo "$(uname -sr): the first process starts, uptime $(cut -d' ' -f1 /proc/uptime) s, kernel log $starts us"
echo "measure: linux-init-us $starts"

. /lib/guest/report.sh
. /lib/guest/devices.sh

# Without an SMMU in sight nobody translates for the host's devices, and a driver would wait for what never comes.
if smmus_visible; then
    for module in /lib/modules/*.ko; do insmod "$module"; done
fi
if above_hypervisor; then
    insmod /lib/hyp_iommu.ko
fi

if on_command_line shell; then
    # An interactive shell reads the file that ENV names.
    ENV=/lib/guest/shell.sh setsid -c sh -l </dev/ttyAMA0 >/dev/ttyAMA0 2>&1
elif [ -n "$(value_of bench)" ]; then
    . /lib/guest/bench.sh
else
    checks="smmus disks rebind domains vfio cpus calls fuzz log attacks"
    refuse_unknown $checks
    [ -z "$(value_of again)" ] || . /lib/guest/again.sh
    for name in $checks; do
        . /lib/guest/checks/$name.sh
    done
    summary
fi
# What the UART still has to say is lost when the machine goes off.
sleep 0.2
poweroff -f
