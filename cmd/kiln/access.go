package main

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/distribution/reference"

	"kiln/internal/auth"
	"kiln/internal/event"
	"kiln/internal/registry"
	"kiln/internal/run"
	"kiln/internal/source"
	"kiln/internal/store"
	"kiln/worker"
)

// registryAccess decides who may do what in the registry.
type registryAccess struct {
	keys *auth.Keys
	runs *store.Bucket[run.Run]
}

// MayPublish implements registry.Guardian: a worker elsewhere may publish what the author of its run may. One in this
// process looks at that itself.
func (a registryAccess) MayPublish(r *http.Request, p registry.Publication) error {
	found, _, err := a.runs.Get(r.Context(), p.Run)
	switch {
	case errors.Is(err, store.ErrNotFound): // has not begun, or is over
		return fmt.Errorf("%w: there is no run %s", registry.ErrFenced, p.Run)
	case err != nil:
		return err
	}
	if err := worker.CheckTags(found.Spec.Limits, p.Tags); err != nil {
		return fmt.Errorf("%w: %w", registry.ErrDenied, err)
	}
	return nil
}

// needs is the permission that an action takes.
var needs = map[registry.Action]event.Permission{
	registry.Pull:   event.ContentRead,
	registry.List:   event.MetadataRead,
	registry.Push:   event.ContentWrite,
	registry.Delete: event.ContentDelete,
}

// Authorize implements registry.Authorizer.
func (a registryAccess) Authorize(r *http.Request, repository string, action registry.Action) error {
	p, err := a.keys.FromRequest(r, time.Now())
	what, inRepository := needs[action]
	switch {
	case err != nil:
	case action == registry.Catalog:
		_, err = p.Sees() // and Visible says what
	case repository == "" && action == registry.Pull:
		if p.Role == auth.RoleAnonymous {
			err = auth.ErrToken // a client that was let in here would never show its token
		}
	case inRepository:
		err = p.May(what, repository)
	case p.Role == auth.RoleAdmin, action == registry.Control && p.Role == auth.RoleServer, action == registry.Publish && p.Run != "" && p.Run == repository:
	case p.Role == auth.RoleAnonymous:
		err = auth.ErrToken
	default:
		err = auth.ErrDenied
	}
	noteAccess(r, p, err)
	return a.refusal(r, p, repository, action, err)
}

// Visible implements registry.Viewer.
func (a registryAccess) Visible(r *http.Request) (func(repository string) bool, error) {
	p, err := a.keys.FromRequest(r, time.Now())
	if err != nil {
		return nil, a.refusal(r, p, "", registry.Catalog, err)
	}
	visible, err := p.Sees()
	return visible, a.refusal(r, p, "", registry.Catalog, err)
}

// refusal is what the registry is told of an error of package auth.
func (a registryAccess) refusal(r *http.Request, p auth.Principal, repository string, action registry.Action, err error) error {
	switch {
	case errors.Is(err, auth.ErrToken), errors.Is(err, auth.ErrScope):
		scope := ""
		switch {
		case action == registry.Catalog:
			scope = auth.CatalogScope
		case repository != "":
			scope = auth.Scope(repository, needs[action])
			if from := mountedFrom(r); from != "" && from != repository && action == registry.Push {
				scope += " " + auth.Scope(from, event.ContentRead)
			}
		}
		return &challenge{a.keys.Challenge(r, scope, err)}
	case errors.Is(err, auth.ErrDenied) && repository == "":
		return fmt.Errorf("%w: %s may not do this", registry.ErrDenied, p.Name)
	case errors.Is(err, auth.ErrDenied):
		return fmt.Errorf("%w: %s has no permission %s for repository %s", registry.ErrDenied, p.Name, needs[action], repository)
	}
	return err
}

// mountedFrom is the repository that a request wants to take a blob from, "" if none: a client that asks for
// access to both repositories at once spares itself the upload.
func mountedFrom(r *http.Request) string {
	from := r.URL.Query().Get("from")
	if _, err := reference.WithName(from); r.Method != http.MethodPost || err != nil {
		return ""
	}
	return from
}

// A challenge is a refusal that says how to authenticate.
type challenge struct{ header string }

func (c *challenge) Error() string     { return registry.ErrUnauthenticated.Error() }
func (c *challenge) Unwrap() error     { return registry.ErrUnauthenticated }
func (c *challenge) Challenge() string { return c.header }

// staging is the right to stage images.
var staging = event.Grant{Repository: worker.StagingRoot + "*", Permissions: []event.Permission{
	event.ContentRead, event.ContentWrite, event.MetadataRead}}

// readContexts is the right to read contexts that were uploaded.
var readContexts = event.Grant{Repository: source.Repository, Permissions: []event.Permission{event.ContentRead}}

// stagingAccess is the right to read images and to stage some.
func stagingAccess(name string, until time.Time) auth.Principal {
	return auth.Principal{Name: name, Role: auth.RoleRun, Expires: until, Grants: []event.Grant{
		{Repository: "*", Permissions: []event.Permission{event.ContentRead, event.MetadataRead}}, staging}}
}

// runAccess is the right to read what a run may, and to stage images. The registry has several names.
func runAccess(spec run.Spec, until time.Time, names ...string) auth.Principal {
	switch l := spec.Limits; {
	case spec.Restricted:
		readable := slices.DeleteFunc(worker.Readable(spec, names...), func(r string) bool {
			return !strings.HasPrefix(r, worker.StagingRoot) && l.MayPull(r) != nil
		})
		return restrictedAccess("restricted runs", readable, until)
	case !l.ReadsAll():
		return restrictedAccess("runs of "+l.By, l.Pull, until)
	}
	return stagingAccess("runs", until)
}

// restrictedAccess is the right to read some repositories and to stage images.
func restrictedAccess(name string, readable []string, until time.Time) auth.Principal {
	p := auth.Principal{Name: name, Role: auth.RoleRun, Expires: until, Grants: []event.Grant{staging}}
	for _, repository := range readable {
		p.Grants = append(p.Grants, event.Grant{Repository: repository, Permissions: []event.Permission{event.ContentRead, event.MetadataRead}})
	}
	return p
}

// publishingAccess is the right to publish for a run, as far as its fence lets the attempt, and to read its context:
// the build daemon never gets to see it.
func publishingAccess(run string, until time.Time) auth.Principal {
	return auth.Principal{Name: "run " + run, Role: auth.RoleRun, Run: run, Expires: until, Grants: []event.Grant{readContexts}}
}
