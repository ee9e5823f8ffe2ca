package webhook

import (
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"strings"

	"kiln/internal/event"
)

// A cloudEvent is a CloudEvents 1.0 envelope.
type cloudEvent struct {
	ID     string          `json:"id"`
	Source string          `json:"source"`
	Type   string          `json:"type"`
	Time   string          `json:"time"`
	Data   json.RawMessage `json:"data"`
}

// registryData is the data of a push by zot (name, reference) or by kiln (registry, repository, tag).
type registryData struct {
	Name       string `json:"name"`
	Reference  string `json:"reference"`
	Registry   string `json:"registry"`
	Repository string `json:"repository"`
	Tag        string `json:"tag"`
	Digest     string `json:"digest"`
	MediaType  string `json:"mediaType"`
}

var (
	cloudEventShape   = shapeOf[cloudEvent]()
	cloudBatchShape   = shapeOf[[]cloudEvent]()
	registryDataShape = shapeOf[registryData]()
	harborDataShape   = shapeOf[harborData]()
)

// decodeCloudEvents decodes one event, in the structured or in the binary mode, or a batch.
func decodeCloudEvents(d delivery) (found, error) {
	events, err := cloudEvents(d)
	if err != nil {
		return found{}, err
	}
	if len(events) > maxFacts {
		return found{}, errTooMany
	}
	var pushes []fact
	for _, e := range events {
		facts, err := e.facts()
		if err != nil {
			return found{}, fmt.Errorf("event %q: %w", clip(e.ID, maxName), err)
		}
		pushes = append(pushes, facts...)
	}
	return images(d.hook, pushes)
}

func cloudEvents(d delivery) ([]cloudEvent, error) {
	kind, _, _ := mime.ParseMediaType(d.header.Get("Content-Type"))
	if strings.HasPrefix(kind, "application/cloudevents-batch") {
		var batch []cloudEvent
		err := decode(d.body, cloudBatchShape, &batch)
		return batch, err
	}
	if id := d.header.Get("Ce-Id"); id != "" && !strings.HasPrefix(kind, "application/cloudevents") {
		return []cloudEvent{{ID: id, Source: d.header.Get("Ce-Source"), Type: d.header.Get("Ce-Type"),
			Time: d.header.Get("Ce-Time"), Data: d.body}}, nil
	}
	var e cloudEvent
	err := decode(d.body, cloudEventShape, &e)
	return []cloudEvent{e}, err
}

// facts returns the pushes that an event tells of; none if it is of no interest. The prefix of zot's
// types can be configured, so only their ends count.
func (e cloudEvent) facts() ([]fact, error) {
	if e.ID == "" || e.Type == "" {
		return nil, errors.New("not a CloudEvent: no id or no type")
	}
	id := e.Source + "\x00" + e.ID // unique together
	switch {
	case strings.HasSuffix(e.Type, "harbor.artifact.pushed"):
		var data harborData
		err := decode(e.Data, harborDataShape, &data)
		return data.facts(id, e.Time), err
	case e.Type == event.TypeImagePushed, e.Type == event.TypeRegistryPushed, strings.HasSuffix(e.Type, ".image.updated"):
		var data registryData
		if err := decode(e.Data, registryDataShape, &data); err != nil {
			return nil, err
		}
		return []fact{data.fact(id, e.Time)}, nil
	}
	return nil, nil
}

func (r registryData) fact(id, at string) fact {
	p := &event.RegistryPushed{Provider: "cloudevents", Registry: r.Registry, Repository: r.Repository, Tag: r.Tag,
		Digest: r.Digest, MediaType: r.MediaType}
	if p.Repository == "" {
		p.Repository = r.Name
	}
	if p.Tag == "" && !digestPattern.MatchString(r.Reference) {
		p.Tag = r.Reference
	}
	return fact{id: id, at: at, image: p}
}
