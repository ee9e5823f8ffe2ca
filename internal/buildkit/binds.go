package buildkit

import (
	"context"
	"errors"
	"path"
	"strings"

	gwclient "github.com/moby/buildkit/frontend/gateway/client"

	"kiln/internal/solve"
)

// of returns the mounts by which c sees what the session's containers share.
func (w *workspace) of(ctx context.Context, g *gateway, c solve.Container) ([]gwclient.Mount, error) {
	if c.Binds == nil {
		return w.mounts, nil
	}
	mounts := make([]gwclient.Mount, 0, len(c.Binds))
	for _, b := range c.Binds {
		m, selector, ok := w.find(b.Source)
		if !ok {
			return nil, stepError("%s is in no directory that containers share", b.Source)
		}
		err := g.present(ctx, m, selector)
		if b.Create && errors.Is(err, errAbsent) {
			err = g.put(ctx, w, path.Clean(b.Source)+"/", nil)
		}
		if err != nil {
			return nil, absence(err, b.Source)
		}
		m.Dest, m.Selector, m.Readonly = b.Path, selector, b.ReadOnly
		mounts = append(mounts, m)
	}
	return mounts, nil
}

// find returns the shared directory that a path is in, and where in it.
func (w *workspace) find(p string) (m gwclient.Mount, selector string, ok bool) {
	p = path.Clean(p)
	for _, m := range w.mounts {
		if p == m.Dest {
			return m, "", true
		}
		if rest, ok := strings.CutPrefix(p, m.Dest+"/"); ok {
			return m, "/" + rest, true
		}
	}
	return gwclient.Mount{}, "", false
}

// errAbsent is that there is nothing where a bind's source should be.
var errAbsent = errors.New("it is not there")

// absence says which source is not there.
func absence(err error, source string) error {
	if errors.Is(err, errAbsent) {
		return stepError("%s is not there; create it first", source)
	}
	return err
}

// present reports with errAbsent that there is nothing where a bind's source should be: the daemon's own words name paths of
// its host.
func (g *gateway) present(ctx context.Context, m gwclient.Mount, selector string) error {
	if selector == "" {
		return nil
	}
	ctr, err := g.NewContainer(ctx, gwclient.NewContainerRequest{Mounts: []gwclient.Mount{emptyRoot, m}})
	if err == nil {
		defer g.release(ctx, ctr)
		_, err = ctr.StatFile(ctx, gwclient.StatContainerRequest{MountIndex: workspaceIndex, StatRequest: gwclient.StatRequest{Path: selector}})
	}
	switch {
	case err == nil:
		return nil
	case isMissing(err):
		return errAbsent
	}
	failure, _ := g.failure(ctx, err)
	return failure
}
