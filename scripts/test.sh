#!/usr/bin/env bash
# scripts/test.sh runs every test that needs nothing installed. Packages that
# link Kubernetes are tested plainly: their instrumented build for -race takes
# longer than all tests together. The others run with -race where there is a C
# compiler, which the race detector needs.
set -euo pipefail
cd "$(dirname "$0")/.."

plain=() race=()
while read -r path kubernetes; do
	if [ "$kubernetes" = true ]; then plain+=("$path"); else race+=("$path"); fi
done < <(go list -test -f '{{$k := false}}{{range .Deps}}{{if and (gt (len .) 7) (eq (slice . 0 7) "k8s.io/")}}{{$k = true}}{{end}}{{end}}{{if .ForTest}}{{.ForTest}}{{else}}{{.ImportPath}}{{end}} {{$k}}' ./... |
	sed 's/\.test / /' | sort | awk '{k[$1] = k[$1] || $2 == "true"} END {for (p in k) print p, (k[p] ? "true" : "false")}' | sort)

flags=(-timeout 10m)
if command -v "$(go env CC)" >/dev/null; then
	echo "testing ${#race[@]} packages with the race detector"
	CGO_ENABLED=1 go test -race "${flags[@]}" "${race[@]}"
else
	echo "testing ${#race[@]} packages without the race detector: it needs a C compiler, and there is no $(go env CC)"
	go test "${flags[@]}" "${race[@]}"
fi
echo "testing ${#plain[@]} packages that link Kubernetes"
go test "${flags[@]}" "${plain[@]}"
