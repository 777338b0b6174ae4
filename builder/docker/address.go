package docker

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/docker/docker/client"
)

// An address is where an Engine is.
type address struct {
	host    string
	context string // that named it
	tls     string // the folder with the keys, if there are some
	trust   bool   // the context says that the Engine's certificate isn't to be verified
}

// find looks where the docker program looks: at DOCKER_HOST, then for the context that DOCKER_CONTEXT or the configuration
// names, in the folders of the context store (docs.docker.com/engine/manage-resources/contexts, and the store of docker/cli:
// contexts/meta/<SHA-256 of the name>/meta.json, contexts/tls/<the same>/docker).
func find() (address, error) {
	dir := os.Getenv("DOCKER_CONFIG")
	if dir == "" {
		if home, err := os.UserHomeDir(); err == nil {
			dir = filepath.Join(home, ".docker")
		}
	}
	if host := os.Getenv(client.EnvOverrideHost); host != "" {
		at := address{host: host}
		if os.Getenv(client.EnvTLSVerify) != "" && os.Getenv(client.EnvOverrideCertPath) == "" && !strings.HasPrefix(host, "unix:") {
			at.tls = dir // where docker has the keys then; the client alone would do without TLS
		}
		return at, supported(host)
	}
	name := os.Getenv("DOCKER_CONTEXT")
	if name == "" && dir != "" {
		var config struct {
			CurrentContext string `json:"currentContext"`
		}
		file := filepath.Join(dir, "config.json")
		if err := readJSON(file, &config); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return address{}, unavailable("Docker's configuration can't be read", "correct "+file, err)
		}
		name = config.CurrentContext
	}
	if name == "" || name == "default" {
		return address{host: client.DefaultDockerHost}, nil
	}
	sum := sha256.Sum256([]byte(name))
	id := hex.EncodeToString(sum[:])
	var meta struct {
		Endpoints map[string]struct {
			Host          string
			SkipTLSVerify bool
		}
	}
	if err := readJSON(filepath.Join(dir, "contexts", "meta", id, "meta.json"), &meta); err != nil {
		return address{}, unavailable(fmt.Sprintf("there is no Docker context %q", name), "choose one of those that 'docker context ls' prints, with 'docker context use' or DOCKER_CONTEXT", err)
	}
	at := address{host: meta.Endpoints["docker"].Host, context: name, trust: meta.Endpoints["docker"].SkipTLSVerify}
	if at.host == "" {
		return address{}, unavailable(fmt.Sprintf("the Docker context %q has no Engine", name), "choose another with 'docker context use'", errors.New("no endpoint named docker"))
	}
	keys := filepath.Join(dir, "contexts", "tls", id, "docker")
	if _, err := os.Stat(keys); err == nil {
		at.tls = keys
	}
	return at, supported(at.host)
}

func supported(host string) error {
	if u, err := url.Parse(host); err == nil && u.Scheme == "ssh" {
		return unavailable("Engines behind "+host+" aren't reached", "forward the socket with 'ssh -nNT -L /tmp/docker.sock:/var/run/docker.sock HOST', and set DOCKER_HOST=unix:///tmp/docker.sock",
			errors.ErrUnsupported)
	}
	return nil
}

func readJSON(file string, into any) error {
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, into); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	return nil
}

// client makes a client. DOCKER_TLS_VERIFY, DOCKER_CERT_PATH and DOCKER_API_VERSION mean what they mean to docker.
func (a address) client() (*client.Client, error) {
	opts := []client.Opt{client.WithAPIVersionNegotiation()}
	if a.context == "" && a.tls == "" {
		opts = append(opts, client.WithTLSClientConfigFromEnv())
	} else if a.tls != "" || a.trust {
		config, err := a.keys()
		if err != nil {
			return nil, err
		}
		opts = append(opts, client.WithHTTPClient(&http.Client{Transport: &http.Transport{TLSClientConfig: config}, CheckRedirect: client.CheckRedirect}))
	}
	opts = append(opts, client.WithVersionFromEnv(), client.WithHost(a.host))
	return client.NewClientWithOpts(opts...)
}

func (a address) keys() (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: a.trust}
	if a.tls == "" {
		return config, nil
	}
	ca, err := os.ReadFile(filepath.Join(a.tls, "ca.pem"))
	if err == nil {
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(ca) {
			return nil, fmt.Errorf("%s: no certificate in it", filepath.Join(a.tls, "ca.pem"))
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	cert, err := tls.LoadX509KeyPair(filepath.Join(a.tls, "cert.pem"), filepath.Join(a.tls, "key.pem"))
	if err == nil {
		config.Certificates = []tls.Certificate{cert}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return config, nil
}

// cleanPath is an absolute path without "." and "..", or nothing.
func cleanPath(p string) string {
	if !strings.HasPrefix(p, "/") {
		return ""
	}
	return filepath.Clean(p)
}
