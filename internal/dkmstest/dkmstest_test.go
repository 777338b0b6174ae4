package dkmstest

import (
	"os/exec"
	"strings"
	"testing"
)

func TestScript(t *testing.T) {
	out, err := exec.Command("bash", Script(t), "--version").CombinedOutput()
	if err != nil || !strings.HasPrefix(string(out), "dkms-3.2.") {
		t.Errorf("dkms --version: %v, %q; want dkms-3.2.*, whose rules the tool follows", err, out)
	}
}
