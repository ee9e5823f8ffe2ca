package buildkit

import (
	"context"
	"maps"
	"path"
	"slices"
	"sync"

	gwclient "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/session/secrets"
	"github.com/moby/buildkit/solver/pb"

	"kiln/internal/solve"
)

// fileMode lets every user read a file of a volume: a container's user is the image's choice.
const fileMode = 0o444

// volumeFiles are the files of volumes, for as long as a container that mounts them is being made. The
// daemon asks for them by an unguessable name and keeps them in memory.
type volumeFiles struct {
	mu     sync.Mutex
	byName map[string][]byte
}

var _ secrets.SecretStore = (*volumeFiles)(nil)

// GetSecret returns a file's content.
func (v *volumeFiles) GetSecret(_ context.Context, name string) ([]byte, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	data, ok := v.byName[name]
	if !ok {
		return nil, secrets.ErrNotFound
	}
	return data, nil
}

// mounts returns the mounts of volumes. They can be used until forget is called.
func (v *volumeFiles) mounts(volumes []solve.Volume) (mounts []gwclient.Mount, forget func()) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.byName == nil {
		v.byName = map[string][]byte{}
	}
	var names []string
	for _, vol := range volumes {
		// The directory is memory, too: no trace of a file is left where it was mounted.
		mounts = append(mounts, gwclient.Mount{Dest: vol.Path, MountType: pb.MountType_TMPFS})
		for _, file := range slices.Sorted(maps.Keys(vol.Files)) {
			name := randomToken()
			v.byName[name] = vol.Files[file]
			names = append(names, name)
			mounts = append(mounts, gwclient.Mount{Dest: path.Join(vol.Path, file), MountType: pb.MountType_SECRET, Readonly: true,
				SecretOpt: &pb.SecretOpt{ID: name, Mode: fileMode}})
		}
	}
	return mounts, func() {
		v.mu.Lock()
		defer v.mu.Unlock()
		for _, name := range names {
			delete(v.byName, name)
		}
	}
}
