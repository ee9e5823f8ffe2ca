package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
)

const (
	maxPage           = 10_000  // names in one list
	maxReferrers      = 1_000   // descriptors in one list
	maxReferrersBytes = 4 << 20 // of annotations in one list, unless one referrer alone has more
)

// A page is the part of a list that a request asks for.
type page struct {
	after string
	n     int
}

func parsePage(r *http.Request) (page, error) {
	q := r.URL.Query()
	p := page{after: q.Get("last"), n: maxPage}
	if s := q.Get("n"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil || n < 0 {
			return page{}, fmt.Errorf("%w: n is %q, not a number of names", errPageInvalid, clip(s))
		}
		p.n = min(n, maxPage)
	}
	return p, nil
}

// cut shortens names, of which there is one more than asked for if the list goes on, to the page and
// links to the next one.
func (p page) cut(w http.ResponseWriter, r *http.Request, names []string) []string {
	if len(names) <= p.n {
		if names == nil {
			names = []string{} // null is no list
		}
		return names
	}
	names = names[:p.n]
	if p.n > 0 {
		setNext(w, r, url.Values{"n": {strconv.Itoa(p.n)}, "last": {names[p.n-1]}})
	}
	return names
}

func setNext(w http.ResponseWriter, r *http.Request, q url.Values) {
	w.Header().Set("Link", fmt.Sprintf("<%s?%s>; rel=%q", r.URL.EscapedPath(), q.Encode(), "next"))
}

func (h *handler) listTags(w http.ResponseWriter, r *http.Request, rt route) error {
	p, err := parsePage(r)
	if err != nil {
		return err
	}
	tags, err := h.s.Tags(r.Context(), rt.repository, p.after, p.n+1)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, "application/json", struct {
		Name string   `json:"name"`
		Tags []string `json:"tags"`
	}{rt.repository, p.cut(w, r, tags)})
	return nil
}

// A referrer is a manifest that refers to another as its subject.
type referrer struct {
	id           int64
	MediaType    string            `json:"mediaType"`
	Digest       string            `json:"digest"`
	Size         int64             `json:"size"`
	ArtifactType string            `json:"artifactType,omitempty"`
	Annotations  map[string]string `json:"annotations,omitempty"`
}

func (h *handler) referrers(w http.ResponseWriter, r *http.Request, rt route) error {
	d, err := parseDigest(rt.ref)
	if err != nil {
		return err
	}
	q := r.URL.Query()
	var after int64
	if s := q.Get("last"); s != "" {
		if after, err = strconv.ParseInt(s, 10, 64); err != nil {
			return fmt.Errorf("%w: last is %q: follow the links of earlier pages", errPageInvalid, clip(s))
		}
	}
	artifactType := q.Get("artifactType")
	list, more, err := h.s.referrers(r.Context(), rt.repository, d.String(), artifactType, after)
	if err != nil {
		return err
	}
	if artifactType != "" {
		w.Header().Set("OCI-Filters-Applied", "artifactType")
	}
	if more {
		q.Set("last", strconv.FormatInt(list[len(list)-1].id, 10))
		setNext(w, r, q)
	}
	writeJSON(w, http.StatusOK, typeOCIIndex, struct {
		SchemaVersion int        `json:"schemaVersion"`
		MediaType     string     `json:"mediaType"`
		Manifests     []referrer `json:"manifests"`
	}{2, typeOCIIndex, list})
	return nil
}

// referrers returns manifests of a repository whose subject is dgst, in the order of their rows, those
// after the given one, and whether there are more. An empty artifactType means all.
func (s *Store) referrers(ctx context.Context, repository, dgst, artifactType string, after int64) (list []referrer, more bool, err error) {
	rows, err := s.rows(ctx, `SELECT m.id, m.media_type, m.digest, m.size, m.artifact_type, m.annotations
		FROM repository r JOIN manifest m ON m.repo = r.id
		WHERE r.name = ?1 AND m.subject = ?2 AND m.id > ?3 AND (?4 = '' OR m.artifact_type = ?4)
		ORDER BY m.id LIMIT ?5`, repository, dgst, after, artifactType, maxReferrers+1)
	if err != nil {
		return nil, false, err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	list = []referrer{} // null is no list
	size := 0
	for rows.Next() {
		var m referrer
		var annotations []byte
		if err := rows.Scan(&m.id, &m.MediaType, &m.Digest, &m.Size, &m.ArtifactType, &annotations); err != nil {
			return nil, false, err
		}
		size += len(annotations)
		if len(list) == maxReferrers || len(list) > 0 && size > maxReferrersBytes {
			return list, true, nil
		}
		if err := json.Unmarshal(annotations, &m.Annotations); err != nil {
			return nil, false, fmt.Errorf("annotations of %s: %w", m.Digest, err)
		}
		list = append(list, m)
	}
	return list, false, rows.Err()
}
