package rpm

import (
	"io"
	"strings"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/armor"
)

// What GnuPG 1.4 makes with --force-v3-sigs of the text below, and the key.
const (
	oldText = "text that is signed\n"
	oldKey  = `-----BEGIN PGP PUBLIC KEY BLOCK-----

mQENBGsDnbsBCADEwNBqjsgnVE+XOG6zM9oWmQ1USmn3YTjTPogK+83fBSiRUI25
oYeLuPo/r+WnECCzq1TZqfaa9dWszNbVIF1WNRyNX/OQ+ArJzv66Q7hOhXBL9ZvA
bhHcfMDrnaPmirOqfOKwlnr8ewm0z/GQ5tdRpGwnvAiaqkx+d18bn/VIMAC/sDpk
EFZ1yGs4gZFOEsasZrOulowzFl71fNFiSIe71mBuFS8LhTCU1fuTvoVvohl9s9b5
oB9YKcNmYc107bwCB2GlgKjB4Ceh9gmFBjaSKPFQ/qBY2XHFvW3tZReWtohNmMEk
wRlZ9bkWFHtExq4U2cjPpPCfP37AUOz++cv5ABEBAAG0C09sZCA8b2xkQHg+iQE4
BBMBCAAiBQJrA527AhsDBgsJCAcDAgYVCAIJCgsEFgIDAQIeAQIXgAAKCRBAvoAR
R5t0x5aQB/0QNarzG5PlTXOazbJs4O2CdxzdBEvpEzND8x35JSfnnCsFgXl3p2cC
ybvcoynfnHxkkBUo1RdIj3vF6qh/9TCkr6veZziWFySejkCPXCxrkFFveUn2KYbL
M6ZCe6coo1+/EfYkc5bEDc8/YpRddlgBOuuPYD+Tbpq3JUiBfuQQFmqtuEG+3JP1
01VqCdRakxI7/ehK7Y5nHHk74W/j+IezOGOIAUgGCHH61+Kwv23BDlVlglNYIQ3I
i6rnk0AIpSA/3dHn4wsRaaC3Fs9s8aRYwkGRogZOspnJu/v+a1KBzwRZz6S2vS0f
UIWBN5W6KLjs/qVKVMmgW+BMDMRxXQD7
=IYL7
-----END PGP PUBLIC KEY BLOCK-----
`
	oldSig = `-----BEGIN PGP SIGNATURE-----

iQEVAwUAawOdu0C+gBFHm3THAQiv8wgAt2K1GpnhwLt+1BAMq4rgdbYXF3Ody7/K
GSVGElPt95MN4jELQvGZTqXvu2X+PMVNNvDgiWNzhD1pLcv6HoefKS8byYlUs5PF
euW/5I7eefZV/C3vcvpZjIrpT2SHuXjh7/3vZmKV/tCxA7sgSQuMIixI3aZ22p+5
xrZXlgph4b3Wq2EzzvdsLtzNF3wj1081nsUWHf8O79VX71x11WGnopdJIxs6LXmR
9Sf9rRrOIfaL+D2hKX78PimVQFCCDkcYBCe7ychyB1guxXbK8s49KzEhGwC5umAh
sLV9kQB8gD1RNjDhckzO5hZwbIgfeijwZYrg6WOvOC8eTmUdSJF5kg==
=oqP8
-----END PGP SIGNATURE-----
`
	oldSHA1 = `-----BEGIN PGP SIGNATURE-----

iQEVAwUAawOdu0C+gBFHm3THAQKj5ggAw+lLHPCkypH5CRk84xMeBEByEJJ6VH8i
y2wsO7DloXTQxfwfAtsuQn0TiLtZbz83yCNkCpHj5VnarT+N3JCWCnOWVmR99oBR
p0G66jqJ5CgK5WwCympgb6X/1kSi+DMHnE1WAlvZKgSof7nbCzlGafJrp7uygkor
is5NgTPAIXdpv3IUoKhjVDRo/gjab/d3CGvA0OSjzapJMchh598i0pwHQEvY1J/Y
Hz6MyZPGncZDE1NF8rHLjB+zaYcdWZzntwMifU7eERPG3bxZAZLizGCLITLCzfE7
7NP8ZbYkF4ba12wpW+hU9I90xduORfSZTWOnyenVYG/7ivrmMuboOg==
=jx3V
-----END PGP SIGNATURE-----
`
)

func TestOldSignature(t *testing.T) {
	keys, err := openpgp.ReadArmoredKeyRing(strings.NewReader(oldKey))
	if err != nil {
		t.Fatal(err)
	}
	made := time.Date(2026, 11, 23, 2, 0, 0, 0, time.UTC)
	life := uint32(7200)
	expires, err := openpgp.ReadArmoredKeyRing(strings.NewReader(oldKey))
	if err != nil {
		t.Fatal(err)
	}
	expires[0].PrimaryIdentity().SelfSignature.KeyLifetimeSecs = &life
	other, err := openpgp.NewEntity("other", "", "o@x", nil)
	if err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string]struct {
		text, sig string
		keys      openpgp.EntityList
		now       time.Time
		want      string
	}{
		"good":        {oldText, oldSig, keys, made, ""},
		"of two":      {oldText, oldSig, openpgp.EntityList{other, keys[0]}, made, ""},
		"other text":  {oldText + "x", oldSig, keys, made, "does not hold"},
		"other key":   {oldText, oldSig, openpgp.EntityList{other}, made, "none of the distribution's keys"},
		"SHA-1":       {oldText, oldSHA1, keys, made, "hash algorithm 2 isn't taken"},
		"of tomorrow": {oldText, oldSig, keys, made.AddDate(0, 0, -1), "does not hold"},
		"expired":     {oldText, oldSig, expires, made.AddDate(0, 0, 1), "expired"},
		"in its time": {oldText, oldSig, expires, made, ""},
	} {
		err := checkSignature([]byte(c.text), []byte(c.sig), c.keys, func() time.Time { return c.now })
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: error is %v; want %q", what, err, c.want)
		}
	}
	// A package's signature is the same without armour, and outlives its key.
	block, err := armor.Decode(strings.NewReader(oldSig))
	if err != nil {
		t.Fatal(err)
	}
	raw, err := io.ReadAll(block.Body)
	if err != nil {
		t.Fatal(err)
	}
	signatures := &header{data: raw, tags: map[uint32]tagEntry{sigRSA: {typeBinary, 0, uint32(len(raw))}}}
	later := func() time.Time { return made.AddDate(1, 0, 0) }
	if err := checkPackage([]byte(oldText), signatures, trust{expires, later}); err != nil {
		t.Errorf("package: %v", err)
	}
	if err := checkPackage([]byte(oldText+"x"), signatures, trust{expires, later}); err == nil {
		t.Error("another package is taken")
	}
}

func FuzzOldSignature(f *testing.F) {
	f.Add([]byte("\x89\x00\x17\x03\x05\x00\x00\x00\x00\x01\x01\x02\x03\x04\x05\x06\x07\x08\x01\x08\x00\x00\x00\x01\x01"))
	keys, err := openpgp.ReadArmoredKeyRing(strings.NewReader(oldKey))
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if s, err := readOldSignature(data); err == nil && s != nil && s.verify(keys, data, time.Now()) == nil {
			t.Error("it holds")
		}
	})
}
