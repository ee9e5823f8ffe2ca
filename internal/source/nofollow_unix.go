//go:build unix

package source

import "syscall"

// openFlags keep an open from following a link and from waiting for the other end of a pipe that
// took the place of a file.
const openFlags = syscall.O_NOFOLLOW | syscall.O_NONBLOCK
