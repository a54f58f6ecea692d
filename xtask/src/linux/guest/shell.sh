# What an interactive shell begins with: the functions that the checks use.

. /lib/guest/report.sh
. /lib/guest/devices.sh

echo "functions: $(sed -n 's/^\([a-z_]*\)() {$/\1/p' /lib/guest/report.sh /lib/guest/devices.sh | tr '\n' ' ')"
echo "\`check NAME EXPECTED\` runs check_NAME; each file of /lib/guest/checks has one and runs it when it is sourced"
