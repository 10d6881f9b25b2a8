# What people type. Each target is a line or a script: CI and people run the same commands.

SHELL := /bin/sh
PREFIX ?= /usr/local
# Options for `kumo up`, `kumo testbed up` or the benchmark: make run ARGS='--listen 127.0.0.1:9000'
ARGS ?=
CARGO ?= cargo
TARGET_DIR = $${CARGO_TARGET_DIR:-target}

.DEFAULT_GOAL := help
.PHONY: help run demo build test bench-k2i bench-fabric bench-middlecon chaos-middlecon fmt lint install uninstall clean

help: ## Say what can be made
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | \
	    awk -F'|' '{ printf "%-24s %s\n", $$1, $$2 }'

run: ## Install what is missing, build, and start the node in the foreground
	@scripts/install-deps run
	@$(CARGO) build --release --locked -p kumo -p k2i
	@# Whoever reads `kumo ps` there shall be able to type it.
	@command -v kumo >/dev/null || echo "In another terminal: export PATH=\"$$(cd "$(TARGET_DIR)/release" && pwd):\$$PATH\""
	@exec "$(TARGET_DIR)/release/kumo" up $(ARGS)

demo: ## Start a cluster of two data centres with three hosts each on this machine
	@scripts/install-deps demo
	@$(CARGO) build --release --locked -p kumo -p kumo-testbed
	@command -v kumo >/dev/null || echo "In another terminal: export PATH=\"$$(cd "$(TARGET_DIR)/release" && pwd):\$$PATH\""
	@exec "$(TARGET_DIR)/release/kumo" testbed up --dcs 2 --hosts 3 $(ARGS)

build: ## Build the release binaries kumo and k2i, and libmiddlecon
	@scripts/install-deps run
	$(CARGO) build --release --locked -p kumo -p k2i -p kumo-ffi

test: ## Install what the tests need and run all of them
	@scripts/install-deps test
	@# It ends with 2 when its compiler is not there. CI does not go on then; people may.
	@crates/k2i/bpf/build --check || { [ $$? = 2 ] && echo "make test: the committed BPF object is not compared with its source" >&2; }
	$(CARGO) test --workspace --locked --no-fail-fast

bench-k2i: ## Compare our process table with ps and others; writes docs/BENCHMARKS.md
	@scripts/install-deps run
	$(CARGO) build --release --locked -p kumo -p k2i -p kumo-testbed
	"$(TARGET_DIR)/release/bench-k2i" $(ARGS)

bench-fabric: ## Ask 1,000 simulated hosts, see hosts die; writes docs/BENCHMARKS.md
	@scripts/install-deps run
	$(CARGO) build --release --locked -p kumo -p kumo-testbed
	"$(TARGET_DIR)/release/bench-fabric" $(ARGS)

chaos-middlecon: ## A million calls while everything around them is killed, frozen and cut off; ARGS='--seed 42'
	@scripts/install-deps demo
	$(CARGO) build --release --locked -p kumo -p kumo-testbed
	"$(TARGET_DIR)/release/chaos-middlecon" $(ARGS)

bench-middlecon: ## Compare our calls with bare ones, tonic, Zenoh, NATS, ZeroMQ, iceoryx2; writes docs/BENCHMARKS.md
	@scripts/install-deps bench
	$(CARGO) build --release --locked -p kumo -p kumo-testbed --features kumo-testbed/peers
	"$(TARGET_DIR)/release/bench-middlecon" $(ARGS)

fmt: ## Format the code
	$(CARGO) fmt --all

lint: ## Check format, lints, documentation and, where cargo-deny is installed, dependencies
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings -A rustdoc::private-intra-doc-links" $(CARGO) doc --workspace --no-deps --document-private-items --locked --quiet
	@if command -v cargo-deny >/dev/null; then $(CARGO) deny --locked check; fi

install: ## Install kumo, k2i, libmiddlecon and middlecon.h under PREFIX (default /usr/local)
	@# What is built is taken as it is: root often has no cargo.
	@[ -x "$(TARGET_DIR)/release/kumo" ] && [ -x "$(TARGET_DIR)/release/k2i" ] && \
	    [ -e "$(TARGET_DIR)/release/libmiddlecon_c.so" ] || $(MAKE) build
	install -d "$(DESTDIR)$(PREFIX)/bin" "$(DESTDIR)$(PREFIX)/lib" "$(DESTDIR)$(PREFIX)/include"
	install -m 755 "$(TARGET_DIR)/release/kumo" "$(TARGET_DIR)/release/k2i" "$(DESTDIR)$(PREFIX)/bin/"
	install -m 755 "$(TARGET_DIR)/release/libmiddlecon_c.so" "$(DESTDIR)$(PREFIX)/lib/libmiddlecon.so.1"
	ln -sf libmiddlecon.so.1 "$(DESTDIR)$(PREFIX)/lib/libmiddlecon.so"
	install -m 644 "$(TARGET_DIR)/release/libmiddlecon_c.a" "$(DESTDIR)$(PREFIX)/lib/libmiddlecon.a"
	install -m 644 crates/ffi/include/middlecon.h "$(DESTDIR)$(PREFIX)/include/"
	@# The loader finds a new library once its cache knows it; a package does that when it is installed.
	@[ -n "$(DESTDIR)" ] || [ "$$(id -u)" != 0 ] || ldconfig || true

uninstall: ## Remove what `make install` installed
	rm -f "$(DESTDIR)$(PREFIX)/bin/kumo" "$(DESTDIR)$(PREFIX)/bin/k2i"
	rm -f "$(DESTDIR)$(PREFIX)/lib/libmiddlecon.so.1" "$(DESTDIR)$(PREFIX)/lib/libmiddlecon.so"
	rm -f "$(DESTDIR)$(PREFIX)/lib/libmiddlecon.a" "$(DESTDIR)$(PREFIX)/include/middlecon.h"

clean: ## Remove everything that was built
	$(CARGO) clean
