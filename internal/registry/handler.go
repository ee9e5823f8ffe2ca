package registry

import (
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"
)

// An Action is what a request wants to do with a repository.
type Action string

// Actions. Catalog and Control are asked for with an empty repository.
const (
	Pull    Action = "pull"
	List    Action = "list" // list the tags
	Push    Action = "push"
	Delete  Action = "delete"
	Catalog Action = "catalog" // list the repositories
	Control Action = "control" // raise and list fences, finish runs
	Publish Action = "publish" // publish for a run, the ID of which is in the place of the repository
)

// Actions are all of them.
func Actions() []Action {
	found := map[Action]bool{}
	for _, methods := range endpoints {
		for _, e := range methods {
			found[e.action] = true
		}
	}
	return slices.Sorted(maps.Keys(found))
}

// An Authorizer decides what a request may do. It returns nil, or an error that wraps
// ErrUnauthenticated (the caller should say who it is) or ErrDenied. A Pull of the empty repository
// is a client asking whether its credentials are good. An error that has a method Challenge() string
// says by it how the caller is to say who it is, as the header WWW-Authenticate does.
type Authorizer interface {
	Authorize(r *http.Request, repository string, action Action) error
}

// Handler serves everything below /v2/: the distribution specification, and the control routes that
// [Client] speaks. A nil Authorizer refuses everything.
func (s *Store) Handler(a Authorizer) http.Handler {
	return &handler{s: s, auth: a}
}

type handler struct {
	s    *Store
	auth Authorizer
}

// A route is a parsed request path. Kinds are the parts of the protocol.
type route struct {
	kind       kind
	repository string
	ref        string // tag, digest, upload or run
}

type kind int

const (
	kindBase kind = iota
	kindCatalog
	kindFences
	kindFence
	kindPublish
	kindTags // from here on: in a repository
	kindManifest
	kindBlob
	kindUploads
	kindUpload
	kindReferrers
)

// inRepository reports whether the route names a repository, be it with an empty name.
func (rt route) inRepository() bool { return rt.kind >= kindTags }

// endpoints says which function serves which method of which kind, and the action that it takes.
var endpoints = map[kind]map[string]endpoint{
	kindBase:      {"GET": {Pull, (*handler).base}, "HEAD": {Pull, (*handler).base}},
	kindCatalog:   {"GET": {Catalog, (*handler).catalog}},
	kindTags:      {"GET": {List, (*handler).listTags}},
	kindManifest:  {"GET": {Pull, (*handler).getManifest}, "HEAD": {Pull, (*handler).headManifest}, "PUT": {Push, (*handler).putManifest}, "DELETE": {Delete, (*handler).deleteManifest}},
	kindBlob:      {"GET": {Pull, (*handler).getBlob}, "HEAD": {Pull, (*handler).headBlob}, "DELETE": {Delete, (*handler).deleteBlob}},
	kindUploads:   {"POST": {Push, (*handler).startUpload}},
	kindUpload:    {"GET": {Push, (*handler).uploadStatus}, "PATCH": {Push, (*handler).patchUpload}, "PUT": {Push, (*handler).putUpload}, "DELETE": {Push, (*handler).cancelUpload}},
	kindReferrers: {"GET": {Pull, (*handler).referrers}},
	kindFences:    {"GET": {Control, (*handler).listFences}},
	kindFence:     {"PUT": {Control, (*handler).raiseFence}, "DELETE": {Control, (*handler).finishRun}},
	kindPublish:   {"POST": {Publish, (*handler).publish}},
}

type endpoint struct {
	action Action
	serve  func(*handler, http.ResponseWriter, *http.Request, route) error
}

func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	Patiently(w, r, stall)
	err := h.serve(w, r)
	if err == nil {
		return
	}
	if Status(err) == http.StatusMethodNotAllowed {
		w.Header().Set("Allow", allowed(r))
	}
	status := writeError(w, err)
	if status >= http.StatusInternalServerError && r.Context().Err() == nil { // a client that is gone is no incident
		h.s.opt.Log.Error("registry request failed", "method", r.Method, "path", r.URL.Path, "status", status, "err", err)
	}
}

// allowed lists the methods that a path has beside the one that was refused.
func allowed(r *http.Request) string {
	rt, _ := parsePath(r.URL.Path)
	var methods []string
	for m := range endpoints[rt.kind] {
		if m != r.Method {
			methods = append(methods, m)
		}
	}
	slices.Sort(methods)
	return strings.Join(methods, ", ")
}

// stall is how long a client may pause while it sends a body.
const stall = 2 * time.Minute

// Patiently lets the body of a request take as long as it likes, if only its sender does not pause for the time of stall.
func Patiently(w http.ResponseWriter, r *http.Request, stall time.Duration) {
	r.Body = &patientBody{ReadCloser: r.Body, control: http.NewResponseController(w), stall: stall}
}

type patientBody struct {
	io.ReadCloser
	control *http.ResponseController
	stall   time.Duration
	renewed time.Time
}

func (b *patientBody) Read(p []byte) (int, error) {
	if now := time.Now(); now.Sub(b.renewed) > b.stall/4 {
		b.renewed = now
		// Not every connection has deadlines.
		_ = b.control.SetReadDeadline(now.Add(b.stall))
	}
	n, err := b.ReadCloser.Read(p)
	if err != nil {
		_ = b.control.SetReadDeadline(time.Time{}) // the handler itself may take longer
	}
	return n, err
}

func (h *handler) serve(w http.ResponseWriter, r *http.Request) error {
	rt, ok := parsePath(r.URL.Path)
	if !ok {
		return h.refuse(r, errNotFound)
	}
	if rt.inRepository() {
		if err := checkName(rt.repository); err != nil {
			return h.refuse(r, err)
		}
	}
	e, ok := endpoints[rt.kind][r.Method]
	if !ok {
		return h.refuse(r, errMethod)
	}
	about := rt.repository
	if e.action == Publish {
		about = rt.ref
	}
	if err := h.authorize(r, about, e.action); err != nil {
		return err
	}
	return e.serve(h, w, r, rt)
}

// refuse returns err to callers that are let in at all; others do not learn what is wrong.
func (h *handler) refuse(r *http.Request, err error) error {
	if denied := h.authorize(r, "", Pull); denied != nil {
		return denied
	}
	return err
}

func (h *handler) authorize(r *http.Request, repository string, a Action) error {
	if h.auth == nil {
		return ErrUnauthenticated
	}
	return h.auth.Authorize(r, repository, a)
}

// parsePath takes a path apart. Names may themselves contain words such as "blobs", so what follows
// the name is looked for from the end.
func parsePath(path string) (route, bool) {
	rest, ok := strings.CutPrefix(path, "/v2")
	switch {
	case !ok:
		return route{}, false
	case rest == "" || rest == "/":
		return route{kind: kindBase}, true
	case rest == "/_catalog":
		return route{kind: kindCatalog}, true
	case strings.HasPrefix(rest, "/.kiln/publish/"):
		return route{kind: kindPublish, ref: strings.TrimPrefix(rest, "/.kiln/publish/")}, true
	case rest == "/.kiln/fences":
		return route{kind: kindFences}, true
	case strings.HasPrefix(rest, "/.kiln/fence/"):
		return route{kind: kindFence, ref: strings.TrimPrefix(rest, "/.kiln/fence/")}, true
	case rest[0] != '/':
		return route{}, false
	}
	parts := strings.Split(rest[1:], "/")
	n := len(parts)
	at := func(i int) string { // counted from the end
		if i < n { // parts[0] belongs to the name
			return parts[n-i]
		}
		return ""
	}
	name := func(drop int) string { return strings.Join(parts[:n-drop], "/") }
	switch {
	case at(2) == "tags" && at(1) == "list":
		return route{kind: kindTags, repository: name(2)}, true
	case at(3) == "blobs" && at(2) == "uploads" && at(1) != "":
		return route{kind: kindUpload, repository: name(3), ref: at(1)}, true
	case at(3) == "blobs" && at(2) == "uploads":
		return route{kind: kindUploads, repository: name(3)}, true
	case at(2) == "blobs" && at(1) == "uploads":
		return route{kind: kindUploads, repository: name(2)}, true
	case at(2) == "blobs":
		return route{kind: kindBlob, repository: name(2), ref: at(1)}, true
	case at(2) == "manifests":
		return route{kind: kindManifest, repository: name(2), ref: at(1)}, true
	case at(2) == "referrers":
		return route{kind: kindReferrers, repository: name(2), ref: at(1)}, true
	}
	return route{}, false
}

// base answers that this is a registry and that the credentials are good.
func (h *handler) base(w http.ResponseWriter, _ *http.Request, _ route) error {
	writeJSON(w, http.StatusOK, "application/json", struct{}{})
	return nil
}
