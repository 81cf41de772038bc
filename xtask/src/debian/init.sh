#!/bin/busybox sh
# The first process of the Debian guest. Linux starts it with /dev/console as its terminal.
#
# duet.run=WORD or duet.run="SOME WORDS" on the kernel's command line is run by the shell; then the machine is
# switched off. Without it there is a shell on the console, and the machine is switched off when that ends.

export PATH=/bin HOME=/root TERM=linux PS1='guest:\w# '
/bin/busybox mkdir -p /dev /proc /sys /tmp /root
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts
mount -t devpts devpts /dev/pts

# Process 1 is this script, which the usual commands would ask in vain.
for command in poweroff reboot halt; do
    rm "/bin/$command"
    printf '#!/bin/sh\nsync\nexec busybox %s -f\n' "$command" >"/bin/$command"
    chmod +x "/bin/$command"
done

while read -r module; do
    insmod "/lib/modules/$module.ko" || echo "init: module $module failed"
done </lib/modules/order
ifconfig lo 127.0.0.1
hostname guest
cd /root || exit

read -r command_line </proc/cmdline
case " $command_line " in
*' duet.run="'*)
    run=${command_line#*duet.run=\"}
    run=${run%%\"*}
    ;;
*' duet.run='*)
    run=${command_line#*duet.run=}
    run=${run%% *}
    ;;
*)
    run=
    ;;
esac

if [ -n "$run" ]; then
    sh -c "$run"
    echo "duet.run: exit status $?"
else
    echo
    echo "Linux $(uname -r) with busybox. \"exit\" or \"poweroff\" ends it."
    echo
    # A terminal of its own, so that Ctrl-C and job control work.
    setsid cttyhack sh
fi
poweroff
