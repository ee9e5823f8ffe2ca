//go:build race

package taskspec

// hostileSize is about the size of hostile documents. With the race detector they are smaller, because it
// makes parsing ten times slower.
const hostileSize = maxSource / 16
