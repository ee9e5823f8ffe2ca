package api

import (
	"context"
	"crypto/rand"
	"errors"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"kiln/internal/apiclient"
	"kiln/internal/event"
	"kiln/internal/forge"
	"kiln/internal/secret"
	"kiln/internal/store"
)

// HookConfig is what a Server needs to know to keep hooks.
type HookConfig struct {
	Providers []string // that a hook may be of
	// Address is how senders reach the server, such as https://kiln.example.com; empty means the
	// address that a request was sent to.
	Address string
	// Secret returns the value of a named secret; an error that wraps secret.ErrUnknown if there is none.
	Secret func(ctx context.Context, name string) (string, error)
	HTTP   *http.Client // to forges; nil is http.DefaultClient
}

// hookPrefix is the path below which hooks are served.
const hookPrefix = "/hooks/"

var (
	hookName     = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9._-]{0,62}$`)
	registryHost = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9.-]*(:[0-9]{1,5})?$`)
)

func (s *Server) createHook(w http.ResponseWriter, r *http.Request) error {
	var req apiclient.CreateHook
	if err := decodeBody(r, &req); err != nil {
		return err
	}
	about(r, req.Name)
	h := event.Hook{ID: newHookID(), Name: req.Name, Provider: req.Provider, Registry: req.Registry, URL: req.Repository,
		TokenSecret: req.TokenSecret, API: req.API, Address: s.hookAddress(r, req.Address), Created: time.Now().UTC()}
	if h.Name == "" {
		h.Name = h.Provider + "-" + h.ID[:6]
	}
	if err := s.validateHook(r.Context(), h); err != nil {
		return err
	}
	clear := newHookSecret()
	sealed, err := secret.Seal(s.Recipient, clear)
	if err != nil {
		return err
	}
	h.Secret = sealed
	if _, err := s.Store.Hooks.Create(r.Context(), h.ID, h); err != nil {
		return err
	}
	if h.TokenSecret != "" {
		if h, err = s.registerHook(r.Context(), h, clear); err != nil {
			return err
		}
	}
	writeJSON(w, http.StatusCreated, publicHook(h, clear))
	return nil
}

// Each has 130 bits or more.
func newHookID() string     { return strings.ToLower(rand.Text()) }
func newHookSecret() string { return rand.Text() + rand.Text() }

// hookAddress returns how senders reach the server: as asked for, as configured, or as this client does.
func (s *Server) hookAddress(r *http.Request, wanted string) string {
	address := wanted
	if address == "" {
		address = s.Hooks.Address
	}
	if address == "" {
		address = "http://" + r.Host
		if r.TLS != nil {
			address = "https://" + r.Host
		}
	}
	return strings.TrimSuffix(address, "/")
}

func (s *Server) validateHook(ctx context.Context, h event.Hook) error {
	switch {
	case !slices.Contains(s.Hooks.Providers, h.Provider):
		return invalid("provider %q: want one of %s", h.Provider, strings.Join(s.Hooks.Providers, ", "))
	case !hookName.MatchString(h.Name):
		return invalid("name %q: want at most 63 letters, digits, dots, dashes and underscores", h.Name)
	case h.Registry != "" && !registryHost.MatchString(h.Registry):
		return invalid("registry %q: want HOST or HOST:PORT, as images name it", h.Registry)
	case h.TokenSecret != "" && h.URL == "":
		return invalid("to register the hook at the forge, give the repository's URL")
	case h.TokenSecret != "" && !forge.Known(h.Provider):
		return invalid("kiln cannot register hooks at %s; leave the token's secret out and enter the address there", h.Provider)
	}
	if err := apiclient.CheckURL(h.Address); err != nil {
		return invalid("address %q: want http://HOST[:PORT] or https://HOST[:PORT]", h.Address)
	}
	if u, err := url.Parse(h.URL); err == nil && u.User != nil {
		// Over HTTP a name alone is as good as a token: forges take either for the other.
		if _, password := u.User.Password(); password || u.Scheme == "http" || u.Scheme == "https" {
			return invalid("the repository's URL holds a user or password; leave it out, and store a token with kiln secret set")
		}
	}
	taken := false
	err := s.Store.Hooks.List(ctx, func(e store.Entry[event.Hook]) bool {
		taken = strings.EqualFold(e.Value.Name, h.Name)
		return !taken
	})
	if err == nil && taken {
		err = conflict("there is a hook %q already", h.Name)
	}
	return err
}

// registerHook registers a stored hook at its forge; one that cannot be is deleted again.
func (s *Server) registerHook(ctx context.Context, h event.Hook, clear string) (event.Hook, error) {
	id, err := "", s.reachable(h)
	if err == nil {
		var repo *forge.Repository
		if repo, err = s.openForge(ctx, h); err == nil {
			id, err = repo.CreateHook(ctx, forge.Hook{URL: deliverTo(h), Secret: clear})
		}
	}
	ctx = context.WithoutCancel(ctx)
	if err != nil {
		return h, errors.Join(forgeError(err), s.Store.Hooks.Delete(ctx, h.ID))
	}
	return s.changeHook(ctx, h.ID, func(h *event.Hook) error { h.RemoteID = id; return nil })
}

// reachable refuses an address that the forge will not reach.
func (s *Server) reachable(h event.Hook) error {
	if !loopbackURL(h.Address) || loopbackURL(h.API) || h.API == "" && loopbackURL(h.URL) {
		return nil
	}
	e := invalid("the forge cannot reach this server at %s", h.Address)
	e.Remedy = "give the address that the forge can reach, with --address or for all hooks with kiln serve --public-url"
	return e
}

func loopbackURL(s string) bool {
	u, err := url.Parse(s)
	if err != nil {
		return false
	}
	ip := net.ParseIP(u.Hostname())
	return u.Hostname() == "localhost" || ip != nil && ip.IsLoopback()
}

func (s *Server) openForge(ctx context.Context, h event.Hook) (*forge.Repository, error) {
	token, err := s.Hooks.Secret(ctx, h.TokenSecret)
	if errors.Is(err, secret.ErrUnknown) || errors.Is(err, store.ErrNotFound) {
		e := invalid("there is no secret %q", h.TokenSecret)
		e.Remedy = "kiln secret set " + h.TokenSecret
		return nil, e
	}
	if err != nil {
		return nil, err
	}
	repo, err := forge.Open(forge.Config{Provider: h.Provider, URL: h.URL, API: h.API, Token: strings.TrimSpace(token), HTTP: s.Hooks.HTTP})
	if err != nil {
		return nil, invalid("%s", err.Error())
	}
	return repo, nil
}

// forgeError is what a client sees of a forge's refusal: all of it, for it is the client's to mend.
func forgeError(err error) error {
	var e *apiclient.Error
	if err == nil || errors.As(err, &e) {
		return err
	}
	return &apiclient.Error{Status: http.StatusBadGateway, Code: apiclient.CodeForge, Message: err.Error()}
}

func (s *Server) listHooks(w http.ResponseWriter, r *http.Request) error {
	list := apiclient.Hooks{Hooks: []apiclient.Hook{}}
	err := s.Store.Hooks.List(r.Context(), func(e store.Entry[event.Hook]) bool {
		list.Hooks = append(list.Hooks, publicHook(e.Value, ""))
		return true
	})
	if err != nil {
		return err
	}
	slices.SortFunc(list.Hooks, func(a, b apiclient.Hook) int { return strings.Compare(a.Name+"\x00"+a.ID, b.Name+"\x00"+b.ID) })
	writeJSON(w, http.StatusOK, list)
	return nil
}

// findHook returns the hook that the path names by its ID or name.
func (s *Server) findHook(r *http.Request) (event.Hook, error) {
	wanted := r.PathValue("hook")
	var found []event.Hook
	err := s.Store.Hooks.List(r.Context(), func(e store.Entry[event.Hook]) bool {
		if e.Key == wanted || strings.EqualFold(e.Value.Name, wanted) {
			found = append(found, e.Value)
		}
		return e.Key != wanted
	})
	switch {
	case err != nil:
		return event.Hook{}, err
	case len(found) == 0:
		return event.Hook{}, &apiclient.Error{Status: http.StatusNotFound, Code: apiclient.CodeNotFound,
			Message: "no hook " + strconv.Quote(wanted), Remedy: "list the hooks with `kiln hook list`"}
	case len(found) > 1 && found[len(found)-1].ID != wanted:
		return event.Hook{}, conflict("several hooks are named %q; give the ID", wanted)
	}
	return found[len(found)-1], nil
}

func (s *Server) showHook(w http.ResponseWriter, r *http.Request) error {
	h, err := s.findHook(r)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, publicHook(h, ""))
	return nil
}

func (s *Server) deleteHook(w http.ResponseWriter, r *http.Request) error {
	h, err := s.findHook(r)
	if err != nil {
		return err
	}
	if h.RemoteID != "" && r.URL.Query().Get("local") == "" {
		repo, err := s.openForge(r.Context(), h)
		if err == nil {
			err = forgeError(repo.DeleteHook(r.Context(), h.RemoteID))
		}
		var e *apiclient.Error
		if errors.As(err, &e) {
			told := *e
			told.Remedy = "mend that, or delete it here alone with --local"
			return &told
		}
		if err != nil {
			return err
		}
	}
	if err := s.Store.Hooks.Delete(context.WithoutCancel(r.Context()), h.ID); err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, publicHook(h, ""))
	return nil
}

// changeHook changes a stored hook, whoever else does so at the same time.
func (s *Server) changeHook(ctx context.Context, id string, change func(*event.Hook) error) (event.Hook, error) {
	for {
		h, revision, err := s.Store.Hooks.Get(ctx, id)
		if err != nil {
			return h, err
		}
		if err := change(&h); err != nil {
			return h, err
		}
		if _, err = s.Store.Hooks.Update(ctx, id, h, revision); !errors.Is(err, store.ErrConflict) {
			return h, err
		}
	}
}

func (s *Server) switchHook(disable bool) func(http.ResponseWriter, *http.Request) error {
	return func(w http.ResponseWriter, r *http.Request) error {
		h, err := s.findHook(r)
		if err != nil {
			return err
		}
		h, err = s.changeHook(r.Context(), h.ID, func(h *event.Hook) error { h.Disabled = disable; return nil })
		if err != nil {
			return err
		}
		writeJSON(w, http.StatusOK, publicHook(h, ""))
		return nil
	}
}

// deliverTo is where a sender delivers to.
func deliverTo(h event.Hook) string { return h.Address + hookPrefix + h.Provider + "/" + h.ID }

func publicHook(h event.Hook, clear string) apiclient.Hook {
	return apiclient.Hook{ID: h.ID, Name: h.Name, Provider: h.Provider, URL: deliverTo(h), Secret: clear, Disabled: h.Disabled,
		Rotating: len(h.Previous) > 0, Registry: h.Registry, Repository: h.URL, Registered: h.RemoteID != "",
		TokenSecret: h.TokenSecret, Created: h.Created, LastDelivery: h.LastDelivery}
}
