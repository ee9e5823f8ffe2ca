package webhook

import (
	"encoding/json"
	"errors"

	"kiln/internal/event"
)

type harborPayload struct {
	Type     string      `json:"type"`
	At       json.Number `json:"occur_at"` // Unix seconds
	Operator string      `json:"operator"`
	Data     harborData  `json:"event_data"`
}

// harborData is the same in Harbor's own payload and in its CloudEvents.
type harborData struct {
	Operator  string `json:"operator"`
	Resources []struct {
		Digest string `json:"digest"`
		Tag    string `json:"tag"`
		URL    string `json:"resource_url"` // host/project/name:tag
	} `json:"resources"`
	Repository struct {
		FullName string `json:"repo_full_name"`
	} `json:"repository"`
}

var harborShape = shapeOf[harborPayload]()

// decodeHarbor decodes Harbor's default payload. It has no ID; time and digest tell pushes apart.
func decodeHarbor(d delivery) (found, error) {
	var p harborPayload
	if err := decode(d.body, harborShape, &p); err != nil {
		return found{}, err
	}
	switch p.Type {
	case "PUSH_ARTIFACT":
		p.Data.Operator = p.Operator
		return images(d.hook, p.Data.facts("", p.At.String()))
	case "":
		return found{}, errors.New("no type")
	}
	return ignored("no image was pushed")
}

func (h harborData) facts(id, at string) []fact {
	var all []fact
	for _, r := range h.Resources {
		image := splitReference(r.URL)
		if image.Repository == "" {
			image.Repository = h.Repository.FullName
		}
		tag := r.Tag
		if digestPattern.MatchString(tag) {
			tag = "" // of a push without a tag
		}
		all = append(all, fact{id: id, at: at, image: &event.RegistryPushed{Provider: "harbor", Registry: image.Registry,
			Repository: image.Repository, Tag: tag, Digest: r.Digest, Actor: h.Operator}})
	}
	return all
}
