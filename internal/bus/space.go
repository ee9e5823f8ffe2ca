package bus

import (
	"fmt"
	"syscall"
)

// Reserve has the bus refuse messages with ErrFull while less than n bytes are free on the disk that dir is
// on: the embedded server's. It must never meet the end of the disk itself, because a stream that could not
// be written once takes nothing until the server is started again. Reserve is called before the bus is
// used.
func (b *Bus) Reserve(dir string, n int64) { b.dir, b.reserve = dir, n }

// Room returns ErrFull if the disk has not enough room for more messages.
func (b *Bus) Room() error {
	if b.reserve == 0 {
		return nil
	}
	var st syscall.Statfs_t
	if err := syscall.Statfs(b.dir, &st); err != nil {
		return fmt.Errorf("free space of %s: %w", b.dir, err)
	}
	if free := int64(st.Bavail) * st.Bsize; free < b.reserve {
		return fmt.Errorf("%w: %d bytes are free on the disk of %s, %d are kept in reserve", ErrFull, free, b.dir, b.reserve)
	}
	return nil
}
