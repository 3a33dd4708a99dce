#!/bin/sh
# Runs a command where runit, s6, daemontools and supervisord are installed,
# without installing them: their Debian packages are unpacked into DIR, which
# is laid over /usr in a mount namespace (and a network namespace) of the
# command's own. No installation script runs. Needs root.
#
#   bench/host/peers.sh DIR COMMAND [ARGUMENT...]
set -eu
dir=$(realpath -m "${1:?usage: peers.sh DIR COMMAND...}")
shift
if [ ! -d "$dir/root" ]; then
	mkdir -p "$dir/packages"
	(cd "$dir/packages" && apt-get download -q runit s6 libs6-2.11 execline libexecline2.9 libskarnet2.13 daemontools supervisor python3-pkg-resources)
	for package in "$dir"/packages/*.deb; do dpkg -x "$package" "$dir/root"; done
	# /lib and /sbin of the packages are in /usr on a machine with merged /usr.
	for old in lib sbin bin; do
		[ ! -d "$dir/root/$old" ] || cp -a "$dir/root/$old" "$dir/root/usr/"
	done
fi
exec unshare --net --mount sh -euc '
	mount -t overlay overlay -o "lowerdir=$1/root/usr:/usr" /usr
	shift
	exec "$@"' sh "$dir" "$@"
