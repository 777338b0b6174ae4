package dkms

import (
	"strings"
	"testing"
)

func TestName(t *testing.T) {
	for _, tt := range []struct{ conf, name, version, err string }{
		{conf: "PACKAGE_NAME=a\nPACKAGE_VERSION=1\n", name: "a", version: "1"},
		{conf: "PACKAGE_NAME=\"a-b\"\r\nPACKAGE_VERSION='1.2~rc1'\r\n", name: "a-b", version: "1.2~rc1"},
		{conf: "V=1\nPACKAGE_VERSION=\"$V.0\"\nPACKAGE_NAME[0]=x${V}", name: "x1", version: "1.0"},
		{conf: "if [ -f /etc/passwd ]; then . /etc/passwd; fi\nPACKAGE_NAME=a PACKAGE_VERSION=1", name: "a", version: "1"},
		{conf: "PACKAGE_NAME=a\nPACKAGE_VERSION=$(cat VERSION)", err: "no PACKAGE_VERSION that can be read without running"},
		{conf: "PACKAGE_VERSION=1", err: "no PACKAGE_NAME"},
		{conf: "PACKAGE_NAME=a/../b\nPACKAGE_VERSION=1", err: `PACKAGE_NAME is "a/../b"`},
		{conf: "PACKAGE_NAME=..\nPACKAGE_VERSION=1", err: `PACKAGE_NAME is ".."`},
		{conf: "if then fi (", err: "not valid bash"},
		{conf: "x=aaaaaaaa\n" + strings.Repeat("x=$x$x\n", 60) + "PACKAGE_NAME=$x\nPACKAGE_VERSION=1", err: "no PACKAGE_NAME"},
		{conf: strings.Repeat("#", MaxConf+1), err: "at most"},
	} {
		name, version, err := Name([]byte(tt.conf))
		if tt.err != "" {
			if err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("Name(%.60q) = %v; want an error with %q", tt.conf, err, tt.err)
			}
			continue
		}
		if err != nil || name != tt.name || version != tt.version {
			t.Errorf("Name(%.60q) = %q, %q, %v; want %q, %q", tt.conf, name, version, err, tt.name, tt.version)
		}
	}
}

func FuzzName(f *testing.F) {
	f.Add([]byte("PACKAGE_NAME=a\nPACKAGE_VERSION=${x:=1}\n"))
	f.Add([]byte("PACKAGE_NAME=${a/$b/{1..9}}\nPACKAGE_VERSION=$((1<<3))\ndeclare -a q=(1 2)\n"))
	f.Fuzz(func(t *testing.T, conf []byte) {
		if name, version, err := Name(conf); err == nil && (!validName.MatchString(name) || !validName.MatchString(version)) {
			t.Errorf("Name(%q) = %q, %q", conf, name, version)
		}
	})
}
