package worker

import (
	"encoding/json"
	"maps"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/distribution/reference"
	godigest "github.com/opencontainers/go-digest"

	"kiln/internal/registry"
	"kiln/internal/run"
)

// Names of the formats of a provenance: an in-toto statement with SLSA's predicate.
const (
	provenanceType = "application/vnd.in-toto+json"
	statementType  = "https://in-toto.io/Statement/v1"
	predicateType  = "https://slsa.dev/provenance/v1"
	// buildType says what externalParameters and internalParameters hold; docs/registry.md describes them.
	buildType = "urn:kiln:buildtype:v1"
)

const (
	maxParameter  = 1 << 10 // bytes of one parameter in a provenance
	maxParameters = 64      // of one list of them
	// maxDependencies is how many images a provenance names.
	maxDependencies = 256
)

// A statement tells how an image was made. See https://slsa.dev/spec/v1.0/provenance.
type statement struct {
	Type          string     `json:"_type"`
	Subject       []resource `json:"subject"`
	PredicateType string     `json:"predicateType"`
	Predicate     provenance `json:"predicate"`
}

type resource struct {
	Name        string            `json:"name,omitempty"`
	URI         string            `json:"uri,omitempty"`
	Digest      map[string]string `json:"digest,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

type provenance struct {
	BuildDefinition struct {
		BuildType            string     `json:"buildType"`
		ExternalParameters   external   `json:"externalParameters"`
		InternalParameters   internal   `json:"internalParameters"`
		ResolvedDependencies []resource `json:"resolvedDependencies,omitempty"`
	} `json:"buildDefinition"`
	RunDetails struct {
		Builder struct {
			ID      string            `json:"id"`
			Version map[string]string `json:"version,omitempty"`
		} `json:"builder"`
		Metadata struct {
			InvocationID string    `json:"invocationId"`
			StartedOn    time.Time `json:"startedOn"`
			FinishedOn   time.Time `json:"finishedOn"`
		} `json:"metadata"`
	} `json:"runDetails"`
}

// external is what was asked for, as it was asked for: a task file is named by its digest and not shown as
// rendered, because it may then hold secret values.
type external struct {
	Task       string         `json:"task,omitempty"`
	Context    string         `json:"context,omitempty"`
	Ref        string         `json:"ref,omitempty"`
	Platform   string         `json:"platform,omitempty"`
	TaskFile   *resource      `json:"taskFile,omitempty"`
	Values     *resource      `json:"values,omitempty"`
	Set        []string       `json:"set,omitempty"`
	Env        []string       `json:"env,omitempty"`
	Network    string         `json:"network,omitempty"`
	Directory  string         `json:"workingDirectory,omitempty"`
	Build      *run.BuildSpec `json:"build,omitempty"`
	SecretArgs []string       `json:"secretBuildArgs,omitempty"` // names
	Secrets    []string       `json:"secrets,omitempty"`         // names
}

// internal is how it was done.
type internal struct {
	Run     string `json:"run"`
	Attempt int    `json:"attempt"`
	Step    string `json:"step"` // that built the image
	// BuiltBy is the earlier run that has built the image, of which nothing has changed since.
	BuiltBy string    `json:"builtBy,omitempty"`
	Cause   run.Cause `json:"cause"`
	Worker  string    `json:"worker,omitempty"`
}

// provenanceOf returns the statement about an image of the run that is published in a repository, host
// included. It holds no secret value, nor credentials of a URL.
func (a *attempt) provenanceOf(repository string, built builtImage, now time.Time) ([]byte, error) {
	st := statement{Type: statementType, PredicateType: predicateType,
		Subject: []resource{{Name: repository, Digest: digestSet(built.output.Digest)}}}
	def, det := &st.Predicate.BuildDefinition, &st.Predicate.RunDetails
	def.BuildType = buildType
	def.ExternalParameters = a.external()
	def.InternalParameters = internal{Run: a.run.ID, Attempt: a.run.Attempt, Step: built.step, BuiltBy: built.output.BuiltBy,
		Cause: run.Cause{Kind: a.run.Cause.Kind, Trigger: a.run.Cause.Trigger}, Worker: a.w.Name}
	def.ResolvedDependencies = a.madeOf(built)
	det.Builder.ID = a.w.Builder
	if a.w.Builder == "" {
		det.Builder.ID = "urn:kiln:builder:" + url.PathEscape(a.w.Registry)
	}
	det.Builder.Version = map[string]string{"buildkit": a.w.BuildKit, "kiln": a.w.Version}
	det.Metadata.InvocationID = a.run.ID
	det.Metadata.StartedOn, det.Metadata.FinishedOn = a.begun.UTC().Truncate(time.Millisecond), now.UTC().Truncate(time.Millisecond)
	return json.Marshal(st)
}

// external describes the request. Values that were given as secret are not part of it; should somebody
// have given one in clear too, it is masked.
func (a *attempt) external() external {
	spec := a.run.Spec
	e := external{Task: a.run.Task, Context: publicURL(spec.Context), Ref: spec.Ref, Platform: spec.Platform,
		SecretArgs: names(a.secrets.Args), Secrets: names(a.secrets.Set)}
	if f := spec.TaskFile; f != nil {
		e.TaskFile = &resource{Name: f.Name, Digest: digestSet(godigest.FromBytes(f.Content).String())}
		if len(f.Values) > 0 {
			e.Values = &resource{Name: f.ValuesName, Digest: digestSet(godigest.FromBytes(f.Values).String())}
		}
		e.Set, e.Env, e.Network, e.Directory = a.public(f.Set), a.public(f.Env), f.Network, f.WorkingDirectory
	}
	if b := spec.Build; b != nil {
		e.Build = &run.BuildSpec{Dockerfile: b.Dockerfile, Images: b.Images, BuildArgs: a.public(b.BuildArgs),
			Target: b.Target, NoPush: b.NoPush, NoCache: b.NoCache}
	}
	return e
}

// public returns KEY=VALUE parameters as everybody may read them, the long ones clipped.
func (a *attempt) public(list []string) []string {
	confidential := a.confidential()
	out := make([]string, 0, min(len(list), maxParameters))
	for _, kv := range list[:min(len(list), maxParameters)] {
		key, value, ok := strings.Cut(kv, "=")
		if ok && value != "" && slices.Contains(confidential, value) {
			value = "***" // also one too short to be looked for within others
		}
		if ok {
			key += "=" + value
		}
		out = append(out, clip(a.logs.whole.String(key), maxParameter))
	}
	return out
}

func names(m map[string]string) []string { return slices.Sorted(maps.Keys(m)) }

// madeOf are the source and the images that an image was made from.
func (a *attempt) madeOf(built builtImage) []resource {
	var list []resource
	switch o := a.origin; {
	case o.Commit != "":
		uri := "git+" + publicURL(o.Repository)
		if o.Ref != "" {
			uri += "@" + o.Ref
		}
		list = append(list, resource{Name: "source", URI: uri, Digest: map[string]string{"gitCommit": o.Commit}})
	case strings.HasPrefix(a.run.Spec.Context, uploadScheme):
		list = append(list, resource{Name: "source", Digest: map[string]string{"sha256": strings.TrimPrefix(a.run.Spec.Context, uploadScheme)}})
	case a.run.Spec.Context != "":
		list = append(list, resource{Name: "source", URI: publicURL(a.run.Spec.Context)})
	}
	r := a.run
	r.Steps, _ = a.reports.told()
	runtime, buildtime := r.MadeOf(&built.output)
	if runtime != nil {
		list = append(list, imageResource(*runtime, "runtime"))
	}
	if len(buildtime) > maxDependencies {
		a.logs.say("", "warning: the provenance of %s names only %d of the %d images that it was made with", built.output.Digest, maxDependencies, len(buildtime))
		buildtime = buildtime[:maxDependencies]
	}
	for _, ref := range buildtime {
		list = append(list, imageResource(ref, "buildtime"))
	}
	return list
}

// uploadScheme begins the context of a run whose source was uploaded.
const uploadScheme = "context://"

// imageResource names an image as BuildKit's provenance does.
func imageResource(ref run.Reference, use string) resource {
	res := resource{Annotations: map[string]string{"use": use}, Digest: digestSet(ref.Digest)}
	name := ref.Registry + "/" + ref.Repository
	if named, err := reference.ParseNormalizedNamed(name); err == nil {
		name = reference.FamiliarName(named)
	}
	parts := strings.Split(name, "/")
	for i := range parts {
		parts[i] = strings.ReplaceAll(url.PathEscape(parts[i]), ":", "%3A")
	}
	res.URI = "pkg:docker/" + strings.Join(parts, "/")
	if ref.Tag != "" {
		res.URI += "@" + ref.Tag
	}
	return res
}

func digestSet(digest string) map[string]string {
	algorithm, hex, ok := strings.Cut(digest, ":")
	if !ok {
		return nil
	}
	return map[string]string{algorithm: hex}
}

// publicURL returns a URL without what may be secret in it: user and password, and the query, which signs
// the addresses of tarballs.
func publicURL(s string) string {
	u, err := url.Parse(s)
	if err != nil {
		return "" // nothing is known of it
	}
	if u.User != nil || u.RawQuery != "" {
		u.User, u.RawQuery = nil, ""
		return u.String()
	}
	return s
}

// attachments are the provenances of what a push step publishes, one for each image in each repository.
func (a *attempt) attachments(tags []registry.Tag, of map[string]builtImage) ([]registry.Attachment, error) {
	now := time.Now()
	var list []registry.Attachment
	for _, t := range tags {
		if slices.ContainsFunc(list, func(o registry.Attachment) bool { return o.Repository == t.Repository && o.Subject == t.Digest }) {
			continue
		}
		att, err := a.attachment(a.images.registry+"/"+t.Repository, of[t.Digest], now)
		if err != nil {
			return nil, err
		}
		att.Repository = t.Repository
		list = append(list, att)
	}
	return list, nil
}

func (a *attempt) attachment(repository string, built builtImage, now time.Time) (registry.Attachment, error) {
	content, err := a.provenanceOf(repository, built, now)
	return registry.Attachment{Subject: built.output.Digest, Type: provenanceType, Content: content, Annotations: map[string]string{
		"in-toto.io/predicate-type":        predicateType,
		"org.opencontainers.image.created": now.UTC().Format(time.RFC3339),
	}}, err
}
