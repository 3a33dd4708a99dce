# Makes the calling process systemd, as process 1 of its namespaces and as in a
# container: it sees the machine's programs, read-only, and units of one
# directory only; it may not set the clock, load modules or power off.
#
#   sh -c "$(cat systemd.sh)" systemd.sh SYSTEMD UNITS
#
# It is process 1 of a PID, mount, network, IPC and UTS namespace already and in
# a cgroup of its own; the cgroup namespace is made here, which begins there.
set -eu
systemd=$1 units=$2
mount --make-rprivate /
mount -o remount,bind,ro /
mount -t proc proc /proc
mount --bind /proc/sys /proc/sys
mount -o remount,bind,ro /proc/sys
mount -t tmpfs -o mode=755 tmpfs /run
# No terminal and no disk: what a container manager gives.
mkdir /run/dev
mount -t tmpfs -o mode=755 tmpfs /run/dev
mknod -m 666 /run/dev/null c 1 3
mknod -m 666 /run/dev/zero c 1 5
mknod -m 666 /run/dev/full c 1 7
mknod -m 666 /run/dev/random c 1 8
mknod -m 666 /run/dev/urandom c 1 9
mknod -m 666 /run/dev/tty c 5 0
mkdir /run/dev/shm /run/dev/pts
mount --rbind /dev/shm /run/dev/shm
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts /run/dev/pts
mount --move /run/dev /dev
# What it would mount over the machine's own is read-only already.
mount -o remount,bind,ro /sys
exec unshare --cgroup sh -euc '
	mount -t cgroup2 cgroup2 /sys/fs/cgroup
	exec setpriv --bounding-set=-sys_time,-sys_boot,-sys_module,-sys_rawio \
		env -i PATH="$PATH" container=legion-bench SYSTEMD_UNIT_PATH="$2" \
		SYSTEMD_GENERATOR_PATH=/run/none SYSTEMD_ENVIRONMENT_GENERATOR_PATH=/run/none \
		"$1" --system --show-status=no --log-level=err --default-standard-output=null' sh "$systemd" "$units"
