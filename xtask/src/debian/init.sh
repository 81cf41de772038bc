#!/bin/busybox sh
# The first process of the Debian guest. Linux starts it with /dev/console as its terminal.
#
# duet.run=WORD or duet.run="SOME WORDS" on the kernel's command line is run by the shell; then the machine is
# switched off. Without it there is a shell on the console.
# duet.ip=ADDRESS/PREFIX or duet.ip=dhcp is for its first network card, duet.gateway=ADDRESS the way out.
# duet.service=redis starts redis-server.

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
# What udhcpc calls with the lease it has got.
cat >/bin/leased <<'END'
#!/bin/sh
[ "$1" = bound ] || exit 0
ip address add "$ip/$mask" dev "$interface"
[ -z "$router" ] || ip route add default via "${router%% *}"
END
chmod +x /bin/leased
echo guest >/proc/sys/kernel/hostname
cd /root || exit

read -r command_line </proc/cmdline
ip= gateway= service=
for word in $command_line; do
    case $word in
    duet.ip=*) ip=${word#*=} ;;
    duet.gateway=*) gateway=${word#*=} ;;
    duet.service=*) service=${word#*=} ;;
    esac
done
case $ip in
'') ;;
dhcp)
    ip link set eth0 up
    udhcpc -q -n -t 10 -i eth0 -s /bin/leased >/dev/null || echo "init: no address by DHCP"
    ;;
*)
    ip address add "$ip" dev eth0
    ip link set eth0 up
    [ -z "$gateway" ] || ip route add default via "$gateway"
    ;;
esac
case $service in
'') ;;
redis)
    redis-server --bind 0.0.0.0 --protected-mode no --save '' --appendonly no --dir /tmp --logfile /tmp/redis.log &
    ;;
*) echo "init: no service $service" ;;
esac

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
