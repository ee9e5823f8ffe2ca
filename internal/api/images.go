package api

import (
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"kiln/internal/apiclient"
	"kiln/internal/auth"
	"kiln/internal/event"
	"kiln/internal/registry"
)

// permit refuses a request of who has no permission for a repository.
func permit(r *http.Request, what event.Permission, repository string) error {
	p := principal(r)
	if p.May(what, repository) == nil {
		return nil
	}
	return &apiclient.Error{Status: http.StatusForbidden, Code: apiclient.CodeForbidden,
		Message: fmt.Sprintf("%s has no permission %s for repository %.255q", p.Name, what, repository)}
}

// answer writes what a call returned, unless that is an error.
func answer[T any](w http.ResponseWriter, v T, err error) error {
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, v)
	return nil
}

// imageName names an image for people.
func imageName(repository, reference string) string {
	if strings.Contains(reference, ":") {
		return repository + "@" + reference
	}
	return repository + ":" + reference
}

// dryly tells what changes nothing.
func dryly(dryRun bool) string {
	if dryRun {
		return " (dry run)"
	}
	return ""
}

// pageOf reads how many names a page of a list has.
func pageOf(r *http.Request) (int, error) {
	v := r.URL.Query().Get("n")
	if v == "" {
		return 100, nil
	}
	n, err := strconv.Atoi(v)
	if err != nil || n < 1 || n > apiclient.MaxImagePage {
		return 0, invalid("n %.40q: want a number from 1 to %d", v, apiclient.MaxImagePage)
	}
	return n, nil
}

func (s *Server) repositories(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	if name := q.Get("repository"); name != "" {
		if err := permit(r, event.MetadataRead, name); err != nil {
			return err
		}
		found, err := s.Registry.Repository(r.Context(), name)
		return answer(w, found, err)
	}
	n, err := pageOf(r)
	if err != nil {
		return err
	}
	list, err := s.Registry.Catalog(r.Context(), q.Get("all") == "1", q.Get("after"), n)
	if principal(r).Role != auth.RoleAdmin { // what is stored in all is not for all to know
		list.Total = apiclient.Storage{}
		list.Repositories = slices.DeleteFunc(list.Repositories, func(x apiclient.Repository) bool {
			return permit(r, event.MetadataRead, x.Name) != nil
		})
	}
	return answer(w, list, err)
}

func (s *Server) manifests(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	if err := permit(r, event.MetadataRead, q.Get("repository")); err != nil {
		return err
	}
	if ref := q.Get("reference"); ref != "" {
		found, err := s.Registry.ManifestDetails(r.Context(), q.Get("repository"), ref)
		return answer(w, found, err)
	}
	n, err := pageOf(r)
	if err != nil {
		return err
	}
	order := q.Get("orderby")
	if order != "" && order != "time_desc" && order != "time_asc" {
		return invalid("orderby %.40q: want time_desc or time_asc", order)
	}
	list, err := s.Registry.Manifests(r.Context(), registry.ManifestQuery{Repository: q.Get("repository"), Oldest: order == "time_asc",
		Untagged: q.Get("untagged") == "1", After: q.Get("after"), N: n})
	return answer(w, list, err)
}

func (s *Server) referrers(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	if err := permit(r, event.MetadataRead, q.Get("repository")); err != nil {
		return err
	}
	list, err := s.Registry.Referrers(r.Context(), q.Get("repository"), q.Get("reference"), q.Get("type"))
	return answer(w, list, err)
}

func (s *Server) tags(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	if err := permit(r, event.MetadataRead, q.Get("repository")); err != nil {
		return err
	}
	if tag := q.Get("tag"); tag != "" {
		found, err := s.Registry.TagDetails(r.Context(), q.Get("repository"), tag)
		return answer(w, found, err)
	}
	n, err := pageOf(r)
	if err != nil {
		return err
	}
	list, err := s.Registry.TagList(r.Context(), q.Get("repository"), q.Get("after"), n)
	return answer(w, list, err)
}

func (s *Server) deleteImage(w http.ResponseWriter, r *http.Request) error {
	var d apiclient.Delete
	if err := decodeBody(r, &d); err != nil {
		return err
	}
	about(r, imageName(d.Repository, d.Reference)+dryly(d.DryRun))
	done, err := s.Registry.Delete(r.Context(), d.Repository, d.Reference, d.DryRun)
	return answer(w, done, err)
}

func (s *Server) untag(w http.ResponseWriter, r *http.Request) error {
	var i apiclient.Image
	if err := decodeBody(r, &i); err != nil {
		return err
	}
	about(r, imageName(i.Repository, i.Reference))
	err := s.Registry.Untag(r.Context(), i.Repository, i.Reference)
	return answer(w, apiclient.Deletion{Manifests: []apiclient.DeletedManifest{}, Tags: 1}, err)
}

func (s *Server) lock(w http.ResponseWriter, r *http.Request) error {
	var l apiclient.Lock
	if err := decodeBody(r, &l); err != nil {
		return err
	}
	about(r, imageName(l.Repository, l.Reference))
	if err := permit(r, event.MetadataWrite, l.Repository); err != nil {
		return err
	}
	now, err := s.Registry.Lock(r.Context(), l.Repository, l.Reference, l.Set, l.Unset)
	if now == nil {
		now = []string{}
	}
	return answer(w, apiclient.Locks{Locks: now}, err)
}

func (s *Server) rollback(w http.ResponseWriter, r *http.Request) error {
	var b apiclient.Rollback
	if err := decodeBody(r, &b); err != nil {
		return err
	}
	about(r, imageName(b.Repository, b.Tag))
	if err := permit(r, event.ContentWrite, b.Repository); err != nil {
		return err
	}
	var err error
	b.From, b.To, err = s.Registry.Rollback(r.Context(), b.Repository, b.Tag, b.To)
	return answer(w, b, err)
}

// imageError describes an error of the registry to the client; nil if it is none that a client causes.
func imageError(err error) *apiclient.Error {
	e := &apiclient.Error{Status: registry.Status(err), Message: err.Error()}
	switch e.Status {
	case http.StatusNotFound:
		e.Code = apiclient.CodeNotFound
	case http.StatusConflict, http.StatusLocked, http.StatusMethodNotAllowed:
		e.Status, e.Code = http.StatusConflict, apiclient.CodeConflict
	case http.StatusInsufficientStorage:
		e.Code, e.Remedy = apiclient.CodeDiskFull, "free space on the disk of the server's data directory, then try again"
	case http.StatusBadRequest, http.StatusRequestEntityTooLarge:
		e.Status, e.Code = http.StatusUnprocessableEntity, apiclient.CodeInvalid
	case http.StatusServiceUnavailable:
		e.Code = apiclient.CodeUnavailable
	case http.StatusBadGateway:
		e.Status, e.Code = http.StatusUnprocessableEntity, apiclient.CodeInvalid
		e.Remedy = "look whether the source exists, and whether it needs --username"
	default:
		return nil
	}
	return e
}

func (s *Server) importImage(w http.ResponseWriter, r *http.Request) error {
	var im apiclient.Import
	if err := decodeBody(r, &im); err != nil {
		return err
	}
	about(r, strings.Join(im.Names, " "))
	done, err := s.Import(r.Context(), im)
	return answer(w, done, err)
}

func (s *Server) checkImages(w http.ResponseWriter, r *http.Request) error {
	var c apiclient.CheckImages
	if err := decodeBody(r, &c); err != nil {
		return err
	}
	found, err := s.Registry.Check(r.Context(), c.Quick)
	return answer(w, found, err)
}

func (s *Server) collect(w http.ResponseWriter, r *http.Request) error {
	var c apiclient.Collect
	if err := decodeBody(r, &c); err != nil {
		return err
	}
	about(r, dryly(c.DryRun))
	done, err := s.Collect(r.Context(), c.DryRun)
	return answer(w, done, err)
}

func (s *Server) purge(w http.ResponseWriter, r *http.Request) error {
	var p apiclient.Purge
	if err := decodeBody(r, &p); err != nil {
		return err
	}
	about(r, strings.Join(p.Filters, " ")+dryly(p.DryRun))
	done, err := s.Purge(r.Context(), p)
	return answer(w, done, err)
}
