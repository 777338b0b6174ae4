package cli

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/godkms-hermetic/godkms-hermetic/internal/durable"
	"github.com/godkms-hermetic/godkms-hermetic/internal/host"
	"github.com/godkms-hermetic/godkms-hermetic/internal/ui"
)

// The files of a key that was made here.
const (
	keyFile  = "signing.key" // PEM, PKCS #8
	certFile = "signing.pem"
	derFile  = "signing.der" // the certificate again, as mokutil takes it
)

// maxDays is what the kernel's own build gives its certificates. Kernels don't look at it.
const maxDays = 36500

// keyDir is where a root has its own key.
func keyDir(root *host.Root) (string, error) { return root.Path(filepath.Join(host.StateDir, "keys")) }

type generateOptions struct {
	hostOptions
	name string
	days int
	out  string
}

func (a *app) keysCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "keys COMMAND",
		Short: "Look after the key that modules are signed with",
		Long: `Makes a key for a host's modules, has the firmware trust it, and shows what there is. Kernels on machines with Secure Boot load
no module without a signature of a key that they trust.` + exitStatus("0  done", "1  see the commands"),
		Example: "  godkms-hermetic keys generate\n  godkms-hermetic keys enroll",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	var g generateOptions
	generate := &cobra.Command{
		Use:   "generate [--cn NAME] [--days N] [--out DIR]",
		Short: "Make a key to sign modules with",
		Long: `Makes an RSA key of 2048 bits and a certificate for it, which it signs itself, and writes three files to a new folder:

  signing.key   the key, PEM, without a password: whoever can read it can sign modules that this host loads
  signing.pem   the certificate
  signing.der   the certificate again, as mokutil and firmware take it

Without --out the folder is /var/lib/godkms-hermetic/keys, and modules that are installed are signed from then on. The
certificate is for signing modules and nothing else: by its extended key usage 1.3.6.1.4.1.2312.16.1.2, shim and GRUB load no
boot loader or kernel that is signed with it. A key that is there is never replaced.` + exitStatus(
			"  0  the key was made",
			"  1  there is one already, the command line is wrong, or the files can't be written"),
		Example: "  godkms-hermetic keys generate\n  godkms-hermetic keys generate --cn 'Example Ltd. modules' --out ./modules-key",
		Args:    cobra.NoArgs,
		RunE:    func(*cobra.Command, []string) error { return a.runKeysGenerate(g) },
	}
	g.rootFlags(generate)
	generate.Flags().StringVar(&g.name, "cn", "", "`NAME` in the certificate, 64 characters at most (default godkms-hermetic module signing key, and the date)")
	generate.Flags().IntVar(&g.days, "days", maxDays, "`N` days that the certificate is valid for; kernels don't look at it")
	generate.Flags().StringVar(&g.out, "out", "", "`DIR` for the files, which is new or empty (default /var/lib/godkms-hermetic/keys of the root)")
	generate.MarkFlagDirname("out")

	var e signOptions
	enroll := &cobra.Command{
		Use:   "enroll",
		Short: "Have the firmware of this machine trust the key",
		Long: `Asks for the key's certificate to be among those that this machine's firmware trusts (Machine Owner Keys), with mokutil, which
asks for a password. It is there after the next boot, at which a blue screen asks for that password, once.` + exitStatus(
			"0  mokutil has taken it, or it is trusted already",
			"1  there is no key, no mokutil or no Secure Boot; it says what to do"),
		Example: "  godkms-hermetic keys enroll",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return a.runKeysEnroll(cmd.Context(), e) },
	}
	e.flags(enroll.Flags())

	var s hostOptions
	var so signOptions
	status := &cobra.Command{
		Use:   "status",
		Short: "Show the key, and whether kernels want signatures",
		Long: `Shows which key modules are signed with, what its certificate says, whether this machine's firmware trusts it, and for each
kernel of the host whether it would refuse a module without a signature, and why.` + exitStatus(
			"0  it was shown, or there is no key",
			"1  the key can't be read, or isn't that of the certificate"),
		Example: "  godkms-hermetic keys status\n  godkms-hermetic keys status --sign-key my.key --sign-cert my.pem --format json",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return a.runKeysStatus(cmd.Context(), s, so) },
	}
	s.rootFlags(status)
	so.flags(status.Flags())
	cmd.AddCommand(generate, enroll, status)
	return cmd
}

func (a *app) runKeysGenerate(o generateOptions) error {
	if o.name == "" {
		o.name = "godkms-hermetic module signing key " + time.Now().UTC().Format(time.DateOnly)
	}
	if utf8.RuneCountInString(o.name) > 64 || !utf8.ValidString(o.name) || strings.ContainsFunc(o.name, unicode.IsControl) {
		return fmt.Errorf("--cn is %q: it can have 64 characters, and none of them control ones", o.name)
	}
	if o.days < 1 || o.days > maxDays {
		return fmt.Errorf("--days is %d: it can be 1 to %d", o.days, maxDays)
	}
	root, err := a.openRoot(o.hostOptions)
	if err != nil {
		return err
	}
	dir, own := o.out, o.out == ""
	if own {
		dir, err = keyDir(root)
	} else {
		dir, err = filepath.Abs(dir)
	}
	if err != nil {
		return err
	}
	switch there, err := os.ReadDir(dir); {
	case len(there) > 0:
		return thereAlready(dir, there)
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return hostError(root, err)
	}
	files, cert, err := newKey(o.name, o.days)
	if err != nil {
		return err
	}
	if err := writeKey(dir, files); err != nil {
		return hostError(root, err)
	}
	if a.json() {
		return ui.WriteJSON(a.stdout, struct {
			Key         string `json:"key"`
			Certificate string `json:"certificate"`
			DER         string `json:"der"`
			certificateJSON
		}{filepath.Join(dir, keyFile), filepath.Join(dir, certFile), filepath.Join(dir, derFile), describe(cert)})
	}
	next := fmt.Sprintf("modules are signed with it where --sign-key %s and --sign-cert %s say so", filepath.Join(dir, keyFile), filepath.Join(dir, certFile))
	if own {
		next = "modules that are installed from now on are signed with it; for Secure Boot, 'godkms-hermetic keys enroll' has the firmware trust it"
	}
	_, err = fmt.Fprintf(a.stdout, "%s\n%s\n", filepath.Join(dir, keyFile), filepath.Join(dir, certFile))
	a.board.Print(next)
	return err
}

// thereAlready is the error for a folder that isn't empty.
func thereAlready(dir string, there []fs.DirEntry) error {
	if _, b, err := readSmall(filepath.Join(dir, certFile)); err == nil {
		if cert, err := parseCertificate(b); err == nil {
			return fmt.Errorf("%s has a key already, %q, made on %s; it stays: choose another folder with --out, or move that one away",
				dir, cert.Subject.CommonName, cert.NotBefore.Format(time.DateOnly))
		}
	}
	return fmt.Errorf("%s is not empty, there is %s; choose another folder with --out", dir, there[0].Name())
}

// moduleSigning is the extended key usage of a key for modules alone: shim and GRUB pass it over when they verify what they load.
var moduleSigning = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 2312, 16, 1, 2}

// newKey makes a key and its certificate: the contents of the three files, by name.
func newKey(name string, days int) (map[string][]byte, *x509.Certificate, error) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return nil, nil, err
	}
	id := sha256.Sum256(x509.MarshalPKCS1PublicKey(&key.PublicKey)) // RFC 7093, 2.1
	now := time.Now().UTC().Truncate(time.Second)
	template := &x509.Certificate{
		Subject:   pkix.Name{CommonName: name},
		NotBefore: now, NotAfter: now.AddDate(0, 0, days),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning},
		UnknownExtKeyUsage:    []asn1.ObjectIdentifier{moduleSigning},
		BasicConstraintsValid: true, // CA:FALSE
		SubjectKeyId:          id[:20], AuthorityKeyId: id[:20],
		SignatureAlgorithm: x509.SHA256WithRSA,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, nil, err
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, err
	}
	return map[string][]byte{
		keyFile:  pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}),
		certFile: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		derFile:  der,
	}, cert, nil
}

// writeKey makes a folder with the files of a key, all at once. One that is there must be empty.
func writeKey(dir string, files map[string][]byte) error {
	parent := filepath.Dir(dir)
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(parent, ".keys-") // 0700
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	for name, b := range files {
		mode := fs.FileMode(0o644)
		if name == keyFile {
			mode = 0o600
		}
		if err := durable.WriteFile(tmp, filepath.Join(tmp, name), mode, func(w io.Writer) error {
			_, err := w.Write(b)
			return err
		}); err != nil {
			return err
		}
	}
	if err := unix.Rmdir(dir); err != nil && !errors.Is(err, fs.ErrNotExist) { // os.Rename replaces no folder, not even an empty one
		return err
	}
	return durable.Rename(tmp, dir)
}

// certificateJSON is a certificate in JSON.
type certificateJSON struct {
	Subject   string    `json:"subject"`
	Serial    string    `json:"serial"` // hexadecimal
	NotBefore time.Time `json:"not_before"`
	Expires   time.Time `json:"expires"`
	SHA256    string    `json:"sha256"` // of the certificate in DER
}

func describe(c *x509.Certificate) certificateJSON {
	return certificateJSON{c.Subject.String(), c.SerialNumber.Text(16), c.NotBefore.UTC(), c.NotAfter.UTC(), fmt.Sprintf("%x", sha256.Sum256(c.Raw))}
}

func (a *app) runKeysEnroll(ctx context.Context, o signOptions) error {
	root, err := a.openRoot(hostOptions{root: "/"})
	if err != nil {
		return err
	}
	where, _, cert, err := a.signerOf(root, o)
	if err != nil {
		return err
	}
	if cert == nil {
		return errors.New("there is no key to enroll; 'godkms-hermetic keys generate' makes one")
	}
	der, remove, err := derOf(where, cert)
	if err != nil {
		return err
	}
	defer remove()
	program, err := exec.LookPath("mokutil")
	if err != nil {
		return errors.New("there is no mokutil here; install the package mokutil and run this again, " +
			"or carry the certificate in DER to the firmware's own menu for keys, on a FAT file system")
	}
	if !root.SecureBoot() {
		return errors.New("this machine was started without Secure Boot, and then nobody asks the firmware for a key; " +
			"turn it on in the firmware's menu, or enroll the certificate all the same, in DER, with mokutil --import")
	}
	state, why := enrolled(ctx, der)
	if state == "no" {
		cmd := exec.CommandContext(ctx, program, "--import", der)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, a.stderr, a.stderr // it asks for a password
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("mokutil --import: %w; the key is not enrolled", err)
		}
		state = "pending"
	}
	if a.json() {
		return ui.WriteJSON(a.stdout, struct {
			Enrolled string `json:"enrolled"`
			certificateJSON
		}{state, describe(cert)})
	}
	switch state {
	case "yes":
		_, err = fmt.Fprintf(a.stdout, "the firmware trusts %s already\n", ui.Clean(cert.Subject.String()))
	case "pending":
		_, err = fmt.Fprintf(a.stdout, `%s is to be enrolled. Start the machine anew, with a keyboard and a screen: a blue screen asks you before Linux comes up.
Choose "Enroll MOK", "Continue", "Yes", and give the password that mokutil asked for. Afterwards 'godkms-hermetic keys status' says: enrolled yes
`, ui.Clean(cert.Subject.String()))
	default:
		return fmt.Errorf("mokutil doesn't say whether the key is enrolled: %s", why)
	}
	return err
}

// enrolled asks mokutil whether this machine trusts a certificate, a file in DER: "yes", "no", "pending" until the next boot, or "unknown", with the
// reason.
func enrolled(ctx context.Context, der string) (state, why string) {
	program, err := exec.LookPath("mokutil")
	if err != nil {
		return "unknown", "there is no mokutil here"
	}
	cmd := exec.CommandContext(ctx, program, "--test-key", der)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	b, err := cmd.CombinedOutput()
	text := strings.TrimSpace(string(b))
	for _, known := range []struct{ words, state string }{
		{"is not enrolled", "no"}, {"in the enrollment request", "pending"},
		{"is already enrolled", "yes"}, {"is already in db", "yes"}, {"built-in trusted keyring", "yes"},
	} {
		if strings.Contains(text, known.words) {
			return known.state, ""
		}
	}
	if text == "" && err != nil {
		text = err.Error()
	}
	return "unknown", "mokutil: " + text
}

// derOf gives a file with a certificate in DER: the one that 'keys generate' made, else one that is there until remove is called.
func derOf(where signOptions, cert *x509.Certificate) (path string, remove func(), err error) {
	path = filepath.Join(filepath.Dir(where.cert), derFile)
	if _, b, err := readSmall(path); err == nil && bytes.Equal(b, cert.Raw) {
		return path, func() {}, nil
	}
	dir, err := os.MkdirTemp("", "godkms-hermetic-")
	if err != nil {
		return "", nil, err
	}
	path = filepath.Join(dir, derFile)
	if err := os.WriteFile(path, cert.Raw, 0o644); err != nil {
		os.RemoveAll(dir)
		return "", nil, err
	}
	return path, func() { os.RemoveAll(dir) }, nil
}

func (a *app) runKeysStatus(ctx context.Context, h hostOptions, o signOptions) error {
	root, err := a.openRoot(h)
	if err != nil {
		return err
	}
	type kernelJSON struct {
		Release  string `json:"release"`
		Enforced bool   `json:"enforced"` // a module without a signature would be refused
		Why      string `json:"why,omitempty"`
	}
	type keyJSON struct {
		Key         string `json:"key"`
		Certificate string `json:"certificate"` // file; the key's own, if it is in there
		certificateJSON
		Enrolled string `json:"enrolled"` // yes, no, pending or unknown
		Why      string `json:"why,omitempty"`
	}
	out := struct {
		Key        *keyJSON     `json:"key"` // null: there is none
		SecureBoot bool         `json:"secure_boot"`
		Kernels    []kernelJSON `json:"kernels"`
	}{SecureBoot: root.SecureBoot(), Kernels: []kernelJSON{}}

	where, _, cert, err := a.signerOf(root, o)
	if err != nil {
		return err
	}
	if cert != nil {
		out.Key = &keyJSON{Key: withoutPIN(where.key), Certificate: where.cert, certificateJSON: describe(cert)}
		der, remove, err := derOf(where, cert)
		if err != nil {
			return err
		}
		defer remove()
		out.Key.Enrolled, out.Key.Why = enrolled(ctx, der)
	}
	list, err := releases(root)
	if err != nil {
		return err
	}
	for _, release := range list {
		why, err := root.Enforced(release)
		if err != nil {
			return err
		}
		out.Kernels = append(out.Kernels, kernelJSON{release, why != "", why})
	}
	if a.json() {
		return ui.WriteJSON(a.stdout, out)
	}
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	line := func(name, format string, args ...any) {
		fmt.Fprintf(w, "%s\t%s\n", name, ui.Clean(fmt.Sprintf(format, args...)))
	}
	if k := out.Key; k == nil {
		line("key", "none; 'godkms-hermetic keys generate' makes one")
	} else {
		line("key", "%s", k.Key)
		line("certificate", "%s", k.Certificate)
		line("subject", "%s, serial %s", k.Subject, k.Serial)
		line("expires", "%s", k.Expires.Format(time.DateOnly))
		line("enrolled", "%s", strings.TrimSuffix(k.Enrolled+": "+k.Why, ": "))
	}
	if root.IsHost() {
		line("secure boot", "%s", map[bool]string{true: "on", false: "off"}[out.SecureBoot])
	}
	for _, k := range out.Kernels {
		if k.Enforced {
			line("kernel "+k.Release, "loads no module without a signature: %s", k.Why)
		} else {
			line("kernel "+k.Release, "loads modules without a signature")
		}
	}
	return w.Flush()
}
