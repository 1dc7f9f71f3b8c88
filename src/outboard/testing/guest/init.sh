#!/bin/sh
# The first and only program of a guest: sets the machine up, loads the modules it was built with, then
# runs what the host sends over the second serial port. A request is a line "TOKEN COMMAND SIZE", with
# the command in base64, and SIZE bytes that the command gets as input. The answer is "begin TOKEN", the
# command's output as it comes, and "end TOKEN STATUS", each on a line of its own.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=dumb
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /tmp
mount -t debugfs debugfs /sys/kernel/debug
ln -s /proc/self/fd /dev/fd
ip link set lo up

if [ -f /etc/boot-modules ]; then
    while read -r module; do
        insmod "/lib/modules/$module.ko" || echo "outboard: module $module did not load"
    done </etc/boot-modules
fi

stty -F /dev/ttyS1 115200 raw -echo
exec 3<>/dev/ttyS1
cd /root
echo "outboard ready" >&3
while read -r token command size <&3; do
    : >/tmp/.input
    [ "$size" = 0 ] || head -c "$size" <&3 >/tmp/.input
    echo "begin $token" >&3
    echo "$command" | base64 -d >/tmp/.command
    sh /tmp/.command </tmp/.input >&3 2>&1 3>&-
    status=$?
    printf '\nend %s %d\n' "$token" "$status" >&3
done
echo "outboard: the command line to the host is closed"
while :; do sleep 3600; done
