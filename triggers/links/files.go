package links

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"
)

// Bounds of what is read for one task.
const (
	maxFiles = 200
	maxFile  = 1 << 20 // bytes
)

// files reads each file of a context once.
type files struct {
	read   Reader
	known  map[string]file
	images map[string]string // aliases of images, which task files may use
}

type file struct {
	data []byte
	err  error
}

// get returns a file by its path in the context.
func (f *files) get(path string) ([]byte, error) {
	if known, ok := f.known[path]; ok {
		return known.data, known.err
	}
	if f.read == nil {
		return nil, errors.New("there is no context to read it from")
	}
	if len(f.known) == maxFiles {
		return nil, fmt.Errorf("it is not read: the task has more than %d files", maxFiles)
	}
	data, err := f.read(path)
	if err == nil && len(data) > maxFile {
		data, err = nil, fmt.Errorf("it has %d bytes, more than %d", len(data), maxFile)
	}
	f.known[path] = file{data, err}
	return data, err
}

// alias returns a file that alias.src names, as a run finds it: below the context's root, and nowhere else.
func (f *files) alias(name string) ([]byte, error) {
	if strings.Contains(name, "://") {
		return nil, errors.New("files of other hosts are not read; copy it into the context")
	}
	name = strings.TrimPrefix(path.Clean(name), "/workspace/")
	if !fs.ValidPath(name) || name == "." {
		return nil, errors.New("is no path inside the context")
	}
	data, err := f.get(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errors.New("is not in the context")
	}
	return data, err
}
