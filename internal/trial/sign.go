package trial

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"regexp"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/godkms-hermetic/godkms-hermetic/internal/kmod"
)

// signatures are the modules in the forms of Signature, and their files.
func signatures(o Options) ([]form, []entry, error) {
	signer, hash := o.Signer, o.Hash
	if hash == 0 {
		hash = crypto.SHA256
	}
	if signer == nil {
		var err error
		if signer, _, err = throwaway(); err != nil {
			return nil, nil, fmt.Errorf("make a key to sign with: %w", err)
		}
	}
	var forms []form
	var files []entry
	for _, m := range o.Modules {
		plain, err := kmod.Unsigned(m.File)
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", m.Name, err)
		}
		signed, err := signer.Sign(plain, hash)
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", m.Name, err)
		}
		malformed := slices.Clone(signed)
		malformed[len(plain)] ^= 1 // the tag of the outermost SEQUENCE
		for _, f := range []struct {
			form string
			data []byte
		}{{Unsigned, plain}, {Signed, signed}, {Malformed, malformed}} {
			forms = append(forms, form{m.Name, f.form})
			files = append(files, entry{name: "sign/" + f.form + "/" + m.Name, mode: 0o644, data: f.data})
		}
	}
	return forms, files, nil
}

// throwaway signs with a key that nobody has after this. RSA is what every kernel that checks signatures can read.
func throwaway() (*kmod.Signer, *rsa.PrivateKey, error) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return nil, nil, err
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "godkms-hermetic trial"}, NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1<<32, 0)}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		return nil, nil, err
	}
	if c, err = x509.ParseCertificate(der); err != nil {
		return nil, nil, err
	}
	signer, err := kmod.NewSigner(key, c)
	return signer, key, err
}

// rejected is of kernel/module/signing.c, since Linux 5.2 in these words: "Loading of unsigned module is rejected".
var rejected = regexp.MustCompile(`Loading of (.*) is rejected`)

// signature judges the kernel's answer to a form of a module. Kernels until 5.1 don't say why, and answer ENOKEY both to no signature and to an
// unknown key. The errno of what is no signature at all is that of the parser, lib/asn1_decoder.c and crypto/asymmetric_keys/pkcs7_parser.c.
func (j *judge) signature(e event, log []message) {
	if e.Step == "enforce" {
		if e.failed() {
			for _, f := range j.task.Sign {
				j.sigs = append(j.sigs, Signature{f.Module, f.Form, errnoName(e.Errno), "this kernel checks no signatures: it was built without CONFIG_MODULE_SIG", true})
			}
		}
		return
	}
	i := slices.IndexFunc(j.task.Sign, func(f form) bool { return f.Form+"/"+f.Module == e.Name })
	if i < 0 {
		return
	}
	s := Signature{Module: j.task.Sign[i].Module, Form: j.task.Sign[i].Form, Errno: errnoName(e.Errno)}
	said := ""
	for _, m := range log {
		if g := rejected.FindStringSubmatch(m.text); g != nil {
			said, s.Reason = g[1], m.text
		}
	}
	is := func(errno ...unix.Errno) bool { return slices.Contains(errno, unix.Errno(e.Errno)) }
	switch s.Form {
	case Unsigned:
		s.OK = said == "unsigned module" || said == "" && is(unix.ENOKEY, unix.EPERM)
	case Signed:
		s.OK = said == "module with unavailable key" || said == "" && (is(unix.ENOKEY) || !e.failed())
	case Malformed:
		s.OK = said == "" && is(unix.EBADMSG, unix.ELIBBAD, unix.EINVAL)
	}
	switch {
	case s.Reason != "":
	case !e.failed() && s.OK:
		s.Reason = "the kernel knows its key, and loads it"
	case !e.failed():
		s.Reason = "the kernel loads it, though it takes none but signed modules"
	default:
		_, s.Reason = refusal(e, log)
	}
	j.sigs = append(j.sigs, s)
	if !s.OK {
		j.find(s.Module, Finding{Verdict: Refused, Step: e.Step, Errno: s.Errno, Reason: fmt.Sprintf("its form %q: %s", s.Form, s.Reason)})
	}
}
