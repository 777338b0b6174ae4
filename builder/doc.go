// Package builder turns one source tree and one locked kernel into modules which that kernel will load.
package builder
