package kernels

import (
	"strings"
	"testing"
)

// The fields are of os-release files as these distributions have them.
func TestSuiteOf(t *testing.T) {
	for want, text := range map[string]string{
		"debian/bookworm":             "PRETTY_NAME=Debian GNU/Linux 12 (bookworm)\nNAME=Debian GNU/Linux\nVERSION_ID=12\nVERSION=12 (bookworm)\nVERSION_CODENAME=bookworm\nID=debian",
		"debian/forky":                "PRETTY_NAME=Debian GNU/Linux forky/sid\nNAME=Debian GNU/Linux\nVERSION_CODENAME=forky\nID=debian",
		"debian/bullseye":             "PRETTY_NAME=Debian GNU/Linux bullseye/sid\nNAME=Debian GNU/Linux\nID=debian",
		"debian/trixie":               "PRETTY_NAME=Debian GNU/Linux trixie/sid\nVERSION_CODENAME=trixie/sid\nID=debian",
		"debian/sid":                  "PRETTY_NAME=Debian GNU/Linux trixie/sid\nVERSION_CODENAME=sid\nID=debian",
		"debian/":                     "PRETTY_NAME=Debian GNU/Linux\nID=debian",
		"ubuntu/noble":                "PRETTY_NAME=Ubuntu 24.04 LTS\nNAME=Ubuntu\nVERSION_ID=24.04\nVERSION=24.04 LTS (Noble Numbat)\nVERSION_CODENAME=noble\nID=ubuntu\nID_LIKE=debian\nUBUNTU_CODENAME=noble",
		"ubuntu/oracular":             "VERSION_ID=24.10\nVERSION_CODENAME=oracular\nID=ubuntu\nID_LIKE=debian",
		"ubuntu/focal":                "NAME=Linux Mint\nVERSION=20.3 (Una)\nID=linuxmint\nID_LIKE=ubuntu\nVERSION_ID=20.3\nVERSION_CODENAME=una\nUBUNTU_CODENAME=focal",
		"ubuntu/jammy":                "NAME=Pop!_OS\nVERSION=22.04 LTS\nID=pop\nID_LIKE=ubuntu debian\nVERSION_ID=22.04\nVERSION_CODENAME=jammy\nUBUNTU_CODENAME=jammy",
		"debian/buster":               "NAME=LMDE\nVERSION=4 (debbie)\nID=linuxmint\nID_LIKE=debian\nVERSION_ID=4\nVERSION_CODENAME=debbie\nDEBIAN_CODENAME=buster",
		"raspbian/bookworm":           "NAME=Raspbian GNU/Linux\nVERSION_ID=12\nVERSION_CODENAME=bookworm\nID=raspbian\nID_LIKE=debian",
		"kali/kali-rolling":           "ID=kali\nVERSION=2024.2\nVERSION_ID=2024.2\nVERSION_CODENAME=kali-rolling\nID_LIKE=debian",
		"fedora/40":                   "NAME=Fedora Linux\nVERSION=40 (Workstation Edition)\nID=fedora\nVERSION_ID=40\nVERSION_CODENAME=\nPLATFORM_ID=platform:f40\nVARIANT_ID=workstation",
		"rhel/9":                      "NAME=Red Hat Enterprise Linux\nVERSION=9.4 (Plow)\nID=rhel\nID_LIKE=fedora\nVERSION_ID=9.4\nPLATFORM_ID=platform:el9",
		"centos/9":                    "NAME=CentOS Stream\nVERSION=9\nID=centos\nID_LIKE=rhel fedora\nVERSION_ID=9\nPLATFORM_ID=platform:el9",
		"rocky/8":                     "NAME=Rocky Linux\nVERSION=8.10 (Green Obsidian)\nID=rocky\nID_LIKE=rhel centos fedora\nVERSION_ID=8.10\nPLATFORM_ID=platform:el8",
		"almalinux/10":                "NAME=AlmaLinux\nVERSION=10.0 (Purple Lion)\nID=almalinux\nID_LIKE=rhel centos fedora\nVERSION_ID=10.0",
		"ol/9":                        "NAME=Oracle Linux Server\nVERSION=9.4\nID=ol\nID_LIKE=fedora\nVARIANT=Server\nVERSION_ID=9.4\nPLATFORM_ID=platform:el9",
		"opensuse-leap/15.6":          "NAME=openSUSE Leap\nVERSION=15.6\nID=opensuse-leap\nID_LIKE=suse opensuse\nVERSION_ID=15.6",
		"opensuse-tumbleweed/rolling": "NAME=openSUSE Tumbleweed\nID=opensuse-tumbleweed\nID_LIKE=opensuse suse\nVERSION_ID=20240610",
		"sles/15.6":                   "NAME=SLES\nVERSION=15-SP6\nVERSION_ID=15.6\nPRETTY_NAME=SUSE Linux Enterprise Server 15 SP6\nID=sles\nID_LIKE=suse",
		"sles/15.3":                   "NAME=SLED\nVERSION=15-SP3\nVERSION_ID=15.3\nPRETTY_NAME=SUSE Linux Enterprise Desktop 15 SP3\nID=sled\nID_LIKE=suse",
		"sles/12.5":                   "NAME=SLES_SAP\nVERSION_ID=12.5\nPRETTY_NAME=SUSE Linux Enterprise Server for SAP Applications 12 SP5\nID=sles_sap",
		"amzn/2023":                   "NAME=Amazon Linux\nVERSION=2023\nID=amzn\nID_LIKE=fedora\nVERSION_ID=2023\nPLATFORM_ID=platform:al2023",
		"amzn/2":                      "NAME=Amazon Linux\nVERSION=2\nID=amzn\nID_LIKE=centos rhel fedora\nVERSION_ID=2",
		"arch/rolling":                "NAME=Arch Linux\nPRETTY_NAME=Arch Linux\nID=arch\nBUILD_ID=rolling\nVERSION_ID=20240101.0.204074",
		"manjaro/rolling":             "NAME=Manjaro Linux\nID=manjaro\nID_LIKE=arch\nBUILD_ID=rolling",
		"cachyos/rolling":             "NAME=CachyOS Linux\nID=cachyos\nID_LIKE=arch\nBUILD_ID=rolling",
		"alpine/3.20.1":               "NAME=Alpine Linux\nID=alpine\nVERSION_ID=3.20.1",
		"void/":                       "NAME=Void\nID=void",
		"/":                           "",
	} {
		if distro, suite := SuiteOf(fields(text)); distro+"/"+suite != want {
			t.Errorf("SuiteOf = %s/%s; want %s of\n%s", distro, suite, want, text)
		}
	}
	for _, text := range []string{"ID=endeavouros\nID_LIKE=arch\nBUILD_ID=rolling", "ID=garuda\nID_LIKE=arch\nBUILD_ID=rolling"} {
		if distro, suite := SuiteOf(fields(text)); distro != "arch" || suite != "rolling" {
			t.Errorf("SuiteOf = %s/%s of\n%s", distro, suite, text)
		}
	}
	micro := "NAME=openSUSE MicroOS\nID=opensuse-microos\nID_LIKE=suse opensuse opensuse-tumbleweed microos sl-micro\nVERSION_ID=20240228"
	if distro, suite := SuiteOf(fields(micro)); distro != "opensuse-tumbleweed" || suite != "rolling" {
		t.Errorf("SuiteOf = %s/%s of\n%s", distro, suite, micro)
	}
}

func fields(text string) map[string]string {
	m := map[string]string{}
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		m[key] = value
	}
	return m
}

func TestArchOf(t *testing.T) {
	for name, want := range map[string]string{"x86_64": "amd64", "aarch64": "arm64", "ppc64le": "ppc64el", "armv7l": "armhf", "armv7hl": "armhf", "amd64": "amd64", "vax": "vax"} {
		if got := ArchOf(name); got != want {
			t.Errorf("ArchOf(%s) = %s; want %s", name, got, want)
		}
	}
}
