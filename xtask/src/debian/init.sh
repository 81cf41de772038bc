#!/bin/busybox sh
# The first process of the Debian guest. Linux starts it with /dev/console as its terminal.
#
# duet.run=WORD or duet.run="SOME WORDS" on the kernel's command line is run by the shell; then the machine is
# switched off. Without it there is a shell on the console.

export PATH=/bin HOME=/root TERM=linux PS1='guest:\w# '
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir /dev/pts
mount -t devpts devpts /dev/pts

# The modules are for virtio devices, which are Red Hat's on the PCI bus. To load one costs an emulator more than a
# second, because the kernel then reads its type information.
virtio=
for vendor in /sys/bus/pci/devices/*/vendor; do
    read -r id <"$vendor" && [ "$id" = 0x1af4 ] && virtio=yes
done
if [ -n "$virtio" ]; then
    while read -r module; do
        insmod "/lib/modules/$module.ko" || echo "init: module $module failed"
    done </lib/modules/order
fi
ifconfig lo 127.0.0.1
echo guest >/proc/sys/kernel/hostname
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
    sync
    # The shell's own poweroff would ask process 1, which is this script.
    exec busybox poweroff -f
fi

cat <<END

Linux $(uname -r) with busybox. "poweroff" ends it.

END
# cttyhack gives the shell a terminal of its own, so that Ctrl-C and job control work.
echo '::respawn:/bin/cttyhack /bin/sh' >/etc/inittab
exec init
