#!/usr/bin/env bash
# scripts/build.sh DIR PACKAGE… builds programs into DIR and says, while it takes
# long, how many packages are compiled. The first build compiles Kubernetes' own
# packages and takes some minutes.
set -euo pipefail
out=$1
shift
command -v go >/dev/null || { echo "cannot build: Go is not installed (https://go.dev/dl)" >&2; exit 1; }
case $(go env GOVERSION) in
go1.[0-9] | go1.[0-9].* | go1.1[0-9]* | go1.20*)
	echo "cannot build: this is $(go env GOVERSION), too old to fetch the Go that go.mod names; install one from https://go.dev/dl" >&2
	exit 1
	;;
esac
mkdir -p "$out"

begin=$SECONDS
terminal=
[ -t 2 ] && [ "${TERM:-dumb}" != dumb ] && terminal=1
say() { # say in place on a terminal, as a line elsewhere
	if [ -n "$terminal" ]; then printf '\r\033[K%s' "$1" >&2; else printf '%s\n' "$1" >&2; fi
}
elapsed() { local s=$((SECONDS - begin)); printf '%dm%02ds' $((s / 60)) $((s % 60)); }

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# Modules first, so that the counter below counts compilations. Nothing is
# fetched if all are there.
if ! GOPROXY=off go list -deps "$@" >"$work/packages" 2>/dev/null; then
	echo "Fetching modules; there is nothing of them here yet." >&2
	n=0
	# go list fetches what these packages need, and says so a line each.
	while IFS= read -r line; do
		case $line in
		go:\ downloading*)
			n=$((n + 1))
			if [ -n "$terminal" ] || [ $((n % 40)) = 0 ]; then say "  $(elapsed)  $n modules fetched"; fi
			;;
		*) printf '%s\n' "$line" >&2 ;;
		esac
	done < <(go list -deps "$@" 2>&1 >"$work/packages")
	[ -z "$terminal" ] || printf '\r\033[K' >&2
fi

total=$(wc -l <"$work/packages")
n=0
last=$SECONDS
failed=$work/failed
: >"$failed"
while IFS= read -r line; do
	case $line in
	\#* | *:*:* | *\ *) printf '%s\n' "$line" >>"$failed" ;; # a compiler's message
	*)
		n=$((n + 1))
		if [ "$n" = 60 ]; then
			how="this takes less than a minute"
			if [ "$total" -gt 800 ]; then how="Kubernetes' own among them; from nothing this takes some minutes"; fi
			echo "Compiling up to $total packages, $how." >&2
		fi
		if [ -n "$terminal" ] || [ $((SECONDS - last)) -ge 10 ]; then
			say "  $(elapsed)  compiled $n of at most $total packages: $line"
			last=$SECONDS
		fi
		;;
	esac
done < <(go build -v -ldflags "$LDFLAGS" -o "$out" "$@" 2>&1 || echo "# exit $?")
[ -z "$terminal" ] || printf '\r\033[K' >&2
if [ -s "$failed" ]; then
	cat "$failed" >&2
	if grep -q '^# exit' "$failed"; then exit 1; fi
fi
if [ "$n" -gt 0 ]; then echo "Built $* into $out ($(elapsed), $n packages compiled)." >&2; fi
