# Legion. `make up` starts a fleet on this machine; `make help` lists the rest.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
# One set of flags for build, vet and test: another set would compile the
# Kubernetes packages a second time.
export CGO_ENABLED := 0
export GOFLAGS := -buildvcs=false

LEGION_DIR ?= $(CURDIR)/.legion
NODES ?= 3
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS := -s -w -X legion.dev/legion/internal/app.Version=$(VERSION) -X k8s.io/component-base/version.gitVersion=v1.37.2
GOFUMPT := go tool -modfile=tools/go.mod gofumpt
STATICCHECK := go tool -modfile=tools/go.mod staticcheck
# A build that says how far it is: scripts/build.sh.
BUILD := LDFLAGS='$(LDFLAGS)' scripts/build.sh

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

.PHONY: up
up: build ## start a fleet on this machine (NODES=3) with the three example daemons
	@bin/legion up --dir '$(LEGION_DIR)' --nodes $(NODES) --apply examples

.PHONY: down
down: ## stop it; its data stay in LEGION_DIR=.legion
	@[ -x bin/legion ] || $(BUILD) bin/ ./cmd/legion
	@bin/legion down --dir '$(LEGION_DIR)'

.PHONY: build
build: ## build the four programs into bin/ and the example daemons into bin/examples/
	@$(BUILD) bin/ ./cmd/...
	@$(BUILD) bin/examples/ ./examples/...

.PHONY: host
host: ## build legiond and legion only: the services of one machine
	@$(BUILD) bin/ ./cmd/legion ./cmd/legiond

.PHONY: test
test: ## run every test that needs nothing installed
	@scripts/test.sh

.PHONY: chaos
chaos: ## end legiond 2,000 times between any two of its effects (LEGION_CHAOS_SEED chooses which)
	LEGION_CHAOS_POINTS=$${LEGION_CHAOS_POINTS:-2000} go test -count=1 -timeout 30m -run TestChaos -v ./internal/app/hostd

.PHONY: rounds
rounds: build ## do ROUNDS=1000 faults of SEED=1 to a fleet, one after the other, and look after each whether all is well
	LEGION_E2E=1 LEGION_BIN='$(CURDIR)/bin' LEGION_ROUNDS=$${ROUNDS:-1000} LEGION_SEED=$${SEED:-1} go test -count=1 -timeout 3h -run 'TestRounds$$' -v ./test/e2e

.PHONY: e2e
e2e: build ## run real fleets and Debian's own daemons (installs packages as root)
	@scripts/e2e.sh

.PHONY: test-upstream
test-upstream: ## hold the DaemonSet controller to upstream's cases on upstream's API server (first build: minutes)
	cd test/upstream && go vet ./... && go test -timeout 10m ./...

.PHONY: test-upstream-e2e
test-upstream-e2e: ## run upstream's own e2e cases of DaemonSets against legion-server with simulated nodes
	@$(BUILD) bin/ ./cmd/legion-server
	cd test/upstream && go test -c -ldflags '-s -w' -o ../../bin/upstream-e2e.test k8s.io/kubernetes/test/e2e && \
		go run ./e2e -server ../../bin/legion-server -binary "$(CURDIR)/bin/upstream-e2e.test"

.PHONY: test-upstream-e2e-real
test-upstream-e2e-real: build ## the same against a fleet of three real nodes that run containers (as root, with runc)
	cd test/upstream && go test -c -ldflags '-s -w' -o ../../bin/upstream-e2e.test k8s.io/kubernetes/test/e2e && \
		go run ./e2e -real ../../bin -nodes 3 -binary "$(CURDIR)/bin/upstream-e2e.test"

.PHONY: stock
stock: ## build upstream's control plane into bin/stock/, to be measured beside Legion's (bench/README.md)
	cd test/upstream && go build -ldflags '$(LDFLAGS)' -o ../../bin/stock/ k8s.io/kubernetes/cmd/kube-apiserver \
		k8s.io/kubernetes/cmd/kube-controller-manager k8s.io/kubernetes/cmd/kube-scheduler
	cd test/upstream && go build -ldflags '$(LDFLAGS)' -o ../../bin/stock/etcd go.etcd.io/etcd/server/v3

.PHONY: check
check: ## format, vet, staticcheck, architecture
	@out=$$($(GOFUMPT) -l $$(git ls-files '*.go')); if [ -n "$$out" ]; then echo "not gofumpt'd:"; echo "$$out"; exit 1; fi
	go vet ./...
	$(STATICCHECK) ./...
	go test ./internal/arch

.PHONY: clean
clean: ## remove what was built
	rm -rf bin
