package worker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/distribution/reference"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"kiln/internal/event"
	"kiln/internal/run"
	"kiln/taskspec"
)

// said ends a step that the worker has executed by itself: it logs what the command prints.
func (a *attempt) said(ctx context.Context, s *taskspec.Step, text string, err error) error {
	if text != "" {
		a.logs.add(s.ID, []event.LogEntry{{Time: time.Now().UTC(), Stream: event.StreamStdout, Data: []byte(text)}})
	}
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	}
	return &stepFailure{s.ID, err}
}

// dockerCommand executes a docker command that neither builds nor pushes, and returns what it prints.
func (a *attempt) dockerCommand(ctx context.Context, d *taskspec.Docker) (text string, err error) {
	switch d.Command {
	case "version":
		text = fmt.Sprintf("kiln, without a Docker daemon\nBuildKit %s\n", a.w.BuildKit)
	case "images":
		text = a.images.table()
	case "tag":
		err = a.images.tag(d.Args[0], d.Args[1])
	case "inspect":
		text, err = a.inspect(ctx, d.Args)
	case "pull":
		text, err = a.pull(ctx, d.Args[0])
	case "login":
		text, err = a.login(ctx, d)
	case "logout":
		a.signedIn.forget(registryHost(append(d.Args, "docker.io")[0]))
	default:
		err = errors.New("this worker does not know it")
	}
	if err != nil {
		err = fmt.Errorf("docker %s: %w", d.Command, err)
	}
	return text, err
}

// table lists the images of the run.
func (im *images) table() string {
	im.mu.Lock()
	defer im.mu.Unlock()
	var text strings.Builder
	w := tabwriter.NewWriter(&text, 0, 8, 3, ' ', 0)
	fmt.Fprintln(w, "IMAGE\tDIGEST")
	for _, ref := range slices.Sorted(maps.Keys(im.built)) {
		fmt.Fprintf(w, "%s\t%s\n", ref, im.built[ref].output.Digest)
	}
	_ = w.Flush() // to memory
	return text.String()
}

// tag gives an image of the run a further name.
func (im *images) tag(image, name string) error {
	built, ok := im.find(image)
	if !ok {
		return fmt.Errorf("there is no image %s in this run; build or pull it in an earlier step", image)
	}
	built.pulled = false
	return im.set(name, built)
}

// set makes an image available under a name.
func (im *images) set(name string, image builtImage) error {
	ref, err := im.canonical(name)
	if err != nil {
		return fmt.Errorf("image %q: %w", name, err)
	}
	if _, digested := ref.(reference.Digested); digested && !image.pulled {
		return fmt.Errorf("image %q: a digest is no name that can be given", name)
	}
	im.mu.Lock()
	defer im.mu.Unlock()
	im.built[ref.String()] = image
	return nil
}

// pull resolves an image of a registry. Under its name the run uses what was found from then on.
func (a *attempt) pull(ctx context.Context, image string) (string, error) {
	ref, err := a.images.canonical(image)
	if err != nil {
		return "", fmt.Errorf("image %q: %w", image, err)
	}
	if a.confined() && !a.mayUse(ref.String()) {
		return "", fmt.Errorf("image %s may not be used by %s", image, a.confinedAs())
	}
	found, err := a.fetch(ctx, a.pinned(ref))
	if err != nil {
		return "", err
	}
	digested := ref.Name() + "@" + found.Digest.String()
	pulled := builtImage{pulled: true, output: run.Output{Digest: found.Digest.String(), Ref: digested, Tags: []string{image}}}
	if reference.Domain(ref) == a.images.registry {
		pulled.staging = reference.Path(ref)
	}
	return digested + "\n", a.images.set(image, pulled)
}

// fetch reads the manifest of an image of any registry.
func (a *attempt) fetch(ctx context.Context, image string) (*remote.Descriptor, error) {
	ref, err := name.ParseReference(image, a.insecurely(image)...)
	if err != nil {
		return nil, err
	}
	return remote.Get(ref, a.remotely(ctx, ref.Context().RegistryStr())...)
}

// remotely are the options of requests to a registry.
func (a *attempt) remotely(ctx context.Context, host string) []remote.Option {
	return []remote.Option{remote.WithContext(ctx), remote.WithAuth(a.authenticator(host)), remote.WithTransport(a.transport(host))}
}

// transport returns what requests to a registry go through. The co-located one may be anywhere.
func (a *attempt) transport(host string) http.RoundTripper {
	switch {
	case a.w.Own != nil && a.images.ours(host):
		return a.w.Own
	case a.w.Outside == nil || a.images.ours(host):
		return remote.DefaultTransport
	}
	return a.w.Outside
}

// insecurely are the options for an image, or a registry with a slash behind: the co-located one may speak
// plain HTTP.
func (a *attempt) insecurely(image string) []name.Option {
	host, _, _ := strings.Cut(image, "/")
	if a.w.Insecure && a.images.ours(host) {
		return []name.Option{name.Insecure}
	}
	return nil
}

// stage has an image of another registry copied to where the run's own images are, so that it can be
// pushed; an image that is there is returned as it is.
func (a *attempt) stage(ctx context.Context, image builtImage) (builtImage, error) {
	if image.staging != "" {
		return image, nil
	}
	src, err := a.fetch(ctx, image.output.Ref)
	if err != nil {
		return image, err
	}
	image.staging = StagingRoot + "pulled"
	image.output.Ref = a.images.registry + "/" + image.staging + "@" + image.output.Digest
	to, err := name.NewDigest(image.output.Ref, a.insecurely(image.output.Ref)...)
	if err != nil {
		return image, err
	}
	return image, a.writeTo(ctx, to, src)
}

// A description is what is said of an image, under docker's names.
type description struct {
	ID           string    `json:"Id"`
	RepoTags     []string  `json:"RepoTags"`
	RepoDigests  []string  `json:"RepoDigests"`
	Created      time.Time `json:"Created,omitzero"`
	Architecture string    `json:"Architecture,omitempty"`
	OS           string    `json:"Os,omitempty"`
	Config       v1.Config `json:"Config"`
	RootFS       v1.RootFS `json:"RootFS"`
}

// inspect describes images of the run.
func (a *attempt) inspect(ctx context.Context, images []string) (string, error) {
	all := make([]description, 0, len(images))
	for _, image := range images {
		built, ok := a.images.find(image)
		if !ok {
			return "", fmt.Errorf("there is no image %s in this run; build or pull it in an earlier step", image)
		}
		found, err := a.fetch(ctx, built.output.Ref)
		if err != nil {
			return "", err
		}
		img, err := found.Image() // of several platforms, that of the worker
		if err != nil {
			return "", err
		}
		id, err := img.ConfigName()
		if err != nil {
			return "", err
		}
		config, err := img.ConfigFile()
		if err != nil {
			return "", err
		}
		all = append(all, description{ID: id.String(), RepoTags: []string{image}, RepoDigests: []string{built.output.Ref}, Created: config.Created.Time,
			Architecture: config.Architecture, OS: config.OS, Config: config.Config, RootFS: config.RootFS})
	}
	text, err := json.MarshalIndent(all, "", "    ")
	return string(text) + "\n", err
}

// signedIn are the logins of the run's own steps. The zero value has none.
type signedIn struct {
	mu     sync.Mutex
	byHost map[string]event.Login
	ever   []string // passwords
}

func (s *signedIn) of(host string) (event.Login, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, h := range LoginHosts(host) {
		if l, ok := s.byHost[h]; ok {
			return l, true
		}
	}
	return event.Login{}, false
}

func (s *signedIn) add(host string, l event.Login) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.byHost == nil {
		s.byHost = map[string]event.Login{}
	}
	s.byHost[host] = l
	s.ever = append(s.ever, l.Password)
}

func (s *signedIn) forget(host string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, h := range LoginHosts(host) {
		delete(s.byHost, h)
	}
}

func (s *signedIn) passwords() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.ever)
}

// registryHost returns the host of a registry as docker login and docker logout take it, by its URL, too.
func registryHost(registry string) string {
	host, _, _ := strings.Cut(strings.TrimPrefix(strings.TrimPrefix(registry, "https://"), "http://"), "/")
	return host
}

// login signs the run in to a registry, which is asked whether it accepts that.
func (a *attempt) login(ctx context.Context, d *taskspec.Docker) (string, error) {
	host := registryHost(d.Args[0])
	a.logs.hide(d.Password)
	if a.images.ours(host) {
		return "the run is signed in to this server's own registry anyway\n", nil
	}
	l := event.Login{User: d.Username, Password: d.Password}
	reg, err := name.NewRegistry(host)
	if err != nil {
		return "", fmt.Errorf("%q is no registry: %w", host, err)
	}
	if err := checkLogin(ctx, reg, l, a.transport(host)); err != nil {
		return "", fmt.Errorf("%s: %w", host, err)
	}
	a.signedIn.add(host, l)
	return "Login Succeeded\n", nil
}

// loginTimeout is how long a registry may take to check a login.
const loginTimeout = 30 * time.Second

// checkLogin asks a registry whether it knows a user.
func checkLogin(ctx context.Context, reg name.Registry, l event.Login, through http.RoundTripper) error {
	ctx, cancel := context.WithTimeout(ctx, loginTimeout)
	defer cancel()
	tr, err := transport.NewWithContext(ctx, reg, &authn.Basic{Username: l.User, Password: l.Password}, through, nil)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, reg.Scheme()+"://"+reg.RegistryStr()+"/v2/", nil)
	if err != nil {
		return err
	}
	resp, err := (&http.Client{Transport: tr}).Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 4<<10))
	if resp.StatusCode != http.StatusOK {
		return errors.New("the registry answered " + resp.Status)
	}
	return nil
}
