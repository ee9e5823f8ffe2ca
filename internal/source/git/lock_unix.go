//go:build unix

package git

import (
	"errors"
	"fmt"
	"os"
	"syscall"
)

// lockFile takes the lock of a file, until unlockFile or the end of the process.
func lockFile(name string) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("%s is held: another process uses the directory; stop it, or use another directory", name)
		}
		return nil, fmt.Errorf("lock %s: %w", name, err)
	}
	return f, nil
}

// unlockFile gives the lock back. Closing the file alone would not do: a program that is being started
// at this moment has copies of all descriptors until it is executed, and they would keep the lock.
func unlockFile(f *os.File) error {
	return errors.Join(syscall.Flock(int(f.Fd()), syscall.LOCK_UN), f.Close())
}
