package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"kiln/internal/api"
	forges "kiln/internal/forge"
	"kiln/internal/netguard"
	"kiln/internal/notify"
	"kiln/internal/run"
	"kiln/webhook"
)

// forgeTimeout is how long a forge may take to answer.
const forgeTimeout = 15 * time.Second

// openHooks makes what deliveries of forges and registries need.
func (n *node) openHooks(ctx context.Context) error {
	if n.onlyWorks() {
		return nil
	}
	creator, err := n.bus.Creator()
	if err != nil {
		return err
	}
	n.onClose(creator.Close)
	if n.intake, err = webhook.NewIntake(ctx, n.bus, creator, n.log); err != nil {
		return err
	}
	n.onClose(n.intake.Close)
	n.hooks = &webhook.Book{Store: &n.store.Hooks, Identity: n.identity, Log: n.log}
	n.delivery = &webhook.Handler{Hooks: n.hooks.Hook, Used: n.hooks.Used, Publish: webhook.Publisher(creator), Intake: n.intake, Log: n.log}
	n.notifier = &notify.Notifier{Bus: n.bus, Store: n.store, Secret: n.secrets().Value, Guard: n.notifyGuard(), ForgeGuard: n.forgeGuard(),
		Unseal: n.identity.Open, Forges: n.cfg.forgeHosts(), RunURL: n.cfg.runURL(), Log: n.log}
	return nil
}

func (n *node) notifyGuard() netguard.Guard {
	allowed, _ := parseSources(n.cfg.allowNotify) // validated
	return netguard.Guard{Allow: allowed.Address}
}

func (n *node) forgeGuard() netguard.Guard { return netguard.Guard{Allow: n.allowed.Address} }

// outside is for registries that somebody else has chosen.
func (n *node) outside() explained {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.Proxy, t.DialContext = nil, n.forgeGuard().Dial
	return explained{t, n.allowed}
}

// An explained transport says of a refused address how it can be allowed.
type explained struct {
	*http.Transport
	allowed allowedSources
}

// RoundTrip implements http.RoundTripper.
func (e explained) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := e.Transport.RoundTrip(r)
	return resp, e.allowed.explain(err)
}

func (n *node) hookConfig() api.HookConfig {
	return api.HookConfig{Providers: webhook.Providers(), Address: n.cfg.publicURL, Secret: n.secrets().Value,
		HTTP: n.forgeGuard().Client(forgeTimeout)}
}

// runPath is where people look at a run.
const runPath = "/runs/"

// runURL returns where people can look at a run; nil if it is not known how they reach the server.
func (cfg *serveConfig) runURL() func(id string) string {
	if cfg.publicURL == "" {
		return nil
	}
	return func(id string) string { return strings.TrimSuffix(cfg.publicURL, "/") + runPath + id }
}

// showRun tells who follows a link to a run how to see it. It asks for no token, so it says nothing about the run.
func (n *node) showRun(w http.ResponseWriter, r *http.Request) {
	id := r.PathValue("run")
	if !run.ValidID(id) {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	fmt.Fprintf(w, "This is a run of kiln. To see it, with a token of this server:\n\n  kiln show %[1]s\n  kiln logs %[1]s\n  kiln why %[1]s\n", id)
}

// forgeHosts is --forge as a map: host to provider.
func (cfg *serveConfig) forgeHosts() map[string]string {
	m := map[string]string{}
	for _, f := range cfg.forges {
		host, provider, _ := strings.Cut(f, "=")
		m[strings.ToLower(host)] = provider
	}
	return m
}

// validateOutside reports what is wrong with the flags about the world outside.
func (cfg *serveConfig) validateOutside() error {
	var errs []error
	if cfg.publicURL != "" && !strings.HasPrefix(cfg.publicURL, "http://") && !strings.HasPrefix(cfg.publicURL, "https://") {
		errs = append(errs, fmt.Errorf("--public-url %q: want https://HOST[:PORT]", cfg.publicURL))
	}
	if _, err := parseSources(cfg.allowNotify); err != nil {
		errs = append(errs, errors.New("--allow-notify: want a host, host:port, address or network such as 10.0.0.0/8"))
	}
	for _, f := range cfg.forges {
		if host, provider, _ := strings.Cut(f, "="); host == "" || !forges.Known(provider) {
			errs = append(errs, fmt.Errorf("--forge %q: want HOST=%s", f, strings.Join(forges.Providers, "|")))
		}
	}
	return errors.Join(errs...)
}
