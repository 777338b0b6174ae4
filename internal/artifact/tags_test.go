package artifact_test

import (
	"regexp"
	"strings"
	"testing"

	"github.com/godkms-hermetic/godkms-hermetic/internal/artifact"
)

var tagForm = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$`) // distribution-spec

func TestTags(t *testing.T) {
	for _, tt := range []struct{ version, distro, suite, release, arch, want, index string }{
		{"0.12.7", "debian", "bookworm", "6.1.0-56-amd64", "amd64", "0.12.7-debian-bookworm-6.1.0-56-amd64", "0.12.7"},
		{"3.23-1", "debian", "bookworm", "6.1.0-56-arm64", "arm64", "3.23_-1-debian-bookworm-6.1.0-56-arm64", "3.23_-1"},
		{"1.0", "ubuntu", "noble", "6.8.0-149-generic", "amd64", "1.0-ubuntu-noble-6.8.0-149-generic", "1.0"},
		{"1.0", "ubuntu", "noble", "6.8.0-149-generic", "arm64", "1.0-ubuntu-noble-6.8.0-149-generic_aarm64", "1.0"},
		{"1.0", "suse", "15.6", "6.4.0-150600.21-default", "x86_64", "1.0-suse-15.6-6.4.0-150600.21-default", "1.0"},
		{"1.0", "rocky", "9", "5.14.0-1.el9.x86_64", "x86_64", "1.0-rocky-9-5.14.0-1.el9.x86__64", "1.0"},
		{"1.0", "rocky", "9", "5.14.0-1.el9.aarch64", "aarch64", "1.0-rocky-9-5.14.0-1.el9.aarch64", "1.0"},
		{"1.0", "rocky", "9", "5.14.0-1.el9.x86_64+rt", "amd64", "1.0-rocky-9-5.14.0-1.el9.x86__64_prt", "1.0"},
		{"1.0", "rocky", "9", "5.14.0-1.el9.aarch64+64k", "arm64", "1.0-rocky-9-5.14.0-1.el9.aarch64_p64k_aarm64", "1.0"},
		{"1.0", "opensuse-leap", "15.6", "6.4.0-150600.21-default", "amd64", "1.0-opensuse_-leap-15.6-6.4.0-150600.21-default", "1.0"},
		{"1.0", "amzn", "2023", "6.1.90-99.173.amzn2023.x86_64", "amd64", "1.0-amzn-2023-6.1.90-99.173.amzn2023.x86__64", "1.0"},
		{"1.0", "arch", "rolling", "6.9.3-arch1-1", "amd64", "1.0-arch-rolling-6.9.3-arch1-1", "1.0"},
		{"1.0", "debian", "sid", "6.1.0-arm64", "amd64", "1.0-debian-sid-6.1.0-arm64_aamd64", "1.0"},
		{"1:2.0+git~rc_1@x", "my-distro", "a-b", "6.1+", "amd64", "1_c2.0_pgit_trc__1_x40x-my_-distro-a_-b-6.1_p", "1_c2.0_pgit_trc__1_x40x"},
		{".5", "d", "s", "..", "amd64", "_x2e5-d-s-..", "_x2e5"},
		{"ü", "d", "s", "-", "amd64", "_xc3_xbc-d-s--", "_xc3_xbc"},
	} {
		m := artifact.Meta{Version: tt.version, Kernel: artifact.Kernel{Distro: tt.distro, Suite: tt.suite, Arch: tt.arch, Release: tt.release}}
		got, err := artifact.KernelTag(m)
		if err != nil || got != tt.want {
			t.Errorf("KernelTag(%+v) = %q, %v; want %q", tt, got, err, tt.want)
		}
		if tag, ok := artifact.ParseTag(got); !ok || tag.Version != tt.version || tag.Distro != tt.distro || tag.Suite != tt.suite || tag.Release != tt.release {
			t.Errorf("ParseTag(%q) = %+v, %v; want %+v", got, tag, ok, tt)
		}
		got, err = artifact.VersionTag(tt.version)
		if err != nil || got != tt.index {
			t.Errorf("VersionTag(%q) = %q, %v; want %q", tt.version, got, err, tt.index)
		}
		if tag, ok := artifact.ParseTag(got); !ok || tag != (artifact.Tag{Version: tt.version}) {
			t.Errorf("ParseTag(%q) = %+v, %v", got, tag, ok)
		}
	}
}

func TestTagTooLong(t *testing.T) {
	m := meta()
	m.Kernel.Release = "6.1-" + strings.Repeat("x", 110)
	if tag, err := artifact.KernelTag(m); err == nil || !strings.Contains(err.Error(), "kernel release") || !strings.Contains(err.Error(), "128") {
		t.Errorf("KernelTag = %q, %v; want an error about the release", tag, err)
	}
	if tag, err := artifact.VersionTag(strings.Repeat("+", 65)); err == nil {
		t.Errorf("VersionTag = %q", tag)
	}
	if tag, err := artifact.VersionTag(""); err == nil {
		t.Errorf("VersionTag of no version = %q", tag)
	}
}

// Tags that others make are never taken for ours.
func TestForeignTags(t *testing.T) {
	hex := strings.Repeat("0f", 32)
	for _, tag := range []string{
		"sha256-" + hex, "sha256-" + hex + ".sig", "sha512-" + hex + hex[:50], "key-" + hex, "lock-" + hex, // one dash
		"a-b", "a-b-c", "1.0-debian-bookworm-", "1.0-debian--6.1", "-a-b-c", "", "_", "1_", "1_z", "1_x4", "1_x4g", "1_X41",
		"1_x41", "1_x2d", "1.0-a-b-c_-d", "1.0-a-b-c_aamd64", "1.0-a-b-c_a", "1.0_aarm64", "1_x2e0", ".5", "1+2", "ü",
		"1.0-a-b-6.1-arm64_aaarch64", strings.Repeat("1", 129),
	} {
		if got, ok := artifact.ParseTag(tag); ok {
			t.Errorf("ParseTag(%q) = %+v", tag, got)
		}
	}
}

// What goes into a tag comes out, no two kernels have one tag, and there is one tag for each.
func FuzzTag(f *testing.F) {
	f.Add("1.0-2", "debian", "bookworm", "6.1.0-56-amd64", "amd64", "1_-0-a-b-c")
	f.Add("1:0_~", "d+", "s_a", "6.8.0-149-generic", "arm64", "1.0-ubuntu-noble-6.8.0-149-generic_aarm64")
	f.Add("_a", "_", "-", "_aarm64", "x_-y", "sha256-00")
	f.Add(".", "\xff", "ü", ".x86_64", "x86_64", "_x2e")
	f.Fuzz(func(t *testing.T, version, distro, suite, release, arch, text string) {
		m := artifact.Meta{Version: version, Kernel: artifact.Kernel{Distro: distro, Suite: suite, Arch: arch, Release: release}}
		if tag, err := artifact.KernelTag(m); err == nil {
			got, ok := artifact.ParseTag(tag)
			if !ok || got.Version != version || got.Distro != distro || got.Suite != suite || got.Release != release || got.Arch != "" && got.Arch != arch {
				t.Errorf("KernelTag(%+v) = %q, which is %+v, %v", m, tag, got, ok)
			}
			if !tagForm.MatchString(tag) || strings.Count(strings.ReplaceAll(strings.ReplaceAll(tag, "__", ""), "_-", ""), "-") < 3 {
				t.Errorf("KernelTag(%+v) = %q", m, tag)
			}
		}
		if tag, err := artifact.VersionTag(version); err == nil {
			if got, ok := artifact.ParseTag(tag); !ok || got != (artifact.Tag{Version: version}) {
				t.Errorf("VersionTag(%q) = %q, which is %+v, %v", version, tag, got, ok)
			}
			if !tagForm.MatchString(tag) || strings.Contains(strings.ReplaceAll(strings.ReplaceAll(tag, "__", ""), "_-", ""), "-") {
				t.Errorf("VersionTag(%q) = %q", version, tag)
			}
		}
		got, ok := artifact.ParseTag(text)
		if !ok {
			return
		}
		var again string
		var err error
		if got.Release == "" {
			again, err = artifact.VersionTag(got.Version)
		} else {
			k := artifact.Kernel{Distro: got.Distro, Suite: got.Suite, Release: got.Release, Arch: got.Arch}
			if k.Arch == "" {
				k.Arch = artifact.ImpliedArch(got.Release)
			}
			again, err = artifact.KernelTag(artifact.Meta{Version: got.Version, Kernel: k})
		}
		if err != nil || again != text {
			t.Errorf("ParseTag(%q) = %+v, which is %q, %v", text, got, again, err)
		}
	})
}
