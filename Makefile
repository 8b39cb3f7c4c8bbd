# Holdfast: `make help` says what each target does.

SHELL := /bin/bash
.DEFAULT_GOAL := help

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
COMMIT  ?= $(shell git rev-parse --short HEAD 2>/dev/null || echo unknown)
# The date of the commit, not of the build: the same source makes the same binary.
DATE    ?= $(shell git log -1 --format=%cs 2>/dev/null || echo unknown)

# With a C compiler libzstd is linked in, statically; without one the pure Go codec takes its place. Both write and
# read the same archives. `make build CGO_ENABLED=0` asks for pure Go.
CGO_ENABLED ?= $(shell go env CGO_ENABLED)
export CGO_ENABLED
TAGS    := osusergo,netgo,grpcnotrace,disable_grpc_modules
STAMP   := -X holdfast/internal/cli.version=$(VERSION) -X holdfast/internal/cli.commit=$(COMMIT) -X holdfast/internal/cli.date=$(DATE)
ifeq ($(CGO_ENABLED),1)
LDFLAGS := -s -w -linkmode external -extldflags "-static" $(STAMP)
else
LDFLAGS := -s -w $(STAMP)
endif
# holdfast-client answers before Go's runtime starts, where it can; see cmd/holdfast-client/quick_linux_amd64.go.
CLIENT_LDFLAGS := -s -w $(if $(filter linux/amd64,$(or $(GOOS),$(shell go env GOOS))/$(or $(GOARCH),$(shell go env GOARCH))),-E main.entry)

.PHONY: help build demo services test check bench fuzz docs clean

help: ## say what each target does
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/\1|\2/' | awk -F'|' '{printf "  make %-9s %s\n", $$1, $$2}'

build: ## build the static binaries ./holdfast and ./holdfast-client
	go build -buildvcs=false -trimpath -tags '$(TAGS)' -ldflags '$(LDFLAGS)' -o holdfast ./cmd/holdfast
	CGO_ENABLED=0 go build -buildvcs=false -trimpath -ldflags '$(CLIENT_LDFLAGS)' -o holdfast-client ./cmd/holdfast-client

demo: build ## watch a dropped table come back on a throwaway PostgreSQL (installs PostgreSQL when there is none)
	test/services/install.sh --server
	./holdfast demo

services: ## fetch what the tests run against: PostgreSQL 10 to 18, a server for each store (once, some minutes)
	test/services/install.sh

# What takes longest begins first. Tests wait for servers more than they compute, so there are more at once than there are cores.
LONGEST := roundtrip faults drill pgbackrest recovertable catchup receive runbook increments

test: services ## run every test, on every major of PostgreSQL and every store; a missing service is a failure
	REQUIRE_SERVICES=1 go test -vet=off -timeout 50m -p $$(($$(nproc) + 1)) $(LONGEST:%=./test/%) ./...

check: ## gofmt, go vet, what the services are built of is pinned, and the pure Go codec builds and works
	@test -z "$$(gofmt -l cmd internal test)" || { echo "not gofmt-ed:"; gofmt -l cmd internal test; exit 1; }
	go vet ./...
	cd test/services/tools && GOFLAGS= go list -deps tool > /dev/null
	CGO_ENABLED=0 go build -buildvcs=false -o /dev/null ./cmd/holdfast
	CGO_ENABLED=0 go test ./internal/compress

bench: build ## measure against pgBackRest, pg_basebackup, tar and cp in one run; writes docs/bench.md
	test/services/install.sh
	go run ./test/bench

fuzz: ## fuzz each decoder for FUZZTIME (default 1m each)
	@for p in $$(grep -rlE '^func Fuzz' --include='*_test.go' internal | xargs -n1 dirname | sort -u); do \
	  for f in $$(grep -hoE '^func Fuzz[A-Za-z0-9_]+' $$p/*_test.go | sed 's/func //'); do \
	    echo "== $$p $$f"; go test ./$$p -run '^$$' -fuzz "^$$f\$$" -fuzztime $${FUZZTIME:-1m} -fuzzminimizetime 10x || exit 1; \
	  done; done

docs: ## rewrite docs/settings.md and docs/commands.md from the definitions
	go test ./internal/config ./internal/cli ./internal/metrics ./internal/check -run Docs -update

clean: ## remove what the build made
	rm -f holdfast holdfast-client
