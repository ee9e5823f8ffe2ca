//go:build !race

package taskspec

// hostileSize is about the size of hostile documents.
const hostileSize = maxSource
