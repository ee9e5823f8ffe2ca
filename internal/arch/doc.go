// Package arch holds the rules of the source tree as tests: which package may import which, that what
// is exported is documented, how long files and functions may be, and which calls are not made.
//
// The tests read the whole module, so they fail for code of any package. A rule that is in the way is
// changed here, in the open, with its reason; there are no exceptions in the code itself.
package arch
