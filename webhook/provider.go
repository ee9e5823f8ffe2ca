package webhook

import (
	"errors"
	"maps"
	"net/http"
	"slices"

	"kiln/internal/event"
)

// A provider is what is particular to one kind of sender.
type provider struct {
	verify verifier
	// id returns the sender's ID of a delivery, stable over redelivery; empty if it has none.
	id func(http.Header) string
	// decode makes facts of the body. Its error is shown to the sender, who is authenticated.
	decode func(delivery) (found, error)
}

// providers is the table of all that may deliver.
var providers = map[string]provider{
	"github":       {hexSignature(hubHeader), header("X-GitHub-Delivery"), decodeGitHub},
	"gitea":        {hexSignature(giteaHeader, gogsHeader, hubHeader), header("X-Gitea-Delivery", "X-Gogs-Delivery", "X-GitHub-Delivery"), decodeGitea},
	"forgejo":      {hexSignature(forgejoHeader, giteaHeader, gogsHeader, hubHeader), header("X-Forgejo-Delivery", "X-Gitea-Delivery", "X-GitHub-Delivery"), decodeGitea},
	"gitlab":       {standardOr(gitlabToken), header("Idempotency-Key", "Webhook-Id", "X-Gitlab-Event-Uuid"), decodeGitLab},
	"bitbucket":    {hexSignature(hubOldHeader), header("X-Request-UUID", "X-Request-Id"), decodeBitbucket},
	"azure-devops": {headerToken, header(), decodeAzure},
	"generic":      {standardOr(hexSignature(hubHeader)), header("X-Kiln-Delivery", "Webhook-Id"), decodeGeneric},
	"distribution": {headerToken, header(), decodeDistribution},
	"acr":          {headerToken, header(), decodeACR},
	"harbor":       {headerToken, header(), decodeHarbor},
	"dockerhub":    {urlToken, header(), decodeDockerHub},
	"quay":         {urlToken, header(), decodeQuay},
	"cloudevents":  {standardOr(headerToken), header(), decodeCloudEvents},
}

// Providers returns the names of all providers, sorted.
func Providers() []string { return slices.Sorted(maps.Keys(providers)) }

// header returns a provider's id: the first of the named headers that is there.
func header(names ...string) func(http.Header) string {
	for i, n := range names {
		names[i] = http.CanonicalHeaderKey(n)
	}
	return func(h http.Header) string {
		for _, n := range names {
			if v := h[n]; len(v) > 0 && v[0] != "" {
				return v[0]
			}
		}
		return ""
	}
}

// A delivery is authenticated and about to be decoded, or has been.
type delivery struct {
	header http.Header
	body   []byte // JSON, unchecked
	hook   Hook
	found
}

// decode fills d from the body as it came.
func (d *delivery) decode(p provider, raw []byte) (err error) {
	if d.body, err = payload(d.header, raw); err == nil {
		d.found, err = p.decode(*d)
	}
	return err
}

// found is what a decoder has made of a delivery: facts, or a ping, or the reason for neither.
type found struct {
	facts   []fact
	ping    bool
	ignored string
}

// A fact is one event in the making; one of the pointers is set.
type fact struct {
	push  *event.GitPushed
	pull  *event.PullRequestUpdated
	image *event.RegistryPushed
	// rejected is a delivery that was accepted and then could not be decoded.
	rejected *event.DeliveryRejected
	// id and at tell the fact from others with the same data: the sender's ID of it and time of it, as
	// far as the body has them.
	id, at string
}

func ignored(reason string) (found, error) { return found{ignored: reason}, nil }

func pong() (found, error) { return found{ping: true}, nil }

// errNoRegistry says that a push cannot be mapped to a reference of an image.
var errNoRegistry = errors.New("the delivery does not say which registry it is about: set the hook's registry to the host that images name")

// maxFacts is how many events one delivery may have.
const maxFacts = 1000

var errTooMany = errors.New("the delivery has more than 1000 events")

// images returns found for pushes to a registry, without those that no task can build on: manifests
// without a tag, such as the children of an index, and the tags that stand in for referrers.
func images(h Hook, pushes []fact) (found, error) {
	if len(pushes) > maxFacts {
		return found{}, errTooMany
	}
	var f found
	for _, p := range pushes {
		if p.image.Tag == "" || referrerTag(p.image.Tag) {
			continue
		}
		err := complete(p.image, h)
		switch {
		case errors.Is(err, errNoRegistry):
			return found{}, err
		case err != nil:
			// No task can name such an image, and a registry would repeat what is refused for ever.
			f.ignored = err.Error()
		default:
			f.facts = append(f.facts, p)
		}
	}
	if len(f.facts) == 0 && f.ignored == "" {
		f.ignored = "no tag was pushed that an image could be built on"
	}
	return f, nil
}
