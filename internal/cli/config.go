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
	Mirrors map[string]urls `toml:"mirrors"` // by archive: debian = "https://mirror.example/debian", or a list of them
	Signing struct {
		Key  string `toml:"key"`  // absolute path, or pkcs11:…
		Cert string `toml:"cert"` // absolute path; empty: it's in the key's file
	} `toml:"signing"`
}

// configFiles are the files that may be there, the one that wins last.
func configFiles(env func(string) string) []string {
	files := []string{"/etc/godkms-hermetic/config.toml"}
	if dir := env("XDG_CONFIG_HOME"); filepath.IsAbs(dir) {
		files = append(files, filepath.Join(dir, "godkms-hermetic/config.toml"))
	} else if home := env("HOME"); home != "" {
		files = append(files, filepath.Join(home, ".config/godkms-hermetic/config.toml"))
	}
	return files
}

func readConfig(env func(string) string) (config, error) {
	c := config{}
	for _, name := range configFiles(env) {
		if err := c.read(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return c, err
		}
	}
	return c, nil
}

// read takes over what a file says. What it doesn't say stays as it is.
func (c *config) read(name string) error {
	b, err := os.ReadFile(name)
	if err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	meta, err := toml.Decode(string(b), c)
	if err != nil {
		return fmt.Errorf("configuration %q: %w", name, err)
	}
	if unknown := meta.Undecoded(); len(unknown) > 0 {
		return fmt.Errorf("configuration %q: there is no setting %q; there are [mirrors], and key and cert of [signing]", name, unknown[0])
	}
	return nil
}

// urls are one or several, in one string or a list of strings.
type urls []string

// UnmarshalTOML implements toml.Unmarshaler.
func (u *urls) UnmarshalTOML(v any) error {
	switch v := v.(type) {
	case string:
		*u = urls{v}
		return nil
	case []any:
		for _, e := range v {
			s, ok := e.(string)
			if !ok {
				return errors.New("a URL must be a string")
			}
			*u = append(*u, s)
		}
		return nil
	}
	return errors.New("it must be a URL, or a list of URLs")
}
