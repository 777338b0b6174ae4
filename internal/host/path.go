package host

import (
	securejoin "github.com/cyphar/filepath-securejoin"
)

// resolve gives the path on this machine of one below root, with its links followed as if root were /.
func resolve(root, name string) (string, error) { return securejoin.SecureJoin(root, name) }
