package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/BurntSushi/toml"
)

// config is what the configuration files say: /etc/godkms-hermetic/config.toml, then the user's own in $XDG_CONFIG_HOME, which
// wins. Flags win over both.
type config struct {
	Mirrors map[string]string `toml:"mirrors"` // URL by archive: debian = "https://mirror.example/debian"
}

func readConfig(env func(string) string) (config, error) {
	c := config{}
	files := []string{"/etc/godkms-hermetic/config.toml"}
	if dir := env("XDG_CONFIG_HOME"); filepath.IsAbs(dir) {
		files = append(files, filepath.Join(dir, "godkms-hermetic/config.toml"))
	} else if home := env("HOME"); home != "" {
		files = append(files, filepath.Join(home, ".config/godkms-hermetic/config.toml"))
	}
	for _, name := range files {
		b, err := os.ReadFile(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return c, fmt.Errorf("configuration: %w", err)
		}
		meta, err := toml.Decode(string(b), &c) // keys that the file has not stay as they are
		if err != nil {
			return c, fmt.Errorf("configuration %q: %w", name, err)
		}
		if unknown := meta.Undecoded(); len(unknown) > 0 {
			return c, fmt.Errorf("configuration %q: there is no setting %q; the only one is [mirrors]", name, unknown[0])
		}
	}
	return c, nil
}
