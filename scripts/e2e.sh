#!/usr/bin/env bash
# scripts/e2e.sh runs the tests that start real fleets and Debian's own daemons.
# As root it installs the packages whose units they run; a package's daemons are
# not started by its installation.
set -euo pipefail
cd "$(dirname "$0")/.."

packages=(cron openssh-server openssh-client apache2 prometheus-node-exporter runc)
missing=()
for p in "${packages[@]}"; do
	dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null | grep -qx installed || missing+=("$p")
done
if [ ${#missing[@]} -gt 0 ]; then
	if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
		echo "not installed, and their tests are skipped: ${missing[*]}"
	else
		echo "installing ${missing[*]}"
		# policy-rc.d, exit status 101: start nothing (invoke-rc.d(8)).
		policy=/usr/sbin/policy-rc.d
		if [ ! -e $policy ]; then
			printf '#!/bin/sh\nexit 101\n' >$policy
			chmod 755 $policy
			trap 'rm -f $policy' EXIT
		fi
		export DEBIAN_FRONTEND=noninteractive
		log=$(mktemp)
		# Installed where there is no network but loopback: whatever a package
		# starts all the same can reach nobody.
		install=(apt-get install -y --no-install-recommends)
		if ! { apt-get update && "${install[@]}" --download-only "${missing[@]}" &&
			unshare --net "${install[@]}" --no-download "${missing[@]}"; } >"$log" 2>&1; then
			tail -n 20 "$log" >&2
			echo "cannot install ${missing[*]}; the whole log is $log" >&2
			exit 1
		fi
		rm -f "$log"
	fi
fi
# The other packages are downloaded by the tests that install or read them.
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null && [ -z "$(find /var/lib/apt/lists -name '*Packages*' -print -quit)" ]; then
	apt-get -q update
fi
LEGION_E2E=1 go test -count=1 -timeout 10m -run 'TestImages$' -v ./internal/app/agentd | grep --line-buffered -vE '^(=== (RUN|PAUSE|CONT|NAME))'
LEGION_E2E=1 LEGION_BIN="$PWD/bin" go test -count=1 -timeout 30m -v ./test/... 2>&1 | grep --line-buffered -vE '^(=== (RUN|PAUSE|CONT|NAME))'
