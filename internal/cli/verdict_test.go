package cli

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"encoding/json"
	"flag"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/godkms-hermetic/godkms-hermetic/internal/need"
	"github.com/godkms-hermetic/godkms-hermetic/internal/trial"
	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

// stand is a kernel that trials are made on, and the modules of testdata/trial built for it, by name.
type stand struct {
	kernel, release string
	modules         map[string][]byte
}

var stands struct {
	sync.Once
	all map[string]stand
}

// standFor is that of the newest kernel of bookworm's line 6.1 ("6.1"), of trixie's 6.12 ("6.12"), or of the newest but one of the former
// ("neighbour"). The modules for all three are made at once, or the cache of the tests has them.
func standFor(t *testing.T, name string) stand {
	t.Helper()
	need.Program(t, "qemu-system-x86_64")
	stands.Do(func() { stands.all = makeStands(t) })
	if stands.all == nil {
		t.Fatal("there are no modules to try")
	}
	return stands.all[name]
}

func makeStands(t *testing.T) map[string]stand {
	t.Helper()
	cache, dir := sharedCache(t), t.TempDir()
	plain := regexp.MustCompile(`^6\.(1|12)\.[0-9]+(-[0-9]+|\+deb[0-9]+)-amd64$`)
	all := map[string]stand{}
	var targets []string
	add := func(suite, line string, names ...string) {
		var out struct {
			Kernels []kernels.Candidate `json:"kernels"`
		}
		if err := json.Unmarshal(program(t, cache, "kernels", "debian/"+suite, "--format", "json"), &out); err != nil {
			t.Fatal(err)
		}
		for _, k := range out.Kernels {
			if len(names) > 0 && plain.MatchString(k.Release) && strings.HasPrefix(k.Release, line) {
				all[names[0]] = stand{k.Kernel.String(), k.Release, map[string][]byte{}}
				targets, names = append(targets, k.Kernel.String()), names[1:]
			}
		}
		if len(names) > 0 {
			t.Fatalf("%s has no %s among its kernels %s", suite, names, line)
		}
	}
	add("bookworm", "6.1.", "6.1", "neighbour")
	add("trixie", "6.12.", "6.12")
	program(t, cache, "build", "../../testdata/trial", "--kernels", strings.Join(targets, ","), "--out", dir)
	for _, s := range all {
		files, err := filepath.Glob(filepath.Join(dir, "*", s.release, "*.ko"))
		if err != nil || len(files) != 4 {
			t.Fatalf("%v: %d modules for %s; want 4", err, len(files), s.release)
		}
		for _, f := range files {
			if s.modules[strings.TrimSuffix(filepath.Base(f), ".ko")], err = os.ReadFile(f); err != nil {
				t.Fatal(err)
			}
		}
	}
	return all
}

// module is a file that is tried, and the parameters that it gets.
type module struct {
	name   string
	file   []byte
	params []string
}

// try has the program try modules in one machine, and gives what came of it with the exit code.
func (s stand) try(t *testing.T, modules []module, flags ...string) (trial.Result, int) {
	t.Helper()
	dir := t.TempDir()
	args := []string{"test", "--kernels", s.kernel, "--format", "json", "--cache-dir", sharedCache(t)}
	for _, m := range modules {
		file := filepath.Join(dir, m.name+".ko")
		if err := os.WriteFile(file, m.file, 0o644); err != nil {
			t.Fatal(err)
		}
		args = append(args, file)
		for _, p := range m.params {
			args = append(args, "--param", m.name+"."+p)
		}
	}
	var stdout, stderr bytes.Buffer
	code := Main(t.Context(), append(args, flags...), &stdout, &stderr)
	var out struct {
		Results []struct {
			Test *trial.Result `json:"test"`
		} `json:"results"`
	}
	if err := json.Unmarshal(stdout.Bytes(), &out); err != nil || len(out.Results) != 1 || out.Results[0].Test == nil {
		t.Fatalf("%v: exit code %d, it prints %s\n%s", err, code, stdout.String(), stderr.String())
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("%s", stdout.String())
		}
	})
	return *out.Results[0].Test, code
}

// behave is the module behave under another name, of at most six letters, and told how to behave.
func (s stand) behave(name string, params ...string) module {
	return module{name, renamed(s.modules["behave"], "behave", name), params}
}

// renamed gives a module another name, no longer than the one that it has: that in struct module and that in .modinfo are all that the
// kernel looks at.
func renamed(file []byte, name, to string) []byte {
	return bytes.ReplaceAll(file, []byte(name+"\x00"), append([]byte(to), make([]byte, len(name)+1-len(to))...))
}

// overwritten puts text in the place of another that is as long, once.
func overwritten(t *testing.T, file []byte, old, text string) []byte {
	t.Helper()
	if bytes.Count(file, []byte(old)) != 1 || len(old) != len(text) {
		t.Fatalf("can't put %q in the place of %q, which is there %d times", text, old, bytes.Count(file, []byte(old)))
	}
	return bytes.Replace(file, []byte(old), []byte(text), 1)
}

// forged is a module that says it was built for another kernel, of no longer a name. The rest of the room is left empty, which the kernel skips.
func forged(t *testing.T, file []byte, from, to string) []byte {
	t.Helper()
	old := []byte("vermagic=" + from + " SMP preempt mod_unload modversions \x00")
	text := append([]byte("vermagic="+to+" SMP preempt mod_unload modversions "), make([]byte, len(from)-len(to)+1)...)
	return overwritten(t, file, string(old), string(text))
}

// otherCRC is a module built against another version of a symbol: its CRC in __versions is changed.
func otherCRC(t *testing.T, file []byte, symbol string) []byte {
	t.Helper()
	f, err := elf.NewFile(bytes.NewReader(file))
	if err != nil {
		t.Fatal(err)
	}
	s := f.Section("__versions")
	versions, err := s.Data()
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+64 <= len(versions); i += 64 { // struct modversion_info: an unsigned long and a name
		if strings.TrimRight(string(versions[i+8:i+64]), "\x00") == symbol {
			out := bytes.Clone(file)
			out[s.Offset+uint64(i)] ^= 1
			return out
		}
	}
	t.Fatalf("no version of %s", symbol)
	return nil
}

// signed is a module with something appended that is no signature, in the form of one: struct module_signature and the marker
// (include/linux/module_signature.h).
func signed(file, signature []byte) []byte {
	tail := make([]byte, 12)
	tail[2] = 2 // PKEY_ID_PKCS7
	binary.BigEndian.PutUint32(tail[8:], uint32(len(signature)))
	return slices.Concat(file, signature, tail, []byte("~Module signature appended~\n"))
}

// expected is what must come of a module.
type expected struct {
	verdict trial.Verdict
	step    string // an expression
	errno   string
	reason  string // an expression
}

// checkModule compares what came of a module with what must come.
func checkModule(t *testing.T, s trial.State, want expected) {
	t.Helper()
	step, reason := regexp.MustCompile("^(?:"+want.step+")$"), regexp.MustCompile(want.reason)
	if s.Verdict != want.verdict || !step.MatchString(s.Step) || s.Errno != want.errno || !reason.MatchString(s.Reason) {
		t.Errorf("%s: %s at %q, %q: %s; want %s at %q, %q: %s", s.Name, s.Verdict, s.Step, s.Errno, s.Reason, want.verdict, want.step, want.errno, want.reason)
	}
}

// Whatever doesn't end the machine is tried in one, each module beside others that are good and bad.
func TestVerdicts(t *testing.T) {
	for _, line := range []string{"6.1", "6.12"} {
		t.Run(line, func(t *testing.T) {
			t.Parallel()
			s, other := standFor(t, line), standFor(t, map[string]string{"6.1": "6.12", "6.12": "6.1"}[line])
			var modules []module
			want := map[string]expected{}
			add := func(m module, e expected) {
				modules = append(modules, m)
				want[m.name] = e
			}
			loads := expected{verdict: trial.Loads}
			refused := func(errno, reason string) expected { return expected{trial.Refused, "load", errno, reason} }

			add(s.behave("good", "number=12", "how=good", "truth=1", "list=1,2,3"), loads)
			add(module{name: "borrower", file: s.modules["borrower"]}, loads)
			add(module{name: "lender", file: s.modules["lender"]}, loads)
			add(module{name: "permanent", file: s.modules["permanent"]}, expected{verdict: trial.Loads, reason: "can't be unloaded"})

			add(s.behave("nodev", "how=nodev"), expected{trial.NoHardware, "load", "ENODEV", "isn't in this machine"})
			add(s.behave("nxio", "how=nxio"), expected{trial.NoHardware, "load", "ENXIO", "isn't in this machine"})
			add(s.behave("inval", "how=inval"), refused("EINVAL", "invalid argument.*behave: this is not valid"))
			add(s.behave("value", "number=many"), refused("EINVAL", "number.*`many' invalid for parameter `number'"))
			add(s.behave("param", "nosuch=1"), refused("", "no parameter .nosuch"))

			// A symbol that there is none of, and nothing that says whose it is.
			orphan := bytes.ReplaceAll(s.modules["borrower"], []byte("lender_answer"), []byte("nobody_has_it"))
			orphan = overwritten(t, orphan, "depends=lender\x00", "depends=\x00\x00\x00\x00\x00\x00\x00")
			add(module{name: "orphan", file: renamed(orphan, "borrower", "orphan")}, refused("ENOENT", "nobody_has_it.*Unknown symbol nobody_has_it"))
			// Its vermagic is that of a kernel for one processor.
			flags := overwritten(t, s.modules["lender"], "vermagic="+s.release+" SMP preempt ", "vermagic="+s.release+" UP  preempt ")
			add(module{name: "flags", file: renamed(flags, "lender", "flags")}, refused("ENOEXEC", "another kernel.*version magic '.* UP .*' should be '.* SMP "))
			add(module{name: "crc", file: renamed(otherCRC(t, s.modules["behave"], "_printk"), "behave", "crc")},
				refused("EINVAL", "headers of another kernel.*disagrees about version of symbol _printk"))
			layout := refused("ENOEXEC", "headers of another kernel.*disagrees about version of symbol module_layout")
			if line == "6.12" { // it looks at the size of struct module first
				layout = refused("ENOEXEC", "section size must match")
			}
			add(module{name: "other", file: renamed(other.modules["behave"], "behave", "other")}, layout)
			if line == "6.1" { // whose name is the shorter one
				add(module{name: "forged", file: renamed(forged(t, other.modules["lender"], other.release, s.release), "lender", "forged")}, layout)
				// A kernel doesn't look at the release where there are symbol versions, and these are the same as its neighbour's.
				add(module{name: "near", file: renamed(standFor(t, "neighbour").modules["behave"], "behave", "near")}, loads)
			}

			file := s.behave("sig").file
			add(module{name: "cut", file: file[:len(file)/2]}, refused("ENOEXEC", "damaged"))
			add(module{name: "head", file: file[:100]}, refused("ENOEXEC", "damaged"))
			add(module{name: "text", file: bytes.Repeat([]byte("no module\n"), 1000)}, refused("ENOEXEC", ""))
			add(module{name: "sig", file: signed(file, []byte("no signature"))}, refused("EBADMSG", "malformed"))

			add(s.behave("warn", "how=warn"), expected{trial.Warns, "load", "", "^WARNING: CPU: 0 .* warn"})
			add(s.behave("leak", "how=leak"), expected{trial.Warns, "unload", "", "^BUG behave_leak .*: Objects remaining "})
			add(s.behave("left", "how=leftover"), expected{trial.Refused, "reload", "EEXIST", ""})
			add(s.behave("stay", "how=stay"), expected{trial.Stays, "unload", "EAGAIN", "in use"})
			add(s.behave("forge", "how=forge"), loads)

			r, code := s.try(t, modules, "--signature")
			if r.Verdict != trial.Refused || code != exitRefused {
				t.Errorf("it is %s, with exit code %d; want refused", r.Verdict, code)
			}
			if len(r.Modules) != len(modules) {
				t.Errorf("%d modules; want %d", len(r.Modules), len(modules))
			}
			for _, m := range r.Modules {
				checkModule(t, m, want[m.Name])
				switch m.Name {
				case "good":
					if want := map[string]string{"how": "good", "number": "12", "truth": "Y", "list": "1,2,3"}; !maps.Equal(m.Params, want) {
						t.Errorf("its parameters are %v; want %v", m.Params, want)
					}
					if m.Version != "1.0" || m.Srcversion == "" || m.Taint != "OE" || m.Size < 4096 {
						t.Errorf("what was read back is %+v", m)
					}
				case "permanent":
					if !m.Permanent {
						t.Error("permanent can be unloaded")
					}
				}
			}
			if m := r.Machine; m.Release != s.release || m.QEMU == "" || m.Image.Hex == "" {
				t.Errorf("the machine was %+v", m)
			}
			forms := map[string]int{}
			for _, sig := range r.Signature {
				forms[sig.Form]++
				if !sig.OK {
					t.Errorf("%s %s: %s, %s", sig.Form, sig.Module, sig.Errno, sig.Reason)
				}
			}
			if len(forms) != 3 {
				t.Errorf("signatures of the forms %v were tried; want three forms", forms)
			}
		})
	}
}

// A module that asks for one of the kernel's own gets it, when it's tried again, and a user's script decides.
func TestScriptVerdict(t *testing.T) {
	t.Parallel()
	s := standFor(t, "6.12")
	script := filepath.Join(t.TempDir(), "check.sh")
	if err := os.WriteFile(script, []byte("#!/bin/sh\ngrep -o '^behave ' /proc/modules\nexit 3\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	r, code := s.try(t, []module{s.behave("behave", "how=ask")}, "--script", script)
	checkModule(t, trial.State{Name: "all", Finding: r.Finding}, expected{trial.Script, "script", "", "exit status 3"})
	checkModule(t, r.Modules[0], expected{verdict: trial.Loads})
	if code != exitScript || !slices.Contains(r.Log, "  behave ") || len(r.Wanted) != 0 {
		t.Errorf("exit code %d, wanted %q; want %d, and nothing that is still wanted, and what the script says in the log", code, r.Wanted, exitScript)
	}
}

var allTrials = flag.Bool("all-trials", false, "try the whole of TestFatalVerdicts on each kernel")

// What ends a machine has one of its own. A way is tried on the kernel that it's listed with, or with -all-trials on both.
func TestFatalVerdicts(t *testing.T) {
	for _, c := range []struct {
		lines string
		how   string
		flags []string
		want  expected
		at    string // where the trace is, an expression
	}{
		{"6.1", "oops", nil, expected{trial.Crashes, "load", "", "NULL pointer dereference"}, `^crash\+0x\w+/0x\w+ \[behave\] do_one_initcall`},
		{"6.12", "oops-exit", nil, expected{trial.Crashes, "unload", "", "NULL pointer dereference"}, `^crash_at_exit\+`},
		{"6.12", "bug-timer", []string{"--load-only"}, expected{trial.Crashes, "load|settle", "", "kernel BUG at"}, `^strike\+`},
		{"", "panic", nil, expected{trial.Crashes, "load", "", "behave: nothing goes any more"}, `^die\+`},
		{"6.1", "mutex", []string{"--timeout", "2s"}, expected{trial.Hangs, "load", "", "didn't end within 2s"}, `^mutex_twice\+`},
		{"6.12", "wait-exit", []string{"--timeout", "2s"}, expected{trial.Hangs, "unload", "", "didn't end within 2s"}, `^wait_at_exit\+`},
		{"6.12", "spin", []string{"--timeout", "2s"}, expected{trial.Hangs, "load", "", "stands still"}, `spin`},
		{"6.12", "port", nil, expected{trial.Crashes, "load", "", "garbled"}, ``},
	} {
		for _, line := range []string{"6.1", "6.12"} {
			if !*allTrials && !slices.Contains(strings.Fields(c.lines), line) {
				continue
			}
			t.Run(c.how+"-"+line, func(t *testing.T) {
				t.Parallel()
				s := standFor(t, line)
				r, code := s.try(t, []module{s.behave("behave", "how="+c.how)}, c.flags...)
				if want := verdictCodes[c.want.verdict]; code != want {
					t.Errorf("exit code %d; want %d", code, want)
				}
				if r.Module != "behave" || r.Modules[0].Verdict != r.Verdict {
					t.Errorf("the module is %q, its verdict %q; want behave, and that of the whole, %q", r.Module, r.Modules[0].Verdict, r.Verdict)
				}
				checkModule(t, trial.State{Name: c.how, Finding: r.Finding}, c.want)
				at := ""
				if r.Trace != nil {
					at = strings.Join(append([]string{r.Trace.At}, r.Trace.Calls...), " ")
				}
				if ok, err := regexp.MatchString(c.at, at); !ok || err != nil {
					t.Errorf("%v: the trace is at %q; want %s", err, at, c.at)
				}
			})
		}
	}
}
