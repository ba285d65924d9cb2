# What an ordinary container may do, beside what capabilities, seccomp and masks say already: everything of its own,
# nothing to the kernel's files, no mounts, no tracing or signals beyond containers.
profile pinnace-default flags=(attach_disconnected, mediate_deleted) {
  capability,
  network,
  file,
  umount,

  signal (receive) peer=unconfined,
  signal (send, receive) peer=pinnace-default,
  ptrace (trace, read, tracedby, readby) peer=pinnace-default,

  deny mount,
  deny remount,
  deny pivot_root,

  # The kernel's own files in /proc; processes' are those with a number.
  deny /proc/[^0-9s]** w,
  deny /proc/s[^ey]** w,
  deny /proc/sy[^s]** w,
  deny /proc/sysrq-trigger rwklx,
  deny /proc/{kcore,kmem,mem} rwklx,

  # Of /proc/sys only what a pod's namespaces own: net, fs/mqueue, kernel/{domainname,hostname,msg*,sem,shm*}.
  deny /proc/sys/[^fkn]** w,
  deny /proc/sys/f[^s]** w,
  deny /proc/sys/fs/[^m]** w,
  deny /proc/sys/fs/m[^q]** w,
  deny /proc/sys/k[^e]** w,
  deny /proc/sys/kernel/[^dhms]** w,
  deny /proc/sys/kernel/d[^o]** w,
  deny /proc/sys/kernel/h[^o]** w,
  deny /proc/sys/kernel/ho[^s]** w,
  deny /proc/sys/kernel/m[^s]** w,
  deny /proc/sys/kernel/s[^eh]** w,
  deny /proc/sys/kernel/se[^m]** w,
  deny /proc/sys/kernel/sh[^m]** w,

  # /sys, but for control groups that were given.
  deny /sys/[^f]** wklx,
  deny /sys/f[^s]** wklx,
  deny /sys/fs/[^c]** wklx,
  deny /sys/fs/c[^g]** wklx,
  deny /sys/firmware/** rwklx,
  deny /sys/devices/virtual/powercap/** rwklx,
  deny /sys/kernel/security/** rwklx,
}
