# What the tests need beside Go and make. Kernel headers are not among it: that none are needed is what is tested.
TEST_PACKAGES := apt-utils binutils ca-certificates chromium cpio createrepo-c dkms docker.io dpkg-dev e2fsprogs gcc git gnupg kmod libarchive-tools libengine-pkcs11-openssl lintian makepkg mandoc mmdebstrap openssl pacman-package-manager patch procps python3-hawkey qemu-system-x86 rpm rpm2cpio skopeo softhsm2 xz-utils zstd
# What the comparisons need. Their dkms, their compiler and their Docker are unpacked, not installed.
BENCH_PACKAGES := bubblewrap ca-certificates qemu-system-x86

STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
DEMO_KERNEL := debian/trixie:latest
PICTURE := \
	'godkms-hermetic build testdata/hello --kernels "debian/bookworm:6.1.0-5[56]-amd64,debian/trixie:latest"' \
	'godkms-hermetic build testdata/mixed --kernels "debian/bookworm:6.1.0-56-amd64,debian/bookworm:6.12.117+deb12-amd64"'

export CGO_ENABLED := 0

.PHONY: build deb rpm demo test test-trials test-packages bench bench-quick bench-baseline bench-packages benchmarks compare-dkms lint vet staticcheck picture clean help

build: ## the program: bin/godkms-hermetic, static; the version comes from git
	go build -trimpath -buildvcs=auto -o bin/godkms-hermetic ./cmd/godkms-hermetic

demo: build ## the main job: a module for the newest Debian kernel; no root, no Docker, no kernel headers
	bin/godkms-hermetic build testdata/hello --kernels $(DEMO_KERNEL) --out out

# What go test would vet, go vet has before. Tests wait for disks, servers and other processes: two packages for each processor keep it
# busy. The one that takes longest is the first to start.
test: test-packages ## everything: unit, scripts through the program, end to end on real packages
	go vet ./...
	go test -timeout 20m -vet=off -p $$(($$(nproc) * 2)) ./internal/cli ./...

# Some of what test tries on one kernel only.
test-trials: test-packages ## every way in which a module can end a virtual machine, on bookworm's kernel and on trixie's
	go test -timeout 20m -v -run FatalVerdicts ./internal/cli -args -all-trials

test-packages: packages := $(TEST_PACKAGES)
bench-packages: packages := $(BENCH_PACKAGES)

# Debian packages are installed only by root; anyone else is told what is missing, and the tests that need it fail or skip.
test-packages bench-packages:
	@command -v dpkg-query >/dev/null || { echo "$@: not a Debian machine: make sure that you have: $(packages)" >&2; exit 0; }; \
	missing=; \
	for p in $(packages); do \
		[ "$$(dpkg-query -W -f '$${db:Status-Status}' $$p 2>/dev/null)" = installed ] && continue; \
		[ $$p = docker.io ] && command -v dockerd >/dev/null && continue; \
		missing="$$missing $$p"; \
	done; \
	[ -n "$$missing" ] || exit 0; \
	if [ "$$(id -u)" != 0 ]; then \
		echo "$@: MISSING, what needs them will fail or be passed over:$$missing" >&2; \
		echo "$@: install them as root: apt-get install --no-install-recommends$$missing" >&2; \
		exit 0; \
	fi; \
	export DEBIAN_FRONTEND=noninteractive; \
	get="apt-get install -y -q --no-install-recommends"; \
	$$get $$missing >/dev/null 2>&1 || { apt-get update -q && $$get $$missing; }

deb: ## the program as a Debian package, with its manual, completions and hooks, in out
rpm: ## the same as an RPM package
deb rpm:
	go build -trimpath -buildvcs=auto -ldflags '-s -w' -o out/package/godkms-hermetic ./cmd/godkms-hermetic
	go run ./scripts/package -program out/package/godkms-hermetic -out out $@

lint: vet staticcheck ## gofmt, go vet, staticcheck
vet:
	@unformatted=$$(gofmt -l .) && { [ -z "$$unformatted" ] || { echo "lint: gofmt these files:" $$unformatted >&2; exit 1; }; }
	go vet ./...
staticcheck:
	go run $(STATICCHECK) ./...

bench: build bench-packages ## every figure of speed, beside bare make, dkms, crane …: a table, out/bench.json and .svg; takes 15 minutes and 12 GB in .cache
	go run ./scripts/bench -cache .cache/bench -baseline docs/bench.json -json out/bench.json $(BENCH_FLAGS)

bench-quick: build bench-packages ## the rows of bench that take little time, three times each: out/bench-quick.json; takes under 3 minutes
	go run ./scripts/bench -cache .cache/bench -baseline docs/bench.json -json out/bench-quick.json -quick -runs 3 $(BENCH_FLAGS)

bench-baseline: ## makes the last bench the one that later ones are held against: docs/bench.json and .svg
	go run ./scripts/bench -json out/bench.json -baseline docs/bench.json -accept

compare-dkms: build test-packages ## runs dkms and this over every *-dkms package of Debian 12: a table, and out/compare-dkms.json; takes an hour
	go run ./scripts/compare-dkms -json out/compare-dkms.json $(COMPARE_FLAGS)

benchmarks: ## Go's benchmarks of the packages
	go test -run '^$$' -bench . -benchmem ./...

picture: build ## docs/terminal.svg, from a real run
	mkdir -p docs
	XDG_CACHE_HOME=/var/tmp/cache go run ./scripts/termsvg -cols 148 -o docs/terminal.svg $(PICTURE)
	rm -rf /var/tmp/cache

clean: ## what build and demo made; the cache of built modules stays
	rm -rf bin out

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
