package host

import "crypto"

// enforced says why the root's kernel of a release would refuse modules without a signature; empty if it wouldn't.
func (r *Root) enforced(release string) (why string, err error) { return "", nil }

// signatureHash is the one that a kernel's own modules are signed with, CONFIG_MODULE_SIG_HASH.
func (r *Root) signatureHash(release string) (crypto.Hash, error) { return crypto.SHA256, nil }
