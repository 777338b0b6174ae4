package kmod

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
)

// A symbol of a made-up module.
type sym struct {
	name string
	bind elf.SymBind
	ndx  elf.SectionIndex
}

// fake composes a module of the given byte order and size of a word, which need not be any machine's own.
func fake(order binary.ByteOrder, is64 bool, machine elf.Machine, sections map[string][]byte, syms []sym) []byte {
	names := []string{"", ".gnu.linkonce.this_module"}
	data := map[string][]byte{".gnu.linkonce.this_module": make([]byte, 64)}
	for name, b := range sections {
		names, data[name] = append(names, name), b
	}
	slices.Sort(names)

	strtab := []byte{0}
	symtab := make([]byte, 16)
	if is64 {
		symtab = make([]byte, 24)
	}
	for _, s := range syms {
		off, info := uint32(len(strtab)), elf.ST_INFO(s.bind, elf.STT_NOTYPE)
		strtab = append(append(strtab, s.name...), 0)
		var b bytes.Buffer
		if is64 {
			binary.Write(&b, order, elf.Sym64{Name: off, Info: info, Shndx: uint16(s.ndx)})
		} else {
			binary.Write(&b, order, elf.Sym32{Name: off, Info: info, Shndx: uint16(s.ndx)})
		}
		symtab = append(symtab, b.Bytes()...)
	}
	names = append(names, ".symtab", ".strtab", ".shstrtab")
	data[".symtab"], data[".strtab"] = symtab, strtab
	var shstrtab []byte
	at := map[string]uint32{}
	for _, n := range names {
		at[n] = uint32(len(shstrtab))
		shstrtab = append(append(shstrtab, n...), 0)
	}
	data[".shstrtab"] = shstrtab

	var body, table bytes.Buffer
	base := 52
	if is64 {
		base = 64
	}
	for i, n := range names {
		typ, link, ents := elf.SHT_PROGBITS, 0, 0
		switch n {
		case "":
			typ = elf.SHT_NULL
		case ".symtab":
			typ, link, ents = elf.SHT_SYMTAB, i+1, 16
			if is64 {
				ents = 24
			}
		case ".strtab", ".shstrtab":
			typ = elf.SHT_STRTAB
		}
		off := base + body.Len()
		body.Write(data[n])
		if is64 {
			binary.Write(&table, order, elf.Section64{Name: at[n], Type: uint32(typ), Off: uint64(off), Size: uint64(len(data[n])), Link: uint32(link), Entsize: uint64(ents)})
		} else {
			binary.Write(&table, order, elf.Section32{Name: at[n], Type: uint32(typ), Off: uint32(off), Size: uint32(len(data[n])), Link: uint32(link), Entsize: uint32(ents)})
		}
	}
	ident := [elf.EI_NIDENT]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS32), byte(elf.ELFDATA2LSB), 1}
	if is64 {
		ident[elf.EI_CLASS] = byte(elf.ELFCLASS64)
	}
	if order == binary.BigEndian {
		ident[elf.EI_DATA] = byte(elf.ELFDATA2MSB)
	}
	var out bytes.Buffer
	shoff, n := base+body.Len(), uint16(len(names))
	if is64 {
		binary.Write(&out, order, elf.Header64{Ident: ident, Type: uint16(elf.ET_REL), Machine: uint16(machine), Shoff: uint64(shoff), Shentsize: 64, Shnum: n, Shstrndx: n - 1})
	} else {
		binary.Write(&out, order, elf.Header32{Ident: ident, Type: uint16(elf.ET_REL), Machine: uint16(machine), Shoff: uint32(shoff), Shentsize: 40, Shnum: n, Shstrndx: n - 1})
	}
	out.Write(body.Bytes())
	out.Write(table.Bytes())
	return out.Bytes()
}

func mustRead(t *testing.T, b []byte) *Module {
	t.Helper()
	m, err := Read(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestVersionForms(t *testing.T) {
	long := strings.Repeat("x", 300)
	le, be := binary.LittleEndian, binary.BigEndian
	classic := func(order binary.AppendByteOrder, word int) []byte {
		var b []byte
		for _, v := range []Version{{"module_layout", 0x01020304}, {"printk", 0xfffefdfc}} {
			e := order.AppendUint32(nil, v.CRC)
			if word == 8 {
				e = order.AppendUint64(nil, uint64(v.CRC))
			}
			e = append(e, v.Name...)
			b = append(b, append(e, make([]byte, 64-len(e))...)...)
		}
		return b
	}
	want := []Version{{"module_layout", 0x01020304}, {"printk", 0xfffefdfc}}
	chain := "\x18\x00\x00\x00\x04\x03\x02\x01module_layout\x00\x00\x00" + "\x10\x00\x00\x00\xfc\xfd\xfe\xffprintk\x00\x00"
	tests := []struct {
		name     string
		order    binary.ByteOrder
		is64     bool
		sections map[string][]byte
		want     []Version
	}{
		{"64 bits", le, true, map[string][]byte{"__versions": classic(le, 8)}, want},
		{"64 bits, big-endian", be, true, map[string][]byte{"__versions": classic(be, 8)}, want},
		{"32 bits", le, false, map[string][]byte{"__versions": classic(le, 4)}, want},
		{"chained", le, true, map[string][]byte{"__versions": []byte(chain + "\x00\x00\x00\x00\x00\x00\x00\x00")}, want},
		{"chained, 64 bytes", le, true, map[string][]byte{"__versions": []byte(chain + strings.Repeat("\x00", 24))}, want},
		{"extended", le, true, map[string][]byte{
			"__versions":          classic(le, 8),
			"__version_ext_crcs":  []byte("\x04\x03\x02\x01\x01\x00\x00\x00"),
			"__version_ext_names": []byte("module_layout\x00" + long + "\x00\x00"),
		}, []Version{{"module_layout", 0x01020304}, {long, 1}}},
		{"empty", le, true, map[string][]byte{"__versions": nil}, []Version{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := mustRead(t, fake(tt.order, tt.is64, elf.EM_X86_64, tt.sections, nil))
			if !m.HasVersions || !slices.Equal(m.Versions, tt.want) {
				t.Errorf("Versions = %v, %v; want %v", m.HasVersions, m.Versions, tt.want)
			}
		})
	}
	for name, sections := range map[string]map[string][]byte{
		"text":           {"__versions": []byte("hello, world")},
		"no name":        {"__version_ext_crcs": make([]byte, 8), "__version_ext_names": []byte("a\x00")},
		"name too many":  {"__version_ext_crcs": make([]byte, 4), "__version_ext_names": []byte("a\x00b\x00")},
		"half a CRC":     {"__version_ext_crcs": make([]byte, 6), "__version_ext_names": []byte("a\x00")},
		"chain too long": {"__versions": []byte("\x18\x00\x00\x00\x04\x03\x02\x01abc\x00")},
	} {
		b := fake(le, true, elf.EM_X86_64, sections, nil)
		if _, err := Read(bytes.NewReader(b), int64(len(b))); !errors.Is(err, errMalformed) {
			t.Errorf("Read(%s) = %v; want %v", name, err, errMalformed)
		}
	}
}

func TestSymbols(t *testing.T) {
	syms := []sym{
		{"printk", elf.STB_GLOBAL, elf.SHN_UNDEF},
		{"kfree", elf.STB_GLOBAL, elf.SHN_UNDEF},
		{"kfree", elf.STB_GLOBAL, elf.SHN_UNDEF},
		{"maybe", elf.STB_WEAK, elf.SHN_UNDEF},
		{"_GLOBAL_OFFSET_TABLE_", elf.STB_GLOBAL, elf.SHN_UNDEF},
		{".TOC.", elf.STB_GLOBAL, elf.SHN_UNDEF},
		{"init_module", elf.STB_GLOBAL, 1},
		{"__ksymtab_offered", elf.STB_LOCAL, 1},
		{"__ksymtab_strings", elf.STB_LOCAL, 1},
	}
	m := mustRead(t, fake(binary.LittleEndian, true, elf.EM_PPC64, nil, syms))
	if want := []string{"kfree", "printk"}; !slices.Equal(m.Undefined, want) {
		t.Errorf("Undefined = %q; want %q", m.Undefined, want)
	}
	if want := []string{"maybe"}; !slices.Equal(m.Weak, want) {
		t.Errorf("Weak = %q; want %q", m.Weak, want)
	}
	if want := []string{"offered"}; !slices.Equal(m.Exports, want) {
		t.Errorf("Exports = %q; want %q", m.Exports, want)
	}
	if m = mustRead(t, fake(binary.LittleEndian, true, elf.EM_X86_64, nil, syms)); !slices.Contains(m.Undefined, ".TOC.") {
		t.Errorf("Undefined = %q; want .TOC. in it, which is powerpc's alone", m.Undefined)
	}
}

func TestCheckSymbols(t *testing.T) {
	build := func(modinfo string, undefined ...string) *Module {
		var syms []sym
		for _, u := range undefined {
			name, weak := strings.CutPrefix(u, "?")
			bind := elf.STB_GLOBAL
			if weak {
				bind = elf.STB_WEAK
			}
			syms = append(syms, sym{name, bind, elf.SHN_UNDEF})
		}
		return mustRead(t, fake(binary.LittleEndian, true, elf.EM_X86_64, map[string][]byte{".modinfo": []byte(modinfo)}, syms))
	}
	symvers := Symvers{
		"free":    {CRC: 1, Module: "vmlinux", Export: "EXPORT_SYMBOL"},
		"gpl":     {CRC: 2, Module: "vmlinux", Export: "EXPORT_SYMBOL_GPL"},
		"in_ns":   {CRC: 3, Module: "vmlinux", Export: "EXPORT_SYMBOL_GPL", Namespace: "NS"},
		"for_kvm": {CRC: 4, Module: "vmlinux", Export: "EXPORT_SYMBOL_GPL", Namespace: "module:kvm,kvm-*"},
	}
	const gpl = "license=GPL\x00"
	versioned := mustRead(t, fake(binary.LittleEndian, true, elf.EM_X86_64, map[string][]byte{
		"__version_ext_crcs": []byte("\x08\x00\x00\x00\x07\x00\x00\x00"), "__version_ext_names": []byte("free\x00module_layout\x00"),
	}, nil))
	tests := []struct {
		name   string
		m      *Module
		target Target
		want   []string
	}{
		{"all there", build(gpl, "free", "gpl"), Target{Symvers: symvers}, nil},
		{"missing", build(gpl, "zz", "free", "aa", "?weak"), Target{Symvers: symvers}, []string{"the kernel does not export: aa, zz"}},
		{"of another module", build(gpl, "zz"), Target{Symvers: symvers, Others: []Symvers{{"zz": {}}}}, nil},
		{"no import", build(gpl, "in_ns"), Target{Symvers: symvers}, []string{`symbol "in_ns" is in namespace "NS", which the module does not import`}},
		{"import", build(gpl+"import_ns=A\x00import_ns=NS\x00", "in_ns"), Target{Symvers: symvers}, nil},
		{"no import, allowed", build(gpl, "in_ns"), Target{Symvers: symvers, AllowMissingImports: true}, nil},
		{"for one module, it", build(gpl+"name=kvm\x00", "for_kvm"), Target{Symvers: symvers}, nil},
		{"for modules of a name", build(gpl+"name=kvm_amd\x00", "for_kvm"), Target{Symvers: symvers}, nil},
		{"for one module, another", build(gpl+"name=kvmx\x00", "for_kvm"), Target{Symvers: symvers}, []string{
			`symbol "for_kvm" is in namespace "module:kvm,kvm-*", which the module does not import`,
		}},
		{"proprietary", build("license=Proprietary\x00", "gpl", "free"), Target{Symvers: symvers}, []string{
			`the licence "Proprietary" is not compatible with the GPL, but these symbols need it: gpl`,
		}},
		{"proprietary, weak", build("license=Proprietary\x00", "?gpl"), Target{Symvers: symvers}, []string{
			`the licence "Proprietary" is not compatible with the GPL, but these symbols need it: gpl`,
		}},
		{"proprietary, free symbols", build("license=Proprietary\x00", "free"), Target{Symvers: symvers}, nil},
		{"no licence", build("", "gpl"), Target{Symvers: symvers}, []string{
			`the licence "" is not compatible with the GPL, but these symbols need it: gpl`,
		}},
		{"versions", versioned, Target{Symvers: Symvers{"module_layout": {CRC: 7}, "free": {CRC: 8}}, ModVersions: true}, nil},
		{"other versions", versioned, Target{Symvers: Symvers{"module_layout": {CRC: 8}, "free": {CRC: 7}}, ModVersions: true}, []string{
			`symbol "free" has version 0x00000008, the kernel's is 0x00000007`,
			`symbol "module_layout" has version 0x00000007, the kernel's is 0x00000008`,
		}},
		{"other versions, which don't count", versioned, Target{Symvers: Symvers{"module_layout": {CRC: 8}, "free": {CRC: 7}}}, nil},
		{"no versions to compare with", versioned, Target{Symvers: Symvers{"module_layout": {}, "free": {}}, ModVersions: true}, nil},
		{"no versions, wanted", build(gpl, "free"), Target{Symvers: symvers, ModVersions: true}, []string{"it has no symbol versions, the kernel wants them"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := problems(Check(tt.m, tt.target)); !slices.Equal(got, tt.want) {
				t.Errorf("Check = %q; want %q", got, tt.want)
			}
		})
	}
}

func TestManyMissingSymbols(t *testing.T) {
	var syms []sym
	for i := range 2000 {
		syms = append(syms, sym{fmt.Sprintf("s%04d", i), elf.STB_GLOBAL, elf.SHN_UNDEF})
	}
	got := problems(Check(mustRead(t, fake(binary.LittleEndian, true, elf.EM_X86_64, nil, syms)), Target{}))
	if len(got) != 1 || !strings.HasSuffix(got[0], ", s0499 and 1500 more") {
		t.Errorf("Check = %.200q", got)
	}
}

func TestReadSymvers(t *testing.T) {
	got, err := ReadSymvers(strings.NewReader("" +
		"0x00000001\tthree\tvmlinux\n" +
		"0x00000002\tfour\tvmlinux\tEXPORT_SYMBOL\n" +
		"0xffffffff\tfive\tdrivers/net/mii\tEXPORT_SYMBOL_GPL\t\n" +
		"0x00000004\tspaced\tvmlinux\tEXPORT_SYMBOL_GPL\tNS\n" +
		"0x00000005\told\tNS\tvmlinux\tEXPORT_SYMBOL_GPL\n" +
		"0x0000000000000006\twide\tvmlinux\tEXPORT_SYMBOL")) // no newline
	if err != nil {
		t.Fatal(err)
	}
	want := Symvers{
		"three":  {1, "vmlinux", "", ""},
		"four":   {2, "vmlinux", "EXPORT_SYMBOL", ""},
		"five":   {0xffffffff, "drivers/net/mii", "EXPORT_SYMBOL_GPL", ""},
		"spaced": {4, "vmlinux", "EXPORT_SYMBOL_GPL", "NS"},
		"old":    {5, "vmlinux", "EXPORT_SYMBOL_GPL", "NS"},
		"wide":   {6, "vmlinux", "EXPORT_SYMBOL", ""},
	}
	for name, s := range want {
		if got[name] != s {
			t.Errorf("%s = %+v; want %+v", name, got[name], s)
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d symbols; want %d", len(got), len(want))
	}
	for _, bad := range []string{
		"hello\n", "0x1\tx\n", "1\tx\tvmlinux\n", "0xg\tx\tvmlinux\n", "0x1\t\tvmlinux\n", "0x123456789\tx\tvmlinux\n",
		"0x1\ta\tb\tc\td\te\n", "0x1 x vmlinux EXPORT_SYMBOL\n",
	} {
		if _, err := ReadSymvers(strings.NewReader("0x1\ta\tb\n" + bad)); err == nil || !strings.Contains(err.Error(), "line 2") {
			t.Errorf("ReadSymvers(%q) = %v; want an error that names line 2", bad, err)
		}
	}
}

// The strings are those of modules in Debian's packages, except for the last five.
func TestVermagic(t *testing.T) {
	tests := []struct{ release, arch, config, want string }{
		{"6.1.0-56-amd64", "amd64", "SMP PREEMPT_BUILD PREEMPT_DYNAMIC PREEMPT_VOLUNTARY MODULE_UNLOAD MODVERSIONS", "SMP preempt mod_unload modversions "},
		{"7.2.13+deb14-cloud-arm64", "arm64", "SMP PREEMPT_BUILD MODULE_UNLOAD", "SMP preempt mod_unload aarch64"},
		{"5.10.0-32-cloud-amd64", "amd64", "SMP PREEMPT_VOLUNTARY MODULE_UNLOAD MODVERSIONS", "SMP mod_unload modversions "},
		{"5.10.0-32-686-pae", "i386", "SMP M686 MODULE_UNLOAD MODVERSIONS", "SMP mod_unload modversions 686 "},
		{"6.1.0-50-rt-686-pae", "i386", "SMP PREEMPT_RT M686 MODULE_UNLOAD MODVERSIONS", "SMP preempt_rt mod_unload modversions 686 "},
		{"6.1.0-50-armmp", "armhf", "SMP CPU_32v7 CPU_32v6K ARM_PATCH_PHYS_VIRT MODULE_UNLOAD MODVERSIONS", "SMP mod_unload modversions ARMv7 p2v8 "},

		{"5.10", "amd64", "PREEMPT", "preempt "},
		{"6.13", "amd64", "PREEMPT_BUILD PREEMPT_RT", "preempt_rt "},
		{"6.12", "ppc64el", "MPROFILE_KERNEL RELOCATABLE", "mprofile-kernel relocatable "},
		{"6.1", "armel", "CPU_32v5 CPU_32v6 THUMB2_KERNEL", "ARMv5 thumb2 "},
		{"6.1", "mips64el", "CPU_LOONGSON64 64BIT", "LOONGSON64 64BIT "},
	}
	for _, tt := range tests {
		config := map[string]string{}
		for _, c := range strings.Fields(tt.config) {
			config["CONFIG_"+c] = "y"
		}
		if got, err := Vermagic(tt.release, config, tt.arch); err != nil || got != tt.release+" "+tt.want {
			t.Errorf("Vermagic(%q, %q, %q) = %q, %v; want %q", tt.release, tt.config, tt.arch, got, err, tt.release+" "+tt.want)
		}
	}
	random := map[string]string{"CONFIG_RANDSTRUCT": "y"}
	if got, err := Vermagic("6.1", random, "amd64"); err == nil {
		t.Errorf("Vermagic without the seed = %q; want an error", got)
	}
	random["RANDSTRUCT_HASHED_SEED"] = "abc"
	if got, err := Vermagic("6.1", random, "amd64"); err != nil || got != "6.1 RANDSTRUCT_abc" {
		t.Errorf("Vermagic = %q, %v; want the seed at its end", got, err)
	}
	if _, err := Vermagic("6.1", nil, "pdp11"); err == nil {
		t.Error("Vermagic of an unknown architecture is known")
	}
}

func TestReadTarget(t *testing.T) {
	headers := fstest.MapFS{
		"include/config/auto.conf":            {Data: []byte("CONFIG_SMP=y\n# CONFIG_X is not set\nCONFIG_MODVERSIONS=y\nCONFIG_CC_VERSION_TEXT=\"gcc (Debian) \\\"12\\\"\"\nCONFIG_MODULE_ALLOW_MISSING_NAMESPACE_IMPORTS=y\nCONFIG_RANDSTRUCT=y\n")},
		"include/generated/utsrelease.h":      {Data: []byte("#define UTS_RELEASE \"6.1.0-x\"\n")},
		"include/generated/randstruct_hash.h": {Data: []byte("#define RANDSTRUCT_HASHED_SEED \"77\"\n")},
		"Module.symvers":                      {Data: []byte("0x00000001\ta\tvmlinux\tEXPORT_SYMBOL\t\n")},
	}
	got, err := ReadTarget(headers, "amd64")
	if err != nil {
		t.Fatal(err)
	}
	if want := "6.1.0-x SMP modversions RANDSTRUCT_77"; got.Vermagic != want || got.Release != "6.1.0-x" || !got.ModVersions || !got.AllowMissingImports || len(got.Symvers) != 1 {
		t.Errorf("ReadTarget = %+v; want vermagic %q", got, want)
	}
	config, err := ReadConfig(bytes.NewReader(headers["include/config/auto.conf"].Data))
	if err != nil || config["CONFIG_CC_VERSION_TEXT"] != `gcc (Debian) "12"` || config["CONFIG_X"] != "" || len(config) != 5 {
		t.Errorf("ReadConfig = %q, %v", config, err)
	}
	for name := range headers {
		broken := fstest.MapFS{}
		for n, f := range headers {
			if n != name {
				broken[n] = f
			}
		}
		if _, err := ReadTarget(broken, "amd64"); err == nil {
			t.Errorf("ReadTarget without %s succeeds", name)
		}
	}
}

func TestNotAModule(t *testing.T) {
	for name, b := range map[string][]byte{
		"nothing": nil, "text": []byte("#!/bin/sh\nexit 0\n# ............................................................"), "magic": []byte("\x7fELF"),
		"xz": []byte("\xfd7zXZ\x00\x00\x00"), "zeros": make([]byte, 4096),
	} {
		if m, err := Read(bytes.NewReader(b), int64(len(b))); err == nil {
			t.Errorf("Read(%s) = %+v; want an error", name, m)
		}
	}
}

func TestSymversBounds(t *testing.T) {
	line := "0x0\ts\tvmlinux\tEXPORT_SYMBOL\t\n"
	for _, text := range []string{strings.Repeat(line, maxSymversLines+1), line + strings.Repeat("x", maxSymvers)} {
		if _, err := ReadSymvers(strings.NewReader(text)); err == nil || !strings.Contains(err.Error(), "more than") {
			t.Errorf("ReadSymvers of %d bytes = %v; want that there are more than are read", len(text), err)
		}
	}
}

func TestSectionsThatAreNotRead(t *testing.T) {
	b := fake(binary.LittleEndian, true, elf.EM_X86_64, map[string][]byte{".modinfo": make([]byte, maxSection+1)}, nil)
	if _, err := Read(bytes.NewReader(b), int64(len(b))); !errors.Is(err, errMalformed) {
		t.Errorf("Read of a section of %d bytes = %v; want %v", maxSection+1, err, errMalformed)
	}
	b = fake(binary.LittleEndian, true, elf.EM_X86_64, map[string][]byte{".modinfo": bytes.Repeat([]byte("a\x00"), maxFields+1)}, nil)
	if _, err := Read(bytes.NewReader(b), int64(len(b))); !errors.Is(err, errMalformed) {
		t.Errorf("Read of %d fields = %v; want %v", maxFields+1, err, errMalformed)
	}
	b = fake(binary.LittleEndian, true, elf.EM_X86_64, map[string][]byte{".modinfo": []byte("license=GPL\x00")}, nil)
	for off := binary.LittleEndian.Uint64(b[40:]); off < uint64(len(b)); off += 64 {
		flags := b[off+8:]
		flags[1] |= byte(elf.SHF_COMPRESSED >> 8)
		if _, err := Read(bytes.NewReader(b), int64(len(b))); err != nil && !errors.Is(err, errMalformed) {
			t.Errorf("Read = %v", err)
		} else if typ := elf.SectionType(binary.LittleEndian.Uint32(b[off+4:])); err == nil && typ == elf.SHT_STRTAB {
			t.Error("a compressed string table is read as if it were not")
		}
		flags[1] &^= byte(elf.SHF_COMPRESSED >> 8)
	}
}

func FuzzRead(f *testing.F) {
	for _, is64 := range []bool{true, false} {
		f.Add(fake(binary.LittleEndian, is64, elf.EM_X86_64, map[string][]byte{
			".modinfo": []byte("license=GPL\x00vermagic=6.1 \x00name=a\x00"), "__versions": make([]byte, 64),
			"__version_ext_crcs": make([]byte, 4), "__version_ext_names": []byte("a\x00"),
		}, []sym{{"printk", elf.STB_GLOBAL, elf.SHN_UNDEF}}))
	}
	if !testing.Short() {
		prepareKernel()
	}
	if prepare.root != "" {
		b, err := os.ReadFile(filepath.Join(prepare.root, "lib/modules", prepare.release, "kernel/drivers/net/dummy.ko"))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	target := Target{Arch: Arch{elf.EM_X86_64, elf.ELFCLASS64, elf.ELFDATA2LSB}, Vermagic: "6.1 ", ModVersions: true, Symvers: Symvers{"printk": {CRC: 1}}}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := Read(bytes.NewReader(b), int64(len(b)))
		if (m == nil) == (err == nil) {
			t.Fatalf("Read = %v, %v", m, err)
		}
		if err == nil {
			if err := Check(m, target); err != nil && err.Error() == "" {
				t.Error("an error without text")
			}
		}
	})
}

func FuzzReadSymvers(f *testing.F) {
	f.Add("0x00000004\tspaced\tvmlinux\tEXPORT_SYMBOL_GPL\tNS\n")
	f.Fuzz(func(t *testing.T, s string) { ReadSymvers(strings.NewReader(s)) })
}

func TestSelectSymvers(t *testing.T) {
	const all = "0x2\tb\tm/b\tEXPORT_SYMBOL_GPL\t\n0x1\ta\tm/a\tEXPORT_SYMBOL\tNS\n0x9\ta\tm/c\tEXPORT_SYMBOL\t\nnonsense\n0x3\tc\tm/a\tEXPORT_SYMBOL\t"
	got, err := SelectSymvers(strings.NewReader(all), []string{"c", "a", "b", "absent", "a"})
	want := "0x1\ta\tm/a\tEXPORT_SYMBOL\tNS\n0x2\tb\tm/b\tEXPORT_SYMBOL_GPL\t\n0x3\tc\tm/a\tEXPORT_SYMBOL\t\n"
	if err != nil || string(got) != want {
		t.Errorf("SelectSymvers = %q, %v; want %q", got, err, want)
	}
	if got, err := SelectSymvers(strings.NewReader(all), nil); err != nil || len(got) > 0 {
		t.Errorf("SelectSymvers of nothing = %q, %v", got, err)
	}
}
