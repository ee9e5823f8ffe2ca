# What can be made here: make help

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2

# Programs are static. Checks are made with the same setting, so that both share compiled packages.
export CGO_ENABLED ?= 0

# How often `make soak` repeats every test, and how long `make fuzz` tries each target.
SOAK ?= 3
FUZZTIME ?= 30s

# The docker program of containers, which is part of the source as it is compiled here.
SHIM := internal/buildkit/shim
SHIMFLAGS := -Os -std=gnu11 -Wall -Wextra -Werror -static -nostdlib -ffreestanding -fno-stack-protector \
	-fno-asynchronous-unwind-tables -fno-pic -no-pie -fno-tree-loop-distribute-patterns \
	-Wl,--build-id=none -Wl,-z,noseparate-code -Wl,-z,noexecstack -s

.PHONY: help build shim check test test-compose compose-secrets soak bench demo fuzz clean

help: ## list what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## the program, as bin/kiln
	go build -o bin/kiln ./cmd/kiln

shim: ## the programs for containers anew; needs gcc, gcc-aarch64-linux-gnu
	for p in docker put; do \
		gcc $(SHIMFLAGS) -o $(SHIM)/$$p/$$p-amd64 $(SHIM)/$$p/$$p.c && \
		strip -R .comment $(SHIM)/$$p/$$p-amd64 && \
		aarch64-linux-gnu-gcc $(SHIMFLAGS) -o $(SHIM)/$$p/$$p-arm64 $(SHIM)/$$p/$$p.c && \
		aarch64-linux-gnu-strip -R .comment $(SHIM)/$$p/$$p-arm64 || exit 1; \
	done

check: ## formatting, vet and staticcheck
	@unformatted=$$(gofmt -l .); if [ -n "$$unformatted" ]; then \
		echo "not formatted (try: gofmt -w FILE):"; echo "$$unformatted"; exit 1; fi
	go vet -tags soak ./...
	go run $(STATICCHECK) -tags soak ./...

test: ## all tests, with the race detector; needs root
	@.ci/deps.sh test
	CGO_ENABLED=1 go test -race -shuffle=on -timeout 30m ./...

test-compose: ## docker-compose.yml as its users use it, while parts of it are killed; needs root
	@.ci/compose

compose-secrets: ## the passwords of docker-compose.yml, in secrets/, unless they are there
	@mkdir -p -m 700 secrets
	@if [ ! -e secrets/nats_users ]; then umask 022; \
		for user in server worker; do od -An -v -N 24 -tx1 /dev/urandom | tr -d ' \n' >secrets/nats_$$user; done; \
		printf 'NATS_SERVER: "%s"\nNATS_WORKER: "%s"\n' "$$(cat secrets/nats_server)" "$$(cat secrets/nats_worker)" >secrets/nats_users; fi

soak: ## the long tests, then all others SOAK times over (3)
	@.ci/deps.sh test
	CGO_ENABLED=1 go test -race -tags soak -run Soak -timeout 2h -count 1 \
		$$(grep -rl --include='*_test.go' '^//go:build soak' . | xargs -n1 dirname | sort -u)
	CGO_ENABLED=1 go test -race -shuffle=on -timeout 4h -count $(SOAK) ./...

bench: ## the benchmarks; needs root and a quiet machine
	@.ci/deps.sh test
	go run ./internal/bench

demo: ## build and run the examples on a server of their own; ends by itself
	@.ci/deps.sh run
	@$(MAKE) --no-print-directory build
	@examples/demo.sh bin/kiln

fuzz: ## every fuzz target for FUZZTIME (30s)
	@for pkg in $$(grep -rl --include='*_test.go' '^func Fuzz' . | xargs -r -n1 dirname | sort -u); do \
		for target in $$(go test -list '^Fuzz' $$pkg | grep '^Fuzz'); do \
			echo "$$pkg $$target"; \
			go test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) $$pkg; \
		done; \
	done

clean: ## what was made
	rm -rf bin examples/base/busybox
