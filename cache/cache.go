// Package cache keeps built modules by the hash of everything that went into them.
package cache

import (
	"context"
	"errors"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// What errors of stores wrap.
var (
	ErrNotFound = errors.New("not in the cache")        // of a Get that found nothing, or only something damaged
	ErrDiffers  = errors.New("another result is there") // of a Put that would have replaced what others use
)

// MaxLog is how many bytes of a log are kept. Of longer ones the middle is left out.
const MaxLog = 1 << 20

// Entry is the result of one build.
type Entry struct {
	Image v1.Image // what the key determines, to the byte
	Log   []byte   // of the build that made it; differs from build to build, so it is no part of the image
	Lock  []byte   // kernels.Lock.Encode of what it was built on; nil in entries of earlier versions, and where Get says so
	// Inputs is the text whose SHA-256 the key is, which says what else than source and lock went into the build. It's nil where that is
	// nothing, in entries of earlier versions, and where Get says so.
	Inputs []byte
}

// Store keeps entries by key. Keys are SHA-256 hashes. Implementations are safe for concurrent use, by processes too.
type Store interface {
	// Get returns an entry whose bytes have all been checked against their digests. It wraps ErrNotFound when there is none.
	// The image stays readable for as long as it is referenced, also when the entry is removed meanwhile.
	Get(ctx context.Context, key v1.Hash) (Entry, error)
	// Put stores an entry, in place of one that is there; a store that others share keeps that one instead, and the error wraps
	// ErrDiffers if its image is another. After an error, or a crash, the store has the whole entry or none.
	Put(ctx context.Context, key v1.Hash, e Entry) error
}
