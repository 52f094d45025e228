# `make help` lists what can be made. Needs nothing but make and bash: scripts/need installs the rest by name.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules

# rustup's cargo first, wherever the shell was started.
export PATH := $(HOME)/.cargo/bin:$(PATH):/usr/sbin

CARGO ?= cargo
# Arguments for the program: make demo ARGS="--seconds 20".
ARGS ?=
TARGET := $(or $(CARGO_TARGET_DIR),target)
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n1)
ARCH := $(shell uname -m)

# For packagers: make install DESTDIR=stage PREFIX=/usr.
PREFIX ?= /usr/local
DESTDIR ?=
SYSCONFDIR ?= /etc
UNITDIR ?= $(if $(filter /usr,$(PREFIX)),/usr/lib/systemd/system,/etc/systemd/system)
SYSUSERSDIR ?= /usr/lib/sysusers.d
TMPFILESDIR ?= /usr/lib/tmpfiles.d
UDEVDIR ?= $(if $(filter /usr,$(PREFIX)),/usr/lib/udev/rules.d,/etc/udev/rules.d)
# Which board's configuration and udev rules are installed; a folder of board/.
BOARD ?= generic-arm64

.PHONY: help
help: ## show this list
	@printf 'visaged %s\n\n' '$(VERSION)'
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 24

.PHONY: demo
demo: ## build quickly, then the whole way on the bundled clip, with a broker and a live page (ARGS="--seconds 20")
	@scripts/need build
	@$(CARGO) build --profile demo --locked --bin visaged
	@exec $(TARGET)/demo/visaged demo $(ARGS)

.PHONY: build
build: ## the release binary
	@scripts/need build
	@$(CARGO) build --release --locked --bin visaged

.PHONY: fleet
fleet: ## the operator's program, visaged-fleet (docs/fleet.md)
	@scripts/need build
	@$(CARGO) build --release --locked -p visaged-fleet

.PHONY: test
test: ## every test: unit, integration, documentation, and the training package's where its environment is present
	@scripts/need test
	$(CARGO) test --workspace --locked $(ARGS)
	@if [ -x training/.venv/bin/python ]; then \
		cd training && .venv/bin/python -m pytest -q; \
	else \
		echo "training: no environment in training/.venv, its tests are left out (make training-venv)"; \
	fi

.PHONY: training-venv
training-venv: ## the training package's environment for its tests (small: no PyTorch)
	python3 -m venv training/.venv
	training/.venv/bin/pip install -q -r training/requirements-ci.txt

.PHONY: lint
lint: ## formatting, clippy, documentation, shell scripts: warnings are errors
	@scripts/need build
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --workspace --no-deps --locked
	scripts/check-licences
	scripts/check-promises
	if command -v shellcheck >/dev/null; then shellcheck -x .ci/run $$(grep -rlE '^#!/bin/(ba)?sh' scripts tests 2>/dev/null); fi

.PHONY: format
format: ## cargo fmt
	$(CARGO) fmt --all

.PHONY: bench
bench: build ## time of every stage and network on this machine, then the micro-benchmarks
	$(TARGET)/release/visaged bench $(ARGS)
	$(CARGO) bench --locked

.PHONY: soak
soak: build ## 10,000 frames must leave the memory where it was
	scripts/soak $(TARGET)/release/visaged assets/demo.gif

.PHONY: unit-check
unit-check: ## the systemd unit: syntax, and an exposure of 2.5 or better
	scripts/check-unit

.PHONY: cross-aarch64
cross-aarch64: ## the release binary for 64-bit ARM, in target-aarch64/
	@scripts/need cross
	scripts/cross-aarch64

.PHONY: cross-test
cross-test: build cross-aarch64 ## the ARM binary under qemu-user answers as the one of this machine does
	scripts/compare-aarch64

.PHONY: vm-test
vm-test: ## capture against the kernel's own camera drivers, in a virtual machine (tests/vm/run netem: a bad link)
	tests/vm/run

.PHONY: dist
dist: build ## a tarball to copy to a machine like this one, in target/dist/
	@stage=$(TARGET)/dist/visaged-$(VERSION)-$(ARCH)-linux; rm -rf "$$stage"; mkdir -p "$$stage"; \
	cp $(TARGET)/release/visaged "$$stage/"; strip "$$stage/visaged"; \
	cp -r README.md CHANGELOG.md ATTRIBUTION.md LICENSE-MIT LICENSE-APACHE board systemd "$$stage/"; \
	tar -C $(TARGET)/dist --owner=0 --group=0 --sort=name -czf "$$stage.tar.gz" "$${stage##*/}"; \
	ls -l "$$stage.tar.gz"

.PHONY: install
install: ## as root, after `make build`: binary, units, completions, and the configuration of BOARD= where none is there yet
	@[ -x $(TARGET)/release/visaged ] || { echo 'install: no $(TARGET)/release/visaged yet: run `make build` first, as yourself' >&2; exit 2; }
	install -Dm755 $(TARGET)/release/visaged $(DESTDIR)$(PREFIX)/bin/visaged
	install -Dm644 systemd/visaged.sysusers.conf $(DESTDIR)$(SYSUSERSDIR)/visaged.conf
	install -Dm644 systemd/visaged.tmpfiles.conf $(DESTDIR)$(TMPFILESDIR)/visaged.conf
	install -d $(DESTDIR)$(UNITDIR)
	sed 's,/usr/bin/visaged,$(PREFIX)/bin/visaged,; s,/usr/share/doc,$(PREFIX)/share/doc,' systemd/visaged.service >$(DESTDIR)$(UNITDIR)/visaged.service
	install -Dm644 board/$(BOARD)/99-visaged.rules $(DESTDIR)$(UDEVDIR)/99-visaged.rules
	install -d -m750 $(DESTDIR)$(SYSCONFDIR)/visaged
	[ -e $(DESTDIR)$(SYSCONFDIR)/visaged/visaged.toml ] || install -m640 board/$(BOARD)/visaged.toml $(DESTDIR)$(SYSCONFDIR)/visaged/visaged.toml
	[ -e $(DESTDIR)$(SYSCONFDIR)/visaged/visaged.env ] || install -m600 systemd/visaged.env $(DESTDIR)$(SYSCONFDIR)/visaged/visaged.env
	install -Dm644 README.md ATTRIBUTION.md LICENSE-MIT LICENSE-APACHE -t $(DESTDIR)$(PREFIX)/share/doc/visaged
	install -d $(DESTDIR)$(PREFIX)/share/{bash-completion/completions,zsh/site-functions,fish/vendor_completions.d}
	$(TARGET)/release/visaged completions bash >$(DESTDIR)$(PREFIX)/share/bash-completion/completions/visaged
	$(TARGET)/release/visaged completions zsh >$(DESTDIR)$(PREFIX)/share/zsh/site-functions/_visaged
	$(TARGET)/release/visaged completions fish >$(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/visaged.fish
	@if [ -z '$(DESTDIR)' ] && [ -d /run/systemd/system ]; then \
		systemd-sysusers visaged.conf; systemd-tmpfiles --create visaged.conf; \
		systemctl daemon-reload; udevadm control --reload; udevadm trigger --subsystem-match=video4linux; \
		echo 'next: edit $(SYSCONFDIR)/visaged/visaged.toml, run `visaged check`, then `systemctl enable --now visaged`'; \
	fi

.PHONY: install-fleet
install-fleet: ## as root, after `make fleet`: the operator's program, its unit, user, and settings where none are there yet
	@[ -x $(TARGET)/release/visaged-fleet ] || { echo 'install-fleet: no $(TARGET)/release/visaged-fleet yet: run `make fleet` first, as yourself' >&2; exit 2; }
	install -Dm755 $(TARGET)/release/visaged-fleet $(DESTDIR)$(PREFIX)/bin/visaged-fleet
	install -Dm644 systemd/visaged-fleet.sysusers.conf $(DESTDIR)$(SYSUSERSDIR)/visaged-fleet.conf
	install -d $(DESTDIR)$(UNITDIR)
	sed 's,/usr/bin/visaged-fleet,$(PREFIX)/bin/visaged-fleet,; s,/usr/share/doc,$(PREFIX)/share/doc,' systemd/visaged-fleet.service >$(DESTDIR)$(UNITDIR)/visaged-fleet.service
	install -d -m750 $(DESTDIR)$(SYSCONFDIR)/visaged-fleet
	[ -e $(DESTDIR)$(SYSCONFDIR)/visaged-fleet/visaged-fleet.env ] || install -m600 systemd/visaged-fleet.env $(DESTDIR)$(SYSCONFDIR)/visaged-fleet/visaged-fleet.env
	install -Dm644 docs/fleet.md LICENSE-MIT LICENSE-APACHE -t $(DESTDIR)$(PREFIX)/share/doc/visaged
	@if [ -z '$(DESTDIR)' ] && [ -d /run/systemd/system ]; then \
		systemd-sysusers visaged-fleet.conf; systemctl daemon-reload; \
		echo 'next: name the broker in $(SYSCONFDIR)/visaged-fleet/visaged-fleet.env, then `systemctl enable --now visaged-fleet`'; \
	fi

.PHONY: uninstall
uninstall: ## as root: what install put there, but for configuration and state
	rm -f $(DESTDIR)$(PREFIX)/bin/visaged $(DESTDIR)$(UNITDIR)/visaged.service $(DESTDIR)$(UDEVDIR)/99-visaged.rules
	rm -f $(DESTDIR)$(PREFIX)/bin/visaged-fleet $(DESTDIR)$(UNITDIR)/visaged-fleet.service $(DESTDIR)$(SYSUSERSDIR)/visaged-fleet.conf
	rm -f $(DESTDIR)$(SYSUSERSDIR)/visaged.conf $(DESTDIR)$(TMPFILESDIR)/visaged.conf
	rm -rf $(DESTDIR)$(PREFIX)/share/doc/visaged
	rm -f $(DESTDIR)$(PREFIX)/share/bash-completion/completions/visaged $(DESTDIR)$(PREFIX)/share/zsh/site-functions/_visaged
	rm -f $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/visaged.fish

.PHONY: clean
clean: ## what was built
	$(CARGO) clean
	rm -rf target-aarch64 target-vm
