package kmod

import (
	"bufio"
	"debug/elf"
	"fmt"
	"io"
	"io/fs"
	"strconv"
	"strings"
)

// An Arch is how a kernel's modules must be marked. The zero value matches any.
type Arch struct {
	Machine elf.Machine
	Class   elf.Class
	Data    elf.Data
}

// ArchOf knows architectures by their names in Debian, RPM, Go and the kernel.
func ArchOf(name string) (Arch, error) {
	const le, be = elf.ELFDATA2LSB, elf.ELFDATA2MSB
	const b32, b64 = elf.ELFCLASS32, elf.ELFCLASS64
	switch name {
	case "amd64", "x86_64":
		return Arch{elf.EM_X86_64, b64, le}, nil
	case "arm64", "aarch64":
		return Arch{elf.EM_AARCH64, b64, le}, nil
	case "i386", "i686", "386":
		return Arch{elf.EM_386, b32, le}, nil
	case "armhf", "armel", "armv7hl", "arm":
		return Arch{elf.EM_ARM, b32, le}, nil
	case "ppc64el", "ppc64le":
		return Arch{elf.EM_PPC64, b64, le}, nil
	case "s390x":
		return Arch{elf.EM_S390, b64, be}, nil
	case "riscv64":
		return Arch{elf.EM_RISCV, b64, le}, nil
	case "mips64el", "mips64le":
		return Arch{elf.EM_MIPS, b64, le}, nil
	case "mipsel", "mipsle":
		return Arch{elf.EM_MIPS, b32, le}, nil
	case "loong64", "loongarch64":
		return Arch{elf.EM_LOONGARCH, b64, le}, nil
	}
	return Arch{}, fmt.Errorf("unknown architecture %q", name)
}

// ReadConfig reads a kernel's settings, without quotes: the lines NAME=value of .config and include/config/auto.conf, and
// #define NAME "value" of include/generated's headers. What is not set is not in the map.
func ReadConfig(r io.Reader) (map[string]string, error) {
	out := make(map[string]string, 4096)
	s := bufio.NewScanner(r)
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		line := s.Text()
		var name, value string
		if def, ok := strings.CutPrefix(line, "#define "); ok {
			name, value, _ = strings.Cut(def, " ")
		} else if strings.HasPrefix(line, "#") {
			continue
		} else {
			name, value, _ = strings.Cut(line, "=")
		}
		if name == "" {
			continue
		}
		if u, err := strconv.Unquote(strings.TrimSpace(value)); err == nil {
			value = u
		}
		out[name] = value
	}
	if err := s.Err(); err != nil {
		return nil, fmt.Errorf("read kernel configuration: %w", err)
	}
	return out, nil
}

// Vermagic is the string that a kernel of that release, configuration and architecture compares with a module's, as
// include/linux/vermagic.h composes it. A configuration with structure layout randomization needs RANDSTRUCT_HASHED_SEED
// in config too, from include/generated/randstruct_hash.h.
func Vermagic(release string, config map[string]string, arch string) (string, error) {
	on := func(name string) bool { return config["CONFIG_"+name] == "y" }
	s := release + " "
	if on("SMP") {
		s += "SMP "
	}
	// CONFIG_PREEMPT_BUILD came in 5.16, and is set there wherever CONFIG_PREEMPT is. Both it and CONFIG_PREEMPT_RT can be set
	// since 6.13, where the latter goes first.
	switch {
	case on("PREEMPT_RT"):
		s += "preempt_rt "
	case on("PREEMPT_BUILD"), on("PREEMPT"):
		s += "preempt "
	}
	if on("MODULE_UNLOAD") {
		s += "mod_unload "
	}
	if on("MODVERSIONS") {
		s += "modversions "
	}
	a, err := archVermagic(arch, on)
	if err != nil {
		return "", err
	}
	s += a
	if on("RANDSTRUCT") || on("GCC_PLUGIN_RANDSTRUCT") {
		seed := config["RANDSTRUCT_HASHED_SEED"]
		if seed == "" {
			return "", fmt.Errorf("the vermagic of %q depends on a randomization seed that its headers do not have", release)
		}
		// Since 5.19 CONFIG_RANDSTRUCT goes with the shorter name.
		if on("RANDSTRUCT") {
			s += "RANDSTRUCT_" + seed
		} else {
			s += "RANDSTRUCT_PLUGIN_" + seed
		}
	}
	return s, nil
}

// archVermagic is MODULE_ARCH_VERMAGIC of arch/*/include/asm/vermagic.h.
func archVermagic(arch string, on func(string) bool) (string, error) {
	a, err := ArchOf(arch)
	if err != nil {
		return "", err
	}
	first := func(names ...string) string { // "CONFIG suffix=text" in the header's order
		for _, n := range names {
			name, text, ok := strings.Cut(n, "=")
			if on(name) {
				if !ok {
					text = strings.TrimPrefix(strings.TrimPrefix(name, "CPU_"), "M")
				}
				return text + " "
			}
		}
		return ""
	}
	bits := first("32BIT=32BIT", "64BIT=64BIT")
	switch a.Machine {
	case elf.EM_X86_64, elf.EM_S390:
		return "", nil
	case elf.EM_AARCH64:
		return "aarch64", nil
	case elf.EM_RISCV:
		return "riscv", nil
	case elf.EM_LOONGARCH:
		return "LOONGARCH " + bits, nil
	case elf.EM_386:
		return first("M486SX", "M486", "M586", "M586TSC", "M586MMX", "MCORE2", "MATOM", "M686", "MPENTIUMII", "MPENTIUMIII",
			"MPENTIUMM", "MPENTIUM4", "MK6", "MK7", "MK8", "MELAN", "MCRUSOE", "MEFFICEON", "MWINCHIPC6", "MWINCHIP3D", "MCYRIXIII",
			"MVIAC3_2=VIAC3-2", "MVIAC7", "MGEODEGX1", "MGEODE_LX=GEODE"), nil
	case elf.EM_MIPS:
		return first("CPU_BMIPS=BMIPS", "CPU_MIPS32_R1=MIPS32_R1", "CPU_MIPS32_R2=MIPS32_R2", "CPU_MIPS32_R5=MIPS32_R5",
			"CPU_MIPS32_R6=MIPS32_R6", "CPU_MIPS64_R1=MIPS64_R1", "CPU_MIPS64_R2=MIPS64_R2", "CPU_MIPS64_R5=MIPS64_R5",
			"CPU_MIPS64_R6=MIPS64_R6", "CPU_LOONGSON32", "CPU_LOONGSON2EF", "CPU_LOONGSON64", "CPU_CAVIUM_OCTEON=OCTEON",
			"CPU_P5600") + bits, nil
	case elf.EM_PPC64:
		return first("ARCH_USING_PATCHABLE_FUNCTION_ENTRY=patchable-function-entry", "MPROFILE_KERNEL=mprofile-kernel") +
			first("RELOCATABLE=relocatable"), nil
	case elf.EM_ARM:
		// __LINUX_ARM_ARCH__ is the lowest that the kernel runs on: in arch/arm/Makefile later lines win.
		version := first("CPU_32v3=3", "CPU_32v4=4", "CPU_32v4T=4", "CPU_32v5=5", "CPU_32v6=6", "CPU_32v7=7", "CPU_32v7M=7")
		if version == "" {
			return "", fmt.Errorf("no known CPU_32v* in the configuration of an %q kernel", arch)
		}
		return "ARMv" + version + first("THUMB2_KERNEL=thumb2") + first("ARM_PATCH_PHYS_VIRT=p2v8"), nil
	}
	return "", fmt.Errorf("the vermagic of architecture %q is not known", arch)
}

// ReadTarget reads what Check needs to know from a kernel's header tree, the folder that /lib/modules/<release>/build is
// a link to: include/config/auto.conf, include/generated/utsrelease.h and Module.symvers.
func ReadTarget(headers fs.FS, arch string) (Target, error) {
	a, err := ArchOf(arch)
	if err != nil {
		return Target{}, err
	}
	config, err := readConfigFile(headers, "include/config/auto.conf")
	if err != nil {
		return Target{}, err
	}
	uts, err := readConfigFile(headers, "include/generated/utsrelease.h")
	if err != nil {
		return Target{}, err
	}
	release := uts["UTS_RELEASE"]
	if release == "" {
		return Target{}, fmt.Errorf("include/generated/utsrelease.h names no release")
	}
	for _, name := range []string{"randstruct_hash.h", "randomize_layout_hash.h"} {
		if c, err := readConfigFile(headers, "include/generated/"+name); err == nil && c["RANDSTRUCT_HASHED_SEED"] != "" {
			config["RANDSTRUCT_HASHED_SEED"] = c["RANDSTRUCT_HASHED_SEED"]
		}
	}
	vermagic, err := Vermagic(release, config, arch)
	if err != nil {
		return Target{}, err
	}
	f, err := headers.Open("Module.symvers")
	if err != nil {
		return Target{}, err
	}
	defer f.Close()
	symvers, err := ReadSymvers(f)
	if err != nil {
		return Target{}, err
	}
	return Target{
		Arch:                a,
		Release:             release,
		Vermagic:            vermagic,
		ModVersions:         config["CONFIG_MODVERSIONS"] == "y",
		AllowMissingImports: config["CONFIG_MODULE_ALLOW_MISSING_NAMESPACE_IMPORTS"] == "y",
		Symvers:             symvers,
	}, nil
}

func readConfigFile(fsys fs.FS, name string) (map[string]string, error) {
	f, err := fsys.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	c, err := ReadConfig(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return c, nil
}
