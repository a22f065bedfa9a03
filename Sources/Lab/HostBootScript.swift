/// The program of a host's first process. It runs in mount, pid, network, UTS and IPC namespaces
/// that were just made for it, and its death is the death of the host: the kernel ends every
/// process of the pid namespace with it, and the network namespace goes with the last of them.
enum HostBootScript {
    /// Settings come in the environment: FTVM_HOST, FTVM_ADDRESS (with prefix length), FTVM_MAC,
    /// FTVM_LAB (the lab's directory), FTVM_DAEMON (ftvmd's path or empty).
    static let text = #"""
        #!/bin/bash
        # First process of a host of ftvm's lab; written and started by `ftvm lab`.
        set -euo pipefail
        trap 'echo "boot: line $LINENO failed: $BASH_COMMAND"' ERR
        directory=$FTVM_LAB/hosts/$FTVM_HOST

        # Unmounting on the machine still reaches us; nothing that we mount reaches the machine.
        mount --make-rslave /
        mount -t proc proc /proc
        echo "$FTVM_HOST" >/proc/sys/kernel/hostname
        # Without the machine's cgroups, which the hosts' libvirt daemons would otherwise share.
        umount --recursive --lazy /sys
        mount -t sysfs sysfs /sys
        # Nor other labs' file systems, those that are there and those to come: libvirtd looks at each hugetlbfs that it
        # hears of, and does not start when it cannot find one, as below our own /run.
        tac /proc/mounts | while read -r _ path _; do
            case $path in
                "$FTVM_LAB" | "$FTVM_LAB"/*) ;;
                # Its lab may take it away at the same time.
                /run/*)
                    umount --lazy "$path" 2>/dev/null ||
                        if mountpoint --quiet "$path"; then umount --lazy "$path"; fi
                    ;;
            esac
        done
        mount --make-private /
        ! mountpoint --quiet /run || mount --make-private /run
        # An empty /run as after a reboot: no D-Bus, no systemd, but the lab's own directory.
        exec 3<"$FTVM_LAB"
        mount -t tmpfs -o mode=755,size=64m ftvm-host /run
        mkdir -p "$FTVM_LAB" /run/libvirt /run/lock
        mount --no-canonicalize --rbind /proc/self/fd/3 "$FTVM_LAB"
        exec 3<&-
        mount --bind "$directory/libvirt" /run/libvirt
        mount --bind "$directory/etc-libvirt" /etc/libvirt
        mount --bind "$FTVM_LAB/etc-hosts" /etc/hosts
        for part in lib cache log; do
            mount --bind "$directory/var/$part" "/var/$part/libvirt"
        done

        # Another QEMU than the machine's, as on a host that was upgraded before the others.
        if [ -e "$directory/qemu-root" ]; then
            qemu=$(cat "$directory/qemu-root")
            modules=$(dirname "$(find "$qemu/usr/lib" -name hw-display-virtio-gpu.so)")
            mount --bind "$qemu/usr/bin/qemu-system-x86_64" "$(realpath /usr/bin/qemu-system-x86_64)"
            mount --bind "$qemu/usr/share/qemu" /usr/share/qemu
            mount --bind "$modules" "${modules#"$qemu"}"
        fi

        # br0, where guests are, with an uplink to the lab's switch.
        ip link set lo up
        ip link add br0 address "$FTVM_MAC" type bridge forward_delay 0
        ip link add uplink type veth peer name "$FTVM_HOST" netns "$FTVM_LAB/switch"
        ip link set uplink master br0 up
        ip address add "$FTVM_ADDRESS" dev br0
        ip link set br0 up
        nsenter --net="$FTVM_LAB/switch" ip link set "$FTVM_HOST" master lab0 up

        # Starts a program again whenever it ends, like systemd's Restart=always, with the variables
        # of a file, if it is there, like EnvironmentFile=.
        keep() {
            local log=$1 variables=$2 status
            shift 2
            while :; do
                status=0
                (
                    set -a
                    [ ! -e "$variables" ] || . "$variables"
                    exec "$@"
                ) >>"$log" 2>&1 || status=$?
                echo "ftvm-lab: $1 ended with status $status; starting it again" >>"$log"
                sleep 0.1
            done
        }
        trap - ERR
        export LIBVIRT_DRIVER_DIR=$FTVM_LAB/drivers
        keep "$directory/libvirtd.log" "$directory/libvirtd.environment" libvirtd &
        until [ -S /run/libvirt/libvirt-sock ]; do sleep 0.02; done
        if [ -n "$FTVM_DAEMON" ]; then
            unset LIBVIRT_DRIVER_DIR
            keep "$directory/ftvmd.log" "$directory/ftvmd.environment" \
                "$FTVM_DAEMON" --config "$directory/ftvmd.toml" &
        fi
        # bash reaps every orphan of the host while it waits.
        while :; do wait; sleep 1; done

        """#
}
