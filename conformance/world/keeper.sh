#!/bin/sh
# Process 1 of a world: makes the private machine, says "ready", then reaps until its standard input ends,
# which it does when the test is gone. Everything in the PID namespace dies with it.
#   keeper.sh DIR     (inside fresh mount, PID, network, IPC, UTS and cgroup namespaces)
# DIR/cgroups holds one line per hierarchy, "TYPE OPTIONS MOUNTPOINT"; DIR/hosts and DIR/resolv.conf
# replace those of /etc.
set -eu
dir=$1

ip link set lo up

# sysfs of this network namespace, and cgroups rooted in the cgroup that was made for this world.
umount -R -l /sys
mount -t sysfs sysfs /sys
mount -t securityfs securityfs /sys/kernel/security 2>/dev/null || :
[ "$(wc -l <"$dir/cgroups")" -eq 1 ] || mount -t tmpfs -o mode=0755 tmpfs /sys/fs/cgroup
while read -r type options at; do
    mkdir -p "$at"
    mount -t "$type" -o "$options" "$type" "$at"
done <"$dir/cgroups"

# What a node has under / is shared, and what one mount namespace leaks into others shows only then.
mount --make-rshared /

# The configuration and the state of whatever runs on the real machine are not visible.
for empty in /run /etc/cni /etc/containers /etc/containerd /etc/pinnace /opt/cni /var/lib/cni /var/lib/pinnace; do
    [ ! -d "$empty" ] || mount -t tmpfs -o mode=0755 tmpfs "$empty"
done
for file in hosts resolv.conf; do
    target=$(readlink -m "/etc/$file")
    [ -e "$target" ] || { mkdir -p "${target%/*}"; : >"$target"; }
    mount --bind "$dir/$file" "$target"
done

exec 3<&0 </dev/null
cat <&3 >/dev/null &
echo ready
# Waits for orphans of the world too: wait(1) in a shell reaps every child that ends meanwhile.
wait $!
