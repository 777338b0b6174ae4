module github.com/godkms-hermetic/godkms-hermetic

go 1.26.0

// Why each: a well-kept library where the matter is not this project's own.
require (
	github.com/BurntSushi/toml v1.6.0 // the configuration file, and the one in a source tree; MIT, no dependencies
	github.com/ProtonMail/go-crypto v1.5.2 // OpenPGP signatures of archives; BSD, the kept-up successor of x/crypto/openpgp
	github.com/containerd/errdefs v1.0.0 // the Docker client's kinds of errors; Apache-2.0, no dependencies
	github.com/creack/pty v1.1.24 // terminals for tests and for the README's picture; MIT, no dependencies
	github.com/cyphar/filepath-securejoin v0.7.0 // paths below a root whose links may point anywhere; BSD and MPL-2.0, x/sys alone
	github.com/docker/docker v28.5.2+incompatible // the client of Docker Engines, in builder/docker alone: it speaks API 1.41 still; Apache-2.0
	github.com/google/go-containerregistry v0.22.1 // OCI images as values; Apache-2.0
	github.com/goreleaser/nfpm/v2 v2.45.2 // .deb and .rpm, in internal/distpkg alone; MIT. Its changelogs bring go-git. From 2.46 on it needs modules that not every proxy has
	github.com/klauspost/compress v1.20.3 // zstd, and gzip whose bytes a version pins; BSD
	github.com/mattn/go-runewidth v0.0.31 // widths on a terminal, which mpb uses too; MIT
	github.com/mikelolasagasti/xz v1.0.1 // xz: the quickest of three in Go, measured on real packages; 0BSD, no dependencies
	github.com/opencontainers/image-spec v1.1.1 // names of the OCI image specification; Apache-2.0
	github.com/rogpeppe/go-internal v1.16.0 // testscript, for tests alone; BSD
	github.com/spf13/cobra v1.10.2 // commands, help, completions; Apache-2.0
	github.com/spf13/pflag v1.0.10 // what cobra's flags are made of; BSD
	github.com/ulikunitz/xz v0.5.17 // writes xz, for modules: 8 ms for one of 100 kB; BSD, no dependencies
	github.com/vbauerster/mpb/v8 v8.9.3 // live lines on a terminal; Unlicense
	go.yaml.in/yaml/v3 v3.0.5 // what is written for CI services, read again, for tests alone; MIT and Apache-2.0, no dependencies, nfpm has it
	golang.org/x/crypto v0.57.0 // DER of signatures, byte by byte; BSD
	golang.org/x/sync v0.22.0 // groups of goroutines with one error; BSD
	golang.org/x/sys v0.49.0 // system calls; BSD
	mvdan.cc/sh/v3 v3.14.1 // parses dkms.conf without running it; BSD
)

require (
	dario.cat/mergo v1.0.2 // indirect
	github.com/AlekSi/pointer v1.2.0 // indirect
	github.com/Masterminds/goutils v1.1.1 // indirect
	github.com/Masterminds/semver/v3 v3.4.0 // indirect
	github.com/Masterminds/sprig/v3 v3.3.0 // indirect
	github.com/Microsoft/go-winio v0.6.2 // indirect
	github.com/VividCortex/ewma v1.2.0 // indirect
	github.com/acarl005/stripansi v0.0.0-20180116102854-5a71ef0e047d // indirect
	github.com/blakesmith/ar v0.0.0-20190502131153-809d4375e1fb // indirect
	github.com/cavaliergopher/cpio v1.0.1 // indirect
	github.com/cespare/xxhash/v2 v2.3.0 // indirect
	github.com/clipperhouse/uax29/v2 v2.2.0 // indirect
	github.com/cloudflare/circl v1.6.3 // indirect
	github.com/containerd/errdefs/pkg v0.3.0 // indirect
	github.com/containerd/log v0.2.0 // indirect
	github.com/distribution/reference v0.6.0 // indirect
	github.com/docker/cli v29.7.2+incompatible // indirect
	github.com/docker/docker-credential-helpers v0.9.3 // indirect
	github.com/docker/go-connections v0.7.0 // indirect
	github.com/docker/go-units v0.5.0 // indirect
	github.com/emirpasic/gods v1.18.1 // indirect
	github.com/felixge/httpsnoop v1.0.4 // indirect
	github.com/go-git/gcfg v1.5.1-0.20230307220236-3a3c6141e376 // indirect
	github.com/go-git/go-billy/v5 v5.7.0 // indirect
	github.com/go-git/go-git/v5 v5.16.5 // indirect
	github.com/go-logr/logr v1.4.4 // indirect
	github.com/go-logr/stdr v1.2.2 // indirect
	github.com/gobwas/glob v0.2.3 // indirect
	github.com/golang/groupcache v0.0.0-20241129210726-2c02b8208cf8 // indirect
	github.com/google/go-cmp v0.7.0 // indirect
	github.com/google/rpmpack v0.7.1 // indirect
	github.com/google/uuid v1.6.0 // indirect
	github.com/goreleaser/chglog v0.7.4 // indirect
	github.com/goreleaser/fileglob v1.4.0 // indirect
	github.com/huandu/xstrings v1.5.0 // indirect
	github.com/inconshreveable/mousetrap v1.1.0 // indirect
	github.com/jbenet/go-context v0.0.0-20150711004518-d14ea06fba99 // indirect
	github.com/kevinburke/ssh_config v1.2.0 // indirect
	github.com/klauspost/pgzip v1.2.6 // indirect
	github.com/mitchellh/copystructure v1.2.0 // indirect
	github.com/mitchellh/reflectwalk v1.0.2 // indirect
	github.com/moby/docker-image-spec v1.3.1 // indirect
	github.com/moby/sys/atomicwriter v0.1.0 // indirect
	github.com/moby/term v0.5.2 // indirect
	github.com/morikuni/aec v1.1.0 // indirect
	github.com/opencontainers/go-digest v1.0.0 // indirect
	github.com/pjbgf/sha1cd v0.3.2 // indirect
	github.com/pkg/errors v0.9.1 // indirect
	github.com/sergi/go-diff v1.3.2-0.20230802210424-5b0b94c5c0d3 // indirect
	github.com/shopspring/decimal v1.4.0 // indirect
	github.com/sirupsen/logrus v1.10.2 // indirect
	github.com/skeema/knownhosts v1.3.1 // indirect
	github.com/spf13/cast v1.10.0 // indirect
	github.com/xanzy/ssh-agent v0.3.3 // indirect
	gitlab.com/digitalxero/go-conventional-commit v1.0.7 // indirect
	go.opentelemetry.io/auto/sdk v1.2.1 // indirect
	go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp v0.61.0 // indirect
	go.opentelemetry.io/otel v1.47.0 // indirect
	go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp v1.47.0 // indirect
	go.opentelemetry.io/otel/log v1.47.0 // indirect
	go.opentelemetry.io/otel/metric v1.47.0 // indirect
	go.opentelemetry.io/otel/sdk v1.47.0 // indirect
	go.opentelemetry.io/otel/sdk/metric v1.47.0 // indirect
	go.opentelemetry.io/otel/trace v1.47.0 // indirect
	golang.org/x/net v0.59.0 // indirect
	golang.org/x/time v0.16.0 // indirect
	golang.org/x/tools v0.49.0 // indirect
	gopkg.in/warnings.v0 v0.1.2 // indirect
	gotest.tools/v3 v3.5.2 // indirect
)
