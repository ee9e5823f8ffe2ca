package webhook

import (
	"strings"

	"kiln/internal/event"
)

// A distributionEvent is one notification of a CNCF Distribution registry. Those of Azure Container
// Registry have the same fields.
type distributionEvent struct {
	ID        string `json:"id"` // stable over redelivery
	Timestamp string `json:"timestamp"`
	Action    string `json:"action"`
	Target    struct {
		MediaType  string `json:"mediaType"`
		Digest     string `json:"digest"`
		Repository string `json:"repository"`
		Tag        string `json:"tag"`
	} `json:"target"`
	Request struct {
		Host string `json:"host"`
	} `json:"request"`
	Actor struct {
		Name string `json:"name"`
	} `json:"actor"`
}

type distributionPayload struct {
	Events []distributionEvent `json:"events"`
}

var (
	distributionShape = shapeOf[distributionPayload]()
	acrShape          = shapeOf[distributionEvent]()
)

// decodeDistribution decodes an envelope of notifications. They tell of blobs, pulls and deletions
// too.
func decodeDistribution(d delivery) (found, error) {
	var p distributionPayload
	if err := decode(d.body, distributionShape, &p); err != nil {
		return found{}, err
	}
	var pushes []fact
	for _, e := range p.Events {
		if e.Action == "push" && manifest(e.Target.MediaType) {
			pushes = append(pushes, e.fact("distribution"))
		}
	}
	return images(d.hook, pushes)
}

// decodeACR decodes one event of Azure Container Registry.
func decodeACR(d delivery) (found, error) {
	var e distributionEvent
	if err := decode(d.body, acrShape, &e); err != nil {
		return found{}, err
	}
	switch e.Action {
	case "ping":
		return pong()
	case "push":
		return images(d.hook, []fact{e.fact("acr")})
	}
	return ignored("no image was pushed")
}

func (e distributionEvent) fact(provider string) fact {
	return fact{id: e.ID, at: e.Timestamp, image: &event.RegistryPushed{Provider: provider, Registry: e.Request.Host,
		Repository: e.Target.Repository, Tag: e.Target.Tag, Digest: e.Target.Digest, MediaType: e.Target.MediaType, Actor: e.Actor.Name}}
}

// manifest reports whether a media type is that of a manifest or an index.
func manifest(mediaType string) bool {
	return strings.Contains(mediaType, "manifest") || strings.Contains(mediaType, "image.index")
}
