// Command archkeys makes the keyring of Arch Linux that the program has built in. It reads what the package archlinux-keyring has in
// usr/share/keyrings (Debian) or usr/share/pacman/keyrings, and writes the keys that pacman would trust, armored.
//
// pacman trusts a packager's key when three of the master keys, which are listed in archlinux-trusted, have certified one of its user IDs
// and have not taken that back; a key that is revoked, or listed in archlinux-revoked, it doesn't (pacman-key --populate, and GnuPG's
// trust model with its default of three marginals). The master keys themselves sign no package, and are left out. Of each key there
// is the key, that user ID and the subkeys that sign, with what binds them; a key that has expired is kept, for what it signed before.
package main

import (
	"bufio"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/armor"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
)

const marginals = 3 // GnuPG's --marginals-needed

func main() {
	dir := flag.String("dir", "/usr/share/keyrings", "`folder` with archlinux.gpg, archlinux-trusted and archlinux-revoked")
	flag.Parse()
	if err := generate(os.Stdout, *dir); err != nil {
		fmt.Fprintln(os.Stderr, "archkeys:", err)
		os.Exit(1)
	}
}

func generate(w io.Writer, dir string) error {
	file := func(name string) (*os.File, error) { return os.Open(filepath.Join(dir, name)) }
	trusted, err := list(file("archlinux-trusted"))
	if err != nil {
		return err
	}
	revoked, err := list(file("archlinux-revoked"))
	if err != nil {
		return err
	}
	f, err := file("archlinux.gpg")
	if err != nil {
		return err
	}
	defer f.Close()
	all, err := openpgp.ReadArmoredKeyRing(f)
	if err != nil {
		return err
	}
	var masters, packagers openpgp.EntityList
	for _, e := range all {
		switch name := fingerprint(e); {
		case len(e.Revocations) > 0 || revoked[name]:
		case trusted[name]:
			masters = append(masters, e)
		default:
			packagers = append(packagers, e)
		}
	}
	slices.SortFunc(packagers, func(a, b *openpgp.Entity) int { return strings.Compare(fingerprint(a), fingerprint(b)) })
	out, err := armor.Encode(w, openpgp.PublicKeyType, nil)
	if err != nil {
		return err
	}
	n := 0
	for _, e := range packagers {
		id := certified(e, masters)
		if id == nil {
			continue
		}
		n++
		if err := write(out, e, id); err != nil {
			return fmt.Errorf("key %s: %w", fingerprint(e), err)
		}
	}
	if err := out.Close(); err != nil {
		return err
	}
	fmt.Fprintln(w)
	fmt.Fprintf(os.Stderr, "%d keys of %d, certified by %d master keys\n", n, len(all), len(masters))
	return nil
}

// list reads fingerprints, one to a line, perhaps with an owner trust behind a colon.
func list(f *os.File, err error) (map[string]bool, error) {
	if err != nil {
		return nil, err
	}
	defer f.Close()
	out := map[string]bool{}
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		name, _, _ := strings.Cut(strings.TrimSpace(lines.Text()), ":")
		out[strings.ToUpper(name)] = name != ""
	}
	return out, lines.Err()
}

func fingerprint(e *openpgp.Entity) string { return fmt.Sprintf("%X", e.PrimaryKey.Fingerprint) }

// certified gives a user ID that enough master keys have certified, the newest.
func certified(e *openpgp.Entity, masters openpgp.EntityList) *openpgp.Identity {
	var best *openpgp.Identity
	for _, id := range e.Identities {
		if len(id.Revocations) > 0 || id.SelfSignature == nil {
			continue
		}
		n := 0
		for _, m := range masters {
			if certifies(m, e, id) {
				n++
			}
		}
		if n >= marginals && (best == nil || id.SelfSignature.CreationTime.After(best.SelfSignature.CreationTime)) {
			best = id
		}
	}
	return best
}

// certifies tells whether the newest of a master key's signatures over a user ID is a certification that hasn't expired.
func certifies(m, e *openpgp.Entity, id *openpgp.Identity) bool {
	var last *packet.Signature
	for _, sig := range id.Signatures {
		if sig.CheckKeyIdOrFingerprint(m.PrimaryKey) && m.PrimaryKey.VerifyUserIdSignature(id.Name, e.PrimaryKey, sig) == nil &&
			(last == nil || sig.CreationTime.After(last.CreationTime)) {
			last = sig
		}
	}
	return last != nil && last.SigType != packet.SigTypeCertificationRevocation && !last.SigExpired(time.Now())
}

func write(w io.Writer, e *openpgp.Entity, id *openpgp.Identity) error {
	if err := e.PrimaryKey.Serialize(w); err != nil {
		return err
	}
	if err := id.UserId.Serialize(w); err != nil {
		return err
	}
	if err := id.SelfSignature.Serialize(w); err != nil {
		return err
	}
	for _, sub := range e.Subkeys {
		if len(sub.Revocations) > 0 || !sub.Sig.FlagsValid || !sub.Sig.FlagSign {
			continue
		}
		if err := sub.PublicKey.Serialize(w); err != nil {
			return err
		}
		if err := sub.Sig.Serialize(w); err != nil {
			return err
		}
	}
	return nil
}
