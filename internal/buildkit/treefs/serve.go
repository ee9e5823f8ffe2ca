package treefs

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

const (
	// maxRead is how much one request of the kernel reads. A file that is not larger is read as a whole.
	maxRead = 128 << 10
	// maxReads is how many files are read at once.
	maxReads = 16
	// forever is how long the kernel may keep what it was told, in seconds.
	forever = 365 * 24 * 60 * 60
)

// server answers the kernel's requests. The number of a node is its place in the tree plus one.
type server struct {
	fuse.RawFileSystem
	tree  *Tree
	open  func(path string) (io.ReadCloser, error)
	copy  string        // the directory of large files
	slots chan struct{} // one for each file that is being read

	mu     sync.Mutex
	copies map[int]*fileCopy
	last   wholeFile // that was read in parts

	read atomic.Int64 // files
}

// A wholeFile is the content of a small file.
type wholeFile struct {
	node    int
	content []byte
}

// A fileCopy is a large file on disk.
type fileCopy struct {
	ready chan struct{} // closed when it is complete or err is set
	err   error
}

func newServer(t *Tree, open func(string) (io.ReadCloser, error), dir string) *server {
	return &server{RawFileSystem: fuse.NewDefaultRawFileSystem(), tree: t, open: open, copy: dir,
		slots: make(chan struct{}, maxReads), copies: map[int]*fileCopy{}}
}

// node returns the place of the node that a request is about.
func (s *server) node(id uint64) (int, bool) {
	if id < fuse.FUSE_ROOT_ID || id-fuse.FUSE_ROOT_ID >= uint64(len(s.tree.nodes)) {
		return 0, false
	}
	return int(id - fuse.FUSE_ROOT_ID), true
}

func (s *server) attr(i int, a *fuse.Attr) {
	n := &s.tree.nodes[i]
	*a = fuse.Attr{Ino: uint64(i) + fuse.FUSE_ROOT_ID, Size: uint64(n.size), Blocks: (uint64(n.size) + 511) / 512, Mode: n.mode, Nlink: 1, Blksize: 4096}
	seconds, nanos := n.time/1e9, n.time%1e9
	if nanos < 0 {
		seconds, nanos = seconds-1, nanos+1e9
	}
	a.Mtime, a.Mtimensec = uint64(seconds), uint32(nanos)
	a.Atime, a.Atimensec, a.Ctime, a.Ctimensec = a.Mtime, a.Mtimensec, a.Mtime, a.Mtimensec
}

func (s *server) entry(i int, out *fuse.EntryOut) {
	out.NodeId, out.EntryValid, out.AttrValid = uint64(i)+fuse.FUSE_ROOT_ID, forever, forever
	s.attr(i, &out.Attr)
}

// Lookup finds a name in a directory. That it is not there is kept by the kernel, too.
func (s *server) Lookup(_ <-chan struct{}, in *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	dir, ok := s.node(in.NodeId)
	if !ok {
		return fuse.ENOENT
	}
	i, ok := s.tree.find(dir, name)
	if !ok {
		out.EntryValid = forever // and no node
		return fuse.OK
	}
	s.entry(i, out)
	return fuse.OK
}

// GetAttr tells the status of a node.
func (s *server) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	i, ok := s.node(in.NodeId)
	if !ok {
		return fuse.ENOENT
	}
	out.AttrValid = forever
	s.attr(i, &out.Attr)
	return fuse.OK
}

// Readlink returns the target of a symbolic link.
func (s *server) Readlink(_ <-chan struct{}, in *fuse.InHeader) ([]byte, fuse.Status) {
	i, ok := s.node(in.NodeId)
	if !ok {
		return nil, fuse.ENOENT
	}
	return []byte(s.tree.links[i]), fuse.OK
}

// Open tells the kernel that it need not ask: there is nothing to be kept of an open file.
func (*server) Open(<-chan struct{}, *fuse.OpenIn, *fuse.OpenOut) fuse.Status { return fuse.ENOSYS }

// OpenDir is to directories what Open is to files.
func (*server) OpenDir(<-chan struct{}, *fuse.OpenIn, *fuse.OpenOut) fuse.Status { return fuse.ENOSYS }

// StatFs answers those who only ask whether the mount lives.
func (*server) StatFs(_ <-chan struct{}, _ *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	out.Bsize, out.NameLen = 4096, 255
	return fuse.OK
}

// ReadDir lists a directory.
func (s *server) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return s.list(in, func(_ int, e fuse.DirEntry) bool { return out.AddDirEntry(e) })
}

// ReadDirPlus lists a directory with the status of everything in it.
func (s *server) ReadDirPlus(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return s.list(in, func(i int, e fuse.DirEntry) bool {
		entry := out.AddDirLookupEntry(e)
		if entry != nil && i > 0 {
			s.entry(i, entry)
		}
		return entry != nil
	})
}

// list adds the entries of a directory from the offset of the request on, until there is no more room. The
// directory itself and the one above have no node here.
func (s *server) list(in *fuse.ReadIn, add func(node int, e fuse.DirEntry) bool) fuse.Status {
	dir, ok := s.node(in.NodeId)
	if !ok {
		return fuse.ENOENT
	}
	below := s.tree.below(dir)
	for at := in.Offset; at < uint64(len(below))+2; at++ {
		i, e := 0, fuse.DirEntry{Name: ".", Mode: unix.S_IFDIR, Ino: in.NodeId, Off: at + 1}
		switch at {
		case 0:
		case 1:
			e.Name, e.Ino = "..", uint64(s.tree.nodes[dir].parent)+fuse.FUSE_ROOT_ID
		default:
			i = int(below[at-2])
			e.Name, e.Mode, e.Ino = s.tree.name(i), s.tree.nodes[i].mode, uint64(i)+fuse.FUSE_ROOT_ID
		}
		if !add(i, e) {
			break
		}
	}
	return fuse.OK
}

// Read reads a part of a file.
func (s *server) Read(_ <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	i, ok := s.node(in.NodeId)
	if !ok || s.tree.nodes[i].mode&unix.S_IFMT != unix.S_IFREG {
		return nil, fuse.EINVAL
	}
	size := s.tree.nodes[i].size
	if in.Offset >= uint64(size) {
		return fuse.ReadResultData(nil), fuse.OK
	}
	s.slots <- struct{}{}
	defer func() { <-s.slots }()
	n, err := s.readAt(i, buf[:min(int64(len(buf)), size-int64(in.Offset))], int64(in.Offset))
	switch {
	case errors.Is(err, unix.ENOSPC):
		return nil, fuse.Status(unix.ENOSPC)
	case err != nil:
		return nil, fuse.EIO
	}
	return fuse.ReadResultData(buf[:n]), fuse.OK
}

// readAt fills buf, which does not reach beyond the end of the file.
func (s *server) readAt(i int, buf []byte, offset int64) (int, error) {
	size := s.tree.nodes[i].size
	if size <= maxRead {
		return s.readWhole(i, buf, offset, size)
	}
	name := filepath.Join(s.copy, strconv.Itoa(i))
	if err := s.copied(i, name); err != nil {
		return 0, err
	}
	f, err := os.Open(name)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return f.ReadAt(buf, offset)
}

// readWhole reads a small file to its end, where its content is verified. The kernel mostly asks for all of it.
func (s *server) readWhole(i int, buf []byte, offset, size int64) (int, error) {
	if offset == 0 && int64(len(buf)) == size {
		return len(buf), s.readFile(i, buf)
	}
	s.mu.Lock()
	last := s.last
	s.mu.Unlock()
	if last.node != i || last.content == nil {
		last = wholeFile{node: i, content: make([]byte, size)}
		if err := s.readFile(i, last.content); err != nil {
			return 0, err
		}
		s.mu.Lock()
		s.last = last
		s.mu.Unlock()
	}
	return copy(buf, last.content[offset:]), nil
}

// readFile fills content with the file, which is of that size.
func (s *server) readFile(i int, content []byte) error {
	rc, err := s.open(s.tree.path(i))
	if err != nil {
		return err
	}
	defer rc.Close()
	s.read.Add(1)
	_, err = io.ReadFull(rc, content)
	return err
}

// copied makes the copy of a large file, once.
func (s *server) copied(i int, name string) error {
	s.mu.Lock()
	c := s.copies[i]
	mine := c == nil
	if mine {
		c = &fileCopy{ready: make(chan struct{})}
		s.copies[i] = c
	}
	s.mu.Unlock()
	if !mine {
		<-c.ready
		return c.err
	}
	s.read.Add(1)
	c.err = s.makeCopy(i, name)
	if c.err != nil { // the next one tries again
		s.mu.Lock()
		delete(s.copies, i)
		s.mu.Unlock()
	}
	close(c.ready)
	return c.err
}

func (s *server) makeCopy(i int, name string) (err error) {
	rc, err := s.open(s.tree.path(i))
	if err != nil {
		return err
	}
	defer rc.Close()
	f, err := os.OpenFile(name, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	n, err := io.Copy(f, rc)
	if err == nil && n != s.tree.nodes[i].size {
		err = io.ErrUnexpectedEOF
	}
	return err
}
